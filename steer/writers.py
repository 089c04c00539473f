"""What writes to the residual stream, and how an affine map is put into its weights.

The writers are the embedding tables, the output projection of attention and the last projection of
the MLP. Everything is looked up first (`writer_of`, `tables_of`, `switches_of`) and then written
into a copy of the model that the caller owns. Where a map may go is decided in `steer.folding`.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from steer.errors import SiteNotFound, UnsupportedModel
from steer.folding import AffineMap
from steer.models.layout import Layout, Scaled, Whole
from steer.sites import Site

INNER: Mapping[str, str] = {"attn_out": "z", "mlp_out": "mlp_post"}
"""Which component the projection that writes a component reads."""
REMEDY = "Attach the plan instead: lm.attached(plan)."
_NEAR = 64
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Writer:
    """The projection that writes at a site; the stream gets `factor` times its output."""

    site: Site
    path: str
    factor: float


@dataclass(frozen=True, slots=True)
class Tables:
    """The embedding tables; the stream starts as factor * token row, plus a position's row."""

    tokens: str
    positions: str | None
    factor: float


@dataclass(frozen=True, slots=True)
class Written:
    """What was changed in a copy."""

    names: tuple[str, ...] = ()
    """Tensors that differ or are new."""
    switches: tuple[str, ...] = ()
    """Entries of the config that were set to True, so that a bias exists."""
    untied: bool = False
    """The unembedding is a tensor of its own."""


# -- looking up --------------------------------------------------------------------------------


def is_dense(weight: Tensor) -> bool:
    """Return whether a weight is nothing but its values."""
    return type(weight) in (Tensor, nn.Parameter) and weight.dtype in _FLOATS


def writer_of(model: nn.Module, layout: Layout, site: Site) -> Writer:
    """Return the one projection whose output is what is added at a site.

    Raises:
        UnsupportedModel: there is none, or something that is not linear lies behind it.
    """
    who = f"{layout.name} ({layout.family})"
    outer = layout.tap(site)
    try:
        inner = layout.tap(replace(site, component=INNER[site.component])).path
    except SiteNotFound as missing:
        raise UnsupportedModel(
            f"{who} has no single projection that writes {site}: {missing} {REMEDY}"
        ) from None
    apart = inner != outer.path and not inner.startswith(f"{outer.path}.")
    between = model.get_submodule(outer.path) if apart else None
    if not isinstance(between, nn.Dropout | nn.Identity | None):
        raise UnsupportedModel(
            f"{who} has a norm behind its writer: {inner} goes through {outer.path} "
            f"({type(between).__name__}) before it is added at {site}. A norm rescales whatever "
            f"its projection writes, so no weights of it are this map. {REMEDY}"
        )
    module = model.get_submodule(inner)
    if type(module) not in (nn.Linear, Conv1D) or not isinstance(outer.view, Whole | Scaled):
        raise UnsupportedModel(
            f"{who} writes {site} by {inner}, a {type(module).__name__} and no plain projection, "
            f"so its weight alone does not say what it writes. {REMEDY}"
        )
    _refuse_shared(model, inner)
    return Writer(site, inner, outer.view.factor if isinstance(outer.view, Scaled) else 1.0)


def _refuse_shared(model: nn.Module, path: str) -> None:
    weight = model.get_submodule(path).weight
    every = model.named_parameters(remove_duplicate=False)
    names = [name for name, other in every if other is weight]
    if len(names) > 1:
        raise UnsupportedModel(
            f"{' and '.join(names)} are one weight. A change for one place would be a change for "
            f"all of them. {REMEDY}"
        )


def tables_of(
    model: nn.Module, layout: Layout, rows: Sequence[Sequence[int]], entering: Tensor
) -> Tables:
    """Return the tables whose rows add up to what enters block 0.

    Args:
        model: the model.
        layout: its layout.
        rows: token ids [row, pos].
        entering: what enters block 0 for them.

    Raises:
        UnsupportedModel: it is not such a sum.
    """
    tokens: Any = cast(PreTrainedModel, model).get_input_embeddings()
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not path.startswith(f"{layout.blocks}.")
    }
    path = next((path for path, module in found.items() if module is tokens), None)
    others = [path for path, module in found.items() if module is not tokens]
    refusal = UnsupportedModel(
        f"What enters block 0 of {layout.name} ({layout.family}) is not the sum of rows of "
        f"{' and '.join(found) or 'a table'}: it is projected or normed, so a change of the rows "
        f"is another one of the stream. {REMEDY}"
    )
    picked, goal = exact(tokens.weight[torch.tensor(rows)]), exact(entering)
    if path is None or len(others) > 1 or picked.shape != goal.shape:
        raise refusal
    # Gemma and Granite multiply the rows; with positions beside them nobody does.
    factor = 1.0 if others else float((goal * picked).sum() / picked.square().sum())
    rest = (goal - factor * picked).flatten(0, 1)
    if others:
        # The rows are short: their positions are near the start, whatever offset there is.
        rest = rest[:, None] - exact(found[others[0]].weight[:_NEAR])
    error = rest.abs().amax(-1)
    error = error.amin(-1) if others else error
    limit = 8 * torch.finfo(entering.dtype).eps * float(goal.abs().max())
    if not bool((error <= limit).all()):
        raise refusal
    return Tables(path, others[0] if others else None, factor)


def switches_of(model: PreTrainedModel) -> dict[str, frozenset[str]]:
    """Return the entries of a config that give linear modules biases, with the biases' names."""
    have = set(model.state_dict())
    text = model.config.get_text_config(decoder=True)
    found = {}
    for name in sorted(
        key for key, value in vars(text).items() if "bias" in key and value is False
    ):
        config = deepcopy(model.config)
        setattr(config.get_text_config(decoder=True), name, True)
        new = frozenset(set(skeleton(model, config).state_dict()) - have)
        owners = [model.get_submodule(key.rpartition(".")[0]) for key in new]
        if all(key.endswith(".bias") for key in new) and {type(o) for o in owners} == {nn.Linear}:
            found[name] = new
    return found


def skeleton(model: PreTrainedModel, config: object) -> PreTrainedModel:
    """Return a model without values, as from_pretrained would build it from a config."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return type(model)(deepcopy(cast(Any, config)))


def exact(values: object) -> Tensor:
    """Return values in fp64 on the host."""
    return cast(Tensor, values).detach().cpu().double()


# -- writing into a copy -----------------------------------------------------------------------


def write_projection(
    copy: PreTrainedModel, writer: Writer, change: AffineMap, done: Written
) -> Written:
    """Put a map of what a projection writes into its weight and bias.

    Raises:
        UnsupportedModel: the map shifts, and an ordinary checkpoint has no bias there.
    """
    module: Any = copy.get_submodule(writer.path)
    if bool(change.shift.any()) and module.bias is None:
        done = _switched(copy, writer, done)
    names = []
    if not change.only_shifts:
        # Conv1D keeps [inputs, outputs].
        turned = isinstance(module, Conv1D)
        new = change.linear(exact(module.weight) if turned else exact(module.weight).T)
        _set(module.weight, new if turned else new.T)
        names.append(f"{writer.path}.weight")
    if module.bias is not None:
        _set(module.bias, change.linear(exact(module.bias)) + change.shift / writer.factor)
        names.append(f"{writer.path}.bias")
    return replace(done, names=(*done.names, *names))


def _switched(copy: PreTrainedModel, writer: Writer, done: Written) -> Written:
    """Give the copy zero biases, as its config can, one of them at the writer."""
    switches = switches_of(copy)
    name = next((name for name, new in switches.items() if f"{writer.path}.bias" in new), None)
    if name is None:
        tried = ", ".join(switches) or "it has no entry for biases that is off"
        raise UnsupportedModel(
            f"{writer.path} has no bias to take the shift at {writer.site}, and the config of "
            f"{type(copy).__name__} cannot give it one ({tried}), so no ordinary checkpoint could "
            f"hold it. {REMEDY}"
        )
    for key in switches[name]:
        owner: Any = copy.get_submodule(key.rpartition(".")[0])
        zeros = owner.weight.detach().new_zeros(owner.weight.shape[0])
        owner.bias = nn.Parameter(zeros, requires_grad=owner.weight.requires_grad)
    setattr(copy.config.get_text_config(decoder=True), name, True)
    new = (*done.names, *sorted(switches[name]))
    return replace(done, names=new, switches=(*done.switches, name))


def write_tables(
    copy: PreTrainedModel, tables: Tables, change: AffineMap, done: Written
) -> Written:
    """Put a map of what enters block 0 into the embedding tables, and untie the unembedding."""
    tokens: Any = copy.get_submodule(tables.tokens)
    output: Any = copy.get_output_embeddings()
    untied = False
    if output is not None and output.weight is tokens.weight:
        untied, held = True, output.weight
        output.weight = nn.Parameter(held.detach().clone(), requires_grad=held.requires_grad)
        for config in (copy.config, copy.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False
        copy.all_tied_weights_keys = copy.get_expanded_tied_weights_keys(all_submodels=True)
    # The map goes through the factor: factor * (M r + c / factor) = M (factor * r) + c.
    _set(tokens.weight, change.linear(exact(tokens.weight)) + change.shift / tables.factor)
    names = [f"{tables.tokens}.weight"]
    if tables.positions is not None and not change.only_shifts:
        positions: Any = copy.get_submodule(tables.positions)
        _set(positions.weight, change.linear(exact(positions.weight)))
        names.append(f"{tables.positions}.weight")
    return replace(done, names=(*done.names, *names), untied=untied)


def _set(parameter: Tensor, values: Tensor) -> None:
    """Write into a parameter of the copy."""
    with torch.no_grad():
        parameter.copy_(values)
