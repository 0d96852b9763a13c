"""Directory walk shared by `asd import`, `asd index` and `asd score`.

Conventions
-----------
Hidden entries (leading dot) and system folders (`SYSTEM`) are skipped. Links are followed once each, after
everything below the root itself; a link to one of its own parent folders is not followed. Dangling links and
unreadable folders are reported as problems.

Source: METHOD 8.6.  Used by: `asdlib.data.index`, `asdlib.data.importer`, `asdlib.studies.scorer`.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

SYSTEM = {
    "__macosx",
    "system volume information",
    "$recycle.bin",
    "recycler",
    "#recycle",
    "lost+found",
    "@eadir",
}
FFMPEG = ".m4a .aac .wma .amr .mp4 .3gp .mka .webm .ape .wv .ac3 .dts".split()  # not supported by libsndfile
FOREIGN = [*FFMPEG, ".raw", ".pcm", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".wav", ".flac"]
HIDDEN = "hidden or system files"
IMPORTED = "imported.csv"
IMPORTED_HEADER = "file,source,start_s,seconds,made"

Problems = list[tuple[str, str, bool]]  # path, reason, left_out


def hidden(name: str) -> bool:
    """Whether a file or folder name is hidden or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM


def shown(path: str | Path) -> str:
    """Printable path, with invalid UTF-8 escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def dangling(path: str | Path) -> str:
    """Message for a dangling link, else ""."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"dangling link: {shown(os.readlink(path))} does not exist; restore it or remove the link"


def imported(folder: Path) -> bool:
    """Whether a folder is a machine written by `asd import`."""
    try:
        with open(folder / IMPORTED, encoding="utf-8") as file:
            return file.readline().startswith(IMPORTED_HEADER)
    except (OSError, ValueError):
        return False


def walk(
    root: str | Path, problems: Problems, passed: Counter | None = None
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk folders top-down, like `os.walk`, with names in alphabetical order.

    Parameters
    ----------
    root : start folder, of any name
    problems : receives dangling links and unreadable folders
    passed : counts hidden and system entries

    Yields
    ------
    (folder, folder names, file names); removing folder names prunes the walk
    """
    top, trees, followed = os.path.realpath(root), deque([str(root)]), set()
    while trees:
        stack = [trees.popleft()]
        while stack:
            folder = stack.pop()
            try:
                with os.scandir(folder) as entries:
                    every = sorted((entry.name, os.path.isdir(entry.path)) for entry in entries)
            except OSError as error:
                problems.append(
                    (folder, f"cannot read folder ({error.strerror}); check its permissions", True)
                )
                continue
            names, files = [], []
            for name, is_folder in every:
                path = os.path.join(folder, name)
                if hidden(name):
                    if passed is not None:
                        passed[HIDDEN] += 1
                elif is_folder:
                    names.append(name)
                elif what := dangling(path):
                    problems.append((path, what, True))
                else:
                    files.append(name)
            yield Path(folder), names, files
            links = [name for name in names if os.path.islink(os.path.join(folder, name))]
            stack += [os.path.join(folder, name) for name in reversed(names) if name not in links]
            real = os.path.realpath(folder) if links else ""
            for name in links:
                # links inside a folder that is reachable by several paths are followed once
                if (real, name) not in followed:
                    followed.add((real, name))
                    _follow(os.path.join(folder, name), real, top, trees, problems)


def _follow(link: str, folder: str, top: str, trees: deque[str], problems: Problems) -> None:
    """Queue the target of a link, unless it contains the link itself."""
    target = os.path.realpath(link)
    if not within(folder, target):
        trees.append(link)
    elif not within(target, top):
        problems.append(
            (
                link,
                (
                    f"link to {target}, a parent of the folder being read; not followed, pass that folder"
                    " explicitly to read it"
                ),
                False,
            )
        )


def within(path: str, folder: str) -> bool:
    """Whether a real path is a folder or lies inside it."""
    return os.path.commonpath((path, folder)) == folder


def below(root: str | Path, endings: Collection[str], problems: Problems, passed: Counter) -> Iterator[Path]:
    """Files with given suffixes below a root, without machines written by `asd import`.

    Such machines are read only if the root is one or lies in one.

    Parameters
    ----------
    endings : lower-case suffixes with their dot
    problems : as in `walk`, plus skipped machines
    passed : counts other files by suffix, and hidden entries
    """
    for folder, names, files in walk(root, problems, passed):
        if folder != Path(root) and IMPORTED in files and imported(folder):
            problems.append(
                (
                    str(folder),
                    "a machine created by asd import, skipped; pass its folder explicitly to read it",
                    False,
                )
            )
            names.clear()
            continue
        for path in (folder / name for name in files):
            if path.suffix.lower() in endings:
                yield path
            else:
                passed[path.suffix.lower()] += 1


def passed_over(endings: Mapping[str, int]) -> str:
    """Summary of skipped files by suffix, with a conversion hint for audio; "" for none.

    endings : lower-case suffix ("" for none) -> number of files
    """
    if not endings:
        return ""
    counts = ", ".join(
        f"{count} {shown(ending) or 'without extension'}" for ending, count in Counter(endings).most_common()
    )
    audio = [ending for ending in endings if ending in FOREIGN]
    hint = (
        f"; {', '.join(audio)} not supported, convert to wav or flac, for example: ffmpeg -i x{audio[0]}"
        " x.wav"
        if audio
        else ""
    )
    return f"{counts} skipped{hint}"
