"""Interchange: planted subspaces found again, beside controls, dense loops and interruptions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import steer
from steer import LM, PlanError, Site, interchange
from steer.interchange.families import BOUNDLESS, DAS, MASK

SITE = Site(2, "resid_post")
N = 1600


def planted(lm: LM) -> Tensor:
    """Return two directions [2, d]: what is exchanged decides many answers."""
    states = lm.capture(prompts(0), [SITE])[SITE]
    axes = torch.linalg.svd(states - states.mean(0))[2]
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))[0]
    return (turn @ axes[:6])[:2]


def prompts(seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(5, 570, (N, 4), generator=draw).tolist()


def some_trials(lm: LM, basis: Tensor) -> interchange.Trials:
    """Return trials whose answers are what an exchange of the basis gives, and not the base's."""
    base, source = prompts(1), prompts(2)
    states = lm.capture(source, [SITE])[SITE]
    logits = lm.logits(base, [steer.Patch(SITE, states, basis, scope=steer.LAST)])
    among = list(range(5, 25))
    own = lm.logits(base)[:, among].argmax(-1)
    best = logits[:, among].argmax(-1)
    at = (best != own).nonzero()[:, 0].tolist()
    expected = torch.tensor(among)[best].tolist()
    base, source, expected = ([x[k] for k in at] for x in (base, source, expected))
    return interchange.trials(lm, base, source, expected, among=among)


def test_a_planted_subspace_is_found_and_its_controls_are_not(lm: LM):
    basis = planted(lm)
    every = some_trials(lm, basis)
    train, held_out = every[:450], every[450:]
    training = interchange.Training(epochs=30, batch_size=225, restarts=2, learning_rate=0.1)
    found = interchange.fit_das(lm, train, SITE, dims=2, training=training)
    quick = interchange.Training(epochs=3, batch_size=225)
    beside = interchange.controls(lm, held_out, found, train=train, training=quick, n_random=4)
    true = interchange.interchange_accuracy(lm, held_out, SITE, {"planted": basis})["planted"]
    assert true.value == 1.0
    assert beside.found.value > 0.6
    assert beside.found.lo > beside.random.hi
    assert beside.found.lo > beside.untouched.hi
    assert beside.arbitrary is not None
    assert beside.arbitrary.value < 0.5
    # The planted plane itself, not another that happens to serve.
    cosines = torch.linalg.svdvals(found.basis @ basis.mT)
    assert float(cosines.min()) > 0.8
    assert float(found.losses[-1].min()) < float(found.losses[0].min())


def test_hits_are_those_of_a_loop_of_single_patches(lm: LM):
    basis = planted(lm)
    every = some_trials(lm, basis)[:12]
    wrong = every.relabelled(seed=3)
    got = interchange.interchange_accuracy(lm, wrong, SITE, {"some": basis[:1], "whole": None})
    for name, part in (("some", basis[:1]), ("whole", None)):
        hits = 0
        for base, source, right in zip(wrong.base, wrong.source, wrong.expected, strict=True):
            state = lm.capture([list(source)], [SITE])[SITE]
            logits = lm.logits([list(base)], [steer.Patch(SITE, state, part, scope=steer.LAST)])
            assert wrong.among is not None
            hits += wrong.among[int(logits[0, list(wrong.among)].argmax())] == right
        assert got[name].value == pytest.approx(hits / 12)
        assert got[name].lo <= got[name].value <= got[name].hi


def test_boundless_search_learns_how_many_directions_there_are(lm: LM):
    every = some_trials(lm, planted(lm))
    training = interchange.Training(
        epochs=25, batch_size=225, learning_rate=0.1, penalty=2.0, temperatures=(5.0, 0.1)
    )
    found = interchange.fit_boundless(lm, every[:450], SITE, within=0.6, training=training)
    score = interchange.interchange_accuracy(lm, every[450:], SITE, {"found": found.basis})
    assert found.dims < 16
    assert score["found"].value > 0.6


def test_a_mask_finds_the_neurons_that_carry_it(lm: LM):
    site = Site(3, "mlp_post")
    base, source = prompts(1), prompts(2)
    states = lm.capture(source, [site])[site]
    spread = lm.capture(base, [site])[site].std(0)
    chosen = spread.argsort(descending=True)[:6]
    carried = torch.eye(states.shape[1])[chosen]
    logits = lm.logits(base, [steer.Patch(site, states, carried, scope=steer.LAST)])
    among = list(range(5, 25))
    expected = torch.tensor(among)[logits[:, among].argmax(-1)].tolist()
    every = interchange.trials(lm, base, source, expected, among=among)
    training = interchange.Training(
        epochs=15, batch_size=225, learning_rate=0.2, penalty=0.3, temperatures=(1.0, 0.1)
    )
    found = interchange.fit_mask(lm, every[:450], site, training=training)
    bases = {"found": found.basis, "none": None}
    score = interchange.interchange_accuracy(lm, every[450:], site, bases)
    assert score["found"].value > score["none"].value
    kept = set(found.basis.argmax(1).tolist())
    assert len(kept & set(chosen.tolist())) >= 3
    assert bool((found.basis.sum(1) == 1).all())


def test_an_interrupted_training_goes_on_where_it_was(lm: LM, tmp_path: Path):
    every = some_trials(lm, planted(lm))[:60]
    file = tmp_path / "das.safetensors"
    # The same schedule, cut after two epochs by an error in the third.
    training = interchange.Training(epochs=4, batch_size=30)
    whole = interchange.fit_das(lm, every, SITE, dims=2, training=training)

    from steer.interchange import fitting

    calls = 0
    real = fitting._epoch  # pyright: ignore[reportPrivateUsage]

    def broken(*args: object) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args)  # pyright: ignore[reportArgumentType]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_epoch", broken)
        with pytest.raises(KeyboardInterrupt):
            interchange.fit_das(lm, every, SITE, dims=2, training=training, checkpoint=file)
    assert lm.registry.live == 0
    again = interchange.fit_das(lm, every, SITE, dims=2, training=training, checkpoint=file)
    torch.testing.assert_close(again.basis, whole.basis, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again.losses, whole.losses, atol=1e-6, rtol=1e-5)
    with pytest.raises(PlanError, match="with other trials, site or settings"):
        interchange.fit_das(lm, every, SITE, dims=1, training=training, checkpoint=file)


@pytest.mark.parametrize("family", [DAS, BOUNDLESS, MASK])
def test_at_the_end_the_soft_exchange_is_the_projection_on_its_basis(family: object):
    assert family in (DAS, BOUNDLESS, MASK)
    one = next(f for f in (DAS, BOUNDLESS, MASK) if f is family)
    draw = torch.Generator().manual_seed(0)
    params = one.start(2, 8, 3, draw)
    change = torch.randn(2, 5, 8, generator=draw)
    part = one.exchanged(params, change, 1e-5)
    for k in range(2):
        basis = one.basis(params, k)
        torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), atol=1e-5, rtol=0)
        torch.testing.assert_close(part[k], change[k] @ basis.mT @ basis, atol=1e-5, rtol=1e-4)


def test_bad_trials_are_refused(lm: LM):
    with pytest.raises(PlanError, match="A trial has one of each"):
        interchange.trials(lm, [[5, 6]], [[5, 6]], [3, 4])
    with pytest.raises(PlanError, match="could never win"):
        interchange.trials(lm, [[5, 6]], [[5, 6]], [3], among=[4, 5])
    some = interchange.trials(lm, [[5, 6]], [[5, 7]], [3], scope=steer.ALL)
    with pytest.raises(PlanError, match="exchanges one token"):
        interchange.interchange_accuracy(lm, some, SITE, {"whole": None})
    one = interchange.trials(lm, [[5, 6]] * 4, [[5, 7]] * 4, [3] * 4)
    with pytest.raises(PlanError, match="Name the head"):
        interchange.interchange_accuracy(lm, one, Site(1, "z"), {"whole": None})
    with pytest.raises(PlanError, match="directions were asked for"):
        interchange.fit_das(lm, one, SITE, dims=99, within=None)
