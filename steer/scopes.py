"""Scopes: which tokens, in positions of the row's own tokens. Pure functions of `Tokens`.

A prompt of 5 tokens has positions 0..4, generated tokens count on from 5. `LAST` is the last
prompt token and does not move; `OUTPUT` is every position whose logits give an output token.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from steer.errors import ScopeError, SpecError, SteerError
from steer.tokens import Tokens, find_text

Missing = Literal["error", "skip"]


class Scope:
    """Which tokens of a row. Combine with `|`, `&` and `~`; frozen and hashable.

    Abstract: use ALL, FIRST, PROMPT, LAST, GENERATED, OUTPUT, at, span and text.
    """

    __slots__ = ()

    def select(self, tokens: Tokens) -> Tensor:
        """Return [row, column] bool on the host; padding is never selected.

        Raises:
            ScopeError: a row lacks the tokens, or the prompt's end is needed and unknown.
        """
        raise NotImplementedError

    def __or__(self, other: "Scope") -> "Scope":
        """Tokens in either."""
        return Combined("|", self, other)

    def __and__(self, other: "Scope") -> "Scope":
        """Tokens in both."""
        return Combined("&", self, other)

    def __invert__(self) -> "Scope":
        """Real tokens not in this scope."""
        return Inverted(self)

    def spec(self) -> dict[str, object]:
        """Return the plain description from which `scope_from_spec` rebuilds the scope."""
        return {"kind": "steer.Scope", "version": 1, "scope": repr(self)}

    @classmethod
    def from_spec(cls, spec: dict[str, object]) -> "Scope":
        """Return the scope that a spec describes."""
        return parse_scope(str(spec["scope"]))


@dataclass(frozen=True, slots=True, repr=False)
class Named(Scope):
    """One of the named scopes."""

    name: str

    def select(self, tokens: Tokens) -> Tensor:
        """Look the rule up by name."""
        return _RULES[self.name](tokens) & tokens.mask

    def __repr__(self) -> str:
        """Print the public name."""
        return self.name


_RULES: dict[str, Callable[[Tokens], Tensor]] = {
    "ALL": lambda t: t.mask,
    "FIRST": lambda t: t.positions == 0,
    "PROMPT": lambda t: t.positions < t.lengths("PROMPT"),
    "LAST": lambda t: t.positions == t.lengths("LAST") - 1,
    "GENERATED": lambda t: t.positions >= t.lengths("GENERATED"),
    "OUTPUT": lambda t: t.positions >= t.lengths("OUTPUT") - 1,
}

ALL = Named("ALL")
"""Every token."""
FIRST = Named("FIRST")
"""Position 0: BOS, or the attention sink."""
PROMPT = Named("PROMPT")
"""Every prompt token."""
LAST = Named("LAST")
"""The last prompt token; it does not move during generation."""
GENERATED = Named("GENERATED")
"""Tokens after the prompt. The first output token is made at LAST, so this alone misses it."""
OUTPUT = Named("OUTPUT")
"""LAST | GENERATED: every position whose logits give an output token."""


@dataclass(frozen=True, slots=True, repr=False)
class Span(Scope):
    """Positions start .. stop - 1; negative ones count from the end of the prompt."""

    start: int
    stop: int | None
    missing: Missing = "error"
    single: bool = False

    def select(self, tokens: Tokens) -> Tensor:
        """Compare positions; refuse rows that are too short."""
        from_end = self.start < 0 or self.stop is None or self.stop < 0
        if from_end or not tokens.open_ended:
            needs = tokens.lengths(repr(self)) if from_end else tokens.prompt_lengths
            lengths = needs if needs is None or needs.ndim == 2 else needs[:, None]
        else:
            lengths = None
        first = self._resolve(self.start, lengths)
        last = lengths if self.stop is None else self._resolve(self.stop, lengths)
        assert last is not None
        if lengths is not None and self.missing == "error":
            self._refuse_short(tokens, lengths, first, last)
        return (tokens.positions >= first) & (tokens.positions < last) & tokens.mask

    def _resolve(self, place: int, lengths: Tensor | None) -> Tensor:
        if place >= 0:
            return torch.tensor([[place]])
        assert lengths is not None
        return lengths + place

    def _refuse_short(self, tokens: Tokens, n: Tensor, first: Tensor, last: Tensor) -> None:
        # Positions from the front may still be generated while the row grows.
        too_late = torch.zeros_like(n, dtype=torch.bool)
        if not tokens.open_ended or self.start < 0:
            too_late = last.expand_as(n) > n
        bad = (first.expand_as(n) < 0) | too_late
        if tokens.asked is not None:
            bad = bad & tokens.asked[:, None]
        if bool(bad.any()):
            at_row = int(bad[:, 0].nonzero()[0])
            row, length = int(tokens.rows[at_row]), int(n[at_row])
            raise ScopeError(
                f"Row {row} has {length} tokens (positions 0 to {length - 1}), so it has no "
                f"{self!r}. An edit there would silently do nothing. Choose a position that every "
                'row has, or pass missing="skip" to leave such rows alone.'
            )

    def __repr__(self) -> str:
        """Print the call that makes it."""
        skip = "" if self.missing == "error" else ", missing='skip'"
        if self.single:
            return f"at({self.start}{skip})"
        return f"span({self.start}, {self.stop}{skip})"


@dataclass(frozen=True, slots=True, repr=False)
class Text(Scope):
    """The whole token span of the nth occurrence of a text in the prompt."""

    needle: str
    nth: int = 0
    missing: Missing = "error"

    def select(self, tokens: Tokens) -> Tensor:
        """Find the text in each row's prompt."""
        lengths = tokens.lengths(repr(self))
        if tokens.prompt is None or tokens.prompt.ids is None or tokens.decode is None:
            raise ScopeError(
                f"{self!r} needs the token ids of the prompt and a tokenizer, and this pass has "
                "only embeddings or no tokenizer. Use at(...) or span(...) instead."
            )
        asked = None if tokens.asked is None else tuple(tokens.asked.tolist())
        start, stop = tokens.prompt.memo((self, asked), lambda: self._find(tokens))
        inside = (tokens.positions >= start[:, None]) & (tokens.positions < stop[:, None])
        return inside & (tokens.positions < lengths) & tokens.mask

    def _find(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        assert tokens.prompt is not None
        assert tokens.decode is not None
        spans = []
        known: dict[tuple[int, ...], tuple[int, int] | LookupError] = {}  # sweeps repeat prompts
        for at_row in range(tokens.positions.shape[0]):
            try:
                found = self._found(tokens, at_row, known)
            except LookupError as missing:
                if self.missing == "error" and (tokens.asked is None or tokens.asked[at_row]):
                    raise ScopeError(
                        f"Row {int(tokens.rows[at_row])} has {missing.args[0]} occurrences of "
                        f"{self.needle!r}, so there is no occurrence {self.nth} to point at. Check "
                        'the spelling and spaces, or pass missing="skip" to leave such rows alone.'
                    ) from None
                found = (0, 0)
            spans.append(found)
        start, stop = torch.tensor(spans).unbind(1)
        return start, stop

    def _found(
        self, tokens: Tokens, at_row: int, known: dict[tuple[int, ...], Any]
    ) -> tuple[int, int]:
        prompt = tokens.prompt
        assert prompt is not None
        assert prompt.ids is not None
        assert tokens.decode is not None
        ids = prompt.ids[at_row][prompt.mask[at_row]]
        key = (*ids.tolist(), int(prompt.lengths[at_row]))
        if key not in known:
            try:
                known[key] = find_text(prompt, at_row, self.needle, self.nth, tokens.decode)
            except LookupError as missing:
                known[key] = missing
        found = known[key]
        if isinstance(found, LookupError):
            raise found
        return found

    def __repr__(self) -> str:
        """Print the call that makes it."""
        skip = "" if self.missing == "error" else ", missing='skip'"
        return f"text({self.needle!r}, nth={self.nth}{skip})"


@dataclass(frozen=True, slots=True, repr=False)
class Combined(Scope):
    """Union or intersection of two scopes."""

    how: Literal["|", "&"]
    left: Scope
    right: Scope

    def select(self, tokens: Tokens) -> Tensor:
        """Combine the two selections."""
        left, right = self.left.select(tokens), self.right.select(tokens)
        return left | right if self.how == "|" else left & right

    def __repr__(self) -> str:
        """Print the expression."""
        return f"({self.left!r} {self.how} {self.right!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Inverted(Scope):
    """Real tokens outside a scope."""

    inner: Scope

    def select(self, tokens: Tokens) -> Tensor:
        """Invert within the real tokens."""
        return ~self.inner.select(tokens) & tokens.mask

    def __repr__(self) -> str:
        """Print the expression."""
        return f"~{self.inner!r}"


def at(position: int, *, missing: Missing = "error") -> Scope:
    """Select one position; negative ones count from the end of the prompt (at(-1) is LAST).

    Raises:
        ScopeError: when used, if a row lacks the position and missing is "error".
    """
    stop = position + 1 if position != -1 else None
    return Span(position, stop, missing, single=True)


def span(start: int, stop: int | None, *, missing: Missing = "error") -> Scope:
    """Select positions start .. stop - 1; negative ones count from the end of the prompt.

    Raises:
        ScopeError: the span is empty; when used, if a row lacks part of it.
    """
    if stop is not None and (start < 0) == (stop < 0) and stop <= start:
        raise ScopeError(
            f"span({start}, {stop}) holds no position: the stop is not included, so it must be "
            f"above the start. For one token write at({start})."
        )
    return Span(start, stop, missing)


def text(needle: str, *, nth: int = 0, missing: Missing = "error") -> Scope:
    """Select the whole token span of the nth occurrence of a text in each row's prompt.

    Raises:
        ScopeError: the text is empty; when used, if a row lacks it.
    """
    if not needle:
        raise ScopeError("text('') points at nothing. Give the words to find in the prompt.")
    return Text(needle, nth, missing)


_NAMES: dict[str, Scope] = {s.name: s for s in (ALL, FIRST, PROMPT, LAST, GENERATED, OUTPUT)}
_CALLS: dict[str, Callable[..., Scope]] = {"at": at, "span": span, "text": text}


def parse_scope(printed: str) -> Scope:
    """Return the scope that prints so; only scope names, calls and operators are understood.

    Raises:
        SpecError: anything else stands in the text.

    >>> parse_scope("(LAST | ~at(2))")
    (LAST | ~at(2))
    """
    import ast  # only for loading artefacts; keeps the import of steer light

    def build(node: ast.AST) -> Scope:
        if isinstance(node, ast.Name) and node.id in _NAMES:
            return _NAMES[node.id]
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in _CALLS
        ):
            values = [ast.literal_eval(arg) for arg in node.args]
            named = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
            return _CALLS[node.func.id](*values, **named)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~build(node.operand)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd):
            left, right = build(node.left), build(node.right)
            return left | right if isinstance(node.op, ast.BitOr) else left & right
        raise SpecError(
            f"{printed!r} is not a scope: only {', '.join(_NAMES)}, at, span, text and | & ~ are "
            "understood, and nothing else is run. The artefact was not written by this toolkit."
        )

    try:
        return build(ast.parse(printed, mode="eval").body)
    except SteerError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError) as broken:
        raise SpecError(
            f"{printed!r} is not a scope ({broken}). Write the artefact again with steer.save."
        ) from None


def require_scope(scope: object, owner: str) -> None:
    """Refuse what is no scope, before anything is run.

    Raises:
        TypeError: a string, a number or anything else.
    """
    if not isinstance(scope, Scope):
        raise TypeError(
            f"The scope of {owner} is {scope!r}, a {type(scope).__name__}, which does not say "
            "which tokens. Write steer.LAST, steer.ALL, steer.at(3) or another Scope; | & ~ "
            "combine them."
        )
