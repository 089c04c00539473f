"""The page of a report: all of it is there, all of it is text, and a real browser draws it.

The browser's word is taken from its DOM after the scripts ran, not from the page's source.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from steer.errors import SpecError
from steer.evals.report import Curve, Interval, Report
from steer.evals.report.page import page, write_page
from steer.plots import dose_response, plotly_js, roc_figure

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000", "--dump-dom"),
)

FACTORS = (-1.0, 0.0, 1.0, 2.0)
RISING = tuple(Interval(f, f - 0.2, f + 0.2) for f in FACTORS)
FLAT = tuple(Interval(0.01, -0.1, 0.1) for _ in FACTORS)
REPORT = Report(
    "9f3c1e7ab25d40c8" * 4,
    {
        "plan": "9f3c1e7ab25d40c8" * 4,
        "model": {"name": "some/model-1b", "revision": "abc123", "dtype": "float32"},
        "tokenizer": {"class": "Fast"},
        "libraries": {"torch": "2.13.0"},
        "seeds": [0, 7],
    },
    {
        "sycophancy.effect": Interval(0.8123, 0.5, 1.1),
        "sycophancy.slope": Interval(0.4, 0.3, 0.5),
        "mmlu.accuracy_change": Interval(-0.0123, -0.04, 0.02),
        "kl.p95": Interval(0.9),
        "over_refusal.rate": Interval(None),
    },
    {
        "sycophancy.effect_random": Interval(0.02, -0.1, 0.14),
        "sycophancy.effect_prompt": Interval(0.6, 0.35, 0.85),
        "mmlu.accuracy_change_random": Interval(-0.021, -0.05, 0.01),
        "lonely.number_random": Interval(1234.0, 1100.0, 1300.0),
    },
    {
        "sycophancy": Curve(
            "Sycophancy", "log-odds, nats", FACTORS, {"plan": RISING, "random": FLAT}
        ),
        "perplexity": Curve("Perplexity", "nats", FACTORS, {"plan": FLAT}),
    },
    ("over_refusal.rate was not measured: there is no judge.",),
    {"items": 200, "roc": {"monitor": {"fpr": [0.0, 0.2, 1.0], "tpr": [0.0, 0.9, 1.0]}}},
)

SCRIPT = "<script>document.title='owned'</script>"
ATTACKS = (
    SCRIPT,
    f"</script>{SCRIPT}",
    f"</title></style></pre>{SCRIPT}",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"'><svg onload=\"document.title='owned'\">",
    f"<!--<script>{SCRIPT}",
    "<a href=\"javascript:document.title='owned'\">press</a>",
    "&lt;b&gt; %{y} $x$",
)


def hostile() -> Report:
    """Return a report that has every attack in every place that holds text."""
    every = " ".join(ATTACKS)
    lines = {"plan": RISING, **{f"arm {attack}": FLAT for attack in ATTACKS}}
    return Report(
        f"<script>{every}",
        {"model": {"name": every, every: every}, every: [every]},
        {f"{every}.effect": Interval(1.0, 0.0, 2.0), every: Interval(None)},
        {f"{every}.effect_{every}": Interval(0.5)},
        {every: Curve(every, every, FACTORS, lines)},
        ATTACKS,
        {every: every, "roc": {every: {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]}}},
    )


def text_of(markup: str) -> str:
    """Return what a reader sees: no tags, no scripts, no styles."""
    bare = re.sub(r"<(script|style)\b.*?</\1>", "", markup, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", "", bare))


def figures_of(markup: str) -> list[dict]:
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', markup, re.DOTALL)
    return [json.loads(one) for one in found]


def row_of(markup: str, name: str) -> str:
    (row,) = (
        r for r in re.findall(r"<tr.*?</tr>", markup, re.DOTALL) if text_of(r).startswith(name)
    )
    return row


class TestContent:
    def test_the_title_has_twelve_digits_of_the_plan_and_the_model(self):
        title = re.search("<title>(.*?)</title>", page(REPORT))
        assert title is not None
        assert title[1] == "Evaluation of plan 9f3c1e7ab25d in some/model-1b"

    def test_a_manifest_without_a_model_is_said_to_have_none(self):
        assert "in a model without a name" in text_of(page(replace(REPORT, manifest={})))

    @pytest.mark.parametrize(("name", "found"), [*REPORT.numbers.items(), *REPORT.controls.items()])
    def test_every_number_and_control_stands_beside_its_interval(self, name, found):
        rows = re.findall(r"<tr.*?</tr>", page(REPORT), re.DOTALL)
        mark = " control" if name in REPORT.controls else ""
        assert f"{name}{mark}{found}" in [text_of(row) for row in rows]

    def test_a_number_and_its_controls_are_one_group_and_the_longest_name_owns_a_control(self):
        numbers = {"a.x": Interval(1.0), "a.x_y": Interval(2.0)}
        controls = {"a.x_random": Interval(3.0), "a.x_y_random": Interval(4.0)}
        text = page(replace(REPORT, numbers=numbers, controls=controls))
        bodies = [text_of(b).split() for b in re.findall("<tbody>.*?</tbody>", text, re.DOTALL)]
        named = [[word for word in body if word.startswith("a.")] for body in bodies]
        assert ["a.x1", "a.x_random"] in named
        assert ["a.x_y2", "a.x_y_random"] in named

    def test_what_moves_stands_before_what_it_costs_in_table_and_curves(self):
        text = page(REPORT)
        tasks = re.findall('<th scope="rowgroup" colspan="3">(.*?)</th>', text)
        assert tasks == ["sycophancy", "kl", "lonely", "mmlu", "over_refusal"]
        assert re.findall("<h3>(.*?)</h3>", text)[:2] == ["Sycophancy", "Perplexity"]

    @pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
    def test_what_has_no_number_is_unscored_and_has_no_bar(self, value):
        row = row_of(page(replace(REPORT, numbers={"a.b": Interval(value)})), "a.b")
        assert text_of(row) == "a.bunscored"
        assert "<svg" not in row

    def test_a_bar_is_on_the_scale_of_its_group(self):
        report = replace(
            REPORT, numbers={"a.b": Interval(2.0, 0.0, 4.0)}, controls={"a.b_c": Interval(-4.0)}
        )
        own, control = row_of(page(report), "a.b2"), row_of(page(report), "a.b_c")
        assert 'class="reach" d="M50.00 8H98.00"' in own
        assert 'class="point" d="M74.00 8h0"' in own
        assert 'class="zero" d="M50.00 0V16"' in own
        assert 'class="point" d="M2.00 8h0"' in control

    def test_notes_stand_before_the_curves(self):
        text = page(REPORT)
        assert text.index(REPORT.notes[0]) < text.index("<h2>Curves") < text.index("<h2>Numbers")

    def test_manifest_and_settings_are_folded_and_whole(self):
        folded = " ".join(
            map(text_of, re.findall("<details>.*?</details>", page(REPORT), re.DOTALL))
        )
        for told in (REPORT.plan, "some/model-1b", "abc123", "Fast", "2.13.0", "[0, 7]", "200"):
            assert told in folded
        assert "fpr" not in folded

    def test_a_roc_of_another_form_stays_in_the_settings(self):
        text = page(replace(REPORT, settings={"roc": {"monitor": {"fpr": "high"}}}))
        assert "Monitors" not in text
        assert '"fpr": "high"' in text_of(text)


class TestSummary:
    def said(self, own: Interval, **controls: Interval) -> str:
        named = {f"t.effect_{name}": found for name, found in controls.items()}
        return text_of(page(replace(REPORT, numbers={"t.effect": own}, controls=named)))

    def test_says_what_stands_out_from_its_controls(self):
        told = "Its effect stands out from all of its controls on sycophancy 0.812 [0.5, 1.1] nats."
        assert told in text_of(page(REPORT))

    def test_says_which_controls_its_interval_overlaps(self):
        own = Interval(1.0, 0.5, 2.0)
        text = self.said(own, far=Interval(0.0, -1.0, 0.4), near=Interval(0.0, -1.0, 0.6))
        assert "It overlaps that of a control on t 1 [0.5, 2] (near)." in text

    def test_an_instruction_is_a_rival_and_not_a_null(self):
        text = self.said(Interval(1.0, 0.5, 2.0), random=Interval(0.4), prompt=Interval(1.0))
        assert "stands out from all of its controls on t 1 [0.5, 2]." in text

    def test_says_that_it_is_clear_only_of_what_was_scored(self):
        text = self.said(Interval(1.0, 0.5, 2.0), far=Interval(0.4), lost=Interval(None))
        assert "stands out from all of its controls on t" in text
        text = self.said(Interval(1.0, 0.5, 2.0), lost=Interval(None))
        assert "No control stands beside its effect on t 1 [0.5, 2]." in text

    def test_says_what_is_missing(self):
        assert "Its effect is unscored on t." in self.said(Interval(None))
        assert "The report holds no effect." in text_of(page(replace(REPORT, numbers={})))

    def test_says_what_it_costs(self):
        numbers = {**REPORT.numbers, "perplexity.kl_p95": Interval(0.9, 0.8, 1.0)}
        text = text_of(page(replace(REPORT, numbers=numbers)))
        assert re.search(r"What it costs: .*perplexity\.kl_p95 0\.9 \[0\.8, 1\]", text)

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ((1.0,), "Of 1 number and 0 controls, all are scored."),
            ((None,), "Of 1 number and 0 controls, 1 is unscored."),
            ((None, None), "Of 2 numbers and 0 controls, 2 are unscored."),
        ],
    )
    def test_counts_what_is_unscored(self, values, told):
        numbers = {f"a.{i}": Interval(value) for i, value in enumerate(values)}
        report = replace(REPORT, numbers=numbers, controls={})
        assert told in text_of(page(report))


class TestFigures:
    def test_the_own_arm_is_prominent_and_the_controls_are_dashed(self):
        figure = figures_of(page(REPORT))[0]
        drawn = {t["name"]: t["line"] for t in figure["data"] if "name" in t}
        assert drawn["plan"]["dash"] == "solid"
        assert drawn["random"]["dash"] != "solid"
        assert drawn["plan"]["width"] > drawn["random"]["width"]
        assert figure["layout"]["yaxis"]["title"]["text"] == "log-odds, nats"
        (zero,) = figure["layout"]["shapes"]
        assert (zero["x0"], zero["x1"]) == (0, 0)

    def test_no_arm_is_prominent_where_none_is_known_to_be_the_plan(self):
        curve = Curve("t", "u", FACTORS, {"left": RISING, "right": FLAT})
        figure = figures_of(page(replace(REPORT, curves={"c": curve})))[0]
        looks = [t["line"] for t in figure["data"] if "name" in t]
        assert {look["width"] for look in looks} == {1.8}
        assert len({look["color"] for look in looks}) == 2

    def test_a_curve_without_controls_is_drawn(self):
        curve = Curve("t", "u", FACTORS, {"steered": RISING})
        figure = figures_of(page(replace(REPORT, curves={"c": curve})))[0]
        assert figure["data"][1]["y"] == list(FACTORS)
        assert figure["data"][1]["line"]["dash"] == "solid"

    def test_points_are_in_the_order_of_the_factors_and_a_gap_stays_a_gap(self):
        known, lost = (1.0, 0.0, 2.0), (None, None, None)
        figure = dose_response(
            [2.0, 0.0, 1.0, 3.0], {"plan": [lost, known, known, known]}, own="plan", unit="u"
        )
        band, line = json.loads(figure.to_json() or "")["data"]
        assert line["x"] == [0.0, 1.0, 2.0, 3.0]
        assert line["y"] == [1.0, 1.0, None, 1.0]
        assert band["x"] == [0.0, 1.0, 1.0, 0.0, None, 3.0, 3.0, None]
        assert band["y"] == [0.0, 0.0, 2.0, 2.0, None, 0.0, 2.0, None]

    def test_a_roc_stands_beside_chance(self):
        figure = json.loads(roc_figure({"m": ([0.0, 1.0], [0.5, 1.0])}).to_json() or "")
        assert [t["name"] for t in figure["data"]] == ["m", "chance"]
        assert figure["data"][1]["x"] == figure["data"][1]["y"] == [0.0, 1.0]

    def test_a_figure_grows_with_its_legend(self):
        def height(*arms: str) -> int:
            lines = {arm: [(1.0, 0.0, 2.0)] for arm in arms}
            figure = dose_response([1.0], lines, own=None, unit="u")
            return json.loads(figure.to_json() or "")["layout"]["height"]

        assert height("plan") == height("plan", "random") == 380
        assert height("plan " * 14, "random " * 3) == 380 + 3 * 18

    def test_names_are_escaped_for_plotly_which_reads_markup_in_them(self):
        lines = {"<b>x</b> & y": [(1.0, None, None)]}
        figure = dose_response([0.0], lines, own=None, unit="<a href='//x'>u</a>")
        _, line = json.loads(figure.to_json() or "")["data"]
        assert line["name"] == "&lt;b&gt;x&lt;/b&gt; &amp; y"
        assert "<a" not in (figure.to_json() or "")

    def test_a_line_of_another_length_is_refused(self):
        curve = Curve("t", "u", FACTORS, {"plan": RISING[1:]})
        with pytest.raises(SpecError, match=r"curve 'c' has 4 factors.*'plan' has 3 values"):
            page(replace(REPORT, curves={"c": curve}))


class TestDocument:
    def test_the_same_report_gives_the_same_bytes_also_from_its_file(self, tmp_path: Path):
        again = Report.load(REPORT.save(tmp_path / "r.json"))
        assert page(REPORT) == page(REPORT) == page(again)

    def test_is_written_as_it_is(self, tmp_path: Path):
        written = write_page(REPORT, tmp_path / "r.html")
        assert written.read_bytes() == page(REPORT).encode()

    def test_names_nothing_outside_itself_and_holds_plotly_once(self):
        text = page(REPORT)
        assert text.count(plotly_js()) == 1
        rest = text.replace(plotly_js(), "")
        assert not re.search(r"""(src|href)\s*=|url\(|@import|https?:""", rest)

    def test_without_curves_there_is_no_script_and_a_sentence(self):
        text = page(replace(REPORT, curves={}, settings={}))
        assert "<script" not in text
        assert "script-src 'none'" in text
        assert "The report holds no curves." in text
        assert len(text) < 20_000

    def test_no_letter_of_a_hostile_report_is_markup(self):
        text = page(hostile())
        assert not re.search("<(img|svg onload|a |b>|!--)", text.replace(plotly_js(), ""))
        assert text.count("<script>") == 2
        data = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
        assert len(data) == 2
        assert "<" not in "".join(data)
        assert text.count("</script>") == text.count("<script")
        seen = text_of(text)
        for attack in ATTACKS:
            assert attack in seen


def loaded(text: str, tmp_path: Path) -> tuple[str, str]:
    """Return the DOM after the scripts ran, without the scripts, and the browser's log."""
    assert CHROMIUM is not None
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8", newline="\n")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return re.sub(r"<script\b.*?</script>", "", ran.stdout, flags=re.DOTALL), ran.stderr


def plots_of(dom: str) -> list[str]:
    return dom.split('<div class="plot js-plotly-plot"')[1:]


def paths(plot: str, kind: str) -> int:
    """Return how many paths were drawn among the curves; the legend has its own."""
    layer = plot[plot.index('class="scatterlayer') : plot.index('class="infolayer')]
    return len(re.findall(rf'<path class="{kind}"[^>]* d="M', layer))


def texts(dom: str, kind: str) -> list[str]:
    found = re.findall(rf'<text class="{kind}"[^>]*>(.*?)</text>', dom, re.DOTALL)
    return [text_of(one) for one in found]


@browser
class TestInABrowser:
    def test_every_curve_is_drawn_with_its_arms_in_the_legend(self, tmp_path: Path):
        dom, log = loaded(page(REPORT), tmp_path)
        assert "Uncaught" not in log
        assert "Content Security Policy" not in log
        sycophancy, perplexity, roc = plots_of(dom)
        for plot, arms in ((sycophancy, ["plan", "random"]), (perplexity, ["plan"])):
            assert paths(plot, "js-line") == 2 * len(arms)
            assert paths(plot, "js-fill") == len(arms)
            assert texts(plot, "legendtext") == arms
        assert paths(roc, "js-line") == 2
        assert texts(roc, "legendtext") == ["monitor", "chance"]
        assert texts(sycophancy, "ytitle") == ["log-odds, nats"]
        assert texts(sycophancy, "annotation-text") == ["without the plan"]

    def test_a_hostile_report_is_text_and_runs_nothing_even_without_the_policy(
        self, tmp_path: Path
    ):
        given = page(hostile())
        bare = re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', "", given)
        assert bare != given
        dom, log = loaded(bare, tmp_path)
        assert "Uncaught" not in log
        assert "<title>owned</title>" not in dom
        assert not re.search(r"<(img|svg onload|a |a>)", dom)
        curve, _ = plots_of(dom)
        legends = " ".join(texts(curve, "legendtext")).replace(" ", "")
        for attack in ATTACKS:
            assert attack.replace(" ", "") in legends

    def test_the_policy_stops_what_was_not_written_here(self, tmp_path: Path):
        dom, log = loaded(page(REPORT).replace("<h1>", f"{SCRIPT}<h1>"), tmp_path)
        assert "<title>owned</title>" not in dom
        assert "Content Security Policy" in log
        assert len(plots_of(dom)) == 3

    def test_this_browser_would_have_run_it(self, tmp_path: Path):
        dom, _ = loaded(f"<title>calm</title>{SCRIPT}", tmp_path)
        assert "<title>owned</title>" in dom
