"""Wiring: what a plan becomes before anything is attached."""

import torch
from torch import Tensor

import steer
from steer.interventions import Add, Monitor, PreserveNorm, Read, Rows, Scale, When
from steer.sites import ModuleSite, Site
from steer.wiring import Edit, Reading


class Sum:
    """A probe: the sum of the entries."""

    def scores(self, x: Tensor) -> Tensor:
        """Return the sum over the last axis."""
        return x.sum(-1)


def an_add(lm: "steer.LM", site: Site, scale: float = 1.0) -> Add:
    return Add(site, torch.ones(lm.d_model), scale)


def test_operations_of_one_hook_are_in_the_order_of_the_pass_then_of_the_plan(lm):
    # resid_mid is written where attn_out is: one hook serves both, attn_out first.
    mid, out, mid2 = (
        an_add(lm, Site(1, "resid_mid"), 1.0),
        an_add(lm, Site(1, "attn_out"), 2.0),
        an_add(lm, Site(1, "resid_mid"), 3.0),
    )
    wiring = lm.registry.wire([mid, out, mid2])
    (ops,) = wiring.ops.values()
    assert [op.item for op in ops if isinstance(op, Edit)] == [out, mid, mid2]
    assert wiring.items == (mid, out, mid2)
    assert [edit.lines for edit in wiring.edits] == [(1,), (0,), (2,)]
    assert wiring.bases == {"model.layers.1"}


def test_a_read_is_computed_once_where_it_is_first_needed_and_latched_if_any_gate_latches(lm):
    read = Read(Site(0), Sum(), scope=steer.PROMPT)
    token = When(read, an_add(lm, Site(1)), latch="token")
    prompt = When(read, an_add(lm, Site(2)), latch="prompt")
    wiring = lm.registry.wire([token, prompt, Monitor(read)])
    readings = [op for ops in wiring.ops.values() for op in ops if isinstance(op, Reading)]
    assert len(readings) == 1
    assert readings[0].latched
    assert readings[0].site == Site(0)


def test_a_reading_comes_just_before_the_intervention_that_needs_it(lm):
    read = Read(Site(1), Sum())
    wiring = lm.registry.wire([an_add(lm, Site(1)), When(read, an_add(lm, Site(1), 2.0))])
    (ops,) = wiring.ops.values()
    assert [type(op) for op in ops] == [Edit, Reading, Edit]


def test_what_an_edit_holds_is_found_through_its_wrappers(lm):
    read = Read(Site(1), Sum())
    patch = steer.Patch(Site(1), torch.zeros(lm.d_model))
    outer = PreserveNorm(When(read, PreserveNorm(patch)))
    (edit,) = lm.registry.wire([outer]).edits
    assert [gate.read for gate in edit.gates] == [read]
    assert edit.patches == (patch,)
    assert not edit.whole
    assert lm.registry.wire([steer.Custom(Site(1), lambda h, _: h)]).edits[0].whole


def test_rows_say_how_many_and_lists_do_not(lm):
    add = an_add(lm, Site(1))
    assert lm.registry.wire(Rows([[add], [], []])).n_rows == 3
    assert lm.registry.wire([add]).n_rows is None
    per_row = Scale(Site(1), torch.ones(4))
    assert lm.registry.wire([per_row]).row_counts == (("factor", 4),)


def test_wiring_registers_nothing_and_keeps_the_users_values(lm):
    add = an_add(lm, Site(1))
    wiring = lm.registry.wire([add])
    assert lm.registry.live == 0
    assert wiring.items[0] is add
    assert wiring.edits[0].item is add  # on the model's device already: not even copied


def test_raw_modules_are_wired_by_their_path(lm):
    site = ModuleSite("model.layers.1.mlp", "output")
    wiring = lm.registry.wire([Scale(site, 2.0)])
    assert list(wiring.ops) == [("model.layers.1.mlp", "output")]
