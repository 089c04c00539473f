"""Inspect's own `eval` over plans, offline, against `lm.generate` and `lm.logits` of the same plan.

The two collisions that these tests watch were reproduced in Inspect itself: its generation cache
does not know model arguments, and its memo takes two live objects for one.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import CachePolicy, GenerateConfig, Model, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

import steer
from steer.evals import Refused, verify
from steer.evals.inspecting import offer, withdraw
from steer.evals.inspecting.provider import SteeredAPI
from steer.evals.manifest import plan_digest
from steer.scopes import Scope

PROMPTS = ["a b c", "the cat sat on the", "one two", "x", "dogs and cats and"]
NEW = 6
pytestmark = pytest.mark.filterwarnings("ignore")
"""Inspect and what it imports warn of themselves."""


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


_MADE: list[Model] = []


@pytest.fixture(autouse=True)
def _at_home(lm, tmp_path, monkeypatch):
    """Keep Inspect's caches and traces in the test's folder, and offer the shared model."""
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "INSPECT_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    offer("tiny", lm)
    yield
    while _MADE:
        _MADE.pop().api.close()
    withdraw("tiny")


def saved(lm, folder: Path, seed: int, scope: Scope = steer.ALL) -> tuple[str, str, list]:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))
    plan = [steer.Add(steer.Site(2), v, 3.0, scope=scope)]
    path = steer.save(plan, folder / f"plan{seed}.safetensors")
    return str(path), plan_digest(plan), plan


def task(cache=False, **config) -> Task:
    return Task(
        dataset=[Sample(input=prompt, target="a", id=prompt) for prompt in PROMPTS],
        solver=generate(cache=CachePolicy(per_epoch=False) if cache else False),
        scorer=includes(),
        config=GenerateConfig(max_tokens=NEW, **config),
    )


def run(what: Task, model, folder: Path) -> EvalLog:
    (log,) = inspect_eval(what, model=model, log_dir=str(folder / "logs"), display="none")
    return log


def texts(log: EvalLog) -> dict[str, str]:
    assert log.status == "success", log.error
    return {str(sample.id): sample.output.completion for sample in log.samples or []}


def model(name: str, plan: object = None, **arguments) -> Model:
    _MADE.append(
        get_model(f"steered/{name}", memoize=False, plan=plan, template="raw", **arguments)
    )
    return _MADE[-1]


def api(made: Model) -> SteeredAPI:
    assert isinstance(made.api, SteeredAPI)
    return made.api


def test_inspects_answers_are_those_of_generate_under_the_same_plan(lm, tmp_path):
    path, digest, plan = saved(lm, tmp_path, 0)
    what = task(logprobs=True, top_logprobs=3, prompt_logprobs=1)
    log = run(what, model(f"tiny@{digest}", path), tmp_path)
    plain = lm.generate(PROMPTS, max_new_tokens=NEW)
    wanted = lm.generate(PROMPTS, plan, max_new_tokens=NEW)
    assert texts(log) == dict(zip(PROMPTS, wanted, strict=True))
    assert list(wanted) != list(plain)
    for sample in log.samples or []:
        at = PROMPTS.index(str(sample.id))
        choice = sample.output.choices[0]
        assert choice.logprobs is not None
        found = [one.logprob for one in choice.logprobs.content]
        assert found == pytest.approx(wanted.log_probs[at].tolist(), abs=1e-4)
        ids = lm.rows([PROMPTS[at]])[0]
        log_probs = lm.logits([ids], plan, scope=steer.ALL).reshape(len(ids), -1).log_softmax(-1)
        expected = log_probs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        assert choice.prompt_logprobs is not None
        prompt = [one.logprob for one in choice.prompt_logprobs.content]
        assert prompt == pytest.approx(expected.tolist(), abs=1e-4)
        usage = sample.output.usage
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (len(ids), NEW)
        assert sample.output.metadata is not None
        assert sample.output.metadata["plan"] == digest
        (did,) = sample.output.metadata["receipt"]
        assert did["eligible_by_phase"] == {"prompt": len(ids), "generated": NEW - 1}


def test_the_logged_token_is_the_sampled_one_and_not_the_likeliest(lm, tmp_path):
    path, digest, plan = saved(lm, tmp_path, 0)
    what = task(logprobs=True, temperature=3.0, seed=5)
    log = run(what, model(f"tiny@{digest}", path), tmp_path)
    unlikely, seeds = 0, set()
    for sample in log.samples or []:
        assert sample.output.metadata is not None
        seed = sample.output.metadata["seed"]
        seeds.add(seed)
        wanted = lm.generate(
            [str(sample.id)],
            plan,
            max_new_tokens=NEW,
            do_sample=True,
            seed=seed,
            temperature=3.0,
            top_k=0,
        )
        assert sample.output.completion == wanted[0]
        logprobs = sample.output.choices[0].logprobs
        assert logprobs is not None
        found = [one.logprob for one in logprobs.content]
        assert found == pytest.approx(wanted.log_probs[0].tolist(), abs=1e-4)
        unlikely += sum(value < -4 for value in found)
    assert unlikely > 5
    assert len(seeds) == len(PROMPTS)


def test_the_generation_cache_of_one_plan_never_answers_for_another(lm, tmp_path):
    plain = texts(run(task(cache=True), model("tiny@base"), tmp_path))
    for seed in (0, 1):
        path, digest, plan = saved(lm, tmp_path, seed)
        for _ in range(2):  # the second time from the cache
            found = texts(run(task(cache=True), model(f"tiny@{digest}", path), tmp_path))
            wanted = lm.generate(PROMPTS, plan, max_new_tokens=NEW)
            assert found == dict(zip(PROMPTS, wanted, strict=True)) != plain


def test_the_cache_is_really_hit_by_the_same_plan(lm, tmp_path):
    path, digest, _ = saved(lm, tmp_path, 0)
    run(task(cache=True), model(f"tiny@{digest}", path), tmp_path)
    again = run(task(cache=True), model(f"tiny@{digest}", path), tmp_path)
    reads = [
        event.cache
        for sample in again.samples or []
        for event in sample.events
        if event.event == "model"
    ]
    assert reads == ["read"] * len(PROMPTS)


def test_plans_of_requests_differ_in_the_cache_as_their_digests_do(lm, tmp_path):
    for seed in (0, 1):
        path, digest, plan = saved(lm, tmp_path, seed)
        what = task(cache=True, extra_body={"plan": path, "digest": digest})
        found = texts(run(what, model("tiny@base"), tmp_path))
        wanted = lm.generate(PROMPTS, plan, max_new_tokens=NEW)
        assert found == dict(zip(PROMPTS, wanted, strict=True))


def test_the_memo_keeps_two_plans_apart(lm, tmp_path):
    models = []
    for seed in (0, 1):
        path, digest, _ = saved(lm, tmp_path, seed)
        models.append(get_model(f"steered/tiny@{digest}", plan=path, template="raw"))
        _MADE.append(models[-1])
    assert models[0] is not models[1]
    assert api(models[0]).named.digest != api(models[1]).named.digest
    # They share the model and its batches.
    assert api(models[0]).engine is api(models[1]).engine


def test_arms_of_one_evaluation_share_batches_and_no_answer_is_of_another_arm(lm, tmp_path):
    arms, wanted = [], []
    for seed in range(4):
        path, digest, plan = saved(lm, tmp_path, seed)
        arms.append(model(f"tiny@{digest}", path))
        wanted.append(lm.generate(PROMPTS, plan, max_new_tokens=NEW))
    batcher = api(arms[0]).engine.batcher
    logs = inspect_eval(
        task(), model=arms, log_dir=str(tmp_path / "logs"), display="none", max_tasks=4
    )
    found = {log.eval.model: [texts(log)[prompt] for prompt in PROMPTS] for log in logs}
    assert found == {str(arm): list(one) for arm, one in zip(arms, wanted, strict=True)}
    assert batcher.n_batches < 4 * len(PROMPTS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny", "names no plan"),
        ("tiny@", "names no plan"),
        ("tiny@abc", "names no plan"),
        ("tiny@" + "0" * 64, "is promised"),
    ],
)
def test_a_name_that_does_not_promise_this_plan_is_refused(lm, tmp_path, name, said):
    path, _, _ = saved(lm, tmp_path, 0)
    with pytest.raises(Refused, match=said):
        model(name, path)


def test_base_with_a_plan_and_a_digest_without_one_are_refused(lm, tmp_path):
    path, digest, plan = saved(lm, tmp_path, 0)
    with pytest.raises(Refused, match="leave the plan out"):
        model("tiny@base", path)
    with pytest.raises(Refused, match="has to be the path of a file"):
        model(f"tiny@{digest}")
    with pytest.raises(Refused, match="live objects"):
        model(f"tiny@{digest}", plan)


def test_a_changed_file_and_rows_and_an_empty_plan_are_refused(lm, tmp_path):
    path, digest, plan = saved(lm, tmp_path, 0)
    data = bytearray(Path(path).read_bytes())
    data[-5] ^= 1
    Path(path).write_bytes(data)
    with pytest.raises(Refused, match=r"\[bad_plan\].*changed after it was written"):
        model(f"tiny@{digest}", path)
    for value in (steer.Rows([plan, []]), []):
        other = str(steer.save(value, tmp_path / "other.safetensors"))
        with pytest.raises(Refused, match="bad_plan"):
            model("tiny@" + "a" * 64, other)


def test_a_plan_that_does_not_fit_the_model_errs_before_any_sample(tmp_path):
    plan = [steer.Add(steer.Site(2), torch.ones(7))]
    path = steer.save(plan, tmp_path / "narrow.safetensors")
    with pytest.raises(steer.SteerError, match="7 entries"):
        model(f"tiny@{plan_digest(plan)}", str(path))


def test_an_intervention_that_never_fires_is_an_error_of_its_sample_and_no_answer(lm, tmp_path):
    path, digest, _ = saved(lm, tmp_path, 0, scope=steer.text("cat", missing="skip"))
    (log,) = inspect_eval(
        task(),
        model=model(f"tiny@{digest}", path, audit=str(tmp_path / "audit.jsonl")),
        log_dir=str(tmp_path / "logs"),
        display="none",
        fail_on_error=False,
    )
    errors = {str(sample.id): sample.error for sample in log.samples or []}
    for prompt, error in errors.items():
        assert (error is None) == ("cat" in prompt), (prompt, error)
        if error is not None:
            assert "[never_fired]" in error.message


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5"),
        ({"num_choices": 2}, "num_choices is 2"),
        ({"logit_bias": {3: 5.0}}, "logit_bias"),
        ({"prompt_logprobs": 4}, "prompt_logprobs is 4"),
        ({"extra_body": {"colour": 1}}, "colour"),
        ({"extra_body": {"plan": "x"}}, "64 digits"),
        ({"extra_body": {"guards": [{"line": "a", "above": 1}]}}, "line is an integer"),
        ({"max_tokens": 10**6}, "too_long"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(tmp_path, config, said):
    what = task()
    what.config = what.config.merge(GenerateConfig(**config))
    log = run(what, model("tiny@base"), tmp_path)
    assert log.status == "error"
    assert log.error is not None
    assert said in log.error.message


def test_every_generation_is_in_the_audit_log(lm, tmp_path):
    path, digest, _ = saved(lm, tmp_path, 0)
    audit = tmp_path / "audit.jsonl"
    made = model(f"tiny@{digest}", path, audit=str(audit))
    run(task(), made, tmp_path)
    api(made).close()
    verdict = verify(audit)
    assert verdict.ok, str(verdict)
    assert verdict.records == len(PROMPTS) + 2


def test_a_guard_turns_the_answer_into_a_content_filter(lm, tmp_path):
    probe = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(3))
    import probes

    x = torch.cat([probe.expand(8, -1), -probe.expand(8, -1)]) + 0.01 * torch.randn(16, lm.d_model)
    fitted = probes.fit_logistic(x, torch.arange(16) < 8)
    plan = [steer.Monitor(steer.Read(steer.Site(2), fitted, scope=steer.OUTPUT, reduce="max"))]
    path = str(steer.save(plan, tmp_path / "watch.safetensors"))
    for above, stop in ((-1.0, "content_filter"), (2.0, "max_tokens")):
        made = model(f"tiny@{plan_digest(plan)}", path, guards=f'{{"line": 0, "above": {above}}}')
        log = run(task(), made, tmp_path)
        found = [sample.output for sample in log.samples or []]
        assert {output.stop_reason for output in found} == {stop}
        assert all((output.completion == "") == (above < 0) for output in found)


def test_the_model_is_given_back_when_its_last_user_closes():
    first, second = model("tiny@base"), model("tiny@base")
    batcher = api(first).engine.batcher
    api(first).close()
    api(first).close()
    assert batcher._worker.is_alive()
    api(second).close()
    assert not batcher._worker.is_alive()


@pytest.mark.slow
def test_the_command_line_leaves_a_log_that_has_its_end(lm, tmp_path):
    """In a process of its own, as Inspect's command line ends without closing its models."""
    path, digest, _ = saved(lm, tmp_path, 0)
    (tmp_path / "task.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "@task\n"
        "def short():\n"
        "    return Task(dataset=[Sample(input='a b', target='a')])\n"
    )
    given = ["-M", f"plan={path}", "-M", "template=raw", "-M", f"audit={tmp_path / 'a.jsonl'}"]
    command = ["inspect", "eval", "task.py", "--model", f"steered/tiny-llama@{digest[:16]}", *given]
    script = str(Path(sys.executable).with_name("inspect"))
    done = subprocess.run(
        [script, *command[1:], "--max-tokens", "4", "--display", "plain"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdict = verify(tmp_path / "a.jsonl")
    assert (verdict.ok, verdict.records) == (True, 3), str(verdict)
