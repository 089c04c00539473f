"""Tampered artefacts: no answer under another plan, no code run, each refusal with its code."""

import copy
import hashlib
import json
import pickle
import random
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import steer
from steer.evals import Refused
from steer.evals.manifest import plan_digest
from steer.evals.naming import plan_of
from steer.evals.refusals import REASONS
from steer.spec import canonical

N = 500


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A saved plan with a gate, a scope, a strength and tensors; its bytes and its digest."""
    v = torch.randn(64, generator=torch.Generator().manual_seed(0))
    plan = [
        steer.Add(steer.Site(2), v, 1.5, scope=steer.span(1, 4)),
        steer.Ablate(steer.Site(1), v[None], scope=steer.OUTPUT),
        steer.PreserveNorm(steer.Rotate(steer.Site(3), torch.stack([v, v.flip(0)]), 0.3)),
    ]
    path = steer.save(plan, tmp_path_factory.mktemp("plan") / "plan.safetensors")
    return path.read_bytes(), plan_digest(plan)


def split(data: bytes) -> tuple[dict, bytes]:
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def joined(header: dict, tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def places(node: object, at: tuple = ()) -> list[tuple]:
    """Return the path of every value in a JSON tree."""
    if isinstance(node, dict):
        return [p for key, item in node.items() for p in [(*at, key), *places(item, (*at, key))]]
    if isinstance(node, list):
        return [p for i, item in enumerate(node) for p in [(*at, i), *places(item, (*at, i))]]
    return []


STRANGE = (None, True, -1, 2**70, 1e308, "", "x", "os.system", "../../etc/passwd", [], {}, [[]])


def mutated(spec: Any, place: tuple, drawn: random.Random) -> Any:
    """Return a spec with the value at one place changed, lost or doubled."""
    made = copy.deepcopy(spec)
    holder = made
    for key in place[:-1]:
        holder = holder[key]
    how = drawn.randrange(4)
    value = holder[place[-1]]
    if how == 0 and isinstance(value, int | float) and not isinstance(value, bool):
        holder[place[-1]] = value + drawn.choice([1, -2, 0.5])
    elif how == 1 and isinstance(holder, dict):
        del holder[place[-1]]
    elif how == 2 and isinstance(holder, dict):
        holder[f"{place[-1]}_more"] = value
    else:
        holder[place[-1]] = drawn.choice(STRANGE)
    return made


def tampered(good: bytes):
    """Yield (what was done, bytes): at least half whole files with one field of the spec changed,
    each with a digest of its own, so that only what was promised shows the change."""
    drawn = random.Random(0)
    header, tensors = split(good)
    meta = header["__metadata__"]
    spec = json.loads(meta["spec"])
    every = places(spec)
    for at in range(N):
        if at < 300:  # every field, several times over
            place = every[at % len(every)]
            text = canonical(mutated(spec, place, drawn))
            changed = {**meta, "spec": text, "digest": hashlib.sha256(text.encode()).hexdigest()}
            yield f"spec {place}", joined({**header, "__metadata__": changed}, tensors)
        elif at < 360:
            name = drawn.choice(list(meta))
            changed = {**meta, name: drawn.choice(["", "x", "99", meta[name] + " "])}
            yield f"header {name}", joined({**header, "__metadata__": changed}, tensors)
        elif at < 430:
            data = bytearray(good)
            data[drawn.randrange(len(data))] ^= 1 << drawn.randrange(8)
            yield "bit", bytes(data)
        elif at < 480:
            yield "cut", good[: drawn.randrange(len(good))]
        else:
            yield "other", drawn.choice([b"", b"{}", pickle.dumps(Boom()), b"PK\x03\x04" + good])


class Boom:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path("/tmp/manifold-steer-unpickled").touch, ())


def test_no_tampered_artefact_is_taken_for_the_plan_that_was_promised(good, tmp_path):
    data, digest = good
    path = tmp_path / "plan.safetensors"
    path.write_bytes(data)
    assert plan_of(str(path), digest).digest == digest
    reasons: Counter[str] = Counter()
    n = same = 0
    for what, bad in tampered(data):
        n += 1
        path.write_bytes(bad)
        try:
            named = plan_of(str(path), digest)
        except Refused as refusal:
            reasons[refusal.reason] += str(refusal).startswith(f"[{refusal.reason}] ")
        else:
            # Taken, so it has to be the promised plan itself: a change that changes nothing.
            assert plan_digest(named.plan) == digest, what
            same += 1
    assert n == N == same + reasons.total()
    assert set(reasons) <= set(REASONS)
    assert set(reasons) == {"bad_plan", "wrong_plan"}
    assert same <= 0.1 * N, (same, reasons)
    assert not Path("/tmp/manifold-steer-unpickled").exists()
