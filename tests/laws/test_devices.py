"""The battery in other dtypes, on other devices, and for longer than the unit tests allow."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

import steer
from tests.conftest import FAMILIES
from tests.laws.composition import COMPOSITION_LAWS, composed
from tests.laws.edits import EDIT_LAWS
from tests.laws.exact import (
    EXACT_LAWS,
    law_a_delta_takes_the_models_dtype,
    law_a_patch_from_its_own_run_changes_nothing,
    law_a_whole_patch_selects_the_bits_of_its_source,
    law_ablating_twice_is_ablating_once,
    law_coordinates_read_here_change_nothing,
)
from tests.laws.interventions import FACTORIES, Setting
from tests.laws.rows import ROW_LAWS, law_a_gate_decides_row_by_row
from tests.laws.running import gap, generated
from tests.laws.sites import SITE_LAWS
from tests.laws.tokens import (
    TOKEN_LAWS,
    law_scopes_mean_positions,
    law_scopes_mean_positions_while_generating,
    law_strength_0_is_the_baseline,
)
from tests.laws.traces import TRACE_LAWS

EXACT_IN_HALF_PRECISION = (
    law_strength_0_is_the_baseline,
    law_a_whole_patch_selects_the_bits_of_its_source,
    law_a_delta_takes_the_models_dtype,
    law_a_patch_from_its_own_run_changes_nothing,
    law_coordinates_read_here_change_nothing,
    law_ablating_twice_is_ablating_once,
)
"""Laws of bits: they hold in every dtype. Solo and batched logits differ by 4e-3 in bf16."""
HALF = (*EXACT_IN_HALF_PRECISION, law_scopes_mean_positions, law_a_gate_decides_row_by_row)
EVERY = (*TOKEN_LAWS, *ROW_LAWS, *EXACT_LAWS, *SITE_LAWS, *TRACE_LAWS, *COMPOSITION_LAWS)
Law = Callable[[Setting], None]


def _named(law: Callable[..., None]) -> str:
    return law.__name__.removeprefix("law_").replace("_", " ")


@pytest.mark.parametrize("law", EXACT_IN_HALF_PRECISION, ids=_named)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_law_in_bf16(family: str, law: Law):
    law(_setting(family, "cpu", torch.bfloat16))


@pytest.mark.parametrize("law", EXACT_IN_HALF_PRECISION, ids=_named)
def test_llama_keeps_the_law_in_fp16(law: Law):
    law(_setting("tiny-llama", "cpu", torch.float16))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_agree_over_64_tokens(family: str):
    setting = _setting(family, "cpu", torch.float32)
    plans = [composed(setting, row) for row in range(4)]
    rows = setting.prompts[:4]
    together = generated(setting.lm, rows, steer.Rows(plans), new=64)
    for at, plan in enumerate(plans):
        alone = generated(setting.lm, [rows[at]], plan, new=64)
        assert alone.tokens[0].tolist() == together.tokens[at].tolist()
        # The guarantee: rounding of another batch shape, fed back 64 times.
        assert gap(alone.logits[0], together.logits[at]) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("law", EVERY, ids=_named)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_law_on_cuda(family: str, law: Law):
    law(_setting(family, "cuda", torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("law", [*HALF, law_scopes_mean_positions_while_generating], ids=_named)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_law_on_cuda_in_bf16(family: str, law: Law):
    law(_setting(family, "cuda", torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.parametrize("law", EDIT_LAWS, ids=_named)
@pytest.mark.parametrize("name", FACTORIES)
def test_every_edit_keeps_the_law_on_cuda(name: str, law: Callable[[Setting, str], None]):
    law(_setting("tiny-llama", "cuda", torch.float32), name)


@cache
def _setting(family: str, device: str, dtype: torch.dtype) -> Setting:
    return Setting(steer.load(family, device=device, dtype=dtype))
