"""Which plans mean the same in the end of a text as in the whole of it."""

import pytest
import torch

import steer
from steer.evals import Refused
from steer.evals.harness.cutting import refuse_cut, scopes_in

SITE = steer.Site(1)


def add(scope) -> steer.Add:
    return steer.Add(SITE, torch.ones(4), scope=scope)


@pytest.mark.parametrize(
    "scope",
    [steer.ALL, ~steer.FIRST, steer.PROMPT & ~steer.LAST, steer.at(-2), steer.span(-3, None)],
)
def test_scopes_counted_from_the_end_survive_a_cut(scope):
    refuse_cut([add(scope)], 100, 10)


@pytest.mark.parametrize(
    "scope", [steer.at(0), steer.span(1, 4), steer.span(2, None), steer.text("a"), ~steer.at(3)]
)
def test_scopes_counted_from_the_front_do_not(scope):
    with pytest.raises(Refused, match=r"100 tokens and the model reads 10") as refusal:
        refuse_cut([add(steer.ALL), add(scope)], 100, 10)
    assert refusal.value.reason == "too_long"


def test_the_scope_of_a_reading_inside_a_gate_counts_too():
    import probes

    x = torch.tensor([[0.0, 1, 0, 0], [0, -1, 0, 0], [0, 2, 0, 0], [0, -2, 0, 0]])
    probe = probes.fit_logistic(x, torch.tensor([1, 0, 1, 0]))
    read = steer.Read(SITE, probe, scope=steer.span(0, 3))
    plan = [steer.When(read, add(steer.OUTPUT))]
    assert {repr(scope) for scope in scopes_in(plan)} == {"span(0, 3)", "OUTPUT"}
    with pytest.raises(Refused, match=r"span\(0, 3\)"):
        refuse_cut(plan, 100, 10)
