"""From the arguments of one forward call to the tokens of the pass.

Pure but for `Sequences`, which is owned by one generate call or one declared prompt.
"""

from collections.abc import Callable, Container, Mapping
from inspect import signature
from typing import cast

import torch
from torch import Tensor

from steer.bookkeeping import Pass, Sequences
from steer.errors import PlanError, ScopeError
from steer.tokens import Decode, Prompt, Tokens

CACHE_NAMES = ("cache", "past_key_values")
"""transformers 5.24 renamed the argument; until 5.40 it takes both, and its generate passes the
new one. Models of older releases, and remote code, know the old one only."""


def open_pass(
    args: tuple[object, ...],
    kwargs: dict[str, object],
    sequences: Sequences | None,
    decode: Decode | None,
) -> tuple[Pass, Sequences]:
    """Return the pass that a call of the model's stack is about to make.

    Raises:
        PlanError: rows that cannot be mapped to the user's batch.
        ScopeError: packed rows, whose positions restart within a row.
    """
    ids, n_rows, n_columns = _inputs(args, kwargs)
    past = cache_of(kwargs)
    if sequences is not None and sequences.prompt is not None:
        tokens = _within(sequences, ids, n_rows, n_columns, past, decode)
    else:
        tokens, sequences = _outside(kwargs, ids, n_rows, n_columns, past, sequences, decode)
    return Pass(tokens, sequences), sequences


def _inputs(args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[Tensor | None, int, int]:
    ids = args[0] if args else kwargs.get("input_ids")
    embeds = kwargs.get("inputs_embeds")
    if isinstance(ids, Tensor) and ids.ndim == 2:
        return ids, ids.shape[0], ids.shape[1]
    found = embeds if isinstance(embeds, Tensor) else ids
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise PlanError(
            "The model was called without input_ids [batch, pos] or inputs_embeds, so its tokens "
            "cannot be counted. Call it with one of them."
        )
    return None, found.shape[0], found.shape[1]


def cache_of(given: Mapping[str, object]) -> object:
    """Return the HuggingFace cache among the arguments of a call, under either of its names."""
    return next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)


def cache_name(parameters: Container[str]) -> str:
    """Return the name under which a forward with these parameters takes a cache."""
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[-1])


def cache_of_generate(model: object) -> str:
    """Return the name under which a model's generate takes a cache."""
    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    return cache_name(() if prepare is None else signature(prepare).parameters)


def cache_length(past: object) -> int:
    """Return how many columns a HuggingFace cache holds."""
    if past is None:
        return 0
    length = cast("Callable[[], int] | None", getattr(past, "get_seq_length", None))
    return int(length()) if length is not None else 0


def _within(
    s: Sequences,
    ids: Tensor | None,
    n_rows: int,
    n_columns: int,
    past: object,
    decode: Decode | None,
) -> Tokens:
    # Inside generate, or a pass that this package makes: the prompts are known.
    assert s.prompt is not None
    n_prompts = s.prompt.mask.shape[0]
    if n_rows % n_prompts:
        raise PlanError(
            f"The forward pass has {n_rows} rows but generate was given {n_prompts} prompts, which "
            "does not divide it. Which row belongs to which prompt cannot be told."
        )
    times = n_rows // n_prompts
    if times not in s.repeats:
        s.repeats[times] = s.prompt.repeat(times) if times > 1 else s.prompt
    prompt = s.repeats[times]
    length = getattr(past, "get_seq_length", None)
    counted = length() if callable(length) else None
    # A static cache counts on the device; asking it would wait for the device at every token.
    start = 0 if past is None else counted if isinstance(counted, int) else s.column
    if past is not None and s.generating and start + n_columns < s.seen:
        raise PlanError(
            f"A pass of {n_columns} tokens was given a cache that holds {start}, after {s.seen} "
            "had been seen: it has lost what came before, so the model answers to the new tokens "
            "alone and their positions cannot be told. TransformerLens 4.3 loses it so under "
            "transformers 5.24, which renamed the argument past_key_values. Use lm.generate, "
            "use_cache=False, or releases that agree."
        )
    positions = prompt.positions(start, n_columns) if s.places is None else s.places
    end = start + n_columns
    fresh = None
    if start < s.seen:
        fresh = (torch.arange(start, end) >= s.seen).expand_as(positions)
    s.column, s.seen = end, max(s.seen, end)
    rows = s.row_ids.repeat_interleave(times)
    if (s.ends or s.stopped is not None) and ids is not None:
        after = torch.arange(start, end) >= prompt.mask.shape[1]
        finished = (torch.isin(ids.cpu(), torch.tensor(s.ends)) & after).cumsum(1) > 0
        if start and s.ended is not None:
            finished = finished | s.ended[:, None]
        if s.stopped is not None:
            finished = finished | (s.stopped.repeat_interleave(times)[:, None] & after)
        s.ended = finished[:, -1]
        positions = positions.masked_fill(finished, -1)
    return Tokens(
        positions,
        rows,
        prompt.lengths,
        ids if ids is None else ids.cpu(),
        prompt if prompt.ids is not None else None,
        decode,
        fresh,
        start == 0,
        open_ended=s.generating,
        arms=None if s.arms is None else s.arms.repeat_interleave(times),
    )


def _outside(
    kwargs: dict[str, object],
    ids: Tensor | None,
    n_rows: int,
    n_columns: int,
    past: object,
    declared: Sequences | None,
    decode: Decode | None,
) -> tuple[Tokens, Sequences]:
    start = cache_length(past)
    mask = kwargs.get("attention_mask")
    why = ""
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == start + n_columns:
        known = mask.to("cpu", torch.bool)
    else:
        known = torch.ones(n_rows, start + n_columns, dtype=torch.bool)
        if mask is not None:
            why = "this pass was given an attention mask that is not [batch, tokens so far]"
    counted = torch.where(known, known.cumsum(1) - 1, -1)
    if start:
        why = "this pass continues a cache that was filled elsewhere"
    elif ids is None:
        why = "this pass was given inputs_embeds"
    if kwargs.get("cu_seq_lens_q") is not None or _packed(
        kwargs.get("position_ids"), known[:, start:]
    ):
        why = "this pass holds packed rows (position_ids restart within a row, or cu_seq_lens_q)"
        if declared is None:
            raise ScopeError(
                f"Positions cannot be counted: {why}. A row of the batch would be several texts. "
                "Give each text its own row, or declare with run.prompt(lengths) what to count."
            )
    lengths = known.sum(1) if not why else None
    sequences = declared
    if sequences is None:
        sequences = Sequences(None, torch.arange(n_rows), n_rows)
    if sequences.declared is not None:
        lengths = sequences.declared
        if len(lengths) != n_rows:
            raise PlanError(
                f"run.prompt declared {len(lengths)} prompt lengths but the pass has {n_rows} "
                "rows. Declare one number of tokens for each row."
            )
        if start == 0:
            sequences.state.clear()
            sequences.latched.clear()
    if start == 0:
        sequences.begun = None if ids is None else Prompt(known, ids, sequences.declared)
    begun = sequences.begun
    searchable = begun is not None and (
        lengths is None or begun.mask.shape == known.shape or _holds(begun, lengths)
    )
    tokens = Tokens(
        counted[:, start:],
        torch.arange(n_rows),
        lengths,
        None if ids is None else ids.cpu(),
        begun if searchable else None,
        decode,
        from_start=start == 0,
        why_unknown=why,
        open_ended=sequences.declared is not None,
    )
    return tokens, sequences


def _holds(begun: Prompt, lengths: Tensor) -> bool:
    return begun.mask.shape[0] == len(lengths) and bool((begun.mask.sum(1) >= lengths).all())


def _packed(position_ids: object, real: Tensor) -> bool:
    if not isinstance(position_ids, Tensor) or position_ids.ndim != 2:
        return False
    here = position_ids.cpu().expand(real.shape[0], -1)
    if here.shape != real.shape:
        return False
    falls = (here[:, 1:] < here[:, :-1]) & real[:, 1:] & real[:, :-1]
    return bool(falls.any())


def last_columns(now: Pass, keep: int | Tensor, value: Tensor) -> Pass:
    """Return the pass restricted to the columns for which logits are computed."""
    if isinstance(keep, int) and keep == 0:
        return now
    which = slice(-keep, None) if isinstance(keep, int) else keep.cpu()
    tokens = now.tokens.columns(which)
    assert tokens.positions.shape[1] == value.shape[1]
    reads = {key: v[:, which] if v.shape[1] > 1 else v for key, v in now.reads.items()}
    return Pass(tokens, now.sequences, reads=reads)


def raw_pass(value: Tensor) -> Pass:
    """Return the pass of one tensor [row, pos, ...] of a model whose tokens are not known.

    Raises:
        PlanError: a tensor without a row and a position axis.
    """
    if value.ndim < 3:
        raise PlanError(
            f"A raw site met a tensor of shape {tuple(value.shape)}, which has no [row, position, "
            "width]. Which tokens it holds cannot be told. Choose a module whose tensor has them."
        )
    n_rows, n_columns = value.shape[:2]
    rows = torch.arange(n_rows)
    positions = torch.arange(n_columns).expand(n_rows, n_columns)
    why = "the model was wrapped with modules_only=True, so its prompts are not known"
    return Pass(Tokens(positions, rows, None, why_unknown=why), Sequences(None, rows, n_rows))
