"""One factory for each way in which an intervention can be made; the laws run over all of them.

A factory builds its value for some rows of an endless seeded batch, so that a value with one entry
per row can be built for a batch and for each of its rows alone.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

import manifolds
import probes
import steer
from steer import LM, Scope, Site, Step
from steer.protocols import Intervention, Manifold

N_ROWS = 37
"""Rows of the batch of which every law uses a part; at least one for each factory."""
N_NEW = 3
"""Tokens that the laws generate: enough for a decode step to differ from the one before."""


_MIDDLE, _EARLIER = Site(1, "resid_post"), Site(0, "resid_post")


@dataclass(frozen=True)
class Setting:
    """A model and what is fitted on its own states: the data of every factory."""

    lm: LM
    site: Site = _MIDDLE
    reads: Site = _EARLIER
    """Where gates read: earlier in the pass than they act."""
    texts: tuple[str, ...] | None = None
    """N_ROWS prompts, for models that have learned a language; None for seeded token ids."""
    chart: str = "curve"
    """Which of CHARTS is in the manifold slot of the composed plans."""

    def draw(self, name: str, *shape: int) -> Tensor:
        """Return seeded normal numbers that depend on the model, the site and the name alone."""
        key = f"{self.lm.model.config.model_type} {self.site} {name}".encode()
        seed = int.from_bytes(hashlib.sha256(key).digest()[:7], "big")
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return noise.to(self.lm.device)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """N_ROWS prompts of unequal length, as token ids."""
        if self.texts is not None:
            return self.lm.tokenizer(list(self.texts))["input_ids"]  # type: ignore[return-value]
        top = min(self.lm.registry.layout.d_vocab, 570)
        chooser = torch.Generator().manual_seed(7)
        sizes = [4 + (3 * row) % 5 for row in range(N_ROWS)]
        return [torch.randint(5, top, (n,), generator=chooser).tolist() for n in sizes]

    @cached_property
    def states(self) -> Tensor:
        """[N_ROWS, d_model]: the states of the last prompt tokens at the site, in fp32."""
        return self.lm.capture(self.prompts, [self.site])[self.site].float()

    @cached_property
    def scale(self) -> float:
        """Root mean square of one entry of a state: edits are of this size."""
        return float(self.states.square().mean().sqrt())

    @cached_property
    def curve(self) -> manifolds.Curve:
        """A ring of period 6 through averages of states."""
        return manifolds.fit_curve(self.states, [row % 6 for row in range(N_ROWS)], period=6)

    @cached_property
    def surface(self) -> manifolds.Surface:
        """A cylinder through averages of states: 6 round, 2 high."""
        at = [(row % 6, row // 6 % 2) for row in range(N_ROWS)]
        return manifolds.fit_surface(self.states, at, periods=(6, None), n_components=6)

    @property
    def manifold(self) -> Manifold:
        """The chart of this setting, fitted on its states."""
        return CHARTS[self.chart](self)

    @cached_property
    def probe(self) -> probes.LinearProbe:
        """A probe at `reads` whose score is positive for half of the prompts' last tokens."""
        states = self.lm.capture(self.prompts, [self.reads])[self.reads].float()
        weight = self.draw("probe", states.shape[1])
        ordered = (states @ weight).sort().values
        middle = (ordered[N_ROWS // 2 - 1] + ordered[N_ROWS // 2]) / 2
        return probes.LinearProbe(weight, -middle)

    @cached_property
    def belief(self) -> steer.belief.Belief:
        """A law in which a strength s, without evidence, is asked for by a target of s nats."""
        return steer.belief.Belief(a=1.0, b=0.0, gamma=0.3, alpha=0.5)

    def direction(self, name: str) -> Tensor:
        """Return a seeded direction whose entries are as large as those of a state."""
        return self.scale * self.draw(name, self.lm.d_model)


def _helix(setting: Setting) -> Manifold:
    return manifolds.fit_helix(setting.states, range(N_ROWS), periods=(6,))


def _graph(setting: Setting) -> Manifold:
    edges = [(i, (i + 1) % 6) for i in range(6)]
    return manifolds.fit_graph(setting.states, [row % 6 for row in range(N_ROWS)], edges)


def _torus(setting: Setting) -> Manifold:
    at = [(row % 6, row // 6) for row in range(N_ROWS)]
    # Smoothed: through random points it would fold, and near a fold rounding decides the branch.
    return manifolds.fit_surface(
        setting.states, at, periods=(6, 6), n_components=8, kernel="cubic", smoothing=1.0
    )


CHARTS: Mapping[str, Callable[[Setting], Manifold]] = {
    "curve": lambda setting: setting.curve,
    "line": lambda setting: manifolds.fit_curve(setting.states, range(N_ROWS), smoothing=1.0),
    "surface": lambda setting: setting.surface,
    "torus": _torus,
    "flat": lambda setting: manifolds.fit_flat(setting.states, n_components=3),
    "sphere": lambda setting: manifolds.fit_sphere(setting.states),
    "graph": _graph,
    "helix": _helix,
}
"""Every chart that can stand in the manifold slot."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of a factory: for which rows of the batch, where, how strong."""

    setting: Setting
    rows: Sequence[int]
    scope: Scope = steer.OUTPUT
    strength: float = 1.0

    @property
    def site(self) -> Site:
        """Where it acts."""
        return self.setting.site

    def per_row(self, name: str, *shape: int) -> Tensor:
        """Return the entries of these rows of a seeded table [N_ROWS, ...]."""
        return self.setting.draw(name, N_ROWS, *shape)[list(self.rows)]

    def alone(self, row: int) -> "Wanted":
        """Return the same for one row as a batch of its own."""
        return replace(self, rows=(row,))


Factory = Callable[[Wanted], Intervention]


def _add(w: Wanted) -> Intervention:
    return steer.Add(w.site, w.setting.direction("add"), w.strength, w.scope)


def _add_relative(w: Wanted) -> Intervention:
    amount = steer.Relative(0.7 * w.strength)
    return steer.Add(w.site, w.setting.direction("relative"), amount, w.scope)


def _add_rows(w: Wanted) -> Intervention:
    amount = w.strength * (1 + w.per_row("amount").abs())
    return steer.Add(w.site, w.setting.direction("add"), amount, w.scope)


def _ablate(w: Wanted) -> Intervention:
    # The mean state is what most of the stream lies along, so that removing it shows.
    basis = torch.stack([w.setting.states.mean(0), w.setting.direction("ablate")])
    return steer.Ablate(w.site, basis, w.strength, w.scope)


def _clamp(w: Wanted) -> Intervention:
    v = w.setting.direction("clamp")
    return steer.Clamp(w.site, v, 6 * w.setting.scale, w.strength, w.scope)


def _clamp_rows(w: Wanted) -> Intervention:
    to = 6 * w.setting.scale * w.per_row("to")
    return steer.Clamp(w.site, w.setting.direction("clamp"), to, w.strength, w.scope)


def _scale(w: Wanted) -> Intervention:
    # A factor of the whole stream would be undone by the next norm but for what is added later.
    return steer.Scale(w.site, -0.5, w.strength, w.scope)


def _scale_rows(w: Wanted) -> Intervention:
    return steer.Scale(w.site, -w.per_row("factor").abs(), w.strength, w.scope)


def _plane(w: Wanted) -> Tensor:
    return torch.stack([w.setting.states.mean(0), w.setting.direction("plane")])


def _rotate(w: Wanted) -> Intervention:
    return steer.Rotate(w.site, _plane(w), 1.5, w.strength, w.scope)


def _rotate_rows(w: Wanted) -> Intervention:
    return steer.Rotate(w.site, _plane(w), 1.5 + w.per_row("angle").abs(), w.strength, w.scope)


def _affine(w: Wanted) -> Intervention:
    scale = 1 + 0.5 * w.setting.draw("affine scale", w.setting.lm.d_model)
    shift = 0.5 * w.setting.direction("affine shift")
    return steer.Affine(w.site, scale, shift, w.strength, w.scope)


def _patch(w: Wanted) -> Intervention:
    return steer.Patch(w.site, w.setting.direction("patch"), scope=w.scope)


def _patch_rows(w: Wanted) -> Intervention:
    source = w.setting.scale * w.per_row("patch rows", w.setting.lm.d_model)
    return steer.Patch(w.site, source, scope=w.scope)


def _patch_tokens(w: Wanted) -> Intervention:
    source = w.setting.scale * w.per_row("patch tokens", 2, w.setting.lm.d_model)
    return steer.Patch(w.site, source, scope=steer.span(1, 3))


def _patch_subspace(w: Wanted) -> Intervention:
    source = w.setting.scale * w.per_row("patch rows", w.setting.lm.d_model)
    directions = w.setting.draw("subspace", 3, w.setting.lm.d_model)
    return steer.Patch(w.site, source, directions, w.scope)


def _move_to(w: Wanted) -> Intervention:
    return steer.MoveTo(w.site, w.setting.curve, 2.3, "replace", w.strength, w.scope)


def _move_to_transport(w: Wanted) -> Intervention:
    return steer.MoveTo(w.site, w.setting.curve, 4.1, "transport", w.strength, w.scope)


def _move_to_rows(w: Wanted) -> Intervention:
    u = 3 * w.per_row("u")
    return steer.MoveTo(w.site, w.setting.curve, u, "replace", w.strength, w.scope)


def _move_along(w: Wanted) -> Intervention:
    return steer.MoveAlong(w.site, w.setting.curve, 2.5, "transport", w.strength, w.scope)


def _move_along_replace(w: Wanted) -> Intervention:
    return steer.MoveAlong(w.site, w.setting.curve, -1.5, "replace", w.strength, w.scope)


def _move_along_rows(w: Wanted) -> Intervention:
    by = 3 + w.per_row("by")
    return steer.MoveAlong(w.site, w.setting.curve, by, "transport", w.strength, w.scope)


def _move_to_surface_rows(w: Wanted) -> Intervention:
    u = w.per_row("place", 2).abs()
    return steer.MoveTo(w.site, w.setting.surface, u, "replace", w.strength, w.scope)


def _snap(w: Wanted) -> Intervention:
    return steer.Snap(w.site, w.setting.curve, w.strength, w.scope)


def _erase(w: Wanted) -> Intervention:
    # A trained model's states lie far from zero, so the middle one parts them, not the origin.
    along = w.setting.states @ w.setting.draw("concept", w.setting.lm.d_model)
    labels = (along > along.median()).long()
    return steer.Erase(w.site, probes.fit_erasure(w.setting.states, labels), w.strength, w.scope)


def _follow_rows(w: Wanted) -> Intervention:
    u = [row % 6 for row in range(N_ROWS)]
    field = steer.ProbeField(probes.fit_field(w.setting.states, u, period=6), w.setting.curve)
    by = 2 + w.per_row("followed").abs()
    return steer.Follow(w.site, field, by, strength=w.strength, scope=w.scope)


def _dual_rows(w: Wanted) -> Intervention:
    # The read-out says of most tokens that they are no target, so that each has a way to go.
    readout = w.setting.draw("readout", 4, w.setting.lm.d_model) / (w.setting.scale * 8)
    target = (w.per_row("answer") > 0).long()
    return steer.Dual(w.site, readout, target, until=0.999, strength=w.strength, scope=w.scope)


def _when(w: Wanted) -> Intervention:
    read = steer.Read(w.setting.reads, w.setting.probe, steer.PROMPT)
    return steer.When(read, _add(w), above=0.0)


def _when_mean(w: Wanted) -> Intervention:
    # Above minus infinity in effect: a gate that is open in every row.
    read = steer.Read(w.setting.reads, w.setting.probe, steer.PROMPT, reduce="mean")
    return steer.When(read, _move_along(w), above=-1e6)


def _when_token(w: Wanted) -> Intervention:
    read = steer.Read(w.setting.reads, w.setting.probe, steer.ALL, reduce="rolling", window=2)
    return steer.When(read, _clamp(w), above=0.0, latch="token")


def _monitor(w: Wanted) -> Intervention:
    return steer.Monitor(steer.Read(w.setting.reads, w.setting.probe, w.scope, reduce="max"))


def _control(w: Wanted) -> Intervention:
    target = w.strength * (1 + w.per_row("target").abs())
    direction = w.setting.direction("control")
    return steer.belief.Control(w.setting.belief, w.site, direction, target, 0.0, scope=w.scope)


def _counted(w: Wanted) -> steer.belief.Count:
    # Half of all token ids: every prompt holds some, and not all the same number.
    return steer.belief.Count(tuple(range(0, w.setting.lm.registry.layout.d_vocab, 2)))


def _control_count(w: Wanted) -> Intervention:
    outcome = steer.belief.outcome([7], [11])
    direction = w.setting.direction("control")
    return steer.belief.Control(
        w.setting.belief, w.site, direction, 2.0, _counted(w), outcome, w.scope
    )


def _control_read(w: Wanted) -> Intervention:
    read = steer.Read(w.setting.reads, w.setting.probe, steer.PROMPT, reduce="max")
    direction = w.setting.direction("control")
    return steer.belief.Control(w.setting.belief, w.site, direction, 2.0, read, scope=w.scope)


def _forecast(w: Wanted) -> Intervention:
    outcome = steer.belief.outcome([7], [11], scope=w.scope)
    return steer.belief.Forecast(w.setting.belief, _counted(w), outcome=outcome)


def _preserve_norm(w: Wanted) -> Intervention:
    return steer.PreserveNorm(_add(w))


def _redirect(w: Wanted) -> Intervention:
    return steer.Redirect(_add(w), w.setting.direction("redirect"))


def _custom(w: Wanted) -> Intervention:
    shift = w.strength * w.setting.direction("custom")
    still = w.strength == 0

    def flipped(h: Tensor, step: Step) -> Tensor:
        del step
        return h if still else shift.to(h.dtype) - h

    return steer.Custom(w.site, flipped, w.scope)


FACTORIES: Mapping[str, Factory] = {
    "add": _add,
    "add-relative": _add_relative,
    "add-rows": _add_rows,
    "ablate": _ablate,
    "clamp": _clamp,
    "clamp-rows": _clamp_rows,
    "scale": _scale,
    "scale-rows": _scale_rows,
    "rotate": _rotate,
    "rotate-rows": _rotate_rows,
    "affine": _affine,
    "patch": _patch,
    "patch-rows": _patch_rows,
    "patch-tokens": _patch_tokens,
    "patch-subspace": _patch_subspace,
    "move-to": _move_to,
    "move-to-transport": _move_to_transport,
    "move-to-rows": _move_to_rows,
    "move-along": _move_along,
    "move-along-replace": _move_along_replace,
    "move-along-rows": _move_along_rows,
    "move-to-surface-rows": _move_to_surface_rows,
    "snap": _snap,
    "erase": _erase,
    "follow-rows": _follow_rows,
    "dual-rows": _dual_rows,
    "when": _when,
    "when-mean": _when_mean,
    "when-token": _when_token,
    "monitor": _monitor,
    "control": _control,
    "control-count": _control_count,
    "control-read": _control_read,
    "forecast": _forecast,
    "preserve-norm": _preserve_norm,
    "redirect": _redirect,
    "custom": _custom,
}
"""Every way to make an intervention, by the name under which a law reports it."""

WITHOUT_STRENGTH = frozenset(
    {"patch", "patch-rows", "patch-tokens", "patch-subspace", "monitor", "forecast"}
    | {"control-count", "control-read"}
)
"""Whole writes, readings, doses found in the pass: there is no strength to set to 0."""
WITHOUT_FILE = frozenset({"custom"})
"""Code has no identity that a file could carry."""
KEEPING = frozenset({"monitor", "forecast"})
"""Those that change nothing by what they are."""


def make(name: str, wanted: Wanted) -> Intervention:
    """Return the intervention of a name."""
    return FACTORIES[name](wanted)


def one_each(setting: Setting, strength: float = 1.0) -> tuple[list[str], list[Intervention]]:
    """Return every name, and for row i of a batch the ith intervention, made for that batch."""
    names = list(FACTORIES)
    wanted = Wanted(setting, range(len(names)), strength=strength)
    return names, [make(name, wanted) for name in names]
