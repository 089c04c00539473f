"""The law battery: every law over every intervention on every tiny family."""

from collections.abc import Callable
from dataclasses import replace

import pytest

import manifolds
from steer import LM
from steer.kinds import kinds
from steer.protocols import Intervention
from tests.laws.composition import (
    COMPOSITION_LAWS,
    law_all_interventions_compose,
    law_nested_blocks_compose,
)
from tests.laws.edits import EDIT_LAWS
from tests.laws.exact import EXACT_LAWS
from tests.laws.interventions import CHARTS, FACTORIES, N_ROWS, Setting, one_each
from tests.laws.patching import PATCHING_LAWS
from tests.laws.rows import ROW_LAWS
from tests.laws.sites import SITE_LAWS
from tests.laws.sweeps import SWEEP_LAWS
from tests.laws.tokens import TOKEN_LAWS
from tests.laws.traces import TRACE_LAWS

LAWS = (
    *TOKEN_LAWS,
    *ROW_LAWS,
    *EXACT_LAWS,
    *SITE_LAWS,
    *TRACE_LAWS,
    *COMPOSITION_LAWS,
    *SWEEP_LAWS,
    *PATCHING_LAWS,
)


def _named(law: Callable[..., None]) -> str:
    return law.__name__.removeprefix("law_").replace("_", " ")


@pytest.mark.parametrize("law", EDIT_LAWS, ids=_named)
@pytest.mark.parametrize("name", FACTORIES)
def test_every_edit_keeps_the_law(lm: LM, name: str, law: Callable[..., None]):
    # One family: a pure edit sees no model, and two widths differ in nothing that it does.
    law(setting_of(lm), name)


@pytest.mark.parametrize("law", LAWS, ids=_named)
def test_every_family_keeps_the_law(any_lm: LM, law: Callable[[Setting], None]):
    law(setting_of(any_lm))


@pytest.mark.parametrize("chart", sorted(CHARTS))
def test_the_composition_law_holds_with_every_chart(lm: LM, chart: str):
    setting = replace(setting_of(lm), chart=chart)
    law_all_interventions_compose(setting)
    law_nested_blocks_compose(setting)


def test_every_installed_chart_is_in_the_composition_law(lm: LM):
    known = kinds()
    wanted = {known[kind] for kind in known if hasattr(known[kind], "flatten")}
    found = {type(make(setting_of(lm))) for make in CHARTS.values()}
    missing = wanted - found - {manifolds.Subspace}
    assert not missing, f"no setting has {sorted(c.__name__ for c in missing)}"


def test_every_installed_intervention_is_in_the_battery(lm: LM):
    known = kinds()
    wanted = {known[kind] for kind in known if callable(getattr(known[kind], "edit", None))}
    _, items = one_each(setting_of(lm))
    missing = wanted - {type(item) for item in items}
    assert not missing, f"no factory makes {sorted(c.__name__ for c in missing)}"
    assert all(isinstance(item, Intervention) for item in items)
    assert len(FACTORIES) <= N_ROWS


_SETTINGS: dict[int, Setting] = {}


def setting_of(lm: LM) -> Setting:
    """Return the setting of a shared model, fitted once per process."""
    if id(lm) not in _SETTINGS or _SETTINGS[id(lm)].lm is not lm:
        _SETTINGS[id(lm)] = Setting(lm)
    return _SETTINGS[id(lm)]
