"""Artifacts: files and folders that are either whole or not there.

A folder is finished when its DONE file holds the digest of everything that shaped it (settings, recordings,
code, seed, machine) and the sizes and digests of its files; DONE is written last, by rename. A folder that
was begun for the same digest keeps its checkpoints; one that was begun for another is emptied. Success is
judged by DONE alone, and DONE by what it says of the files: nothing here waits for the disk, so a crash of
the machine may tear any of them, and shows.

Who writes where: a study belongs to the process that holds its lock and to the kernels that this process
starts (`locked`); a job's folder to one kernel at a time, so that one whose runner was killed ends before the
next begins (`lock_dir`). Source: METHOD 8.2. Notebooks: all (through `study`).
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

FOLDER = "ASDLIB_FOLDER"  # environment of a job's kernel: the folder that it writes
DEVICE = "ASDLIB_DEVICE"  # environment: the device that a job was ordered for
PRECISION = "ASDLIB_PRECISION"  # environment: what the precision `auto` is for a job
LIBRARIES = (
    "torch torchvision torchaudio numpy scipy scikit-learn pandas soundfile papermill nbconvert".split()
)


@functools.cache
def versions() -> dict[str, str]:
    """Versions behind an artifact: Python, libraries, the package, its commit and source digest."""
    git, command = "", ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    if (CLONE / ".git").exists():  # else it is an installed package, maybe below a repository of its user
        with contextlib.suppress(OSError):  # no git on this machine
            git = subprocess.run(command, cwd=CLONE, capture_output=True, text=True).stdout
    found = {"python": platform.python_version(), "asdlib": importlib.metadata.version("asdlib")}
    found |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    return found | {"commit": git.strip() or "unknown", "source": code_digest()}


def remove_temp(folder: Path) -> None:
    """Remove what writers that were killed left beside their files; only for who holds the folder's lock."""
    for path in [*folder.rglob(".*")]:
        if re.fullmatch(r"\..+\.\d+\.part|\..+\.part\d+|\.decoding-.+", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def corrupt_files(folder: Path) -> list[str]:
    """What is wrong with the files of a folder that has a DONE, in words: gone, cut short, or of another
    content. Empty: whole.
    """
    try:
        done = json.loads((folder / "DONE").read_text(encoding="utf-8"))
        files = {str(name): list(facts) for name, facts in done["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ["DONE is not readable"]
    found = []
    for name, (size, digest) in files.items():
        try:
            now = io.content(folder / name)
        except OSError:
            found.append(f"{name} is missing")
            continue
        if now != [size, digest]:
            found.append(
                f"{name} is torn ({now[0]} bytes, expected {size})"
                if now[0] != size
                else f"{name} is damaged"
            )
    return found


def sealed_for(folder: Path) -> str:
    """The digest that a folder was finished for; "" if it is not finished."""
    try:
        return str(json.loads((folder / "DONE").read_text(encoding="utf-8"))["digest"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def finished(folder: Path, digest: str) -> bool:
    """True if a folder's DONE carries this digest and every file it names has the content it had."""
    return sealed_for(folder) == digest and not corrupt_files(folder)


def start(folder: Path, digest: str) -> None:
    """A folder without files for this digest; what was begun for the same digest stays, so that checkpoints
    are used.

    Folders inside it carry a digest of their own and are left alone.
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
    """True for the folder of an artifact (named by its key) that is finished, with the content it had."""
    return finished(folder, folder.name)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Inside, no other process computes this artifact: one that comes later waits, and finds it finished."""
    lock_dir(folder)
    try:
        yield
    finally:
        unlock_dir(folder)


def peak_memory_mb() -> int:
    """Largest resident memory of this process so far, MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def commit(folder: Path, digest: str, manifest: dict, also: Sequence[Path] = ()) -> None:
    """Write manifest.json, drop what was temporary, and write DONE last.

    also : files elsewhere that belong to it, kept by their way from here
    """
    finished = datetime.datetime.now().isoformat(timespec="seconds")
    manifest = manifest | {"versions": versions(), "finished": finished}
    io.write_text(folder / "manifest.json", json.dumps(manifest, indent=1))
    for pattern in ("checkpoint*.pt", ".*", "failed.ipynb", "BEGUN"):
        for leftover in folder.glob(pattern):
            if not leftover.is_dir():
                leftover.unlink(missing_ok=True)
    inside = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "DONE"]
    files = {path.name: io.content(path) for path in inside}
    files |= {os.path.relpath(path, folder): io.content(path) for path in also}
    io.write_text(folder / "DONE", json.dumps({"digest": digest, "files": files}))


_HELD: dict[Path, int] = {}  # folders of jobs that this process writes, with the handles that say so


def lock_dir(folder: Path) -> None:
    """Wait until no other process writes this folder; it is this process's until its end.

    The lock is on the folder itself. Where the file system knows no such locks (NFS), nothing waits: what two
    kernels of one job then write is the same, and each file by rename.
    """
    if folder not in _HELD:
        folder.mkdir(parents=True, exist_ok=True)
        _HELD[folder] = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.suppress(OSError):
            fcntl.flock(_HELD[folder], fcntl.LOCK_EX)


def unlock_dir(folder: Path) -> None:
    """Give a folder up again that `lock_dir` took."""
    if folder in _HELD:
        os.close(_HELD.pop(folder))


# ---------------------------------------------------------------- reasons

MOST = 4  # names that are told
CODE, NOTEBOOK = "asdlib's code", "the notebook"
ACCEPTED = "clips that were accepted as normal changed"


def changes(folder: Path, now: dict) -> list[str]:
    """What differs between what shaped a folder, by its manifest, and what holds now, in words."""
    try:
        before = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["shaped_by"]
        old, new = flat(before["settings"]), flat(json.loads(json.dumps(now["settings"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["manifest.json does not say what it was made of"]
    found = []
    if set(old) != set(new):
        found.append(f"settings that came or went: {', '.join(sorted(set(old) ^ set(new))[:MOST])}")
    for name in [name for name in new if name in old and old[name] != new[name]]:
        found.append(
            "problems of the recordings changed"
            if name == "problems"
            else f"{name} was {old[name]}, is {new[name]}"
        )
    for name, what in {"recordings": "recordings", "notebook": NOTEBOOK, "machines": "machines"}.items():
        if before.get(name) != now.get(name):
            found.append(f"{what} changed")
    if before.get("accepted") != now.get("accepted"):
        found.append(ACCEPTED)
    if before.get("code") != now.get("code"):
        found.append(f"{_modules(before.get('code'), now.get('code'))} changed")
    if before.get("device") != now.get("device"):
        found.append(f"device was {before.get('device')}, is {now.get('device')}")
    return found


def only_code(reasons: Sequence[str]) -> bool:
    """Whether reasons of `changes` speak of code and notebooks alone: what was computed can still be used."""
    return all(words.startswith(("code of ", CODE, NOTEBOOK)) for words in reasons)


def _modules(before: object, now: object) -> str:
    """Names of the modules whose code differs."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return CODE
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f"code of {', '.join(names[:MOST])}{' ...' if len(names) > MOST else ''}"
