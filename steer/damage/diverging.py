"""KL(p || q) in nats of each token's prediction: p of the model as it is, q under a plan.

The model as it is and all plans run as rows of one pass, and the logits are reduced as they appear:
nothing of the size of the vocabulary is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from steer.bookkeeping import Pass
from steer.capture import run_rows
from steer.errors import NeverFired, PlanError
from steer.generation import pad_token
from steer.interventions.plans import Rows
from steer.lm import LM
from steer.prompts import Prompts, in_batches
from steer.protocols import Intervention
from steer.scopes import ALL, FIRST, Scope
from steer.sites import AnySite, Site

LOGIT_BYTES = 1 << 28
"""Bytes of the logits of one pass; the reduction takes about four times as much."""
Reduce = Callable[[Tensor, Tensor], Tensor]
"""(plain logits [row, pos, vocab], steered [arm, row, pos, vocab]) -> [arm, row, pos]."""


@dataclass(frozen=True, slots=True, eq=False)
class Divergence:
    """What each token's prediction has moved."""

    nats: Tensor
    """[arm, token], on the host, in fp32."""
    rows: Tensor
    """[token]: which prompt."""
    positions: Tensor
    """[token]: which token of it."""

    def quantile(self, q: float) -> Tensor:
        """Return [arm]: a quantile over tokens."""
        return torch.quantile(self.nats, q, dim=1)


@dataclass(frozen=True, slots=True)
class Texts:
    """The token rows on which damage is measured."""

    rows: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    """Of the prompts; what follows counts as generated."""


def texts_of(lm: LM, prompts: Prompts, max_new_tokens: int) -> Texts:
    """Return the prompts, with the model's own greedy continuation where some is asked for.

    Raises:
        PlanError: no prompt.
    """
    rows = lm.rows(prompts)
    lengths = tuple(len(row) for row in rows)
    if max_new_tokens:
        new = lm.generate(rows, max_new_tokens=max_new_tokens).tokens
        rows = [row + more for row, more in zip(rows, new, strict=True)]
    return Texts(tuple(tuple(row) for row in rows), lengths)


def divergence(
    lm: LM,
    prompts: Prompts,
    arms: Sequence[Sequence[Intervention]],
    *,
    scope: Scope = ~FIRST,
    max_new_tokens: int = 0,
) -> Divergence:
    """Return the KL in nats of each token's prediction under each plan.

    Counted are the tokens of `scope` from the first one on that a plan of the row can change; the
    first token is left out by default, because what follows a sink is no prediction of text.

    Args:
        lm: the model.
        prompts: see `LM`.
        arms: plans for one row each.
        scope: which tokens.
        max_new_tokens: so many tokens of the model's own greedy continuation are measured too, for
            plans that act on generated tokens.

    Raises:
        PlanError: no prompt, no arm, no token that a plan can change, or logits that are not
            numbers.
        SteerError: a plan does not fit the model or a prompt.
    """
    return measured(lm, texts_of(lm, prompts, max_new_tokens), lambda _: arms, scope)


def measured(
    lm: LM,
    texts: Texts,
    arms_of: Callable[[int], Sequence[Sequence[Intervention]]],
    scope: Scope,
    reduce: Reduce | None = None,
) -> Divergence:
    """Return [arm, token] of a reduction of the logits, the KL in nats by default.

    `arms_of` makes the plans, given how many rows the pass has.
    """
    arms = arms_of(0)
    if not arms or not all(arms):
        raise PlanError(
            f"Damage is measured for {len(arms)} plans, of which "
            f"{sum(not arm for arm in arms)} are empty. An empty plan has none: leave it out."
        )
    taker = _Taker(len(arms), scope, [item.scope for arm in arms for item in arm], reduce or _kl)
    vocab = lm.registry.layout.d_vocab or 1 << 16
    most = max(1, LOGIT_BYTES // (4 * vocab * (len(arms) + 1)))
    batches = in_batches(texts.rows, most)
    logits, silent = Site.logits(), list[NeverFired]()
    for batch in tqdm(batches, desc="damage", delay=2, leave=False, disable=len(batches) < 2):
        rows = [list(texts.rows[r]) for r in batch]
        n = len(rows)
        plans = arms_of(n * (len(arms) + 1))
        plan = Rows([[]] * n + [list(arm) for arm in plans for _ in range(n)])
        run = lm.registry.taking(plan, [(logits, taker.take)])
        lengths = torch.tensor([texts.lengths[r] for r in batch] * (len(arms) + 1))
        every = rows * (len(arms) + 1)
        taker.batch = batch
        wanted = ([logits], ALL, pad_token(lm.tokenizer), lengths)
        try:
            with torch.no_grad(), run:
                run_rows(lm.registry, run.work.wiring.taps, every, range(len(every)), wanted)
        except NeverFired as error:
            silent.append(error)  # a text may be in the prompts of other batches only
    found = taker.found()
    if len(silent) == len(batches):
        raise silent[0]
    return found


class _Taker:
    """Reduces the logits of each pass as they appear."""

    def __init__(self, n_arms: int, scope: Scope, acting: Sequence[Scope], reduce: Reduce) -> None:
        self.n_arms, self.scope, self.reduce = n_arms, scope, reduce
        self.acting = tuple(dict.fromkeys(acting))
        self.batch: Sequence[int] = ()
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def take(self, _site: AnySite, logits: Tensor, now: Pass) -> None:
        """Keep the reduction at the tokens that count."""
        n = len(self.batch)
        acted = torch.stack([now.select(one, None).mask[:n] for one in self.acting]).any(0)
        counts = now.select(self.scope, None).mask[:n] & (acted.cumsum(1) > 0)
        steered = logits[n:].unflatten(0, (self.n_arms, n))
        if not bool(logits.isfinite().any(-1).all()) or bool(logits.isnan().any()):
            raise PlanError(
                "The logits are not numbers: the strengths are too large for this model's dtype, "
                "or it overflows by itself. Give a smaller strength to begin with."
            )
        values = self.reduce(logits[:n], steered).cpu()
        row, column = counts.nonzero(as_tuple=True)
        positions = now.tokens.positions[:n][row, column]
        self._kept.append((values[:, row, column], torch.tensor(self.batch)[row], positions))

    def found(self) -> Divergence:
        """Return everything kept, by prompt and position."""
        values, rows, positions = (
            torch.cat([kept[i] for kept in self._kept], dim=-1) for i in range(3)
        )
        if not len(rows):
            raise PlanError(
                f"No token of the prompts is in {self.scope!r} and at or after one on which the "
                f"plan acts ({self.acting}). There is nothing to measure: give longer prompts, or "
                "max_new_tokens for a plan that acts on generated tokens."
            )
        order = torch.argsort(rows * (1 << 20) + positions)
        return Divergence(values[:, order], rows[order], positions[order])


def _kl(plain: Tensor, steered: Tensor) -> Tensor:
    p = plain.float().log_softmax(-1)
    # One arm at a time: the vocabulary is what is large.
    found = [(p.exp() * (p - q.float().log_softmax(-1))).sum(-1) for q in steered]
    return torch.stack(found).clamp(min=0)
