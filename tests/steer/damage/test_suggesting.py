"""Damage against closed forms at the logits, plain HuggingFace logits, and finite differences."""

import pytest
import torch

import steer
from steer.damage import divergence, suggest_strength
from steer.damage.bound import _by_difference, _by_jvp
from steer.damage.diverging import texts_of
from steer.errors import PlanError

PROMPTS = ["one two three four five", "a b c d e f g", "the cat sat on the mat"]
SITE = steer.Site(2)
FAMILIES = ["tiny-llama", "tiny-gpt2", "tiny-gemma3", "tiny-qwen2"]


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def direction(lm, seed=0):
    return torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))


def plans(lm):
    v = direction(lm)
    plane = torch.stack([v, direction(lm, 1)])
    return {
        "add": [steer.Add(SITE, v)],
        "relative": [steer.Add(SITE, v, steer.Relative(0.5))],
        "ablate": [steer.Ablate(SITE, v[None])],
        "rotate": [steer.Rotate(SITE, plane, 1.0)],
        "clamp": [steer.Clamp(SITE, v, 3.0)],
        "two": [steer.Add(steer.Site(1), v, -1.0), steer.Ablate(SITE, plane)],
        "norm": [steer.PreserveNorm(steer.Add(SITE, v))],
    }


NAMES = ["add", "relative", "ablate", "rotate", "clamp", "two", "norm"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_divergence_of_each_token_is_that_of_huggingfaces_logits(family):
    lm = steer.load(family)
    plan = [steer.Add(SITE, direction(lm), 2.0)]
    found = divergence(lm, PROMPTS, [plan, [2.0 * plan[0]]])
    for arm, strength in enumerate((2.0, 4.0)):
        wanted = []
        for ids in lm.rows(PROMPTS):
            with torch.no_grad():
                p = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
                with lm.attached([steer.Add(SITE, direction(lm), strength)]):
                    q = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            wanted.append((p.exp() * (p - q)).sum(-1)[1:])
        assert found.nats[arm].double() == pytest.approx(torch.cat(wanted), abs=1e-4, rel=1e-3)
    lengths = [len(ids) - 1 for ids in lm.rows(PROMPTS)]
    assert found.rows.bincount().tolist() == lengths


def test_tokens_before_the_first_that_a_plan_can_change_do_not_count(lm):
    plan = [steer.Add(SITE, direction(lm), scope=steer.span(3, 5))]
    found = divergence(lm, PROMPTS, [plan])
    assert int(found.positions.min()) == 3
    assert bool((found.nats > 0).all())


@pytest.mark.parametrize("name", NAMES[:-1])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_jvp_is_the_finite_difference(family, name):
    lm = steer.load(family)
    texts = texts_of(lm, PROMPTS, 0)
    exact = _by_jvp(lm, texts, plans(lm)[name], ~steer.FIRST)
    apart = _by_difference(lm, texts, plans(lm)[name], ~steer.FIRST)
    assert exact.nats.max() > 1e-6
    # Differences of fp32 logits at a factor of 1e-2 have about 1e-3 of noise.
    assert torch.allclose(exact.nats, apart.nats, rtol=2e-2, atol=1e-4 * float(exact.nats.max()))


def test_at_the_logits_the_bound_is_the_variance_of_the_direction(lm):
    v = torch.randn(lm.registry.layout.d_vocab, generator=torch.Generator().manual_seed(1))
    add = steer.Add(steer.Site.logits(), v)
    with torch.no_grad():
        every = [lm.model(torch.tensor([ids])).logits[0, 1:].double() for ids in lm.rows(PROMPTS)]
    p = torch.cat(every).softmax(-1)
    variance = (p * v.double() ** 2).sum(-1) - (p @ v.double()) ** 2
    budget = 1e-3
    found = suggest_strength(lm, add, PROMPTS, kl=budget)
    wanted = (2 * budget / torch.quantile(variance, 0.95)).sqrt()
    assert found.bound == pytest.approx(float(wanted), rel=1e-3)
    # And at so small a budget the bound is the answer.
    assert found.strength == pytest.approx(found.bound, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_reached_is_just_below_the_budget(lm, name):
    plan = plans(lm)[name]
    found = suggest_strength(lm, plan, PROMPTS, kl=0.02)
    measured = divergence(lm, PROMPTS, [found.plan(plan)]).quantile(0.95)
    assert float(measured[0]) == pytest.approx(found.kl, rel=1e-3)
    assert found.kl <= 0.02
    if found.reached:
        assert found.kl >= 0.98 * 0.02
    else:
        assert found.factor == 1.0


def test_an_ablation_that_costs_too_little_is_reported_whole_and_not_reached(lm):
    found = suggest_strength(lm, plans(lm)["ablate"][0], PROMPTS, kl=50.0)
    assert (found.reached, found.strength) == (False, 1.0)
    assert "never reached" in repr(found)


@pytest.mark.parametrize("name", ["add", "rotate", "two"])
def test_a_larger_budget_never_gives_a_smaller_strength(lm, name):
    factors = [
        suggest_strength(lm, plans(lm)[name], PROMPTS, kl=kl).factor for kl in (0.01, 0.1, 1)
    ]
    assert factors == sorted(factors)


def test_a_direction_twice_as_long_gets_half_the_strength(lm):
    v = direction(lm)
    one = suggest_strength(lm, steer.Add(SITE, v), PROMPTS, kl=0.1)
    two = suggest_strength(lm, steer.Add(SITE, 2 * v), PROMPTS, kl=0.1)
    assert one.strength is not None
    assert two.strength == pytest.approx(one.strength / 2, rel=0.01)


def test_the_sign_of_the_strength_is_kept_and_relative_ones_are_multiples(lm):
    v = direction(lm)
    found = suggest_strength(lm, steer.Add(SITE, v, -3.0), PROMPTS, kl=0.1)
    assert found.strength == pytest.approx(-3.0 * found.factor)
    assert found.factor > 0
    relative = suggest_strength(lm, steer.Add(SITE, v, steer.Relative(2.0)), PROMPTS, kl=0.1)
    assert relative.strength == pytest.approx(2.0 * relative.factor)


def test_the_order_of_the_prompts_and_the_size_of_the_batch_do_not_matter(lm, monkeypatch):
    add = plans(lm)["add"][0]
    one = suggest_strength(lm, add, PROMPTS, kl=0.1)
    monkeypatch.setattr("steer.damage.diverging.LOGIT_BYTES", 1)
    other = suggest_strength(lm, add, PROMPTS[::-1], kl=0.1)
    assert other.strength == pytest.approx(one.strength, rel=1e-3)


def test_a_plan_of_generated_tokens_needs_some(lm):
    add = steer.Add(SITE, direction(lm), scope=steer.GENERATED)
    with pytest.raises(PlanError, match="max_new_tokens for a plan that acts on generated"):
        suggest_strength(lm, add, PROMPTS)
    found = suggest_strength(lm, add, PROMPTS, kl=0.1, max_new_tokens=6)
    assert found.reached
    measured = divergence(lm, PROMPTS, [[found.factor * add]], max_new_tokens=6)
    lengths = torch.tensor([len(ids) for ids in lm.rows(PROMPTS)])
    assert bool((measured.positions >= lengths[measured.rows]).all())


def test_a_gated_plan_is_measured_by_differences(lm):
    import probes

    x = torch.randn(40, lm.d_model, generator=torch.Generator().manual_seed(2))
    probe = probes.fit_logistic(x, x[:, 0] > 0)
    read = steer.Read(steer.Site(1), probe, scope=steer.PROMPT)
    gated = steer.When(read, steer.Add(SITE, direction(lm)), above=-1.0)
    found = suggest_strength(lm, gated, PROMPTS, kl=0.1)
    plain = suggest_strength(lm, steer.Add(SITE, direction(lm)), PROMPTS, kl=0.1)
    assert found.derivative == "difference"
    assert found.strength == pytest.approx(plain.strength, rel=0.03)


def test_an_edit_that_changes_nothing_is_not_reached(lm):
    found = suggest_strength(lm, steer.Scale(SITE, 1.0), PROMPTS)
    assert (found.reached, found.kl, found.bound) == (False, 0.0, float("inf"))


def test_an_intervention_of_a_plan_that_never_acts_is_an_error(lm):
    acts, never = steer.Add(SITE, direction(lm)), steer.text("dog", missing="skip")
    with pytest.raises(steer.NeverFired):
        suggest_strength(lm, [acts, steer.Add(SITE, direction(lm), scope=never)], PROMPTS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kl": 0.0}, "budget is 0.0"),
        ({"kl": float("nan")}, "budget is nan"),
        ({"quantile": 0.0}, "quantile 0.0"),
        ({"quantile": 1.5}, "quantile 1.5"),
        ({"at_most": 0.0}, "at_most is 0.0"),
        ({"prompts": []}, "Give at least one prompt"),
        ({"intervention": steer.Add(SITE, torch.ones(64), 0.0)}, "no strength but 0"),
        ({"intervention": steer.Add(SITE, torch.ones(64), torch.ones(2))}, "one strength for each"),
        ({"intervention": steer.Patch(SITE, torch.zeros(64))}, "no strength"),
        ({"intervention": []}, "no strength"),
    ],
)
def test_what_cannot_be_suggested_is_refused(lm, change, said):
    given = {"intervention": steer.Add(SITE, direction(lm)), "prompts": PROMPTS, **change}
    intervention, prompts = given.pop("intervention"), given.pop("prompts")
    with pytest.raises(PlanError, match=said):
        suggest_strength(lm, intervention, prompts, **given)


def test_logits_that_overflow_are_said_and_not_suggested(lm):
    add = steer.Add(SITE, direction(lm), 1e38)
    with pytest.raises(PlanError, match="not numbers"):
        divergence(lm, PROMPTS, [[add]])
