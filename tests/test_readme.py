"""The README runs: its Python blocks in order, in one namespace, with the output that it shows."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(?P<kind>python|text)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def test_it_opens_with_the_two_commands_and_reaches_an_example_by_line_twelve() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert "```python" in lines[:12]
    assert "make demo" in "\n".join(lines[:12])
    assert "make test" in "\n".join(lines[:12])


def test_every_python_block_prints_the_text_block_below_it() -> None:
    text = README.read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    kinds = [block["kind"] for block in blocks]
    assert kinds[:2] == ["python", "text"], "the first example shows its output"
    namespace: dict[str, object] = {"__name__": "readme"}
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block["kind"] != "python":
            continue
        line = text[: block.start()].count("\n") + 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            # Padded, so that a traceback names the README's own line.
            exec(compile("\n" * line + block["body"], str(README), "exec"), namespace)
        if after is not None and after["kind"] == "text":
            assert printed.getvalue().rstrip() == after["body"].rstrip(), f"README.md:{line}"
