"""steer.folding: maps against the edits themselves, folding against a stream that is simulated."""

from itertools import product

import pytest
import torch

import probes
import steer
from steer.folding import Point, affine_of, fold, identity
from steer.interventions import Relative
from steer.step import Step

D = 12
SITE = steer.Site(1, "mlp_out")
GEN = torch.Generator().manual_seed(3)
# fp64, in which the edits then compute as well.
A, B = torch.randn(2, D, generator=GEN, dtype=torch.float64)
PLANE = torch.stack([A, B])

AFFINE = {
    "add": lambda s: steer.Add(SITE, A, s),
    "ablate": lambda s: steer.Ablate(SITE, PLANE, s),
    "clamp": lambda s: steer.Clamp(SITE, A, 1.7, s),
    "scale": lambda s: steer.Scale(SITE, 0.3, s),
    "rotate": lambda s: steer.Rotate(SITE, PLANE, 0.8, s),
    "affine": lambda s: steer.Affine(SITE, A, B, s),
    "patch": lambda _: steer.Patch(SITE, A),
    "patch in a subspace": lambda _: steer.Patch(SITE, A, PLANE),
}


def edited(item, h):
    step = Step(torch.arange(h.shape[1]).expand(h.shape[:2]), torch.arange(h.shape[0]))
    return item.edit(h, step)


@pytest.mark.parametrize("strength", [1.0, -0.7, 2.5])
@pytest.mark.parametrize("kind", AFFINE)
def test_the_map_of_an_intervention_is_its_edit(kind, strength, gen):
    h = torch.randn(2, 5, D, generator=gen, dtype=torch.float64)
    item = AFFINE[kind](strength)
    torch.testing.assert_close(affine_of(item, D)(h), edited(item, h), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kind", sorted(set(AFFINE) - {"patch", "patch in a subspace"}))
def test_strength_zero_is_the_identity(kind):
    assert affine_of(AFFINE[kind](0.0), D).is_identity


@pytest.mark.parametrize(("first", "second"), list(product(AFFINE, AFFINE)))
def test_one_map_after_another_is_one_edit_after_another(first, second, gen):
    h = torch.randn(1, 4, D, generator=gen, dtype=torch.float64)
    one, other = AFFINE[first](0.6), AFFINE[second](1.0)
    both = identity(D).then(affine_of(one, D)).then(affine_of(other, D))
    torch.testing.assert_close(both(h), edited(other, edited(one, h)), atol=1e-11, rtol=1e-11)


ROWS = torch.tensor([1.0, 2.0])
READ = steer.Read(SITE, probes.fit_logistic(torch.randn(8, D, generator=GEN), [0, 1] * 4))
REFUSED = {
    "relative": (steer.Add(SITE, A, Relative(0.3)), "own norm: not affine"),
    "strengths": (steer.Add(SITE, A, ROWS), "strength has one number for each of 2 rows"),
    "targets": (steer.Clamp(SITE, A, ROWS), "its to has one number for each of 2 rows"),
    "factors": (steer.Scale(SITE, ROWS), "its factor has one number for each of 2 rows"),
    "angles": (steer.Rotate(SITE, PLANE, ROWS), "its angle has one number for each of 2 rows"),
    "last": (steer.Add(SITE, A, scope=steer.LAST), "its scope is LAST, and weights do not know"),
    "not first": (steer.Add(SITE, A, scope=~steer.FIRST), "its scope is ~FIRST"),
    "when": (steer.When(READ, steer.Add(SITE, A)), "it is a gate"),
    "monitor": (steer.Monitor(READ), "it only reads and reports"),
    "norm": (steer.PreserveNorm(steer.Add(SITE, A)), "divides by each token's norm"),
    "custom": (steer.Custom(SITE, lambda h, _: h), "its function can be anything"),
    "source": (steer.Patch(SITE, torch.zeros(2, D)), r"source has shape \(2, 12\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_affine_map_for_all_is_refused(name):
    item, why = REFUSED[name]
    with pytest.raises(steer.PlanError, match=f"cannot be baked: .*{why}.*lm.attached"):
        affine_of(item, D)


class Line:
    """A manifold that is no matter: any move along one is refused by its kind."""

    dim = 1

    def encode(self, x):
        return x[..., 0]

    def decode(self, u):
        return u[..., None] * A

    def flatten(self, x):
        return x


@pytest.mark.parametrize(
    "item",
    [
        steer.MoveTo(SITE, Line(), 0.5, scope=steer.ALL),
        steer.MoveAlong(SITE, Line(), 0.5, scope=steer.ALL),
        steer.Snap(SITE, Line(), scope=steer.ALL),
    ],
    ids=["to", "along", "snap"],
)
def test_moves_on_a_manifold_are_refused(item):
    with pytest.raises(steer.PlanError, match="manifold, which is not affine"):
        affine_of(item, D)


# -- folding, against a stream of random nonlinear writers ---------------------------------------

N = 2


def points(parallel):
    made = [Point((steer.Site.embed(), steer.Site(0, "resid_pre")), (steer.Site.embed(),))]
    for layer in range(N):
        attn, mlp = steer.Site(layer, "attn_out"), steer.Site(layer, "mlp_out")
        after = (steer.Site(layer, "resid_post"), steer.Site(layer + 1, "resid_pre"))
        if parallel:
            made.append(Point(after, (attn, mlp)))
        else:
            made += [Point((steer.Site(layer, "resid_mid"),), (attn,)), Point(after, (mlp,))]
    return made


def run(at, parallel):
    """Run a toy stream; `at(site, h)` changes what is at a site."""
    draw = torch.Generator().manual_seed(11)

    def writer(h):
        weight = torch.randn(D, D, generator=draw, dtype=torch.float64)
        return torch.tanh(h @ weight / D**0.5) @ weight.T

    def stream(h, *sites):
        for site in sites:
            h = at(site, h)
        return h

    h = torch.randn(6, D, generator=draw, dtype=torch.float64)
    h = stream(h, steer.Site.embed(), steer.Site(0, "resid_pre"))
    for layer in range(N):
        attn = at(steer.Site(layer, "attn_out"), writer(h))
        if parallel:
            h = h + attn + at(steer.Site(layer, "mlp_out"), writer(h))
        else:
            h = stream(h + attn, steer.Site(layer, "resid_mid"))
            h = h + at(steer.Site(layer, "mlp_out"), writer(h))
        h = stream(h, steer.Site(layer, "resid_post"), steer.Site(layer + 1, "resid_pre"))
    return h


def steered(plan, parallel):
    def at(site, h):
        for item in plan:
            h = edited(item, h[None])[0] if item.site == site else h
        return h

    return run(at, parallel)


def folded(plan, parallel):
    maps = fold([(item, affine_of(item, D)) for item in plan], points(parallel))
    assert {site.component for site in maps} <= {"embed", "attn_out", "mlp_out"}
    return run(lambda site, h: maps[site](h) if site in maps else h, parallel)


def every_site(parallel):
    components = ["resid_mid"] if not parallel else []
    components += ["attn_out", "mlp_out", "resid_post", "resid_pre"]
    inside = [steer.Site(layer, c) for layer in range(N) for c in components]
    return [steer.Site.embed(), *inside, steer.Site(N, "resid_pre")]


@pytest.mark.parametrize("parallel", [False, True])
def test_a_shift_anywhere_is_a_shift_of_the_writer_before(parallel):
    for site in every_site(parallel):
        plan = [steer.Add(site, A, 0.8)]
        got, wanted = folded(plan, parallel), steered(plan, parallel)
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("kind", ["ablate", "clamp"])
def test_whatever_is_accepted_is_exact_and_projecting_all_is_accepted(kind, parallel):
    """Random subsets of sites: folding may refuse, but what it folds is what the plan does."""
    draw = torch.Generator().manual_seed(5)
    sites, accepted, refused = every_site(parallel), 0, 0
    for share in (0.2, 0.4, 0.6, 0.8, 0.95, 1.0):
        for _ in range(12):
            kept = [s for s in sites if float(torch.rand((), generator=draw)) < share]
            make = {
                "ablate": lambda site: steer.Ablate(site, PLANE),
                "clamp": lambda site: steer.Clamp(site, A, 1.3),
            }[kind]
            plan = [make(site) for site in kept]
            try:
                got = folded(plan, parallel)
            except steer.PlanError:
                refused += 1
                continue
            accepted += 1
            torch.testing.assert_close(got, steered(plan, parallel), atol=1e-9, rtol=0)
    assert accepted >= 12, refused
    assert refused >= 12, accepted


def test_a_projection_of_the_stream_needs_the_same_one_before():
    stream = [steer.Site(0, "resid_pre"), steer.Site(0, "resid_mid"), steer.Site(0, "resid_post")]
    everywhere = [steer.Ablate(site, A) for site in stream]
    torch.testing.assert_close(folded(everywhere, False), steered(everywhere, False))
    part = [*everywhere[:1], *everywhere[2:]]  # the MLP would read attention's part
    gap = (steered(part, False) - steered(everywhere, False)).abs().max()
    assert float(gap) > 0.1
    for plan in (part, everywhere[2:], [*everywhere[:2], steer.Ablate(stream[2], B)]):
        with pytest.raises(
            steer.PlanError, match=r"blocks\.0\.resid_post carries all that earlier"
        ):
            folded(plan, False)
    with pytest.raises(steer.PlanError, match=r"Scale.*carries all that earlier blocks wrote"):
        folded([steer.Scale(stream[2], 0.5)], False)


def test_clamping_everywhere_shifts_the_embedding_alone():
    plan = [steer.Clamp(site, A, 2.0) for site in every_site(False) if "resid" in site.component]
    maps = fold([(item, affine_of(item, D)) for item in plan], points(False))
    shifted = [site for site, made in maps.items() if bool(made.shift.any())]
    assert shifted == [steer.Site.embed()]
    torch.testing.assert_close(folded(plan, False), steered(plan, False), atol=1e-9, rtol=0)
