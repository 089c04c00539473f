"""Patching maps against loops of hand-written hooks, and what they refuse."""

from functools import partial

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import steer
from steer import LM, PlanError, Site, patching

CLEAN = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12, 9, 13], [4, 6, 14, 8]]
CORRUPTED = [[5, 6, 20, 8, 9, 10], [5, 21, 7, 12, 9, 13], [4, 22, 14, 8]]
RIGHT, WRONG = [30, 31, 32], [40, 41, 42]
METRIC = patching.logit_difference(RIGHT, WRONG)


def scalar(logits: Tensor, row: int) -> float:
    return float(logits[0, -1, RIGHT[row]] - logits[0, -1, WRONG[row]])


def keep_input(kept: list[Tensor], _: nn.Module, args: tuple[Tensor, ...]) -> None:
    kept.append(args[0])


def module_of(lm: LM, site: Site) -> nn.Module:
    return lm.model.get_submodule(lm.registry.layout.tap(site).path)


def block_inputs(lm: LM, row: list[int]) -> list[Tensor]:
    kept: list[Tensor] = []
    handles = [
        module_of(lm, site).register_forward_pre_hook(
            lambda _, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for site in lm.sites("resid_pre")
    ]
    lm.model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return kept


@torch.no_grad()
def by_hooks(lm: LM, into: list[int], out_of: list[int], number: int) -> Tensor:
    """Return [layer, position]: resid_pre patched, one whole pass for each cell."""
    states = block_inputs(lm, out_of)
    found = torch.full((lm.n_layers, len(into)), torch.nan)
    for layer, site in enumerate(lm.sites("resid_pre")):
        for at in range(len(into)):

            def write(_: nn.Module, args: tuple, kwargs: dict, layer: int = layer, at: int = at):  # type: ignore[type-arg]
                h = (args[0] if args else kwargs["hidden_states"]).clone()
                h[:, at] = states[layer][:, at]
                return ((h, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": h})

            handle = module_of(lm, site).register_forward_pre_hook(write, with_kwargs=True)
            found[layer, at] = scalar(lm.model(torch.tensor([into])).logits, number)
            handle.remove()
    return found


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_map_is_that_of_hooks_written_by_hand_pair_by_pair(any_lm: LM, direction: str):
    found = patching.sweep(
        any_lm,
        CLEAN,
        CORRUPTED,
        any_lm.sites("resid_pre"),
        METRIC,
        direction=direction,  # type: ignore[arg-type]
    )
    into, out_of = (CORRUPTED, CLEAN) if direction == "denoise" else (CLEAN, CORRUPTED)
    for row in range(3):
        theirs = by_hooks(any_lm, into[row], out_of[row], row)
        torch.testing.assert_close(
            found.values[:, : len(into[row]), row], theirs, atol=2e-4, rtol=0
        )
    assert bool(found.values[:, 4:, 2].isnan().all())
    assert bool(found.values[:, :4].isfinite().all())


def test_heads_are_patched_as_before_the_output_projection_by_hand(lm: LM):
    found = patching.sweep(lm, CLEAN, CORRUPTED, patching.heads(lm), METRIC, scope=steer.ALL)
    n_heads = lm.registry.layout.n_heads
    width = lm.model.config.hidden_size // n_heads
    grid = found.by_head()[..., 0]
    assert grid.shape == (lm.n_layers, n_heads)
    total = torch.zeros(lm.n_layers, n_heads)
    with torch.no_grad():
        for row, (into, out_of) in enumerate(zip(CORRUPTED, CLEAN, strict=True)):
            for layer in range(lm.n_layers):
                project = lm.model.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
                kept: list[Tensor] = []
                handle = project.register_forward_pre_hook(partial(keep_input, kept))
                lm.model(torch.tensor([out_of]))
                handle.remove()
                for head in range(n_heads):

                    def write(_: nn.Module, args: tuple, head: int = head, kept: list = kept):  # type: ignore[type-arg]
                        z = args[0].clone()
                        part = slice(head * width, (head + 1) * width)
                        z[..., part] = kept[0][..., part]
                        return (z,)

                    handle = project.register_forward_pre_hook(write)
                    logits = lm.model(torch.tensor([into])).logits
                    handle.remove()
                    total[layer, head] += scalar(logits, row) - float(found.into[row])
    gap = float((found.out_of - found.into).sum())
    torch.testing.assert_close(grid.float(), total / gap, atol=5e-4, rtol=1e-3)


def test_exchanging_every_token_of_the_first_state_is_the_other_run(any_lm: LM):
    site = any_lm.sites("resid_pre")[0]
    found = patching.sweep(any_lm, CLEAN, CORRUPTED, [site], METRIC, scope=steer.ALL)
    torch.testing.assert_close(found.values[0, 0], found.clean, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.effect, torch.ones(1, 1).double(), atol=1e-4, rtol=0)
    measured = METRIC(any_lm.logits(CLEAN), steer.Batch(torch.full((3,), -1), torch.arange(3)))
    torch.testing.assert_close(found.clean, measured)


def test_what_both_runs_share_is_not_run_and_changes_nothing(lm: LM):
    planned = patching.prepared(lm, CLEAN[:1], CORRUPTED[:1], lm.sites("resid_pre"), METRIC)
    # Two positions before the first different one in every block, and three after it in the first.
    assert planned.cost().dead == 2 * lm.n_layers + 3
    found = planned.run()
    assert torch.equal(found.change[:, :2], torch.zeros(lm.n_layers, 2, 1))


def test_scopes_are_looked_up_in_both_prompts_of_a_pair(lm: LM):
    clean = [[5, 6, 7, 8, 9, 10], [4, 6, 14, 8]]
    corrupted = [[5, 6, 20, 8, 8, 9, 11], [4, 22, 8]]
    names = {"last": steer.at(-1), "last two": steer.span(-2, None)}
    found = patching.sweep(lm, clean, corrupted, [Site(1)], METRIC, scope=names)
    assert found.columns == ("last", "last two")
    states = lm.capture(clean, [Site(1)], scope=steer.span(-2, None))[Site(1)]
    for row in range(2):
        plan = [steer.Patch(Site(1), states[row : row + 1], scope=steer.span(-2, None))]
        logits = lm.logits([corrupted[row]], plan)[0]
        expected = logits[RIGHT[row]] - logits[WRONG[row]]
        torch.testing.assert_close(found.values[0, 1, row], expected, atol=1e-4, rtol=0)
    with pytest.raises(PlanError, match=r"pair 0, ALL holds 6 tokens .* 7"):
        patching.sweep(lm, clean, corrupted, [Site(1)], METRIC, scope=steer.ALL)
    with pytest.raises(PlanError, match="part at position 2"):
        patching.sweep(lm, clean, corrupted, [Site(1)], METRIC)


def test_pairs_aligned_at_their_ends_write_shifted_tokens_and_leave_the_middle(lm: LM):
    clean, corrupted = [[5, 6, 7, 8, 9]], [[5, 6, 20, 21, 8, 9]]
    found = patching.sweep(lm, clean, corrupted, [Site(0)], METRIC, align="ends")
    assert [name.split()[0] for name in found.columns] == ["0", "1", "4", "5"]
    states = lm.capture(clean, [Site(0)], scope=steer.ALL)[Site(0)]
    logits = lm.logits(corrupted, [steer.Patch(Site(0), states[:, 3], scope=steer.at(4))])[0]
    expected = logits[RIGHT[0]] - logits[WRONG[0]]
    torch.testing.assert_close(found.values[0, 2, 0], expected, atol=1e-4, rtol=0)


def test_neurons_are_exchanged_and_the_rest_is_kept(lm: LM):
    site = Site(1, "mlp_post")
    found = patching.sweep(
        lm, CLEAN[:1], CORRUPTED[:1], [site], METRIC, scope=steer.LAST, neurons=[[0, 3], [5]]
    )
    assert found.places == ("blocks.1.mlp_post neurons 0,3", "blocks.1.mlp_post neurons 5")
    own, other = (lm.capture(rows, [site], scope=steer.LAST)[site] for rows in (CORRUPTED, CLEAN))
    mixed = own[:1].clone()
    mixed[:, [0, 3]] = other[:1][:, [0, 3]]
    logits = lm.logits(CORRUPTED[:1], [steer.Patch(site, mixed, scope=steer.LAST)])[0]
    expected = logits[RIGHT[0]] - logits[WRONG[0]]
    torch.testing.assert_close(found.values[0, 0, 0], expected, atol=1e-5, rtol=0)
    with pytest.raises(PlanError, match="no neuron"):
        patching.sweep(lm, CLEAN, CORRUPTED, [site], METRIC, neurons=[10**6])


@pytest.mark.parametrize("baseline", ["zero", "mean", "conditional_mean", "resample", "gaussian"])
def test_baselines_write_what_their_names_say(lm: LM, baseline: str):
    site = Site(1)
    found = patching.sweep(
        lm,
        CLEAN,
        CORRUPTED,
        [site],
        METRIC,
        scope=steer.at(3),
        direction="noise",
        baseline=baseline,  # type: ignore[arg-type]
    )
    own, other = (lm.capture(rows, [site], scope=steer.at(3))[site] for rows in (CLEAN, CORRUPTED))
    if baseline == "gaussian":
        assert bool((found.change[0, 0].abs() > 1e-4).all())
        return
    same = {8: other[[0, 2]].mean(0), 12: other[1]}  # by the token at position 3
    sources = {
        "zero": [torch.zeros_like(own[0])] * 3,
        "mean": [other.mean(0)] * 3,
        "conditional_mean": [same[8], same[12], same[8]],
        "resample": None,
    }[baseline]
    choices = [
        [sources[row]] if sources else [other[k] for k in range(3) if k != row] for row in range(3)
    ]
    for row in range(3):
        values = []
        for source in choices[row]:
            logits = lm.logits([CLEAN[row]], [steer.Patch(site, source, scope=steer.at(3))])[0]
            values.append(float(logits[RIGHT[row]] - logits[WRONG[row]]))
        assert min(abs(float(found.values[0, 0, row]) - value) for value in values) < 1e-4


def test_nothing_is_left_attached_and_metrics_that_say_nothing_are_refused(
    lm: LM, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users
    sites = lm.sites("resid_pre")[:1]
    with pytest.raises(PlanError, match="tells clean from corrupted"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, lambda logits, _: torch.ones(len(logits)))
    with pytest.raises(PlanError, match="not finite"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, lambda logits, _: logits[:, 0] / 0)
    with pytest.raises(PlanError, match="no direction"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, METRIC, direction="back")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="no baseline"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, METRIC, baseline="mode")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="one pair"):
        patching.sweep(lm, CLEAN[:1], CORRUPTED[:1], sites, METRIC, baseline="resample")
    with pytest.raises(TypeError, match="a list of them"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites[0], METRIC)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="one value for each row"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, lambda logits, _: logits.mean())
    with pytest.raises(TypeError, match="scope"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, METRIC, scope="LAST")  # type: ignore[arg-type]
    few = patching.logit_difference([1], [2])
    with pytest.raises(PlanError, match="1 answers for 3"):
        patching.sweep(lm, CLEAN, CORRUPTED, sites, few)
    assert lm.registry.live == 0


def test_a_map_says_what_it_found_and_draws_itself(lm: LM):
    found = patching.sweep(lm, CLEAN, CORRUPTED, lm.sites("resid_pre"), METRIC)
    place, column, effect = found.top(1)[0]
    assert f"largest {effect:.2f} at {place}, {column}" in repr(found)
    lo, hi = found.interval()
    inside = (lo <= found.effect + 1e-9) & (found.effect <= hi + 1e-9)
    assert float(inside[found.effect.isfinite()].double().mean()) > 0.9
    p = found.p_values(correction="none")
    assert float(p[p.isfinite()].min()) >= 2 / 2**3
    figure = found.plot()
    assert figure.data[0].z.shape == (lm.n_layers, len(found.columns))
    with pytest.raises(PlanError, match="not every head"):
        found.by_head()
