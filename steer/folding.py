"""Interventions as affine maps, and their folding into what writes to the stream. Pure.

`affine_of` says what an intervention does to every token, or why no weights can do it; `fold`
moves maps of the stream onto the writers before them where that is exact. Which modules the writers
are and how their weights change is in `steer.bake`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import cos, sin
from typing import Any

import torch
from torch import Tensor

from steer.errors import PlanError
from steer.interventions.arithmetic import Relative
from steer.interventions.curved import MoveAlong, MoveTo, Snap
from steer.interventions.dual import Dual
from steer.interventions.erase import Erase
from steer.interventions.following import Follow
from steer.interventions.gates import Monitor, When
from steer.interventions.linear import Ablate, Add, Affine, Clamp, Rotate, Scale
from steer.interventions.patch import Patch
from steer.interventions.wrap import Custom, PreserveNorm, Redirect
from steer.protocols import Intervention
from steer.scopes import ALL
from steer.sites import AnySite, Site

SAME = 1e-5
"""Directions nearer than this count as one: bases are orthonormal to 1e-6 in fp32."""
NOISE = 1e-6
"""What a shift may leave of itself where it cancels, as bases are rounded to fp32."""
WRITERS = ("embed", "attn_out", "mlp_out")
STREAM = ("resid_pre", "resid_mid", "resid_post")

REMEDY = "Leave it out of the baked plan and attach it instead: lm.attached(plan)."


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """h -> diagonal * h + left @ (right @ h) + shift, in fp64 on the host.

    Diagonal plus low rank: what interventions are, and closed under composition, so that no
    [d_model, d_model] matrix is ever made.
    """

    diagonal: Tensor
    left: Tensor
    """[d_model, k]"""
    right: Tensor
    """[k, d_model]"""
    shift: Tensor

    def then(self, after: "AffineMap") -> "AffineMap":
        """Return this map followed by another."""
        through = after.right @ self.left
        return AffineMap(
            after.diagonal * self.diagonal,
            torch.cat([after.diagonal[:, None] * self.left + after.left @ through, after.left], 1),
            torch.cat([self.right, after.right * self.diagonal]),
            after(self.shift),
        )

    def linear(self, rows: Tensor) -> Tensor:
        """Return the linear part of the map of each row [..., d_model]."""
        return rows * self.diagonal + (rows @ self.right.T) @ self.left.T

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the map of each row [..., d_model]."""
        return self.linear(rows) + self.shift

    @property
    def only_shifts(self) -> bool:
        """Whether the linear part is the identity by construction."""
        return self.right.shape[0] == 0 and bool((self.diagonal == 1).all())

    @property
    def is_identity(self) -> bool:
        """Whether it does nothing by construction."""
        return self.only_shifts and not bool(self.shift.any())


def identity(width: int) -> AffineMap:
    """Return the map that does nothing."""
    one, none = torch.ones(width, dtype=torch.float64), torch.zeros(width, 0, dtype=torch.float64)
    return AffineMap(one, none, none.T, torch.zeros_like(one))


def affine_of(item: Intervention, width: int) -> AffineMap:
    """Return what an intervention does to every token at its site.

    Raises:
        PlanError: it is not one affine map for all tokens of all rows.
    """
    _refuse_what_varies(item)
    # Patch has none, and replaces.
    strength = _number(getattr(item, "strength", 1.0))
    start = identity(width)
    return start if strength == 0 else _MAPS[type(item)](item, strength, start)


def _refuse_what_varies(item: Intervention) -> None:
    kind = type(item)
    if kind not in _MAPS:
        why = _NOT_AFFINE.get(kind, "nothing says that its edit is affine in the stream")
        raise _cannot(item, why)
    if item.scope != ALL:
        raise _cannot(
            item,
            f"its scope is {item.scope!r}, and weights do not know positions: they act on every "
            "token, so only ALL can be baked",
        )
    amounts = {name: getattr(item, name, None) for name in ("strength", "to", "factor", "angle")}
    for name, value in amounts.items():
        if isinstance(value, Relative):
            raise _cannot(
                item, f"its {name} is {value!r}, a multiple of each token's own norm: not affine"
            )
        if isinstance(value, Tensor):
            raise _cannot(
                item,
                f"its {name} has one number for each of {len(value)} rows, and weights are the "
                "same for every row",
            )
    if isinstance(item, Patch) and item.values.ndim != 1:
        raise _cannot(
            item,
            f"its source has shape {tuple(item.values.shape)}, one value for each row or token; "
            "only a constant [d_model] can stand in weights",
        )


def _cannot(item: object, why: str) -> PlanError:
    return PlanError(f"{item!r} cannot be baked: {why}. {REMEDY}")


_NOT_AFFINE: Mapping[type, str] = {
    Erase: "its eraser can be any map, and nothing says that it is affine",
    Dual: "its steps depend on the state that they start from",
    Follow: "its directions depend on the state that it starts from",
    Custom: "its function can be anything, and nothing says that it is affine in the stream",
    Monitor: "it only reads and reports, and a checkpoint has nobody to report to",
    MoveAlong: "it moves along a manifold, which is not affine in the stream",
    MoveTo: "it moves to a point of a manifold, which is not affine in the stream",
    PreserveNorm: "it divides by each token's norm, which is not affine in the stream",
    Redirect: "how far it goes depends on the state that it starts from",
    Snap: "it projects onto a manifold, which is not affine in the stream",
    When: "it is a gate: whether it acts depends on what is read, and weights always act",
}


def _exactly(values: Tensor) -> Tensor:
    return values.detach().cpu().double()


def _number(value: object) -> float:
    assert isinstance(value, float)  # `_refuse_what_varies` has let nothing else pass
    return value


def _add(item: Add, s: float, start: AffineMap) -> AffineMap:
    return replace(start, shift=s * _exactly(item.direction))


def _ablate(item: Ablate, s: float, start: AffineMap) -> AffineMap:
    basis = _exactly(item.basis)
    return replace(start, left=-s * basis.T, right=basis)


def _clamp(item: Clamp, s: float, start: AffineMap) -> AffineMap:
    unit, to = _exactly(item.direction), _number(item.to)
    return replace(start, left=-s * unit[:, None], right=unit[None], shift=s * to * unit)


def _scale(item: Scale, s: float, start: AffineMap) -> AffineMap:
    return replace(start, diagonal=start.diagonal * (1 + s * (_number(item.factor) - 1)))


def _affine(item: Affine, s: float, start: AffineMap) -> AffineMap:
    diagonal = 1 + s * (_exactly(item.scale) - 1)
    return replace(start, diagonal=diagonal, shift=s * _exactly(item.shift))


def _rotate(item: Rotate, s: float, start: AffineMap) -> AffineMap:
    plane, turn = _exactly(item.plane), s * _number(item.angle)
    rows = [[cos(turn) - 1, -sin(turn)], [sin(turn), cos(turn) - 1]]
    turned = torch.tensor(rows, dtype=torch.float64)
    return replace(start, left=plane.T @ turned, right=plane)


def _patch(item: Patch, _: float, start: AffineMap) -> AffineMap:
    source = _exactly(item.values)
    if item.subspace is None:
        return replace(start, diagonal=0 * start.diagonal, shift=source)
    basis = _exactly(item.subspace)
    return replace(start, left=-basis.T, right=basis, shift=basis.T @ (basis @ source))


_MAPS: Mapping[type, Callable[[Any, float, AffineMap], AffineMap]] = {
    Ablate: _ablate,
    Add: _add,
    Affine: _affine,
    Clamp: _clamp,
    Patch: _patch,
    Rotate: _rotate,
    Scale: _scale,
}


@dataclass(frozen=True, slots=True)
class Point:
    """One state of the stream: the sites that name it, and what was added since the one before."""

    sites: tuple[Site, ...]
    writers: tuple[Site, ...]
    """The last one takes the shift."""


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What holds for every state of the stream: rows @ h = values."""

    rows: Tensor
    """[k, d_model], orthonormal"""
    values: Tensor

    def moved(self, change: AffineMap) -> Tensor | None:
        """Return the constant by which a linear part moves every such state, or None."""
        if bool((change.diagonal != 1).any()):
            return None
        shared = change.right @ self.rows.T
        rest = torch.linalg.qr(change.left).R @ (change.right - shared @ self.rows)
        if rest.numel() and float(rest.norm()) > SAME:
            return None
        return change.left @ (shared @ self.values)

    def after(self, added: Sequence[AffineMap]) -> "_Known":
        """Return what still holds when the images of these maps have been added."""
        images = [self.rows * m.diagonal + (self.rows @ m.left) @ m.right for m in added]
        gram = sum((image @ image.T for image in images), self.rows.new_zeros(()))
        size, mixes = torch.linalg.eigh(gram)
        keep = mixes[:, size <= SAME**2].T
        shift = sum((m.shift for m in added), torch.zeros_like(added[0].shift))
        return _Known(keep @ self.rows, keep @ (self.values + self.rows @ shift))


def _at_start(written: AffineMap) -> _Known:
    """Return what holds where a map's image is all that the stream is."""
    # A direction that the map removes is a mix of its right rows (unless it scales by zero).
    _, size, rows = torch.linalg.svd(written.right, full_matrices=False)
    rows = rows[size > SAME]
    return _Known(rows, rows.new_zeros(len(rows))).after([written])


def fold(
    plan: Sequence[tuple[Intervention, AffineMap]], points: Sequence[Point]
) -> dict[Site, AffineMap]:
    """Return the map of each writer that together do what a plan does, in the order of a pass.

    A map A of the stream h = h0 + w, where w was written since the state h0 before, is exact as a
    map of w alone if A moves no h0 that can occur: if it only shifts, if h0 is empty (the
    embedding), or if h0 was itself projected so that A leaves it as it is. Directional ablation
    everywhere is the last case (Arditi et al. 2024, arXiv:2406.11717).

    Raises:
        PlanError: a map of the stream that no weights of one writer can be.
    """
    width = plan[0][1].shift.shape[0] if plan else 0
    known: _Known | None = None
    folded: dict[Site, AffineMap] = {}
    for point in points:
        own = {writer: _composed(plan, (writer,), width) for writer in point.writers}
        after = _composed(plan, tuple(s for s in point.sites if s not in own), width)
        constant = after.shift if known is None else known.moved(after)
        if constant is None:
            raise _carries_more(plan, point)
        if known is not None:
            constant = _without_noise(after.shift + constant, after.shift)
        linear = replace(after, shift=torch.zeros_like(after.shift))
        folded |= {writer: made.then(linear) for writer, made in own.items()}
        last = point.writers[-1]
        folded[last] = replace(folded[last], shift=folded[last].shift + constant)
        added = [folded[writer] for writer in point.writers]
        known = _at_start(added[0]) if known is None else known.after(added)
    return {writer: made for writer, made in folded.items() if not made.is_identity}


def _without_noise(constant: Tensor, shift: Tensor) -> Tensor:
    """Return zero for what is left where a shift cancels: it would ask for a bias."""
    return constant if float(constant.norm()) > NOISE * float(shift.norm()) else 0 * constant


def _composed(
    plan: Sequence[tuple[Intervention, AffineMap]], sites: tuple[AnySite, ...], width: int
) -> AffineMap:
    """Return the maps at some sites as one, in the order of the sites and then of the plan."""
    made = identity(width)
    for site in sites:
        for item, each in plan:
            if item.site == site:
                made = made.then(each)
    return made


def _carries_more(plan: Sequence[tuple[Intervention, AffineMap]], point: Point) -> PlanError:
    here = [(item, made) for item, made in plan if item.site in point.sites]
    item = next((item for item, made in here if not made.only_shifts), here[0][0])
    return _cannot(
        item,
        f"{item.site} carries all that earlier blocks wrote, and no weights between it and the "
        "state before change that. A linear map of the stream is exact only as a projection of "
        "everything that is written: the same one at embed and at every attn_out and mlp_out "
        "before, or at each state of the stream (resid_pre of block 0, then every resid_mid and "
        "resid_post)",
    )
