"""Files: what is written comes back, and whatever else is at the path is refused by name."""

import importlib
import json
import os
import pickle
import stat
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import steer.artifacts
from steer.artifacts import load_artifact, save
from steer.errors import SpecError
from steer.sites import Site
from steer.spec import digest, encode, spec_of


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    kind: ClassVar[str] = "toy.Push"

    site: Site
    direction: Tensor
    rows: tuple[Tensor, ...] = ()
    origin: object = None

    def spec(self):
        return encode(self)


KINDS = {"toy.Push": Push}


def push(**changes) -> Push:
    return Push(Site(3), torch.arange(8.0), origin={"model": "tiny", "site": "blocks.3"}, **changes)


@pytest.fixture
def file(tmp_path):
    return save(push(), tmp_path / "push.safetensors", kinds=KINDS)


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write(path, header, body):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def test_a_value_comes_back_with_its_digest_and_origin(file):
    back = load_artifact(file, kinds=KINDS)
    assert isinstance(back, Push)
    assert torch.equal(back.direction, torch.arange(8.0))
    assert back.origin == {"model": "tiny", "site": "blocks.3"}
    assert digest(spec_of(back)) == digest(spec_of(push()))


def test_a_plan_comes_back_in_order(tmp_path):
    plan = [push(), Push(Site(1), torch.ones(2))]
    path = save(plan, tmp_path / "plan.safetensors", kinds=KINDS)
    back = load_artifact(path, kinds=KINDS)
    assert isinstance(back, list)
    assert [part.site for part in back] == [Site(3), Site(1)]
    assert digest(spec_of(back)) == digest(spec_of(plan))


def test_an_empty_plan_and_a_value_without_tensors_can_be_saved(tmp_path):
    assert load_artifact(save([], tmp_path / "empty", kinds=KINDS), kinds=KINDS) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_every_bit_of_a_tensor_survives(tmp_path, dtype):
    tensor = (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype).T
    path = save(Push(Site(0), tensor), tmp_path / "t", kinds=KINDS)
    back = load_artifact(path, kinds=KINDS)
    assert isinstance(back, Push)
    assert back.direction.dtype == dtype
    assert torch.equal(back.direction, tensor)


def test_tensors_that_share_memory_and_odd_keys_are_kept_apart(tmp_path):
    basis = torch.arange(6.0).reshape(2, 3)
    odd = {"a/b": basis[0], "a": {"b": basis[1], "~1": basis[0, :1]}}
    value = Push(Site(0), basis, (basis[0], basis[1]), odd)
    back = load_artifact(save(value, tmp_path / "t", kinds=KINDS), kinds=KINDS)
    assert isinstance(back, Push)
    assert torch.equal(back.rows[1], basis[1])
    assert digest(spec_of(back)) == digest(spec_of(value))


def test_what_was_loaded_does_not_depend_on_the_file(file):
    back = load_artifact(file, kinds=KINDS)
    size = file.stat().st_size
    file.write_bytes(bytes(size))
    assert isinstance(back, Push)
    assert torch.equal(back.direction, torch.arange(8.0))


def test_the_file_is_plain_safetensors_with_tensors_by_path(file):
    header, _ = header_of(file)
    assert set(header) == {"__metadata__", "direction"}
    assert header["__metadata__"]["digest"] == digest(spec_of(push()))


def test_a_changed_tensor_is_refused_with_expected_and_found(file):
    header, body = header_of(file)
    write(file, header, body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(SpecError, match=r"tensor direction .* changed .* expected .* found"):
        load_artifact(file, kinds=KINDS)


def test_a_changed_spec_is_refused_with_expected_and_found(file):
    header, body = header_of(file)
    spec = header["__metadata__"]["spec"]
    header["__metadata__"]["spec"] = spec.replace("blocks.3.", "blocks.4.")
    write(file, header, body)
    expected = digest(spec_of(push()))
    with pytest.raises(SpecError, match=f"spec of .* expected {expected}, found [0-9a-f]{{64}}"):
        load_artifact(file, kinds=KINDS)


def test_a_tensor_under_another_name_is_refused(file):
    header, body = header_of(file)
    header["other"] = header.pop("direction")
    write(file, header, body)
    with pytest.raises(SpecError, match="lacks the tensor direction"):
        load_artifact(file, kinds=KINDS)


def test_an_added_tensor_is_refused(file):
    header, body = header_of(file)
    size = len(body)
    header["smuggled"] = {"dtype": "U8", "shape": [1], "data_offsets": [size, size + 1]}
    write(file, header, body + b"x")
    with pytest.raises(SpecError, match="does not name: smuggled"):
        load_artifact(file, kinds=KINDS)


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file_is_refused(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SpecError, match="truncated, corrupted"):
        load_artifact(file, kinds=KINDS)


class Bomb:
    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_refused_without_running_it(tmp_path, protocol):
    path = tmp_path / "probe.safetensors"
    path.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    with pytest.raises(SpecError, match=rf"pickle of protocol {protocol}.*x80.*would run"):
        load_artifact(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_is_refused_whatever_its_name(tmp_path, zipped):
    path = tmp_path / "vector.bin"
    torch.save({"v": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(SpecError, match=r"(zip archive|pickle).*would run whatever code"):
        load_artifact(path)


def test_other_formats_are_called_by_their_names(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(2))
    (tmp_path / "a.json").write_text('{"kind": "toy.Push"}')
    (tmp_path / "a.txt").write_text("(dp0\nplain text")
    for name, match in [("a.npy", "numpy array"), ("a.json", "JSON"), ("a.txt", "not a whole")]:
        with pytest.raises(SpecError, match=match):
            load_artifact(tmp_path / name)


def test_weights_without_a_spec_are_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(SpecError, match=r"without a spec of ours: it has 1 tensors"):
        load_artifact(tmp_path / "model.safetensors")


def test_a_newer_format_is_refused_before_its_digest_is_judged(file):
    header, body = header_of(file)
    header["__metadata__"] |= {"format_version": "2", "digest": "made otherwise"}
    write(file, header, body)
    with pytest.raises(SpecError, match="format version 2, but this installation reads 1"):
        load_artifact(file, kinds=KINDS)


def test_a_kind_that_is_not_installed_is_refused(file):
    with pytest.raises(SpecError, match=r"'toy\.Push' is not a kind"):
        load_artifact(file, kinds={})


def test_a_missing_file_is_answered_with_the_near_name(file):
    with pytest.raises(SpecError, match=r"no file .*Did you mean push\.safetensors\?"):
        load_artifact(file.with_name("posh.safetensors"))
    with pytest.raises(SpecError, match="no file"):
        load_artifact(file.parent)


def test_saving_what_could_not_be_loaded_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(SpecError, match="not a kind that is installed"):
        save([push()], tmp_path / "push", kinds={})
    with pytest.raises(SpecError, match="cannot be saved"):
        save(push(rows=(print,)), tmp_path / "push", kinds=KINDS)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(SpecError, match="Make the folder"):
        save(push(), tmp_path / "no" / "push", kinds=KINDS)
    with pytest.raises(SpecError, match="Cannot save"):
        save(push(), tmp_path, kinds=KINDS)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(file, monkeypatch, failing, error):
    def fail(*_):
        raise error

    before = file.read_bytes()
    monkeypatch.setattr(steer.artifacts.os, failing, fail)
    with pytest.raises(type(error)):
        save(Push(Site(1), torch.ones(2)), file, kinds=KINDS)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_the_file_has_the_permissions_that_any_new_file_gets(file):
    plain = file.with_name("plain")
    plain.write_text("x")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_probe_inside_an_intervention_survives_with_its_digest_and_origin(tmp_path):
    linear = importlib.import_module("probes.linear")
    known = {**KINDS, "probes.LinearProbe": linear.LinearProbe}
    origin = {"model": "tiny-llama", "site": "blocks.3.resid_post"}
    probe = linear.LinearProbe(
        torch.arange(4.0), torch.tensor(0.5), "logistic", (False, True), origin, {"seed": 0}
    )
    gate = Push(Site(3), torch.ones(4), origin=probe)
    back = load_artifact(save([gate], tmp_path / "gate", kinds=known), kinds=known)
    assert isinstance(back, list)
    assert back[0].origin.digest == probe.digest
    assert back[0].origin.origin == origin
    alone = load_artifact(save(probe, tmp_path / "probe", kinds=known), kinds=known)
    assert isinstance(alone, linear.LinearProbe)
    assert digest(spec_of(alone)) == probe.digest


def test_a_manifold_survives_with_its_digest(tmp_path):
    manifolds = importlib.import_module("manifolds")
    u = torch.arange(24.0) % 12
    angle = 2 * torch.pi * u / 12
    x = torch.stack([angle.cos(), angle.sin(), 0 * angle], -1).double()
    curve = manifolds.fit_curve(x, u, period=12)
    known = {"manifolds.Curve": manifolds.Curve, "manifolds.Subspace": manifolds.Subspace}
    back = load_artifact(save(curve, tmp_path / "curve", kinds=known), kinds=known)
    assert back.digest == curve.digest == digest(spec_of(curve))  # type: ignore[attr-defined]
