"""The command line: `steer COMMAND`. Packages add their commands by an entry point.

An entry point of the group `manifold_steer.commands` is a function that takes argparse's
subparsers, adds a command, and sets `run` to a function from its arguments to the exit status.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import cast

from steer.errors import SteerError

GROUP = "manifold_steer.commands"
REFUSED = 2
"""The exit status where the user has to change something; 1 is a verdict."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="steer", description="Read and steer language models.")
    commands = parser.add_subparsers(dest="command", required=True)
    for point in sorted(entry_points(group=GROUP), key=lambda one: one.name):
        point.load()(commands)
    given = parser.parse_args(arguments)
    run = cast("Callable[[argparse.Namespace], int]", given.run)
    try:
        return run(given)
    except SteerError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return REFUSED
