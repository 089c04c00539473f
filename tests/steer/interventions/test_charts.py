"""Steering along fitted charts: over a span of layers, at every token, along one axis of two."""

import math

import torch

import manifolds
import steer
from steer import LM, Site

_PROMPTS = [[*[5, 9, 11, 30, 7][: 3 + row % 3], 12 + row] for row in range(24)]


def _rings(lm: LM, sites: list[Site]) -> dict[Site, manifolds.Curve]:
    acts = lm.capture(_PROMPTS, sites)
    at = [row % 6 for row in range(24)]
    return {site: manifolds.fit_curve(acts[site].float(), at, period=6) for site in sites}


def test_over_a_span_of_layers_each_block_is_moved_to_its_own_point(lm: LM):
    sites = lm.sites("resid_post")[1:3]
    rings = _rings(lm, sites)
    u = torch.arange(4.0) + 0.5
    plan = [steer.MoveTo(site, rings[site], u) for site in sites]
    acts = lm.capture(_PROMPTS[:4], sites, plan=plan)
    for site in sites:
        assert torch.allclose(
            rings[site].flatten(acts[site]), rings[site].decode(u), rtol=0, atol=1e-4
        )


def test_at_every_generated_token_the_state_is_on_its_point(lm: LM):
    site = lm.sites("resid_post")[1]
    ring = _rings(lm, [site])[site]
    seen: list[torch.Tensor] = []

    def look(h: torch.Tensor, step: steer.Step) -> torch.Tensor:
        del step
        seen.append(h[:, -1].clone())
        return h

    read = steer.Custom(site, look)
    lm.generate(_PROMPTS[:2], [steer.MoveTo(site, ring, 2.5), read], max_new_tokens=3)
    assert len(seen) == 3
    wanted = ring.decode(2.5).expand(2, -1)
    for states in seen:
        assert torch.allclose(ring.flatten(states.float()), wanted, rtol=0, atol=1e-4)


def test_on_a_cylinder_moving_along_one_axis_keeps_the_other():
    u = torch.cartesian_prod(torch.arange(8.0), torch.arange(4.0))
    angle = 2 * math.pi * u[:, 0] / 8
    x = torch.stack([3 * angle.cos(), 3 * angle.sin(), u[:, 1], torch.zeros(32)], 1)
    tube = manifolds.fit_surface(x, u, periods=(8, None))
    off = torch.tensor([0, 0, 0, 0.7])
    h = (tube.decode(torch.tensor([[1.5, 1.2], [6.0, 2.5]])) + off)[:, None]
    by = torch.tensor([[3.0, 0.0], [0.0, -1.0]])
    plan = steer.MoveAlong(Site(0, "resid_post"), tube, by)
    moved = plan.edit(h, steer.Step(torch.zeros(2, 1).long(), torch.arange(2)))
    found = tube.encode(moved[:, 0])
    assert torch.allclose(found, torch.tensor([[4.5, 1.2], [6.0, 1.5]]), atol=1e-3)
    assert torch.allclose(moved[..., 3], h[..., 3])  # off the subspace, untouched
