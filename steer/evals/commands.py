"""The commands of this package, for `steer`: found by an entry point, so that `cli` knows none."""

import argparse
import sys
from pathlib import Path

from steer.evals.manifest import plan_digest
from steer.evals.naming import loaded
from steer.evals.report.gating import gate as held
from steer.evals.report.gating import read_policy, require_of
from steer.evals.report.values import Report
from steer.evals.verification import verify


def audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `steer audit verify FILE [--head HASH]`."""
    parser = commands.add_parser("audit", help="logs of evaluations")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("verify", help="find any change, loss or reordering in a log")
    check.add_argument("file", type=Path)
    check.add_argument("--head", help="the hash of its last record, kept beside the result")
    check.set_defaults(run=_verify)


def gate(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `steer gate PLAN --report REPORT --policy FILE`."""
    parser = commands.add_parser("gate", help="hold a plan's report against stated limits")
    parser.add_argument("plan", type=Path, help="a file of steer.save")
    parser.add_argument("--report", type=Path, required=True, help="its evaluation, as JSON")
    parser.add_argument("--policy", type=Path, required=True, help="limits, TOML or JSON")
    parser.set_defaults(run=_gate)


def _gate(given: argparse.Namespace) -> int:
    """Print each limit and the verdict; return 0 if all are kept, else 1."""
    limits = read_policy(given.policy)
    report = Report.load(given.report)
    require_of(report, plan_digest(loaded(given.plan)))
    verdict = held(report, limits)
    sys.stdout.write(f"{verdict}\n")
    return 0 if verdict.ok else 1


def _verify(given: argparse.Namespace) -> int:
    """Print the verdict; return 0 if the log is what was written, else 1."""
    verdict = verify(given.file, head=given.head)
    sys.stdout.write(f"{verdict}\n")
    return 0 if verdict.ok else 1
