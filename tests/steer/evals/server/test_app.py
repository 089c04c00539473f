"""The server through the official client, against `lm.generate` of the same plan."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import torch
import uvicorn

import probes
import steer
from steer.evals import Refused, manifest_of, open_log, verify
from steer.evals.batching import Batcher, Shape
from steer.evals.server import Plans, Settings, read_plans
from steer.evals.server.app import make_app
from steer.evals.server.commands import read_token

PROMPTS = ["a b c", "the cat sat on the", "one two", "x", "dogs and cats and"]
SITE = steer.Site(2)
TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


def plans_of(lm):
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    x = torch.cat([v.expand(8, -1), -v.expand(8, -1)])
    probe = probes.fit_logistic(x + 0.01 * torch.randn(16, lm.d_model), torch.arange(16) < 8)
    return {
        "left": [steer.Add(SITE, v, 3.0)],
        "right": [steer.Add(SITE, -v, 3.0)],
        "late": [steer.Add(SITE, v, 3.0, scope=steer.GENERATED)],
        "cat": [steer.Add(SITE, v, scope=steer.text("cat"))],
        "watch": [steer.Monitor(steer.Read(SITE, probe, scope=steer.OUTPUT, reduce="max"))],
        "burst": [steer.Add(SITE, v, 1e38)],
    }


@pytest.fixture(scope="module")
def plans(lm, tmp_path_factory) -> Plans:
    folder = tmp_path_factory.mktemp("plans")
    for name, plan in plans_of(lm).items():
        steer.save(plan, folder / f"{name}.safetensors")
    return read_plans(lm, folder, model="tiny", base=True)


@contextmanager
def serving(lm, plans, settings=None, log=None, **batching):
    """Run a server on a free port of loopback; yield its address and its batcher."""
    batcher = Batcher(lm, **batching)
    app = make_app(batcher, plans, settings or Settings(), log)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", batcher
    finally:
        server.should_exit = True
        thread.join(30)
        batcher.close(drain=False)
        assert not thread.is_alive()


@contextmanager
def client_of(address: str, token: str = "none"):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=token, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def address(lm, plans):
    with serving(lm, plans) as (found, _):
        yield found


@pytest.fixture
def client(address):
    with client_of(address) as made:
        yield made


def complete(client, plan: str, prompt: str, n: int = 6, **more):
    return client.completions.create(
        model=f"tiny@{plan}", prompt=prompt, max_tokens=n, temperature=0, **more
    )


def reason(error: openai.APIStatusError) -> tuple[int, str | None]:
    return error.status_code, error.code


@pytest.mark.parametrize("name", ["left", "right", "late", "base"])
def test_an_answer_is_that_of_generate_under_the_plan(lm, plans, client, name):
    plan = list(plans.by_name[name].plan)
    for prompt in PROMPTS:
        found = complete(client, name, prompt)
        wanted = lm.generate([prompt], plan, max_new_tokens=6)
        assert found.choices[0].text == wanted[0]
        assert found.steer["plan"] == plans.by_name[name].digest
        assert len(found.steer["receipt"]) == len(plan)
        ids = lm.rows([prompt])[0]
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids), 6)


def test_a_chat_is_rendered_by_the_models_own_template(lm, plans, client):
    messages = [{"role": "user", "content": "the cat"}]
    found = client.chat.completions.create(
        model="tiny",
        messages=messages,
        max_completion_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=2,
        extra_body={"plan": "left", "digest": plans.by_name["left"].digest},
    )
    wanted = lm.generate([messages], plans_of(lm)["left"], max_new_tokens=5)
    assert found.choices[0].message.content == wanted[0]
    content = found.choices[0].logprobs.content
    assert [one.logprob for one in content] == pytest.approx(wanted.log_probs[0].tolist(), abs=1e-4)
    assert all(one.logprob == one.top_logprobs[0].logprob for one in content)


def test_a_stream_is_steered_and_makes_up_the_whole_answer(lm, plans, client):
    whole = lm.generate([PROMPTS[1]], plans_of(lm)["left"], max_new_tokens=9)[0]
    chunks = list(complete(client, "left", PROMPTS[1], 9, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1].steer["plan"] == plans.by_name["left"].digest
    chat = client.chat.completions.create(
        model="tiny@left",
        messages=[{"role": "user", "content": "the cat"}],
        max_tokens=5,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *parts, counted = list(chat)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    said = [[{"role": "user", "content": "the cat"}]]
    wanted = lm.generate(said, plans_of(lm)["left"], max_new_tokens=5)
    assert text == wanted[0]
    assert counted.usage.completion_tokens == 5


def test_a_guard_decides_before_text_leaves(client):
    for above, finish in ((-1.0, "content_filter"), (2.0, "length")):
        guards = {"guards": [{"line": 0, "above": above}]}
        found = complete(client, "watch", PROMPTS[1], extra_body=guards)
        assert found.choices[0].finish_reason == finish
        assert (found.choices[0].text == "") == (above < 0)
        chunks = list(complete(client, "watch", PROMPTS[1], stream=True, extra_body=guards))
        assert ("".join(chunk.choices[0].text for chunk in chunks) == "") == (above < 0)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"model": "tiny@absent"}, (404, "unknown_plan")),
        ({"model": "tiny"}, (404, "unknown_plan")),
        ({"model": "tiny@../../left"}, (404, "unknown_plan")),
        ({"model": "other@left"}, (404, "unknown_model")),
        ({"extra_body": {"digest": "0" * 64}}, (409, "wrong_plan")),
        ({"extra_body": {"plan": "right"}}, (409, "wrong_plan")),
        ({"extra_body": {"digest": "0"}}, (400, "bad_request")),
        ({"extra_body": {"strength": 2}}, (400, "unsupported_option")),
        ({"presence_penalty": 0.5}, (400, "unsupported_option")),
        ({"n": 2}, (400, "bad_request")),
        ({"max_tokens": 0}, (400, "bad_request")),
        ({"max_tokens": 5000}, (400, "too_long")),
        ({"temperature": 3}, (400, "bad_request")),
        ({"prompt": ""}, (400, "bad_request")),
        ({"prompt": [10**6]}, (400, "bad_request")),
        ({"stop": ["", "a"]}, (400, "bad_request")),
        ({"extra_body": {"guards": [{"line": 0, "above": 1.0}]}}, (400, "bad_request")),
        ({"model": "tiny@cat", "prompt": "one two"}, (422, "plan_does_not_fit")),
        ({"model": "tiny@late", "max_tokens": 1}, (422, "never_fired")),
        ({"model": "tiny@burst"}, (422, "not_finite")),
    ],
)
def test_each_refusal_has_its_status_and_its_code(client, change, wanted):
    given = {"model": "tiny@left", "prompt": "a b", "max_tokens": 4, "temperature": 0, **change}
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(**given)
    assert reason(refused.value) == wanted


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", (400, "bad_request")),
        (b"[]", (400, "bad_request")),
        (b"{" * 10_000, (400, "bad_request")),
        (b"[" * 100_000, (400, "bad_request")),
        (b'{"model": NaN}', (400, "bad_request")),
        (b'{"model": "tiny@left", "prompt": "a", "temperature": NaN}', (400, "bad_request")),
        (b'{"model": "tiny@left", "prompt": "\\ud800"}', (400, "bad_request")),
        (b"\xff\xfe", (400, "bad_request")),
        (b'"' + b"a" * (2 << 20) + b'"', (413, "too_large")),
    ],
)
def test_bodies_that_are_no_requests_are_refused(address, body, wanted):
    found = httpx.post(f"{address}/v1/completions", content=body)
    assert (found.status_code, found.json()["error"]["code"]) == wanted


def test_who_does_not_bear_the_token_gets_nothing(lm, plans):
    with serving(lm, plans, Settings(token=TOKEN)) as (address, _):
        for token in ("none", TOKEN[:-1], TOKEN + "0"):
            with client_of(address, token) as client, pytest.raises(openai.APIStatusError) as no:
                complete(client, "left", "a b")
            assert reason(no.value) == (401, "unauthorized")
        with client_of(address, TOKEN) as client:
            assert len(complete(client, "left", "a b").choices) == 1
            assert {one.id for one in client.models.list()} == {
                f"tiny@{name}" for name in plans.by_name
            }


def stress(lm, plans, n_requests: int, n_clients: int) -> None:
    names = ["left", "right", "late", "base"]
    wanted = {
        (name, prompt): lm.generate([prompt], list(plans.by_name[name].plan), max_new_tokens=6)[0]
        for name in names
        for prompt in PROMPTS
    }
    with serving(lm, plans, max_rows=16, max_waiting=n_requests) as (address, batcher):

        def ask(at: int) -> bool:
            name, prompt = names[at % 4], PROMPTS[at % 5]
            if at % 3:
                found = complete(client, name, prompt)
                digest, text = found.steer["plan"], found.choices[0].text
            else:
                chunks = list(complete(client, name, prompt, stream=True))
                digest = chunks[-1].steer["plan"]
                text = "".join(chunk.choices[0].text for chunk in chunks)
            return digest == plans.by_name[name].digest and text == wanted[name, prompt]

        with client_of(address) as client, ThreadPoolExecutor(n_clients) as pool:
            right = list(pool.map(ask, range(n_requests)))
        assert right == [True] * n_requests
        assert batcher.n_batches < n_requests
    assert not batcher._worker.is_alive()


def test_many_clients_with_four_plans_get_their_own_answers(lm, plans):
    stress(lm, plans, 96, 16)


@pytest.mark.slow
def test_32_clients_with_4_plans_and_500_requests_lose_none_and_get_no_other_plan(lm, plans):
    stress(lm, plans, 500, 32)


def test_more_than_may_wait_are_answered_429_and_the_others_are_not_lost(lm, plans):
    with (
        serving(lm, plans, max_rows=1, max_waiting=2) as (address, _),
        client_of(address) as client,
    ):

        def ask(_: int) -> tuple[int, str | None]:
            try:
                complete(client, "left", PROMPTS[1], 200)
            except openai.APIStatusError as refused:
                return reason(refused)
            return 200, None

        with ThreadPoolExecutor(16) as pool:
            found = Counter(pool.map(ask, range(16)))
    assert set(found) == {(200, None), (429, "queue_full")}
    assert found[200, None] >= 2


def recorded(batcher) -> list:
    """Return the tickets that a batcher hands out from here on."""
    tickets, submit = [], batcher.submit

    def kept(*given):
        tickets.append(submit(*given))
        return tickets[-1]

    batcher.submit = kept
    return tickets


def test_a_late_answer_is_refused_and_its_row_leaves_the_batch(lm, plans):
    settings = Settings(timeout_s=0.2)
    with serving(lm, plans, settings) as (address, batcher), client_of(address) as client:
        tickets = recorded(batcher)
        with pytest.raises(openai.APIStatusError) as late:
            complete(client, "left", "a b", 1000)
        assert reason(late.value) == (408, "timed_out")
        assert tickets[0].cancelled


def test_a_client_that_leaves_takes_its_row_along(lm, plans):
    with serving(lm, plans) as (address, batcher):
        tickets = recorded(batcher)
        body = {"model": "tiny@left", "prompt": "a b", "max_tokens": 1000, "temperature": 0}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json=body, timeout=0.3)
        assert tickets[0]._gone.wait(30)


def test_a_fixed_shape_gives_the_same_bits_beside_others(lm, plans):
    with serving(lm, plans, shape=Shape(8, 24)) as (address, _), client_of(address) as client:

        def ask(name: str) -> list[float]:
            found = complete(client, name, PROMPTS[1], logprobs=1)
            return found.choices[0].logprobs.token_logprobs

        alone = ask("left")
        with ThreadPoolExecutor(8) as pool:
            shared = list(pool.map(ask, ["left", "right", "late", "base"] * 2))
    assert shared[0] == shared[4] == alone


def test_every_answer_and_refusal_is_in_the_log(lm, plans, tmp_path):
    path = tmp_path / "log.jsonl"
    with (
        open_log(path, manifest_of(lm)) as log,
        serving(lm, plans, log=log) as (address, _),
        client_of(address) as client,
    ):
        complete(client, "left", "a b")
        with pytest.raises(openai.APIStatusError):
            complete(client, "absent", "a b")
    verdict = verify(path)
    assert (verdict.ok, verdict.records) == (True, 4)
    bodies = [json.loads(line)["body"] for line in path.read_text().splitlines()]
    assert bodies[1]["plan"] == plans.by_name["left"].digest
    assert bodies[2]["refused"] == "unknown_plan"


def test_an_answer_that_cannot_be_recorded_is_not_given(lm, plans, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("the disk is full")

    log = open_log(tmp_path / "log.jsonl", manifest_of(lm))
    with serving(lm, plans, log=log) as (address, _), client_of(address) as client:
        monkeypatch.setattr(log, "append", full)
        for stream in (False, True):
            with pytest.raises((openai.APIStatusError, openai.APIError)) as refused:
                list(complete(client, "left", "a b", stream=stream))
            assert "the disk is full" in str(refused.value)
    monkeypatch.undo()
    log.close()


def test_plans_that_cannot_be_served_are_refused_at_the_start(lm, tmp_path):
    with pytest.raises(Refused, match="unknown_plan"):
        read_plans(lm, tmp_path, model="tiny", base=False)
    steer.save([steer.Add(SITE, torch.ones(7))], tmp_path / "narrow.safetensors")
    with pytest.raises(Refused, match=r"\[plan_does_not_fit\].*narrow.*7 entries"):
        read_plans(lm, tmp_path, model="tiny", base=True)
    (tmp_path / "narrow.safetensors").write_bytes(b"\x80\x04x.")
    with pytest.raises(Refused, match=r"\[bad_plan\].*pickle"):
        read_plans(lm, tmp_path, model="tiny", base=True)


def test_beyond_loopback_a_token_is_needed_and_a_short_one_is_none(tmp_path: Path):
    assert read_token(None, "127.0.0.1") is read_token(None, "::1") is None
    for host in ("0.0.0.0", "192.168.1.2", "example.org"):
        with pytest.raises(Refused, match="--token-file"):
            read_token(None, host)
    short = tmp_path / "t"
    short.write_text("abc\n")
    with pytest.raises(Refused, match="3 characters"):
        read_token(short, "127.0.0.1")
    short.write_text(TOKEN + "\n")
    assert read_token(short, "0.0.0.0") == TOKEN
