"""Download of challenge recordings from their public records, with verification and unpacking.

A record lists its archives with checksums. pooch fetches and verifies each archive and resumes interrupted
downloads. Files are written atomically and the marker of an archive last, so that partial results are never
taken for complete; files in place are not requested again.

    ROOT/dev_data/raw/<machine>/{train,test}     part dev
    ROOT/eval_data/raw/<machine>/{train,test}    parts additional (train) and eval (test)
    ROOT/.download                               lists, partial archives, markers

Checksums come from the server: they protect against damage, but not against a malicious mirror.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pooch
import requests

from asdlib import errors, io

ZENODO = "https://zenodo.org"
DEV, EVAL = "dev_data/raw", "eval_data/raw"
RECORDS = {  # per year: development, additional training and evaluation recordings
    2020: (3678171, 3727685, 3841772),
    2021: (4562016, 4660992, 4884786),
    2022: (6355122, 6462969, 6586456),
    2023: (7882613, 7830345, 7860847),
    2024: (10902294, 11259435, 11363076),
    2025: (15097779, 15392814, 15519362),
    2026: (19336329, 20151556, 20437238),
}
DATASETS = {
    f"dcase{year}": {"dev": (dev, DEV), "additional": (additional, EVAL), "eval": (evaluation, EVAL)}
    for year, (dev, additional, evaluation) in RECORDS.items()
}
ARCHIVE = re.compile(  # in 2020 eval_data_train_fan.zip, later eval_data_fan_train.zip
    r"(?:dev|eval)(?:_data)?(?:_(?:train|test))?_([A-Za-z0-9-]+)(?:_(?:train|test))?(?:_r(\d{1,3}))?\.zip"
)
TRUE_NAME = re.compile(  # RoboticArm lacks the word test
    r"(section_\d+_(?:source|target)_)(?:test_)?((?:normal|anomaly)_\d+(?:_[\w.+-]{1,150})?\.wav)", re.ASCII
)
RETRIES, BLOCK = 4, 2**16  # pooch waits 1, 2, 3, ... s before retries; bytes per write
UNPACKED = 1.6  # approximate size of the files relative to the archive
MOST_RATIO, ALWAYS_FITS = (20, 2**26)  # zip bomb limits; recordings compress to about half


class Archive(NamedTuple):
    """Archive of a record. `checksum` is "md5:..."; the machine is unpacked into `folder` below the root."""

    key: str
    machine: str
    size: int
    checksum: str
    url: str
    folder: str


def download(
    dataset: str,
    root: Path,
    parts: Sequence[str] = (),
    machines: Sequence[str] = (),
    *,
    mirror: str = "",
    truth: Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Download the recordings of a challenge year below `root`, or complete them.

    Parameters
    ----------
    dataset, parts : from DATASETS; no part means all.
    machines : names to fetch; none means all.
    mirror : address of another server with Zenodo's API.
    truth : list of the true names of evaluation clips, see `rename_eval`.
    say : function that prints a line.

    Returns
    -------
    Folders to pass to --data-root.

    Raises
    ------
    errors.InputError : for any failure; calling again resumes the download.
    """
    known = DATASETS[errors.check_choice("data set", dataset, list(DATASETS))]
    chosen = [known[errors.check_choice("part", part, list(known))] for part in parts or known]
    base = (mirror or ZENODO).rstrip("/")
    if not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?(/[\w./~-]*)?", base, re.ASCII):
        raise errors.InputError(f"mirror {mirror!r}: expected a URL like {ZENODO}")
    work = root / ".download"
    try:
        with io.locked(work, "download"):
            asked = [(f"{base}/api/records/{record}", folder) for record, folder in chosen]
            listed = [one for url, folder in asked for one in _archives(url, work, folder)]
            for name in machines:
                errors.check_choice("machine", name, sorted({one.machine for one in listed}))
            todo = [one for one in listed if not machines or one.machine in machines]
            _bring([one for one in todo if not _finished(work, one, root)], work, root, say)
            if truth is not None:
                rename_eval(root / known["eval"][1], truth, say)
    except OSError as error:
        message = (
            f"{error.filename or root}: {error.strerror or error}; free up disk space or choose another"
            " --root"
        )
        raise errors.InputError(message) from error
    return list(dict.fromkeys(root / folder for _, folder in chosen))


def _archives(url: str, work: Path, folder: str) -> list[Archive]:
    """Latest archives of a record. A valid list is cached, since published records do not change."""
    path = work / f"{re.sub('[^0-9A-Za-z]+', '_', url)}.json"
    _fetch(url, path)
    latest: dict[str, tuple[int, Archive]] = {}
    try:
        for entry in (entries := json.loads(path.read_bytes())["files"]):
            if not (found := ARCHIVE.fullmatch(entry["key"])):
                continue  # descriptions and images
            where = f"{url}/files/{found[0]}/content"
            one = Archive(found[0], found[1], int(entry["size"]), entry["checksum"], where, folder)
            if not 0 < one.size < 2**40 or not re.fullmatch("md5:[0-9a-f]{32}", one.checksum):
                raise ValueError(
                    f"invalid entry {one.key} with size {one.size} and checksum {one.checksum[:80]!r}"
                )
            latest[one.machine] = max(latest.get(one.machine, (-1, one)), (int(found[2] or 0), one))
        if not latest:
            raise ValueError(f"none of its {len(entries)} files is named like dev_<machine>.zip")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        path.unlink()
        message = (
            f"not a list of archives with key, size and md5 ({error!r:.150}); is this a server like {ZENODO}?"
        )
        raise errors.InputError(f"{url}: {message}") from error
    return [one for _, (_, one) in sorted(latest.items())]


def _finished(work: Path, archive: Archive, root: Path) -> bool:
    """Whether an archive's marker exists and all files it lists have their size."""
    try:
        sizes = json.loads((work / f"{archive.key}.json").read_text(encoding="utf-8"))["files"]
        return all((root / archive.folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _bring(todo: Sequence[Archive], work: Path, root: Path, say: Callable) -> None:
    """Fetch and unpack archives one by one.  raises : errors.InputError for insufficient disk space"""
    need = UNPACKED * sum(one.size for one in todo) + max((one.size for one in todo), default=0)
    need -= sum(path.stat().st_size for path in work.glob("*.zip*"))  # downloaded so far
    if need > (free := shutil.disk_usage(work).free):
        message = f"download needs about {need / 1e9:.1f} GB, only {free / 1e9:.1f} GB free"
        raise errors.InputError(f"{root}: {message}; free up disk space, or select --parts or --machines")
    for number, one in enumerate(todo, 1):
        path, what = work / one.key, f"[{number}/{len(todo)}] {one.key}"
        say(f"{what}: {one.size / 1e6:.1f} MB")
        _fetch(one.url, path, one.checksum)
        files = unpack(path, root / one.folder, one.machine)
        io.write_text(work / f"{one.key}.json", json.dumps({"digest": one.checksum, "files": files}))
        path.unlink()
        say(f"{what}: {len(files)} files in {root / one.folder / one.machine}")


def _fetch(url: str, path: Path, checksum: str | None = None) -> None:
    """Fetch a file with pooch; downloads with a checksum resume where an earlier call stopped."""
    part = path.with_name(f"{path.name}.part")

    def resumed(url: str, target: str, _) -> None:
        with part.open("ab" if checksum else "wb") as file:

            def begin(response, **_) -> None:
                if response.status_code in (200, 416):  # complete response, or invalid partial file
                    file.truncate(0)
                response.ok or response.close()

            headers = {"Accept-Encoding": "identity"}
            if start := file.tell():
                headers["Range"] = f"bytes={start}-"
            live = checksum is not None and sys.stderr.isatty()
            pooch.HTTPDownloader(live, BLOCK, headers=headers, hooks={"response": begin})(url, file, None)
        os.replace(part, target)

    try:
        names = {"registry": {path.name: checksum}, "urls": {path.name: url}}
        pooch.create(path.parent, "", retry_if_failed=RETRIES, **names).fetch(path.name, downloader=resumed)
    except requests.RequestException as error:
        cause = error
        while cause.__context__ is not None:
            cause = cause.__context__
        detail = getattr(cause, "strerror", "") or str(cause) or type(cause).__name__
        detail = re.sub("[^ -~]", "?", detail)[:200]
        message = f"no response ({detail}); run the same command again later, or try another --mirror"
        if error.response is not None:
            message = f"server returned {error.response.status_code}; is the URL correct, or the server busy?"
        raise errors.InputError(f"{url}: {message}") from error
    except ValueError as error:
        message = (
            f"downloaded file does not match the record's checksum ({checksum}); try later or another"
            " --mirror"
        )
        raise errors.InputError(f"{url}: {message}") from error


def unpack(path: Path, folder: Path, machine: str) -> dict[str, int]:
    """Unpack an untrusted archive below `folder`/`machine`, as plain files.

    Returns
    -------
    Size of each file by path below `folder`; paths start at the machine's folder in the archive.

    Raises
    ------
    errors.InputError : for a damaged archive, or an unsafe one before anything is written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {_place(info, machine): info for info in archive.infolist() if not info.is_dir()}
            entries.pop("", None)
            total, size = sum(info.file_size for info in entries.values()), path.stat().st_size
            if not entries or total > max(MOST_RATIO * size, ALWAYS_FITS):
                raise ValueError(
                    f"{size} bytes that would unpack to {total} bytes in {len(entries)} files, not plausible"
                    " for recordings"
                )
            for name, info in entries.items():
                (target := folder / name).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, io.atomic_write(target) as part, part.open("wb") as to:
                    shutil.copyfileobj(source, to)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ArithmeticError, ValueError) as error:
        detail = str(error) or "cut short"
        raise errors.InputError(f"{path}: cannot be unpacked, {detail}; try another --mirror") from error
    return {name: (folder / name).stat().st_size for name in entries}


def _place(info: zipfile.ZipInfo, machine: str) -> str:
    """Target path of an archive entry, "" for files of the operating system; ValueError if it is unsafe."""
    name, parts = info.filename, PurePosixPath(info.filename).parts
    deflated = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 1
    if not parts or parts[0] == "/" or ".." in parts or "\\" in name or ":" in name:
        raise ValueError(f"{name[:120]!r} points outside its folder")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise ValueError(f"{name[:120]!r} is a link or a device")
    if not name.isprintable() or len(name) > 200 or info.header_offset < 0 or not deflated:
        raise ValueError(f"{name[:120]!r} has an unsafe name, is encrypted or not deflated")
    if any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in parts):
        return ""
    start = parts.index(machine) + 1 if machine in parts[:-1] else 0
    return "/".join((machine, *parts[start:]))


def rename_eval(folder: Path, truth: Path, say: Callable[[str], None] = print) -> None:
    """Copy evaluation clips to their true names in <machine>/test_rename, which `index.index` uses as test.

    Parameters
    ----------
    folder : folder of machines.
    truth : the organizers' list (eval_data_list_2024.csv): a line with a machine, then lines NAME,TRUE_NAME;
        `test` is added to true names that lack it (RoboticArm).
    say : function that prints a line.

    Raises
    ------
    errors.InputError : for an invalid list, or one that lacks a clip.
    """
    names: dict[str, dict[str, str]] = {}
    machine = ""
    try:
        for line in filter(None, csv.reader(truth.read_text(encoding="utf-8-sig").splitlines())):
            true = TRUE_NAME.fullmatch(line[-1])
            if len(line) == 1 and re.fullmatch(r"[A-Za-z0-9-]+", line[0]):
                names[machine := line[0]] = {}
            elif len(line) == 2 and machine and true:
                names[machine][line[0]] = f"{true[1]}test_{true[2]}"
            else:
                raise ValueError(f"{','.join(line)[:120]!r} is neither a machine nor NAME.wav,TRUE_NAME.wav")
    except (OSError, ValueError, csv.Error) as error:
        message = f"not a list of true names ({error}); use the organizers' list"
        raise errors.InputError(f"{truth}: {message}") from error
    found = 0
    for machine, true_names in names.items():
        there = sorted(path.name for path in (folder / machine / "test").glob("*.wav"))
        wanted = {true_names.get(name) for name in there}
        made, scratch = folder / machine / "test_rename", folder / machine / ".test_rename"
        found += len(there)
        if None in wanted or len(wanted) < len(there):
            raise errors.InputError(
                f"{truth}: expected exactly one true name per clip of {machine}; is the list of the same"
                " year?"
            )
        if not there or (made.is_dir() and {path.name for path in made.iterdir()} == wanted):
            continue
        if made.exists():
            raise errors.InputError(
                f"{made}: file names differ from those in {truth}; move the folder away and try again"
            )
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name in there:
            shutil.copyfile(folder / machine / "test" / name, scratch / true_names[name])
        os.replace(scratch, made)
        say(f"{machine}: {len(there)} evaluation clips under their true names in {made}")
    if not found:
        raise errors.InputError(
            f"{folder}: no evaluation clips of the machines in {truth}; download the part eval too"
        )
