"""Discovery of recordings in the sources of an import, and their split, label, domain and section.

The first of these that applies determines what a recording is
--------------------------------------------------------------
1. a csv with the columns path and label, and optionally split, domain, section and attributes (further
   columns), anywhere among the sources; files with contradictory rows are left out;
2. the challenge's layout (`index.index`), with its attribute lists;
3. a challenge name within the file name (`x_section_00_source_train_normal_0001_vel_4.wav`);
4. words in folder names, and words for normal and anomaly in the file name too (`name_words`);
5. otherwise it counts as a normal training recording, and the report says so.

Normal recordings outside test folders are for training, anomalous ones always for testing; recordings without
a label in a test folder stay unlabeled. Contradictions are left out, never guessed. Also left out are
recordings known only by a folder name that is not understood, if that folder is inside train or next to
folders that are understood (`accept` lists names to ignore), and recordings next to a csv that does not list
them. Folders like id_02 become sections, evaluated separately.

Source: METHOD 7.1, 7.2, 8.6.  Used by: `asdlib.data.importer`; `asdlib.studies.scorer` (which files are
recordings).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import soundfile

from asdlib import errors
from asdlib.data import folders, index, lists, name_words

SOUNDS = tuple(
    sorted(
        {".aif", ".oga", ".opus", *(f".{name.lower()}" for name in soundfile.available_formats())} - {".raw"}
    )
)
CHALLENGE = re.compile(r"section_\d+_(?:source|target)_(?P<split>train|test)_(?:normal|anomaly)_\d+(?:_.*)?$")
FACTS = ("path", "split", "label", "domain", "section", "said")
LIST_COLUMNS = ("path", "label", "split", "domain", "section")
ALIKE = {"file_name": "path"}  # synonyms of column names
UNKNOWN = ("nan", "na", "n/a", "#n/a", "null")  # missing values as written by programs


def found(
    sources: Sequence[str | Path], accept: Sequence[str] = ()
) -> tuple[pd.DataFrame, folders.Problems, list[str]]:
    """Recordings of the sources, each once, with problems and notes.

    Parameters
    ----------
    sources : folders, audio files and .csv lists
    accept : names of folders to ignore when interpreting paths

    Returns
    -------
    (table with FACTS and attr_<key>, in order; problems (path, reason, left_out); sentences for the report)

    Raises
    ------
    errors.InputError for a missing source, an unreadable list, or no recordings
    """
    places = [Path(source) for source in sources]
    for place in places:
        if not place.exists():
            raise errors.InputError(
                f"{place}: {folders.dangling(place) or 'no such file or folder; check the path'}"
            )
    search = _Search(frozenset(accept))
    given = [place for place in places if place.suffix.lower() == ".csv" and place.is_file()]
    search.read_lists(given)
    for place in places:
        if place not in given:
            search.read_place(place)
    search.say_unlisted()
    return search.result(", ".join(map(str, sources)))


class _Search:
    """Search of the sources: lists first, which take precedence, then folders and files."""

    def __init__(self, accept: frozenset[str]):
        self.accept = accept
        self.sounds = (*SOUNDS, *(folders.FFMPEG if shutil.which("ffmpeg") else ()))
        self.rows: dict[str, dict] = {}  # real path -> row
        self.listed: dict[str, tuple[Path, Path]] = {}  # real path -> (path, list that contains it)
        self.lists: set[str] = set()
        self.met: set[str] = set()  # real paths found in folders
        self.torn: set[str] = set()  # real paths with contradictory names
        self.problems: folders.Problems = []
        self.passed: Counter = Counter()
        self.names: dict[str, str] = {}  # folder name -> its meaning
        self.notes: list[str] = []

    def result(self, sources: str) -> tuple[pd.DataFrame, folders.Problems, list[str]]:
        """Return value of `found`."""
        passed = folders.passed_over(self.passed)
        if not self.rows:
            first = (
                f"; the first problem is {self.problems[0][0]}: {self.problems[0][1]}"
                if self.problems
                else ""
            )
            raise errors.InputError(
                f"no usable recordings in {sources}, expected audio"
                f" files{f'; {passed}' if passed else ''}{first}"
            )
        table = pd.DataFrame(list(self.rows.values())).drop(columns="strange", errors="ignore").fillna("")
        numbers = name_words.sections(set(table["section"]))
        if len(set(numbers[name] for name in table["section"])) > 1:
            counts = sorted(
                (numbers[name], name or "no id", count) for name, count in Counter(table["section"]).items()
            )
            self.notes.append(
                "sections, evaluated separately:"
                f" {', '.join(f'{number} is {name} ({count})' for number, name, count in counts)}"
            )
        table["section"] = table["section"].map(numbers)
        recognized = ", ".join(
            f"{name} = {says}" for name, says in self.names.items() if says and says != name.lower()
        )
        unrecognized = ", ".join(name for name, says in self.names.items() if not says)
        notes = [
            f"folder names recognized: {recognized}" if recognized else "",
            f"folder names not recognized: {unrecognized}" if unrecognized else "",
            passed,
        ]
        return table, self.problems, [*self.notes, *filter(None, notes)]

    def read_lists(self, paths: Sequence[Path]) -> None:
        """Read lists; files with contradictory rows are left out."""
        said: dict[str, list[tuple[str, dict | None]]] = {}
        for path in paths:
            if os.path.realpath(path) in self.lists:
                continue
            self.lists.add(os.path.realpath(path))
            for where, file, facts in _list_rows(path, self.problems):
                self.listed.setdefault(os.path.realpath(file), (file, path))
                said.setdefault(os.path.realpath(file), []).append((where, facts))
        for real, rows in said.items():
            (first, facts), *others = rows
            if any(row is None for _, row in rows):
                continue  # already reported
            for where, row in others:
                differ = [
                    key
                    for key in sorted({*facts, *row} - {"path", "said"})
                    if facts.get(key, "") != row.get(key, "")
                ]
                if differ:
                    one, other = (
                        ", ".join(f"{key.removeprefix('attr_')} {of.get(key, '')!r}" for key in differ)
                        for of in (facts, row)
                    )
                    self._leave(facts["path"], f"{first} says {one} but {where} says {other}; fix the list")
                    break
            else:
                self.rows[real] = facts

    def read_place(self, source: Path) -> None:
        """Add recordings of a folder, or a single file, that no list contains."""
        known, refused = self._challenge(source)
        machines = {os.path.dirname(os.path.dirname(path)) for path in known}
        mine: set[str] = set()
        unread: list[Path] = []  # possible label lists that are not among the sources
        files = (
            folders.below(source, (*self.sounds, ".csv"), self.problems, self.passed)
            if source.is_dir()
            else [source]
        )
        for path in files:
            real = os.path.realpath(path)
            if path.suffix.lower() == ".csv":
                if real not in self.lists and not (
                    index.ATTRIBUTES.fullmatch(path.name) and str(path.parent.absolute()) in machines
                ):
                    self.passed[".csv"] += 1
                    unread += (
                        [path]
                        if "label" in (names := lists.columns(path)) and {"path", "file_name"} & names
                        else []
                    )
                continue
            if real in self.listed:
                continue
            self.met.add(real)
            try:
                self._add(real, self._row(path, source, known, refused, machines))
                mine.add(real)
            except ValueError as error:
                self._leave(path, str(error))
        self._doubt(source, mine & set(self.rows), unread)

    def say_unlisted(self) -> None:
        """Leave out recordings next to listed ones that are in no list and no other source."""
        beside = {file.parent: path for file, path in self.listed.values()}
        known = {*self.listed, *self.met}
        for folder, path in beside.items():
            _, _, names = next(folders.walk(folder, []), (folder, [], []))
            for file in (folder / name for name in names if Path(name).suffix.lower() in self.sounds):
                if os.path.realpath(file) not in known:
                    self._leave(
                        file,
                        f"not in {path.name}, which lists recordings next to it; add it there, or its folder"
                        " to the sources",
                    )

    def _leave(self, path: str | Path, reason: str) -> None:
        self.problems.append((ascii(str(path)) if index.unreadable(path) else str(path), reason, True))

    def _add(self, real: str, row: dict) -> None:
        """Add a recording; of several names of one file the informative one counts.

        raises : ValueError for contradictory names, which exclude the file
        """
        old = self.rows.get(real)
        if real in self.torn:
            raise ValueError("another link to the same file has different labels; remove one")
        if old is None or old["said"] == "nothing":
            self.rows[real] = row
        elif row["said"] != "nothing" and any(old[key] != row[key] for key in ("split", "label", "domain")):
            del self.rows[real]
            self.torn.add(real)
            self._leave(old["path"], "another link to the same file has different labels; remove one")
            raise ValueError("another link to the same file has different labels; remove one")

    def _challenge(self, source: Path) -> tuple[dict[str, dict], dict[str, str]]:
        """Rows by path in the challenge's layout, and reasons by rejected path.

        Other remarks are added to the problems.
        """
        if not source.is_dir():
            return {}, {}
        try:
            table, problems = index.index([source])
        except errors.InputError:  # not in this layout
            return {}, {}
        self.problems += [
            (row.path, row.reason, False)
            for row in problems[~problems["left_out"]].itertuples()
            if not os.path.isdir(row.path)
        ]
        refused = problems[problems["left_out"]]
        return {row["path"]: row for row in table.to_dict("records")}, dict(
            zip(refused["path"], refused["reason"], strict=True)
        )

    def _row(self, path: Path, source: Path, known: dict, refused: dict, machines: set[str]) -> dict:
        """Facts of a recording.  raises : ValueError with the reason if it cannot be used"""
        wrong = index.unreadable(path.absolute())
        if wrong or path.suffix.lower() not in self.sounds:
            raise ValueError(
                wrong
                or f"file type {path.suffix or 'without extension'} not supported, expected audio"
                f" ({', '.join(SOUNDS[:6])}, ...); convert it, for example: ffmpeg -i"
                f" {shlex.quote(path.name)} {shlex.quote(path.stem)}.wav"
            )
        full = path.absolute()
        facts = known.get(str(full))
        if facts is not None:
            attributes = {key: value for key, value in facts.items() if key.startswith("attr_")}
            named = {name: facts[name] for name in ("split", "label", "domain")} | {
                "section": f"{facts['machine']}/{facts['section']}"
            }
            return {"path": str(path), "said": "challenge layout"} | named | attributes
        if any(
            Path(machine) in full.parents and full.relative_to(machine).parts[0] not in index.SPLIT_OF
            for machine in machines
        ):
            raise ValueError(
                "next to the train and test folders of a machine in the challenge layout, where no clips"
                " are expected"
            )
        inner = (
            [name for name in path.relative_to(source).parts[:-1] if name not in self.accept]
            if source.is_dir()
            else []
        )
        top = list(dict.fromkeys((source.resolve().name, source.absolute().name))) if source.is_dir() else []
        top = [name for name in top if name not in self.accept]
        challenge = CHALLENGE.search(path.stem)
        if challenge and str(full) in refused:
            raise ValueError(refused[str(full)])
        said = name_words.read("" if challenge else path.stem, inner, top)
        if challenge:
            facts, ending = index.read_name(challenge[0], challenge["split"])
            facts["split"] = challenge["split"]
            if any(said.get(what, facts[what]) != facts[what] for what in ("split", "label")):
                raise ValueError(
                    f"name says {facts['split']} {facts['label']} but its folders disagree; move or rename it"
                )
            attributes = {f"attr_{key}": value for key, value in index.read_ending(ending, "pairs").items()}
            return (
                {"path": str(path), "said": "challenge name"}
                | facts
                | {"section": f"/{facts['section']}"}
                | attributes
            )
        self._note_names(inner, top)
        strange = [] if "label" in said else [name for name in inner if not name_words.understood(name)]
        by_id = index.ID_NAME.fullmatch(path.stem)
        section = name_words.section([*top[-1:], *inner], source.absolute().parent.name) or (
            f"/{by_id['section']}" if by_id else ""
        )
        attributes = {f"attr_{key}": value for key, value in name_words.conditions([*top, *inner]).items()}
        return {"path": str(path)} | _settled(said) | {"section": section, "strange": strange} | attributes

    def _note_names(self, inner: list[str], top: list[str]) -> None:
        """Record what folder names mean, or that they are not understood.

        Top-level names count only if no name below has a meaning.
        """
        for name in inner if any(map(name_words.folder, inner)) else [*top, *inner]:
            known = name_words.understood(name)
            says = (
                " ".join(word for told in name_words.folder(name).values() for word in sorted(told))
                if known or name in inner
                else ""
            )
            if says or (name in inner and not known):
                self.names[name] = says

    def _doubt(self, source: Path, mine: set[str], unread: Sequence[Path]) -> None:
        """Leave out recordings that would be used for training but may not be normal."""
        spoken = any(self.rows[real]["said"] != "nothing" for real in mine)
        here = os.path.realpath(source)
        governing = next(
            (path.name for real, (_, path) in self.listed.items() if folders.within(real, here)), ""
        )
        if governing:
            why = f"not in {governing}, and neither its name nor its folder gives a label; add it to the list"
        elif unread:
            why = (
                f"no label in its name or folder; {folders.shown(unread[0].name)} looks like a list of"
                " labels, add it to the sources"
            )
        else:
            why = ""
        for real in sorted(mine):
            row = self.rows[real]
            strange = row.get("strange")
            if why and row["said"] == "nothing":
                reason = why
            elif strange and spoken and row["split"] == "train":
                given = " ".join(shlex.quote(name) for name in strange)
                reason = (
                    f"folder name {', '.join(strange)} not recognized, expected a word such as normal or"
                    " anomaly; rename it, list its recordings in a csv, or accept them as normal with"
                    f" --accept-folders {given}"
                )
            else:
                continue
            del self.rows[real]
            self._leave(row["path"], reason)
        read = len(mine & set(self.rows))
        if governing and read:
            self.notes.append(
                f"{read} recordings in {source} are not in {governing}: labeled by their names and folders"
            )
        if unread and not governing:
            self.notes.append(
                f"{folders.shown(unread[0])} looks like a list of labels but is not read; add it to the"
                " sources"
            )


def _settled(said: dict[str, str]) -> dict[str, str]:
    """Complete split, label and domain from those given.  raises : ValueError for an anomaly in training"""
    split = said.get("split", "test" if said.get("label") == "anomaly" else "train")
    label = said.get("label", "normal" if split == "train" else "unlabeled")
    if split == "train" and label == "anomaly":
        raise ValueError(
            "anomalous recording in the training set, expected normal recordings only; move it to"
            " test/anomaly"
        )
    how = "names" if {"label", "split"} & set(said) else "nothing"
    return {
        "split": split,
        "label": label,
        "domain": said.get("domain", "source" if label != "unlabeled" else "unknown"),
        "said": how,
    }


def _list_rows(path: Path, problems: folders.Problems) -> Iterator[tuple[str, Path, dict | None]]:
    """Yield (position such as list.csv:3, file, facts) per row, facts None for an invalid row.

    Paths are relative to the list.
    """
    try:
        header, lines = lists.read(path)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise errors.InputError(
            f"{path}: cannot be read as csv ({what}), expected a header with path and label"
        ) from error
    names = [ALIKE.get(name.lower(), name.lower()) for name in header]
    names = [low if low in LIST_COLUMNS else name for low, name in zip(names, header)]
    if not {"path", "label"} <= set(names):
        raise errors.InputError(
            f"{path}: got columns {', '.join(header)}, expected path and label, optionally split, domain and"
            " attributes"
        )
    twice = [name for place, name in enumerate(names) if name and name in names[:place]]
    if twice:
        raise errors.InputError(
            f"{path}: duplicate column {twice[0]}, expected unique names; rename one of them"
        )
    for number, cells in lines:
        where, row = f"{path}:{number}", dict(zip(names, [*cells, *[""] * (len(names) - len(cells))]))
        if not row["path"]:
            problems.append((where, "no recording given; complete or remove the row", True))
            continue
        if row.pop("", ""):
            problems.append((str(path), "a column without a name is ignored", False))
        if len(cells) < len(names):
            problems.append(
                (
                    where,
                    f"got {len(cells)} cells, expected {len(names)}; missing values are treated as unknown",
                    False,
                )
            )
        for key in [
            key for key, value in row.items() if key not in ("path", "split") and value.lower() in UNKNOWN
        ]:
            problems.append((where, f"{key} {row[key]!r} is treated as unknown", False))
            row[key] = ""
        file = Path(path.parent, row["path"])
        if not os.path.isfile(file):
            file = Path(path.parent, row["path"].replace("\\", "/"))
        try:
            if any(cells[len(names) :]):
                raise ValueError(
                    f"its row in {path.name} has {len(cells)} cells, expected {len(names)}; quote text that"
                    " contains a separator"
                )
            yield where, file, _list_facts(path, row, file)
        except ValueError as error:
            problems.append((str(file), str(error), True))
            yield where, file, None


def _list_facts(path: Path, row: dict[str, str], file: Path) -> dict[str, str]:
    """Facts of a list row.  raises : ValueError with the reason"""
    if not os.path.isfile(file):
        raise ValueError(
            f"listed in {path.name}, but {folders.dangling(file) or 'the file does not exist; fix the list'}"
        )
    if wrong := index.unreadable(file.absolute()):
        raise ValueError(wrong)
    said = {}
    for what in name_words.WORDS:
        cell = row.get(what, "")
        told = name_words.value(what, cell)
        if cell and not told:
            expected = ", ".join(dict.fromkeys(name_words.WORDS[what].values()))
            raise ValueError(f"{path.name} says {what} {cell!r}, expected {expected} or nothing")
        said |= {what: told} if told else {}
    section = row.get("section", "")
    if section and not section.isdecimal():
        raise ValueError(f"{path.name} says section {section!r}, expected a number or nothing")
    if not said.get("label") and "split" not in said:
        said["split"] = "test"  # a row without a label is not assumed normal
    named = (
        f"/{int(section):02}"
        if section
        else name_words.section(
            [*Path(row["path"].replace("\\", "/")).parts[:-1]], path.absolute().parent.name
        )
    )
    attributes = {f"attr_{key}": value for key, value in row.items() if key not in LIST_COLUMNS and value}
    return (
        {"path": str(file)}
        | _settled(said)
        | {"said": folders.shown(path.name), "section": named}
        | attributes
    )
