"""lm-eval's own `steered` files: a .pt dict of module path -> what is done to its output.

lm-eval 0.4.13 unpickles them (weights_only=False), which runs whatever code the file holds; here
nothing is run. An entry says add (h + coefficient * vector) or clamp (the coordinate along the
unit vector, measured from the bias, is set to the coefficient), at every token.
"""

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from steer.errors import SteerError, did_you_mean
from steer.evals.refusals import Refused
from steer.interventions.linear import Ablate, Add, Clamp
from steer.lm import LM
from steer.models.layout import Whole
from steer.protocols import Intervention
from steer.scopes import ALL
from steer.sites import AnySite, ModuleSite, Site

KEYS = frozenset({"steering_vector", "steering_coefficient", "action", "bias", "head_index"})


def read_steered(lm: LM, path: str | os.PathLike[str]) -> list[Intervention]:
    """Return the plan that a `steered` file means in a model.

    Module paths become sites where the module's output is one (`layers.3` is
    `blocks.3.resid_post`), else ModuleSite. Width is checked when the plan is attached.

    Raises:
        Refused: bad_plan, for a file that is not plain tensors, an entry that lm-eval itself could
            not run (a head_index), or a module that the model does not have.
    """
    plan: list[Intervention] = []
    for hookpoint, entry in _loaded(Path(path)).items():
        site = _site(lm, str(hookpoint))
        try:
            plan.append(_intervention(str(hookpoint), site, entry))
        except SteerError as error:
            said = str(error).removeprefix("[bad_plan] ")
            raise Refused("bad_plan", f"The entry {hookpoint!r} of {path}: {said}") from None
    lm.registry.wire(plan)
    return plan


def write_steered(lm: LM, plan: Sequence[Intervention], path: str | os.PathLike[str]) -> Path:
    """Write a plan as a `steered` file of lm-eval's, where that format can say all of it.

    It can say Add with a number for its strength, Clamp to a number, and Ablate of one direction,
    at scope ALL, once for each module, where the site is a module's whole output.

    Raises:
        Refused: bad_plan, naming the intervention and what the format lacks.
    """
    entries: dict[str, dict[str, object]] = {}
    for item in plan:
        hookpoint = _hookpoint(lm, item)
        if hookpoint in entries:
            raise _unsaid(item, f"the format keeps one action for each module, and {hookpoint} has")
        entries[hookpoint] = _entry(item)
    if not entries:
        raise Refused("bad_plan", "An empty plan has nothing to write. Give an intervention.")
    target = Path(path)
    torch.save(entries, target)
    return target


def _loaded(path: Path) -> Mapping[object, object]:
    if path.suffix not in (".pt", ".pth"):
        raise Refused(
            "bad_plan",
            f"{path} is no .pt file. A CSV names features of sparse autoencoders that lm-eval "
            "would download and read by other packages. Take the vector out of the autoencoder "
            "and write steer.Add(site, vector, coefficient).",
        )
    try:
        # No unpickling of anything but tensors and plain values.
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(
            "bad_plan",
            f"{path} could not be read as plain tensors: {first} A pickle that holds anything "
            "else runs code when it is loaded. Write the file again with tensors, numbers and "
            "strings only.",
        ) from None
    if not isinstance(found, Mapping) or not found:
        raise Refused(
            "bad_plan",
            f"{path} holds a {type(found).__name__}, not a dict of module paths with an entry "
            "each. It is not a file for lm-eval's `steered` model.",
        )
    return found


def _intervention(hookpoint: str, site: AnySite, entry: object) -> Intervention:
    if not isinstance(entry, Mapping):
        raise Refused("bad_plan", f"it is a {type(entry).__name__}, not a dict.")
    unknown = sorted(set(map(str, entry)) - KEYS)
    if unknown:
        near = did_you_mean(unknown[0], KEYS)
        raise Refused("bad_plan", f"it has the key {unknown[0]!r}, which lm-eval ignores.{near}")
    if entry.get("head_index") is not None:
        raise Refused(
            "bad_plan",
            f"it asks for the head {entry['head_index']}. lm-eval 0.4.13 indexes a fourth axis, "
            f"which the output of {hookpoint} [batch, pos, width] does not have (and its clamp of "
            "a head compares whole tensors by ==), so it cannot run there either. Write an "
            "intervention at a head: steer.Site(layer, 'z', head).",
        )
    vector = _vector(entry.get("steering_vector"), "steering_vector")
    coefficient = _number(entry.get("steering_coefficient", 1.0))
    bias = entry.get("bias")
    action = entry.get("action")
    if action == "add" and bias is not None:
        raise Refused("bad_plan", "it adds and has a bias, which lm-eval allows for clamp alone.")
    if action == "add":
        return Add(site, vector, coefficient)
    if action == "clamp":
        # (h - b) + (c - (h - b).v) v + b = h + (c + b.v - h.v) v
        unit = vector.double() / vector.double().norm()
        shift = 0.0 if bias is None else float(_vector(bias, "bias").double() @ unit)
        return Clamp(site, vector, coefficient + shift)
    raise Refused("bad_plan", f"its action is {action!r}; lm-eval knows 'add' and 'clamp'.")


def _vector(value: object, name: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != value.shape[-1:].numel():
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Refused("bad_plan", f"its {name} is {shape}, not one vector [width].")
    return value.detach().reshape(-1).clone()


def _number(value: object) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("bad_plan", f"its steering_coefficient is {value!r}, not a number.")
    return float(value)


def _site(lm: LM, hookpoint: str) -> AnySite:
    """Return the site of a module path, which lm-eval counts from the model without its head."""
    path = f"{_root(lm)}{hookpoint}"
    names = {name for name, _ in lm.model.named_modules()}
    if path not in names:
        near = did_you_mean(path, names)
        raise Refused("bad_plan", f"{lm.provenance.name} has no module {path}.{near}")
    return _sites(lm).get(path, ModuleSite(path, "output"))


def _sites(lm: LM) -> dict[str, Site]:
    """Return the sites that are a module's whole output, by the module's path."""
    layout = lm.registry.layout
    found: dict[str, Site] = {}
    for component in layout.taps:
        for site in lm.sites(component):
            tap = layout.tap(site)
            whole = tap.side == "output" and isinstance(tap.view, Whole) and tap.base is None
            if whole and not tap.flat and tap.read_only is None:
                found.setdefault(tap.path, site)
    return found


def _root(lm: LM) -> str:
    base = cast("object", lm.model.base_model)
    name = next(name for name, module in lm.model.named_modules() if module is base)
    return f"{name}." if name else ""


def _hookpoint(lm: LM, item: Intervention) -> str:
    tap, root = lm.registry.layout.tap(item.site), _root(lm)
    whole = isinstance(item.site, ModuleSite) or _sites(lm).get(tap.path) == item.site
    if tap.side != "output" or not whole or not tap.path.startswith(root) or tap.path == "":
        raise _unsaid(item, f"the format writes to the output of a module below {root or 'it'}")
    return tap.path.removeprefix(root)


def _entry(item: Intervention) -> dict[str, object]:
    if not isinstance(item, Add | Clamp | Ablate):
        raise _unsaid(item, f"the format knows add and clamp, and no {type(item).__name__}")
    if item.scope != ALL:
        raise _unsaid(item, "the format acts at every token")
    if not isinstance(item.strength, float):
        raise _unsaid(item, "the format knows one number for the strength")
    if isinstance(item, Add):
        return _filled("add", item.direction, item.strength)
    if item.strength != 1.0:
        raise _unsaid(item, "the format sets a coordinate outright (strength 1)")
    if isinstance(item, Ablate):
        if len(item.basis) != 1:
            raise _unsaid(item, f"the format clamps one direction, and it has {len(item.basis)}")
        return _filled("clamp", item.basis[0], 0.0)
    if not isinstance(item.to, float):
        raise _unsaid(item, "the format knows one target for all rows")
    return _filled("clamp", item.direction, item.to)


def _filled(action: str, vector: Tensor, coefficient: float) -> dict[str, object]:
    return {
        "steering_vector": vector.detach().cpu().clone(),
        "steering_coefficient": coefficient,
        "action": action,
        "bias": None,
        "head_index": None,
    }


def _unsaid(item: Intervention, why: str) -> Refused:
    return Refused(
        "bad_plan",
        f"{item!r} cannot be said in lm-eval's `steered` format: {why}. Written otherwise it would "
        "be another plan. Save it by steer.save and run it by steer-lm-eval.",
    )
