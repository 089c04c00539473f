"""The commands of this package, for `steer`: found by an entry point, so that `cli` knows none."""

import argparse
import sys
from pathlib import Path

from steer.evals.verification import verify


def audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `steer audit verify FILE [--head HASH]`."""
    parser = commands.add_parser("audit", help="logs of evaluations")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("verify", help="find any change, loss or reordering in a log")
    check.add_argument("file", type=Path)
    check.add_argument("--head", help="the hash of its last record, kept beside the result")
    check.set_defaults(run=_verify)


def _verify(given: argparse.Namespace) -> int:
    """Print the verdict; return 0 if the log is what was written, else 1."""
    verdict = verify(given.file, head=given.head)
    sys.stdout.write(f"{verdict}\n")
    return 0 if verdict.ok else 1
