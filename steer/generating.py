"""What `generate` is asked for: the prompts it will expand, and what cannot be steered under it."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from steer.bookkeeping import Sequences
from steer.errors import PlanError
from steer.passes import cache_length, cache_of
from steer.scopes import ALL
from steer.tokens import Decode, Prompt, Tokens
from steer.wiring import Reading, Wiring

REFUSED = (
    "assistant_model",
    "assistant_early_exit",
    "prompt_lookup_num_tokens",
    "use_mtp",
    "custom_generate",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
)
"""Options of modes whose passes are not one token after another (or of code from elsewhere)."""

DEFAULT_NEW = 20
"""New tokens where neither max_new_tokens nor max_length is given (transformers 5)."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of a generate call that change what its passes look like."""

    beams: int
    sampling: bool
    cached: bool
    n_new: int
    """New tokens at most."""

    def without_compilation(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments with automatic compilation off: a compiled graph ignores hooks."""
        return {**kwargs, "disable_compile": True}


def sequences_of_generate(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Sequences, Asked]:
    """Return the prompts of a generate call and the options that matter.

    Raises:
        PlanError: assisted or continuous batching modes, whose passes are not what they seem.
    """
    generate = cast("Callable[..., Any]", type(model).generate)  # type: ignore[attr-defined]
    names = list(inspect.signature(generate).parameters)[1:]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    for mode in REFUSED:
        if option_of(model, given, mode) not in (None, False):
            raise PlanError(
                f"generate({mode}=...) cannot be steered: its passes try tokens that are later "
                "thrown away, and positions and gates would count them. Leave it out."
            )
    if option_of(model, given, "cache_implementation") == "paged":
        raise PlanError(
            "Continuous batching packs several rows into one, so positions cannot be told. Leave "
            "cache_implementation='paged' out."
        )
    ids = given.get("inputs") if given.get("inputs") is not None else given.get("input_ids")
    embeds = given.get("inputs_embeds")
    if embeds is not None:
        mask, ids = _mask(given, embeds[..., 0]), None
    elif isinstance(ids, Tensor):
        mask = _mask(given, ids)
        if given.get("attention_mask") is None:
            mask = _inferred(model, given, ids)
    else:
        raise PlanError(
            "generate was called without input_ids or inputs_embeds, so there is no prompt whose "
            "positions could be counted. Pass at least a BOS token."
        )
    if ids is not None and ids.shape != mask.shape:
        ids = None  # the new tokens alone were given: what the cache holds cannot be searched
    prompt = Prompt(mask, ids)
    start = cache_length(cache_of(given))
    sequences = Sequences(
        prompt,
        torch.arange(len(mask)),
        len(mask),
        generating=True,
        column=start,
        seen=start,
    )
    asked = _asked(model, given, mask.shape[1])
    if asked.beams == 1:  # a beam that ends leaves the batch
        sequences.ends = tuple(sorted(end_tokens(model, given)))
    return sequences, asked


def _mask(given: dict[str, Any], like: Tensor) -> Tensor:
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.cpu().bool()
    return torch.ones(like.shape[:2], dtype=torch.bool)


def option_of(model: nn.Module, given: Mapping[str, Any], name: str) -> Any:
    """Return an option as generate finds it: an argument, its config, the model's own config."""
    if name in given:
        return given[name]
    for source in (
        given.get("generation_config"),
        getattr(model, "generation_config", None),
    ):
        value = getattr(source, name, None)
        if value is not None:
            return value
    return None


def _inferred(model: nn.Module, given: dict[str, Any], ids: Tensor) -> Tensor:
    # The rule of transformers: without a mask, pad tokens are padding unless they also end texts.
    pad = option_of(model, given, "pad_token_id")
    if pad is None or pad in end_tokens(model, given):
        return torch.ones(ids.shape, dtype=torch.bool)
    return (ids != pad).cpu()


def end_tokens(model: nn.Module, given: Mapping[str, Any]) -> set[int]:
    """Return the token ids that end a text under these options."""
    end = option_of(model, given, "eos_token_id")
    if end is None:
        return set()
    return {int(e) for e in torch.as_tensor(end).reshape(-1)}


def _asked(model: nn.Module, given: dict[str, Any], width: int) -> Asked:
    cached = option_of(model, given, "use_cache")
    n_new, longest = (option_of(model, given, name) for name in ("max_new_tokens", "max_length"))
    return Asked(
        int(option_of(model, given, "num_beams") or 1),
        bool(option_of(model, given, "do_sample")),
        cached is None or bool(cached),
        int(n_new or max((longest or 0) - width, DEFAULT_NEW)),
    )


def refuse_generation(
    wiring: Wiring, sequences: Sequences, asked: Asked, decode: Decode | None
) -> None:
    """Refuse gates that would read what is reordered, recomputed or gone.

    Raises:
        PlanError: a reading of generated tokens under beams, which reorder rows between passes, or
            under sampling with the cache off; a reading of tokens that a given cache holds.
    """
    unsteady = asked.beams > 1 or (asked.sampling and not asked.cached)
    if not unsteady and not sequences.column:
        return
    assert sequences.prompt is not None
    prompt, past = sequences.prompt, sequences.column
    width = prompt.mask.shape[1]
    after = Tokens(
        prompt.positions(0, width + asked.n_new),
        sequences.row_ids,
        prompt.lengths,
        None,
        prompt if prompt.ids is not None else None,
        decode,
        open_ended=True,
        arms=sequences.arms,
    )
    for op in (op for ops in wiring.ops.values() for op in ops):
        if not isinstance(op, Reading):
            continue
        chosen = op.read.scope.select(after.asked_of(op.rows))
        if op.rows is not None:
            chosen = chosen & after.of(op.rows)[:, None]
        if unsteady and bool(chosen[:, width:].any()):
            how = f"{asked.beams} beams" if asked.beams > 1 else "sampling with the cache off"
            raise PlanError(
                f"{op.read!r} reads generated tokens, and generate runs with {how}. Rows are "
                "reordered or recomputed between passes, so what was read would belong to another "
                "text. Read PROMPT only, or use one beam with the cache on."
            )
        missed = chosen[:, :past].any(1)
        if op.read.reduce == "last":  # the latest token in scope is enough
            missed = missed & ~chosen[:, past:width].any(1)
        if bool(missed.any()):
            raise PlanError(
                f"{op.read!r} reads tokens of the first {past} columns, which the cache given to "
                "generate holds already. They are not run again, so the reading would lack them. "
                "Leave the cache out, or read the new tokens only."
            )


def refuse_scopes(wirings: Iterable[Wiring]) -> None:
    """Refuse every scope but ALL in a generate call of a model wrapped with modules_only=True.

    Raises:
        PlanError: names the intervention.
    """
    for item in (item for wiring in wirings for item in wiring.items):
        if item.scope != ALL:
            raise PlanError(
                f"{item!r} has the scope {item.scope!r}, but in generate a model wrapped with "
                "modules_only=True shows one chunk after another, and positions in them cannot be "
                "told. Use ALL, or call the model without generate."
            )
