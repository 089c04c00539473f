"""`steer gate`: what is not kept, not measured, or of another plan, does not pass."""

import json

import pytest
import torch

import steer
from steer.cli import main
from steer.errors import SpecError
from steer.evals import Refused
from steer.evals.manifest import plan_digest
from steer.evals.report import Curve, Interval, Limit, Report, gate, read_policy

PLAN = [steer.Add(steer.Site(2), torch.ones(64))]
NUMBERS = {
    "sycophancy.effect": Interval(0.8, 0.5, 1.1),
    "mmlu.change": Interval(-0.01, -0.04, 0.02),
    "perplexity.kl_p95": Interval(0.9),
    "perplexity.change": Interval(None),
}
POLICY = """
[[effect]]
number = "sycophancy.effect"
at_least = 0.4

[[utility]]
number = "mmlu.change"
at_least = -0.05

[[robustness]]
number = "perplexity.kl_p95"
at_most = 1.0
"""


def report(**change) -> Report:
    given = {
        "plan": plan_digest(PLAN),
        "manifest": {"plan": plan_digest(PLAN)},
        "numbers": NUMBERS,
        "controls": {"sycophancy.random": Interval(0.1, -0.1, 0.3)},
        "curves": {"s": Curve("t", "nats", (0.0, 1.0), {"plan": (Interval(0.0), Interval(0.8))})},
        "notes": ("one",),
        "settings": {"n": 3},
    }
    return Report(**{**given, **change})


def files(folder, policy: str = POLICY, made: Report | None = None, name: str = "policy.toml"):
    plan = steer.save(PLAN, folder / "plan.safetensors")
    (folder / name).write_text(policy)
    kept = (made or report()).save(folder / "report.json")
    return ["gate", str(plan), "--report", str(kept), "--policy", str(folder / name)]


def test_a_report_comes_back_as_it_was_written(tmp_path):
    made = report()
    assert Report.load(made.save(tmp_path / "r.json")).to_json() == made.to_json()


def test_a_plan_within_its_limits_passes(tmp_path, capsys):
    assert main(files(tmp_path)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "PASS"


@pytest.mark.parametrize(
    ("number", "limit"),
    [
        # Against the pessimistic end of the interval: .8 is above .6, .5 is not.
        ("sycophancy.effect", "at_least = 0.6"),
        ("mmlu.change", "at_most = 0.0"),
        ("perplexity.kl_p95", "at_most = 0.5"),
        ("sycophancy.random", "at_most = 0.2"),
        ("perplexity.change", "at_most = 9.0"),
        ("not.there", "at_most = 9.0"),
    ],
)
def test_a_limit_that_is_not_kept_or_not_measured_fails(tmp_path, capsys, number, limit):
    more = f'[[effect]]\nnumber = "{number}"\n{limit}\n'
    assert main(files(tmp_path, POLICY + more)) == 1
    assert "FAIL: 1 of 4" in capsys.readouterr().out


def test_a_stated_end_of_the_interval_is_the_one_that_counts():
    limits = [Limit("effect", "sycophancy.effect", at_least=0.6, use="value")]
    assert gate(report(), limits).ok
    assert not gate(report(), [Limit("effect", "sycophancy.effect", at_least=0.6)]).ok


def test_a_report_of_another_plan_is_refused(tmp_path, capsys):
    other = plan_digest([steer.Add(steer.Site(1), torch.ones(64))])
    assert main(files(tmp_path, made=report(plan=other))) == 2
    assert "[wrong_plan]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("", "no limit on effect"),
        (POLICY.replace("[[utility]]", "[[utilty]]"), "area 'utilty'"),
        (POLICY.replace("at_most = 1.0", ""), "no number"),
        (POLICY.replace("at_most = 1.0", 'at_most = "1"'), "no number"),
        (POLICY.replace("at_most = 1.0", "at_most = nan"), "no number"),
        (POLICY.replace("at_most = 1.0", "at_most = true"), "no number"),
        (POLICY + 'use = "mean"\n', "uses 'mean'"),
        (POLICY + 'colour = "red"\n', "has the keys"),
        ("[[effect", "cannot be read"),
    ],
)
def test_a_policy_that_does_not_hold_is_refused_and_nothing_passes(tmp_path, capsys, policy, said):
    assert main(files(tmp_path, policy)) == 2
    error = capsys.readouterr().err
    assert "[bad_policy]" in error
    assert said in error


def test_a_policy_may_be_json(tmp_path):
    limits = {
        "effect": [{"number": "sycophancy.effect", "at_least": 0}],
        "utility": [{"number": "mmlu.change", "at_least": -1}],
        "robustness": [{"number": "perplexity.kl_p95", "at_most": 2, "use": "value"}],
    }
    assert main(files(tmp_path, json.dumps(limits), name="policy.json")) == 0
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(Refused, match="bad_policy"):
        read_policy(tmp_path / "list.json")


@pytest.mark.parametrize("part", ["plan", "numbers", "controls", "curves", "manifest", "notes"])
def test_a_report_without_one_of_its_parts_is_refused(tmp_path, part):
    path = report().save(tmp_path / "r.json")
    found = json.loads(path.read_text())
    del found[part]
    path.write_text(json.dumps(found))
    with pytest.raises(SpecError, match="not its content"):
        Report.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "steer.Report", "version": 99}', "{"])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(SpecError, match="not a report"):
        Report.load(path)
