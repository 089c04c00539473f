"""`steer-lm-eval`: lm-eval's tasks under a plan, with the manifest beside the results."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

from steer.errors import SteerError
from steer.evals.audit import open_log
from steer.evals.harness import arguments, caching
from steer.evals.refusals import Refused

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

REFUSED = 2
"""The exit status where nothing may be reported."""


def main(given: Sequence[str] | None = None) -> int:
    """Run tasks and return the exit status: 0, or 2 with a reason code on standard error."""
    asked = _parser().parse_args(given)
    try:
        return _run(asked)
    except SteerError as error:
        code = "" if isinstance(error, Refused) else f"[{type(error).__name__}] "
        sys.stderr.write(f"steer-lm-eval: {code}{error}\n")
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steer-lm-eval", description="Run tasks of lm-eval under a plan."
    )
    add = parser.add_argument
    add("--model", required=True, help="an embedded name, a hub id or a folder")
    add("--plan", required=True, help="a file of steer.save, a .pt of lm-eval's, or none")
    add("--digest", help="of the plan, checked; 12 digits or more")
    add("--tasks", required=True, help="names, with commas between")
    add(
        "--output_path",
        required=True,
        type=Path,
        help="a new .json file, or a folder",
    )
    add("--use_cache", type=Path, metavar="DIR", help="a folder of answers, by plan and model")
    add("--audit", type=Path, help="a new log, with a record of each answer")
    add("--limit", type=float, help="documents of each task; below 1 a share of them")
    add("--num_fewshot", type=int)
    add("--include_path", type=Path, help="a folder with YAML tasks of your own")
    add("--batch_size", help="rows of a pass at most")
    add("--gen_kwargs", help="name=value, with commas between: over those of the tasks")
    add("--apply_chat_template", action="store_true")
    add("--system_instruction")
    add("--log_samples", action="store_true", help="keep each document with its answers")
    for name in ("revision", "dtype", "device"):
        add(f"--{name}", help="of the model")
    for name in ("max_length", "max_gen_toks", "max_tokens", "seed"):
        add(f"--{name}", help="see steer.evals.harness.arguments")
    return parser


def _run(asked: argparse.Namespace) -> int:
    results_file, manifest_file = _places(asked.output_path)
    # lm-eval is in the extra `evals`; importing it takes a second, which --help need not.
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise Refused(
            "bad_request", f"lm-eval is not installed ({error}). pip install manifold-steer[evals]"
        ) from None
    from steer.evals.harness.model import SteeredLM

    said = arguments.of_mapping(_model_arguments(asked), {})
    manager = TaskManager(
        include_path=None if asked.include_path is None else str(asked.include_path)
    )
    tasks = _tasks(asked, manager)
    model = SteeredLM.of(said)
    cache = None
    if asked.use_cache is not None:
        asked.use_cache.mkdir(parents=True, exist_ok=True)
        cache = str(caching.cache_path(asked.use_cache, model.identity))
    log = nullcontext() if asked.audit is None else open_log(asked.audit, model.manifest)
    with log as opened:
        model.keep_in(opened)
        # Its decorator hides its parameters from type checkers.
        evaluate = cast("Callable[..., Mapping[str, object] | None]", simple_evaluate)
        results = evaluate(
            model=model,
            tasks=tasks,
            num_fewshot=asked.num_fewshot,
            use_cache=cache,
            limit=asked.limit,
            system_instruction=asked.system_instruction,
            apply_chat_template=asked.apply_chat_template,
            gen_kwargs=asked.gen_kwargs,
            task_manager=manager,
            log_samples=asked.log_samples,
        )
    if results is None:
        raise Refused("pass_failed", "lm-eval returned no results: this is not its first process.")
    _write(results_file, results)
    _write(manifest_file, model.manifest.to_json())
    sys.stdout.write(f"{make_table(dict(results))}\n{model.manifest!r}\n{results_file}\n")
    return 0


def _model_arguments(asked: argparse.Namespace) -> dict[str, object]:
    names = [*arguments.Arguments.__dataclass_fields__]
    found = {name: getattr(asked, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _tasks(asked: argparse.Namespace, manager: "TaskManager") -> list[str]:
    wanted = [name for name in asked.tasks.split(",") if name]
    unknown = [name for name in wanted if not manager.match_tasks([name])]
    if unknown or not wanted:
        own = "" if asked.include_path is None else f", nor does {asked.include_path} have it"
        raise Refused(
            "bad_request",
            f"lm-eval knows no task {', '.join(unknown) or repr(asked.tasks)}{own}. `lm-eval ls "
            "tasks` lists them; --include_path adds a folder.",
        )
    return manager.match_tasks(wanted)


def _places(path: Path) -> tuple[Path, Path]:
    """Return where results and manifest go; made early, so that no hour of work is lost."""
    if path.suffix == ".json":
        results = path
    else:
        results = path / f"results_{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%f}.json"
    manifest = results.with_suffix(".manifest.json")
    for file in (results, manifest):
        if file.exists():
            raise Refused(
                "bad_request",
                f"{file} is there already, and results are never written over. Take another name.",
            )
    results.parent.mkdir(parents=True, exist_ok=True)
    return results, manifest


def _write(path: Path, values: Mapping[str, object]) -> None:
    # As above.
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(values, indent=2, default=handle_non_serializable, ensure_ascii=False)
    with path.open("x", encoding="utf-8") as file:
        file.write(text + "\n")
