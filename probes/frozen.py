"""What frozen probes that are not linear share: checks of inputs and specs, one site of a stack."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from probes.display import short
from probes.errors import ProbeError
from probes.linear import Origin


def settled(value: Tensor) -> Tensor:
    """Return a tensor without history, contiguous, in float32 or float64.

    Raises:
        ProbeError: entries that are not finite.
    """
    if not bool(torch.isfinite(value).all()):
        raise ProbeError(
            "The weights of a probe are not finite. They would turn every score into NaN. Refit it."
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    return value.detach().to(dtype).contiguous()


def rows_of(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ weight' + bias as [..., row]; with a site axis in weight, x is [site, ..., d]."""
    dtype = torch.promote_types(x.dtype, weight.dtype)
    flat = x.to(dtype).reshape(*weight.shape[:-2], -1, weight.shape[-1])
    out = flat @ weight.to(dtype).mT
    out = out if bias is None else out + bias.to(dtype).unsqueeze(-2)
    return out.reshape(*x.shape[:-1], weight.shape[-2])


def check_input(x: Tensor, d_model: int, n_sites: int | None, device: torch.device) -> None:
    """Refuse what torch would refuse later with less to say.

    Raises:
        ProbeError: another width or number of sites, integers, another device.
    """
    if not x.is_floating_point() or x.shape[-1:] != (d_model,):
        raise ProbeError(
            f"The input is {list(x.shape)} {x.dtype}, but this probe reads {d_model} "
            "floating-point numbers along the last axis. It was fitted at a site of that width. "
            "Give activations of the same site."
        )
    if n_sites is not None and (x.ndim < 2 or x.shape[0] != n_sites):
        raise ProbeError(
            f"The input is {list(x.shape)}, but this is a stack of {n_sites} probes. Each needs "
            "the activations of its own site. Give [site, ..., d], or take one probe by its index."
        )
    if x.device != device:
        raise ProbeError(
            f"The input is on {x.device} and the probe on {device}. Moving it at every call would "
            "be slow. Move it once with probe.to(x.device)."
        )


def of_site(
    origin: Origin | None, diagnostics: Mapping[str, object], n_sites: int | None, index: int
) -> tuple[Origin | None, dict[str, object]]:
    """Return origin and diagnostics of one site; lists as long as the stack are per site.

    Raises:
        ProbeError: the probe is not stacked.
    """
    if n_sites is None:
        raise ProbeError(
            "This probe reads a single site. Only a fit on [site, sample, d] can be indexed. "
            "Use it as it is."
        )
    one = origin[index] if isinstance(origin, Sequence) else origin
    return one, {
        key: item[index] if isinstance(item, list) and len(item) == n_sites else item
        for key, item in diagnostics.items()
    }


def spec_fields(spec: Mapping[str, object], kind: str, names: set[str]) -> dict[str, object]:
    """Return the fields of a spec of this kind.

    Raises:
        ProbeError: another kind or version, a missing or an unknown field.
    """
    fields = spec.keys() - {"kind", "version"}
    if spec.get("kind") != kind or spec.get("version") != 1 or fields != names:
        raise ProbeError(
            f"The spec says kind {spec.get('kind')!r}, version {spec.get('version')!r}, fields "
            f"{sorted(fields)}; this is {kind}, version 1, fields {sorted(names)}. It was saved "
            "from something else, or by another release. Load it with the one that saved it."
        )
    return {name: spec[name] for name in fields}


def described(
    name: str, what: str, d_model: int, n_sites: int | None, diagnostics: Mapping[str, object]
) -> str:
    """Return the text of a probe: what it reads and how well it did."""
    sites = "" if n_sites is None else f", {n_sites} sites"
    notes = "".join(f", {key}={short(item)}" for key, item in diagnostics.items())
    return f"{name}({what}, d={d_model}{sites}{notes})"
