"""Small models of any architecture, and a reader of sites that is independent of the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

if TYPE_CHECKING:  # pytest must install its shape checks before anything imports steer
    from steer.models.layout import Layout
    from steer.sites import Site

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def small() -> Callable[..., nn.Module]:
    """Return `small(model_type, **config)`: a seeded random model of that architecture."""
    return build_small


def build_small(
    model_type: str,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    **config: Any,
) -> nn.Module:
    made = CONFIG_MAPPING[model_type](**{**SIZES, **config})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(made, attn_implementation=attention)
        for name, parameter in model.named_parameters():
            # Fresh weights are so small that heads attend alike and wrong sums still look right;
            # norms of exactly 1 would hide a norm that is skipped or applied twice.
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                parameter.data = noise * parameter.shape[-1] ** -0.5
            elif "norm" in name or "ln_" in name:
                parameter.data += 0.2 * noise
            else:
                parameter.data += 0.1 * noise
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def reader() -> Callable[[nn.Module, Layout], Callable[[Sequence[Site]], Mapping[Site, Tensor]]]:
    """Return `reader(model, layout)`, which gives the `read` that verify_layout asks for."""
    return make_reader


def make_reader(
    model: nn.Module, layout: Layout
) -> Callable[[Sequence[Site]], Mapping[Site, Tensor]]:
    ids = torch.tensor([[5, 17, 3, 40, 8, 21], [60, 11, 33, 9, 44, 7]])

    def read(sites: Sequence[Site]) -> dict[Site, Tensor]:
        taps = {site: layout.tap(site) for site in sites}
        paths = {(tap.path, tap.side) for tap in taps.values()}
        paths |= {(tap.base, "input") for tap in taps.values() if tap.base is not None}
        raw: dict[tuple[str, str], Tensor] = {}
        handles = []
        for path, side in sorted(paths):
            module, key = model.get_submodule(path), (path, side)

            def before(_m: nn.Module, args: tuple, kwargs: dict, key: tuple = key) -> None:
                raw[key] = (args[0] if args else kwargs["hidden_states"]).detach().clone()

            def after(_m: nn.Module, _args: tuple, out: Any, key: tuple = key) -> None:
                out = out.logits if hasattr(out, "logits") else out
                raw[key] = (out if isinstance(out, Tensor) else out[0]).detach().clone()

            if side == "input":
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(after))
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        values = {}
        for site, tap in taps.items():
            whole = raw[tap.path, tap.side]
            whole = whole.unflatten(0, ids.shape) if tap.flat and whole.dim() < 3 else whole
            part = tap.view.get(whole)
            values[site] = part if tap.base is None else raw[tap.base, "input"] + part
        return values

    return read
