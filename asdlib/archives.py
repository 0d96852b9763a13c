"""Zip archives from elsewhere, unpacked so that nothing but plain files inside one folder can come of it.

Task
----
An archive is read as something a stranger made. Everything is checked in its table of contents before the first byte is
written, and counted again while it is written: names that leave the folder or name a file twice, links and devices,
encryption, other methods than storing and deflating, and contents out of proportion to the archive (bombs) or to the free space.
Files come out without permissions to execute. Whoever unpacks gives a folder of its own and takes the files from there.

Source: issue 7 (hostile input). Used by `asdlib.download`
"""

from __future__ import annotations

import errno
import io
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from asdlib import checks

MOST_FILES = 200_000
MOST_CONTENTS = 2**26  # bytes of the table of contents: 0.2 million files need half of it
MOST_RATIO = 100  # of a single file; silence in 16 bits deflates to about a thousandth, hence
ALWAYS_FITS = 2**26  # a file of up to 64 MB, and an archive of up to as much, is no bomb
MOST_RATIO_OF_ALL = 20  # recordings deflate to a half at most
LONGEST_NAME = 255  # bytes, of one folder or file: more fits no file system
BLOCK = 2**20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may ask for gigabytes of memory
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")


class _Bounded(io.FileIO):
    """A file that gives no more at once than a table of contents may take."""

    def read(self, size: int = -1) -> bytes:
        if size > MOST_CONTENTS:
            raise checks.Refusal(f"{self.name}: its table of contents takes {size / 1e6:.0f} MB, at most {MOST_CONTENTS / 1e6:.0f}; not unpacked")
        return super().read(size)


def unpack(path: Path, folder: Path, place: Callable[[PurePosixPath], PurePosixPath] = lambda name: name) -> list[Path]:
    """Unpack a zip archive into a folder that is not there yet.

    place : from the checked name of a file in the archive to its path inside the folder
    returns : paths of the files, relative to the folder, sorted; hidden files and what systems leave behind are left out
    raises : checks.Refusal for an archive that is damaged or not trusted, before anything is written where its table of contents tells;
        OSError for a full disk.  Used by `download.download`
    """
    try:
        with _Bounded(path) as raw, zipfile.ZipFile(raw) as archive:
            wanted = _checked(archive, path, place)
            total = sum(info.file_size for info, _ in wanted)
            free = shutil.disk_usage(folder.parent).free
            if total > free:
                raise checks.Refusal(f"{path}: unpacks to {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {folder.parent}; free some")
            folder.mkdir()
            for info, name in wanted:
                _write(archive, info, folder / name, path)
    except OSError as error:
        if error.errno == errno.EINVAL:  # sent to a place before the file's beginning
            raise checks.Refusal(f"{path}: no readable zip archive (its table of contents points nowhere); download it again") from error
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError, OverflowError, ValueError) as error:
        if isinstance(error, checks.Refusal):
            raise
        raise checks.Refusal(f"{path}: no readable zip archive ({str(error) or type(error).__name__}); download it again") from error
    return sorted(Path(name) for _, name in wanted)


def _checked(archive: zipfile.ZipFile, path: Path, place: Callable) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """(entry, path inside the folder) of every file that is to be written; a Refusal names the first that is not trusted."""
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise checks.Refusal(f"{path}: holds {len(entries)} files, at most {MOST_FILES}; not unpacked")
    taken: dict[str, bool] = {}  # path as a file system may see it: whether it is a file
    wanted = []
    for info in entries:
        problem = _problem(info)
        if problem:
            raise checks.Refusal(f"{path}: {info.filename[:120]!r} {problem}; not unpacked")
        name = PurePosixPath(info.filename)
        if info.is_dir() or any(part in JUNK or part.startswith(".") for part in name.parts):
            continue
        name = place(name)
        seen = _seen(name)
        if seen in taken or any(taken.get(_seen(parent)) for parent in name.parents):
            raise checks.Refusal(f"{path}: {info.filename[:120]!r} stands in the place of another file; not unpacked")
        taken |= {_seen(parent): False for parent in name.parents} | {seen: True}
        wanted.append((info, name))
    total, size = sum(info.file_size for info, _ in wanted), path.stat().st_size
    if total > max(MOST_RATIO_OF_ALL * size, ALWAYS_FITS):
        raise checks.Refusal(f"{path}: {size / 1e6:.3g} MB claim to hold {total / 1e6:.3g} MB, which no recordings do; not unpacked")
    if not wanted:
        raise checks.Refusal(f"{path}: no file in it, expected recordings; download it again")
    return wanted


def _seen(name: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold()


def _problem(info: zipfile.ZipInfo) -> str:
    """Why an entry is not trusted, in words; '' for one that is."""
    name = info.filename
    parts = name.rstrip("/").split("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name.startswith("/") or "\\" in name or (len(name) > 1 and name[1] == ":"):
        return "is an absolute path or one of another system"
    if not all(parts) or any(part in (".", "..") for part in parts):
        return "leads out of its folder"
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "has control characters in its name"
    if any(len(part.encode()) > LONGEST_NAME for part in parts) or len(name) > 1024:
        return "has too long a name"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > info.is_dir():
        return "is a link or a device"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in METHODS:
        return f"is packed by method {info.compress_type}, expected stored or deflated"
    if info.file_size > max(MOST_RATIO * info.compress_size, ALWAYS_FITS):
        return f"claims {info.file_size} bytes in {info.compress_size}"
    return ""


def _write(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, path: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(info) as source, target.open("xb") as out:
        while block := source.read(BLOCK):
            written += len(block)
            if written > info.file_size:
                raise checks.Refusal(f"{path}: {info.filename[:120]!r} is longer than it says; not unpacked")
            out.write(block)
    if written != info.file_size:
        raise checks.Refusal(f"{path}: {info.filename[:120]!r} holds {written} of {info.file_size} bytes; download it again")
