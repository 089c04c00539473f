"""What a notebook must look like; `make notebooks` runs them.

What notebooks import is, by definition, the public API: names of the package roots only.
"""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_architecture import PACKAGES, ROOT, reexports

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BY_NAME = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(path: Path) -> list[str]:
    """Return the source of each code cell, without the lines that are IPython's own."""
    return [
        re.sub(r"^[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE)
        for cell in cells(path)
        if cell["cell_type"] == "code"
    ]


@BY_NAME
def test_a_notebook_imports_names_of_the_package_roots_only(path: Path) -> None:
    public = {package: set(reexports(ROOT / package / "__init__.py")) for package in PACKAGES}
    for source in code(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                deep = [a.name for a in node.names if a.name.split(".")[0] in PACKAGES]
                assert set(deep) <= set(PACKAGES)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGES):
                assert node.module in PACKAGES
                assert {alias.name for alias in node.names} <= public[node.module]


@BY_NAME
def test_a_notebook_has_ten_to_twenty_five_cells_and_reads_the_model_first(path: Path) -> None:
    assert 10 <= len(cells(path)) <= 25
    assert "STEER_MODEL" in code(path)[0]


@BY_NAME
def test_a_notebook_is_committed_as_it_ran(path: Path) -> None:
    ran = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell["outputs"]]
    assert [o["ename"] for o in outputs if o["output_type"] == "error"] == []
    assert any("image/png" in o.get("data", {}) for o in outputs), "no picture"


def test_every_notebook_has_a_row_in_the_table() -> None:
    table = (ROOT / "notebooks/README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d\d)\]\((\w+\.ipynb)\)", table, re.MULTILINE)
    assert [(path.name[:2], path.name) for path in NOTEBOOKS] == listed
