"""Learning which part of a state carries a variable: DAS, boundless DAS, masks, through the hooks.

The model's weights stay as they are. Restarts and trials are rows of the same passes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm.auto import tqdm

from steer.attribution.slopes import run_rows
from steer.engine import Batch
from steer.errors import PlanError
from steer.interchange.families import BOUNDLESS, DAS, MASK, Family
from steer.interchange.trials import Trials, states_of
from steer.interventions import Custom
from steer.lm import LM
from steer.scopes import Scope
from steer.sites import AnySite
from steer.step import Step
from steer.store import write_atomically


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Subspace:
    """A fitted part of the states at a site, for `steer.Patch(site, source, subspace=basis)`."""

    method: str
    site: AnySite
    scope: Scope
    basis: Tensor
    """[k, d] orthonormal."""
    losses: Tensor
    """[epoch, restart]: cross-entropy of the expected answers, in nats."""

    @property
    def dims(self) -> int:
        """How many dimensions it has."""
        return self.basis.shape[0]

    def __repr__(self) -> str:
        """Say what it is and how well it was learned."""
        return (
            f"Subspace({self.method}, {self.site}, {self.scope!r}, {self.dims} of "
            f"{self.basis.shape[1]} dimensions, loss {float(self.losses[-1].min()):.3g} nats)"
        )


@dataclass(frozen=True, slots=True)
class Training:
    """How a subspace is learned."""

    epochs: int = 30
    learning_rate: float = 0.03
    batch_size: int = 128
    restarts: int = 1
    penalty: float = 0.0
    """Nats that exchanging the whole state would cost; for boundless DAS and masks."""
    temperatures: tuple[float, float] = (1.0, 1.0)
    """At the first and at the last step, geometric between; for boundless DAS and masks."""
    seed: int = 0


def fit_das(
    lm: LM,
    some: Trials,
    site: AnySite,
    *,
    dims: int,
    within: float | None = 0.99,
    training: Training = Training(),
    checkpoint: Path | None = None,
) -> Subspace:
    """Return the `dims` directions whose exchange makes the model say what the source's would.

    Distributed alignment search (Geiger et al. 2023, arXiv:2303.02536), with the start within the
    principal components of the states (Feucht et al. 2026, arXiv:2605.01148). We differ in that
    the rotation is the orthonormal factor of free numbers, trained in fp32 by Adam with a cosine
    schedule, and that restarts run side by side.

    Score it on other trials, beside its controls: see `interchange_accuracy` and `controls`.

    Args:
        lm: the model.
        some: trials to learn from.
        site: where; a single head for q, k, v, z.
        dims: how many directions.
        within: search within the principal components of the states that hold this share of the
            variance; None: the whole space.
        training: how.
        checkpoint: a file; training that was interrupted goes on from it.

    Raises:
        PlanError: more directions than there is room for; a checkpoint of other arguments; a scope
            of several tokens.
    """
    return _fitted(lm, some, site, DAS, dims, within, training, checkpoint)


def fit_boundless(
    lm: LM,
    some: Trials,
    site: AnySite,
    *,
    within: float | None = 0.99,
    training: Training = Training(temperatures=(10.0, 0.1), penalty=0.5),
    checkpoint: Path | None = None,
) -> Subspace:
    """Return directions whose number is learned too: boundless DAS (arXiv:2305.08809).

    A soft boundary moves over the axes of the rotation while a temperature falls. The penalty pays
    for width; without it nothing keeps the whole state from being exchanged.

    Args:
        lm: the model.
        some: trials to learn from.
        site: where.
        within: as in `fit_das`.
        training: how.
        checkpoint: as in `fit_das`.

    Raises:
        PlanError: as in `fit_das`.
    """
    return _fitted(lm, some, site, BOUNDLESS, None, within, training, checkpoint)


def fit_mask(
    lm: LM,
    some: Trials,
    site: AnySite,
    *,
    training: Training = Training(temperatures=(1.0, 0.05), penalty=0.5),
    checkpoint: Path | None = None,
) -> Subspace:
    """Return the site's own coordinates (neurons) that carry the variable: a binary mask.

    Differential binary masking (De Cao et al. 2020, arXiv:2004.14992).

    Args:
        lm: the model.
        some: trials to learn from.
        site: where.
        training: how; the penalty pays for each coordinate.
        checkpoint: as in `fit_das`.

    Raises:
        PlanError: as in `fit_das`.
    """
    return _fitted(lm, some, site, MASK, None, None, training, checkpoint)


@dataclass(slots=True)
class _State:
    """Where a training is."""

    params: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    losses: list[Tensor] = field(default_factory=list)


def _fitted(
    lm: LM,
    some: Trials,
    site: AnySite,
    family: Family,
    dims: int | None,
    within: float | None,
    training: Training,
    checkpoint: Path | None,
) -> Subspace:
    source = states_of(lm, some.source, site, some.scope).float()
    base = states_of(lm, some.base, site, some.scope).float()
    frame = _frame(torch.cat([base, source]), within)
    m = len(frame)
    if dims is not None and not 0 < dims <= m:
        raise PlanError(
            f"{dims} directions were asked for, of {m} at {site}"
            f"{'' if within is None else f' that hold {within:.0%} of the variance'}. Give 1 to "
            f"{m}{'' if within is None else ', or within=None for the whole space'}."
        )
    state = _start(family, m, dims or m, training, lm.device)
    identity = _identity(some, site, family, dims, within, training, lm)
    state = _resumed(state, checkpoint, identity)
    epochs = range(len(state.losses), training.epochs)
    for epoch in tqdm(epochs, family.name, delay=2, leave=False):
        state.losses.append(_epoch(lm, some, site, family, training, epoch, state, source, frame))
        if checkpoint is not None:
            _keep(state, checkpoint, identity)
    losses = torch.stack(state.losses)
    best = int(losses[-1].argmin())
    inner = family.basis([p.detach() for p in state.params], best)
    basis = (inner.to(frame) @ frame).cpu()
    return Subspace(family.name, site, some.scope, basis, losses)


def _frame(states: Tensor, within: float | None) -> Tensor:
    """Return [m, d]: the axes within which to search."""
    if within is None:
        return torch.eye(states.shape[1], device=states.device)
    centred = states.double() - states.double().mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    share = sizes.square().cumsum(0) / sizes.square().sum()
    return axes[: int((share < within).sum()) + 1].float()


def _start(family: Family, m: int, k: int, training: Training, device: torch.device) -> _State:
    draw = torch.Generator().manual_seed(training.seed)
    params = [x.to(device) for x in family.start(training.restarts, m, k, draw)]
    zeros = [torch.zeros_like(p) for p in params]
    return _State(params, zeros, list(zeros))


def _epoch(
    lm: LM,
    some: Trials,
    site: AnySite,
    family: Family,
    training: Training,
    epoch: int,
    state: _State,
    source: Tensor,
    frame: Tensor,
) -> Tensor:
    """Run one epoch, move the parameters, and return [restart]: the mean cross-entropy."""
    draw = torch.Generator().manual_seed(1_000_003 * training.seed + epoch)
    batches = torch.randperm(len(some), generator=draw).split(training.batch_size)
    total = torch.zeros(training.restarts)
    for k, numbers in enumerate(batches):
        done = epoch * len(batches) + k
        share = done / max(1, training.epochs * len(batches) - 1)
        first, last = training.temperatures
        temperature = first * (last / first) ** share
        params = [p.detach().requires_grad_() for p in state.params]
        with torch.enable_grad():
            loss = _loss(lm, some, site, family, params, numbers, source, frame, temperature)
            whole = loss.sum() + training.penalty * family.penalty(params, temperature).sum()
            slopes = torch.autograd.grad(whole, params)
        rate = 0.5 * training.learning_rate * (1 + torch.cos(torch.tensor(torch.pi * share)).item())
        _adam(state, params, slopes, rate, done + 1)
        total = total + loss.detach().cpu() * len(numbers)
    return total / len(some)


def _adam(
    state: _State, params: Sequence[Tensor], slopes: Sequence[Tensor], rate: float, step: int
) -> None:
    """Move the state by one step of Adam (arXiv:1412.6980): elementwise, so restarts are apart."""
    state.first = [0.9 * a + 0.1 * g for a, g in zip(state.first, slopes, strict=True)]
    state.second = [0.999 * b + 0.001 * g * g for b, g in zip(state.second, slopes, strict=True)]
    moved = zip(params, state.first, state.second, strict=True)
    state.params = [
        p.detach() - rate * (a / (1 - 0.9**step)) / ((b / (1 - 0.999**step)).sqrt() + 1e-8)
        for p, a, b in moved
    ]


def _loss(
    lm: LM,
    some: Trials,
    site: AnySite,
    family: Family,
    params: Sequence[Tensor],
    numbers: Tensor,
    source: Tensor,
    frame: Tensor,
    temperature: float,
) -> Tensor:
    """Return [restart]: the mean cross-entropy of the expected answers after the exchange."""
    n, restarts = len(numbers), len(params[0])
    theirs = source[numbers.to(source.device)]
    expected = torch.tensor(some.expected)
    among = None if some.among is None else torch.tensor(some.among)

    def exchange(h: Tensor, step: Step) -> Tensor:
        rows = step.rows % n
        change = (theirs[rows][:, None] - h.float()) @ frame.mT
        # [restart * n, position, m], rows of a restart together.
        split = change.unflatten(0, (restarts, n)).flatten(1, 2)
        part = family.exchanged(params, split, temperature) @ frame
        return h + part.unflatten(1, (n, -1)).flatten(0, 1).to(h.dtype)

    def metric(logits: Tensor, batch: Batch) -> Tensor:
        right = expected[batch.rows].to(logits.device)
        if among is None:
            return torch.nn.functional.cross_entropy(logits.float(), right, reduction="none")
        few = logits[:, among.to(logits.device)].float()
        at = (among[None] == right.cpu()[:, None]).int().argmax(1).to(logits.device)
        return torch.nn.functional.cross_entropy(few, at, reduction="none")

    plan = [Custom(site, exchange, some.scope)]
    values, _ = run_rows(lm, some.base, numbers.repeat(restarts), plan, metric)
    return values.unflatten(0, (restarts, n)).mean(1)


def _identity(
    some: Trials,
    site: AnySite,
    family: Family,
    dims: int | None,
    within: float | None,
    training: Training,
    lm: LM,
) -> str:
    told = (some, str(site), family.name, dims, within, replace(training, epochs=0), repr(lm))
    return sha256(repr(told).encode()).hexdigest()


def _keep(state: _State, path: Path, identity: str) -> None:
    parts = {"params": state.params, "first": state.first, "second": state.second}
    tensors = {f"{name}.{k}": x.cpu() for name, xs in parts.items() for k, x in enumerate(xs)}
    facts = {"identity": identity, "n": len(state.params)}
    tensors["losses"] = torch.stack(state.losses)
    write_atomically(tensors, path, {"facts": json.dumps(facts)})


def _resumed(state: _State, path: Path | None, identity: str) -> _State:
    """Return where an interrupted training was, if there is one.

    Raises:
        PlanError: the file is of other trials, another site or other settings.
    """
    if path is None or not path.exists():
        return state
    with safe_open(path, "pt") as file:
        facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        if facts.get("identity") != identity:
            raise PlanError(
                f"{path} is the checkpoint of a training with other trials, site or settings; to "
                "go on from it would mix the two. Give another file, or delete this one."
            )
        found = {
            name: [file.get_tensor(f"{name}.{k}").to(state.params[0].device)
                   for k in range(facts["n"])]
            for name in ("params", "first", "second")
        }  # fmt: skip
        losses = list(file.get_tensor("losses"))
    return _State(found["params"], found["first"], found["second"], losses)
