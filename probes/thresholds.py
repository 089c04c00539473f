"""Thresholds with a promise: how often a monitor fires on benign data; and scores over tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, isfinite, lgamma, log, log1p
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.errors import ProbeError
from probes.frozen import of_site, spec_fields
from probes.identity import plain, spec_digest
from probes.inputs import Array
from probes.linear import Origin

Aggregate = Literal["last", "mean", "max", "rolling"]


@final
@dataclass(frozen=True, slots=True)
class Threshold:
    """A score above which a monitor fires, and what was promised of it.

    With a site axis in the scores there is one value for each site, and the promise is of each
    site by itself, not of all at once; `threshold[i]` is that of site i.
    """

    kind: ClassVar[str] = "probes.Threshold"

    value: float | tuple[float, ...]
    rate: float
    """At most this share of benign rows fires,"""
    confidence: float
    """in so many of all draws of calibration sets."""
    n: int
    """Benign rows that it was calibrated on."""
    n_above: int | tuple[int, ...]
    """How many of those fire."""
    origin: Origin | None = None

    def __post_init__(self) -> None:
        """Check the value; keep own copies of what could be changed from outside."""
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if not values or not all(map(isfinite, values)):
            raise ProbeError(
                f"The threshold is {self.value}. No score can be compared with what is not a "
                "finite number. Calibrate it on finite scores."
            )
        object.__setattr__(self, "origin", plain(self.origin, "origin"))

    @property
    def n_sites(self) -> int | None:
        """How many thresholds are stacked; None for a single one."""
        return len(self.value) if isinstance(self.value, tuple) else None

    def fired(self, scores: Tensor) -> Tensor:
        """Return where a score is above the threshold: bool, of any shape; NaN fires.

        What could not be read must not pass as benign. Of a stack, scores are [site, ...].

        Raises:
            ProbeError: another number of sites.
        """
        if not isinstance(self.value, tuple):
            return ~(scores <= self.value)
        if scores.shape[:1] != (len(self.value),):
            raise ProbeError(
                f"The scores are {list(scores.shape)}, but this is a stack of {len(self.value)} "
                "thresholds. Each is of its own site's scores. Give [site, ...], or take one "
                "threshold by its index."
            )
        # Rounded to a half-precision score's dtype, the threshold itself would move.
        dtype = torch.promote_types(scores.dtype, torch.float32)
        bound = torch.tensor(self.value, dtype=dtype, device=scores.device)
        return ~(scores <= bound.reshape(-1, *(1,) * (scores.ndim - 1)))

    def __getitem__(self, index: int) -> "Threshold":
        """Return the threshold of one site of a stack."""
        origin, _ = of_site(self.origin, {}, self.n_sites, index)
        assert isinstance(self.value, tuple)
        assert isinstance(self.n_above, tuple)
        return replace(self, value=self.value[index], n_above=self.n_above[index], origin=origin)

    def __len__(self) -> int:
        """Return the number of stacked thresholds."""
        return self.n_sites or 1

    def spec(self) -> dict[str, object]:
        """Return the canonical spec."""
        names = ("value", "rate", "confidence", "n", "n_above", "origin")
        found: dict[str, object] = {"kind": self.kind, "version": 1}
        values = {name: getattr(self, name) for name in names}
        return found | {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, object]) -> "Threshold":
        """Return the threshold that a spec describes.

        Raises:
            ProbeError: another kind or version, a missing or an unknown field.
        """
        names = {"value", "rate", "confidence", "n", "n_above", "origin"}
        found = spec_fields(spec, cls.kind, names)
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in found.items()}
        return cls(**{**values, "origin": found["origin"]})  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """The sha256 over everything in `spec()`."""
        return spec_digest(self.spec())

    def __repr__(self) -> str:
        """Say the promise."""
        value, above = (
            (f"{min(v):.4g}..{max(v):.4g}" if isinstance(v, tuple) else f"{v:.4g}")
            for v in (self.value, self.n_above)
        )
        return (
            f"Threshold({value}: at most {self.rate:.2%} of benign rows fire, with "
            f"{self.confidence:.0%} confidence; {above} of {self.n} did)"
        )


def calibrate(
    benign: Array,
    *,
    rate: float = 0.01,
    confidence: float = 0.95,
    origin: Origin | None = None,
) -> Threshold:
    """Return the lowest threshold with a promised false-positive rate on benign data.

    Split conformal prediction, with the promise conditional on the calibration set (Vovk 2012,
    arXiv:1209.2673): the k-th smallest of n scores is above a share of benign rows that follows
    Beta(k, n + 1 - k), whatever their distribution. The promise holds for rows drawn as those of
    the calibration set were, not for rows of another kind; ties count as not fired.

    Args:
        benign: scores of benign rows that the probe was not fitted on, [row]; or [site, row] for
            one threshold per site. Rows are never pooled over sites: they are the same rows.
        rate: promised share of benign rows that fire.
        confidence: over draws of calibration sets.
        origin: what was calibrated.

    Raises:
        ProbeError: too few rows for the promise (says how many it takes), scores that are not
            finite, a rate or confidence outside 0 to 1.

    >>> calibrate(torch.arange(500.0), rate=0.01)
    Threshold(498: at most 1.00% of benign rows fire, with 95% confidence; 1 of 500 did)
    """
    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise ProbeError(
            f"The rate is {rate} and the confidence {confidence}. Both are shares between 0 and "
            "1. Give such as rate=0.01, confidence=0.95."
        )
    scores = torch.as_tensor(benign).detach().cpu().double()
    if scores.ndim not in (1, 2) or 0 in scores.shape[:-1]:
        raise ProbeError(
            f"The benign scores are {list(scores.shape)}. A threshold is of one score for each "
            "row. Give [row], or [site, row]; for scores of tokens use aggregate first."
        )
    if not bool(torch.isfinite(scores).all()):
        raise ProbeError(
            f"{int((~torch.isfinite(scores)).sum())} of {scores.numel()} benign scores are not "
            "finite, so they have no order. Leave out rows without tokens to read."
        )
    n = scores.shape[-1]
    allowed = _allowed(n, rate, confidence)
    if allowed < 0:
        # One more than there are, where rounding says that they would do.
        least = max(n + 1, ceil(log1p(-confidence) / log1p(-rate)))
        raise ProbeError(
            f"{n} benign rows cannot promise a rate of {rate:.2%} with {confidence:.0%} "
            f"confidence: even if none fires, more could have by chance. It takes {least} rows. "
            "Give more, or promise less."
        )
    value = scores.sort(dim=-1).values[..., n - 1 - allowed]
    above = (scores > value.unsqueeze(-1)).sum(-1)
    if scores.ndim == 1:
        return Threshold(value.item(), rate, confidence, n, int(above), origin)
    return Threshold(tuple(value.tolist()), rate, confidence, n, tuple(above.tolist()), origin)


def _allowed(n: int, rate: float, confidence: float) -> int:
    """Return how many of n benign rows may fire: the most with P(Binomial(n, rate) <= it) small.

    -1 where not even none is few enough.
    """
    k = torch.arange(n + 1, dtype=torch.float64)
    ways = lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    tail = (ways + k * log(rate) + (n - k) * log1p(-rate)).exp()
    return int((tail.cumsum(0) <= 1 - confidence).sum()) - 1


def aggregate(
    scores: Float[Tensor, "row token"],
    mask: Bool[Tensor, "row token"],
    how: Aggregate = "mean",
    *,
    window: int = 8,
) -> Float[Tensor, " row"]:
    """Return one score for each row, of its tokens.

    "last", "mean" and "max" are what they say; "rolling" is the largest mean of `window` tokens
    that follow each other, or the mean of a row that is shorter.

    Raises:
        ProbeError: an unknown way, a row without tokens, or a window below 1.
    """
    if how not in get_args(Aggregate) or window < 1:
        raise ProbeError(
            f"There is no aggregate {how!r} with a window of {window}. Give one of "
            f"{', '.join(get_args(Aggregate))}, and a window of 1 or more."
        )
    if not bool(mask.any(1).all()):
        rows = (~mask.any(1)).nonzero()[:, 0].tolist()
        raise ProbeError(
            f"Rows {rows[:5]} have no token to read, so no score. A missing score must not pass "
            "as a low one. Leave those rows out, or widen the scope."
        )
    known = torch.where(mask, scores, 0.0)
    if how == "mean":
        # A long row's sum is more than float16 holds.
        wide = torch.promote_types(scores.dtype, torch.float32)
        return (known.sum(1, dtype=wide) / mask.sum(1)).to(scores.dtype)
    if how == "max":
        return torch.where(mask, scores, -torch.inf).max(1).values
    rank = mask.cumsum(1) - 1
    count = mask.sum(1, keepdim=True)
    # The row's tokens moved together, to the left; what is no token goes to a column cut off.
    place = torch.where(mask, rank, scores.shape[1])
    blank = known.new_zeros(len(known), scores.shape[1] + 1)
    packed = blank.scatter(1, place, known)[:, :-1]
    if how == "last":
        return packed.gather(1, count - 1)[:, 0]
    sums = torch.nn.functional.pad(packed.double().cumsum(1), (1, 0))
    end = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    start = (end - window).clamp(min=0)
    means = (sums[:, end] - sums[:, start]) / (end - start)
    # Only whole windows, or all of a row that is shorter than one.
    whole = (end[None] <= count) & (end[None] >= count.clamp(max=window))
    return torch.where(whole, means, -torch.inf).max(1).values.to(scores.dtype)
