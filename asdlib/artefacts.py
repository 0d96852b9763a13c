"""Artefacts: files and folders that are either whole or not there.

A folder is finished when its DONE file holds the digest of everything that shaped it (settings, recordings, code,
seed, machine) and the sizes of its files; DONE is written last, by rename. A folder that was begun for the same digest
keeps its checkpoints; one that was begun for another is emptied. Success is judged by DONE alone.
Source: DESIGN 3. Notebooks: all (through `study`).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from asdlib import checks

CLONE = Path(__file__).resolve().parent.parent
HOLDS = "ASDLIB_HOLDS"  # environment: the study folder that this process, or the one that started it, has locked
LIBRARIES = ("torch", "torchvision", "torchaudio", "numpy", "scipy", "scikit-learn", "pandas", "soundfile", "papermill", "nbconvert")


@functools.cache
def code_digest() -> str:
    """Digest of the package's source: artefacts of other code are stale."""
    files = sorted((CLONE / "asdlib").rglob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """Versions behind an artefact: Python, libraries, the package, its commit and source digest."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=CLONE, capture_output=True, text=True).stdout
    except OSError:  # no git on this machine
        git = ""
    found = {"python": platform.python_version(), "asdlib": importlib.metadata.version("asdlib")}
    found |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found | {"commit": git.strip() or "unknown", "source": code_digest()}


def write_text(path: Path, text: str) -> None:
    """Write a small file by rename, so that it is never half there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet or csv (by the path's ending), by rename."""
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        table.to_csv(beside, index=False) if path.suffix == ".csv" else table.to_parquet(beside, index=False)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def finished(folder: Path, digest: str) -> bool:
    """True if a folder's DONE carries this digest and every file it names is there in the size it had."""
    try:
        done = json.loads((folder / "DONE").read_text(encoding="utf-8"))
        return done["digest"] == digest and all((folder / name).stat().st_size == size for name, size in done["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def begin(folder: Path, digest: str) -> None:
    """A folder without files for this digest; what was begun for the same digest stays, so that checkpoints are used.

    Folders inside it carry a digest of their own and are left alone.
    """
    marker = folder / "BEGUN"
    if folder.is_dir() and (not marker.is_file() or marker.read_bytes() != digest.encode()):
        for path in folder.iterdir():
            if not path.is_dir():
                path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "DONE").unlink(missing_ok=True)
    write_text(marker, digest)


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def seal(folder: Path, digest: str, manifest: dict) -> None:
    """Write manifest.json, drop what was temporary, and write DONE last."""
    manifest = manifest | {"versions": versions(), "finished": datetime.datetime.now().isoformat(timespec="seconds")}
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    for leftover in [*folder.glob("checkpoint*.pt"), *folder.glob(".*"), folder / "failed.ipynb", folder / "BEGUN"]:
        if not leftover.is_dir():
            leftover.unlink(missing_ok=True)
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != "DONE"}
    write_text(folder / "DONE", json.dumps({"digest": digest, "files": files}))


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Disk full and missing permissions inside this block become one sentence.  raises : checks.Refusal in place of an OSError"""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        raise checks.Refusal(f"{what}; free space or choose a folder you may write with --home") from error


@contextlib.contextmanager
def locked(folder: Path, what: str = "run of this study") -> Iterator[None]:
    """Hold a study for one process and the kernels that it starts; another process is told so instead of writing there too.

    raises : checks.Refusal where another process holds it
    """
    if os.environ.get(HOLDS) == str(folder):
        yield
        return
    with guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise checks.Refusal(f"{folder}: another {what} is at work; wait for it or stop it") from error
        before = os.environ.get(HOLDS)
        os.environ[HOLDS] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(HOLDS) if before is None else os.environ.update({HOLDS: before})
