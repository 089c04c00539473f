"""The check at load: does the model do what its layout says?

One short forward pass, read through the registry, then identities of the residual stream. The
modules are called again on what was read, so weights, adapters and quantisation are the model's
own. Nothing is hooked, written or drawn at random here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steer.errors import SteerError, UnsupportedModel
from steer.models.attention import pattern, rotated
from steer.models.frame import REMEDY
from steer.models.heads import head_fault
from steer.models.layout import Layout, Tap
from steer.sites import Site

Read = Callable[[Sequence[Site]], Mapping[Site, Tensor]]
"""Runs one short pass (2 rows, 4 to 8 tokens, no padding, cache off, eval) and returns the sites.

It must copy what it reads at once: Falcon's blocks add into the MLP's output in place.
"""

_EXACT = 4.0
"""Sums: this many units of the dtype's rounding, relative to the largest term of the token."""
_CALLED = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""A module called again on the same input: relative to the token's largest entry."""
_MIXED = 2e-2
"""z against the recomputed pattern times v: kernels differ in TF32 and in half precision."""


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """One pass that was read, with what is needed to explain it."""

    model: nn.Module
    layout: Layout
    values: Mapping[Site, Tensor]

    def has(self, component: str, layer: int | None) -> bool:
        """Return whether this site was read."""
        return Site(layer, component) in self.values

    def value(self, component: str, layer: int | None) -> Tensor:
        """Return what was read at a site, on one device in fp32."""
        return self.values[Site(layer, component)]

    def tap(self, component: str, layer: int | None) -> Tap:
        """Return where the site lies."""
        return self.layout.tap(Site(layer, component))

    def call(self, path: str, *inputs: Tensor) -> Tensor:
        """Call one of the model's own modules on what was read."""
        module = self.model.get_submodule(path)
        out = module(*inputs)
        return out if isinstance(out, Tensor) else out[0]


def verify_layout(model: nn.Module, layout: Layout, read: Read) -> None:
    """Check on one short pass that every tap of a layout means what its component says.

    At the first, the middle and the last block, and at one block of every special kind: shapes;
    resid_post = resid_pre + attn_out + mlp_out; resid_mid = resid_pre + attn_out; z through the
    output projection = attn_out; mlp_post through its projection = mlp_out (each through the post
    norm where there is one); q, mlp_pre and router are computed from the stream that the layout
    says they read; z of the first two tokens mixes v head by head, and is the pattern of q and k
    times v where the family's attention is known. Over all blocks: one's
    resid_post is the next one's resid_pre. Outside: embed, ln_final and logits.

    The model must be in eval mode for the read, or dropout breaks the identities.

    Raises:
        UnsupportedModel: something does not hold; the message has the site and the numbers.
    """
    try:
        values = read(_wanted(layout))
    except (AttributeError, LookupError, RuntimeError, SteerError, TypeError) as error:
        # A wrong path or view fails in torch while it is read; a model out of memory is no such.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UnsupportedModel(
            f"The sites of {layout.name} ({layout.family}) could not be read in one short pass: "
            f"{type(error).__name__}: {error}. A layout that cannot be read cannot be checked. "
            f"{REMEDY}"
        ) from error
    faults: list[str] = []
    try:
        with torch.no_grad():
            for fault in _faults(_Pass(model, layout, values)):
                faults.append(fault)  # one by one: those before an exception are kept
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        faults.append(f"{type(error).__name__}: {error}")
    if faults:
        raise UnsupportedModel(
            f"The layout of {layout.name} ({layout.family}) does not describe the model: "
            f"{'; '.join(faults[:4])}. Reading or writing there would not be what its name says. "
            f"{REMEDY}"
        )


def checked_layers(layout: Layout) -> list[int]:
    """Return the blocks that the check looks into: ends, middle, and each special kind once."""
    last = layout.n_layers - 1
    layers = {0, last // 2, last}
    kinds: dict[str, int] = {}
    for layer, own in layout.special.items():
        kinds.setdefault(repr(sorted(own)), layer)
    plain = (layer for layer in range(layout.n_layers) if layer not in layout.special)
    return sorted(layers | set(kinds.values()) | {next(plain, 0)})


def _wanted(layout: Layout) -> list[Site]:
    """Return the sites to read: streams of every block, all components of the checked ones."""
    sites = [
        Site(layer, component)
        for layer in range(layout.n_layers)
        for component in ("resid_pre", "resid_post")
    ]
    sites += [
        Site(None, component)
        for component in ("embed", "ln_final", "logits")
        if component in layout.taps
    ]
    for layer in checked_layers(layout):
        own = {**layout.taps, **layout.special.get(layer, {})}
        sites += [
            Site(layer, component)
            for component, tap in own.items()
            if component not in ("embed", "ln_final", "logits", "pattern")
            and not isinstance(tap, str)
        ]
    return sorted(set(sites))


def _faults(found: _Pass) -> Iterator[str]:
    """Yield every identity that does not hold, outermost first."""
    early = [*_shape_faults(found), *_finite_faults(found)]
    yield from early
    if early:  # the identities below would only repeat it, less clearly
        return
    yield from _chain_faults(found)
    for layer in checked_layers(found.layout):
        yield from _sum_faults(found, layer)
        yield from _projection_faults(found, layer)
        yield from _read_faults(found, layer)
        yield from _head_faults(found, layer)
    yield from _unembed_faults(found)


def _shape_faults(found: _Pass) -> Iterator[str]:
    """Yield the sites whose shape is not [batch, pos, (head,) width]."""
    layout = found.layout
    batch, pos = found.value("resid_pre", 0).shape[:2]
    for site, value in found.values.items():
        heads = {
            "q": layout.n_heads,
            "k": layout.n_kv_heads,
            "v": layout.n_kv_heads,
            "z": layout.n_heads,
        }.get(site.component)
        width = value.shape[-1] if site.component == "router" else layout.width(site)
        expected = (batch, pos, width) if heads is None else (batch, pos, heads, width)
        if tuple(value.shape) != expected:
            yield f"{site} has shape {tuple(value.shape)}, not {expected}"


def _finite_faults(found: _Pass) -> Iterator[str]:
    """Yield the first site that is not finite: no identity can be told then."""
    for site, value in sorted(found.values.items()):
        if not bool(value.isfinite().all()):
            yield f"{site} is not finite in {value.dtype}: load the model in a wider dtype"
            return


def _difference(name: str, left: Tensor, right: Tensor, *terms: Tensor, exact: bool) -> str | None:
    """Return a sentence with the numbers when two tensors differ, else None.

    The error of each token is taken relative to its own largest term: the first token of many
    models is a hundred times larger than the rest and would hide them.
    """
    coarse = max((left.dtype, right.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    left, right = left.float(), right.float().to(left.device)
    if left.shape != right.shape:
        return f"{name}: shapes {tuple(left.shape)} and {tuple(right.shape)}"
    size = torch.stack([t.float().abs().amax(-1).to(left.device) for t in (left, right, *terms)])
    error = (left - right).abs().amax(-1) / size.amax(0).clamp_min(1e-12)
    worst = float(error.max())
    limit = _EXACT * torch.finfo(coarse).eps if exact else _CALLED.get(coarse, 6e-2)
    if worst <= limit:
        return None
    return f"{name}: the two sides differ by {worst:.2g} of their size ({limit:.2g} is rounding)"


def _chain_faults(found: _Pass) -> Iterator[str]:
    """Yield where a block does not start from the stream that the one before left."""
    layout = found.layout
    pairs = [
        (Site(layer, "resid_post"), Site(layer + 1, "resid_pre"))
        for layer in range(layout.n_layers - 1)
    ]
    if "embed" in layout.taps:
        pairs.insert(0, (Site.embed(), Site(0, "resid_pre")))
    for left, right in pairs:
        values = found.values[left], found.values[right]
        fault = _difference(f"{left} = {right}", *values, exact=True)
        if fault:
            yield fault


def _sum_faults(found: _Pass, layer: int) -> Iterator[str]:
    """Yield where the stream is not the sum of what was added to it."""
    layout = found.layout
    if not found.has("attn_out", layer):
        return
    norms = [path.format(layer=layer) for path in layout.sum_norms or ()]
    pre, attn = found.value("resid_pre", layer), found.value("attn_out", layer)
    mid = pre + attn
    if norms:
        mid = found.call(norms[0], mid)
    if found.has("resid_mid", layer):
        name = f"{Site(layer, 'resid_mid')} = resid_pre + attn_out"
        value = found.value("resid_mid", layer)
        fault = _difference(name, value, mid, pre, attn, exact=not norms)
        if fault:
            yield fault
    if not found.has("mlp_out", layer):
        return
    mlp = found.value("mlp_out", layer)
    post = mid + mlp
    if norms:
        post = found.call(norms[1], post)
    name = f"{Site(layer, 'resid_post')} = resid_pre + attn_out + mlp_out"
    value = found.value("resid_post", layer)
    fault = _difference(name, value, post, pre, attn, mlp, exact=not norms)
    if fault:
        yield fault


def _projection_faults(found: _Pass, layer: int) -> Iterator[str]:
    """Yield where z or mlp_post, through their projection, is not what is added."""
    for inner, outer in (("z", "attn_out"), ("mlp_post", "mlp_out")):
        if not (found.has(inner, layer) and found.has(outer, layer)):
            continue
        first, last = found.tap(inner, layer), found.tap(outer, layer)
        value = found.value(inner, layer)
        value = value.flatten(-2) if inner == "z" else value
        result = found.call(first.path, value)
        # A post norm or a dropout lies between the projection and the stream; a parent does not.
        if first.path != last.path and not first.path.startswith(f"{last.path}."):
            result = found.call(last.path, result)
        result = last.view.get(result)
        name = f"{Site(layer, inner)} through {first.path} = {outer}"
        fault = _difference(name, found.value(outer, layer), result, exact=False)
        if fault:
            yield fault


def _head_faults(found: _Pass, layer: int) -> Iterator[str]:
    """Yield where z is not v mixed head by head, or not by the pattern that q and k make."""
    if not all(found.has(component, layer) for component in ("v", "z")):
        return
    v, z = found.value("v", layer), found.value("z", layer)
    fault = head_fault(v, z)
    if fault:
        yield f"{Site(layer, 'z')} is not a mix of v: {fault}"
    facts = found.layout.attention
    if fault or facts is None or not all(found.has(name, layer) for name in ("q", "k")):
        return
    positions = torch.arange(z.shape[1], device=z.device)[None]
    q, k = found.value("q", layer), found.value("k", layer)
    q, k = rotated(found.model, facts, layer, q, k, positions)
    shared = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
    errors = []
    # Fused kernels keep scores in fp32, eager ones in the model's dtype: either may be in use.
    for dtype in (torch.float32, q.dtype):
        weights = pattern(
            facts, layer, q, k, query_positions=positions, key_positions=positions, dtype=dtype
        )
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, shared)
        error = (z - mixed).float().abs().amax(-1) / shared.float().abs().amax((1, 3))[:, None]
        # Where scores reach thousands one rounding of them moves a token's weights by half, so in
        # half precision a kernel may differ in some tokens and heads; wrong q or k differs in most.
        errors.append(float(error.max() if z.dtype == torch.float32 else error.median()))
    if min(errors) > _MIXED:
        yield (
            f"{Site(layer, 'z')} = pattern of q and k, times v: the two sides differ by "
            f"{min(errors):.2g} of their size ({_MIXED:.2g} is rounding)"
        )


def _read_faults(found: _Pass, layer: int) -> Iterator[str]:
    """Yield the components that are not computed from the stream that the layout says."""
    for component, (stream, norm) in found.layout.reads.items():
        if not (found.has(component, layer) and found.has(stream, layer)):
            continue
        if component == "mlp_out" and found.has("mlp_post", layer):
            continue  # a dense block among mixtures: its tap is a projection, checked as such
        tap, path = found.tap(component, layer), norm.format(layer=layer)
        value = found.value(stream, layer)
        normed = found.call(path, value) if path else value
        if component == "router":
            result = _linear(found.model.get_submodule(tap.path), normed)
        else:
            result = found.call(tap.path, normed)
        name = f"{Site(layer, component)} = {tap.path}({path or 'the bare'} {stream})"
        wanted = found.value(component, layer)
        fault = _difference(name, wanted, tap.view.get(result), exact=False)
        if fault:
            yield fault


def _linear(router: nn.Module, value: Tensor) -> Tensor:
    """Return a router's logits from its weight: its own call may want more than the stream."""
    weight, bias = router.get_parameter("weight"), getattr(router, "bias", None)
    value = value.to(weight)
    return nn.functional.linear(value, weight, bias if isinstance(bias, Tensor) else None)


def _unembed_faults(found: _Pass) -> Iterator[str]:
    """Yield where the final norm or the logits do not follow from the stream."""
    layout, last = found.layout, found.layout.n_layers - 1
    stream = found.value("resid_post", last)
    if "ln_final" in layout.taps:
        tap = layout.tap(Site.ln_final())
        result = found.call(tap.path, stream)
        wanted = found.value("ln_final", None)
        name = f"ln_final = {tap.path}({Site(last)})"
        fault = _difference(name, wanted, result, exact=False)
        if fault:
            yield fault
        stream = wanted
    if "logits" not in layout.taps or layout.unembed is None:
        return
    unembed = layout.unembed
    projected = found.call(unembed.before, stream) if unembed.before else stream
    logits = found.call(unembed.path, projected) * unembed.scale
    if unembed.softcap:
        logits = unembed.softcap * torch.tanh(logits / unembed.softcap)
    fault = _difference(
        f"logits = {unembed.path}(ln_final)", found.value("logits", None), logits, exact=False
    )
    if fault:
        yield fault
