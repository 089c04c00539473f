"""The same on a GPU: compiled decode, steered and idle, and the sweeps, on a large model's shape.

The model has the shape of Llama 3.1 8B and random weights, in bf16: speed does not depend on what
the weights are, and nothing has to be downloaded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, StaticCache

import steer
from benchmarks.errors import BenchmarkError
from benchmarks.peers.bare import bare_twin, hooks_present
from benchmarks.result import Outcome
from benchmarks.speed import maps, path
from benchmarks.speed.harness import Pair, near, timed_outcome
from benchmarks.speed.inputs import (
    DECODED,
    block,
    decoding,
    directions,
    same_tokens,
    token_batch,
)
from benchmarks.stats import Number
from benchmarks.task import Options
from steer.models.tiny_tokenizer import tiny_tokenizer
from steer.passes import cache_of_generate

CONTROLS = ("bare_over_bare_idle", "bare_over_bare_edit")
SWEEP_CONTROLS = ("path_bare_over_bare", "heatmap_bare_over_bare")
PROMPT_TOKENS = 32
N_BLOCKS = 32


@dataclass(frozen=True, slots=True)
class Compiler:
    """How the steered passes are compiled."""

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = "reduce-overhead"
    """With which transformers compiles its own generation as well."""


@torch.no_grad()
def measure_gpu(lm: steer.LM, options: Options) -> Outcome:
    """Time compiled decode and two sweeps on a random Llama 3.1 8B; `--limit` is its blocks.

    The model of the command line says on which device only: give --device cuda. In every
    X_over_bare and bare_over_bare, bare is transformers' compiled generation with a static cache
    that is kept from call to call, as a session keeps its own: by itself generate makes a new one,
    for which CUDA graphs are recorded again (edit_decode_over_fresh). Tokens per second are of
    whole calls, the prompt's pass included. heatmap_diff_over_range is the largest difference of
    the maps as a share of what they span: with random weights that is little, and bf16 is coarse.

    Raises:
        BenchmarkError: the device is no GPU.
    """
    if lm.device.type != "cuda":
        raise BenchmarkError(
            f"speed_gpu was started on {lm.device}. It times CUDA graphs and an 8B model, for "
            "which a processor says nothing. Run it where there is a GPU: --device cuda."
        )
    large = random_model(llama_config(options.limit or N_BLOCKS), lm.device)
    timed = replace(options, limit=None)
    parts = {
        "decode": measure_decode(large, timed, Compiler()),
        "path": path.measure_path(large, timed),
        "heatmap": maps.measure_heatmap(large, timed),
    }
    found = joined(parts)
    low, high = parts["heatmap"].tables["range_of_the_map"]
    apart = parts["heatmap"].numbers["max_abs_diff"].value or 0.0
    share = {"heatmap_diff_over_range": Number(apart / max(high - low, 1e-9))}
    return replace(found, numbers={**found.numbers, **share})


def llama_config(n_blocks: int) -> LlamaConfig:
    """Return the shape of Llama 3.1 8B, which has 32 blocks, with so many of them."""
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=n_blocks,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def random_model(config: LlamaConfig, device: torch.device) -> steer.LM:
    """Return an LM of a shape, bf16, with seeded random weights, made on the device."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        # Not .to(bfloat16): that would round the rotary frequencies too, as no loader does.
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return steer.wrap(model.eval(), tiny_tokenizer())


@torch.no_grad()
def measure_decode(lm: steer.LM, options: Options, compiler: Compiler) -> Outcome:
    """Time a compiled generation with one Add, and with nothing, against transformers' own.

    Idle: lm.model with no plan and no session, against a model that was never wrapped. Edit: one
    Add at the middle block in a compiled session, its receipt included. recompiled counts graphs
    made when the strength and the vector changed.
    """
    prompt = token_batch(lm, 1, PROMPT_TOKENS, seed=1)
    twin, second = bare_twin(lm.model), bare_twin(lm.model)
    bares = Bares(
        plain(lm, twin, prompt),
        plain(lm, second, prompt),
        plain(lm, twin, prompt, fresh_cache=True),
    )
    idle = _idle(lm, prompt, bares, options)
    edit = _edit(lm, prompt, bares, options, compiler)
    return Outcome(
        {**idle.numbers, **edit.numbers},
        {**idle.controls, **edit.controls},
        {"idle": idle.tables, "edit": edit.tables},
        edit.specs,
    )


@dataclass(frozen=True, slots=True)
class Bares:
    """Transformers' own generation: of one bare model, of another, and with a new cache each."""

    bare: Callable[[], Tensor]
    other: Callable[[], Tensor]
    fresh: Callable[[], Tensor]


def _idle(lm: steer.LM, prompt: Tensor, bares: Bares, options: Options) -> Outcome:
    own, n = plain(lm, lm.model, prompt), near(options)
    return timed_outcome(
        {
            "idle_decode_over_bare": Pair(own, bares.bare, n),
            "bare_over_bare_idle": Pair(bares.other, bares.bare, n),
        },
        options,
        device=lm.device,
        controls=CONTROLS[:1],
        facts={
            "hooks_present": Number(float(hooks_present(lm.model))),
            "idle_same_tokens": Number(same_tokens(own(), bares.bare())),
            "kept_same_tokens_as_fresh": Number(same_tokens(bares.bare(), bares.fresh())),
        },
        tables={},
        specs={},
    )


def _edit(
    lm: steer.LM, prompt: Tensor, bares: Bares, options: Options, compiler: Compiler
) -> Outcome:
    rows, pad = prompt.tolist(), lm.tokenizer.pad_token_id or 0
    site = steer.Site(block(lm, 15), "resid_post")
    deltas = directions(lm, 3, length=lm.norm(site, rows), seed=2)
    plans = [[steer.Add(site, deltas[at], (1.0, 0.5, 2.0)[at])] for at in range(3)]
    asked = {"max_new_tokens": DECODED, "pad_token_id": pad}
    sizes = {"batch": 1, "tokens": PROMPT_TOKENS + DECODED}
    with steer.compiled(lm, [site], **sizes, backend=compiler.backend, mode=compiler.mode) as fast:

        def generated(plan: Sequence[steer.Add]) -> list[list[int]]:
            out = fast.generate(rows, plan, **asked, eos_token_id=None)
            assert out.receipt.fired
            return out.tokens

        by_session = generated(plans[0])
        generated(plans[0])
        before = counters["stats"]["unique_graphs"]
        for plan in plans[1:]:
            generated(plan)
        recompiled = counters["stats"]["unique_graphs"] - before
        n = near(options)
        found = timed_outcome(
            {
                "edit_decode_over_bare": Pair(lambda: generated(plans[0]), bares.bare, n),
                "edit_decode_over_fresh": Pair(lambda: generated(plans[0]), bares.fresh, n),
                "bare_over_bare_edit": Pair(bares.other, bares.bare, n),
            },
            options,
            device=lm.device,
            controls=CONTROLS[1:],
            facts={"recompiled": Number(float(recompiled))},
            tables={},
            specs={"plan": repr(plans[0]), "prompt": [1, PROMPT_TOKENS], **decoding(lm)},
        )
    eager = lm.generate(rows, plans[0], **asked, eos_token_id=None).tokens
    seconds = found.tables["median_seconds"]["edit_decode_over_bare"]
    facts = {
        "edit_same_tokens_as_eager": Number(
            same_tokens(torch.tensor(by_session), torch.tensor(eager))
        ),
        "tokens_per_second": Number(DECODED / seconds["top"]),
        "tokens_per_second_bare": Number(DECODED / seconds["bottom"]),
    }
    return replace(found, numbers={**found.numbers, **facts})


def plain(
    lm: steer.LM, model: PreTrainedModel, ids: Tensor, *, fresh_cache: bool = False
) -> Callable[[], Tensor]:
    """Return transformers' own generation with a static cache, which it compiles on a GPU.

    The cache is kept and reset from call to call, or made anew as generate does by itself.
    """
    asked = decoding(lm)
    kept = StaticCache(model.config, max_cache_len=ids.shape[1] + DECODED)

    def run() -> Tensor:
        if fresh_cache:
            cached: dict[str, Any] = {"cache_implementation": "static"}
        else:
            kept.reset()
            cached = {cache_of_generate(model): kept}
        out = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), **asked, **cached
        )
        assert isinstance(out, Tensor)
        return out[:, ids.shape[1] :]

    return run


def joined(parts: Mapping[str, Outcome]) -> Outcome:
    """Return outcomes as one; all but those of `decode` carry the name of their part."""

    def named(part: str, name: str) -> str:
        return name if part == "decode" else f"{part}_{name}"

    return Outcome(
        {named(p, k): v for p, one in parts.items() for k, v in one.numbers.items()},
        {named(p, k): v for p, one in parts.items() for k, v in one.controls.items()},
        {part: one.tables for part, one in parts.items()},
        {part: one.specs for part, one in parts.items()},
    )
