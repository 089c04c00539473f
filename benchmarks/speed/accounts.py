"""What a sweep says that it costs, beside what ran: counted on the model's own modules.

A token-block is one token through one block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import steer
from benchmarks.peers.hooks import tokens_counted
from benchmarks.stats import Number


@dataclass(frozen=True, slots=True)
class Account:
    """Token-blocks of one sweep."""

    arms: int
    """Planned for the arms."""
    minimum: int
    """The fewest that any way needs for the arms: blocks after the edit, tokens from it on."""
    base: int
    """Planned for the prompts as they are."""
    executed: int
    """Run for the arms, by the sweep's own word."""
    base_executed: int
    """Run for the prompts, by the sweep's own word."""
    counted: int
    """Tokens that the MLPs of all blocks returned, by hooks on them, padding included.

    The MLPs and not the blocks: a hook on a block may give it back rows that it did not run.
    """
    dead: int
    """Cells (arm, prompt) that were not run, since they change nothing that is measured."""


def account(lm: steer.LM, sweep: steer.Sweep) -> Account:
    """Run a sweep and return what it cost."""
    paths = [lm.registry.layout.tap(site).path for site in lm.sites("mlp_out")]
    with tokens_counted(lm.model, paths) as counts:
        cost = sweep.cost()
        _ = sweep.values
    return Account(
        int(cost.token_blocks),
        int(cost.minimum),
        int(cost.base_token_blocks),
        int(sweep.executed),
        int(sweep.base_executed),
        sum(counts),
        int(cost.dead),
    )


def summed(accounts: Sequence[Account]) -> dict[str, Number]:
    """Return the two numbers of a task: run for the arms, and the fewest possible."""
    return {
        "token_blocks": Number(float(sum(found.executed for found in accounts))),
        "token_blocks_minimum": Number(float(sum(found.minimum for found in accounts))),
    }
