"""Recordings of the challenge from their public records: fetched, verified, unpacked into the layout that `clips.index` reads.

Task
----
Fetch the archives of the wanted machines (`asdlib.records`), going on where an earlier call stopped, unpack them safely
(`asdlib.archives`) and put their files in place by rename. What is in place is asked for no more.

    ROOT/dev_data/raw/<machine>/{train,test}     part dev
    ROOT/eval_data/raw/<machine>/{train,test}    parts additional (train) and eval (test)
    ROOT/.download                               archives on their way, and one marker per archive that is in place

Names in the archives stay as they are; `clips.index` reads them. The organisers' list of true evaluation names, where it is given, makes
test_rename, in which names without the word `test` (RoboticArm) get it.

Source: FACTS F2. Notebook: 01_data reads what came.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from asdlib import archives, artefacts, checks
from asdlib.records import ZENODO, Archive, Server, address, size_of

DATASETS = {  # name: part: record, folder below the root
    "dcase2024": {"dev": (10902294, "dev_data/raw"), "additional": (11259435, "eval_data/raw"), "eval": (11363076, "eval_data/raw")},
}
RECORDINGS = (".wav", ".flac")
TRUE_NAME = re.compile(r"section_\d+_(?:source|target)_test_(?:normal|anomaly)_\d+(?:_[\w.+-]+)?\.wav", re.ASCII)
WITHOUT_SPLIT = re.compile(r"(section_\d+_(?:source|target)_)((?:normal|anomaly)_.*)")  # RoboticArm's true names (FACTS F2)
UNPACKED = 1.6  # archive to files, about; the archive itself says it exactly before it is unpacked


def download(
    dataset: str, root: Path, parts: Sequence[str] = (), machines: Sequence[str] = (), *, mirror: str = "", truth: Path | None = None,
    say: Callable[[str], None] = print, wait: Callable[[float], None] = time.sleep,
) -> list[Path]:  # fmt: skip
    """Bring the recordings of a challenge year below `root` up to date; what is in place is not asked for again.

    dataset, parts : of DATASETS; no part: all.  machines : names to fetch; none: all
    mirror : address of a server with the same API.  truth : list of true names of evaluation clips (`rename_eval`)
    returns : the folders to give to --data-root
    raises : checks.Refusal, in a sentence; the same call goes on from what was fetched
    """
    known = DATASETS[checks.known_name("data set", dataset, list(DATASETS))]
    parts = [checks.known_name("part", part, list(known)) for part in parts] or list(known)
    base = address(mirror or ZENODO)
    work = root / ".download"
    try:
        with artefacts.locked(work, "download"):
            if not _in_place(work, root, known, parts, machines):
                _bring(work, root, {part: known[part] for part in parts}, machines, base, say, wait)
            folders = list(dict.fromkeys(root / known[part][1] for part in parts))
            if truth is not None:
                rename_eval(root / known["eval"][1], truth, say)
    except OSError as error:
        raise checks.Refusal(f"{error.filename or root}: {error.strerror or error}; free space or give another --root") from error
    return folders


# ---------------------------------------------------------------- what is there


def _in_place(work: Path, root: Path, known: dict, parts: Sequence[str], machines: Sequence[str]) -> bool:
    """True if the lists of an earlier call name these archives and all their files are in place; nothing is asked of the network then."""
    try:
        found = [json.loads((work / f"{known[part][0]}.json").read_text(encoding="utf-8")) for part in parts]
        listed = [(known[part][1], key, machine) for part, keys in zip(parts, found) for key, machine in keys.items()]
        wanted = [(folder, key) for folder, key, machine in listed if not machines or machine in machines]
        complete = set(machines) <= {machine for _, _, machine in listed}
        return bool(wanted) and complete and all(_unpacked(work / f"{key}.json", root / folder) for folder, key in wanted)
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def _unpacked(marker: Path, folder: Path) -> bool:
    """True if an archive's marker is there and every file it names has the size it had."""
    try:
        return all((folder / name).stat().st_size == size for name, size in json.loads(marker.read_text(encoding="utf-8"))["files"].items())
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return False


def _bring(work: Path, root: Path, parts: dict, machines: Sequence[str], base: str, say: Callable, wait: Callable) -> None:
    server = Server(base, say, wait)
    lists = {record: server.archives(record, folder) for record, folder in parts.values()}
    listed = [archive for found in lists.values() for archive in found]
    for name in machines:
        checks.known_name("machine", name, sorted({archive.machine for archive in listed}))
    todo = [archive for archive in listed if not machines or archive.machine in machines]
    todo = [archive for archive in todo if not _unpacked(work / f"{archive.key}.json", root / archive.folder)]
    there = {archive.key: min(size_of(work / f"{archive.key}.part"), archive.size) for archive in todo}
    need = sum(archive.size * UNPACKED for archive in todo) + max((archive.size - there[archive.key] for archive in todo), default=0)
    free = shutil.disk_usage(work).free
    if need > free:
        raise checks.Refusal(f"{root}: about {need / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free; free some, or choose --parts or --machines")
    for number, archive in enumerate(todo, 1):
        what = f"[{number}/{len(todo)}] {archive.key}"
        part = work / f"{archive.key}.part"
        server.fetch(archive, part, what)
        files = _put_in_place(part, archive, root / archive.folder, work, say)
        artefacts.write_text(work / f"{archive.key}.json", json.dumps({"digest": archive.digest, "files": files}))
        part.unlink()
        say(f"{what}: {len(files)} files in {root / archive.folder / archive.machine}")
    for record, found in lists.items():
        artefacts.write_text(work / f"{record}.json", json.dumps({archive.key: archive.machine for archive in found}))


def _put_in_place(part: Path, archive: Archive, folder: Path, work: Path, say: Callable) -> dict[str, int]:
    """Unpack beside, then move every file to its place by rename. Returns path below `folder` and size of each."""
    scratch = work / f"{archive.key}.unpacked"
    shutil.rmtree(scratch, ignore_errors=True)

    def place(name: PurePosixPath) -> PurePosixPath:
        """From the folder named like the machine on; what lies in none belongs to it as well."""
        start = name.parts.index(archive.machine) + 1 if archive.machine in name.parts[:-1] else 0
        return PurePosixPath(archive.machine, *name.parts[start:])

    try:
        files = {}
        for name in archives.unpack(part, scratch, place):
            target = folder / name
            if target.is_symlink() or not target.parent.resolve().is_relative_to(folder.resolve()):
                raise checks.Refusal(f"{target}: a link leads from there to elsewhere, expected a plain folder; move it away")
            if target.exists() and not filecmp.cmp(scratch / name, target, shallow=False):
                if target.suffix.lower() in RECORDINGS:
                    raise checks.Refusal(f"{target}: another file is there than {archive.key} brings; move it away and give the same command again")
                say(f"{target}: kept as it is, {archive.key} brings another")
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / name, target)
            files[str(name)] = target.stat().st_size
        return files
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ---------------------------------------------------------------- true names


def rename_eval(folder: Path, truth: Path, say: Callable[[str], None] = print) -> None:
    """Link the evaluation clips under their true names in <machine>/test_rename, which `clips.index` takes in place of test.

    folder : of machines.  truth : the organisers' list (eval_data_list_2024.csv): a machine's name alone in a line, then lines NAME,TRUE_NAME;
        a true name without `test` (RoboticArm) gets it
    raises : checks.Refusal for a list of another form, or one that lacks a clip
    """
    try:
        text = truth.read_text(encoding="utf-8-sig")
        lines = [line for line in csv.reader(text.splitlines()) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise checks.Refusal(f"{truth}: not readable as a list of names ({error}); give eval_data_list_2024.csv") from error
    names: dict[str, dict[str, str]] = {}
    current: dict[str, str] | None = None
    for number, line in enumerate(lines, 1):
        if len(line) == 1 and re.fullmatch(r"[A-Za-z0-9-]+", line[0]):
            current = names.setdefault(line[0], {})
            continue
        true = WITHOUT_SPLIT.sub(r"\1test_\2", line[1]) if len(line) == 2 else ""
        plain = PurePosixPath(line[0]).name == line[0] and line[0].endswith(".wav")
        if current is None or not plain or not TRUE_NAME.fullmatch(true) or len(true) > archives.LONGEST_NAME:
            raise checks.Refusal(f"{truth}: line {number} is {','.join(line)[:120]!r}, expected a machine, or NAME.wav,TRUE_NAME.wav")
        current[line[0]] = true
    found = 0
    for machine, true_names in names.items():
        there = sorted(path.name for path in (folder / machine / "test").glob("*.wav"))
        lacking = [name for name in there if name not in true_names]
        if lacking:
            raise checks.Refusal(f"{truth}: no line for {machine}/test/{lacking[0]} and {len(lacking) - 1} more; is it the list of this year?")
        if len({true_names[name] for name in there}) < len(there):
            raise checks.Refusal(f"{truth}: two clips of {machine} have one true name; is the list damaged?")
        made = folder / machine / "test_rename"
        found += len(there)
        if not there or (made.is_dir() and {path.name for path in made.iterdir()} == {true_names[name] for name in there}):
            continue
        if made.exists():
            raise checks.Refusal(f"{made}: holds other names than {truth} says; move it away and give the same command again")
        scratch = folder / machine / ".test_rename"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        for name in there:
            try:
                os.link(folder / machine / "test" / name, scratch / true_names[name])
            except OSError:  # a file system without links
                shutil.copyfile(folder / machine / "test" / name, scratch / true_names[name])
        os.replace(scratch, made)
        say(f"{machine}: {len(there)} evaluation clips under their true names in {made}")
    if not found:
        raise checks.Refusal(f"{folder}: no evaluation clip of the machines in {truth} is there; add the part eval")
