"""One self-contained HTML page of several results: their numbers, controls and provenance.

Made from the result files alone. A task's own pictures are drawn by the task when it is run.
"""

import json
from collections.abc import Sequence
from html import escape

from benchmarks.result import Result
from benchmarks.stats import Number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem;
       color: #1c1e21; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e3e5e8;
         vertical-align: top; }
td.value { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.control td:first-child { color: #6a6f76; }
p.note, details { color: #51565c; } pre { white-space: pre-wrap; font-size: 12px; }
"""


def report_html(results: Sequence[Result]) -> str:
    """Return the page."""
    by_task: dict[str, list[Result]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    parts = [_section(task, group) for task, group in by_task.items()]
    return page("Benchmark results", "\n".join(parts))


def page(title: str, body: str) -> str:
    """Return a whole HTML document."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def numbers_html(results: Sequence[Result]) -> str:
    """Return a table of all numbers and controls, one column for each result."""
    head = "".join(f"<th>{escape(result.model)}</th>" for result in results)
    rows = []
    for control in (False, True):
        sides = [result.controls if control else result.numbers for result in results]
        for name in dict.fromkeys(name for side in sides for name in side):
            cells = "".join(f'<td class="value">{_cell(side.get(name))}</td>' for side in sides)
            label = f"{escape(name)} (control)" if control else escape(name)
            mark = ' class="control"' if control else ""
            rows.append(f"<tr{mark}><td>{label}</td>{cells}</tr>")
    return f"<table><tr><th>number</th>{head}</tr>\n{''.join(rows)}</table>"


def provenance_html(result: Result) -> str:
    """Return where a result comes from, folded away."""
    text = escape(json.dumps(dict(result.provenance), indent=1))
    return (
        f"<details><summary>{escape(result.model)}: provenance</summary><pre>{text}</pre></details>"
    )


def _section(task: str, group: Sequence[Result]) -> str:
    first = group[0].provenance
    question = escape(str(first.get("question", "")))
    paper = escape(str(first.get("paper", "")))
    return (
        f'<h2>{escape(task)}</h2><p class="note">{question} ({paper})</p>'
        f"{numbers_html(group)}{''.join(provenance_html(result) for result in group)}"
    )


def _cell(number: Number | None) -> str:
    return "" if number is None else escape(str(number))
