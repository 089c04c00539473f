"""What the numbers say about each claim, in one line each: it holds, or it does not.

The bounds were set before the numbers were seen; a claim that fails is reported as failing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.stats import Number

PERMUTED = 1.3
"""How many times the ring's energy that of a ring in a wrong order is expected to be."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim, whether it holds, and the number that says so."""

    claim: str
    holds: bool
    seen: str

    def __str__(self) -> str:
        """Print `HOLDS: ... (2.1 [1.8, 2.4])`."""
        return f"{'HOLDS' if self.holds else 'DOES NOT HOLD'}: {self.claim} ({self.seen})"


def claims_of(
    numbers: Mapping[str, Number], controls: Mapping[str, Number], target: float
) -> list[Claim]:
    """Return the claims of a ring or line task, from its numbers alone."""
    return [
        _above(
            "distant pairs, written through the subspace: the chord's energy over the manifold's "
            f"is {_bound(target)}",
            numbers["energy_chord_over_manifold"],
            target,
        ),
        _above(
            "distant pairs, both written by full replacement: the chord's energy is above the "
            "manifold's",
            numbers["energy_chord_over_manifold_replaced"],
        ),
        _above(
            "distant pairs: the chord of raw centroids by full replacement, the published "
            "baseline, has more energy than the manifold through the subspace",
            numbers["energy_full_replace_over_manifold"],
        ),
        _above(
            "adjacent pairs, subspace: the chord's energy is above the manifold's",
            numbers["energy_chord_over_manifold_adjacent"],
        ),
        _above(
            "adjacent pairs, full replacement: the chord's energy is above the manifold's",
            numbers["energy_chord_over_manifold_replaced_adjacent"],
        ),
        _above(
            f"the energy of a manifold in a wrong order is {_bound(PERMUTED)}",
            controls["energy_permuted_over_manifold"],
            PERMUTED,
        ),
        _above(
            "a random path of the manifold path's length has more energy",
            controls["energy_random_length_over_manifold"],
        ),
        _isometry(numbers),
        _pulled(numbers, controls),
        _mixture(numbers, controls),
        _beyond_mixture(controls),
    ]


def _bound(target: float) -> str:
    return f"at least {target:g}, its interval above 1" if target > 1 else "above 1"


def _above(claim: str, number: Number, target: float = 1.0) -> Claim:
    holds = (
        number.value is not None
        and number.lo is not None
        and number.lo > 1
        and number.value >= target
    )
    return Claim(claim, holds, str(number))


def _isometry(numbers: Mapping[str, Number]) -> Claim:
    gap = numbers["isometry_gap"]
    return Claim(
        "lengths along the manifold predict lengths of behaviour better than straight ones do",
        gap.value is not None and gap.value > 0 and (gap.lo is None or gap.lo > 0),
        f"r = {numbers['isometry_manifold']} against {numbers['isometry_chord']}",
    )


def _pulled(numbers: Mapping[str, Number], controls: Mapping[str, Number]) -> Claim:
    gap = numbers["pullback_r2_gap"]
    return Claim(
        "activations searched for so that outputs follow natural ones lie nearer to the manifold "
        "than the chord, from which the search began",
        gap.lo is not None and gap.lo > 0,
        f"R2 {numbers['pullback_r2']}, chord {controls['pullback_r2_chord']}, random "
        f"{controls['pullback_r2_random']}; outputs off by {numbers['pullback_loss_over_chord']} "
        "of the chord's in held-out contexts",
    )


def _mixture(numbers: Mapping[str, Number], controls: Mapping[str, Number]) -> Claim:
    """Say whether the chord's outputs are the geometric mixtures of its ends.

    The yardstick is how far unsteered outputs are from natural ones: a smaller gap is no gap.
    """
    gap, floor = controls["geometric_mixture_gap"], numbers["natural_floor"]
    differs = (
        gap.lo is not None
        and floor.value is not None
        and gap.lo > (floor.value if floor.hi is None else floor.hi)
    )
    equal = gap.hi is not None and floor.value is not None and gap.hi <= floor.value
    verdict = "different" if differs else "equal: only read-out geometry" if equal else "undecided"
    return Claim(
        "the chord's outputs differ from the geometric mixture of its ends by more than unsteered "
        "outputs differ from natural ones",
        differs,
        f"Hellinger gap {gap}, unsteered {floor}: {verdict}",
    )


def _beyond_mixture(controls: Mapping[str, Number]) -> Claim:
    one = _above(
        "the chord has more energy than the geometric mixture of its ends has, so that not all of "
        "it is read-out geometry",
        controls["energy_chord_over_mixture"],
    )
    return Claim(
        one.claim,
        one.holds,
        f"chord over mixture {one.seen}; the mixture alone is "
        f"{controls['energy_mixture_over_manifold']} times the manifold",
    )
