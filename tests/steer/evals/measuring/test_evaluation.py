"""The whole report, on questions of our own and a model that knows nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import steer
from steer import cli
from steer.errors import PlanError, SpecError
from steer.evals import Manifest, Refused
from steer.evals.manifest import plan_digest
from steer.evals.measuring import evaluation
from steer.evals.measuring.evaluation import Settings, evaluate
from steer.evals.report import Limit, Report, gate
from steer.evals.tasks import Choice, Prompt
from steer.evals.tasks.items import Items
from tests.steer.evals.measuring.conftest import Dot, add, vector
from tests.steer.evals.measuring.test_choices import looped

NAMES = ("sycophancy", "truthfulness", "mmlu", "perplexity", "harmful_requests")


@pytest.fixture
def data(
    letters: list[Choice], endings: list[Choice], requests: list[Prompt], texts: list[str]
) -> dict[str, Items]:
    """Return items in place of the pinned ones."""
    return {
        "sycophancy": letters,
        "truthfulness": endings,
        "mmlu": letters[::2],
        "perplexity": texts,
        "harmful_requests": requests,
    }


@pytest.fixture
def settings(data: Mapping[str, Items]) -> Settings:
    """Return settings that need no network."""
    return Settings(NAMES, factors=(-1.0, 0.5, 1.0), data=data)


def along_the_target(lm: steer.LM, items: Sequence[Choice]) -> list[steer.Add]:
    """Return an addition at the logits' input that favours the letter A, whatever A stands for."""
    (a,) = lm.tokenizer("A", add_special_tokens=False)["input_ids"]  # type: ignore[arg-type]
    del items
    row = lm.model.get_output_embeddings().weight[a].detach()  # type: ignore[operator]
    return [steer.Add(steer.Site.ln_final(), 3 * row / row.norm())]


def test_a_report_has_every_number_beside_its_controls(lm: steer.LM, settings: Settings):
    plan = add(lm)
    report = evaluate(lm, plan, settings)
    assert report.plan == plan_digest(plan)
    assert report.manifest["seeds"] == [0]
    for name in ("sycophancy", "truthfulness"):
        for part in ("base", "effect", "chosen", "chosen_base", "slope", "anti_steerable"):
            assert report.numbers[f"{name}.{part}"].value is not None
        for part in ("effect_random", "effect_shuffled", "effect_prompt", "slope_random"):
            assert report.controls[f"{name}.{part}"].value is not None
        assert report.curves[name].factors == (-1.0, 0.0, 0.5, 1.0)
        assert set(report.curves[name].lines) == {"plan", "random"}
    assert report.numbers["sycophancy.effect_plain"].value is not None
    for name in (
        "mmlu.accuracy_base",
        "mmlu.accuracy_change",
        "perplexity.nats_change",
        "perplexity.kl_mean",
        "perplexity.kl_p95",
        "harmful_requests.rate",
        "harmful_requests.false_rate_change",
        "harmful_requests.repetition_change",
        "refusal.cosine",
    ):
        assert report.numbers[name].value is not None, name
        without = name.removesuffix("_base")
        assert name.endswith("_base") or f"{without}_random" in report.controls, name


def test_the_effect_is_that_of_a_loop_and_its_control_is_none(lm: steer.LM, settings: Settings):
    plan = add(lm)
    report = evaluate(lm, plan, settings)
    items = settings.data["sycophancy"]
    before, after = (looped(lm, items, p, "chat", False) for p in ([], plan))  # type: ignore[arg-type]
    wanted = np.mean([np.mean(after[key]) - np.mean(before[key]) for key in before])
    assert report.numbers["sycophancy.effect"].value == pytest.approx(wanted, abs=2e-4)
    curve = report.curves["sycophancy"].lines
    at_zero = [line[1].value for line in curve.values()]
    assert at_zero == [0.0, 0.0]  # the change, question by question
    effect = report.numbers["sycophancy.effect"]
    for end in ("value", "lo", "hi"):
        assert getattr(curve["plan"][-1], end) == pytest.approx(getattr(effect, end))
    # The random arm differs from factor to factor, and its sign turns with the factor.
    random = [one.value for one in curve["random"]]
    assert len(set(random)) == 4


def test_pushing_a_letter_is_no_effect_as_the_letters_are_swapped(lm: steer.LM, settings: Settings):
    plan = along_the_target(lm, settings.data["sycophancy"])  # type: ignore[arg-type]
    narrow = replace(settings, tasks=("sycophancy",), refusal_direction=False)
    report = evaluate(lm, plan, narrow)
    effect, chosen = (report.numbers[f"sycophancy.{n}"] for n in ("effect", "chosen"))
    first = [item for item in settings.data["sycophancy"] if item.target == 0]  # type: ignore[union-attr]
    one_sided = evaluate(lm, plan, replace(narrow, data={"sycophancy": first}))
    alone = one_sided.numbers["sycophancy.effect"].value
    assert alone is not None
    assert effect.value is not None
    assert alone > 1
    assert abs(effect.value) < 0.3 * alone
    assert chosen.value == pytest.approx(0.5, abs=0.1)


def test_the_same_settings_give_the_same_report_and_it_survives_its_file(
    lm: steer.LM, settings: Settings, tmp_path: Path
):
    small = replace(settings, tasks=("sycophancy", "perplexity"))
    one, two = evaluate(lm, add(lm), small), evaluate(lm, add(lm), small)
    assert one == two
    assert Report.load(one.save(tmp_path / "r.json")) == one
    assert one != evaluate(lm, add(lm), replace(small, seed=1))
    limits = [Limit("effect", "sycophancy.effect", at_least=-100, at_most=100)]
    assert gate(one, limits).ok
    assert not gate(one, [Limit("utility", "perplexity.kl_p95", at_most=0.0)]).ok


def test_a_task_of_ones_own_is_measured_like_any_other(lm: steer.LM, endings: list[Choice]):
    own = steer.evals.Task(
        "drinks", "behaviour", "goes on drinking", (), lambda _: endings, form="plain"
    )
    asked = Settings((own,), refusal_direction=False)
    report = evaluate(lm, add(lm), asked)
    assert report.numbers["drinks.effect"].value is not None
    assert "drinks.effect_prompt" not in report.controls
    told = report.settings["sources"]
    assert isinstance(told, dict)
    assert str(told["drinks"]).startswith("the caller's, sha256 ")
    other = [Choice(one.key, one.question, one.options, 1) for one in endings]
    again = steer.evals.Task("drinks", "behaviour", "stops", (), lambda _: other, form="plain")
    swapped = evaluate(lm, add(lm), Settings((again,), refusal_direction=False))
    # Two options: the other one's log-odds are the same with the other sign.
    assert swapped.numbers["drinks.effect"].value == pytest.approx(
        -report.numbers["drinks.effect"].value,
        abs=1e-5,  # type: ignore[operator]
    )
    assert swapped.settings["sources"] != told


def test_a_monitor_is_judged_on_labelled_texts(lm: steer.LM, settings: Settings):
    (a,) = lm.tokenizer("A", add_special_tokens=False)["input_ids"]  # type: ignore[arg-type]
    state = lm.model.get_input_embeddings().weight[a].detach()  # type: ignore[operator]
    sharp = steer.Monitor(steer.Read(steer.Site.embed(), Dot(state / state.norm())))
    blind = steer.Monitor(steer.Read(steer.Site.embed(), Dot(torch.zeros(lm.d_model))))
    first = [item for item in settings.data["sycophancy"] if item.target == 0]  # type: ignore[union-attr]
    asked = replace(
        settings, tasks=("sycophancy",), refusal_direction=False, data={"sycophancy": first}
    )
    plan = [*add(lm), sharp, blind]
    report = evaluate_without_identity(lm, plan, asked)
    # The target is always A, and the probe reads A at the last token.
    assert report.numbers["sycophancy.monitor1_auc"].value == 1.0
    assert report.numbers["sycophancy.monitor1_true_rate"].value == 1.0
    assert report.numbers["sycophancy.monitor1_false_rate"].value == 0.0
    assert report.numbers["sycophancy.monitor2_auc"].value == 0.5
    assert (report.controls["sycophancy.monitor1_auc_shuffled"].value or 1) < 0.8
    rocs = report.settings["roc"]
    assert isinstance(rocs, dict)
    assert set(rocs) == {"sycophancy.monitor1", "sycophancy.monitor2"}


def evaluate_without_identity(lm: steer.LM, plan: list, settings: Settings) -> Report:
    """Evaluate a plan with probes of the tests, which have no spec."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "plan_digest", lambda _: "0" * 64)
        patch.setattr(evaluation, "manifest_of", lambda *_, **__: manifest())
        return evaluate(lm, plan, settings)


def manifest() -> Manifest:
    return Manifest("0" * 64, {}, {}, {}, (0,))


def test_a_plan_along_the_refusal_direction_has_cosine_one(lm: steer.LM, settings: Settings):
    site = steer.Site(1)
    prompts = settings.data["harmful_requests"]
    chats = {
        kind: [[{"role": "user", "content": p.text}] for p in prompts if p.harmful is kind]  # type: ignore[union-attr]
        for kind in (True, False)
    }
    bad, good = (lm.capture(chats[kind], [site], scope=steer.LAST)[site] for kind in (True, False))
    direction = bad.mean(0) - good.mean(0)
    asked = replace(settings, tasks=("perplexity",))
    for sign in (1.0, -1.0):
        report = evaluate(lm, [steer.Add(site, sign * direction)], asked)
        assert report.numbers["refusal.cosine"].value == pytest.approx(sign, abs=1e-4)
        way = "along" if sign > 0 else "against"
        assert any(f"leans {way} the refusal direction" in note for note in report.notes)
        chance = report.controls["refusal.cosine_random"]
        assert chance.hi == pytest.approx(1.96 / lm.d_model**0.5)


def test_what_never_fires_is_unscored_with_the_reason_and_nothing_at_all_is_refused(
    lm: steer.LM, settings: Settings
):
    plan = add(lm, scope=steer.GENERATED)
    report = evaluate(lm, plan, settings)
    assert report.numbers["sycophancy.effect"].value is None
    assert any("sycophancy.effect: not measured" in note for note in report.notes)
    assert report.numbers["perplexity.nats_change"].value is not None
    assert not gate(report, [Limit("effect", "sycophancy.effect", at_least=-9.0)]).ok
    only = replace(settings, tasks=("sycophancy",), refusal_direction=False)
    with pytest.raises(Refused, match=r"never_fired.*Nothing could be measured on sycophancy"):
        evaluate(lm, plan, only)


def test_a_plan_without_strength_is_done_or_not(lm: steer.LM, settings: Settings):
    patch = [steer.Patch(steer.Site(1), vector(lm), scope=steer.LAST)]
    asked = replace(settings, tasks=("sycophancy",), refusal_direction=False)
    report = evaluate(lm, patch, asked)
    assert report.curves["sycophancy"].factors == (0.0, 1.0)


def test_what_cannot_be_evaluated_is_refused_before_anything_runs(lm: steer.LM, settings: Settings):
    with pytest.raises(PlanError, match="Rows has one plan for each row"):
        evaluate(lm, steer.Rows([add(lm)]), settings)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"no task 'sycofancy'"):
        evaluate(lm, add(lm), replace(settings, tasks=("sycofancy",)))
    with pytest.raises(PlanError, match=r"'perplexity' stands there twice"):
        evaluate(lm, add(lm), replace(settings, tasks=("perplexity", "mmlu", "perplexity")))
    with pytest.raises(PlanError, match="there is none"):
        evaluate(lm, add(lm), replace(settings, tasks=()))
    with pytest.raises(PlanError, match=r"factors are .*no finite numbers"):
        evaluate(lm, add(lm), replace(settings, factors=(float("inf"),)))
    with pytest.raises(SpecError, match="Custom"):
        evaluate(lm, [steer.Custom(steer.Site(1), lambda h, _: h)], settings)
    with pytest.raises(steer.SteerError, match=r"blocks\.99"):
        evaluate(lm, [steer.Add(steer.Site(99), vector(lm))], settings)


def test_the_command_writes_the_report_and_its_page(
    lm: steer.LM,
    data: Mapping[str, Items],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(evaluation, "items_of", lambda one, *_, **__: data[one.name])
    file = steer.save(add(lm), tmp_path / "plan.safetensors")
    digest = plan_digest(add(lm))
    out = tmp_path / "report.json"
    common = ["evaluate", str(file), "--model", "tiny-llama", "--out", str(out)]
    asked = [*common, "--tasks", "sycophancy,perplexity", "--factors=-1,1", "--limit", "4"]
    assert cli.main([*asked, "--digest", digest[:12]]) == 0
    printed = capsys.readouterr().out
    assert "sycophancy.effect" in printed
    report = Report.load(out)
    assert report.plan == digest
    assert report.settings["factors"] == [-1.0, 0.0, 1.0]
    page = out.with_suffix(".html").read_text(encoding="utf-8")
    assert digest[:12] in page
    for wrong, match in (
        (["--digest", "0" * 12], "wrong_plan"),
        (["--factors", "1,x"], "a list of numbers"),
        (["--limit", "1"], "at least"),
        (["--tasks", "sycofancy"], "Did you mean"),
        (["--out", "report.txt"], "ends with .json"),
    ):
        assert cli.main([*asked, *wrong]) == 2
        assert match in capsys.readouterr().err


def test_each_kind_of_task_has_its_own_number_unscored(lm: steer.LM, settings: Settings):
    # Never in the prompt, and an answer of one token has nothing after it.
    plan = add(lm, scope=steer.at(500))
    tasks = ("sycophancy", "mmlu", "perplexity", "harmful_requests")
    with pytest.raises(Refused, match="Nothing could be measured") as refused:
        evaluate(lm, plan, replace(settings, tasks=tasks))
    for name in (
        "sycophancy.effect",
        "mmlu.accuracy_change",
        "perplexity.nats_change",
        "harmful_requests.rate_change",
    ):
        assert f"{name}: not measured" in str(refused.value)
