"""What lies below runs/: studies, artifacts that something refers to, artifacts that nothing does, damage.

Source: METHOD 8.2. Notebooks: none (`asd studies`, `asd verify`, `asd clean`)
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from asdlib import io
from asdlib.studies import artifacts

VARIANT_FILE = "variant.json"  # of a variant made by hand: its settings, and the artifacts it used
KEPT, RECORDINGS = "artifacts", "recordings"  # the folders below runs/ that studies share


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
        variants = len([*folder.glob(f"sweep/*/{VARIANT_FILE}"), *folder.glob("sweep/jobs/*")])
        name = (folder / "study.txt").read_text(encoding="utf-8", errors="replace")
        rows.append((folder.name, name, str(report.get("finished", "")), variants, round(size_mb(folder), 1)))
    return pd.DataFrame(rows, columns=["study", "file", "finished", "variants", "MB"])


def referred_to(home: Path) -> set[str]:
    """Names of the artifacts and recordings that a study's jobs or a variant refer to, and of the networks
    behind them.
    """
    names: set[str] = set()
    for folder in _folders(home):
        for path in [*folder.rglob("manifest.json"), *folder.rglob(VARIANT_FILE)]:
            facts = _facts(path)
            used = facts.get("artifacts", {})
            names |= {
                *map(str, used.values() if isinstance(used, dict) else used),
                facts.get("recordings", ""),
            }
    scores = [_facts(home / "runs" / KEPT / Path(name).name / "manifest.json") for name in names]
    return names.union(*({facts.get("trained", ""), *facts.get("embeddings", ())} for facts in scores))


def unused(home: Path) -> list[Path]:
    """Artifacts and recordings that neither a study nor a variant refers to.

    raises : errors.InputError while a study is being run, whose jobs may not have said yet what they use
    """
    with contextlib.ExitStack() as stack:
        for folder in _folders(home):
            stack.enter_context(io.locked(folder))
        used = referred_to(home)
    done = [
        *sorted((home / "runs" / KEPT).glob("*/DONE")),
        *sorted((home / "runs" / RECORDINGS).glob("*/store/DONE.json")),
    ]
    folders = [path.parent.parent if path.suffix else path.parent for path in done]
    return [folder for folder in folders if folder.name not in used]


def remove(folders: list[Path]) -> None:
    """Delete artifacts and recordings; DONE goes first, so that one that is left half deleted is not taken
    for whole.
    """
    for folder in folders:
        with io.wrap_os_errors(folder):
            for done in (folder / "DONE", folder / "store" / "DONE.json"):
                done.unlink(missing_ok=True)
            shutil.rmtree(folder)


def damage(home: Path) -> Iterator[str]:
    """Every file below runs/ that is not as it was written, by its content, in words."""
    for done in sorted((home / "runs").rglob("DONE")):
        for words in artifacts.corrupt_files(done.parent):
            yield f"{done.parent.relative_to(home)}: {words}"


def earlier_layout(study_folder: Path) -> bool:
    """Whether a run folder holds recordings or networks as they lay before studies shared them."""
    old = next(study_folder.glob("**/seed*/*/**/weights.safetensors"), None)
    return old is not None or (study_folder / "store").is_dir()


def record_variant(folder: Path, settings: dict, artifact: Path, recordings: Path) -> None:
    """Note an artifact and the recordings that a variant made by hand has used, so that `asd clean` leaves
    them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    used = _facts(folder / VARIANT_FILE).get("artifacts", [])
    if artifact.name not in used:
        facts = {"settings": settings, "artifacts": [*used, artifact.name], "recordings": recordings.name}
        io.write_text(folder / VARIANT_FILE, json.dumps(facts, indent=1))
