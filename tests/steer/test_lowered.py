"""Lowered interventions against their own `edit`, and what a plan is given room for."""

from typing import Any

import pytest
import torch
from torch import Tensor

import steer
from steer.check import same_bits
from steer.lowered import Buffers, Limits, Terms, lower, moved, places_of
from steer.sites import Site
from steer.step import Step

SITE, OTHER = Site(1, "resid_post"), Site(2, "mlp_out")
N_ROWS, N_POS, D = 3, 4, 8
GEN = torch.Generator().manual_seed(0)
H, V, W = (torch.randn(*s, generator=GEN) for s in ((N_ROWS, N_POS, D), (D,), (2, D)))
PER_ROW = torch.tensor([1.5, 0.0, -2.0])
EDITS = [
    steer.Add(SITE, V, 2.0),
    steer.Add(SITE, V, PER_ROW),
    steer.Add(SITE, V, steer.Relative(-0.3)),
    steer.Ablate(SITE, W, 0.5),
    steer.Clamp(SITE, V, 3.0),
    steer.Clamp(SITE, V, PER_ROW, PER_ROW.flip(0)),
    steer.Scale(SITE, 0.0),
    steer.Scale(SITE, PER_ROW, 0.5),
    steer.Rotate(SITE, W, 0.7, PER_ROW),
    steer.Rotate(SITE, W, PER_ROW, 2.0),
    steer.Affine(SITE, V, W[0], PER_ROW),
]
EVERYWHERE = torch.ones(N_ROWS, N_POS, dtype=torch.bool)
STEP = Step(torch.arange(N_POS).expand(N_ROWS, N_POS), torch.arange(N_ROWS))


def whole(terms: Terms) -> Terms:
    """Return the terms with an entry for each row."""
    return Terms(*[t.expand(N_ROWS, *t.shape[1:]) for t in terms])


@pytest.mark.parametrize("item", EDITS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_terms_do_what_the_edit_does(item: Any, dtype: torch.dtype) -> None:
    h = H.to(dtype)
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    found = moved(h, EVERYWHERE, whole(lower(item, D, precision)))
    wanted = item.edit(h, STEP)
    assert found.dtype == dtype
    # Rounding of a sum of numbers of size 3, and one step of bfloat16 at 4. In fp64 the edit still
    # multiplies an fp32 direction by an fp32 strength.
    worst = {torch.float32: 2e-6, torch.bfloat16: 2**-5, torch.float64: 5e-7}[dtype]
    assert float((found - wanted).abs().max()) <= worst
    assert float((found - wanted).abs().mean()) <= worst / 20


def test_an_addition_gives_the_same_bits() -> None:
    for strength in (1.0, 0.3, PER_ROW, steer.Relative(0.4)):
        item = steer.Add(SITE, V, strength)
        found = moved(H, EVERYWHERE, whole(lower(item, D, torch.float32)))
        assert same_bits(found, item.edit(H, STEP))


@pytest.mark.parametrize("item", EDITS, ids=repr)
def test_tokens_outside_the_mask_keep_their_bits_whatever_they_are(item: Any) -> None:
    h = H.clone()
    h[:, 1] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45, 0.0, -1.0, 3e38, 2.0])
    mask = EVERYWHERE.clone()
    mask[:, 1] = False
    found = moved(h, mask, whole(lower(item, D, torch.float32)))
    assert same_bits(found[:, 1], h[:, 1])
    assert not torch.equal(found[:, 2], h[:, 2])


def test_strength_zero_keeps_the_bits_of_states_that_are_not_finite() -> None:
    h = torch.full((N_ROWS, N_POS, D), float("inf"))
    for item in (steer.Scale(SITE, 2.0, 0.0), steer.Ablate(SITE, W, 0.0)):
        assert same_bits(moved(h, EVERYWHERE, whole(lower(item, D, torch.float32))), h)


def test_a_coordinate_written_where_it_is_already_changes_nothing() -> None:
    item = steer.Clamp(SITE, torch.eye(D)[2], 3.0)
    h = H.clone()
    h[..., 2] = 3.0
    assert same_bits(moved(h, EVERYWHERE, whole(lower(item, D, torch.float32))), h)


def test_the_input_is_not_written_to() -> None:
    h = H.clone()
    moved(h, EVERYWHERE, whole(lower(EDITS[0], D, torch.float32)))
    assert same_bits(h, H)


def test_buffers_count_what_they_change_and_keep_their_addresses() -> None:
    mask = torch.zeros(2, 4, N_POS, dtype=torch.bool)
    buffers = Buffers.beside(mask, D, 2, torch.float32)
    before = buffers.strength.data_ptr(), buffers.write.data_ptr()
    rows = torch.tensor([0, 2])
    buffers.put(0, rows, lower(steer.Scale(SITE, 1.5), D, torch.float32))
    buffers.put(1, rows, lower(steer.Clamp(SITE, V, PER_ROW), D, torch.float32))
    mask[0, 0, :3] = True
    mask[1, 2, 1] = True
    found = buffers.edited(H)
    wanted = H.clone()
    wanted[0, :3] *= 1.5
    unit = V / V.norm()
    wanted[2, 1] += (PER_ROW[2] - H[2, 1] @ unit) * unit
    assert torch.allclose(found, wanted, atol=1e-6)
    assert buffers.n_edited.tolist() == [[3, 0, 0, 0], [0, 0, 1, 0]]
    assert buffers.size[0, 0] / 3 == pytest.approx(0.5)
    change = float((wanted[2, 1] - H[2, 1]).norm() / H[2, 1].norm())
    assert float(buffers.size[1, 2]) == pytest.approx(change, rel=1e-5)
    buffers.clear()
    assert same_bits(buffers.edited(H), H)
    assert int(buffers.n_edited.sum()) == 0
    assert before == (buffers.strength.data_ptr(), buffers.write.data_ptr())


def test_each_row_fills_the_slots_of_its_site_in_its_own_order() -> None:
    a, b, c = steer.Add(SITE, V), steer.Scale(SITE, 2.0), steer.Add(OTHER, V)
    limits = Limits(batch=3, tokens=8, slots=2, rank=2)
    plan = steer.Rows([[a, b], [c, b], []])
    placed = places_of(plan, [a, b, c], [SITE, OTHER], limits)
    assert {(p.line, str(p.site), p.slot, tuple(p.rows.tolist())) for p in placed} == {
        (0, "blocks.1.resid_post", 0, (0,)),
        (1, "blocks.1.resid_post", 1, (0,)),
        (2, "blocks.2.mlp_out", 0, (1,)),
        (1, "blocks.1.resid_post", 0, (1,)),
    }
    everyone = places_of([b, b], [b], [SITE], limits)
    assert [(p.slot, p.rows.tolist(), p.every) for p in everyone] == [
        (0, [0, 1, 2], True),
        (1, [0, 1, 2], True),
    ]


def test_what_is_not_affine_is_refused_by_name() -> None:
    source: Tensor = V
    with pytest.raises(steer.PlanError, match=r"Patch\(.*cannot run compiled.*lm\.attached"):
        lower(steer.Patch(SITE, source), D, torch.float32)
