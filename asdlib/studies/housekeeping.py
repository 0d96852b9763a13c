"""What lies below runs/: studies, artifacts that something refers to, artifacts that nothing does, damage.

Source: METHOD 8.2. Notebooks: none (`asd studies`, `asd verify`, `asd clean`)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from asdlib import io
from asdlib.studies import artifacts

VARIANT_FILE = "variant.json"  # of a variant made by hand: its settings, and the artifacts it used
KEPT = "artifacts"  # the folder below runs/ that studies share


def _facts(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _folders(home: Path) -> list[Path]:
    """Run folders of the studies of a home, in alphabetical order."""
    return sorted(path.parent for path in (home / "runs").glob("*/study.txt"))


def size_mb(folder: Path) -> float:
    """Size of everything in a folder, MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def studies(home: Path) -> pd.DataFrame:
    """The studies that were run below a home.

    returns : study, file (as it was named), finished (of the last report, "" without one), variants, MB
    """
    rows = []
    for folder in _folders(home):
        done = (folder / "09_report" / "DONE").is_file()
        report = _facts(folder / "09_report" / "manifest.json") if done else {}
        variants = len([*folder.glob(f"sweep/*/{VARIANT_FILE}"), *folder.glob("sweep/*/scores.parquet")])
        name = (folder / "study.txt").read_text(encoding="utf-8", errors="replace")
        rows.append((folder.name, name, str(report.get("finished", "")), variants, round(size_mb(folder), 1)))
    return pd.DataFrame(rows, columns=["study", "file", "finished", "variants", "MB"])


def referred_to(home: Path) -> set[str]:
    """Names of the artifacts that a study's jobs or a variant refer to, and of the networks behind them."""
    names: set[str] = set()
    for folder in _folders(home):
        for path in [*folder.rglob("manifest.json"), *folder.rglob(VARIANT_FILE)]:
            used = _facts(path).get("artifacts", {})
            names |= set(map(str, used.values() if isinstance(used, dict) else used))
    trained = (_facts(home / "runs" / KEPT / Path(name).name / "manifest.json") for name in names)
    return names | {str(facts["trained"]) for facts in trained if "trained" in facts}


def unused(home: Path) -> list[Path]:
    """Artifacts that neither a study nor a variant refers to; none that is being computed."""
    used = referred_to(home)
    return [
        path
        for path in sorted((home / "runs" / KEPT).glob("*"))
        if path.is_dir() and path.name not in used and (path / "DONE").is_file()
    ]


def remove(folders: list[Path]) -> None:
    """Delete artifacts; DONE goes first, so that one that is left half deleted is not taken for whole."""
    for folder in folders:
        with io.wrap_os_errors(folder):
            (folder / "DONE").unlink(missing_ok=True)
            shutil.rmtree(folder)


def damage(home: Path) -> Iterator[str]:
    """Every file below runs/ that is not as it was written, by its content, in words."""
    for done in sorted((home / "runs").rglob("DONE")):
        for words in artifacts.corrupt_files(done.parent):
            yield f"{done.parent.relative_to(home)}: {words}"


def earlier_layout(study_folder: Path) -> bool:
    """Whether a run folder holds trained networks as they lay before the store by key."""
    return next(study_folder.glob("**/seed*/*/**/weights.safetensors"), None) is not None


def record_variant(folder: Path, settings: dict, artifact: Path) -> None:
    """Note an artifact that a variant made by hand has used, so that `asd clean` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    used = _facts(folder / VARIANT_FILE).get("artifacts", [])
    if artifact.name not in used:
        facts = {"settings": settings, "artifacts": [*used, artifact.name]}
        io.write_text(folder / VARIANT_FILE, json.dumps(facts, indent=1))
