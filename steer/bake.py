"""Bake: write affine interventions into a copy of the weights, and export a plain checkpoint.

What is affine, and where on the stream that is exact, is said in `steer.folding`; which modules
write and how their weights change in `steer.writers`. Here: what is refused, the check of the copy
against the steered model, and the files.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from steer.errors import PlanError, SiteNotFound, SpecError, UnsupportedModel
from steer.folding import STREAM, WRITERS, AffineMap, Point, affine_of, fold
from steer.interventions.plans import Plan, Rows, as_items
from steer.lm import LM
from steer.models import LoadedModel, Provenance, weight_hash
from steer.models.frame import model_types
from steer.models.layout import Layout
from steer.protocols import Intervention
from steer.scopes import ALL
from steer.sites import Site
from steer.spec import digest, spec_of
from steer.writers import (
    INNER,
    REMEDY,
    Written,
    is_dense,
    skeleton,
    switches_of,
    tables_of,
    write_projection,
    write_tables,
    writer_of,
)

FACTS = "baked.json"
"""The file beside the weights that says what was baked into what."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.25}
"""Of the check: how far a token's logits may be off, relative to their size. fp32 gives 1e-6; in
half precision, where rounding alone gives 0.08 (smollm2-135m in bf16), only gross faults show."""
_LENGTHS = (9, 4, 6)


def bake(lm: LM, plan: Plan, path: str | Path | None = None) -> LM:
    """Return a model whose own weights do what a plan does, and save it as a plain checkpoint.

    The copy needs no hook and none of this toolkit: `AutoModelForCausalLM.from_pretrained(path)`
    loads it. What can be baked exactly, at scope ALL and with a number as strength:

    - Add, Ablate, Clamp, Scale, Rotate, Affine and a constant Patch on what is written to the
      stream: embed, attn_out, mlp_out;
    - Add on the stream: resid_pre, resid_mid, resid_post;
    - a projection of the stream, where all that was written before is projected alike (directional
      ablation everywhere, Arditi et al. 2024, arXiv:2406.11717).

    All else is refused. A shift goes into the bias of the projection that writes last; where there
    is none, the config must have an entry for it (Llama's mlp_bias and attention_bias). A change of
    the embedding unties the unembedding. The name of the result says both. The arithmetic is fp64,
    rounded once to the dtype of the weights: exact to rounding in fp32; in bf16 and fp16 each
    changed weight keeps a relative error of up to 4e-3 and 5e-4. The copy is compared with the
    steered model on a short pass, and refused if it differs.

    Args:
        lm: the model; it is untouched. The copy takes as much memory again.
        plan: interventions, applied in order.
        path: a new or empty folder for weights, config, tokenizer and `baked.json` (what was baked
            into what); None saves nothing. It appears whole or not at all.

    Raises:
        PlanError: an intervention that no weights can do, or a plan is attached.
        UnsupportedModel: packed weights, adapters, experts, a norm behind the writer, no bias.
        SpecError: the folder is not empty, or has no parent; the plan cannot be saved.

    >>> import steer, torch
    >>> lm = steer.load("tiny-gpt2")
    >>> baked = bake(lm, [steer.Add(steer.Site(2), torch.ones(lm.d_model), 0.5)])
    >>> baked.provenance.name
    'tiny-gpt2 baked with plan ...'
    """
    target = None if path is None else _free(Path(path))
    model = _bakeable(lm)
    items = _items(plan, lm.registry.layout)
    pieces = [(item, affine_of(item, lm.d_model)) for item in items]
    rows = _check_rows(lm)
    # Before the folding: what does not fit the model at all is refused here, as on attaching.
    steered = lm.logits(rows, items, scope=ALL)
    maps = fold(pieces, _points(lm, model))
    copy = _copied(model)
    done = _written(lm, copy, maps)
    _refuse_unloadable(copy, done)
    baked = _opened(lm, copy, _name(lm, items, done))
    gap = _compared(baked, baked.logits(rows, scope=ALL), steered)
    if target is not None:
        _export(baked, target, _facts(lm, baked, items, done, gap))
    return baked


def _bakeable(lm: LM) -> PreTrainedModel:
    """Return the model, if its weights are all there is to it."""
    model, name = lm.model, lm.provenance.name
    if lm.registry.live:
        raise PlanError(
            f"A plan is attached to {name}, so it cannot be baked into: the copy would carry the "
            "hooks, and what it is compared with would be steered twice. Detach first."
        )
    if not lm.registry.layout.taps:
        raise UnsupportedModel(
            f"{name} was wrapped with modules_only=True, so what writes to its stream is not "
            f"known. Wrap it without, or describe its layout. {REMEDY}"
        )
    adapted = getattr(model, "_hf_peft_config_loaded", False)
    if adapted or type(model).__module__.partition(".")[0] == "peft":
        raise UnsupportedModel(
            f"{name} has PEFT adapters, which write beside the weights, so a checkpoint of the "
            "weights would lack them. Merge first: steer.wrap(model.merge_and_unload(), tokenizer)."
        )
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModel(
            f"{name} is a {type(model).__name__} and no model of transformers, so there is no "
            f"ordinary checkpoint of it. {REMEDY}"
        )
    if model.training:
        raise UnsupportedModel(
            f"{name} is in training mode, in which dropout makes two passes differ, so the copy "
            "could not be checked. Call lm.model.eval() first."
        )
    _refuse_packed(model, name)
    return model


def _refuse_packed(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that a quantiser packed; a trace of one on dense weights does not matter."""
    traced = any(_traces(model))
    odd = [
        f"{key} ({type(weight).__name__}, {weight.dtype})"
        for key, weight in model.state_dict(keep_vars=True).items()
        if not is_dense(weight) and (traced or isinstance(weight, nn.Parameter))
    ]
    if odd:
        raise UnsupportedModel(
            f"{name} has {len(odd)} packed weights (the first is {odd[0]}). What is baked would be "
            "rounded to their few levels, so it would not be what the plan does. Load the model "
            "dense (without a quantization_config, or dequantised), or attach the plan: "
            "lm.attached(plan)."
        )


def _traces(model: PreTrainedModel) -> tuple[bool, bool]:
    """Return whether the model and its config say that a quantiser was there."""
    config = getattr(model.config, "quantization_config", None)
    return vars(model).get("hf_quantizer") is not None, config is not None


def _items(plan: Plan, layout: Layout) -> list[Intervention]:
    """Return the interventions, if all of them are at sites that weights stand for."""
    if isinstance(plan, Rows):
        raise PlanError(
            f"{plan!r} cannot be baked: it differs from row to row, and weights are the same for "
            "every row. Bake one of its plans, or attach it: lm.attached(plan)."
        )
    items = list(as_items(plan))
    for item in items:
        site = item.site
        if not isinstance(site, Site) or site.component not in (*WRITERS, *STREAM):
            raise PlanError(
                f"{item!r} cannot be baked: {site} is neither the stream ({', '.join(STREAM)}) nor "
                f"what is written to it ({', '.join(WRITERS)}). {REMEDY}"
            )
        if layout.sum_norms and site.component in STREAM:
            raise UnsupportedModel(
                f"{item!r} cannot be baked: {layout.name} ({layout.family}) has a norm after each "
                f"sum of its stream, so no writer adds to {site} what it writes. {REMEDY}"
            )
    return items


def _points(lm: LM, model: PreTrainedModel) -> list[Point]:
    """Return the states of the stream in the order of a pass, with what writes each."""
    layout = lm.registry.layout
    # Where it is not known that attention and MLP read the same state they are taken in turn,
    # which asks for more and so stays exact.
    parallel = any(name != "q" and read[0] == "resid_pre" for name, read in layout.reads.items())
    able = _biased(model) if parallel else frozenset()
    points = [Point((Site.embed(), Site(0, "resid_pre")), (Site.embed(),))]
    for layer in range(layout.n_layers):
        attn, mlp = Site(layer, "attn_out"), Site(layer, "mlp_out")
        after = [Site(layer, "resid_post")]
        after += [Site(layer + 1, "resid_pre")] if layer + 1 < layout.n_layers else []
        if parallel:
            # The last takes the shift: the MLP, unless only attention can.
            both = sorted((attn, mlp), key=lambda writer: _bias(layout, writer) in able)
            points.append(Point(tuple(after), tuple(both)))
            continue
        points.append(Point((Site(layer, "resid_mid"),), (attn,)))
        points.append(Point(tuple(after), (mlp,)))
    return points


def _bias(layout: Layout, writer: Site) -> str:
    """Return the name that the bias of a writer has or would have, '' where there is no writer."""
    try:
        return f"{layout.tap(replace(writer, component=INNER[writer.component])).path}.bias"
    except SiteNotFound:
        return ""


def _biased(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the biases that the model has or its config could give it."""
    return frozenset(model.state_dict()).union(*switches_of(model).values())


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy without the traces of a quantiser, for which save_pretrained would refuse."""
    copy = deepcopy(model)
    for trace in ("hf_quantizer", "is_quantized", "quantization_method"):
        if trace in vars(copy):
            delattr(copy, trace)
    if hasattr(copy.config, "quantization_config"):
        delattr(copy.config, "quantization_config")
    return copy


def _written(lm: LM, copy: PreTrainedModel, maps: Mapping[Site, AffineMap]) -> Written:
    """Write every map into the copy."""
    layout, done = lm.registry.layout, Written()
    for site, change in maps.items():
        if site == Site.embed():
            rows = [row[: min(_LENGTHS)] for row in _check_rows(lm)]
            entering = lm.capture(rows, [site], scope=ALL)[site]
            tables = tables_of(lm.model, layout, rows, entering)
            done = write_tables(copy, tables, change, done)
        else:
            done = write_projection(copy, writer_of(lm.model, layout, site), change, done)
    return replace(done, names=tuple(dict.fromkeys(done.names)))


# -- the check ---------------------------------------------------------------------------------


def _check_rows(lm: LM) -> list[list[int]]:
    """Return rows of seeded random tokens, of unequal length."""
    draw = torch.Generator().manual_seed(0)
    tables: Any = cast(PreTrainedModel, lm.model).get_input_embeddings()
    n_ids = min(lm.registry.layout.d_vocab, tables.weight.shape[0])
    return [torch.randint(n_ids, (n,), generator=draw).tolist() for n in _LENGTHS]


def _refuse_unloadable(copy: PreTrainedModel, done: Written) -> None:
    """Refuse a copy that from_pretrained would not build as it is."""
    built = skeleton(copy, copy.config)
    lost = sorted(set(done.names) - set(built.state_dict()))
    output, tokens = (
        cast(Any, built.get_output_embeddings()),
        cast(Any, built.get_input_embeddings()),
    )
    if lost or (done.untied and output.weight is tokens.weight):
        what = f"it has no {', '.join(lost)}" if lost else "its unembedding is its embedding"
        raise UnsupportedModel(
            f"{type(copy).__name__} cannot hold what was baked: {what}, whatever its config says, "
            f"so loading would lose it. {REMEDY}"
        )


def _opened(lm: LM, copy: PreTrainedModel, name: str) -> LM:
    layout, origin = replace(lm.registry.layout, name=name), lm.provenance
    provenance = Provenance(
        name, "live", origin.dtype, quantisation=origin.quantisation, licence=origin.licence
    )
    # The copy has the modules of the original, so its layout too, whoever described that.
    tables = {kind: lambda _: layout for kind in model_types(copy)}
    return LM(LoadedModel(copy, lm.tokenizer, provenance), tables)


def _compared(baked: LM, found: Tensor, wanted: Tensor) -> float:
    """Return by how much the logits of the worst token differ, relative to their size.

    Raises:
        UnsupportedModel: it is more than rounding.
    """
    error = (found.double() - wanted.double()).norm(dim=-1)
    # Rows are of unequal length: behind the shorter ones there is nothing to compare.
    real = wanted.abs().amax(-1) > 0
    gap = float((error / wanted.double().norm(dim=-1))[real].max())
    limit = TOLERANCE.get(baked.dtype, 1e-4)
    if not gap <= limit:
        raise UnsupportedModel(
            f"{baked.provenance.name} does not do what the plan does: a token's logits differ by "
            f"{gap:.2g} of their size, and {limit:.2g} is rounding in {baked.dtype}. Something "
            f"beside its writers acts on the stream, or the dtype is too coarse. {REMEDY}"
        )
    return gap


# -- names and files ---------------------------------------------------------------------------


def _name(lm: LM, items: Sequence[Intervention], done: Written) -> str:
    parts = [f"{lm.provenance.name} baked with plan {_digest(items)[:12]}"]
    parts += [f"{name} switched on" for name in done.switches]
    parts += ["unembedding untied"] if done.untied else []
    return ", ".join(parts)


def _digest(items: Sequence[Intervention]) -> str:
    return digest(spec_of(list(items)))


def _facts(
    lm: LM, baked: LM, items: Sequence[Intervention], done: Written, gap: float
) -> dict[str, object]:
    """Return what `baked.json` says."""
    origin = lm.provenance
    return {
        "format": "manifold-steer.baked",
        "version": 1,
        "base": {
            "name": origin.name,
            "source": origin.source,
            "revision": origin.revision,
            "dtype": origin.dtype,
            "quantisation": origin.quantisation,
            "licence": origin.licence,
            "weights": weight_hash(lm.model),
        },
        "plan": {"digest": _digest(items), "interventions": [repr(item) for item in items]},
        "weights": weight_hash(baked.model),
        "written": list(done.names),
        "switched_on": list(done.switches),
        "unembedding_untied": done.untied,
        "largest_relative_difference": gap,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }


def _free(path: Path) -> Path:
    """Return the absolute path of a folder that can be made.

    Raises:
        SpecError: something is there, or no folder to make it in.
    """
    target = path.expanduser().resolve()
    held = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    what = f"it holds {len(held)} files ({held[0]} is one)" if held else None
    what = "it is a file" if target.is_file() else what
    what = f"{target.parent} is no folder" if not target.parent.is_dir() else what
    if what is not None:
        raise SpecError(
            f"Cannot bake into {target}: {what}. A checkpoint is a folder of its own. Give a new "
            "folder in one that exists."
        )
    return target


def _export(baked: LM, target: Path, facts: Mapping[str, object]) -> None:
    """Write the checkpoint beside its place, and move it there when it is whole."""
    work = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    work.mkdir()
    try:
        cast(PreTrainedModel, baked.model).save_pretrained(work)
        baked.tokenizer.save_pretrained(work)
        (work / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if target.is_dir():  # empty, as `_free` found it; not every system renames onto it
            target.rmdir()
        os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
