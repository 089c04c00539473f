"""The speed tasks run, have their names, and equal their peers; how fast they are is no test."""

import gc
import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import steer
from benchmarks import cli
from benchmarks.errors import BenchmarkError
from benchmarks.peers import hooks, nnsight, sweeps, transformer_lens
from benchmarks.peers.bare import bare_twin, hooks_present
from benchmarks.result import Result
from benchmarks.speed import draw, maps, scaling
from benchmarks.speed.harness import N_FAR, N_NEAR, Pair, Timing, far, near, time_pairs, time_rounds
from benchmarks.stats import Number
from benchmarks.task import Options
from benchmarks.tasks import speed
from steer.interop import bridge_of

TOLERANCE = 1e-4
"""What the peers must agree to, in logits: fp32, other orders of summation."""
EQUAL = {"max_abs_diff"}
COUNTS = {"token_blocks", "token_blocks_minimum"}
MAP = {"lens_over_ours", "batched_over_ours", "batched_last_over_ours"}
LOOP = {"loop_over_ours", "loop_last_over_ours"}
EDIT = {"over_hook", "lens_over_ours", "nnsight_over_ours"}
OVER = {"forward_over_bare", "decode_over_bare"}
TASKS = {
    speed.speed_idle: OVER | {"hooks_present"} | EQUAL,
    speed.speed_edit: OVER | EDIT | {f"{name}_decode" for name in EDIT} | EQUAL,
    speed.speed_capture: {"all_over_bare", "block8_over_bare"} | EQUAL,
    speed.speed_rows: {"adds_over_batch", "mixed_over_batch"} | EQUAL,
    speed.speed_path: {f"{name}_{at}" for name in LOOP for at in ("block26", "block15")}
    | COUNTS
    | EQUAL,
    speed.speed_heatmap: MAP | LOOP | COUNTS | EQUAL | {"token_blocks_live_minimum"},
    speed.speed_heads: MAP | LOOP | COUNTS | EQUAL | {"token_blocks_live_minimum"},
}
SCALING = {
    *("slope_arms", "slope_tokens", "slope_block"),
    *("wall_over_predicted", "wall_over_predicted_with_logits", "budget_peak_ratio"),
}


@dataclass
class FakeClock:
    """Stands still but for what runs, and notes the order in which it ran."""

    now: float = 0.0
    ran: list[str] = field(default_factory=list)
    collecting: list[bool] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def takes(self, name, *seconds):
        left = list(seconds)

        def run():
            self.ran.append(name)
            self.collecting.append(gc.isenabled())
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def interval_holds_its_value(number):
    if number.lo is None or number.hi is None:
        return True
    return number.value is not None and number.lo <= number.value <= number.hi


# -- the harness -------------------------------------------------------------------------------


def test_sides_run_in_turn_and_who_goes_first_alternates():
    clock = FakeClock()
    pair = Pair(clock.takes("A", 2.0), clock.takes("B", 1.0), n_pairs=4)
    found = time_pairs({"a_over_b": pair}, clock=clock)["a_over_b"]
    warm_up, timed = clock.ran[:2], clock.ran[2:]
    assert sorted(warm_up) == ["A", "B"]
    assert timed == ["B", "A", "A", "B", "B", "A", "A", "B"]
    assert found.top.tolist() == [2.0] * 4
    assert found.bottom.tolist() == [1.0] * 4


def test_pairs_take_turns_so_that_a_control_sees_the_same_minutes():
    clock = FakeClock()
    pairs = {
        "a": Pair(clock.takes("A", 1.0), clock.takes("a", 1.0), n_pairs=3),
        "c": Pair(clock.takes("C", 1.0), clock.takes("c", 1.0), n_pairs=2),
    }
    found = time_pairs(pairs, clock=clock)
    assert "".join(clock.ran[4:]) == "aAcC" + "AaCc" + "aA"
    assert [len(found[name].top) for name in pairs] == [3, 2]


def test_what_two_pairs_share_is_warmed_up_once():
    clock = FakeClock()
    bare = clock.takes("bare", 1.0)
    pairs = {"x": Pair(clock.takes("x", 1.0), bare, 1), "y": Pair(clock.takes("y", 1.0), bare, 1)}
    time_pairs(pairs, clock=clock)
    assert sorted(clock.ran[:3]) == ["bare", "x", "y"]
    assert len(clock.ran) == 3 + 4


def test_drift_that_doubles_all_times_leaves_the_ratio():
    # Each round the machine is twice as slow; neighbours see nearly the same machine.
    clock = FakeClock()
    slower = [2.0**n for n in range(6)]
    pair = Pair(
        clock.takes("A", 1.0, *(1.5 * s for s in slower)), clock.takes("B", 1.0, *slower), 6
    )
    found = time_pairs({"x": pair}, clock=clock)["x"].ratio(seed=0)
    assert found == Number(1.5, 1.5, 1.5)


def test_the_ratio_is_the_median_of_the_pairs_and_one_outlier_does_not_move_it():
    top = np.array([1.1, 1.2, 1.3, 1.2, 90.0])
    found = Timing(top, np.ones(5)).ratio(seed=0)
    assert found.value == 1.2
    assert interval_holds_its_value(found)


def test_the_interval_agrees_with_the_order_statistics_of_the_binomial():
    # The distribution-free 95 % interval of the median of 30 is the 10th to the 21st value.
    ratios = np.sort(np.random.default_rng(0).normal(1.0, 0.05, 30))
    found = Timing(ratios, np.ones(30)).ratio(seed=0, n_resamples=20000)
    assert found.lo is not None
    assert found.hi is not None
    assert ratios[8] <= found.lo <= ratios[10]
    assert ratios[19] <= found.hi <= ratios[21]


def test_garbage_collection_is_off_while_timing_and_back_after_an_error():
    clock = FakeClock()
    time_pairs({"x": Pair(clock.takes("A", 1.0), clock.takes("B", 1.0), 2)}, clock=clock)
    assert clock.collecting == [True, True, False, False, False, False]
    assert gc.isenabled()
    calls = iter(range(9))

    def fails_later():
        if next(calls) > 1:
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        time_pairs({"x": Pair(fails_later, clock.takes("B", 1.0), 4)}, clock=clock)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_curves_are_measured_round_by_round():
    clock = FakeClock()
    found = time_rounds([clock.takes("A", 1.0), clock.takes("B", 3.0)], 2, clock=clock)
    assert "".join(clock.ran) == "AB" + "ABAB"
    assert found.tolist() == [[1.0, 3.0], [1.0, 3.0]]


@pytest.mark.parametrize(("limit", "pairs"), [(None, (N_NEAR, N_FAR)), (3, (3, 3)), (10, (10, 5))])
def test_the_limit_lowers_the_number_of_pairs(limit, pairs):
    assert (near(Options(limit=limit)), far(Options(limit=limit))) == pairs
    assert N_NEAR >= 30


# -- the peers ---------------------------------------------------------------------------------


def test_a_bare_twin_shares_the_weights_and_nothing_else(lm):
    with lm.attached([steer.Add(steer.Site(1, "resid_post"), torch.ones(lm.d_model))]) as run:
        twin = bare_twin(lm.model)
        assert hooks_present(lm.model) > 0
        assert hooks_present(twin) == 0
        lm.model(input_ids=torch.tensor([[5, 6, 7]]))
    assert run.receipt.fired
    for (name, ours), (_, theirs) in zip(
        lm.model.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert ours is theirs, name
    assert not {id(m) for m in lm.model.modules()} & {id(m) for m in twin.modules()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(lm.model(input_ids=ids).logits, twin(input_ids=ids).logits)


def test_hooks_and_shadowed_methods_are_counted(tiny):
    model = bare_twin(tiny("tiny-gpt2").model)
    with hooks.output_edited(model, "transformer.h.1", hooks.add(torch.ones(48))):
        assert hooks_present(model) == 1
        vars(model)["generate"] = lambda: None
        assert hooks_present(model) == 2
    del vars(model)["generate"]
    assert hooks_present(model) == 0


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-gemma3"])
def test_every_peer_makes_the_same_edit_as_ours(tiny, name):
    lm = tiny(name)
    site = steer.Site(2, "resid_post")
    path = lm.registry.layout.tap(site).path
    delta = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]])
    twin = bare_twin(lm.model)
    traced = nnsight.traced(bare_twin(lm.model), lm.tokenizer)
    with torch.no_grad():
        with lm.attached([steer.Add(site, delta)]):
            ours = lm.model(input_ids=ids, use_cache=False).logits
        with hooks.output_edited(twin, path, hooks.add(delta)):
            by_hand = twin(input_ids=ids, use_cache=False).logits
        lens = transformer_lens.forward_added(bridge_of(lm), ids, 2, delta)()
        by_nnsight = nnsight.forward_added(traced, ids, path, delta)()
        plain = twin(input_ids=ids, use_cache=False).logits
    assert (ours - plain).abs().max() > 0.1
    for other in (by_hand, lens, by_nnsight):
        assert (ours - other).abs().max() <= TOLERANCE


def test_the_batched_map_equals_the_loop_and_patching_before_the_difference_does_nothing(lm):
    clean, corrupted = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[5, 6, 77, 8, 9, 10]])
    paths = [lm.registry.layout.tap(site).path for site in lm.sites("resid_pre")]
    twin = bare_twin(lm.model)
    task = sweeps.Task(twin, clean, corrupted, paths, lambda logits: logits[:, 3] - logits[:, 4])
    with torch.no_grad():
        loop = sweeps.streams_loop(task, last_only=False)()
        batched = sweeps.streams_batched(task, last_only=True)()
        natural = task.metric(twin(input_ids=corrupted).logits[:, -1])
        restored = task.metric(twin(input_ids=clean).logits[:, -1])
    assert (loop - batched).abs().max() <= TOLERANCE
    assert (loop[:, :2] - natural).abs().max() <= TOLERANCE
    # Before block 0 the prompts differ at one position, which holds all there is to restore.
    assert (loop[0, 2] - restored).abs() <= TOLERANCE
    assert (natural - restored).abs() > 0.1


def test_heads_patched_by_hand_agree_with_the_bridge(lm):
    clean, corrupted = torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[5, 6, 77, 8, 9, 10]])
    paths = [lm.registry.layout.tap(site).path for site in lm.sites("z")]

    def metric(logits):
        return logits[:, 3] - logits[:, 4]

    task = sweeps.Task(bare_twin(lm.model), clean, corrupted, paths, metric)
    with torch.no_grad():
        loop = sweeps.heads_loop(task, 4, last_only=True)()
        batched = sweeps.heads_batched(task, 4, last_only=False)()
        lens = transformer_lens.patched_heads(
            bridge_of(lm), clean, corrupted, lambda logits: metric(logits[:, -1])[0]
        )()
    assert loop.std() > 0.01
    assert (loop - batched).abs().max() <= TOLERANCE
    assert (loop - lens).abs().max() <= TOLERANCE


def test_tokens_are_counted_where_they_are_computed(lm):
    twin = bare_twin(lm.model)
    with hooks.tokens_counted(twin, ["model.layers.0.mlp", "model.layers.3.mlp"]) as counts:
        twin(input_ids=torch.tensor([[5, 6, 7], [8, 9, 10]]))
    assert counts == [6, 6]


# -- the tasks ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tiny):
    """Return what runs a task once, as small as it gets and with one pair, and remembers it."""
    found = {}

    def measure(task):
        if task.name not in found:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(maps, "CLEAN", "Mary, John, John to")
                patch.setattr(maps, "CORRUPTED", "Mary, John, Mary to")
                patch.setattr(scaling, "ARMS", (1, 4, 16))
                patch.setattr(scaling, "TOKENS", (16, 64))
                found[task.name] = task.measure(tiny("tiny-llama"), Options(limit=1))
        return found[task.name]

    return measure


def check(task, outcome, numbers):
    assert set(outcome.numbers) == numbers
    assert set(outcome.controls) == set(task.controls)
    for name, number in {**outcome.numbers, **outcome.controls}.items():
        if (
            name == "lens_over_ours_decode"
            and outcome.tables["share_of_equal_tokens"]["lens"] is None
        ):
            assert number.value is None
            continue  # TransformerLens loses the cache under this transformers
        assert number.value is not None, name
        assert math.isfinite(number.value)
        assert number.value > 0 or "_over_" not in name, name
        assert interval_holds_its_value(number), (name, number)
    json.dumps([dict(outcome.tables), dict(outcome.specs)], allow_nan=False)


@pytest.mark.parametrize("task", list(TASKS), ids=lambda task: task.name)
def test_a_task_has_its_names_and_equals_its_peers(measured, task):
    outcome = measured(task)
    check(task, outcome, TASKS[task])
    difference = outcome.numbers["max_abs_diff"].value
    assert difference is not None
    assert difference <= TOLERANCE
    assert difference == max(outcome.tables["equality"].values())


def test_nothing_is_left_on_an_idle_model(measured):
    outcome = measured(speed.speed_idle)
    assert outcome.numbers["hooks_present"] == Number(0.0)
    assert outcome.numbers["max_abs_diff"] == Number(0.0)


def test_an_edit_moves_the_logits_and_all_generate_the_same_tokens(measured):
    tables = measured(speed.speed_edit).tables
    assert tables["moved_by_the_edit"] > 0.1
    agreed = dict(tables["share_of_equal_tokens"])
    # None: TransformerLens loses the cache under transformers 5.24, and is not compared.
    assert agreed.pop("lens") in (1.0, None)
    assert agreed == {"hook": 1.0, "nnsight": 1.0}


@pytest.mark.parametrize("task", [speed.speed_path, speed.speed_heatmap, speed.speed_heads])
def test_a_sweep_runs_the_token_blocks_that_it_says(measured, task):
    outcome = measured(task)
    found = outcome.tables["token_blocks"]
    for account in [found] if "arms" in found else found.values():
        assert account["executed"] == account["arms"] >= account["minimum"]
        assert account["counted"] == account["executed"] + account["base_executed"]


@pytest.mark.slow
def test_scaling_has_its_names_and_curves(measured):
    outcome = measured(speed.speed_scaling)
    check(speed.speed_scaling, outcome, SCALING)
    for name, n_points in (("arms", 3), ("tokens", 2), ("block", 4)):
        table = outcome.tables[name]
        assert len(table["x"]) == len(table["seconds"]) == len(table["predicted"]) == n_points
        assert np.all(np.diff(table["token_blocks"]) * (-1 if name == "block" else 1) > 0)


def test_the_two_prompts_differ_in_one_token(lm):
    prompts = maps.prompts_of(lm)
    differing = [
        at for at, (a, b) in enumerate(zip(prompts.clean, prompts.corrupted, strict=True)) if a != b
    ]
    assert differing == [prompts.at]


def test_prompts_that_a_tokenizer_does_not_tell_apart_are_refused(lm, monkeypatch):
    monkeypatch.setattr(maps, "CORRUPTED", maps.CLEAN)
    with pytest.raises(BenchmarkError, match="nothing to patch between them"):
        maps.prompts_of(lm)


# -- the command and the pictures --------------------------------------------------------------


def test_a_run_writes_numbers_provenance_and_a_picture(tmp_path):
    out = tmp_path / "capture.json"
    given = ["run", "speed_capture", "--model", "tiny-llama", "--limit", "1", "--out", str(out)]
    assert cli.main(given) == 0
    content = json.loads(out.read_text())
    assert set(content["numbers"]["all_over_bare"]) == {"value", "lo", "hi"}
    assert {"transformer-lens", "nnsight", "torch"} <= set(content["provenance"]["versions"])
    assert {"cores", "threads"} <= set(content["provenance"]["hardware"])
    picture = tmp_path / "capture_ratios.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def ratios():
    numbers = {
        "forward_over_bare": Number(1.02, 1.01, 1.03),
        "lens_over_ours": Number(40.0, 35.0, 45.0),
        "max_abs_diff": Number(2e-5),
    }
    return Result("speed_x", "m", numbers, {"bare_over_bare": Number(1.0, 0.99, 1.01)}, {})


def test_ratios_are_drawn_by_what_is_better_with_their_targets():
    figure = draw.ratios_figure(ratios(), {"lens_over_ours": 20.0})
    less, more = figure.axes
    assert [label.get_text() for label in less.get_yticklabels()] == [
        "forward_over_bare",
        "bare_over_bare (control)",
    ]
    assert [label.get_text() for label in more.get_yticklabels()] == ["lens_over_ours"]
    assert more.get_xscale() == "log"
    assert [20.0, 20.0] in [np.asarray(line.get_xdata()).tolist() for line in more.get_lines()]
    assert [0.99, 1.01] in [np.asarray(line.get_xdata()).tolist() for line in less.get_lines()]
    assert "max_abs_diff 2e-05" in draw.ratios_caption(ratios())
