"""Steering vectors made elsewhere as interventions: repeng GGUF, CAA `.pt`, lm-eval `.pt` and CSV.

Files are read as data: a pickle that would run code is refused, never loaded. Where a format's own
reader does something else than its text says, the docstring tells which of the two is followed.
"""

import csv
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from steer.errors import SiteNotFound, SpecError, did_you_mean
from steer.interop.hook_names import site_of_hook
from steer.interventions.linear import Add, Clamp
from steer.lm import LM
from steer.models.layout import Tap
from steer.scopes import ALL, OUTPUT, Scope
from steer.sites import AnySite, ModuleSite, Site

Decoder = Callable[[Mapping[str, str]], tuple[Tensor, Tensor | None]]
"""Row of an lm-eval CSV -> (decoder vector of its feature, decoder bias or None)."""

_CAA_NAME = re.compile(r"vec_layer_(?P<layer>\d+)_.+\.pt$")


def from_repeng(
    path: str | Path,
    *,
    strength: float = 1.0,
    scope: Scope = ALL,
    layers: Sequence[int] | None = None,
) -> list[Add]:
    """Return one Add per layer of a control-vector GGUF (repeng, llama.cpp).

    `direction.N` belongs to the output of block N, counted from 0, in repeng (which trains it on
    hidden_states[N + 1]) and in llama.cpp alike, so it becomes `Site(N, "resid_post")`. repeng's
    last direction was trained after the final norm but is added before it, as HuggingFace's last
    hidden state is normed; leave it out by `layers` if that matters. strength multiplies the stored
    vector, as in both. repeng's `normalize=True` is not in the file: wrap in steer.PreserveNorm.

    Raises:
        SpecError: no GGUF file, of another kind, or without directions for the asked layers.
    """
    from gguf import GGUFReader  # optional here: 0.3 s to import, and only this format needs it
    from gguf.quants import dequantize

    source = _existing(path)
    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, OSError) as reason:
        raise SpecError(
            f"{source} is not a readable GGUF file: {reason}. It may be truncated or of another "
            "format. Export it again (vector.export_gguf)."
        ) from None
    field = reader.get_field("general.architecture")
    kind = None if field is None else field.contents()
    if kind != "controlvector":
        raise SpecError(
            f"{source} is a GGUF file of architecture {kind!r}, not 'controlvector': a model, most "
            "likely. Its tensors are weights, not directions. Give the file of the control vector."
        )
    found = {
        int(tensor.name.removeprefix("direction.")): torch.from_numpy(
            dequantize(tensor.data, tensor.tensor_type).copy()
        ).flatten()
        for tensor in reader.tensors
        if re.fullmatch(r"direction\.\d+", tensor.name)
    }
    wanted = sorted(found) if layers is None else list(layers)
    missing = [layer for layer in wanted if layer not in found]
    if missing or not wanted:
        raise SpecError(
            f"{source} has no direction for layers {missing or 'at all'}: it holds "
            f"{sorted(found)}. Layers count from 0; choose among those."
        )
    return [Add(Site(n, "resid_post"), found[n], strength, scope=scope) for n in wanted]


def from_caa(
    path: str | Path,
    *,
    layer: int | None = None,
    strength: float = 1.0,
    scope: Scope = OUTPUT,
) -> Add:
    """Return the Add of a CAA vector, `vec_layer_{layer}_{model}.pt` (Rimsky et al. 2023).

    arXiv:2312.06681. The file holds one bare tensor [d_model], a raw or norm-matched mean
    difference at the output of block `layer` (from 0). Their code adds it from the end of the
    user's turn on, which is OUTPUT where the prompt ends with that turn; hence the default.

    Args:
        path: the file.
        layer: needed where the file's name does not say it.
        strength: their multiplier.
        scope: which tokens.

    Raises:
        SpecError: not a file of tensors, not one vector, or no layer to be had.
    """
    source = _existing(path)
    named = _CAA_NAME.search(source.name)
    if layer is None and named is None:
        raise SpecError(
            f"{source.name} is not named vec_layer_<layer>_<model>.pt, and the file itself does "
            "not say its layer. Give layer=."
        )
    vector = _loaded(source)
    if not isinstance(vector, Tensor) or vector.squeeze().ndim != 1:
        shape = tuple(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise SpecError(
            f"{source} holds {shape}, not one vector [d_model]. It is no CAA vector. For files of "
            "lm-eval use interop.from_lm_eval."
        )
    at = int(named["layer"]) if layer is None and named is not None else layer
    return Add(Site(at, "resid_post"), vector.squeeze(), strength, scope=scope)


def from_lm_eval(
    path: str | Path, lm: LM, *, decoder: Decoder | None = None, scope: Scope = ALL
) -> list[Add | Clamp]:
    """Return the plan of a `steered` file of lm-evaluation-harness: `.pt`, `.pth` or `.csv`.

    A `.pt` is a dict hookpoint -> {action, steering_vector, steering_coefficient, bias,
    head_index}, as their code reads it, or a list of such dicts with `hookpoint`, as their text
    says. A `.csv` names features of sparse autoencoders, whose vectors are elsewhere: `decoder`
    gives them. hookpoint is a module path below the base model ("layers.3", "h.3"); a standard one
    becomes a Site, any other a ModuleSite. `add` is h + coefficient * vector; `clamp` sets the
    coordinate of h - bias along the unit vector to the coefficient.

    Three differences from some of their releases, each in favour of their text: every hookpoint
    gets its own vector (theirs gave each the last one's), one hookpoint may have several actions,
    in order, and `weights_only` is always on.

    Raises:
        SpecError: not such a file, an unknown action, a head_index, a CSV without decoder.
        SiteNotFound: a hookpoint that the model lacks.
    """
    source = _existing(path)
    if source.suffix == ".csv":
        entries = _of_csv(source, decoder)
    elif source.suffix in (".pt", ".pth"):
        entries = _of_pickle(source)
    else:
        raise SpecError(
            f"{source.name} ends in {source.suffix!r}: a steered file is .pt, .pth or .csv. Rename "
            "it if it is one of them."
        )
    return [_action(entry, lm, f"Entry {at} of {source.name}", scope) for at, entry in entries]


Entry = Mapping[str, object]


def _of_pickle(source: Path) -> list[tuple[int, Entry]]:
    held = _loaded(source)
    if isinstance(held, Mapping):
        held = [
            {**info, "hookpoint": name} if isinstance(info, Mapping) else info
            for name, info in held.items()
        ]
    if not isinstance(held, list) or not held or not all(_is_entry(info) for info in held):
        raise SpecError(
            f"{source} holds no steering entries: a dict from hookpoint to a dict with "
            "steering_vector, or a list of such dicts. For a bare vector use interop.from_caa."
        )
    return list(enumerate(held))


def _is_entry(info: object) -> bool:
    return isinstance(info, Mapping) and isinstance(info.get("steering_vector"), Tensor)


def _of_csv(source: Path, decoder: Decoder | None) -> list[tuple[int, Entry]]:
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    needed = {"sparse_model", "hookpoint", "feature_index", "steering_coefficient"}
    if not rows or not needed <= set(rows[0]):
        raise SpecError(
            f"{source} has no rows, or lacks some of the columns {', '.join(sorted(needed))}. It "
            "is no steered file of lm-eval."
        )
    if decoder is None:
        first = rows[0]
        raise SpecError(
            f"{source} names features of sparse autoencoders (feature {first['feature_index']} of "
            f"{first['sparse_model']}), and the vectors are not in it. Give decoder=, a function "
            "from a row to (decoder vector, decoder bias or None)."
        )
    entries = []
    for at, row in enumerate(rows):
        vector, bias = decoder(row)
        entry = {**row, "steering_vector": vector, "bias": bias, "action": row.get("action")}
        entries.append((at, {**entry, "action": entry["action"] or "add"}))
    return entries


def _action(entry: Entry, lm: LM, what: str, scope: Scope) -> Add | Clamp:
    if entry.get("head_index") not in (None, ""):
        raise SpecError(
            f"{what} steers head {entry['head_index']} of {entry.get('hookpoint')}: no HuggingFace "
            "module returns a head axis, so lm-eval itself would edit something else. Write "
            "steer.Add(steer.Site(layer, 'z', head), vector)."
        )
    vector = entry["steering_vector"]
    assert isinstance(vector, Tensor)
    site = _site(str(entry.get("hookpoint") or ""), lm, what)
    try:
        amount = float(entry.get("steering_coefficient", 1.0))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise SpecError(
            f"{what} has the steering_coefficient {entry.get('steering_coefficient')!r}, which is "
            "no number. Correct the file."
        ) from None
    action = entry.get("action", "add")
    if action == "add":
        return Add(site, vector, amount, scope=scope)
    if action == "clamp":
        bias = entry.get("bias")
        offset = 0.0
        if isinstance(bias, Tensor):
            offset = float(bias.double() @ (vector.double() / vector.double().norm()))
        return Clamp(site, vector, amount + offset, scope=scope)
    known = ("add", "clamp")
    raise SpecError(
        f"{what} has the action {action!r}, which is none of {', '.join(known)}."
        f"{did_you_mean(str(action), known)} sparse_add needs the autoencoder at run time: use "
        "steer.Custom."
    )


def _site(hookpoint: str, lm: LM, what: str) -> AnySite:
    known_hook = site_of_hook(hookpoint)  # sae_lens names its sites as TransformerLens does
    if known_hook is not None and hookpoint.startswith("blocks."):
        return known_hook
    path = ".".join(part for part in (lm.model.base_model_prefix, hookpoint) if part)
    paths = [name for name, _ in lm.model.named_modules()]
    if not hookpoint or path not in paths:
        raise SiteNotFound(
            f"{what} steers {hookpoint!r}, but {lm.registry.layout.name} has no module {path!r}."
            f"{did_you_mean(path, paths)} Hookpoints are paths below the base model "
            f"({lm.model.base_model_prefix!r})."
        )
    layout = lm.registry.layout
    for component in ("resid_post", "attn_out", "mlp_out"):
        for site in (Site(layer, component) for layer in range(layout.n_layers)):
            if component in layout.taps and layout.tap(site) == Tap(path, "output"):
                return site
    return ModuleSite(path, "output")


def _existing(path: str | Path) -> Path:
    source = Path(path)
    if not source.is_file():
        raise SpecError(f"There is no file {source}. Check the path.")
    return source


def _loaded(source: Path) -> object:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as reason:
        first = str(reason).strip().splitlines()[0][:120]
        raise SpecError(
            f"{source} could not be read as tensors only: {first}. A pickle may run any code of "
            "its author when loaded, so nothing but tensors, numbers, strings, lists and dicts is "
            "let through; or it is truncated. Load it where you trust it, and save the tensors: "
            "torch.save(vector, path)."
        ) from None
