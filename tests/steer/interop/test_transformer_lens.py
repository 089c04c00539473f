"""What a TransformerLens bridge cannot do is refused by name, and nothing is left in it."""

import ast
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import steer
from steer import interop

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def pair(tiny: Callable) -> tuple:
    lm = tiny("tiny-llama")
    return lm, interop.bridge_of(lm)


def add(lm: "steer.LM", site: "steer.Site | steer.ModuleSite | None" = None) -> list:
    return [steer.Add(site or steer.Site(1), torch.ones(lm.d_model))]


def hooks_of(bridge: object) -> int:
    """Count the torch hooks anywhere in a bridge and in the model inside."""
    modules = [*bridge.modules(), *bridge.original_model.modules()]  # type: ignore[attr-defined]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_importing_interop_imports_no_other_library() -> None:
    # By its text: a fresh interpreter would say the same, five seconds later.
    folder = Path(interop.__file__).parent
    files = list(folder.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names.append(getattr(node, "module", None) or "")
                roots = {name.partition(".")[0] for name in names}
                assert not roots & {"transformer_lens", "nnsight", "gguf", "greenlet"}, file


def test_a_bridge_is_over_a_copy_and_the_model_stays_itself(pair: tuple) -> None:
    lm, bridge = pair
    assert type(lm.model.model.layers[0]).__name__ == "LlamaDecoderLayer"
    ours = {p.data_ptr() for p in lm.model.parameters()}
    assert not ours & {p.data_ptr() for p in bridge.original_model.parameters()}


def test_nothing_is_left_in_a_bridge_after_exit_error_or_failed_attach(pair: tuple) -> None:
    lm, bridge = pair
    with torch.no_grad():
        plain = bridge(IDS)  # at its first pass a bridge adds hooks of its own, and keeps them
        before = hooks_of(bridge)
        with interop.in_bridge(bridge, add(lm)):
            assert not torch.equal(bridge(IDS), plain)
        with pytest.raises(RuntimeError, match="mine"), interop.in_bridge(bridge, add(lm)):
            raise RuntimeError("mine")
        with pytest.raises(steer.SiteNotFound):
            interop.in_bridge(bridge, [*add(lm), *add(lm, steer.Site(99))])
        assert torch.equal(bridge(IDS), plain)
    assert hooks_of(bridge) == before
    assert "generate" not in vars(bridge.original_model)


def test_the_users_own_hooks_stay_and_see_the_edit_where_they_come_later(pair: tuple) -> None:
    lm, bridge = pair
    seen: list[torch.Tensor] = []

    def look(tensor: torch.Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens' names
        seen.append(tensor)

    bridge.add_hook("blocks.1.hook_resid_post", look)
    try:
        with torch.no_grad():
            with interop.in_bridge(bridge, add(lm)):
                bridge(IDS)
                bridge.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_resid_post", look)])
            bridge(IDS)
    finally:
        bridge.reset_hooks()
    first, again, after_ours, last = seen
    assert torch.equal(first, last)
    assert torch.equal(first, again)
    assert torch.allclose(after_ours, first + 1.0)


def test_resid_mid_reaches_the_stream_unlike_the_hook_of_that_name(pair: tuple) -> None:
    _, bridge = pair
    site = steer.Site(1, "resid_mid")
    post = []

    def keep(tensor: torch.Tensor, hook: object) -> None:  # noqa: ARG001 - TransformerLens' names
        post.append(tensor)

    def zero(tensor: torch.Tensor, hook: object) -> torch.Tensor:  # noqa: ARG001
        return torch.zeros_like(tensor)

    look = ("blocks.1.hook_resid_post", keep)
    with torch.no_grad():
        with interop.in_bridge(bridge, [steer.Scale(site, 0.0)]):
            bridge.run_with_hooks(IDS, fwd_hooks=[look])
        bridge.run_with_hooks(IDS, fwd_hooks=[("blocks.1.hook_resid_mid", zero), look])
    ours, theirs = post
    # With nothing in the middle of the block, and no biases in Llama, nothing comes out of it.
    assert ours.abs().max() < 1e-5
    assert theirs.abs().max() > 0.1


def test_an_intervention_that_never_fired_is_an_error(pair: tuple) -> None:
    lm, bridge = pair
    late = steer.Add(steer.Site(1), torch.ones(lm.d_model), scope=steer.GENERATED)
    with (
        pytest.raises(steer.NeverFired, match="none of the 5 tokens seen"),
        interop.in_bridge(bridge, [late]),
    ):
        bridge(IDS)
    with (
        pytest.raises(steer.NeverFired, match="no forward pass"),
        interop.in_bridge(bridge, [late]),
    ):
        pass


def test_a_run_that_stops_before_the_site_is_an_error(pair: tuple) -> None:
    lm, bridge = pair
    plan = [*add(lm, steer.Site(0)), *add(lm, steer.Site(3))]
    with (
        pytest.raises(steer.NeverFired, match=r"never handed over .*'blocks\.3\.hook_out' in 1"),
        interop.in_bridge(bridge, plan),
    ):
        bridge(IDS, stop_at_layer=2)


@pytest.mark.parametrize(
    ("site", "match"),
    [
        (steer.Site(1, "router"), "no blocks.1.router: TransformerLens has no hook"),
        (steer.Site(4), r"no site blocks\.4\.resid_post: it has 4 blocks"),
        (steer.ModuleSite("model.layers.1"), "the bridge has replaced its modules"),
        (steer.ModuleSite("no.such.module"), "the bridge has replaced its modules"),
    ],
)
def test_sites_that_a_bridge_lacks_are_refused_at_attach(
    pair: tuple, site: "steer.Site", match: str
) -> None:
    lm, bridge = pair
    with pytest.raises(steer.SiteNotFound, match=match):
        interop.in_bridge(bridge, add(lm, site))


def test_parallel_blocks_and_mixtures_lack_what_their_names_would_promise(tiny: Callable) -> None:
    neox = interop.bridge_layout(interop.bridge_of(tiny("tiny-neox")))
    assert "resid_mid" in neox.absent
    mixtral = interop.bridge_layout(interop.bridge_of(tiny("tiny-mixtral")))
    assert {"mlp_pre", "mlp_post"} <= set(mixtral.absent)


def test_a_wrong_width_is_refused_at_attach(pair: tuple) -> None:
    _, bridge = pair
    with pytest.raises(
        steer.WidthMismatch, match=r"7 entries but blocks\.1\.resid_post is 64 wide"
    ):
        interop.in_bridge(bridge, [steer.Add(steer.Site(1), torch.ones(7))])


def test_folded_weights_are_refused_and_unfolded_compatibility_is_not(tiny: Callable) -> None:
    lm = tiny("tiny-gpt2")
    named = interop.bridge_of(lm)
    named.enable_compatibility_mode(no_processing=True)
    with torch.no_grad():
        with lm.attached(add(lm)):
            native = lm.model(IDS).logits
        with interop.in_bridge(named, add(lm)):
            assert (named(IDS) - native).abs().max() < 1e-4
    folded = interop.bridge_of(lm)
    folded.enable_compatibility_mode()
    with pytest.raises(steer.UnsupportedModel, match=r"folded or centred.*no_processing=True"):
        interop.in_bridge(folded, add(lm))


def test_a_model_with_a_plan_in_it_is_not_copied_into_a_bridge(lm: "steer.LM") -> None:
    with lm.attached([]), pytest.raises(steer.PlanError, match="would be copied into the bridge"):
        interop.bridge_of(lm)


def test_without_a_local_model_there_is_nothing_to_count() -> None:
    class Remote:
        original_model = None

    with pytest.raises(steer.UnsupportedModel, match="Remote has no local model"):
        interop.bridge_layout(Remote())  # type: ignore[arg-type]


def test_a_generator_that_yields_inside_is_refused(pair: tuple) -> None:
    lm, bridge = pair

    def leaky() -> Iterator[None]:
        with interop.in_bridge(bridge, add(lm)):
            yield

    steps = leaky()
    next(steps)
    try:
        with pytest.raises(steer.SteerError, match=r"leaky is still attached"), torch.no_grad():
            bridge(IDS)
    finally:
        with pytest.raises(steer.NeverFired):
            next(steps)


def test_another_thread_is_not_steered_while_a_plan_is_in_the_bridge(pair: tuple) -> None:
    lm, bridge = pair

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return bridge(IDS)

    alone = plain()
    with ThreadPoolExecutor(2) as pool, interop.in_bridge(bridge, add(lm)) as run:
        outside = [pool.submit(plain) for _ in range(20)]
        bound = [pool.submit(run.bind(plain)) for _ in range(20)]
        here = plain()
        assert all(torch.equal(other.result(), alone) for other in outside)
        assert all(torch.equal(other.result(), here) for other in bound)
    assert (here - alone).abs().max() > 0.1
