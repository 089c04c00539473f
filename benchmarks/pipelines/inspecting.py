"""Inspect: a plan through `steered/` and through `lm.generate`, and Inspect's own provider."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import steer
from benchmarks.result import Outcome
from benchmarks.speed.harness import N_FAR, Pair, Timed, timed_outcome
from benchmarks.stats import Number
from benchmarks.task import Options
from steer.evals.inspecting import offer, withdraw
from steer.evals.manifest import plan_digest

CONTROLS = ("generate_over_generate_8",)
N_SAMPLES, N_ROWS, N_ARMS = 64, 32, 8
LENGTHS = (1, 8, 32)
"""New tokens of an answer: a letter, a word or two, a sentence."""
ARM_LENGTH = 8
THINGS = ("a stone", "a letter", "the moon", "a clock", "a river", "an engine", "a loaf", "a song")
NAME = "measured"


def measure_inspect(lm: steer.LM, options: Options) -> Outcome:
    """Time evaluations of 64 samples, and 8 arms against one arm of 8 times the samples.

    `generate_over_inspect_N` is Inspect's throughput as a share of `lm.generate`'s on the same rows
    in the same batches; `hf_over_inspect_N` how much longer Inspect's own provider takes,
    unsteered; N is the number of new tokens. `_examples_N` is the same with eight worked examples
    before every question, as evaluations have them: they are the same in every row.
    """
    n_pairs = min(N_FAR, options.limit or 3)
    with _offered(lm), tempfile.TemporaryDirectory() as kept, _quiet(kept):
        folder = Path(kept)
        hf = _built_in(lm, folder)
        pairs: dict[str, Pair] = {}
        plan, ours = _arm(lm, folder, 0)
        base = _model("base", None)
        for length in LENGTHS:
            batches = _generate(lm, plan, length)
            pairs[f"generate_over_inspect_{length}"] = Pair(
                batches, _evaluate(lm, [ours], N_SAMPLES, length, folder), n_pairs
            )
            pairs[f"hf_over_inspect_{length}"] = Pair(
                _evaluate(lm, [hf], N_SAMPLES, length, folder, N_ROWS),
                _evaluate(lm, [base], N_SAMPLES, length, folder),
                n_pairs,
            )
        for length in LENGTHS[:2]:
            pairs[f"hf_over_inspect_examples_{length}"] = Pair(
                _evaluate(lm, [hf], N_SAMPLES, length, folder, N_ROWS, asked=questions),
                _evaluate(lm, [base], N_SAMPLES, length, folder, asked=questions),
                n_pairs,
            )
        again = _generate(lm, plan, ARM_LENGTH)
        pairs["generate_over_generate_8"] = Pair(again, again, n_pairs)
        arms = [_arm(lm, folder, at)[1] for at in range(N_ARMS)]
        pairs["arms_over_one"] = Pair(
            _evaluate(lm, arms, N_SAMPLES, ARM_LENGTH, folder),
            _evaluate(lm, arms[:1], N_SAMPLES * N_ARMS, ARM_LENGTH, folder),
            min(n_pairs, 2),
        )
        equal = _equal(lm, folder, hf)
        return timed_outcome(
            pairs,
            options,
            device=lm.device,
            controls=CONTROLS,
            facts=equal,
            tables={},
            specs={"samples": N_SAMPLES, "rows": N_ROWS, "plan": repr(plan)},
        )


def prompts(n: int) -> list[str]:
    """Return beginnings of stories of different lengths, which no answer ends at once."""
    return [
        f"Story {at}. Once upon a time there were {THINGS[at % 8]} and {THINGS[(at // 8) % 8]}"
        + " in the same village" * (at % 4)
        + ", and every morning"
        for at in range(n)
    ]


EXAMPLES = (
    ("What do bees make?", "honey"),
    ("Which season comes after spring?", "summer"),
    ("What is frozen water called?", "ice"),
    ("Which animal says moo?", "the cow"),
    ("How many days are there in a week?", "seven"),
    ("What do we use to cut paper?", "scissors"),
    ("What colour is the sky on a clear day?", "blue"),
    ("Where do fish live?", "in water"),
)


def questions(n: int) -> list[str]:
    """Return questions after the same eight worked examples."""
    told = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in EXAMPLES)
    return [
        f"{told}Question: What would you rather carry up a hill, {THINGS[at % 8]} or "
        f"{THINGS[(at // 8 + 1) % 8]}?\nAnswer:"
        for at in range(n)
    ]


def _arm(lm: steer.LM, folder: Path, seed: int) -> tuple[list[steer.Add], object]:
    """Return a plan, and Inspect's model of it."""
    site = steer.Site(lm.n_layers // 2)
    v = torch.randn(lm.d_model, generator=torch.Generator().manual_seed(seed))
    length = 0.2 * lm.norm(site, prompts(8))
    plan = [steer.Add(site, v / v.norm() * length)]
    path = steer.save(plan, folder / f"arm{seed}.safetensors")
    return plan, _model(plan_digest(plan), str(path))


def _model(digest: str, plan: str | None) -> object:
    # Inspect is in the extra `evals`.
    from inspect_ai.model import get_model

    name = f"steered/{NAME}@{digest}"
    return get_model(name, memoize=False, plan=plan, template="raw", max_rows=N_ROWS)


def _built_in(lm: steer.LM, folder: Path) -> object:
    """Return Inspect's own provider on the same weights; its default batch is 32 rows too."""
    # As above.
    from inspect_ai.model import get_model

    where = folder / "model"
    lm.model.save_pretrained(where)
    lm.tokenizer.save_pretrained(where)
    return get_model(
        f"hf/{where}",
        memoize=False,
        device=str(lm.device),
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}",
        do_sample=False,
    )


def _evaluate(
    lm: steer.LM,
    models: Sequence[object],
    n: int,
    length: int,
    folder: Path,
    connections: int = 2 * N_ROWS,
    asked: Callable[[int], list[str]] = prompts,
) -> Timed:
    """Return what runs one evaluation of n samples under each model, and its texts in order.

    Without max_connections Inspect feels its way up from 20, as for a service with rate limits. The
    built-in provider takes it for the size of its batch, so it is given that.
    """
    # As above.
    from inspect_ai import Task
    from inspect_ai import eval as evaluate
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig
    from inspect_ai.scorer import includes

    samples = [Sample(input=prompt, target="a", id=at) for at, prompt in enumerate(asked(n))]
    end = lm.tokenizer.eos_token
    task = Task(
        dataset=samples,
        scorer=includes(),
        config=GenerateConfig(max_tokens=length, max_connections=connections),
    )

    def run() -> list[str]:
        logs = evaluate(
            task,
            model=list(models),  # type: ignore[arg-type]
            log_dir=str(folder / "logs"),
            display="none",
            max_tasks=len(models),
        )
        bad = [log for log in logs if log.status != "success"]
        assert not bad, bad[0].error
        ordered = sorted(logs[0].samples or [], key=lambda sample: int(sample.id))
        return [sample.output.completion.replace(str(end), "") for sample in ordered]

    return run


def _generate(lm: steer.LM, plan: Sequence[steer.Add], length: int) -> Timed:
    """Return what generates for the same samples, in batches of the same rows."""
    every = prompts(N_SAMPLES)

    def run() -> list[str]:
        found: list[str] = []
        for start in range(0, N_SAMPLES, N_ROWS):
            found += lm.generate(every[start : start + N_ROWS], plan, max_new_tokens=length)
        return found

    return run


def _equal(lm: steer.LM, folder: Path, hf: object) -> dict[str, Number]:
    """Return the share of samples with the same text, ours against each peer."""
    plan, ours = _arm(lm, folder, 0)
    pairs = {
        "same_text_as_generate": (
            _generate(lm, plan, ARM_LENGTH)(),
            _evaluate(lm, [ours], N_SAMPLES, ARM_LENGTH, folder)(),
        ),
        "same_text_as_hf": (
            _evaluate(lm, [hf], N_SAMPLES, ARM_LENGTH, folder, N_ROWS)(),
            _evaluate(lm, [_model("base", None)], N_SAMPLES, ARM_LENGTH, folder)(),
        ),
        "same_text_as_hf_examples": (
            _evaluate(lm, [hf], N_SAMPLES, ARM_LENGTH, folder, N_ROWS, asked=questions)(),
            _evaluate(lm, [_model("base", None)], N_SAMPLES, ARM_LENGTH, folder, asked=questions)(),
        ),
    }
    found = {}
    for name, (left, right) in pairs.items():
        assert isinstance(left, list)
        assert isinstance(right, list)
        found[name] = Number(sum(a == b for a, b in zip(left, right, strict=True)) / len(left))
    return found


@contextmanager
def _offered(lm: steer.LM) -> Iterator[None]:
    offer(NAME, lm)
    try:
        yield
    finally:
        withdraw(NAME)


@contextmanager
def _quiet(folder: str) -> Iterator[None]:
    """Keep Inspect's traces in a folder of the run's own."""
    before = os.environ.get("XDG_DATA_HOME")
    os.environ["XDG_DATA_HOME"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["XDG_DATA_HOME"]
        else:
            os.environ["XDG_DATA_HOME"] = before
