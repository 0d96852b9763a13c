"""Housekeeping of runs/: list studies, find unused artifacts, verify files.

Source: METHOD 8.2. Used by: `asd studies`, `asd verify`, `asd clean`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from asdlib import errors, io
from asdlib.studies import artifacts

VARIANT_FILE = "variant.json"  # settings and artifacts of an interactive variant
ARTIFACTS, RECORDINGS = "artifacts", "recordings"  # folders in runs/ shared by all studies


def _read_json(path: Path) -> dict:
    """Return the object in a JSON file, or {} if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _folders(home: Path) -> list[Path]:
    """Return the run folders of all studies, sorted."""
    return sorted(path.parent for path in (home / "runs").glob("*/study.txt"))


def size_mb(folder: Path) -> float:
    """Return the total size of a folder in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def studies(home: Path) -> pd.DataFrame:
    """List the studies that were run in a home.

    returns : columns study, file, finished (time of the last report or ""), variants, MB
    """
    rows = []
    for folder in _folders(home):
        done = (folder / "09_report" / "DONE").is_file()
        report = _read_json(folder / "09_report" / "manifest.json") if done else {}
        variants = len([*folder.glob(f"sweep/*/{VARIANT_FILE}"), *folder.glob("sweep/jobs/*")])
        name = (folder / "study.txt").read_text(encoding="utf-8", errors="replace")
        rows.append((folder.name, name, str(report.get("finished", "")), variants, round(size_mb(folder), 1)))
    return pd.DataFrame(rows, columns=["study", "file", "finished", "variants", "MB"])


def referred_to(home: Path) -> set[str]:
    """Return the folder names of artifacts and recordings that any study or variant uses."""
    names: set[str] = set()
    for folder in _folders(home):
        for path in [*folder.rglob("manifest.json"), *folder.rglob(VARIANT_FILE)]:
            manifest = _read_json(path)
            used = manifest.get("artifacts", {})
            names |= {*map(str, used.values() if isinstance(used, dict) else used)}
            names.add(manifest.get("recordings", ""))
    scores = [_read_json(home / "runs" / ARTIFACTS / Path(name).name / "manifest.json") for name in names]
    return names.union(*({score.get("trained", ""), *score.get("embeddings", ())} for score in scores))


def unused(home: Path) -> list[Path]:
    """Return the folders of artifacts and recordings that no study or variant uses.

    raises : errors.InputError while a study is running, since its artifacts may not be recorded yet
    """
    with contextlib.ExitStack() as stack:
        for folder in _folders(home):
            stack.enter_context(io.locked(folder))
        used = referred_to(home)
    done = [
        *sorted((home / "runs" / ARTIFACTS).glob("*/DONE")),
        *sorted((home / "runs" / RECORDINGS).glob("*/store/DONE.json")),
    ]
    folders = [path.parent.parent if path.suffix else path.parent for path in done]
    return [folder for folder in folders if folder.name not in used]


def remove(folders: list[Path]) -> None:
    """Delete artifacts and recordings; DONE first, so that a partly deleted one never counts as finished."""
    for folder in folders:
        with io.wrap_os_errors(folder):
            for done in (folder / "DONE", folder / "store" / "DONE.json"):
                done.unlink(missing_ok=True)
            shutil.rmtree(folder)


def damage(home: Path) -> Iterator[str]:
    """Yield a description of every file in runs/ that is missing, truncated or altered.

    raises : errors.InputError for a home without runs/
    """
    if not (home / "runs").is_dir():
        raise errors.InputError(f"{home}: has no folder runs; give the folder that has it by --home")
    for done in sorted((home / "runs").rglob("DONE")):
        for problem in artifacts.corrupt_files(done.parent):
            yield f"{done.parent.relative_to(home)}: {problem}"


def earlier_layout(study_folder: Path) -> bool:
    """Return True if a run folder has recordings or networks in the layout from before they were shared."""
    old = next(study_folder.glob("**/seed*/*/**/weights.safetensors"), None)
    return old is not None or (study_folder / "store").is_dir()


def record_variant(folder: Path, settings: dict, artifact: Path, recordings: Path) -> None:
    """Record an artifact and recordings as used by an interactive variant, so that `asd clean` keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    used = _read_json(folder / VARIANT_FILE).get("artifacts", [])
    if artifact.name not in used:
        facts = {"settings": settings, "artifacts": [*used, artifact.name], "recordings": recordings.name}
        io.write_text(folder / VARIANT_FILE, json.dumps(facts, indent=1))
