"""The command line: list, run, compare, report."""

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import steer
from benchmarks.compare import comparison_table, differing_settings, numbers_table
from benchmarks.errors import BenchmarkError
from benchmarks.report import report_html
from benchmarks.result import read_result
from benchmarks.run import require_writable, run_task, write_result, write_text
from benchmarks.task import REGISTRY, Options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0, or 2 with the error said in one paragraph."""
    parser = _parser()
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        _register(given.imports)
        COMMANDS[given.command](given)
    except (BenchmarkError, steer.SteerError) as error:
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module that declares further tasks; may be given more than once",
    )
    commands.add_parser("list", parents=[shared], help="the tasks")
    run = commands.add_parser("run", parents=[shared], help="run one task on one model")
    run.add_argument("task")
    run.add_argument("--model", required=True, help="as steer.load takes it")
    run.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    run.add_argument("--device", default=None)
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--limit", type=int, default=None, help="use only so much of the data")
    compare = commands.add_parser("compare", parents=[shared], help="two results of one task")
    compare.add_argument("a", type=Path)
    compare.add_argument("b", type=Path)
    report = commands.add_parser("report", parents=[shared], help="a page of several results")
    report.add_argument("results", type=Path, nargs="+")
    report.add_argument("--out", type=Path, required=True, metavar="FILE.html")
    return parser


def _register(modules: Sequence[str]) -> None:
    """Import the tasks, ours and the user's, then freeze the registry.

    Raises:
        BenchmarkError: a module that cannot be found, or that declares a taken name.
    """
    for module in ("benchmarks.tasks", *modules):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as missing:
            raise BenchmarkError(
                f"--import {module} failed: there is no module {missing.name}. It must be "
                "importable from here: give its dotted name, and run from the folder it is in."
            ) from None
    REGISTRY.frozen = True


def _list(given: argparse.Namespace) -> None:
    del given
    table = Table()
    for heading in ("task", "question", "paper", "cost"):
        table.add_column(heading)
    for name, task in sorted(REGISTRY.tasks.items()):
        table.add_row(name, task.question, task.paper, task.cost)
    Console().print(table)


def _run(given: argparse.Namespace) -> None:
    task = REGISTRY.get(given.task)
    require_writable(given.out)
    lm = steer.load(given.model, device=given.device)
    console = Console()
    console.print(f"{task.name} on {lm!r}", markup=False)
    options = Options(seed=given.seed, limit=given.limit)
    result = run_task(task, lm, options, model=given.model)
    write_result(result, given.out)
    console.print(numbers_table(result))
    for claim in result.tables.get("claims", ()):
        verdict = "HOLDS" if claim["holds"] else "DOES NOT HOLD"
        console.print(f"{verdict}: {claim['claim']} ({claim['seen']})", markup=False)
    seconds = result.provenance["wall_seconds"]
    console.print(f"{seconds} s. Written: {given.out}", markup=False)
    if task.draw is not None:
        for picture in task.draw(result, given.out):
            console.print(f"Drawn: {picture}", markup=False)


def _compare(given: argparse.Namespace) -> None:
    a, b = read_result(given.a), read_result(given.b)
    console = Console()
    console.print(comparison_table(a, b))
    differing = differing_settings(a, b)
    if differing:
        console.print(f"The runs differ in {'; '.join(differing)}.", markup=False)


def _report(given: argparse.Namespace) -> None:
    require_writable(given.out)
    write_text(report_html([read_result(path) for path in given.results]), given.out)
    Console().print(f"Written: {given.out}", markup=False)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "list": _list,
    "run": _run,
    "compare": _compare,
    "report": _report,
}
