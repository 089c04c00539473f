import pytest

from benchmarks.compare import compare, differing_settings
from benchmarks.errors import BenchmarkError
from benchmarks.report import report_html
from benchmarks.result import Result
from benchmarks.stats import UNSCORED, Number


def _result(numbers, task="months", seed=0, model="a-model"):
    provenance = {"options": {"seed": seed}, "versions": {"torch": "2"}, "question": "Why?"}
    return Result(task, model, numbers, {"shuffled": Number(1.0, 0.9, 1.1)}, provenance)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (Number(1.0, 0.9, 1.1), Number(1.3, 1.2, 1.4), "higher"),
        (Number(1.3, 1.2, 1.4), Number(1.0, 0.9, 1.1), "lower"),
        (Number(1.0, 0.9, 1.1), Number(1.1, 1.0, 1.2), "overlap"),
        (Number(1.0, 0.9, 1.1), Number(1.0, 0.9, 1.1), "equal"),
        (Number(1.0), Number(2.0), "no interval"),
        (UNSCORED, Number(2.0, 1.0, 3.0), "unscored"),
    ],
)
def test_the_verdict_says_whether_intervals_overlap(a, b, verdict):
    rows = compare(_result({"x": a}), _result({"x": b}))
    assert rows[0].verdict == verdict


def test_a_number_that_one_result_lacks_is_unscored_there():
    rows = compare(_result({"x": Number(1.0)}), _result({"y": Number(2.0)}))
    assert [(row.name, row.a, row.b, row.control) for row in rows[:2]] == [
        ("x", Number(1.0), UNSCORED, False),
        ("y", UNSCORED, Number(2.0), False),
    ]
    assert rows[2].control


def test_results_of_two_tasks_are_not_compared():
    with pytest.raises(BenchmarkError, match="task 'months' and the other of 'weekdays'"):
        compare(_result({}), _result({}, task="weekdays"))


def test_other_seeds_are_said():
    assert differing_settings(_result({}), _result({}, seed=3)) == ["seed: 0 / 3"]


def test_a_report_holds_every_number_and_escapes_what_users_wrote():
    html = report_html([_result({"x": Number(1.25, 1.0, 1.5)}, model="<b>m</b>")])
    assert "1.25 [1, 1.5]" in html
    assert "&lt;b&gt;m&lt;/b&gt;" in html
    assert "<b>m" not in html
    assert "shuffled (control)" in html
