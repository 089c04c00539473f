"""The battery is worth something: every planted bug is killed by the laws named beside it."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from functools import cache

import pytest

import steer
from tests.laws.edits import (
    law_a_row_of_strength_0_keeps_its_bits,
    law_an_edit_is_pure,
    law_strength_0_keeps_the_bits,
)
from tests.laws.exact import (
    law_a_digest_tells_recipes_apart,
    law_a_saved_plan_does_the_same,
    law_a_whole_patch_selects_the_bits_of_its_source,
    law_coordinates_read_here_change_nothing,
    law_order_is_order_of_application,
)
from tests.laws.interventions import Setting
from tests.laws.patching import (
    law_attention_cut_in_one_head_leaves_the_others_bits,
    law_direct_effects_are_paths_to_the_logits,
    law_edges_add_up_to_attribution,
    law_patching_everything_is_the_other_run,
)
from tests.laws.rows import (
    law_a_batch_equals_its_rows,
    law_a_gate_decides_row_by_row,
    law_a_token_gate_decides_token_by_token,
)
from tests.laws.sites import (
    law_a_site_is_what_transformers_computes_there,
    law_one_head_is_its_slice,
    law_the_pattern_is_the_eager_one,
)
from tests.laws.sweeps import law_a_map_of_positions_equals_a_loop, law_a_sweep_equals_a_loop
from tests.laws.tokens import (
    law_scopes_mean_positions,
    law_scopes_mean_positions_while_generating,
)
from tests.laws.traces import law_nothing_is_left_behind
from tests.mutants.planted import MUTANTS

Law = Callable[[Setting], None]


def _of_add(law: Callable[[Setting, str], None]) -> Law:
    def found(setting: Setting) -> None:
        law(setting, "add")

    found.__name__ = f"{law.__name__}, add"
    return found


_PURE = _of_add(law_an_edit_is_pure)
_ZERO = _of_add(law_strength_0_keeps_the_bits)
_ZERO_ROW = _of_add(law_a_row_of_strength_0_keeps_its_bits)
_GENERATING = law_scopes_mean_positions_while_generating

KILLERS: Mapping[str, Sequence[Law]] = {
    "row-0 gate": [law_a_gate_decides_row_by_row],
    "position shifted by padding": [law_scopes_mean_positions, _GENERATING],
    "decode off by one": [_GENERATING],
    "moving LAST": [_GENERATING],
    "in-place write": [_PURE],
    "hook left": [law_nothing_is_left_behind],
    "delta upcast": [_PURE],
    "rows reversed": [law_scopes_mean_positions, law_a_batch_equals_its_rows],
    "a stack gives each row its neighbour's values": [law_a_batch_equals_its_rows],
    "gate not latched": [law_a_gate_decides_row_by_row],
    "resid_mid for resid_pre": [law_a_site_is_what_transformers_computes_there],
    "wrong head repeat": [law_the_pattern_is_the_eager_one],
    "first output token missed": [law_scopes_mean_positions, _GENERATING],
    "strength 0 by arithmetic": [_ZERO, _ZERO_ROW],
    "whole patch as a difference": [law_a_whole_patch_selects_the_bits_of_its_source],
    "subspace patch rebuilds the rest": [law_coordinates_read_here_change_nothing],
    "inner plan first": [law_order_is_order_of_application],
    "list applied backwards": [law_order_is_order_of_application],
    "one column means decoding": [_GENERATING],
    "repeated passes counted twice": [_GENERATING],
    "beams tiled": [_GENERATING],
    "padding in ~scope": [law_scopes_mean_positions],
    "padding in a running mean": [law_a_token_gate_decides_token_by_token],
    "failed attach keeps its hooks": [law_nothing_is_left_behind],
    "an error keeps the plan": [law_nothing_is_left_behind],
    "silence is golden": [law_nothing_is_left_behind],
    "scope not saved": [law_a_saved_plan_does_the_same, law_a_digest_tells_recipes_apart],
    "the next head is written": [law_one_head_is_its_slice],
    "strengths looked up by place": [law_a_batch_equals_its_rows],
    "captured before the edits": [law_one_head_is_its_slice],
    "rows join with the states of another prompt": [law_a_sweep_equals_a_loop],
    "the prefix of another prompt": [law_a_sweep_equals_a_loop],
    "arms begin one block late": [law_a_sweep_equals_a_loop],
    "arms begin one token late": [law_a_sweep_equals_a_loop],
    "every patch is taken for dead": [law_a_sweep_equals_a_loop],
    "packed tokens do not see the token before them": [law_a_map_of_positions_equals_a_loop],
    "nothing is held still along a path": [law_direct_effects_are_paths_to_the_logits],
    "a path is held at its own sender's output": [law_direct_effects_are_paths_to_the_logits],
    "the gradient of a sum of outputs is cut": [law_edges_add_up_to_attribution],
    "heads send to the MLP of their own block in a parallel one only": [
        law_edges_add_up_to_attribution
    ],
    "values are written one token too far": [law_patching_everything_is_the_other_run],
    "attention is cut in the next head": [law_attention_cut_in_one_head_leaves_the_others_bits],
}
"""Planted bug -> the laws of the battery that each must fail under it."""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_killed(name: str):
    # A model of its own: some bugs leave hooks, and the shared ones are read-only.
    setting = Setting(steer.load("tiny-llama"))
    assert len(setting.curve.knots) == 6  # fitted, as is the probe, before the bug is there
    assert setting.probe.d_model == setting.lm.d_model
    verdicts = {}
    for law in KILLERS[name]:
        with MUTANTS[name]():
            # A context of its own: some bugs leave the plan in it.
            verdicts[law.__name__] = copy_context().run(_verdict, law, setting)
    print(f"{name}: {verdicts}")  # noqa: T201 - pytest -rP shows by what each was killed
    alive = [law for law, why in verdicts.items() if why is None]
    assert not alive, f"{name} survives {alive}"


@pytest.mark.parametrize("law", dict.fromkeys(law for laws in KILLERS.values() for law in laws))
def test_a_killer_passes_without_a_bug(law: Law):
    law(_clean())


def test_every_planted_bug_has_a_killer():
    assert KILLERS.keys() == MUTANTS.keys()
    assert all(KILLERS.values())


def _verdict(law: Law, setting: Setting) -> str | None:
    """Return what is wrong by the law, or by a refusal of our own; None if nothing is.

    Any other error is none of the law's doing: the bug is planted badly.
    """
    try:
        law(setting)
    except (AssertionError, steer.SteerError) as error:
        return str(error)
    return None


@cache
def _clean() -> Setting:
    return Setting(steer.load("tiny-llama"))
