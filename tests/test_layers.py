"""The line is straight: modules import only what stands above them, none grows fat, only the commands import inside functions."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "asdlib"
OPEN_TO_ALL = ("config", "trees", "checks", "artefacts")
LINE = (
    "checks", "trees", "config", "artefacts", "reading", "folders", "lists", "clips", "condition", "mechanisms", "synthetic",
    "download", "containers", "decoding", "labels", "sources", "recordings", "encoding", "audio", "features", "augment", "losses",
    "models", "training", "precision",
    "scoring", "backends", "latents", "fusion", "roc", "metrics", "detectors", "explain", "submission", "ablation", "tables", "pages",
    "detectability",
    "claims", "plots", "model_plots", "classifier_plots", "atlas_plots", "report_plots", "explore", "widgets", "report", "compare", "model_card",
    "scorer", "reasons", "stages", "places", "study", "sweeps", "graph", "kernels", "perform", "cluster", "execute", "commands", "cli",
)  # fmt: skip
COMMANDS = ("commands", "cli")  # each pays for what it needs, not for all that others need
MAX_LINES = 450


def stage(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a source file imports, as names in the line."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("asdlib.")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "asdlib":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found


def broken(package: Path) -> list[str]:
    """Every breach of the rules in a package folder, in words."""
    out = []
    for path in sorted(package.rglob("*.py")):
        name, text = stage(path, package), path.read_text(encoding="utf-8")
        if name == "__init__":
            continue
        if name not in LINE:
            out.append(f"{path.name}: {name} has no place in the line")
            continue
        if text.count("\n") > MAX_LINES:
            out.append(f"{path.name}: {text.count(chr(10))} lines, at most {MAX_LINES}")
        tree = ast.parse(text)
        for other in sorted(imported(tree)):
            if other not in LINE:
                out.append(f"{path.name}: imports {other}, which has no place in the line")
            elif LINE.index(other) >= LINE.index(name) and other != name and other not in OPEN_TO_ALL:
                out.append(f"{path.name}: imports {other}, which stands below it")
        for node in ast.walk(tree):
            if name not in COMMANDS and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = [n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
                out += [f"{path.name}: {node.name} imports inside a function" for n in inside if "asdlib" in ast.unparse(n)]
    return out


def test_the_line_is_straight():
    assert broken(PACKAGE) == []


@pytest.mark.parametrize(
    "text, words",
    [
        ("from asdlib import study\n", "scoring.py: imports study, which stands below it"),
        ("import asdlib.metrics\n", "scoring.py: imports metrics, which stands below it"),
        ("from asdlib.utils import x\n", "scoring.py: imports utils, which has no place in the line"),
        ("def f():\n    from asdlib import clips\n", "scoring.py: f imports inside a function"),
        ("x = 1\n" * 451, "scoring.py: 451 lines, at most 450"),
    ],
)
def test_a_breach_is_found(tmp_path, text, words):
    (tmp_path / "scoring.py").write_text(text)
    assert words in broken(tmp_path)


def test_a_module_without_a_place_is_found(tmp_path):
    (tmp_path / "utils.py").write_text("")
    assert broken(tmp_path) == ["utils.py: utils has no place in the line"]
