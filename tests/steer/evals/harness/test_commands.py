"""`steer-lm-eval` on tasks of a few lines, without network."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import steer
from steer.evals import verify
from steer.evals.harness.commands import main
from steer.evals.harness.files import write_steered
from steer.evals.manifest import plan_digest

CHOICES = [" a", " b", " mat then"]
QUESTIONS = [f"the cat sat on the {word}" for word in ("mat", "dog", "hat", "tree", "house")]
pytestmark = pytest.mark.filterwarnings("ignore")

HEAD = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
"""
CHOOSING = """doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ANSWERING = """doc_to_text: "{{q}}"
doc_to_target: "x"
generation_kwargs: {until: ["zzz"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def lm():
    return steer.load("tiny-llama")


@pytest.fixture
def tasks(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "docs.jsonl"
    docs = [
        {"q": question, "choices": CHOICES, "answer": at % 3}
        for at, question in enumerate(QUESTIONS)
    ]
    data.write_text("\n".join(json.dumps(doc) for doc in docs))
    for name, kind, rest in (
        ("tiny_mc", "multiple_choice", CHOOSING),
        ("tiny_gen", "generate_until", ANSWERING),
    ):
        text = HEAD.format(name=name, kind=kind, data=data) + rest
        (folder / f"{name}.yaml").write_text(text)
    return folder


def plan(lm) -> list[steer.Add]:
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(0))
    return [steer.Add(steer.Site(2), v, 3.0)]


def arguments(tasks: Path, given: object, out: Path, *more: str) -> list[str]:
    base = f"--model tiny-llama --plan {given} --include_path {tasks} --output_path {out}"
    return [*base.split(), *more]


def test_tasks_run_under_the_plan_and_leave_results_manifest_log_and_cache(
    lm, tasks, tmp_path, capsys
):
    file, out = steer.save(plan(lm), tmp_path / "p.safetensors"), tmp_path / "out" / "r.json"
    more = f"--tasks tiny_mc,tiny_gen --log_samples --use_cache {tmp_path / 'cache'}".split()
    audit = ["--audit", str(tmp_path / "log.jsonl"), "--digest", plan_digest(plan(lm))]
    assert main(arguments(tasks, file, out, *more, *audit)) == 0
    assert "tiny_mc" in capsys.readouterr().out
    results = json.loads(out.read_text())
    manifest = json.loads(out.with_suffix(".manifest.json").read_text())
    assert manifest["plan"] == results["config"]["plan_digest"] == plan_digest(plan(lm))
    assert results["config"]["manifest"] == manifest
    assert verify(tmp_path / "log.jsonl").ok
    texts = {one["doc"]["q"]: one["resps"][0][0] for one in results["samples"]["tiny_gen"]}
    wanted = lm.generate(QUESTIONS, plan(lm), max_new_tokens=6)
    assert texts == dict(zip(QUESTIONS, wanted, strict=True))
    for one in results["samples"]["tiny_mc"]:
        for choice, ((score, _),) in zip(CHOICES, one["resps"], strict=True):
            # By lm.logits of the whole text: ALL does not depend on where the prompt ends.
            (ids,) = lm.rows([one["doc"]["q"] + choice])
            n = len(ids) - len(lm.rows([one["doc"]["q"]])[0])
            logits = lm.logits([ids], plan(lm), scope=steer.ALL)[0, -n - 1 : -1]
            log_probs = logits.log_softmax(-1).gather(1, torch.tensor(ids[-n:])[:, None])
            assert float(score) == pytest.approx(float(log_probs.sum()), abs=1e-4)
    (kept,) = (tmp_path / "cache").iterdir()
    assert plan_digest(plan(lm))[:12] in kept.name
    again = tmp_path / "again.json"
    assert main(arguments(tasks, file, again, *more)) == 0
    assert json.loads(again.read_text())["results"] == results["results"]


def test_the_plain_model_and_a_file_of_lm_evals_own_run_too(lm, tasks, tmp_path):
    file = write_steered(lm, plan(lm), tmp_path / "s.pt")
    found = {}
    for name in ("none", str(file)):
        out = tmp_path / f"{Path(name).stem}.json"
        more = ["--tasks", "tiny_gen", "--limit", "2", "--log_samples"]
        assert main(arguments(tasks, name, out, *more)) == 0
        samples = json.loads(out.read_text())["samples"]["tiny_gen"]
        found[name] = [one["resps"][0][0] for one in samples]
    assert found["none"] == list(lm.generate(QUESTIONS[:2], max_new_tokens=6))
    assert found[str(file)] == list(lm.generate(QUESTIONS[:2], plan(lm), max_new_tokens=6))
    assert found["none"] != found[str(file)]


def test_what_must_not_be_reported_ends_with_status_2_a_code_and_no_results(
    lm, tasks, tmp_path, capsys
):
    v = torch.ones(lm.d_model)
    silent = [steer.Add(steer.Site(1), v, scope=steer.text("dog", missing="skip"))]
    good = steer.save(plan(lm), tmp_path / "good.safetensors")
    other = steer.save(silent, tmp_path / "silent.safetensors")
    there = tmp_path / "there.json"
    there.write_text("{}")
    out = tmp_path / "out.json"
    task = ("--tasks", "tiny_mc")
    for given, code in (
        (arguments(tasks, other, out, *task), "never_fired"),
        (arguments(tasks, good, out, *task, "--digest", "0" * 64), "wrong_plan"),
        (arguments(tasks, tmp_path / "lost", out, *task), "bad_plan"),
        (arguments(tasks, good, out, "--tasks", "tiny_mx"), "bad_request"),
        (arguments(tasks, good, there, *task), "bad_request"),
        (["--model", "tiny-lama", *arguments(tasks, good, out, *task)[2:]], "ModelNotFound"),
        (
            arguments(tasks, good, out, "--tasks", "tiny_gen", "--gen_kwargs", "num_beams=4"),
            "unsupported_option",
        ),
    ):
        assert main(given) == 2
        assert f"[{code}]" in capsys.readouterr().err
        assert not out.exists()


def test_a_plan_has_to_be_named(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "tiny-llama", "--tasks", "tiny_mc", "--output_path", str(tmp_path)])
    assert ended.value.code == 2


def test_lm_eval_is_not_imported_before_it_is_needed():
    code = (
        "import sys, steer.evals.harness, steer.evals.harness.commands\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'lm_eval']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
