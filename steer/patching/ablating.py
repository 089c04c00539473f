"""Ablations without a pair: zeros, means, means by token, and whole blocks left out."""

from collections.abc import Sequence

from steer.engine import Measure
from steer.errors import PlanError
from steer.interventions import Patch, Scale
from steer.interventions.plans import Plan
from steer.lm import LM
from steer.patching.ablated import Ablated
from steer.patching.columns import base_of, bases_of, ids_at, tokens_at
from steer.patching.pairs import one_per_row
from steer.patching.sources import Baseline, Runs, ids_of, written
from steer.prompts import Prompts
from steer.scopes import ALL, Scope
from steer.sites import AnySite, Site
from steer.sweep import sweep as run_arms

ALONE = ("zero", "mean", "conditional_mean", "gaussian")


def ablate(
    lm: LM,
    prompts: Prompts,
    sites: Sequence[AnySite],
    metric: Measure,
    *,
    reference: Prompts | None = None,
    baseline: Baseline = "conditional_mean",
    scope: Scope = ALL,
    seed: int = 0,
) -> Ablated:
    """Return what taking each site away does to the metric; all sites are arms of one sweep.

    By default context-aware mean ablation ("All for One", arXiv:2509.09650): each token's value
    becomes the mean over the reference's tokens with the same id, so that what the token itself
    brings stays and what its context adds goes. A token that the reference does not hold gets the
    mean over all of it.

    Args:
        lm: the model.
        prompts: what is run.
        sites: one arm each; `heads(lm)` for every head.
        metric: (logits, batch) -> [row], of the logits at the last token.
        reference: prompts whose tokens the means are over; the prompts themselves by default.
        baseline: "conditional_mean", "mean", "zero" or "gaussian" (own values with noise).
        scope: at which tokens.
        seed: of noise.

    Raises:
        PlanError: a baseline that needs pairs, or a metric that is not finite.
    """
    if baseline not in ALONE:
        raise PlanError(
            f"The baseline {baseline!r} takes values from the other prompt of a pair, and there "
            f"are no pairs here. Give one of {', '.join(ALONE)}, or use patching.sweep."
        )
    rows = lm.rows(prompts)
    others = rows if reference is None else lm.rows(reference)
    bases = bases_of(sites)
    own, pool = lm.capture(rows, bases, scope=scope), lm.capture(others, bases, scope=ALL)
    ids, other_ids = ids_at(rows, own), ids_of(others, max(len(row) for row in others))
    counts = own.counts()
    sources = {}
    for base in bases:
        runs = Runs(tokens_at(own, base), tokens_at(pool, base), ids, other_ids, ids.new_zeros(0))
        values = written(runs, baseline, seed=seed)
        sources[base] = values[:, 0] if own.mask is None else values
    arms: dict[str, Plan] = {}
    for site in sites:
        source = sources[base_of(site)]
        head = site.head if isinstance(site, Site) else None
        source = source if head is None else source.select(-2, head)
        arms[str(site)] = [Patch(site, source, scope=scope, counts=counts)]
    return _measured(lm, rows, arms, metric)


def skip(layers: Sequence[int], *, scope: Scope = ALL) -> list[Scale]:
    """Return the plan that leaves blocks out: their attention and MLP add nothing.

    What comes into a skipped block goes out of it as it is, at the tokens in scope; other tokens
    still see its keys and values. For generation as well as for single passes.

    Example:
        >>> import steer
        >>> [str(edit.site) for edit in steer.patching.skip([2])]
        ['blocks.2.attn_out', 'blocks.2.mlp_out']
    """
    return [
        Scale(Site(layer, component), 0.0, scope=scope)
        for layer in layers
        for component in ("attn_out", "mlp_out")
    ]


def skip_each(
    lm: LM,
    prompts: Prompts,
    metric: Measure,
    *,
    layers: Sequence[int] | None = None,
    scope: Scope = ALL,
) -> Ablated:
    """Return what leaving out each block does to the metric.

    Raises:
        SiteNotFound: a block that there is not.
        PlanError: a metric that is not finite.
    """
    chosen = range(lm.n_layers) if layers is None else layers
    arms: dict[str, Plan] = {f"block {layer}": skip([layer], scope=scope) for layer in chosen}
    return _measured(lm, lm.rows(prompts), arms, metric)


def _measured(lm: LM, rows: list[list[int]], arms: dict[str, Plan], metric: Measure) -> Ablated:
    swept = run_arms(lm, rows, arms, metric)
    natural = one_per_row(swept.natural, "the prompts")
    return Ablated(tuple(arms), one_per_row(swept.values, "an ablated pass"), natural)
