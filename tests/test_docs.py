"""Documentation that ruff does not check: arrays have shapes; refusals are announced; every
command says what it reads and writes, with an example; every notebook stands in the list of notebooks.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asdlib import cli

ROOT = Path(__file__).resolve().parent.parent
ARRAY = re.compile(r"np\.ndarray|Tensor|ArrayLike")
SHAPE = re.compile(
    r"\((?:\.\.\.|[\w·]+(?: [+\-−·*/]+ [\w·]+)*)(?:, ?[^()]*)?\)|[Rr]ows?\b|scalar"
)  # (n, dim), (n,), (frames of all clips, bands)


def silent(path, root=ROOT):
    """What the public functions of a module leave unsaid, in words."""
    tree, out, where = ast.parse(path.read_text(encoding="utf-8")), [], path.relative_to(root)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node) or ""
        arrays = [
            each.arg
            for each in (*node.args.args, *node.args.kwonlyargs)
            if each.annotation and ARRAY.search(ast.unparse(each.annotation))
        ]
        if arrays and not SHAPE.search(text):
            out.append(f"{where}: {node.name} says no shape of {', '.join(arrays)}")
        refuses = re.search(r"raise (errors\.)?InputError\(", ast.unparse(node))
        if refuses and not re.search(r"raises|refus", text, re.IGNORECASE):
            out.append(
                f"{where}: {node.name} refuses input without saying so (raises : errors.InputError ...)"
            )
    return out


@pytest.mark.parametrize(
    "path", sorted((ROOT / "asdlib").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_shapes_and_refusals_are_documented(path):
    assert silent(path) == []


def test_what_is_unsaid_is_found(tmp_path):
    text = "def f(x: np.ndarray):\n    '''Something.'''\n    raise errors.InputError('no')\n"
    (tmp_path / "m.py").write_text(text)
    assert silent(tmp_path / "m.py", tmp_path) == [
        "m.py: f says no shape of x",
        "m.py: f refuses input without saying so (raises : errors.InputError ...)",
    ]


def commands():
    """name -> parser of every sub-command."""
    found = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_says_what_it_reads_and_writes_with_an_example(name):
    one = commands()[name]
    assert re.search(r"\b[Rr]eads?\b", one.description) and re.search(r"\b[Ww]rites?\b", one.description), (
        one.description
    )
    assert re.search(rf"example: asd {name}\b", one.epilog)
    assert all(action.help for action in one._actions)


def test_help_comes_without_torch_or_pandas():
    code = (
        "import sys; from asdlib import cli; cli.parser().format_help(); print({'torch', 'pandas',"
        " 'matplotlib'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_every_example_is_a_command_that_is_understood():
    for name, one in commands().items():
        words = re.split(r"\s+(?:&&|>|;|\|)\s*", one.epilog.removeprefix("example: asd "))[0].split()
        args = cli.parser().parse_args(words)
        assert args.command == name


def test_every_notebook_stands_in_the_list_of_notebooks():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        assert f"`{path.stem}`" in text, (
            f"notebooks/README.md does not say which question {path.stem} answers"
        )
    for path in sorted((ROOT / "notebooks" / "studies").glob("*.toml")):
        assert f"`{path.stem}`" in text, f"notebooks/README.md does not say what study {path.stem} is for"
    for stem in re.findall(r"^\| `(\d\d_\w+)`", text, re.MULTILINE):
        assert (ROOT / "notebooks" / f"{stem}.ipynb").is_file()


@pytest.mark.parametrize("buffered", ["", pytest.param("1", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    "where, codes, said",
    [(">&-", [0], ""), ("2>&-", [0], ""), (">/dev/full", [1, 2], "asd: "), ("| head -c 1", [0, 1], "")],
)
def test_a_command_ends_without_a_traceback_wherever_its_words_go(where, codes, said, buffered, tmp_path):
    """Closed from the start, as by a daemon; a full disk; a reader that has seen enough."""
    command = (
        f"set -o pipefail; {sys.executable} -c 'import sys; from asdlib.cli import command;"
        f" sys.exit(command())' init {tmp_path}/work {where}"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
    )
    assert done.returncode in codes and (
        not done.stderr or (done.stderr.count("\n") == 1 and said and done.stderr.startswith(said))
    ), done
