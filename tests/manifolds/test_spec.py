import hashlib
import json

import pytest
import torch

import manifolds
from manifolds import Curve, ManifoldError, Subspace
from manifolds.spec import spec_digest


def test_the_digest_is_the_sha256_of_the_canonical_json() -> None:
    tensor = torch.tensor([[1.0, -0.0], [0.5, 3.0]], dtype=torch.bfloat16)
    # bfloat16 is the upper half of float32, little-endian: 0x3f80, 0x8000, 0x3f00, 0x4040.
    raw = bytes.fromhex("803f0080003f4040")
    leaf = {"tensor": "bfloat16", "shape": [2, 2], "sha256": hashlib.sha256(raw).hexdigest()}
    text = json.dumps(
        {"version": 1, "kind": "x", "part": {"t": leaf, "n": [0.1, 2, None, True]}},
        sort_keys=True,
        separators=(",", ":"),
    )
    spec = {"kind": "x", "part": {"n": [0.1, 2, None, True], "t": tensor}, "version": 1}
    assert spec_digest(spec) == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_sees_every_bit_and_the_dtype_but_not_the_layout() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    digest = spec_digest({"t": tensor})
    assert spec_digest({"t": tensor.T.contiguous().T}) == digest
    assert spec_digest({"t": tensor.T}) != digest
    assert spec_digest({"t": tensor.double()}) != digest
    assert spec_digest({"t": torch.tensor(0.0)}) != spec_digest({"t": torch.tensor(-0.0)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "manifolds.Behavior"}, r"kind 'manifolds.Behavior', version 1.*refit"),
        ({"version": 2}, r"kind 'manifolds.Curve', version 2"),
        ({"colour": "red"}, r"lacks \[\] and has the unknown \['colour'\]"),
        ({"period": -12}, r"period -12.*Refit"),
        ({"spline": {"breaks": torch.arange(4.0)}}, r"needs breaks \[n \+ 1\]"),
        ({"subspace": None}, r"on None, which does not have as many"),
        ({"diagnostics": [1]}, r"diagnostics is a list, not a mapping"),
    ],
)
def test_a_spec_that_was_edited_is_refused(changed: dict[str, object], message: str) -> None:
    spec = manifolds.fit_curve(torch.eye(4), range(4), period=4).spec()
    with pytest.raises(ManifoldError, match=message):
        Curve.from_spec({**spec, **changed})


def test_a_spec_that_lacks_a_field_is_refused() -> None:
    spec = manifolds.fit_curve(torch.eye(4), range(4)).spec()
    del spec["warp"]
    with pytest.raises(ManifoldError, match=r"lacks \['warp'\].*Refit"):
        Curve.from_spec(spec)


def test_a_subspace_of_parts_that_do_not_belong_together_is_refused() -> None:
    spec = manifolds.fit_pca(torch.eye(4)).spec()
    with pytest.raises(ManifoldError, match=r"mean \[3\], a basis \[3, 4\]"):
        Subspace.from_spec({**spec, "mean": torch.zeros(3)})
    with pytest.raises(ManifoldError, match="no tensor"):
        Subspace.from_spec({**spec, "basis": [[1, 0, 0, 0]]})


def test_a_nested_part_may_have_been_rebuilt_already() -> None:
    curve = manifolds.fit_curve(torch.eye(4), range(4), period=4)
    spec = curve.spec()
    part = spec["subspace"]
    assert isinstance(part, dict)
    # The readers of saved files rebuild inner values first and return lists as tuples.
    diagnostics = {**curve.diagnostics, "n_per_class": (1, 1, 1, 1)}
    built = {**spec, "subspace": Subspace.from_spec(part), "diagnostics": diagnostics}
    assert Curve.from_spec(built).digest == curve.digest


def test_the_origin_is_copied_and_enters_the_digest() -> None:
    origin = {"model": "tiny", "site": "blocks.1.resid_post"}
    x = torch.eye(4)
    curve = manifolds.fit_curve(x, range(4), origin=origin)
    origin["model"] = "another"
    assert curve.origin == {"model": "tiny", "site": "blocks.1.resid_post"}
    assert Curve.from_spec(curve.spec()).origin == curve.origin
    assert curve.digest != manifolds.fit_curve(x, range(4)).digest


def test_an_origin_that_cannot_be_saved_is_refused() -> None:
    with pytest.raises(ManifoldError, match="origin cannot be written as JSON"):
        manifolds.fit_curve(torch.eye(4), range(4), origin={"site": torch.zeros(1)})
