"""What a plan's monitors tell, and where its displacement points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch

from steer.evals.measuring.choices import Values
from steer.evals.measuring.rendering import context, options, request
from steer.evals.tasks.items import Choice, Prompt, Task
from steer.interventions.believed import Forecast
from steer.interventions.gates import Monitor
from steer.lm import LM
from steer.prompts import in_batches
from steer.protocols import Intervention
from steer.scopes import FIRST, LAST
from steer.sites import Site

BATCH_TOKENS = 4096
Rows = list[list[int]]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Texts that a monitor should tell apart."""

    rows: Rows
    positive: np.ndarray
    """[row] bool."""


def labelled(lm: LM, task: Task, items: Sequence[Choice] | Sequence[Prompt]) -> Labelled:
    """Return what a monitor of a behaviour should flag, and what not.

    Of a question: with the target's answer, and with the others. Of requests: the harmful ones.
    """
    rows: Rows = []
    positive: list[bool] = []
    for item in items:
        if isinstance(item, Prompt):
            rows.append(request(lm, item))
            positive.append(item.harmful)
            continue
        asked = context(lm, item, task.form)
        for at, option in enumerate(options(lm, item)):
            rows.append([*asked, *option])
            positive.append(at == item.target)
    return Labelled(rows, np.array(positive))


def monitor_scores(
    lm: LM, plan: Sequence[Intervention], rows: Sequence[Sequence[int]]
) -> dict[int, Values]:
    """Return, for each Monitor's number among the plan's, its latest reading of each text.

    The plan is at work while it reads, as it will be later.

    Raises:
        SteerError: the plan never fires.
    """
    monitors = [at for at, item in enumerate(plan) if isinstance(item, Monitor)]
    found = {at: np.full(len(rows), np.nan) for at in monitors}
    for batch in in_batches(rows, BATCH_TOKENS) if monitors else []:
        out = lm.generate([list(rows[r]) for r in batch], list(plan), max_new_tokens=1)
        for at in monitors:
            reads = out.receipt.lines[at].reads
            assert reads is not None
            found[at][batch] = reads.double().numpy()
    return found


@dataclass(frozen=True, slots=True)
class Aligned:
    """How a plan's displacement lies to the refusal direction at one site."""

    site: str
    cosine: float
    chance: float
    """Half the width of the band that holds 95 % of random directions: 1.96 / sqrt(d)."""


def refusal_cosines(
    lm: LM, plan: Sequence[Intervention], prompts: Sequence[Prompt]
) -> Mapping[str, Aligned]:
    """Return the cosine of the plan's mean displacement with the refusal direction, site by site.

    The refusal direction of Arditi et al. 2024 (arXiv:2406.11717): mean state of harmful minus of
    harmless requests at their last token; theirs is chosen among sites and tokens, ours is at the
    sites where the plan writes. The displacement is the mean over tokens but the first of harmless
    requests, with the plan minus without, so it is defined for curved and gated edits too.

    Raises:
        SteerError: the plan never fires on a prompt.
    """
    written = [item.site for item in plan if not isinstance(item, Monitor | Forecast)]
    sites = [
        site
        for site in dict.fromkeys(written)
        if isinstance(site, Site) and lm.registry.layout.width(site) == lm.d_model
    ]
    if not sites:
        return {}
    harmless = [request(lm, one) for one in prompts if not one.harmful]
    harmful = [request(lm, one) for one in prompts if one.harmful]
    bad = lm.capture(harmful, sites, scope=LAST)
    good = lm.capture(harmless, sites, scope=LAST)
    plain = lm.capture(harmless, sites, scope=~FIRST)
    moved = lm.capture(harmless, sites, scope=~FIRST, plan=list(plan))
    found = {}
    for site in sites:
        refusal = bad[site].float().mean(0) - good[site].float().mean(0)
        mask = moved.mask
        away = moved[site].float() - plain[site].float()
        mean = away[mask.to(away.device)].mean(0) if mask is not None else away.mean(0)
        length = float(refusal.norm() * mean.norm())
        cosine = float(torch.dot(refusal, mean)) / length if length > 0 else float("nan")
        found[str(site)] = Aligned(str(site), cosine, 1.96 / sqrt(lm.d_model))
    return found
