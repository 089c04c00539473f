"""The numbers of the comparison, with their intervals, from the distances of all steered outputs.

Ratios without `energy` in their name are of mean Hellinger distances; energies are the
Bhattacharyya distances in nats, summed over the waypoints (Wurgaft et al. 2026, arXiv:2605.05115).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

import manifolds
from benchmarks import stats
from benchmarks.rings import measure
from benchmarks.rings.measure import Distances, Walk
from benchmarks.rings.paths import Ring, points_of
from benchmarks.rings.reading import Reading
from benchmarks.stats import Grid, Number

CONTROLS = (
    "random_path_over_manifold",
    "random_length_over_manifold",
    "permuted_over_manifold",
    "geometric_mixture_gap",
    "energy_random_path_over_manifold",
    "energy_random_length_over_manifold",
    "energy_permuted_over_manifold",
    "energy_mixture_over_manifold",
    "energy_chord_over_mixture",
)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """All that was measured on the paths of one distance, in the test contexts."""

    reading: Reading
    distance: int
    walks: Mapping[str, Walk]
    distances: Mapping[str, Distances]
    """Of the outputs of each arm, [path, point]."""
    natural: Distances
    """Of the unsteered outputs, [path]: the floor."""
    lengths: Mapping[str, Float[Tensor, " path"]]
    shape: tuple[int, int]
    """Number of starts and of contexts."""

    def cells(self, values: Float[Tensor, " path"]) -> Grid:
        """Return one value per path as a grid."""
        return measure.grid(self.reading, values, self.shape)

    def mean(self, arm: str) -> Grid:
        """Return the mean Hellinger distance of each path of an arm."""
        return self.cells(self.distances[arm].mean)

    def energy(self, arm: str) -> Grid:
        """Return the energy of each path of an arm."""
        return self.cells(self.distances[arm].energy)


@dataclass(frozen=True, slots=True, eq=False)
class Steered:
    """All that was measured on the test contexts."""

    behavior: manifolds.Behavior
    distant: Pairs
    adjacent: Pairs
    mixture: Distances
    """Of the geometric mixtures of the two ends of the distant chords."""
    mixture_gap: Float[Tensor, " path"]
    """How far the outputs along these chords are from them."""


def numbers_of(
    steered: Steered, layer: int, seed: int
) -> tuple[dict[str, Number], dict[str, Number]]:
    """Return the numbers and the controls, but for the isometry."""
    far, near = steered.distant, steered.adjacent

    def over(top: str, bottom: str = "manifold", *, pairs: Pairs = far) -> Number:
        return stats.ratio(pairs.mean(top), pairs.mean(bottom), seed=seed)

    def mean(values: Tensor) -> Number:
        return stats.mean(far.cells(values), seed=seed)

    numbers = {
        "best_block": Number(float(layer)),
        "chord_over_manifold": over("chord"),
        "chord_over_manifold_adjacent": over("chord", pairs=near),
        "full_replace_over_manifold": over("chord_replaced"),
        "chord_over_manifold_replaced": over("chord_replaced", "manifold_replaced"),
        "additive_over_manifold": over("additive"),
        "natural_floor": mean(far.natural.hellinger),
        "distance_manifold": mean(far.distances["manifold"].mean),
        "distance_chord": mean(far.distances["chord"].mean),
        "p_passed_manifold": mean(measure.passed(far.walks["manifold"])),
        "p_passed_chord": mean(measure.passed(far.walks["chord"])),
        **_energy_numbers(far, near, seed),
    }
    controls = {
        "random_path_over_manifold": over("random_path"),
        "random_length_over_manifold": over("random_length"),
        "permuted_over_manifold": over("permuted"),
        "geometric_mixture_gap": mean(steered.mixture_gap),
        **_energy_controls(steered, seed),
    }
    return numbers, controls


def _energy_numbers(far: Pairs, near: Pairs, seed: int) -> dict[str, Number]:
    def energy(pairs: Pairs, arm: str) -> Number:
        return stats.mean(pairs.energy(arm), seed=seed)

    def over(pairs: Pairs, top: str, bottom: str = "manifold") -> Number:
        return stats.ratio(pairs.energy(top), pairs.energy(bottom), seed=seed)

    floor = far.cells(far.natural.bhattacharyya * points_of(far.distance))
    return {
        "energy_manifold": energy(far, "manifold"),
        "energy_chord": energy(far, "chord"),
        "energy_manifold_replaced": energy(far, "manifold_replaced"),
        "energy_chord_replaced": energy(far, "chord_replaced"),
        "energy_floor": stats.mean(floor, seed=seed),
        "energy_manifold_adjacent": energy(near, "manifold"),
        "energy_chord_adjacent": energy(near, "chord"),
        "energy_chord_over_manifold": over(far, "chord"),
        "energy_chord_over_manifold_replaced": over(far, "chord_replaced", "manifold_replaced"),
        "energy_full_replace_over_manifold": over(far, "chord_replaced"),
        "energy_additive_over_manifold": over(far, "additive"),
        "energy_chord_over_manifold_adjacent": over(near, "chord"),
        "energy_chord_over_manifold_replaced_adjacent": over(
            near, "chord_replaced", "manifold_replaced"
        ),
    }


def _energy_controls(steered: Steered, seed: int) -> dict[str, Number]:
    far = steered.distant
    mixture = far.cells(steered.mixture.energy)
    arms = ("random_path", "random_length", "permuted")
    return {
        **{
            f"energy_{arm}_over_manifold": stats.ratio(
                far.energy(arm), far.energy("manifold"), seed=seed
            )
            for arm in arms
        },
        "energy_mixture_over_manifold": stats.ratio(mixture, far.energy("manifold"), seed=seed),
        "energy_chord_over_mixture": stats.ratio(far.energy("chord"), mixture, seed=seed),
    }


def isometry_numbers(
    ring: Ring, train: Reading, behavior: manifolds.Behavior, n_refits: int, seed: int
) -> dict[str, Number]:
    """Return how well lengths predict behaviour lengths; intervals by refits on resampled contexts.

    One interior point per interval, as in the paper for months. The gap is the manifold's less the
    chord's, paired by refit.
    """
    whole = manifolds.isometry(ring.curve, behavior, interior=1)
    contexts = train.context.unique()
    chooser = torch.Generator().manual_seed(seed)
    refits = []
    for _ in range(n_refits):
        drawn = contexts[torch.randint(len(contexts), (len(contexts),), generator=chooser)]
        cases = torch.cat([(train.context == c).nonzero()[:, 0] for c in drawn])
        again = train.where(cases)
        if len(again.concept.unique()) < len(ring.known):
            continue
        curve, natural = again.curve(ring.site, ring.order), again.behavior(ring.order)
        refits.append(manifolds.isometry(curve, natural, interior=1))
    each = torch.tensor([[r.manifold, r.chord] for r in refits]).reshape(-1, 2).double().numpy()
    return {
        "isometry_manifold": stats.percentiles(whole.manifold, each[:, 0]),
        "isometry_chord": stats.percentiles(whole.chord, each[:, 1]),
        "isometry_gap": stats.percentiles(whole.manifold - whole.chord, each[:, 0] - each[:, 1]),
    }


def summary(pairs: Pairs) -> dict[str, dict[str, float]]:
    """Return for each arm the mean distances: Hellinger, and the paper's energy in nats."""
    return {
        name: {
            "hellinger": float(pairs.distances[name].mean.mean()),
            "bhattacharyya_energy": float(pairs.distances[name].energy.mean()),
            "other": float(one.outputs[..., -1].mean()),
        }
        for name, one in pairs.walks.items()
    }


def energies(steered: Steered, pairs: Pairs, seed: int) -> dict[str, dict[str, float | None]]:
    """Return the energy of every arm, of unsteered outputs and, on distant pairs, of mixtures."""
    grids = {arm: pairs.energy(arm) for arm in pairs.walks}
    if pairs is steered.distant:
        grids["mixture"] = pairs.cells(steered.mixture.energy)
    grids["unsteered"] = pairs.cells(pairs.natural.bhattacharyya * points_of(pairs.distance))
    return {name: stats.mean(grid, seed=seed).to_json() for name, grid in grids.items()}


def lengths_over_manifold(pairs: Pairs) -> dict[str, float]:
    """Return how long the paths of each arm are, in lengths of the ring's own."""
    own = pairs.lengths["manifold"].mean()
    return {name: round(float(one.mean() / own), 4) for name, one in pairs.lengths.items()}
