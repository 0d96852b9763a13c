"""Notebooks are thin, open with parameters, say what they ask, read and write, link to those before and after,
end with what was seen and a check, and are committed clean.
"""

import ast
import json
import re
from pathlib import Path

import pytest

from asdlib.studies import stages

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
BOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))
CLEAN = "clean it with: jupyter nbconvert --clear-output --inplace notebooks/*.ipynb"
MOST_CELLS, MOST_LINES = 30, 15
ID = re.compile(r"[a-z][a-z0-9-]{2,40}")


def broken(book: dict, name: str) -> list[str]:
    """Every breach of the rules in a notebook, in words."""
    cells, out = book["cells"], []
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    source = ["".join(cell["source"]) for cell in code]
    if any(cell.get("outputs") or cell.get("execution_count") for cell in code):
        out.append(f"has outputs; {CLEAN}")
    if book["metadata"].get("kernelspec", {}).get("name") != "python3":
        out.append("kernelspec is not python3")
    if any(not ID.fullmatch(cell["id"]) for cell in cells) or len({cell["id"] for cell in cells}) < len(
        cells
    ):
        out.append("cell ids are not readable words")
    title = "".join(cells[0]["source"])
    if cells[0]["cell_type"] != "markdown" or "**Reads**" not in title or "**Writes**" not in title:
        out.append("the first cell does not say what it **Reads** and **Writes**")
    if name != BOOKS[-1].stem:  # the last one is the report
        near = [BOOKS[i].stem for i in range(len(BOOKS)) if abs(i - int(name[:2]) + 1) == 1]
        out += [f"the first cell has no link to {other}" for other in near if f"({other}.ipynb)" not in title]
        if "**Question** " not in title:
            out.append("the first cell does not ask its **Question**")
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        out += [f"no {words}" for words in ("**Try this**", "## What we saw") if words not in "".join(texts)]
    if "parameters" not in code[0]["metadata"].get("tags", []):
        out.append("the first code cell is not tagged parameters")
    out += [
        f"parameter without type and comment: {line}"
        for line in source[0].splitlines()
        if not re.match(r"\w+: \w+ = .+  # .{10,}", line)
    ]
    if f'.open_notebook("{name}"' not in source[1]:
        out.append("the second code cell does not validate the parameters by study.open_notebook")
    if len(code) > MOST_CELLS:
        out.append(f"{len(code)} code cells, at most {MOST_CELLS}")
    for cell, text in zip(code, source):
        lines = [line for line in text.split("\n") if not line.startswith(("import ", "from "))]
        if len(lines) > MOST_LINES:
            out.append(f"cell {cell['id']}: {len(lines)} lines beside imports, at most {MOST_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) or (isinstance(node, ast.FunctionDef) and len(node.body) > 4):
                out.append(f"cell {cell['id']}: defines {node.name}; it belongs in asdlib")
    if "assert " not in source[-1] or f'print(f"OK {name[:2]}: ' not in source[-1]:
        out.append(f"the last cell does not assert its claims and print OK {name[:2]}: ...")
    for cell, before in zip(cells[1:], cells):
        draws = cell["cell_type"] == "code" and "plots." in "".join(cell["source"])
        if draws and before["cell_type"] == "code" and "plots." not in "".join(before["source"]):
            out.append(f"cell {cell['id']}: a figure without a word before it on what to look for")
    return out


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    assert broken(json.loads(path.read_text(encoding="utf-8")), path.stem) == []


def test_every_stage_has_its_notebook():
    assert [stage.notebook for stage in stages.STAGES] == [path.stem for path in BOOKS]


def breach(change):
    book = json.loads((NOTEBOOKS / "03_baseline.ipynb").read_text(encoding="utf-8"))
    change(book, [cell for cell in book["cells"] if cell["cell_type"] == "code"])
    return " | ".join(broken(book, "03_baseline"))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda book, code: code[2].update(execution_count=3), "has outputs; clean it with"),
        (lambda book, code: book["metadata"]["kernelspec"].update(name="asd"), "kernelspec is not python3"),
        (lambda book, code: code[2].update(id="a1b2 c3"), "cell ids are not readable words"),
        (lambda book, code: book["cells"][0].update(source="# Title"), "does not say what it"),
        (lambda book, code: code[0]["metadata"].update(tags=[]), "not tagged parameters"),
        (
            lambda book, code: code[0].update(source="seed = 0"),
            "parameter without type and comment: seed = 0",
        ),
        (lambda book, code: code[1].update(source="pass"), "does not validate the parameters"),
        (lambda book, code: code[2].update(source="x = 1\n" * 16), "lines beside imports, at most 15"),
        (lambda book, code: code[2].update(source="class A: pass"), "defines A; it belongs in asdlib"),
        (lambda book, code: code[-1].update(source="print('OK 03')"), "does not assert its claims"),
        (
            lambda book, code: book["cells"].extend([code[2]] * MOST_CELLS),
            f"code cells, at most {MOST_CELLS}",
        ),
        (
            lambda book, code: book["cells"][0].update(source="# T\n**Reads** x **Writes** y"),
            "no link to 02_preprocessing | the first cell has no link to 04_classifier | the first cell does not ask",
        ),
        (lambda book, code: [cell.update(source="") for cell in book["cells"][-3:]], "no ## What we saw"),
    ],
)
def test_a_breach_is_found(change, words):
    assert words in breach(change)
