"""Speed: what steering, reading and sweeping cost, against the bare model, by hand, and by others.

`--limit` is the number of timed pairs. Run these alone on the machine: each result holds a control
of something against itself, which says how far from 1 a ratio may be by chance. In every
X_over_ours ours is the denominator, so more is better.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import steer
from benchmarks.pipelines import inspecting
from benchmarks.reading import speed as probes
from benchmarks.result import Outcome, Result
from benchmarks.speed import capture, edit, gpu, idle, maps, path, rows, scaling
from benchmarks.task import Options, Task, task

PAPER = "no paper: engineering"
TARGETS: Mapping[str, Mapping[str, float]] = {
    "speed_idle": {"forward_over_bare": 1.02, "decode_over_bare": 1.02},
    "speed_edit": {
        "forward_over_bare": 1.05,
        "decode_over_bare": 1.05,
        "lens_over_ours": 1.0,
        "nnsight_over_ours": 1.0,
    },
    "speed_capture": {"all_over_bare": 1.05, "block8_over_bare": 0.35},
    "speed_rows": {"adds_over_batch": 1.10, "mixed_over_batch": 1.25},
    "speed_path": {"loop_over_ours_block26": 12, "loop_over_ours_block15": 18},
    "speed_heatmap": {"lens_over_ours": 40, "loop_over_ours": 25, "batched_over_ours": 9},
    "speed_heads": {"lens_over_ours": 10, "loop_over_ours": 8, "batched_over_ours": 4},
    "speed_gpu": {
        "edit_decode_over_bare": 1.02,
        "idle_decode_over_bare": 1.0,
        "path_loop_over_ours_block26": 12,
        "path_loop_over_ours_block15": 18,
        "heatmap_lens_over_ours": 40,
        "heatmap_loop_over_ours": 25,
        "heatmap_batched_over_ours": 9,
    },
    "speed_probes": {"sklearn_over_ours": 10},
    "speed_inspect": {
        **{f"generate_over_inspect_{n}": 0.8 for n in inspecting.LENGTHS},
        **{f"hf_over_inspect_{n}": 3 for n in inspecting.LENGTHS},
        **{f"hf_over_inspect_examples_{n}": 3 for n in inspecting.LENGTHS[:2]},
        "arms_over_one": 1.3,
    },
    "speed_scaling": {"wall_over_predicted": 1.25, "budget_peak_ratio": 1.1},
}
"""By task and number: the ratio that is to be kept (at most, or in X_over_ours at least)."""


def _draw(result: Result, path: Path) -> list[Path]:
    # matplotlib is in the extra `plots`: numbers can be had without it.
    from benchmarks.speed.draw import draw_ratios

    return draw_ratios(result, path, TARGETS.get(result.task, {}))


def _draw_scaling(result: Result, path: Path) -> list[Path]:
    # As above.
    from benchmarks.speed.draw import draw_scaling

    return draw_scaling(result, path, TARGETS.get(result.task, {}))


def _speed_task(
    question: str,
    measure: Callable[[steer.LM, Options], Outcome],
    controls: tuple[str, ...],
    draw: Callable[[Result, Path], list[Path]] = _draw,
) -> Task:
    return Task(question, measure, controls, draw)


_declare = partial(task, paper=PAPER)


@_declare(cost="smollm2-135m: about 30 min on 2 cores")
def speed_idle() -> Task:
    """No plan: nothing should be there to cost anything."""
    return _speed_task(
        "What does a loaded LM cost the model while no plan is attached?",
        idle.measure_idle,
        idle.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 12 min on 2 cores")
def speed_edit() -> Task:
    """One vector added at one block."""
    return _speed_task(
        "What does one added vector cost, with its receipt, against a hook written by hand, "
        "TransformerLens and nnsight?",
        edit.measure_edit,
        edit.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 2 min on 2 cores")
def speed_capture() -> Task:
    """The states after every block, and after one."""
    return _speed_task(
        "What does reading the stream cost, against a plain pass?",
        capture.measure_capture,
        capture.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 5 min on 2 cores")
def speed_rows() -> Task:
    """A plan of its own for each of 64 rows."""
    return _speed_task(
        "What do 64 different plans in one batch cost, against the same batch unsteered?",
        rows.measure_rows,
        rows.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 15 min on 2 cores")
def speed_path() -> Task:
    """Points of a path, written at the last token of many prompts."""
    return _speed_task(
        "How much faster than whole passes is a sweep along a path?",
        path.measure_path,
        path.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 20 min on 2 cores")
def speed_heatmap() -> Task:
    """Patching the stream: blocks by positions."""
    return _speed_task(
        "How much faster than others is a map of patched states?",
        maps.measure_heatmap,
        maps.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 11 min on 2 cores")
def speed_heads() -> Task:
    """Patching head outputs: blocks by heads."""
    return _speed_task(
        "How much faster than others is a map of patched heads?",
        maps.measure_heads,
        maps.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 5 min on 2 cores")
def speed_scaling() -> Task:
    """Time against arms, tokens and the block of the edit."""
    return _speed_task(
        "Does a sweep take the time of the token-blocks that it runs, and keep to its memory?",
        scaling.measure_scaling,
        scaling.CONTROLS,
        _draw_scaling,
    )


@_declare(cost="one GPU with 80 GB (--model tiny-llama --device cuda): not measured yet")
def speed_gpu() -> Task:
    """Compiled decode and the sweeps, on the shape of an 8B model."""
    return _speed_task(
        "What does steering cost a compiled 8B model on a GPU, and what does a sweep save there?",
        gpu.measure_gpu,
        (*gpu.CONTROLS, *gpu.SWEEP_CONTROLS),
    )


@_declare(cost="smollm2-135m: about 12 min on 2 cores")
def speed_probes() -> Task:
    """All blocks fitted at once."""
    return _speed_task(
        "How much faster is one stacked fit than a loop over scikit-learn, at the same optimum?",
        probes.measure_speed_probes,
        probes.CONTROLS,
    )


@_declare(cost="smollm2-135m: about 15 min on 2 cores")
def speed_inspect() -> Task:
    """Plans inside Inspect."""
    return _speed_task(
        "What does an evaluation in Inspect cost over the bare calls, against its own provider, "
        "and with eight plans as arms?",
        inspecting.measure_inspect,
        inspecting.CONTROLS,
    )
