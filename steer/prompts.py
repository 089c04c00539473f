"""Prompts in, rows of token ids out: strings, ids, encodings or chats, checked at the edge."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from steer.bookkeeping import Sequences
from steer.errors import PlanError
from steer.tokens import Prompt

Message = Mapping[str, str]
Prompts = Sequence[str] | Sequence[Sequence[int]] | BatchEncoding | Sequence[Sequence[Message]]


def as_rows(
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    longest: int | None,
    n_tokens: int,
) -> list[list[int]]:
    """Return one list of token ids per prompt; strings exactly as tokenizer(p) gives them.

    Raises:
        PlanError: a lone string, an empty batch or prompt, one longer than the context, a token id
            that the model does not have.
    """
    if isinstance(prompts, str):
        raise PlanError(
            f"The prompts are the lone string {prompts[:40]!r}. It would be read as "
            f"{len(prompts)} prompts of one character. Put it into a list: [prompt]."
        )
    if isinstance(prompts, BatchEncoding | Mapping):
        rows = _of_encoding(prompts)
    elif isinstance(prompts, Tensor):
        rows = [[int(i) for i in row] for row in prompts.tolist()]
    else:
        rows = [_row(prompt, tokenizer) for prompt in prompts]
    if not rows:
        raise PlanError("The batch of prompts is empty. Give at least one prompt.")
    for at, row in enumerate(rows):
        if not row:
            raise PlanError(
                f"Prompt {at} has no tokens, so there is no state to read or steer. This tokenizer "
                "adds none to an empty string; give at least a BOS token: [[bos_token_id]]."
            )
        if longest is not None and len(row) > longest:
            raise PlanError(
                f"Prompt {at} has {len(row)} tokens but the model's context is {longest}. "
                "Positions beyond it were never trained. Shorten the prompt."
            )
        strange = next((i for i in row if not 0 <= i < n_tokens), None)
        if n_tokens and strange is not None:  # 0 where the config does not say
            raise PlanError(
                f"Prompt {at} holds the token id {strange}, but the model has embeddings for ids 0 "
                f"to {n_tokens - 1}. It was probably made by another model's tokenizer. Use "
                "lm.tokenizer."
            )
    return rows


def _of_encoding(encoding: Mapping[str, object]) -> list[list[int]]:
    ids = encoding["input_ids"]
    mask = encoding.get("attention_mask")
    rows = ids.tolist() if isinstance(ids, Tensor) else [list(row) for row in ids]  # type: ignore[attr-defined]
    if mask is None:
        return rows
    kept = mask.tolist() if isinstance(mask, Tensor) else mask
    pairs = zip(rows, kept, strict=True)  # type: ignore[arg-type]
    return [[i for i, m in zip(row, keep, strict=True) if m] for row, keep in pairs]


def _row(prompt: object, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])  # type: ignore[arg-type]
    if not isinstance(prompt, Sequence | Tensor):
        raise TypeError(
            f"A prompt is a string, token ids or messages, not {type(prompt).__name__}."
        )
    if len(prompt) and isinstance(prompt[0], Mapping):
        return list(
            tokenizer(render_chat(prompt, tokenizer), add_special_tokens=False)["input_ids"]
        )  # type: ignore[arg-type]
    return [int(cast("int", i)) for i in prompt]


def render_chat(messages: object, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a chat, ready for the assistant's answer.

    Raises:
        PlanError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise PlanError(
            "This tokenizer has no chat template, so messages cannot be rendered: how turns are "
            "marked would be a guess. Write the prompt as a string."
        )
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)  # type: ignore[arg-type]
    assert isinstance(text, str)
    return text


class Numbered(list[str]):
    """The tokens of a prompt; prints each with its position."""

    def __repr__(self) -> str:
        """Print `0 'The'  1 ' cat'`."""
        return "  ".join(f"{at} {token!r}" for at, token in enumerate(self))


def in_batches(rows: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """Return the row numbers in batches of similar length, of at most max_tokens padded tokens."""
    order = sorted(range(len(rows)), key=lambda r: len(rows[r]))
    batches: list[list[int]] = []
    for r in order:
        if not batches or (len(batches[-1]) + 1) * len(rows[r]) > max_tokens:
            batches.append([])
        batches[-1].append(r)
    return batches


def padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return (ids, mask) [row, longest], padded on one side."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for at, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(0, len(row))
        ids[at, place] = torch.tensor(row, dtype=torch.long)
        mask[at, place] = True
    return ids, mask


def sequences_of(
    ids: Tensor, mask: Tensor, row_ids: Sequence[int], n_rows: int, lengths: Tensor | None = None
) -> Sequences:
    """Return the declaration of the rows of one pass that this package makes itself."""
    return Sequences(Prompt(mask, ids, lengths), torch.tensor(row_ids), n_rows)
