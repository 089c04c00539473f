"""Completeness and minimality of circuits: what a circuit lacks, and what it could do without.

Wang et al. 2022 (arXiv:2211.00593): a complete circuit behaves as the model does also when some of
its heads are taken out of both; in a minimal one every head matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steer.attribution.circuits import Faithfulness, Heads, faithfulness, without_each
from steer.engine import Measure
from steer.errors import PlanError
from steer.lm import LM
from steer.patching.aligning import Align
from steer.patching.mapping import heads
from steer.patching.sources import Baseline
from steer.prompts import Prompts
from steer.sites import Site


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Completeness:
    """A circuit and the model, each without some of the circuit's heads, and minimality."""

    circuit: tuple[Site, ...]
    subsets: tuple[tuple[Site, ...], ...]
    """What was taken out."""
    of_circuit: Tensor
    """[subset]: the circuit's share without them."""
    of_model: Tensor
    """[subset]: the model's share without them."""
    drop: Tensor
    """[head]: how much of the share the circuit loses with each of its heads."""
    drop_interval: tuple[Tensor, Tensor]
    """([head], [head]): ends of its interval, pairs drawn again."""

    @property
    def gap(self) -> Tensor:
        """[subset]: how far circuit and model differ; 0 where the circuit is complete."""
        return (self.of_circuit - self.of_model).abs()

    @property
    def idle(self) -> tuple[Site, ...]:
        """Heads without which the circuit loses nothing that the pairs could show."""
        lo, hi = self.drop_interval
        return tuple(s for s, a, b in zip(self.circuit, lo, hi, strict=True) if a <= 0 <= b)

    def __repr__(self) -> str:
        """Say the worst gap and which heads could go."""
        worst = int(self.gap.argmax())
        return (
            f"Completeness({len(self.circuit)} heads, {len(self.subsets)} subsets: largest gap "
            f"{float(self.gap[worst]):.2f} without {', '.join(map(str, self.subsets[worst]))}; "
            f"{len(self.idle)} idle heads)"
        )


def completeness(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    circuit: Heads,
    metric: Measure,
    *,
    subsets: Sequence[Heads] | None = None,
    n_subsets: int = 20,
    among: Heads | None = None,
    baseline: Baseline = "other",
    align: Align = "token",
    seed: int = 0,
) -> Completeness:
    """Return what the circuit and the model are worth without the same heads; one sweep.

    Args:
        lm: the model.
        clean: prompts with the behaviour, best others than those on which it was found.
        corrupted: one for each of them, without it.
        circuit: its heads.
        metric: as in patching.sweep.
        subsets: what is taken out of both; by default `n_subsets` drawn at random, each head with
            probability one half, as in the paper.
        n_subsets: how many are drawn.
        among: heads that are cut where a circuit does not hold them; all z heads by default.
        baseline: what cut heads write.
        align: as in patching.sweep.
        seed: of the draw.

    Raises:
        PlanError: a subset with a head that is not the circuit's; otherwise as `faithfulness`.
    """
    every = tuple(heads(lm) if among is None else among)
    mine = tuple(circuit)
    taken = _drawn(mine, n_subsets, seed) if subsets is None else [tuple(one) for one in subsets]
    for one in taken:
        strange = [str(site) for site in one if site not in mine]
        if strange or not one:
            raise PlanError(
                f"A subset holds {strange[0] if strange else 'no head'}, which is not of the "
                "circuit. Completeness takes heads of the circuit out of it and out of the model. "
                "Give subsets of its heads."
            )
    arms = [
        mine,
        *without_each(mine),
        *(_less(mine, one) for one in taken),
        *(_less(every, one) for one in taken),
    ]
    found = faithfulness(
        lm, clean, corrupted, arms, metric, among=every, baseline=baseline, align=align, seed=seed
    )
    n, k = len(mine), len(taken)
    share = found.share
    lost = Faithfulness(
        found.metric[:1] - found.metric[1 : n + 1] + found.empty, found.model, found.empty
    )
    return Completeness(
        mine,
        tuple(taken),
        share[n + 1 : n + 1 + k],
        share[n + 1 + k :],
        lost.share,
        lost.interval(seed=seed),
    )


def _drawn(circuit: Heads, n: int, seed: int) -> list[tuple[Site, ...]]:
    draw = torch.Generator().manual_seed(seed)
    inside = torch.rand(n, len(circuit), generator=draw) < 0.5
    # An empty subset says nothing: it takes one head.
    first = torch.randint(len(circuit), (n,), generator=draw)
    inside = inside | (
        torch.nn.functional.one_hot(first, len(circuit)).bool() & ~inside.any(1, True)
    )
    return [tuple(s for s, x in zip(circuit, row, strict=True) if x) for row in inside.tolist()]


def _less(heads_of: Heads, taken: Heads) -> tuple[Site, ...]:
    out = set(taken)
    return tuple(site for site in heads_of if site not in out)
