"""What the packages promise about their own form: one hook file, one loader, a quiet import.

The oracles are the source text and a fresh interpreter, never the packages' own word.
"""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("steer", "probes", "manifolds")
HOOK_FILE = "steer/registry.py"
LOADER_FOLDER = "steer/models"
DRAWING = {"matplotlib", "plotly", "pandas"}
HEAVY = {
    "steer": {"transformer_lens", "nnsight", "sklearn", "scipy.interpolate", *DRAWING},
    "probes": {"transformers", *DRAWING},
    "manifolds": {"transformers", *DRAWING},
}
NAMELESS = {"utils.py", "helpers.py", "common.py", "misc.py"}

IMPORT_QUIETLY = """
import json, os, sys
events = []
sys.addaudithook(lambda event, args: events.append((event, [str(a) for a in args])))
import {package}
from_outside = [
    (event, args)
    for event, args in events
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen")
    # transformers.generation imports torch._dynamo, which makes its own cache folder at once.
    or (event == "os.mkdir" and "torchinductor" not in args[0])
    # dill, which torch imports, opens the null device to learn the types of its files.
    or (event == "open" and args[0] != os.devnull and any(letter in args[1] for letter in "wax+"))
]
print(json.dumps({{"events": from_outside, "modules": sorted(sys.modules)}}))
"""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def attributes(path: Path) -> Iterator[str]:
    """Yield every attribute and name used in the code; docstrings and comments do not count."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Name):
            yield node.id


def users_of(pattern: str, *folders: str) -> set[str]:
    return {
        relative(path)
        for path in sources(*folders)
        if any(re.fullmatch(pattern, name) for name in attributes(path))
    }


def test_hooks_are_registered_in_one_file_only() -> None:
    users = users_of(r"register_(\w+_)?hook", *PACKAGES, "benchmarks")
    # What we are measured against is written by hand, as users would write it.
    assert {path for path in users if not path.startswith("benchmarks/peers/")} <= {HOOK_FILE}


def test_models_are_loaded_in_one_place_only() -> None:
    loaders = users_of("from_pretrained", *PACKAGES, "benchmarks")
    assert all(path.startswith(f"{LOADER_FOLDER}/") for path in loaders), loaders
    assert loaders, "nothing loads a model: this test looks for the wrong name"


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_prints_nothing_writes_nothing_and_loads_nothing_heavy(
    package: str,
) -> None:
    # -B: the interpreter's own bytecode cache is not a side effect of ours.
    script = IMPORT_QUIETLY.format(package=package)
    ran = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    *printed, report = ran.stdout.splitlines()
    assert printed == []
    seen = json.loads(report)
    assert seen["events"] == []
    assert sorted(HEAVY[package] & set(seen["modules"])) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    undocumented = [
        name
        for name, (source, original) in reexports(ROOT / package / "__init__.py").items()
        if not documented(source, original)
    ]
    assert undocumented == []


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_those_of_all_where_there_is_one(package: str) -> None:
    module = importlib.import_module(package)
    declared = getattr(module, "__all__", None)
    if declared is not None:
        assert sorted(declared) == sorted(reexports(ROOT / package / "__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_hold_reexports_under_their_own_name_and_nothing_else(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        docstring, *rest = tree(path).body
        assert isinstance(docstring, ast.Expr), f"{relative(path)} has no docstring"
        for node in rest:
            where = f"{relative(path)}:{node.lineno}"
            if isinstance(node, ast.Assign):
                assert ast.unparse(node.targets[0]) in ("__all__", "__version__"), where
                continue
            assert isinstance(node, ast.Import | ast.ImportFrom), where


def reexports(init: Path) -> dict[str, tuple[str, str]]:
    """Return public name -> (module it comes from, its name there) of an __init__ file."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in tree(init).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if not (alias.asname or alias.name).startswith("_")
    }


def documented(module: str, name: str) -> bool:
    """Say whether an object has words of its own: a docstring, or a string under a constant."""
    found = getattr(importlib.import_module(module), name)
    if inspect.isclass(found) or inspect.isroutine(found) or inspect.ismodule(found):
        text = found.__doc__ or ""
        # A dataclass without a docstring is given its signature as one.
        return bool(text.strip()) and not text.startswith(f"{name}(")
    path = source_of(module)
    chained = reexports(path) if path.name == "__init__.py" else {}
    if name in chained:
        return documented(*chained[name])
    body = tree(path).body
    return any(
        name in assigned_names(node)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
        for node, after in pairwise(body)
    )


def source_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def assigned_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.AnnAssign):
        return {ast.unparse(node.target)}
    if isinstance(node, ast.Assign):
        return {ast.unparse(target) for target in node.targets}
    return set()


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    counts = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources(*PACKAGES, "benchmarks")
    }
    assert {path: n for path, n in counts.items() if n > 400} == {}


def test_no_function_is_longer_than_sixty_lines_of_code() -> None:
    long = {}
    for path in sources(*PACKAGES, "benchmarks"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and node.body[1:] else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > 60:
                    long[f"{relative(path)}:{node.name}"] = lines
    assert long == {}


def test_every_file_is_named_after_what_lives_in_it() -> None:
    assert [relative(p) for p in sources(*PACKAGES, "benchmarks") if p.name in NAMELESS] == []


def test_sources_are_ascii() -> None:
    broken = [
        relative(path)
        for path in sources(*PACKAGES, "benchmarks", "tests")
        if not path.read_bytes().isascii()
    ]
    assert broken == []


def test_imports_keep_to_the_layers() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run(
        [str(command), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


SKIPPERS = {"skip", "skipif", "xfail", "importorskip"}


def test_every_skip_has_a_row_and_every_row_a_skip() -> None:
    in_code = {
        (relative(path), reason) for path in sources("tests") for reason in skip_reasons(tree(path))
    }
    rows = set()
    for line in (ROOT / "tests/SKIPS.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            assert len(cells) == 3, (
                f"a row is | `file` | reason | condition for its return |: {line}"
            )
            assert cells[2], f"no condition for its return: {line}"
            rows.add((cells[0].strip("`"), cells[1]))
    assert in_code == rows


def skip_reasons(module: ast.Module) -> Iterator[str]:
    """Yield the reason of each skip, or the code of a skip that gives none."""
    for node in ast.walk(module):
        if not isinstance(node, ast.Attribute) or node.attr not in SKIPPERS:
            continue
        if ast.unparse(node) in {f"pytest.{s}" for s in SKIPPERS} | {
            f"pytest.mark.{s}" for s in SKIPPERS
        }:
            yield reason_of(module, node)


def reason_of(module: ast.Module, skipper: ast.Attribute) -> str:
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and node.func is skipper:
            given = [word.value for word in node.keywords if word.arg == "reason"]
            given += node.args[:1] if skipper.attr == "skip" else []
            if given and isinstance(given[0], ast.Constant):
                return str(given[0].value)
            return ast.unparse(node)
    return ast.unparse(skipper)
