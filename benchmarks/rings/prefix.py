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
class Group:
    """Prompts of one length, run up to their last token."""

    cases: Tensor
    last: Tensor
    """[case, 1]: the last token of each."""
    n_tokens: int
    cache: Cache


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """All prompts but for their last tokens, by length."""

    groups: tuple[Group, ...]


def run_prefixes(lm: steer.LM, rows: Sequence[Sequence[int]]) -> Prefixes:
    """Run every prompt up to its last token."""
    lengths = torch.tensor([len(row) for row in rows])
    groups = []
    for n in lengths.unique().tolist():
        cases = (lengths == n).nonzero()[:, 0]
        ids = torch.tensor([list(rows[i]) for i in cases.tolist()], device=lm.device)
        with torch.no_grad():
            out = lm.model(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1)
        groups.append(Group(cases, ids[:, -1:], n, out.past_key_values))
    return Prefixes(tuple(groups))


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
    d_vocab = lm.model.get_output_embeddings().weight.shape[0]
    size = max(1, min(MAX_ROWS, MAX_LOGITS // d_vocab) // together) * together
    parts: list[tuple[Tensor, Tensor]] = []
    with tqdm(total=len(cases), desc=label, unit="row", leave=False, delay=2) as bar:
        for group in prefixes.groups:
            place = torch.full((int(max(cases.max(), group.cases.max())) + 1,), -1)
            place[group.cases] = torch.arange(len(group.cases))
            for rows in (place[cases] >= 0).nonzero()[:, 0].split(size):
                logits = _one_token(lm, group, place[cases[rows]], make_plan(rows))
                parts.append((rows, read_out(logits, rows).cpu()))
                bar.update(len(rows))
    order = torch.cat([rows for rows, _ in parts])
    values = torch.cat([kept for _, kept in parts])
    return torch.empty_like(values).index_copy(0, order, values)


def _one_token(lm: steer.LM, group: Group, member: Tensor, plan: steer.Plan) -> Tensor:
    """Return the logits [row, vocab] after the last token of some members of a group."""
    member = member.to(lm.device)
    # The pass appends to the cache it is given, so it gets its own.
    cache = copy.deepcopy(group.cache)
    cache.batch_select_indices(member)
    with torch.no_grad(), lm.attached(plan) as run:
        run.prompt([group.n_tokens] * len(member))
        out = lm.model(
            input_ids=group.last[member], past_key_values=cache, use_cache=True, logits_to_keep=1
        )
    return out.logits[:, -1]
