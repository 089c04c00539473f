"""`steer evaluate PLAN --model M`: one report, as JSON and as one page."""

import argparse
import sys
from pathlib import Path

from steer.errors import PlanError
from steer.evals.measuring.evaluation import FACTORS, LIMIT, Settings, evaluate
from steer.evals.naming import BASE, loaded, plan_of
from steer.evals.report.page import write_page
from steer.evals.tasks.table import TASKS
from steer.lm import load


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `steer evaluate PLAN --model M`."""
    parser = commands.add_parser("evaluate", help="measure a plan on the local tasks")
    add = parser.add_argument
    add("plan", type=Path, help="a file of steer.save")
    add("--model", required=True, help="an embedded name or a folder; nothing is downloaded")
    add("--digest", help="of the plan, at least 12 digits; another plan is refused")
    default = [name for name, one in TASKS.items() if not one.harmful]
    every = ", ".join(TASKS)
    add("--tasks", default=",".join(default), help=f"by name, with commas between: {every}")
    add("--limit", type=int, default=LIMIT, help="questions of each task")
    add("--factors", default=",".join(f"{f:g}" for f in FACTORS), help="of the plan's strength")
    add("--seed", type=int, default=0)
    add("--no-refusal-direction", action="store_true", help="read no harmful requests")
    add("--out", type=Path, default=Path("report.json"), help="the page goes beside it, as .html")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Measure, write the report and its page, and print the numbers."""
    if given.out.suffix != ".json":
        raise PlanError(
            f"--out is {given.out}: the report is JSON and its page stands beside it as .html. "
            "Give a name that ends with .json."
        )
    settings = Settings(
        tuple(name.strip() for name in given.tasks.split(",") if name.strip()),
        limit=_at_least_two(given.limit),
        factors=_factors(given.factors),
        seed=given.seed,
        refusal_direction=not given.no_refusal_direction,
    )
    if given.digest not in (None, BASE):
        plan = list(plan_of(given.plan, given.digest).plan)
    else:
        plan = list(loaded(given.plan))
    lm = load(given.model, allow_download=False)
    report = evaluate(lm, plan, settings)
    report.save(given.out)
    page = write_page(report, given.out.with_suffix(".html"))
    sys.stdout.write(f"{report!r}\n{given.out}\n{page}\n")
    return 0


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise PlanError(
            f"--factors is {text!r}, but it is a list of numbers with commas between: -1,-0.5,0,1."
        ) from None


def _at_least_two(limit: int) -> int:
    if limit < 2:
        raise PlanError(f"--limit is {limit}: an interval needs 2 questions at least. Give more.")
    return limit
