"""Hostile requests: no crash, no unsteered answer, and a code for each refusal.

At least half are schema-valid requests with one field mutated, every field among them.
"""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import steer
from steer.evals.refusals import REASONS
from steer.evals.server import read_plans
from tests.steer.evals.server.test_app import plans_of, serving

VALUES = (
    None, True, False, 0, 1, -1, 2, 2**31, 2**70, -(2**70), 0.5, -0.5, 1e308, "", "x", "tiny@left",
    "../left", "\x00", "\u202e", "a" * 5000, [], {}, [None], [[]], ["a"], [1, 2], {"a": 1},
    [{"line": 0, "above": 0.0}], [{"role": "user", "content": "a"}], "base", "0" * 64,
)  # fmt: skip
COMPLETION = {
    "model": "tiny@left", "prompt": "a b c", "max_tokens": 2, "temperature": 0.5, "top_p": 0.9,
    "seed": 3, "stop": ["zzz"], "stream": False, "n": 1, "user": "u", "logprobs": 1, "plan": "left",
    "digest": None, "guards": [], "stream_options": None,
}  # fmt: skip
CHAT = {
    **{k: v for k, v in COMPLETION.items() if k not in ("prompt", "logprobs")},
    "messages": [{"role": "user", "content": "a b"}],
    "logprobs": True, "top_logprobs": 2, "max_completion_tokens": 2,
}  # fmt: skip


def request(at: int, digest: str) -> tuple[str, bytes]:
    """Return the path and the body of one hostile request."""
    drawn = random.Random(at)
    path, good = [("completions", COMPLETION), ("chat/completions", CHAT)][at % 2]
    body: dict[str, object] = {**good, "digest": digest}
    if at % 10 < 7:  # one field, each in turn
        field = sorted(body)[(at // 2) % len(body)]
        how = drawn.randrange(8)
        if how == 0:
            del body[field]
        elif how == 1:
            body[field + drawn.choice("sx_ ")] = body[field]
        else:
            body[field] = drawn.choice(VALUES)
        return path, json.dumps(body).encode()
    data = bytearray(json.dumps(body).encode())
    if at % 10 == 7:
        for _ in range(drawn.randrange(1, 8)):
            data[drawn.randrange(len(data))] = drawn.randrange(256)
    elif at % 10 == 8:
        del data[drawn.randrange(len(data)) :]
    else:
        data = bytearray(drawn.randbytes(drawn.randrange(300)))
    return path, bytes(data)


def told(found: httpx.Response) -> str:
    """Return the code of a refusal, or the digest of the plan of an answer."""
    if found.headers["content-type"].startswith("text/event-stream"):
        events = [line[6:] for line in found.text.splitlines() if line.startswith("data: ")]
        parts = [json.loads(event) for event in events if event != "[DONE]"]
        said = next((part for part in parts if "error" in part or "steer" in part), {})
    else:
        said = found.json()
    if "error" in said:
        return str(said["error"]["code"])
    steered = said["steer"]
    assert all(did["eligible"] > 0 for did in steered["receipt"])
    return f"answered {steered['plan']}"


def fuzz(lm, folder, n: int) -> Counter[str]:
    for name, plan in plans_of(lm).items():
        steer.save(plan, folder / f"{name}.safetensors")
    plans = read_plans(lm, folder, model="tiny", base=False)
    digest = plans.by_name["left"].digest
    with serving(lm, plans, max_rows=32, max_waiting=256) as (address, batcher):
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(16) as pool:

            def ask(at: int) -> str:
                path, body = request(at, digest)
                return told(client.post(f"{address}/v1/{path}", content=body))

            found = Counter(pool.map(ask, range(n)))
            assert client.get(f"{address}/health").json()["status"] == "ok"
        assert batcher._worker.is_alive()
    answered = {text for text in found if text.startswith("answered ")}
    # Without `base` every answer is a plan's own, and it is the one whose digest was promised.
    known = {f"answered {named.digest}" for named in plans.by_name.values()}
    assert answered <= known
    assert set(found) - answered <= set(REASONS)
    assert "pass_failed" not in found
    assert found[f"answered {digest}"] > n / 20
    return found


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def test_600_hostile_requests_are_answered_under_their_plan_or_refused_by_a_code(lm, tmp_path):
    fuzz(lm, tmp_path, 600)


@pytest.mark.slow
def test_10_000_hostile_requests_are_answered_under_their_plan_or_refused_by_a_code(lm, tmp_path):
    found = fuzz(lm, tmp_path, 10_000)
    assert found.total() == 10_000

    common = {"bad_request", "unsupported_option", "wrong_plan", "unknown_model"}
    assert common <= set(found)
