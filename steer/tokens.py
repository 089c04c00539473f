"""What is known of the tokens of one pass: their positions in their own rows, counted on the host.

Pure bookkeeping on small CPU tensors, so that no edit waits for a device. A position counts the
row's own tokens: padding, cache, chunked prefill and batch composition do not move it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from steer.errors import ScopeError

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The rows as they were before anything was generated, padded to one width."""

    mask: Tensor
    """[row, column] bool: real tokens."""
    ids: Tensor | None = None
    """[row, column] token ids, None where only embeddings were given."""
    declared: Tensor | None = None
    """[row]: tokens that count as prompt, where the columns hold a continuation too."""
    lengths: Tensor = field(init=False)
    """[row]: real tokens of each row."""
    starts: Tensor = field(init=False)
    """[row, column]: position of each column, -1 for padding."""
    found: dict[object, Any] = field(default_factory=dict, init=False)
    """What has been looked up in these rows already (text spans), so that decoding a token does
    not search the prompt again."""

    def __post_init__(self) -> None:
        """Count the positions once."""
        mask = self.mask.to("cpu", torch.bool)
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "ids", None if self.ids is None else self.ids.cpu())
        lengths = mask.sum(1) if self.declared is None else self.declared.cpu()
        object.__setattr__(self, "lengths", lengths)
        counted = mask.cumsum(1) - 1
        object.__setattr__(self, "starts", torch.where(mask, counted, -1))

    def positions(self, start: int, n_columns: int) -> Tensor:
        """Return [row, n_columns]: the positions of columns start, start + 1, ..., -1 for padding.

        Columns beyond the prompt are generated tokens and follow the row's own prompt.
        """
        width = self.mask.shape[1]
        inside = self.starts[:, start : start + n_columns]
        first = max(start, width)
        n_beyond = start + n_columns - first
        if n_beyond <= 0:
            return inside
        beyond = self.lengths[:, None] + torch.arange(first - width, first - width + n_beyond)
        return torch.cat([inside, beyond], dim=1) if inside.shape[1] else beyond

    def memo(self, key: object, compute: Callable[[], Any]) -> Any:
        """Return the remembered answer for a key, computed the first time."""
        if key not in self.found:
            self.found[key] = compute()
        return self.found[key]

    def repeat(self, times: int) -> "Prompt":
        """Return the prompt with each row repeated, as beams and return sequences do."""
        ids = None if self.ids is None else self.ids.repeat_interleave(times, 0)
        declared = None if self.declared is None else self.declared.repeat_interleave(times, 0)
        return Prompt(self.mask.repeat_interleave(times, 0), ids, declared)


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of one pass. All tensors on the host."""

    positions: Tensor
    """[row, column]: position in the row's own tokens, -1 for padding."""
    rows: Tensor
    """[row]: which row of the user's batch this is (beams and chunks map back to it)."""
    prompt_lengths: Tensor | None
    """[row]: tokens of the prompt, None where it cannot be told."""
    ids: Tensor | None = None
    """[row, column] token ids of this pass."""
    prompt: Prompt | None = None
    decode: Decode | None = None
    fresh: Tensor | None = None
    """[row, column]: tokens not seen in an earlier pass; None means all of them."""
    from_start: bool = True
    """Whether the pass begins at the first column: no cache before it."""
    open_ended: bool = False
    """True while more tokens may come (inside generate)."""
    why_unknown: str = ""
    """Why the prompt lengths are not known, where they are not."""
    asked: Tensor | None = None
    """[row] bool: the rows whose plan asks for a scope; the others may lack it. None: all."""
    arms: Tensor | None = None
    """[row]: which arm of a sweep this is; None outside sweeps, where there is one."""

    @property
    def mask(self) -> Tensor:
        """[row, column] bool: real tokens."""
        return self.positions >= 0

    @property
    def phase(self) -> str:
        """'generated' if every real token was generated, else 'prompt'."""
        if self.prompt_lengths is None:
            return "prompt"
        in_prompt = self.mask & (self.positions < self.prompt_lengths[:, None])
        return "prompt" if bool(in_prompt.any()) else "generated"

    def of(self, table: Tensor) -> Tensor:
        """Return [row]: each row's entry of a table [arm, batch], or [arm, 1] for every row."""
        arms = 0 if self.arms is None else self.arms
        return table[arms, self.rows if table.shape[1] > 1 else 0].expand(len(self.rows))

    def asked_of(self, rows: Tensor | None) -> "Tokens":
        """Return the same pass, asked about for some rows only: [arm, batch] bool."""
        return self if rows is None else replace(self, asked=self.of(rows))

    def counting(self, fresh: Tensor) -> "Tokens":
        """Return the same pass of which only some tokens are counted."""
        return replace(self, fresh=fresh)

    def first(self, n: int) -> "Tokens":
        """Return the same pass restricted to its first rows."""
        return replace(
            self,
            positions=self.positions[:n],
            rows=self.rows[:n],
            prompt_lengths=None if self.prompt_lengths is None else self.prompt_lengths[:n],
            ids=None if self.ids is None else self.ids[:n],
            fresh=None if self.fresh is None else self.fresh[:n],
            arms=None if self.arms is None else self.arms[:n],
        )

    def lengths(self, what: str) -> Tensor:
        """Return [row, 1] prompt lengths.

        Raises:
            ScopeError: they cannot be told; names what asked for them.
        """
        if self.prompt_lengths is None:
            raise ScopeError(
                f"The scope {what} depends on where the prompt ends, and {self.why_unknown}. "
                "Declare it with run.prompt(lengths), one number of tokens per row, before the "
                "forward pass; or use lm.generate; or use a scope that does not depend on it (ALL)."
            )
        return self.prompt_lengths[:, None]

    def columns(self, which: Tensor | slice) -> "Tokens":
        """Return the same pass restricted to some of its columns (logits_to_keep)."""
        ids = None if self.ids is None else self.ids[:, which]
        fresh = None if self.fresh is None else self.fresh[:, which]
        return replace(self, positions=self.positions[:, which], ids=ids, fresh=fresh)


def find_text(prompt: Prompt, row: int, needle: str, nth: int, decode: Decode) -> tuple[int, int]:
    """Return the token span [start, stop) of the nth occurrence of a text in one row.

    The span holds every token that contributes a byte of the text. Prefixes are decoded, because
    a character may be spread over several byte-level tokens.

    Raises:
        LookupError: the text does not occur so often; the argument is how often it does.
    """
    assert prompt.ids is not None
    ids = prompt.ids[row][prompt.mask[row]][: int(prompt.lengths[row])].tolist()
    prefixes = [decode(ids[: i + 1]) for i in range(len(ids))]
    text = decode(ids)
    # A character of which only some bytes have come decodes to a replacement: begun, not complete.
    begun = [len(prefix) for prefix in prefixes]
    complete = [
        len(prefix if text.startswith(prefix) else prefix.rstrip("\N{REPLACEMENT CHARACTER}"))
        for prefix in prefixes
    ]
    found = [at for at in range(len(text)) if text.startswith(needle, at)]
    if not -len(found) <= nth < len(found):
        raise LookupError(len(found))
    begin = found[nth]
    stop = next(i for i, end in enumerate(complete) if end >= begin + len(needle)) + 1
    start = next(i for i, end in enumerate(begun) if end > begin)
    return start, stop
