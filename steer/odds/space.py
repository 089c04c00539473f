"""Belief space: ratings of several concepts along a text, its embeddings, and how they agree.

After Bigelow, Sarfati, Wurgaft et al. 2026 (arXiv:2605.12412). Pure arrays: probabilities of rating
tokens, distributions, activations and ratings in; small maps, correlations and effects out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from steer.errors import BeliefError
from steer.odds.mantel import Mantel, mantel

Array = Tensor | NDArray | Sequence


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """Ratings of several concepts over texts: a path through belief space for each text."""

    ratings: Float[Tensor, "text time concept"]
    """From 0 to 1."""
    spread: Float[Tensor, "text time concept"]
    """Standard deviation of the rating distribution: a belief may be wide at one rating."""
    mass: Float[Tensor, "text time concept"]
    """Probability of all rating tokens together: near 0 the model does not answer with a rating."""

    def points(self) -> Float[Tensor, "sample concept"]:
        """Return every moment of every text as a point, text by text."""
        return self.ratings.flatten(0, 1)

    def steps(self) -> Float[Tensor, "text step"]:
        """Return how far the beliefs move from each moment to the next."""
        return self.ratings.diff(dim=1).norm(dim=-1)


def ratings(probabilities: Array, *, values: Array | None = None) -> Tensor:
    """Return the expected rating: sum_i v_i p(i) / sum_i p(i), over the last axis.

    The paper's score is sum_i i p(i) / 10 over the tokens 0 to 10; we divide by the mass of those
    tokens, so that a model which puts half of it elsewhere does not seem to rate everything low.

    Args:
        probabilities: [..., rating]: of each rating's token, as read off the output.
        values: [rating]: what each token stands for; 0 to 1 in equal steps by default.

    Raises:
        BeliefError: a negative probability, no mass at all, or another number of values.
    """
    p, v = _rated(probabilities, values)
    return (p * v).sum(-1) / p.sum(-1)


def trajectory(probabilities: Array, *, values: Array | None = None) -> Trajectory:
    """Return the path of beliefs of [text, time, concept, rating] token probabilities.

    Raises:
        BeliefError: as `ratings`; another number of axes.
    """
    p, v = _rated(probabilities, values)
    if p.ndim != 4:
        raise BeliefError(
            f"The probabilities have the shape {list(p.shape)}, and a trajectory is made of [text, "
            "time, concept, rating]. Add the missing axis: one text is p[None]."
        )
    mass = p.sum(-1)
    mean = (p * v).sum(-1) / mass
    variance = (p * (v - mean[..., None]).square()).sum(-1) / mass
    return Trajectory(mean, variance.sqrt(), mass)


# -- embeddings ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """Points in few dimensions, and what they leave out."""

    points: Float[Tensor, "sample k"]
    """Centred; the first axis has the largest spread."""
    eigenvalues: Float[Tensor, " component"]
    """Of the whole Gram matrix, falling; negative ones mean distances that no flat space has."""

    @property
    def share(self) -> float:
        """Share of the positive eigenvalues that the points hold."""
        positive = self.eigenvalues.clamp_min(0)
        return float(positive[: self.points.shape[1]].sum() / positive.sum())

    @property
    def negative_share(self) -> float:
        """Size of the negative eigenvalues over that of all: 0 for Euclidean distances."""
        return float(self.eigenvalues.clamp_max(0).abs().sum() / self.eigenvalues.abs().sum())

    def distances(self) -> Float[Tensor, "sample sample"]:
        """Return the distances between the points."""
        return distances(self.points)


def distances(x: Array) -> Float[Tensor, "sample sample"]:
    """Return the Euclidean distances between rows [sample, feature]."""
    rows = _rows(x)
    # The matrix product that cdist uses by default loses half of the digits of small distances.
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def hellinger_distances(p: Array) -> Float[Tensor, "sample sample"]:
    """Return |sqrt p - sqrt q| / sqrt 2 between distributions [sample, bin], from 0 to 1.

    Rows are normalised first, so ratings' tokens need no bin for everything else.

    Raises:
        BeliefError: a negative entry, or a row without mass.
    """
    rows = _require_mass(_rows(p))
    return distances((rows / rows.sum(-1, keepdim=True)).sqrt()) / 2**0.5


def embed_distances(d: Float[Tensor, "sample sample"], k: int = 2) -> Embedding:
    """Return the classical multidimensional scaling (Torgerson 1952) of distances into k axes.

    Where the distances are Euclidean and k is large enough they come back exactly. Signs of the
    axes: the entry of largest size is positive, so that a run can be repeated.

    Raises:
        BeliefError: a k below 1 or at least the number of samples.
    """
    n = d.shape[0]
    _require_axes(k, n)
    squared = d.double().square()
    middle = squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()
    values, vectors = torch.linalg.eigh(-(middle + middle.T) / 4)
    values, vectors = values.flip(0), _signed(vectors.flip(1))
    return Embedding(vectors[:, :k] * values[:k].clamp_min(0).sqrt(), values)


def embed_states(x: Array, k: int = 2) -> Embedding:
    """Return the first k principal components of activations [sample, feature].

    Signs of the axes are those of `embed_distances`.

    Raises:
        BeliefError: a k below 1 or at least the number of samples.
    """
    rows = _rows(x)
    _require_axes(k, min(len(rows), rows.shape[1] + 1))
    left, size, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return Embedding(_signed(left[:, :k]) * size[:k], size.square())


# -- side effects of steering --------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Entanglement:
    """What steering each concept does to the rating of every concept, per unit of strength."""

    effects: Float[Tensor, "steered rated"]
    """E[c, c']: change of the rating of c' per unit of strength of c's vector."""
    error: Float[Tensor, "steered rated"]
    """Standard error over samples; nan where there is one sample."""

    def relative(self) -> Float[Tensor, "steered rated"]:
        """Return the effects over each vector's own: 1 on the diagonal.

        Raises:
            BeliefError: a vector that does not raise its own concept.
        """
        own = self.effects.diagonal()
        weak = (~(own > 0)).nonzero().flatten().tolist()
        if weak:
            raise BeliefError(
                f"Steering along the vector of concept {weak[0]} changes that concept's own rating "
                f"by {float(own[weak[0]]):.3g} per unit, so side effects in units of it mean "
                "nothing. Fit the vector again, at another site, or leave the concept out."
            )
        return self.effects / own[:, None]

    def against(self, d: Tensor | NDArray, *, permutations: int = 9999, seed: int = 0) -> Mantel:
        """Return how well distances between concepts predict the side effects.

        Correlates 1 - relative effect with the distance over ordered pairs, as the effects need
        not be symmetric; r is 1 where near concepts move along and far ones stay or move back.

        Raises:
            BeliefError: as `relative` and `mantel`.
        """
        return mantel(1 - self.relative(), d, permutations=permutations, seed=seed, ordered=True)


def entanglement(before: Array, after: Array, strength: Array) -> Entanglement:
    """Return the matrix of steering side effects E[c, c'] = d rating of c' / d strength of c.

    The slope through the unsteered ratings, by least squares over the strengths.

    Args:
        before: [sample, rated]: unsteered ratings.
        after: [steered, strength, sample, rated]: ratings under each concept's vector.
        strength: [strength], or [steered, strength] where vectors have strengths of their own.

    Raises:
        BeliefError: shapes that do not fit, as many vectors as concepts included; no strength
            other than 0.
    """
    y0, y, m = (torch.as_tensor(v, dtype=torch.float64) for v in (before, after, strength))
    if y.ndim != 4 or y.shape[2:] != y0.shape or y.shape[0] != y.shape[3]:
        raise BeliefError(
            f"The ratings have the shapes {list(y0.shape)} before and {list(y.shape)} after. They "
            "are to be [sample, rated] and [steered, strength, sample, rated], with the same "
            "samples and with one vector for each rated concept."
        )
    if m.shape not in (y.shape[1:2], y.shape[:2]):
        raise BeliefError(
            f"strength has the shape {list(m.shape)} for {y.shape[1]} strengths of {y.shape[0]} "
            "vectors. Give [strength], or [steered, strength]."
        )
    m = m.expand(y.shape[:2])
    size = m.square().sum(1)
    if not bool((size > 0).all()):
        raise BeliefError(
            "Every strength of some vector is 0, and nothing was steered there. Give at least one "
            "strength that is not 0; `before` is the unsteered run already."
        )
    slopes = torch.einsum("ck,cksr->csr", m, y - y0) / size[:, None, None]
    n = slopes.shape[1]
    spread = slopes.std(1) if n > 1 else torch.full_like(slopes[:, 0], torch.nan)
    return Entanglement(slopes.mean(1), spread / n**0.5)


def _rated(probabilities: Array, values: Array | None) -> tuple[Tensor, Tensor]:
    p = _require_mass(torch.as_tensor(probabilities, dtype=torch.float64))
    n = p.shape[-1]
    if values is None:
        return p, torch.linspace(0, 1, n, dtype=torch.float64)
    v = torch.as_tensor(values, dtype=torch.float64)
    if v.shape != (n,):
        raise BeliefError(
            f"There are {n} rating tokens and values of the shape {list(v.shape)}, so it is not "
            "known what each token stands for. Give one value for each."
        )
    return p, v


def _require_mass(p: Tensor) -> Tensor:
    least = float(p.min()) if p.numel() else 0.0
    if not least >= 0:
        raise BeliefError(
            f"A probability is {least:.3g}. Give probabilities, not logits or log-probabilities: "
            "logits.softmax(-1) at the tokens of the ratings."
        )
    empty = int((p.sum(-1) <= 0).sum())
    if empty:
        raise BeliefError(
            f"{empty} of the distributions have no mass on any rating token, so they rate nothing. "
            "Check the token ids: a digit after a space is often another token."
        )
    return p


def _rows(x: Array) -> Tensor:
    rows = torch.as_tensor(x, dtype=torch.float64)
    if rows.ndim != 2:
        raise BeliefError(
            f"The samples have the shape {list(rows.shape)}, and [sample, feature] is needed. "
            "Flatten texts and times into samples: x.flatten(0, 1)."
        )
    return rows


def _require_axes(k: int, n: int) -> None:
    if not 1 <= k < n:
        raise BeliefError(
            f"k is {k}, but {n} centred samples span at most {n - 1} axes. Ask for 1 to {n - 1}."
        )


def _signed(vectors: Tensor) -> Tensor:
    """Return columns whose entry of largest size is positive."""
    largest = vectors.abs().argmax(0, keepdim=True)
    return vectors * vectors.gather(0, largest).sign()
