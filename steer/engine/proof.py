"""Whether a model can be started in the middle: tried on it once, before the first sweep.

What cannot is not guessed: a recurrent state, keys shared between blocks, or a forward of its own
kind shows as a difference to whole passes, or as an error inside the model. Then sweeps run whole
passes and say so.
"""

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from steer.engine.memory import Memory
from steer.engine.work import Job, Task
from steer.errors import SteerError
from steer.interventions.arithmetic import Relative
from steer.interventions.linear import Add
from steer.registry import HookRegistry
from steer.scopes import at
from steer.sites import Site


@dataclass(frozen=True, slots=True)
class Proof:
    """What the trial found."""

    why_not: str
    """Empty where rows may begin in the middle."""
    narrowed: frozenset[str] = frozenset()
    """Which arguments of a block hold one entry per row."""
    one_token: bool = True
    """Below the first start one token may run, not one row."""
    packs: bool = False
    """Rows may be single tokens that are given their own past."""


_PROOFS: "WeakKeyDictionary[HookRegistry, Proof]" = WeakKeyDictionary()
FULL_PRECISION = 1e-4
HALF_PRECISION = 5e-2
"""Of the largest logit: half precision rounds a batch of another size differently."""


def proof_of(registry: HookRegistry) -> Proof:
    """Return whether rows may begin in the middle; tried at the first call."""
    if registry not in _PROOFS:
        _PROOFS[registry] = _tried(registry)
    return _PROOFS[registry]


def _tried(registry: HookRegistry) -> Proof:
    known = _known_reason(registry)
    if known:
        return Proof(known)
    task = _trial(registry)
    try:
        whole = _logits(Job(replace(task, whole="the trial")))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return Proof(_failed(error))
    why = ""
    for one_token in (True, False):
        try:
            job = Job(replace(task, one_token=one_token))
            mine = _logits(job)
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            why = _failed(error)
            continue
        gap = _gap(mine, whole)
        if gap <= _allowed(task):
            found = Proof("", frozenset(job.climber.found), one_token)
            return replace(found, packs=_packs(task, found, whole))
        why = (
            "Whole passes: started in the middle, this model differs from whole passes by "
            f"{gap:.2g} of its largest logit, so its blocks share something besides the stream."
        )
    return Proof(why)


def _packs(task: Task, found: Proof, whole: torch.Tensor) -> bool:
    job = Job(replace(task, narrowed=found.narrowed, one_token=found.one_token, packs=True))
    try:
        mine = _logits(job)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS:
        return False
    return _gap(mine, whole) <= _allowed(task)


def _gap(mine: torch.Tensor, whole: torch.Tensor) -> float:
    return float((mine - whole).abs().max() / whole.abs().max())


def _allowed(task: Task) -> float:
    dtype = next(task.registry.model.parameters()).dtype
    return FULL_PRECISION if dtype.itemsize >= 4 else HALF_PRECISION


REFUSALS = (
    SteerError,
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    AssertionError,
)
"""What a forward that cannot run on fewer rows or a foreign cache is seen to raise."""


def _failed(error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else ""
    said = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return f"Whole passes: starting this model in the middle failed ({said})."


def _known_reason(registry: HookRegistry) -> str:
    config = registry.model.config
    config = getattr(config, "text_config", None) or config
    kinds = set(getattr(config, "layer_types", None) or ())
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        return (
            f"Whole passes: blocks of kind {', '.join(sorted(strange))} keep a state of their own."
        )
    if getattr(config, "num_kv_shared_layers", 0):
        return "Whole passes: some blocks share the keys and values of others."
    if not registry.layout.n_layers or getattr(config, "is_encoder_decoder", False):
        return "Whole passes: the model is no decoder of known blocks."
    return ""


def _trial(registry: HookRegistry) -> Task:
    # Unequal prompts (a mask is needed), three starts in one pass, none at the first block (one
    # token must run below), and no two axes of one length.
    layout = registry.layout
    chooser = torch.Generator().manual_seed(0)
    top = min(layout.d_vocab, 1000)
    rows = [torch.randint(top // 2, top, (n,), generator=chooser).tolist() for n in (7, 5)]
    direction = torch.randn(layout.d_model, generator=chooser)
    sites = [
        Site(min(1, layout.n_layers - 1), "resid_pre"),
        Site(layout.n_layers // 2, "resid_post"),
        Site(layout.n_layers - 1, "resid_post"),
    ]
    arms = [[Add(site, direction, Relative(0.5), scope=at(-3))] for site in sites]
    arms.append([Add(sites[1], direction, Relative(0.5), scope=at(-2))])
    memory = Memory(layout, 4, 1 << 40)
    return Task(
        registry,
        registry.wire_arms(arms),
        len(arms),
        rows,
        at(-1) | at(-3),
        Site.logits(),
        0,
        memory,
    )


def _logits(job: Job) -> torch.Tensor:
    return job.run(lambda logits, _: logits.float().flatten(1))[0]
