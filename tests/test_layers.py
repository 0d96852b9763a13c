"""Imports run one way: see [tool.importlinter] in pyproject.toml."""

import subprocess
import sys
from pathlib import Path


def test_imports_run_one_way():
    words = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
        "--no-cache",
        "--no-logo",
    ]
    said = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[1])
    assert said.returncode == 0, said.stdout + said.stderr
