"""Path patching against hand-written hooks, sums of edges in a linear model, and its shortcut."""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from benchmarks.peers.bare import bare_twin
from steer import LM, PlanError, Site, patching
from tests.steer.attribution.test_estimating import linear_model

CLEAN = [[5, 6, 7, 8, 9, 10], [5, 11, 7, 12, 9, 13], [4, 6, 14, 8]]
CORRUPTED = [[5, 6, 20, 8, 9, 10], [5, 21, 7, 12, 9, 13], [4, 22, 14, 8]]
METRIC = patching.logit_difference([30, 31, 32], [40, 41, 42])


def by_hand(lm: LM, row: int, head: int, receiver_head: int, *, mlps_held: bool) -> float:
    """Return the metric of a clean prompt with head 0.`head` exchanged on its way to q of block 1.

    Three passes with plain torch hooks on the modules of a Llama.
    """
    model: Any = bare_twin(lm.model)
    blocks = model.model.layers
    size = model.config.hidden_size // model.config.num_attention_heads
    mine, theirs = slice(head * size, (head + 1) * size), slice(0, 0)
    theirs = slice(receiver_head * size, (receiver_head + 1) * size)
    kept: dict[str, Tensor] = {}

    def logits(ids: list[int], hooks: list[tuple[Any, str, Any]]) -> Tensor:
        handles = [getattr(module, kind)(fn) for module, kind, fn in hooks]
        with torch.no_grad():
            made = model(torch.tensor([ids])).logits[0, -1]
        for handle in handles:
            handle.remove()
        return made

    def keep(name: str, where: str) -> Any:
        def pre(_: Any, args: tuple[Tensor, ...]) -> None:
            kept[name] = args[0].clone()

        def post(_: Any, __: Any, out: Tensor) -> None:
            kept[name] = out.clone()

        return pre if where == "in" else post

    pre, post = "register_forward_pre_hook", "register_forward_hook"
    outs = [blocks[0].self_attn.o_proj, blocks[0].mlp, blocks[1].self_attn.q_proj]
    logits(CORRUPTED[row], [(outs[0], pre, keep("other z", "in"))])
    logits(
        CLEAN[row],
        [
            (outs[0], pre, keep("own z", "in")),
            (outs[1], post, keep("own mlp", "out")),
            (outs[2], post, keep("own q", "out")),
        ],
    )
    mixed = kept["own z"].clone()
    mixed[..., mine] = kept["other z"][..., mine]
    hooks = [
        (outs[0], pre, lambda _, __: (mixed,)),
        (outs[2], post, keep("new q", "out")),
    ]
    if mlps_held:
        hooks.append((outs[1], post, lambda _, __, ___: kept["own mlp"]))
    logits(CLEAN[row], hooks)
    q = kept["own q"].clone()
    q[..., theirs] = kept["new q"][..., theirs]
    made = logits(CLEAN[row], [(outs[2], post, lambda _, __, ___: q)])
    right, wrong = ([30, 31, 32][row], [40, 41, 42][row])
    return float(made[right] - made[wrong])


@pytest.mark.parametrize("frozen", ["all", "heads"])
def test_a_path_is_three_passes_by_hand(lm: LM, frozen: Any):
    senders = [Site(0, "z", 0), Site(0, "z", 2)]
    receivers = [Site(1, "q", 1), Site(1, "q", 3)]
    found = patching.paths(lm, CLEAN, CORRUPTED, senders, receivers, METRIC, frozen=frozen)
    for i, sender in enumerate((0, 2)):
        for j, receiver in enumerate((1, 3)):
            expected = [
                by_hand(lm, row, sender, receiver, mlps_held=frozen == "all") for row in range(3)
            ]
            torch.testing.assert_close(
                found.values[i, j], torch.tensor(expected), atol=1e-5, rtol=1e-5
            )
    assert float(found.change.abs().max()) > 1e-4


def test_in_a_linear_model_the_direct_edges_add_up_to_the_whole_patch():
    lm = linear_model()
    senders = [Site(0, "z", 1), Site(0, "mlp_out")]
    later = [
        *(Site(layer, "v", head) for layer in range(1, lm.n_layers) for head in range(4)),
        *(Site(layer, "mlp_post") for layer in range(lm.n_layers)),
    ]
    found = patching.paths(lm, CLEAN, CORRUPTED, senders, [*later, Site.logits()], METRIC)
    whole = patching.sweep(
        lm, CLEAN, CORRUPTED, senders, METRIC, scope=steer.ALL, direction="noise"
    )
    torch.testing.assert_close(found.change.sum(1), whole.change[:, 0], atol=1e-4, rtol=1e-3)


def test_the_shortcut_is_the_path_to_the_logits(any_lm: LM):
    outputs = [*any_lm.sites("mlp_out"), *any_lm.sites("attn_out")]
    senders = [Site(0, "resid_pre"), *patching.heads(any_lm)[:3], *outputs]
    long = patching.paths(any_lm, CLEAN, CORRUPTED, senders, [Site.logits()], METRIC)
    short = patching.direct(any_lm, CLEAN, CORRUPTED, senders, METRIC)
    torch.testing.assert_close(short.values, long.values, atol=2e-5, rtol=1e-4)
    assert short.places == long.places


def test_the_last_component_has_no_other_way_than_the_direct_one(lm: LM):
    last = Site(lm.n_layers - 1, "mlp_out")
    direct = patching.direct(lm, CLEAN, CORRUPTED, [last], METRIC)
    whole = patching.sweep(lm, CLEAN, CORRUPTED, [last], METRIC, scope=steer.ALL, direction="noise")
    torch.testing.assert_close(direct.values, whole.values, atol=1e-5, rtol=1e-5)


def test_receivers_can_be_exchanged_together(lm: LM):
    sender = [Site(0, "z", 0)]
    q, k = Site(1, "q", 1), Site(1, "k", 0)
    found = patching.paths(lm, CLEAN, CORRUPTED, sender, [q, k, [q, k]], METRIC)
    assert found.columns == ("blocks.1.q[1]", "blocks.1.k[0]", "blocks.1.q[1] & blocks.1.k[0]")
    alone = found.change[0, :2].sum(0)
    assert not torch.allclose(found.change[0, 2], torch.zeros(3), atol=1e-6)
    assert float((found.change[0, 2] - alone).abs().max()) < float(alone.abs().max())


@pytest.mark.parametrize(
    ("senders", "receivers", "said"),
    [
        ([Site(1, "resid_pre")], [Site.logits()], "cannot send along a path"),
        ([Site(0, "z", 0)], [Site(1, "mlp_out")], "cannot receive along a path"),
        ([Site(1, "z", 0)], [Site(0, "q", 0)], "comes before every sender"),
        ([Site(1, "z", 0)], [[]], "comes before every sender"),
        ([], [Site.logits()], "Senders must be given"),
    ],
)
def test_what_cannot_be_a_path_is_refused_before_anything_runs(
    lm: LM, senders: list[Site], receivers: list[Any], said: str
):
    with pytest.raises(PlanError, match=said):
        patching.paths(lm, CLEAN, CORRUPTED, senders, receivers, METRIC)
