"""The composition law, and what it stands on, on the embedded models."""

import pytest
import torch

import steer
from steer import Site
from tests.laws.composition import (
    law_a_receipt_tells_each_row,
    law_all_interventions_compose,
    law_nested_blocks_compose,
)
from tests.laws.exact import (
    law_a_patch_from_its_own_run_changes_nothing,
    law_coordinates_read_here_change_nothing,
)
from tests.laws.interventions import N_ROWS, Setting
from tests.laws.sweeps import law_a_sweep_equals_a_loop, law_a_sweep_generates_like_a_loop
from tests.laws.traces import law_only_hooks_are_added

pytestmark = pytest.mark.real

_WHO = ("The old man", "My sister", "A friend of mine", "The doctor", "Nobody", "Every child", "We")
_WHAT = ("went to", "has seen", "will never forget the lights of", "wrote about", "likes")
_WHERE = ("Paris in May", "the market", "Rome", "a very small village", "the sea", "Oslo")
TEXTS = tuple(f"{_WHO[i % 7]} {_WHAT[i % 5]} {_WHERE[i % 6]}" for i in range(N_ROWS))


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def setting(request: pytest.FixtureRequest) -> Setting:
    """Return each embedded model, with a gate before the middle and edits behind it."""
    lm = steer.load(request.param, accept_license=True, dtype=torch.float32, device="cpu")
    middle = lm.n_layers // 2
    return Setting(lm, Site(middle, "resid_post"), Site(middle - 2, "resid_post"), TEXTS)


def test_all_interventions_compose(setting: Setting):
    law_all_interventions_compose(setting)


def test_nested_blocks_compose(setting: Setting):
    law_nested_blocks_compose(setting)


def test_a_receipt_tells_each_row(setting: Setting):
    law_a_receipt_tells_each_row(setting)


def test_a_patch_from_its_own_run_changes_nothing(setting: Setting):
    law_a_patch_from_its_own_run_changes_nothing(setting)


def test_coordinates_read_here_change_nothing(setting: Setting):
    law_coordinates_read_here_change_nothing(setting)


def test_a_sweep_equals_a_loop(setting: Setting):
    law_a_sweep_equals_a_loop(setting)


def test_a_sweep_generates_like_a_loop(setting: Setting):
    law_a_sweep_generates_like_a_loop(setting)


def test_only_hooks_are_added(setting: Setting):
    law_only_hooks_are_added(setting)
