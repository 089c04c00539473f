"""Every architecture: started in the middle, or run whole, and in both cases the right numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steer
from steer import Site
from steer.engine.proof import proof_of
from steer.models.layouts import resolve
from steer.registry import HookRegistry
from tests.steer.models.conftest import build_small
from tests.steer.models.test_discover import FOUND, TABLED

WHOLE = {"bloom"}
"""Its slopes come as [row * head, 1, key], so that rows cannot be told from heads."""
CONFIGS: dict[str, dict[str, Any]] = {**{name: c for name, (c, _) in FOUND.items()}, **TABLED}
for _latent in ("deepseek_v2", "deepseek_v3"):  # has no groups of heads to repeat keys for
    CONFIGS[_latent] = {**CONFIGS[_latent], "num_key_value_heads": 4}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_sweep_equals_whole_passes_on_every_architecture(model_type: str):
    model: Any = build_small(model_type, **CONFIGS[model_type]).eval()
    lm = steer.wrap(model, steer.load("tiny-llama").tokenizer)
    prompts = [[5, 17, 3, 40, 8, 21, 2], [60, 11, 33, 9]]
    direction = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    arms = [
        [steer.Add(Site(layer), direction, steer.Relative(0.5), scope=scope)]
        for layer in range(lm.n_layers)
        for scope in (steer.LAST, steer.at(1), steer.ALL)
    ]
    sweep = steer.sweep(lm, prompts, arms, lambda logits, _: logits)
    for at, arm in enumerate(arms):
        whole = lm.logits(prompts, arm)
        limit = 1e-4 * float(whole.abs().max())
        torch.testing.assert_close(sweep.values[at], whole, rtol=0, atol=limit)
    assert bool(sweep.cost().note) == (model_type in WHOLE)
    assert (sweep.cost().over_minimum < 1.1) == (model_type not in WHOLE)
    assert sweep.executed == sweep.cost().token_blocks
    assert all(("Whole passes" in str(r)) == (model_type in WHOLE) for r in sweep.receipts)


def test_what_is_shared_around_the_stream_is_found_out():
    model = build_small("llama", num_key_value_heads=2).eval()
    layout = resolve(model)
    assert not proof_of(HookRegistry(model, layout)).why_not
    memory: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Tensor) -> None:
        memory[:] = [out]

    def use(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        return out + 0.5 * memory[0][: len(out), -out.shape[1] :].mean()

    layers: Any = model.get_submodule("model.layers")
    handles = [layers[0].register_forward_hook(keep), layers[2].register_forward_hook(use)]
    why = proof_of(HookRegistry(model, layout)).why_not
    assert why.startswith("Whole passes: started in the middle, this model differs")
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"num_kv_shared_layers": 2}, "share the keys and values"),
        ({"is_encoder_decoder": True}, "no decoder"),
    ],
)
def test_known_reasons_are_named_without_a_trial(
    config: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
):
    model = build_small("llama", num_key_value_heads=2).eval()
    registry = HookRegistry(model, resolve(model))
    for name, value in config.items():
        monkeypatch.setattr(model.config, name, value, raising=False)
    calls: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    assert reason in proof_of(registry).why_not
    handle.remove()
    assert not calls


Loader = Callable[[str], "steer.LM"]


def test_a_sliding_window_shorter_than_the_prompt_is_kept(tiny: Loader):
    lm = tiny("tiny-gemma3")
    window = lm.model.config.sliding_window
    assert window is not None
    prompt = torch.randint(5, 300, (1, window + 9), generator=torch.Generator().manual_seed(1))
    direction = torch.ones(lm.d_model)
    arms = [[steer.Add(Site(1), direction, 3.0, scope=steer.at(-k))] for k in (1, 2, 5, window + 3)]
    sweep = steer.sweep(lm, prompt.tolist(), arms, lambda logits, _: logits)
    assert not sweep.cost().note
    for at, arm in enumerate(arms):
        whole = lm.logits(prompt.tolist(), arm)
        torch.testing.assert_close(sweep.values[at], whole, rtol=0, atol=1e-5)
