"""Many writes at the last token of few prompts: each prompt's other tokens are run once.

A write at the last token changes nothing before it, so the keys and values of the earlier tokens
are computed once per prompt and copied to the rows that share it; each row then costs one token.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import Cache

import steer

MakePlan = Callable[[Tensor], steer.Plan]
"""Takes the numbers of some rows; returns a plan with one entry per such row in its tensors."""
ReadOut = Callable[[Tensor, Tensor], Tensor]
"""Takes logits [row, vocab] and the numbers of these rows; returns [row, ...] to keep."""

MAX_LOGITS = 2**25
"""Logits of one pass: 128 MiB in fp32, so that a vocabulary of 262,144 fits any laptop."""
MAX_ROWS = 512


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """All prompts but for their last tokens, run once; padded on the left to one length."""

    last: Tensor
    """[case, 1]: the last token of each."""
    mask: Tensor
    """[case, pos]: 1 for real tokens, the last one included."""
    cache: Cache

    @property
    def lengths(self) -> Tensor:
        """Number of real tokens of each prompt, the last one included."""
        return self.mask.sum(1)


def run_prefixes(lm: steer.LM, rows: Sequence[Sequence[int]]) -> Prefixes:
    """Run every prompt up to its last token."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[row[0]] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    before = mask[:, :-1]
    with torch.no_grad():
        out = lm.model(
            input_ids=ids[:, :-1],
            attention_mask=before,
            position_ids=(before.cumsum(1) - 1).clamp_min(0),
            use_cache=True,
            logits_to_keep=1,
        )
    return Prefixes(ids[:, -1:], mask, out.past_key_values)


def last_token(
    lm: steer.LM,
    prefixes: Prefixes,
    cases: Tensor,
    make_plan: MakePlan,
    read_out: ReadOut,
    *,
    together: int = 1,
    label: str = "",
) -> Tensor:
    """Return what `read_out` makes of the output of each row, in order.

    Args:
        lm: the model.
        prefixes: the prompts.
        cases: [row], which prompt each row is.
        make_plan: the writes, for the rows of one pass.
        read_out: what to keep of the logits.
        together: rows come in runs of this length, each of one prompt, and stay in one pass.
        label: of the progress bar.
    """
    d_vocab = lm.registry.layout.d_vocab
    size = max(1, min(MAX_ROWS, MAX_LOGITS // d_vocab) // together) * together
    parts = []
    with tqdm(total=len(cases), desc=label, unit="row", leave=False, delay=2) as bar:
        for rows in torch.arange(len(cases)).split(size):
            logits = _one_token(lm, prefixes, cases[rows], make_plan(rows))
            parts.append(read_out(logits, rows).cpu())
            bar.update(len(rows))
    return torch.cat(parts)


def _one_token(lm: steer.LM, prefixes: Prefixes, cases: Tensor, plan: steer.Plan) -> Tensor:
    """Return the logits [row, vocab] after the last tokens of some prompts."""
    cases = cases.to(lm.device)
    mask = prefixes.mask[cases]
    with torch.no_grad(), lm.attached(plan) as run:
        run.prompt(mask.sum(1))
        out = lm.model(
            input_ids=prefixes.last[cases],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=_rows_of(prefixes.cache, cases),
            use_cache=True,
            logits_to_keep=1,
        )
    return out.logits[:, -1]


def _rows_of(cache: Cache, rows: Tensor) -> Cache:
    """Return some rows of a cache, which itself stays as it is."""
    # A pass appends by making new tensors, and so does the selection: copying the containers is
    # enough, and the tensors of the rows not asked for are never copied.
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen
