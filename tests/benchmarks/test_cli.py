import json
import sys

import pytest

from benchmarks import cli
from benchmarks.result import read_result
from benchmarks.task import REGISTRY

OUTSIDE = """
from benchmarks.result import Outcome
from benchmarks.stats import UNSCORED, Number
from benchmarks.task import Task, task


@task(paper="arXiv:1", cost="tiny")
def outside_width():
    def measure(lm, options):
        return Outcome({"width": Number(float(lm.d_model), 1.0, 99.0)}, {"none": UNSCORED})

    return Task("How wide is it?", measure, ("none",))


@task(paper="arXiv:1", cost="tiny")
def outside_careless():
    return Task("Is it?", lambda lm, options: Outcome({}, {}), ("forgotten",))
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "outside_tasks.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(REGISTRY, "frozen", False)
    yield ["--import", "outside_tasks"]
    sys.modules.pop("outside_tasks", None)
    for name in ("outside_width", "outside_careless"):
        REGISTRY.tasks.pop(name, None)


def test_list_names_every_task(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "months" in shown
    assert "weekdays" in shown


def test_a_task_from_outside_runs_and_writes_the_agreed_json(outside, tmp_path):
    out = tmp_path / "deep" / "er" / "width.json"
    assert (
        cli.main(["run", "outside_width", *outside, "--model", "tiny-llama", "--out", str(out)])
        == 0
    )
    content = json.loads(out.read_text())
    assert {"task", "model", "numbers", "controls", "provenance"} <= set(content)
    assert (content["task"], content["model"]) == ("outside_width", "tiny-llama")
    assert content["numbers"] == {"width": {"value": 64.0, "lo": 1.0, "hi": 99.0}}
    assert content["controls"] == {"none": {"value": None, "lo": None, "hi": None}}
    wanted = {"model", "options", "versions", "hardware", "wall_seconds", "specs"}
    assert wanted <= set(content["provenance"])
    assert read_result(out).to_json() == content
    assert [path.name for path in out.parent.iterdir()] == ["width.json"]


def test_a_result_without_its_declared_control_is_not_reported(outside, tmp_path, capsys):
    out = tmp_path / "x.json"
    given = ["run", "outside_careless", *outside, "--model", "tiny-llama", "--out", str(out)]
    assert cli.main(given) == 2
    assert "measured no forgotten" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["run", "weekday", "--model", "tiny-llama", "--out", "x.json"],
            "Did you mean weekdays or weekday_math?",
        ),
        (
            ["run", "month", "--model", "tiny-llama", "--out", "x.json"],
            "Did you mean months or month_math or monitor?",
        ),
        (["list", "--import", "no_such_module"], "there is no module no_such_module"),
        (["compare", "no.json", "no.json"], "There is no result no.json"),
        (["report", "no.json", "--out", "x.html"], "There is no result no.json"),
    ],
)
def test_a_wrong_request_is_answered_in_one_paragraph(given, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(given) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_out_is_refused_before_anything_is_run(capsys, tmp_path):
    assert cli.main(["run", "months", "--model", "tiny-llama", "--out", str(tmp_path)]) == 2
    assert "cannot be written" in " ".join(capsys.readouterr().err.split())


def test_a_model_that_knows_no_months_is_told_so(capsys, tmp_path):
    out = tmp_path / "x.json"
    assert cli.main(["run", "months", "--model", "tiny-llama", "--out", str(out)]) == 2
    assert "Use a model that knows the order" in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
