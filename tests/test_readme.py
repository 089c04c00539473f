"""The README runs: its Python blocks in order, in one namespace, with the output that it shows."""

import contextlib
import io
import json
import re
import subprocess
import sys
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


def test_the_numbers_of_notebook_02_are_those_that_it_printed() -> None:
    notebook = json.loads((README.parent / "notebooks/02_steer_along_a_manifold.ipynb").read_text())
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("text", [])) for output in outputs)
    text = README.read_text(encoding="utf-8")
    for name, row in (
        ("chord over ring", "energy along the chord / along the ring"),
        ("shuffled ring over ring", "control: a ring in shuffled order / the ring"),
    ):
        found = re.search(rf"{name}: +([\d.]+)  \[([\d.]+), ([\d.]+)\]", printed)
        assert found is not None
        value, low, high = found.groups()
        assert f"| {row} | {value} | {low} to {high} |" in text


MISTAKES = {
    "lm.generate('January,')": r"PlanError: .*Put it into a list: \[prompt\]",
    "lm.generate(['a'], plan[0])": r"PlanError: .*write \[intervention\]",
    "lm.capture(['a'], site)": r"TypeError: The sites are blocks\.1\.resid_post.*a list of them",
    "lm.capture(['a'], ['blocks.1.resid_post'])": r"TypeError: .*not a site.*Site\.parse",
    "lm.capture(['a'], [site], scope='last')": r"TypeError: .*'last', a str.*steer\.LAST",
    "lm.logits(['a'], [steer.Add(site, acts[site][0], scope=1)])": r"TypeError: The scope of Add",
    "lm.generate(['a'], max_tokens=3)": "PlanError: .*Did you mean max_new_tokens",
    "steer.sweep(lm, ['a'], plan, len)": "PlanError: .*Arm 0 is a lone MoveAlong",
    "steer.sweep(lm, ['a'], steer.Rows([plan]), len)": r"PlanError: .*The arms are a lone Rows",
    "steer.sweep(lm, ['a'], [plan], len, scope='LAST')": "TypeError: The scope of sweep is 'LAST'",
    "steer.load('tiny-lama')": "ModelNotFound: .*Did you mean tiny-llama",
    "steer.Site(1, 'residpost')": "SiteNotFound: .*Did you mean resid_post",
    "manifolds.fit_curve(acts[site], months, period=12)": "ManifoldError: .*Number them, such as 0",
}


def test_what_a_reader_gets_wrong_is_told_what_to_do() -> None:
    # In a process of its own: here beartype would refuse the wrong types before our code does.
    first = BLOCK.search(README.read_text(encoding="utf-8"))
    assert first is not None
    script = f"""{first["body"]}
for mistake in {list(MISTAKES)!r}:
    try:
        eval(mistake)
        print("no error")
    except Exception as error:
        print("MISTAKE", type(error).__name__ + ": " + " ".join(str(error).split()))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    said = [line.removeprefix("MISTAKE ") for line in ran.stdout.splitlines() if "MISTAKE" in line]
    assert len(said) == len(MISTAKES), ran.stdout
    for mistake, message in zip(MISTAKES, said, strict=True):
        assert re.match(MISTAKES[mistake], message), mistake
