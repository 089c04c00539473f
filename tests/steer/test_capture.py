"""Capture: against the hidden states that transformers returns, and against autograd."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import steer
from steer.sites import ModuleSite, Site

ROWS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15, 16, 17, 18, 19]]


@torch.no_grad()
def states(lm: "steer.LM", row: list[int]) -> list[Tensor]:
    """Return transformers' own hidden states [pos, d_model] of one unpadded row."""
    out = lm.model(input_ids=torch.tensor([row]), output_hidden_states=True)
    return [h[0] for h in out.hidden_states]


def test_the_stream_of_every_layer_is_the_hidden_state_of_transformers(any_lm):
    n = any_lm.n_layers
    posts, pres = any_lm.sites("resid_post"), any_lm.sites("resid_pre")
    sites = [Site.embed(), *pres, *posts, Site.ln_final()]
    acts = any_lm.capture(ROWS, sites, scope=steer.ALL)
    assert acts.mask is not None
    for at, row in enumerate(ROWS):
        expected = states(any_lm, row)
        assert int(acts.mask[at].sum()) == len(row)

        def found(site: Site, row_at: int = at, length: int = len(row)) -> Tensor:
            return acts[site][row_at, :length]

        def close(site: Site, want: Tensor) -> None:
            # Rows of other lengths run in batches of their own shapes: fp32 sums in another order.
            torch.testing.assert_close(found(site), want, rtol=1e-4, atol=1e-5)

        close(Site.embed(), expected[0])
        for layer in range(n):
            close(pres[layer], expected[layer])
        for layer in range(n - 1):
            close(posts[layer], expected[layer + 1])
        close(Site.ln_final(), expected[n])
    assert torch.equal(acts[posts[0]], acts[pres[1]])


def test_one_token_a_row_gives_a_matrix_and_several_give_a_mask(lm):
    site = Site(1)
    one = lm.capture(ROWS, [site])
    assert one[site].shape == (3, lm.d_model)
    assert one.mask is None
    assert one.positions.tolist() == [6, 2, 4]
    every = lm.capture(ROWS, [site], scope=steer.ALL)
    assert every[site].shape == (3, 7, lm.d_model)
    assert every.mask is not None
    assert every.mask.sum(1).tolist() == [7, 3, 5]
    for at, row in enumerate(ROWS):
        torch.testing.assert_close(every[site][at, len(row) - 1], one[site][at])
        assert every.positions[at].tolist() == [*range(len(row)), *[-1] * (7 - len(row))]
        assert not bool(every[site][at, len(row) :].any())


@pytest.mark.parametrize(
    ("scope", "positions"),
    [
        (steer.FIRST, [[0], [0], [0]]),
        (~steer.FIRST, [[1, 2, 3, 4, 5, 6], [1, 2], [1, 2, 3, 4]]),
        (steer.span(-3, -1), [[4, 5], [0, 1], [2, 3]]),
        (steer.at(4, missing="skip"), [[4], [], [4]]),
        (steer.FIRST | steer.LAST, [[0, 6], [0, 2], [0, 4]]),
        (steer.OUTPUT, [[6], [2], [4]]),
    ],
    ids=str,
)
def test_only_the_tokens_in_scope_are_kept_in_order(lm, scope, positions):
    site = Site(2)
    every = lm.capture(ROWS, [site], scope=steer.ALL)[site]
    acts = lm.capture(ROWS, [site], scope=scope)
    flat = acts.tokens(site)
    expected = [every[row, p] for row, places in enumerate(positions) for p in places]
    torch.testing.assert_close(flat, torch.stack(expected))
    if acts.mask is not None:
        assert acts.mask.sum(1).tolist() == [len(places) for places in positions]


def test_rows_come_back_in_the_order_given_whatever_their_batches(lm, monkeypatch):
    site = Site(1)
    whole = lm.capture(ROWS, [site], scope=steer.ALL)
    monkeypatch.setattr("steer.capture.MAX_TOKENS", 3)
    shuffled = [ROWS[1], ROWS[2], ROWS[0], ROWS[1]]
    acts = lm.capture(shuffled, [site], scope=steer.ALL)
    for at, row in enumerate((1, 2, 0, 1)):
        n = len(ROWS[row])
        torch.testing.assert_close(acts[site][at, :n], whole[site][row, :n])
    assert torch.equal(acts[site][0], acts[site][3])


def calls(
    lm: "steer.LM", paths: list[str]
) -> tuple[list[str], list[torch.utils.hooks.RemovableHandle]]:
    """Return the list of module calls to come, in order, and the hooks that write it."""
    seen: list[str] = []

    def note(path: str) -> Callable[..., None]:
        return lambda *_: seen.append(path)

    handles = [lm.model.get_submodule(p).register_forward_pre_hook(note(p)) for p in paths]
    return seen, handles


@pytest.mark.parametrize(("component", "last"), [("resid_post", 1), ("resid_pre", 2), ("q", 1)])
def test_a_pass_stops_after_the_last_site_needed(any_lm, component, last):
    blocks = any_lm.registry.layout.blocks
    paths = [f"{blocks}.{layer}" for layer in range(any_lm.n_layers)]
    unembed = any_lm.registry.layout.unembed
    assert unembed is not None
    seen, handles = calls(any_lm, [*paths, unembed.path])
    any_lm.capture([ROWS[0]], [Site(0), Site(last, component)])
    for handle in handles:
        handle.remove()
    assert seen == paths[: last + 1]


def test_an_intervention_after_the_last_site_is_reached_all_the_same(lm):
    v = torch.ones(lm.d_model)
    reached: list[int] = []

    def note(h: Tensor, _: "steer.Step") -> Tensor:
        reached.append(1)
        return h + v

    lm.capture([ROWS[0]], [Site(0)], plan=[steer.Custom(Site(3), note)])
    assert reached == [1]


def test_the_vocabulary_projection_is_computed_only_when_asked_for(any_lm):
    unembed = any_lm.registry.layout.unembed
    assert unembed is not None
    seen, handles = calls(any_lm, [unembed.path])
    any_lm.capture(ROWS, [any_lm.sites()[-1], Site.ln_final()], scope=steer.ALL)
    assert seen == []
    any_lm.capture([ROWS[0]], [Site.logits()])
    assert seen == [unembed.path]
    for handle in handles:
        handle.remove()


def test_logits_are_computed_for_the_columns_in_scope_only(lm):
    widths: list[int] = []
    head = lm.model.lm_head.register_forward_hook(
        lambda _module, _args, out: widths.append(out.shape[1])
    )
    acts = lm.capture([ROWS[0]], [Site.logits()])
    head.remove()
    assert widths == [1]
    with torch.no_grad():
        expected = lm.model(input_ids=torch.tensor([ROWS[0]])).logits[:, -1]
    torch.testing.assert_close(acts[Site.logits()], expected, rtol=1e-5, atol=1e-5)


def test_capture_shows_the_state_after_the_plan(lm):
    site, v = Site(1), torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    bare = lm.capture(ROWS, [site], scope=steer.ALL)
    plan = [steer.Add(site, v, scope=steer.LAST)]
    moved = lm.capture(ROWS, [site, Site(2)], scope=steer.ALL, plan=plan)
    change = moved[site] - bare[site]
    for at, row in enumerate(ROWS):
        torch.testing.assert_close(change[at, len(row) - 1], v, rtol=1e-4, atol=1e-5)
        assert not bool(change[at, : len(row) - 1].any())


def test_gradients_of_a_capture_are_those_of_transformers(any_lm):
    weight = any_lm.model.get_input_embeddings().weight
    site = Site(1)
    acts = any_lm.capture([ROWS[0]], [site], scope=steer.ALL, grad=True)
    (found,) = torch.autograd.grad(acts[site].square().sum(), weight)
    out = any_lm.model(input_ids=torch.tensor([ROWS[0]]), output_hidden_states=True)
    (expected,) = torch.autograd.grad(out.hidden_states[2].square().sum(), weight)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any_lm.capture([ROWS[0]], [site])[site].requires_grad


def test_gradients_flow_through_the_plan_of_a_capture(lm):
    weight = lm.model.get_input_embeddings().weight
    site = Site(1)
    acts = lm.capture([ROWS[0]], [Site(2)], plan=[steer.Scale(site, 0.0)], grad=True)
    (found,) = torch.autograd.grad(acts[Site(2)].sum(), weight)
    assert not bool(found.any())  # nothing of the embeddings is left after block 1


@pytest.mark.parametrize("plan", [False, True], ids=["bare", "steered"])
def test_captured_generated_tokens_equal_the_teacher_forced_ones(any_lm, plan):
    site = Site(2)
    v = torch.randn(any_lm.d_model, generator=torch.Generator().manual_seed(1))
    steered = [steer.Add(Site(1), v)] if plan else []
    new = any_lm.generate(ROWS, steered, max_new_tokens=4).tokens
    acts = any_lm.capture(ROWS, [site], scope=steer.GENERATED, plan=steered, max_new_tokens=4)
    whole = [row + more for row, more in zip(ROWS, new, strict=True)]
    forced = any_lm.capture(whole, [site], scope=steer.ALL, plan=steered)
    assert acts[site].shape == (3, 3, any_lm.d_model)
    for at, row in enumerate(ROWS):
        places = range(len(row), len(row) + 3)
        assert acts.positions[at].tolist() == list(places)
        # One token at a time against all at once: fp32 sums in another order, four blocks deep.
        want = forced[site][at, len(row) : len(row) + 3]
        torch.testing.assert_close(acts[site][at], want, rtol=1e-3, atol=1e-4)


def test_prompt_and_generated_tokens_are_captured_together(lm):
    site = Site(1)
    acts = lm.capture(ROWS, [site], scope=steer.ALL, max_new_tokens=3)
    prompt = lm.capture(ROWS, [site], scope=steer.ALL)
    assert acts.mask is not None
    assert acts.mask.sum(1).tolist() == [len(row) + 2 for row in ROWS]
    for at, row in enumerate(ROWS):
        n = len(row)
        torch.testing.assert_close(acts[site][at, :n], prompt[site][at, :n], rtol=1e-4, atol=1e-5)


def test_a_module_by_its_path_is_captured_as_it_is(lm):
    path = "model.layers.2.mlp"
    acts = lm.capture(ROWS, [ModuleSite(path, "output")], scope=steer.ALL)
    named = lm.capture(ROWS, [Site(2, "mlp_out")], scope=steer.ALL)
    torch.testing.assert_close(acts[ModuleSite(path, "output")], named[Site(2, "mlp_out")])


def test_heads_are_captured_with_their_own_axis_and_one_by_one(lm):
    sites = [Site(1, "z"), *(Site(1, "z", head) for head in range(4))]
    acts = lm.capture(ROWS, sites, scope=steer.ALL)
    every = acts[Site(1, "z")]
    assert every.shape == (3, 7, 4, lm.registry.layout.d_head)
    for head in range(4):
        assert torch.equal(acts[Site(1, "z", head)], every[:, :, head])


def test_captures_carry_where_they_come_from(lm):
    acts = lm.capture(ROWS, [Site(1)])
    origin = acts.origin(Site(1))
    assert origin["model"] == "tiny-llama"
    assert origin["site"] == "blocks.1.resid_post"
    assert origin["scope"] == "LAST"
    assert len(origin["weights"]) == 16


def test_values_do_not_depend_on_which_sites_are_captured_together(lm):
    sites = [Site(0), Site(2, "attn_out"), Site(3), Site.ln_final()]
    together = lm.capture(ROWS, sites, scope=steer.ALL)
    for some in itertools.combinations(sites, 2):
        pair = lm.capture(ROWS, list(some), scope=steer.ALL)
        for site in some:
            assert torch.equal(pair[site], together[site])
