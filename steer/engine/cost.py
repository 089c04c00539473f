"""What a sweep costs: known before it runs, counted while it runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """What one part of the prompts costs; see `Cost`."""

    dead: int
    passes: int
    token_blocks: int
    minimum: int
    base_token_blocks: int
    bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Cost:
    """Token-blocks: one token through one block. Exact, not an estimate; see `bytes` for memory.

    `token_blocks` counts the arms alone; the base pass, which runs every prompt once, is beside it.
    """

    arms: int
    prompts: int
    dead: int
    """Cells (arm, prompt) that are not run: they cannot change what is measured."""
    passes: int
    """Forward passes of the arms; a base pass for each part of the prompts comes on top."""
    token_blocks: int
    minimum: int
    """What no exact method can avoid: every live cell from its own first edit on."""
    base_token_blocks: int
    loop_token_blocks: int
    """What a loop of whole passes would run: every arm at every prompt."""
    bytes: int
    """Estimated peak memory on top of the model's own."""
    budget: int
    note: str = ""
    """Why some or all arms run as whole passes, where they do."""

    @property
    def over_minimum(self) -> float:
        """Token-blocks over what no exact method can avoid; 1 where nothing is run."""
        return self.token_blocks / self.minimum if self.minimum else 1.0

    @property
    def share(self) -> float:
        """Token-blocks, base pass included, over those of a loop of whole passes."""
        return (self.token_blocks + self.base_token_blocks) / max(self.loop_token_blocks, 1)

    def __repr__(self) -> str:
        """Say it in one sentence."""
        live = self.arms * self.prompts - self.dead
        note = f" {self.note}" if self.note else ""
        return (
            f"Cost({self.arms} arms x {self.prompts} prompts: {live} live cells in {self.passes} "
            f"passes, {self.token_blocks:,} token-blocks ({self.over_minimum:.2f} of the minimum) "
            f"and {self.base_token_blocks:,} for the prompts; a loop runs "
            f"{self.loop_token_blocks:,}; about {self.bytes / 2**20:,.0f} MiB of "
            f"{self.budget / 2**20:,.0f}).{note}"
        )
