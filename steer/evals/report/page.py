"""One self-contained HTML page of a report: what was found, what does not hold, and what ran.

The text of a report is not trusted: all of it is escaped, and the page's own policy lets only the
two scripts written here run and nothing be fetched.
"""

import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import cast

from steer.errors import SpecError
from steer.evals.report.style import DRAW, STYLE
from steer.evals.report.summary import DIGITS, summary
from steer.evals.report.table import groups, interval_html, table
from steer.evals.report.values import Curve, Interval, Report
from steer.plots import Reading, dose_response, plotly_js, roc_figure

OWN = "plan"
"""The arm of a curve that is the plan itself."""
Roc = tuple[list[float], list[float]]


def write_page(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the page of a report.

    Raises:
        SpecError: a curve has lines of another length than its factors.
    """
    target = Path(path)
    target.write_text(page(report), encoding="utf-8", newline="\n")
    return target


def page(report: Report) -> str:
    """Return the page of a report, a whole HTML document that needs no network.

    The same report gives the same bytes, also after it was saved and loaded. Figures need the extra
    "plots"; a report without curves needs nothing.

    Raises:
        SpecError: a curve has lines of another length than its factors.
    """
    model = _model(report)
    rocs = _rocs(report)
    title = f"Evaluation of plan {report.plan[:DIGITS]} in {model}"
    heading = f"Evaluation of plan <code>{escape(report.plan[:DIGITS])}</code> in {escape(model)}"
    figures = [_curve(place, name, report) for place, name in enumerate(_in_order(report))]
    if rocs:
        drawn = _drawn(len(figures), roc_figure(rocs).to_json())
        figures.append(f"<figure><h3>Monitors: receiver operating curves</h3>{drawn}</figure>")
    parts = [
        f"<h1>{heading}</h1>",
        f'<p class="summary">{escape(summary(report, model))}</p>',
        _notes(report.notes),
        _figures(figures),
        f'<h2>Numbers</h2><div class="wide">{table(report)}</div>',
        "<h2>What ran</h2>",
        _manifest(report),
        _settings(report, rocs),
    ]
    return _document(title, "\n".join(parts), [plotly_js(), DRAW] if figures else [])


def _document(title: str, body: str, scripts: Sequence[str]) -> str:
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    run = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n{run}</body></html>\n"
    )


def _hash(script: str) -> str:
    return b64encode(sha256(script.encode()).digest()).decode()


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return '<p class="soft">The evaluation left no notes.</p>'
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    head = "<h2>What was not measured, and what does not hold</h2>"
    return f'<section class="notes">{head}<ul>{items}</ul></section>'


def _figures(figures: Sequence[str]) -> str:
    if not figures:
        return '<p class="soft">The report holds no curves.</p>'
    about = (
        "Means over items; the bands are 95 % intervals. Factor 1 is the plan as it is, factor 0 "
        "the model without it."
    )
    off = "<noscript><p>The figures need JavaScript. Their values stand below them.</p></noscript>"
    return (
        f'<h2>Curves</h2><p class="soft">{about}</p>{off}'
        f'<div class="figures">{"".join(figures)}</div>'
    )


def _in_order(report: Report) -> list[str]:
    """Return the names of the curves in the order of the table's tasks."""
    ranks = {task: rank for rank, task in enumerate(groups(report))}
    last = len(ranks)
    return sorted(report.curves, key=lambda name: (ranks.get(name.partition(".")[0], last), name))


def _curve(place: int, name: str, report: Report) -> str:
    curve = report.curves[name]
    for arm, line in curve.lines.items():
        if len(line) != len(curve.factors):
            raise SpecError(
                f"The curve {name!r} has {len(curve.factors)} factors, but its line {arm!r} has "
                f"{len(line)} values, so they cannot be paired. Evaluate the plan again."
            )
    lines = {arm: [_reading(one) for one in line] for arm, line in curve.lines.items()}
    own = OWN if OWN in lines else next(iter(lines)) if len(lines) == 1 else None
    figure = dose_response(curve.factors, lines, own=own, unit=curve.unit)
    drawn = _drawn(place, figure.to_json())
    return f"<figure><h3>{escape(curve.title)}</h3>{drawn}{_values(curve)}</figure>"


def _reading(found: Interval) -> Reading:
    plain = found.to_json()
    return plain["value"], plain["lo"], plain["hi"]


def _drawn(place: int, figure: str | None) -> str:
    # No < is left that could close the script tag; JSON reads the escape as the same letter. plotly
    # escapes it too, but does not promise to.
    data = (figure or "").replace("&", "\\u0026").replace("<", "\\u003c")
    name = f"figure-{place}"
    return (
        f'<div class="plot" id="{name}"></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
    )


def _values(curve: Curve) -> str:
    arms = sorted(curve.lines, key=lambda arm: (arm != OWN, arm))
    head = "".join(f'<th scope="col">{escape(arm)}</th>' for arm in arms)
    rows = [
        f'<tr><th scope="row">{factor:g}</th>'
        + "".join(f"<td>{interval_html(curve.lines[arm][i])}</td>" for arm in arms)
        for i, factor in sorted(enumerate(curve.factors), key=lambda pair: pair[1])
    ]
    inner = f"<thead><tr><th>factor</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    shown = f'<div class="wide"><table class="values">{inner}</table></div>'
    return f"<details><summary>Values</summary>{shown}</details>"


def _manifest(report: Report) -> str:
    rows = [("plan", report.plan)]
    for name, value in report.manifest.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, object]", value)
            rows += [(f"{name}: {key}", _shown(one)) for key, one in sorted(inner.items())]
        else:
            rows.append((name, _shown(value)))
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(told)}</td></tr>'
        for name, told in dict(sorted(rows)).items()
    )
    about = "Manifest: plan, model, tokenizer, libraries, seeds"
    return f'<details><summary>{about}</summary><table class="facts">{lines}</table></details>'


def _settings(report: Report, rocs: Mapping[str, Roc]) -> str:
    kept = {name: one for name, one in report.settings.items() if not (name == "roc" and rocs)}
    text = escape(json.dumps(kept, indent=1, sort_keys=True))
    return f"<details><summary>Settings</summary><pre>{text}</pre></details>"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _model(report: Report) -> str:
    found = report.manifest.get("model")
    if isinstance(found, Mapping):
        found = cast("Mapping[str, object]", found).get("name")
    return found if isinstance(found, str) else "a model without a name"


def _rocs(report: Report) -> Mapping[str, Roc]:
    """Return the curves of the setting `roc`; none unless all have the form of one."""
    found = report.settings.get("roc")
    if not isinstance(found, dict):
        return {}
    rates = {
        name: (one.get("fpr"), one.get("tpr")) if isinstance(one, dict) else (None, None)
        for name, one in found.items()
    }
    if not all(_rates(false) and _rates(true) for false, true in rates.values()):
        return {}
    found = cast("Mapping[str, Roc]", rates)
    return {name: ([*map(float, x)], [*map(float, y)]) for name, (x, y) in found.items()}


def _rates(values: object) -> bool:
    return isinstance(values, list) and all(type(one) in (int, float) for one in values)
