"""Artifacts: result folders that are either complete or absent.

A folder is finished when its DONE file, written last by rename, holds the digest of all inputs (settings,
recordings, code, seed, machine) and the sizes and digests of its files. An unfinished folder with the same
digest keeps its checkpoints; with another digest it is emptied. Files are not fsynced: a crash of the machine
may truncate any of them, which the digests in DONE reveal.

Locking: a study is written only by the process that holds its lock and by that process's kernels
(`io.locked`), a job's folder by one kernel at a time (`lock_dir`). Source: METHOD 8.2. Notebooks: all
(through `study`).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import functools
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from asdlib import io
from asdlib.io import code_digest
from asdlib.settings import flat
from asdlib.studies.home import CLONE

# environment variables of a job's kernel: the folder it writes, its device, what precision `auto` means
FOLDER, DEVICE, PRECISION = "ASDLIB_FOLDER", "ASDLIB_DEVICE", "ASDLIB_PRECISION"
LIBRARIES = (
    "torch torchvision torchaudio numpy scipy scikit-learn pandas soundfile papermill nbconvert".split()
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python, libraries and this package, its commit and source digest."""
    git, command = "", ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    if (CLONE / ".git").exists():  # an installed package may lie inside another repository
        with contextlib.suppress(OSError):  # git is not installed
            git = subprocess.run(command, cwd=CLONE, capture_output=True, text=True).stdout
    found = {"python": platform.python_version(), "asdlib": importlib.metadata.version("asdlib")}
    found |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found | {"commit": git.strip() or "unknown", "source": code_digest()}


def remove_temp(folder: Path) -> None:
    """Remove temporary files of killed writers; the caller must hold the folder's lock."""
    for path in [*folder.rglob(".*")]:
        if re.fullmatch(r"\..+\.\d+\.part|\..+\.part\d+|\.decoding-.+", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def corrupt_files(folder: Path) -> list[str]:
    """Describe the files of a folder that are missing, truncated or altered according to its DONE."""
    try:
        done = json.loads((folder / "DONE").read_text(encoding="utf-8"))
        files = {str(name): list(content) for name, content in done["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["DONE is not readable"]
    found = []
    for name, (size, digest) in files.items():
        try:
            now = io.content(folder / name)
        except OSError:
            found.append(f"{name} is missing")
            continue
        if now[0] != size:
            found.append(f"{name} is truncated ({now[0]} bytes, expected {size})")
        elif now[1] != digest:
            found.append(f"{name} is damaged")
    return found


def sealed_for(folder: Path) -> str:
    """Return the digest in a folder's DONE, or "" if it is not finished."""
    try:
        return str(json.loads((folder / "DONE").read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def finished(folder: Path, digest: str) -> bool:
    """Return True if a folder is finished for this digest and all its files are intact."""
    return sealed_for(folder) == digest and not corrupt_files(folder)


def start(folder: Path, digest: str) -> None:
    """Prepare a folder for computing: empty it, unless it was started for the same digest (checkpoints).

    Subfolders have their own digests and are kept.
    """
    marker = folder / "BEGUN"
    if folder.is_dir() and (not marker.is_file() or marker.read_bytes() != digest.encode()):
        for path in folder.iterdir():
            if not path.is_dir():
                path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "DONE").unlink(missing_ok=True)
    io.write_text(marker, digest)


def is_whole(folder: Path) -> bool:
    """Return True if an artifact's folder (named by its key) is finished and intact."""
    return finished(folder, folder.name)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Lock an artifact while it is computed; other processes wait and then find it finished."""
    lock_dir(folder)
    try:
        yield
    finally:
        unlock_dir(folder)


def peak_memory_mb() -> int:
    """Return the peak resident memory of this process in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def read_manifest(folder: Path) -> dict:
    """Return the manifest of a finished folder.  raises : OSError, ValueError"""
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def commit(folder: Path, digest: str, manifest: dict, also: Sequence[Path] = ()) -> None:
    """Write manifest.json, remove temporary files, and write DONE last.

    also : files in other folders that belong to the artifact; DONE keeps their relative paths
    """
    finished = datetime.datetime.now().isoformat(timespec="seconds")
    manifest = manifest | {"versions": versions(), "finished": finished}
    io.write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    for pattern in ("checkpoint*.pt", ".*", "failed.ipynb", "BEGUN"):
        for leftover in folder.glob(pattern):
            if not leftover.is_dir():
                leftover.unlink(missing_ok=True)
    own = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "DONE"]
    files = {os.path.relpath(path, folder): io.content(path) for path in [*own, *also]}
    io.write_text(folder / "DONE", json.dumps({"digest": digest, "files": files}))


_LOCKED: dict[Path, int] = {}  # locked folders and their file descriptors


def lock_dir(folder: Path) -> None:
    """Lock a folder for this process until `unlock_dir` or exit; waits for other processes.

    On file systems without flock (some NFS) nothing is locked; two kernels of one job would then write the
    same files, each by rename.
    """
    if folder not in _LOCKED:
        folder.mkdir(parents=True, exist_ok=True)
        _LOCKED[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):
            fcntl.flock(_LOCKED[folder], fcntl.LOCK_EX)


def unlock_dir(folder: Path) -> None:
    """Release the lock taken by `lock_dir`."""
    if folder in _LOCKED:
        os.close(_LOCKED.pop(folder))


# ---------------------------------------------------------------- reasons

MAX_NAMES = 4  # names listed in a reason
CODE, NOTEBOOK = "asdlib's code", "the notebook"
ACCEPTED = "the clips accepted as normal changed"


def changes(folder: Path, now: dict) -> list[str]:
    """Describe how the inputs in a folder's manifest differ from the current ones (`Run.shaped_by`)."""
    try:
        before = read_manifest(folder)["shaped_by"]
        old, new = flat(before["settings"]), flat(json.loads(json.dumps(now["settings"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["manifest.json has no readable inputs"]
    found = []
    if set(old) != set(new):
        found.append(f"settings added or removed: {', '.join(sorted(set(old) ^ set(new))[:MAX_NAMES])}")
    for name in [name for name in new if name in old and old[name] != new[name]]:
        found.append(
            "problems of the recordings changed"
            if name == "problems"
            else f"{name} was {old[name]}, is now {new[name]}"
        )
    for name, what in {"recordings": "recordings", "notebook": NOTEBOOK, "machines": "machines"}.items():
        if before.get(name) != now.get(name):
            found.append(f"{what} changed")
    if before.get("accepted") != now.get("accepted"):
        found.append(ACCEPTED)
    if before.get("code") != now.get("code"):
        found.append(f"{_modules(before.get('code'), now.get('code'))} changed")
    if before.get("device") != now.get("device"):
        found.append(f"device was {before.get('device')}, is now {now.get('device')}")
    return found


def only_code(reasons: Sequence[str]) -> bool:
    """Return True if only code or notebooks changed (reasons of `changes`), so that results stay usable."""
    return all(reason.startswith(("code of ", CODE, NOTEBOOK)) for reason in reasons)


def _modules(before: object, now: object) -> str:
    """Return the names of the modules whose code differs."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return CODE
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f"code of {', '.join(names[:MAX_NAMES])}{' ...' if len(names) > MAX_NAMES else ''}"
