"""Specs and digests, against hashes computed here by hand, and kinds through an allow-list."""

import hashlib
import importlib
import json
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import EntryPoint
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import steer.kinds
from steer.errors import SpecError
from steer.kinds import kinds, rebuild
from steer.sites import AnySite, ModuleSite, Site
from steer.spec import GROUP, canonical, digest, encode, fingerprint, spec_of


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    kind: ClassVar[str] = "toy.Push"

    site: AnySite
    direction: Tensor
    strength: object = 1.0
    origin: object = None
    norm: float = field(init=False, default=0.0)

    def spec(self):
        return encode(self)


@dataclass(frozen=True, slots=True, eq=False)
class Both:
    kind: ClassVar[str] = "toy.Both"

    parts: tuple[Push, ...]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Outside:
    """Made by another package: it says its own spec and how it is rebuilt."""

    axis: Tensor

    def spec(self):
        return {"kind": "other.Outside", "version": 1, "columns": self.axis}

    @classmethod
    def from_spec(cls, spec):
        return cls(spec["columns"])


@dataclass(frozen=True, slots=True)
class Run:
    kind: ClassVar[str] = "toy.Run"

    fn: object


KINDS = {"toy.Push": Push, "toy.Both": Both, "other.Outside": Outside}
SITE = Site(3, "resid_post")


def by_hand(tree) -> str:
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_spec_is_the_kind_the_version_and_the_fields_of_the_constructor():
    direction = torch.ones(2)
    spec = spec_of(Push(SITE, direction, 0.5, {"model": "m"}))
    assert spec.pop("direction") is direction
    assert spec == {
        "kind": "toy.Push",
        "version": 1,
        "site": {"kind": "steer.Site", "version": 1, "name": "blocks.3.resid_post"},
        "strength": 0.5,
        "origin": {"model": "m"},
    }


def test_the_digest_is_the_sha256_of_sorted_json_with_hashed_tensors():
    direction = torch.tensor([1.0, -2.0])
    expected = by_hand(
        {
            "version": 1,
            "kind": "toy.Push",
            "site": {"kind": "steer.Site", "version": 1, "name": "blocks.3.resid_post"},
            "direction": {
                "tensor": "float32",
                "shape": [2],
                "sha256": hashlib.sha256(np.array([1, -2], "<f4").tobytes()).hexdigest(),
            },
            "strength": 1.0,
            "origin": None,
        }
    )
    assert digest(spec_of(Push(SITE, direction))) == expected


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool],
)
def test_a_tensor_is_named_by_dtype_shape_and_bytes_whatever_its_layout(dtype):
    dense = torch.arange(6).reshape(2, 3).to(dtype)
    strided = torch.arange(6).reshape(2, 3).T.contiguous().T.to(dtype)
    mark = fingerprint(dense)
    assert mark == fingerprint(strided)
    assert mark["shape"] == [2, 3]
    assert mark["tensor"] == str(dtype).removeprefix("torch.")
    assert mark != fingerprint(dense.reshape(3, 2))


def test_scalar_and_empty_tensors_have_fingerprints():
    empty = hashlib.sha256(b"").hexdigest()
    assert fingerprint(torch.zeros(0, 4))["sha256"] == empty
    one = hashlib.sha256(np.array(1, "<f4").tobytes()).hexdigest()
    assert fingerprint(torch.tensor(1.0))["sha256"] == one


def test_minus_zero_is_another_tensor():
    assert fingerprint(torch.tensor([0.0])) != fingerprint(torch.tensor([-0.0]))


@pytest.mark.parametrize(
    "other",
    [
        Push(Site(4, "resid_post"), torch.ones(2)),
        Push(SITE, torch.tensor([1.0, 1.0 + 2**-23])),
        Push(SITE, torch.ones(2, dtype=torch.float64)),
        Push(SITE, torch.ones(2), 2.0),
        Push(SITE, torch.ones(2), origin={"model": "m"}),
    ],
)
def test_every_field_enters_the_digest(other):
    assert digest(spec_of(other)) != digest(spec_of(Push(SITE, torch.ones(2))))


def test_the_order_of_a_plan_enters_the_digest():
    first, second = Push(SITE, torch.ones(2)), Push(SITE, torch.zeros(2))
    assert digest(spec_of([first, second])) != digest(spec_of([second, first]))


def test_probes_and_manifolds_compute_the_same_digest():
    manifolds_spec = importlib.import_module("manifolds.spec")
    probes_identity = importlib.import_module("probes.identity")
    spec = {
        "kind": "toy.All",
        "version": 1,
        "leaf": torch.tensor(-0.0),
        "bf16": torch.arange(6).reshape(2, 3).T.to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "nested": {"kind": "toy.In", "version": 1, "rows": [torch.ones(2), {"b": 1, "a": None}]},
        "numbers": [1, -0.0, 1e-300, 0.1, 2**60, True],
        "text": 'caf\u00e9 \u2028 "quoted"',
    }
    assert manifolds_spec.spec_digest(spec) == digest(spec)
    assert probes_identity.spec_digest(spec) == digest(spec)


@pytest.mark.parametrize(
    "site", [SITE, Site.embed(), Site(1, "z", 3), ModuleSite("a.b.c", "input")], ids=str
)
def test_sites_survive_the_round_trip(site):
    back = rebuild(spec_of(Push(site, torch.ones(2))), kinds=KINDS)
    assert isinstance(back, Push)
    assert back.site == site


def test_nested_values_are_rebuilt_before_what_holds_them():
    parts = (Push(SITE, torch.ones(2), Outside(torch.zeros(3))), Push(Site(4), torch.ones(2)))
    back = rebuild(spec_of(Both(parts, "x")), kinds=KINDS)
    assert isinstance(back, Both)
    assert isinstance(back.parts, tuple)
    assert isinstance(back.parts[0].strength, Outside)
    assert torch.equal(back.parts[0].strength.axis, torch.zeros(3))
    assert digest(spec_of(back)) == digest(spec_of(Both(parts, "x")))


def test_a_plan_comes_back_as_a_list():
    plan = [Push(SITE, torch.ones(2)), Push(Site(4), torch.ones(2))]
    back = rebuild(spec_of(plan), kinds=KINDS)
    assert isinstance(back, list)
    assert [part.site for part in back] == [part.site for part in plan]


def test_numpy_numbers_become_plain_ones():
    spec = spec_of(Push(SITE, torch.ones(2), (np.float32(0.5), np.int64(3), np.float64(2.0))))
    assert spec["strength"] == [0.5, 3, 2.0]
    assert isinstance(spec["strength"], list)
    assert [type(item) for item in spec["strength"]] == [float, int, float]


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_not_finite_are_refused_by_path(number):
    with pytest.raises(SpecError, match=r"toy\.Push\.origin\.bounds\[1\] is .* finite"):
        spec_of(Push(SITE, torch.ones(2), origin={"bounds": (0.0, number)}))


def test_infinities_in_a_ready_made_spec_are_refused():
    with pytest.raises(SpecError, match="no canonical form"):
        canonical({"kind": "toy.Push", "version": 1, "strength": float("inf")})


@pytest.mark.parametrize("value", [lambda h: h, len, Push])
def test_code_cannot_be_saved_and_the_error_says_why(value):
    with pytest.raises(
        SpecError, match=r"toy\.Run\.fn is .*cannot be saved.*Code has no canonical"
    ):
        spec_of(Run(value))


def test_a_value_without_kind_or_spec_is_refused():
    with pytest.raises(SpecError, match=r"toy\.Run\.fn is a object.*Give its class a kind"):
        spec_of(Run(object()))
    with pytest.raises(SpecError, match="cannot be saved"):
        spec_of(object())
    with pytest.raises(SpecError, match="has no spec"):
        spec_of(torch.ones(2))


def test_a_spec_method_that_names_no_kind_is_refused():
    class Nameless:
        def spec(self):
            return {"axis": 1}

    with pytest.raises(SpecError, match="no dict with 'kind' and 'version'"):
        spec_of(Nameless())


@pytest.mark.parametrize("tensor", [torch.empty(2, device="meta"), torch.ones(2).to_sparse()])
def test_tensors_without_plain_bytes_are_refused(tensor):
    with pytest.raises(SpecError, match=r"toy\.Push\.direction .* no plain bytes"):
        spec_of(Push(SITE, tensor))


@pytest.mark.parametrize("keys", [{1: "a"}, {"": 1}, {"tensor": 1, "shape": 2, "sha256": 3}])
def test_keys_that_could_be_mistaken_are_refused(keys):
    with pytest.raises(SpecError, match="Rename the keys"):
        spec_of(Push(SITE, torch.ones(2), origin=keys))


def test_an_unknown_kind_is_refused_with_the_near_name():
    spec = dict(spec_of(Push(SITE, torch.ones(2))), kind="toy.Pusj")
    with pytest.raises(SpecError, match=r"'toy\.Pusj'.*Did you mean toy\.Push\?"):
        rebuild(spec, kinds=KINDS)


def test_an_import_path_is_only_an_unknown_kind():
    spec = {"kind": "os:system", "version": 1, "command": "true"}
    with pytest.raises(SpecError, match="never an import path"):
        rebuild(spec)


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_other_versions_are_refused(version):
    spec = dict(spec_of(Push(SITE, torch.ones(2))), version=version)
    with pytest.raises(SpecError, match="reads versions 1 to 1"):
        rebuild(spec, kinds=KINDS)


@pytest.mark.parametrize("change", [{"colour": 1}, {"site": {"kind": "steer.Site", "version": 1}}])
def test_fields_that_do_not_fit_are_refused(change):
    spec = {**spec_of(Push(SITE, torch.ones(2))), **change}
    with pytest.raises(SpecError, match="cannot be rebuilt"):
        rebuild(spec, kinds=KINDS)


def test_what_is_installed_is_read_once_and_every_kind_of_it_loads():
    assert kinds() is kinds()
    for kind in kinds():
        assert isinstance(kinds()[kind], type)


@pytest.fixture
def declared(monkeypatch):
    """Declare entry points as installed packages would."""

    def declare(**points: str) -> None:
        found = [EntryPoint(kind, value, GROUP) for kind, value in points.items()]
        monkeypatch.setattr(steer.kinds, "entry_points", lambda group: found * (group == GROUP))
        steer.kinds._installed.cache_clear()

    yield declare
    steer.kinds._installed.cache_clear()


def test_a_kind_is_imported_only_when_it_is_looked_up(declared):
    declared(Mine="fractions:Fraction", Absent="no_such_package:Thing", Lost="fractions:Thing")
    assert set(kinds()) == {"Mine", "Absent", "Lost"}
    assert kinds()["Mine"] is Fraction
    for kind in ("Absent", "Lost"):
        with pytest.raises(SpecError, match=f"kind {kind} is declared as .* does not import"):
            kinds()[kind]


def test_a_kind_that_two_packages_declare_differently_is_refused(monkeypatch, declared):
    declared()
    twice = [EntryPoint("Mine", value, GROUP) for value in ("fractions:Fraction", "other:Thing")]
    monkeypatch.setattr(steer.kinds, "entry_points", lambda group: twice * (group == GROUP))
    with pytest.raises(SpecError, match="declared by fractions:Fraction and by other:Thing"):
        kinds()["Mine"]
