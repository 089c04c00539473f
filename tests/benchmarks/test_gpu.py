"""The GPU benchmark: what it measures, on a tiny model without a GPU, and whole with one."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.peers.bare import bare_twin, hooks_present
from benchmarks.result import Outcome
from benchmarks.speed import gpu
from benchmarks.stats import Number
from benchmarks.task import REGISTRY, Options
from benchmarks.tasks import speed


@pytest.mark.slow
def test_a_compiled_decode_is_timed_steered_and_idle_and_left_as_it_was() -> None:
    lm = steer.load("tiny-llama")
    outcome = gpu.measure_decode(lm, Options(limit=1), gpu.Compiler("eager", None))
    assert set(outcome.controls) == set(gpu.CONTROLS)
    assert outcome.numbers["hooks_present"].value == 0
    assert outcome.numbers["recompiled"].value == 0
    # The same arithmetic in the same order: no greedy choice can differ.
    assert outcome.numbers["idle_same_tokens"].value == 1
    assert outcome.numbers["kept_same_tokens_as_fresh"].value == 1
    assert outcome.numbers["edit_same_tokens_as_eager"].value == 1
    assert hooks_present(lm.model) == 0
    rate, ratio = (outcome.numbers[k].value for k in ("tokens_per_second", "edit_decode_over_bare"))
    bare = outcome.numbers["tokens_per_second_bare"].value
    assert rate is not None
    assert bare is not None
    assert ratio == pytest.approx(bare / rate, rel=1e-6)  # one pair: the ratio of its two times


def test_parts_are_joined_under_their_names() -> None:
    one = Outcome({"x": Number(1.0)}, {"c": Number(2.0)}, {"t": 1}, {"s": 2})
    found = gpu.joined({"decode": one, "path": one})
    assert set(found.numbers) == {"x", "path_x"}
    assert set(found.controls) == {"c", "path_c"}
    assert found.tables == {"decode": {"t": 1}, "path": {"t": 1}}


def test_without_a_gpu_it_says_so_before_anything_is_built() -> None:
    with pytest.raises(BenchmarkError, match="--device cuda"):
        gpu.measure_gpu(steer.load("tiny-llama"), Options())


def test_every_target_is_a_number_that_the_parts_have() -> None:
    assert REGISTRY.get("speed_gpu").controls == (*gpu.CONTROLS, *gpu.SWEEP_CONTROLS)
    named = set(speed.TARGETS["speed_gpu"])
    sweeps = {f"path_{k}" for k in speed.TARGETS["speed_path"]}
    sweeps |= {f"heatmap_{k}" for k in speed.TARGETS["speed_heatmap"]}
    assert named == sweeps | {"edit_decode_over_bare", "idle_decode_over_bare"}


def test_the_shape_is_that_of_llama_8b_cut_to_its_blocks() -> None:
    whole = gpu.llama_config(32)
    assert (whole.hidden_size, whole.intermediate_size, whole.vocab_size) == (4096, 14336, 128256)
    assert (whole.num_attention_heads, whole.num_key_value_heads) == (32, 8)
    with torch.device("meta"):
        model = LlamaForCausalLM(whole)
    # 8.03e9 parameters, as the released model.
    assert sum(x.numel() for x in model.parameters()) == 8_030_261_248


def test_a_model_in_bf16_and_its_bare_twin_are_the_same_to_the_bit() -> None:
    small = LlamaConfig(
        **{**gpu.llama_config(2).to_dict(), "hidden_size": 64, "intermediate_size": 96},
    )
    small.num_attention_heads, small.num_key_value_heads, small.head_dim = 4, 2, 16
    lm = gpu.random_model(small, torch.device("cpu"))
    assert lm.dtype == torch.bfloat16
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        apart = lm.model(input_ids=ids).logits - bare_twin(lm.model)(input_ids=ids).logits
    assert float(apart.abs().max()) == 0


@pytest.mark.gpu
def test_the_whole_task_runs_on_two_blocks() -> None:
    lm = steer.load("tiny-llama", device="cuda")
    outcome = gpu.measure_gpu(lm, Options(limit=2))
    assert set(outcome.controls) >= set(gpu.CONTROLS)
    assert outcome.numbers["recompiled"].value == 0
    # bf16 kernels differ with the batch: one rounding of the largest logits.
    path_apart = outcome.numbers["path_max_abs_diff"].value
    assert path_apart is not None
    assert path_apart < 0.1
    share = outcome.numbers["heatmap_diff_over_range"].value
    assert share is not None
    assert share < 0.5
