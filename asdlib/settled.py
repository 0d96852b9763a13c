"""The short way: a study that is finished says so again without loading anything heavy and without starting a kernel.

When a run of all stages has found or made everything fresh, it writes runs/<study>/settled.json: a key of all that the result depends on
(settings, sweep, code, notebooks, recordings by path, size and time, device, versions of the libraries), the size and time of every file
that it left, and the words that it ended with. While all of that still holds, the words hold. Anything else, and the long way looks at the contents:
a byte that changed without the file's time, as on a failing disk, is found there, not here (delete settled.json to take the long way).
Source: METHOD 8.2. Notebook: none; `asd run`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path

from asdlib import artefacts, checks, config, folders

NAME = "settled.json"
GPU = ("/dev/nvidiactl", "/dev/kfd")  # where the systems show one; asking torch takes seconds


def key(study: str, overrides: Sequence[str]) -> str:
    """Digest of everything that a study's result depends on."""
    cfg = config.load(study, overrides)
    sweep = config.read(study, overrides).get("sweep", {})
    notebooks = artefacts.digest_of(sorted((artefacts.CLONE / "notebooks").glob("*.ipynb")))
    device = [any(map(os.path.exists, GPU)), os.environ.get("CUDA_VISIBLE_DEVICES")]
    versions = [importlib.metadata.version(name) for name in artefacts.LIBRARIES]
    seen = [_stats(Path(root)) for root in cfg.data.roots]
    return config.digest(cfg, sweep, study, artefacts.code_digest(), notebooks, device, versions, seen)


def _stats(folder: Path) -> dict[str, list[int]]:
    """Size and modification time of every file below a folder that is not hidden, by its way from there."""
    problems: folders.Problems = []  # worded on the long way
    found: dict[str, list[int]] = {}
    for place, _, names in folders.walk(folder, problems):
        for path in (place / name for name in names):
            try:
                stat = path.stat()
                found[os.path.relpath(path, folder)] = [stat.st_size, stat.st_mtime_ns]
            except OSError:
                found[os.path.relpath(path, folder)] = []
    return found | {path: [] for path, *_ in problems}


def _left(run: Path, reports: Path) -> dict[str, dict]:
    mine = {name: facts for name, facts in _stats(run).items() if name not in (NAME, ".lock")}
    return {"run": mine, "reports": _stats(reports)}


def recall(study: str, overrides: Sequence[str], home: str) -> str | None:
    """What a finished study said last, if everything is as it was then; else None.

    raises : checks.Refusal for settings that are wrong
    """
    name = config.load(study, overrides).name
    base = Path(home or artefacts.CLONE).resolve()
    try:
        found = json.loads((base / "runs" / name / NAME).read_text(encoding="utf-8"))
        same = found["key"] == key(study, overrides) and found["left"] == _left(base / "runs" / name, base / "reports" / name)
        return str(found["words"]) if same else None
    except checks.Refusal:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        return None


def note(study: str, overrides: Sequence[str], run: Path, reports: Path, words: str) -> None:
    """Write down that a study is finished. run, reports : its folders;  words : what it says"""
    left = json.dumps({"key": key(study, overrides), "left": _left(run, reports), "words": words})
    artefacts.write_text(run / NAME, left)


def forget(run: Path) -> None:
    """Something is about to be computed."""
    (run / NAME).unlink(missing_ok=True)
