"""Stacks: one tensor edit for many interventions, against each of them alone."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import manifolds
import probes
import steer
from steer import Site, Step
from steer.interventions.stacked import FIELDS, exact_signature, signature, stack
from steer.kinds import kinds
from steer.protocols import Intervention

D, N, BATCH = 12, 5, 3
SITE = Site(1)
Make = Callable[[torch.Generator, int], Intervention]


class Sum:
    """A probe: the sum of the entries."""

    def scores(self, x: Tensor) -> Tensor:
        """Return the sum over the last axis."""
        return x.sum(-1)


READ = steer.Read(Site(0), Sum(), steer.ALL)
STATES = torch.randn(24, D, generator=torch.Generator().manual_seed(3))
ERASURE = probes.fit_erasure(STATES, [at % 3 for at in range(24)])
RING = manifolds.fit_curve(STATES, range(24), period=24)


def vector(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def amount(g: torch.Generator, at: int) -> float | Tensor:
    # A number, one per row of the batch, and nothing: all three meet in one stack.
    per_row = torch.randn(BATCH, generator=g)
    return (0.0, per_row, 1.7, per_row * torch.tensor([0.0, 1.0, 1.0]), 1.0)[at % 5]


MAKERS: dict[str, Make] = {
    "add": lambda g, at: steer.Add(SITE, vector(g, D), amount(g, at)),
    "relative": lambda g, at: steer.Add(SITE, vector(g, D), steer.Relative(0.1 * at)),
    "ablate": lambda g, at: steer.Ablate(SITE, vector(g, 2, D), amount(g, at)),
    "ablate wide": lambda g, at: steer.Ablate(SITE, vector(g, 10, D), amount(g, at)),
    "clamp": lambda g, at: steer.Clamp(SITE, vector(g, D), amount(g, at), amount(g, at + 1)),
    "scale": lambda g, at: steer.Scale(SITE, amount(g, at), amount(g, at + 1)),
    "rotate": lambda g, at: steer.Rotate(SITE, vector(g, 2, D), amount(g, at), amount(g, at + 2)),
    "affine": lambda g, at: steer.Affine(SITE, vector(g, D), vector(g, D), amount(g, at)),
    "patch": lambda g, at: steer.Patch(SITE, vector(g, D) * at),
    "patch rows": lambda g, at: steer.Patch(SITE, vector(g, BATCH, D) * at),
    "patch tokens": lambda g, at: steer.Patch(SITE, vector(g, BATCH, 4, D) * at),
    "patch subspace": lambda g, at: steer.Patch(SITE, vector(g, BATCH, D) * at, vector(g, 3, D)),
    "move to": lambda g, at: steer.MoveTo(SITE, RING, amount(g, at), strength=amount(g, at + 3)),
    "move along": lambda g, at: steer.MoveAlong(SITE, RING, amount(g, at)),
    "snap": lambda g, at: steer.Snap(SITE, RING, amount(g, at)),
    "erase": lambda g, at: steer.Erase(SITE, ERASURE, amount(g, at)),
    "when": lambda g, at: steer.When(
        READ, steer.Add(SITE, vector(g, D), amount(g, at)), above=at - 2.0, latch="token"
    ),
    "preserve norm": lambda g, at: steer.PreserveNorm(steer.Add(SITE, vector(g, D), amount(g, at))),
    "redirect": lambda g, at: steer.Redirect(
        steer.Add(SITE, vector(g, D), amount(g, at)), vector(g, D)
    ),
    "monitor": lambda _g, _at: steer.Monitor(READ),
}


@pytest.mark.parametrize("heads", [(), (2,)], ids=["stream", "heads"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_stack_gives_every_row_what_its_own_intervention_gives(
    gen: torch.Generator, name: str, heads: tuple[int, ...]
):
    items = [MAKERS[name](gen, at) for at in range(N)]
    assert len({signature(item) for item in items}) == 1
    if heads and name.startswith(("move", "snap", "patch")):
        return  # manifolds know no heads, and a patch takes its source's axes from its site
    made = stack(items, torch.device("cpu"))
    member = torch.tensor([0, 1, 2, 3, 4, 0, 3, 1])
    rows = torch.tensor([0, 1, 2, 0, 1, 2, 1, 2])
    h = torch.randn(8, 4, *heads, D, generator=gen)
    scores = torch.randn(8, 4, generator=gen) * 3
    together = made.item.edit(h, step_of(made.rows(member, rows), scores))
    for at in range(8):
        one = slice(at, at + 1)
        alone = items[int(member[at])].edit(h[one], step_of(rows[one], scores[one]))
        torch.testing.assert_close(together[one], alone, rtol=1e-5, atol=1e-5)


def step_of(rows: Tensor, scores: Tensor) -> Step:
    positions = torch.arange(4).expand(len(rows), 4)
    return Step(positions, rows, rank=positions, reads={(READ, "token"): scores})


def test_what_differs_in_more_than_values_is_not_stacked(gen: torch.Generator):
    add = steer.Add(SITE, vector(gen, D))
    others: Sequence[Intervention] = [
        steer.Add(Site(2), vector(gen, D)),
        steer.Add(SITE, vector(gen, D), steer.Relative(1.0)),
        steer.Add(SITE, vector(gen, D).double()),
        steer.Ablate(SITE, vector(gen, D)),
        steer.PreserveNorm(add),
    ]
    assert signature(add) not in {signature(other) for other in others}
    fn = steer.Custom(SITE, lambda h, _: h)
    assert signature(fn) != signature(steer.Custom(SITE, fn.fn))


def test_kinds_whose_bits_depend_on_the_batch_are_not_stacked_in_plain_plans(gen: torch.Generator):
    exact = {"add", "relative", "ablate", "clamp", "scale", "rotate", "affine", "patch", "when"}
    for name, make in MAKERS.items():
        a, b = make(gen, 1), make(gen, 3)
        alike = exact_signature(a) == exact_signature(b)
        if name in exact:
            assert alike, name
        if name in {"ablate wide", "move to", "move along", "snap"}:
            assert not alike, name


def test_every_kind_says_how_it_stacks():
    edits = {kind for kind in kinds().values() if callable(getattr(kind, "edit", None))}
    # Code cannot be stacked; doses are settled for each controller on its own, and each step of
    # Follow and Dual is found from the state that the last one left.
    alone = {
        steer.Custom,
        steer.belief.Control,
        steer.belief.Forecast,
        steer.Follow,
        steer.Dual,
    }
    assert set(FIELDS) == edits - alone


def test_rows_of_one_kind_are_one_operation(lm: steer.LM, gen: torch.Generator):
    scopes = [steer.at(at % 3) for at in range(6)]
    plans = [
        [steer.Add(SITE, vector(gen, lm.d_model), at, scope=scope)]
        for at, scope in enumerate(scopes)
    ]
    wiring = lm.registry.wire(steer.Rows(plans))
    (edit,) = wiring.edits
    assert edit.stack is not None
    assert len(wiring.items) == len(edit.lines) == 6
    with lm.attached(steer.Rows(plans)) as run:
        lm.model(input_ids=torch.tensor([[5, 6, 7]] * 6))
    assert [line.edited.tolist() for line in run.receipt.lines] == [
        [int(row == at and at > 0) for row in range(6)] for at in range(6)
    ]
