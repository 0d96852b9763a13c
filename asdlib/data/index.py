"""Index of recordings: folders to a clip table with machines, labels, domains and attributes.

Machines are searched below one or several roots; file names and attribute lists are parsed, and problems
reported. Recordings are not opened here but in `asdlib.data.store`.

Layouts (challenge years 2020 to 2026)
--------------------------------------
A machine is a folder that holds recordings in `train`, `test`, `source_test` or `target_test`, at any depth
below a root. `section_00_source_train_normal_0001_vel_4_loc_A.wav` (2021 on; the token `train` or `test` may
be absent), `section_00_0001.wav` or `section_00_source_test_0001.wav` (evaluation clips without labels),
`normal_id_02_00000001.wav` and `id_02_00000001.wav` (2020: the id is the section, all is source).
`test_rename` (the evaluation clips under their true names) replaces `test` if it exists. Recordings in
`supplemental` (2025 on: the machine without noise, or noise without the machine) are in no table of training
and test clips, so that they are not trained on, tested or normalized with; `supplemental` lists them.

Attributes
----------
Rows of `attributes_*.csv` take precedence; a clip without a row is parsed from the end of its name, in one of
these forms: `vel_4_loc_A` (alternating key and value), `weight15_BckgF` (every token a key with its value),
`noAttribute` or nothing. Any other ending (`mic_pos_A`, `wt_200_damage1`) is ambiguous: the clip is reported
and left out, never guessed. One exception: in the 2021 layout (`source_test`, `target_test`) the whole ending
is the value of one attribute `condition`. Values are kept as text. Contradictory or incomplete rows are
reported and ignored. If all training clips of a machine have `noAttribute`, its test clips have no attributes
either: what their names may contain was hidden from participants. Ground-truth lists are never read.

Source: METHOD 3.1, 3.3, 4.5-4.7, 5.4, 7.1, 7.2. Notebook: 01_data
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from asdlib import errors, schemas
from asdlib.data import folders, lists

AUDIO = (".wav", ".flac")
# Unicode categories: control characters, invalid UTF-8, line and paragraph separators
UNREADABLE = ("Cc", "Cs", "Zl", "Zp")
LONGEST_NAME = 100  # bytes; machine names become part of file names
NAME_RULE = (
    f"expected a machine name of at most {LONGEST_NAME} bytes other than all, which is reserved for all"
    " machines in tables"
)
MOST_KEYS = 100  # attributes per machine
SPLIT_OF = {
    "train": "train",
    "test": "test",
    "source_test": "test",
    "target_test": "test",
    "test_rename": "test",
}
PROBLEM_COLUMNS = ("path", "reason", "left_out")
DOMAINS = ("source", "target")
NO_ATTRIBUTE = "noAttribute"

SECTION_NAME = re.compile(
    r"section_(?P<section>\d+)_(?:(?P<domain>source|target)_)?(?:(?P<split>train|test)_)?"
    r"(?:(?P<label>normal|anomaly)_)?(?P<number>\d+)(?:_(?P<ending>.*))?"
)
ID_NAME = re.compile(r"(?:(?P<label>normal|anomaly)_)?id_(?P<section>\d+)_(?P<number>\d+)")
JOINED = re.compile(r"([A-Za-z]*[a-z])(\d+(?:\.\d+)?[A-Za-z]?|[A-Z]\d*)")
ATTRIBUTES = re.compile(r"attributes_\d+\.csv", re.IGNORECASE)
# ground truth of test clips, such as attributes_00_test_correspondence.csv
HIDDEN_ATTRIBUTES = re.compile(r"attributes_\d+_\w+\.csv")
KEY = re.compile(r"[A-Za-z][A-Za-z0-9-]*")


def index(
    roots: Sequence[str | Path], machines: Sequence[str] = (), beside: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clip table and problems of all machines below the roots.

    roots : folders that hold machine folders, or their parents; machines found several times are merged
    machines : names to keep; empty for all
    beside : append supplemental recordings as clips of split "supplemental" (`data.supplemental`)
    returns : (clip table as in `schemas.clip_table`, sorted by clip, with a text column attr_<key> per
        attribute; problems (path, reason, left_out), left_out: the clip is not in the table)
    raises : errors.InputError for a missing or unreadable root, no machine, an unknown machine, no usable
        clip, or missing supplemental recordings if requested
    Notebook: 01_data
    """
    problems: folders.Problems = []
    found = _machine_folders(roots, problems)
    for name in machines:
        errors.check_choice("machine", name, sorted({folder.name for folder in found}))
    found = [folder for folder in found if not machines or folder.name in machines]
    forms = _ending_forms(found)
    clips: dict[str, dict[str, str]] = {}
    for folder in found:
        for row in _machine_clips(folder, forms[folder.name], problems):
            if row["clip"] in clips:
                reason = (
                    f"same machine and name as {clips[row['clip']]['path']}; only that one is used, remove"
                    " the duplicate"
                )
                problems.append((row["path"], reason, True))
            else:
                clips[row["clip"]] = row
    if not clips:
        raise errors.InputError(
            f"no usable clip in {_listed(roots)}; the first problem is {problems[0][0]}: {problems[0][1]}"
        )
    table = pd.DataFrame([clips[name] for name in sorted(clips)]).fillna("")
    keys = [name for name in table if name.startswith("attr_") and (table[name] != "").any()]
    table = schemas.clip_table(table[[*schemas.CLIP_COLUMNS, *sorted(keys)]])
    bare = _without_references(table)
    for clip in table[bare].itertuples():
        reason = (
            f"section {clip.section} of {clip.machine} has no training clips, and the others are scored"
            " separately; add its training clips"
        )
        problems.append((clip.path, reason, True))
    table = table[~bare].reset_index(drop=True)
    trained, sided = set(table.loc[table["split"] == "train", "machine"]), one_sided(table)
    for folder in {folder.name: folder for folder in found}.values():
        if folder.name not in trained:
            problems.append(
                (
                    str(folder),
                    f"no training clips of {folder.name}; it cannot be scored, add its train folder",
                    False,
                )
            )
        problems += [(str(folder), words, False) for words in sided.get(folder.name, ())]
    if beside:
        more = supplemental(roots)
        more = more[more["machine"].isin(set(table["machine"]))]
        if more.empty:
            raise errors.InputError(
                f"{_listed(roots)}: no supplemental recordings, but data.supplemental is true; expected a"
                " folder supplemental next to a machine's train folder; add it or set data.supplemental ="
                " false"
            )
        more = more.assign(split=schemas.SUPPLEMENTAL, domain="unknown", label="unlabeled")
        table = schemas.clip_table(pd.concat([table, more], ignore_index=True).fillna(""))
    return table, problem_table(problems)


def supplemental(roots: Sequence[str | Path]) -> pd.DataFrame:
    """Supplemental recordings of all machines below the roots: clip, path, machine, section and content.

    content : "machine" without noise, or "noise" without the machine, from the name; else "unknown".  Usable
        as noise for augmentation or as pseudo-anomalies, never as test clips.  Notebook: 01_data
    """
    rows = []
    for folder in _machine_folders(roots, []):
        for path in _recordings(folder / "supplemental"):
            if unreadable(path):
                continue
            tokens = path.stem.split("_")
            section = re.match(r"section_(\d+)_", path.stem)
            said = {"machine", "noise"} & set(tokens)
            content = said.pop() if len(said) == 1 else "unknown"
            clip = f"{folder.name}/supplemental/{path.name}"
            rows.append((clip, str(path), folder.name, section[1] if section else "00", content))
    return pd.DataFrame(rows, columns=["clip", "path", "machine", "section", "content"]).astype("str")


def one_sided(table: pd.DataFrame) -> dict[str, list[str]]:
    """Warnings for machines or sections whose labeled test clips are all normal or all anomalous.

    table : columns machine, section, split and label
    returns : machine -> messages; machines with unlabeled test clips are ignored
    """
    notes: dict[str, list[str]] = {}
    test = table[table["split"] == "test"]
    test = test[~test["machine"].isin(set(test.loc[test["label"] == "unlabeled", "machine"]))]
    several = test.groupby("machine")["section"].nunique()
    for (machine, section), labels in test.groupby(["machine", "section"])["label"]:
        if labels.nunique() == 1:
            one, other = ("normal", "anomalous") if labels.iloc[0] == "normal" else ("anomalous", "normal")
            where = f"{machine} section {section}" if several[machine] > 1 else machine
            what = (
                f"every test clip of {where} is {one} ({len(labels)}): its AUC is undefined, add {other}"
                " test clips"
            )
            notes.setdefault(machine, []).append(what)
    return notes


def problem_table(rows: Sequence[tuple[str, str, bool]]) -> pd.DataFrame:
    """Problems (path, reason, left_out) as a table, possibly empty."""
    rows = [(folders.shown(path), reason, left_out) for path, reason, left_out in rows]
    return pd.DataFrame(rows, columns=list(PROBLEM_COLUMNS)).astype(
        {"path": "str", "reason": "str", "left_out": bool}
    )


def _listed(roots: Sequence[str | Path]) -> str:
    return ", ".join(map(str, roots)) or "no folder"


def usable_name(machine: str) -> bool:
    """Whether a machine name satisfies NAME_RULE."""
    return machine != "all" and len(os.fsencode(machine)) <= LONGEST_NAME


def _machine_folders(roots: Sequence[str | Path], problems: list) -> list[Path]:
    """Folders with recordings in train or test, each once, in the order of the roots."""
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        try:
            os.listdir(root)
        except OSError as error:
            what = (
                "no such folder"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read ({error.strerror})"
            )
            raise errors.InputError(
                f"{root}: {what}, expected a folder of machines; check the path and its permissions, or pass"
                " its new location with --data-root"
            ) from error

        for folder, names, _ in folders.walk(root.absolute(), problems):
            if any(_recordings(folder / name) for name in names if name in SPLIT_OF):
                if not usable_name(folder.name):
                    raise errors.InputError(f"{folder}: {NAME_RULE}; rename the folder")
                found.setdefault(os.path.realpath(folder), folder)
                names.clear()
    if not found:
        loose = [path for root in roots for path in _recordings(Path(root))]
        what = (
            f"{len(loose)} recordings but no machine folder"
            if loose
            else "no recordings (wav or flac) in any machine folder"
        )
        first = f"; the first problem is {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise errors.InputError(
            f"{_listed(roots)}: {what}, expected <machine>/train and <machine>/test; reorganize the"
            f" files{first}"
        )
    return list(found.values())


def _without_references(table: pd.DataFrame) -> np.ndarray:
    """Test clips of a section without training clips whose machine is scored by section, bool (clips,)."""
    pairs = pd.MultiIndex.from_frame(table[["machine", "section"]])
    known = pairs.isin(pairs[table["split"] == "train"])
    return ~known & (schemas.by_references(table)["machine"] != table["machine"]).to_numpy()


def _names(folder: Path, problems: list | None = None) -> list[str]:
    """Sorted names of visible entries of a folder; empty if it does not exist."""
    try:
        return sorted(name for name in os.listdir(folder) if not folders.hidden(name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:  # without `problems`, the walk over machines reports the same folder
        if problems is not None:
            problems.append(
                (str(folder), f"cannot read folder ({error.strerror}); check its permissions", True)
            )
        return []


def _recordings(folder: Path, problems: list | None = None) -> list[Path]:
    return [folder / name for name in _names(folder, problems) if name.lower().endswith(AUDIO)]


def _say_others(folder: Path, problems: folders.Problems) -> None:
    """Report other contents of a clip folder: audio in unsupported formats, and folders of recordings."""
    others = [folder / name for name in _names(folder) if not name.lower().endswith(AUDIO)]
    endings = Counter(path.suffix.lower() for path in others if path.suffix.lower() in folders.FOREIGN)
    if endings:
        problems.append((str(folder), folders.passed_over(endings), False))
    for path in others:
        if _recordings(path):
            problems.append(
                (
                    str(path),
                    (
                        f"subfolder of {folder.name}, its recordings are not read; move them up into"
                        f" {folder.name}"
                    ),
                    True,
                )
            )


def _ending_forms(machines: Sequence[Path]) -> dict[str, str]:
    """How to parse name endings per machine: 'words', 'hidden' or 'pairs'.

    'words' for the 2021 layout, 'hidden' for test clips of noAttribute machines
    """
    forms = {}
    for name in {folder.name for folder in machines}:
        same = [folder for folder in machines if folder.name == name]
        train = [path.stem.rstrip("_") for folder in same for path in _recordings(folder / "train")]
        if any((folder / place).is_dir() for folder in same for place in ("source_test", "target_test")):
            forms[name] = "words"
        else:
            forms[name] = (
                "hidden" if train and all(stem.endswith(f"_{NO_ATTRIBUTE}") for stem in train) else "pairs"
            )
    return forms


def _machine_clips(folder: Path, form: str, problems: list) -> Iterator[dict[str, str]]:
    """Yield clip-table rows of one machine folder; unusable files are added to `problems`."""
    rows, listed = _attribute_lists(folder, problems)
    met: set[str] = set()
    for place, split in SPLIT_OF.items():
        recordings = _recordings(folder / place, problems)
        _say_others(folder / place, problems)
        met.update(path.stem.rstrip("_") for path in recordings)
        if place == "test" and _recordings(folder / "test_rename"):
            continue
        for path in recordings:
            wrong = unreadable(path) or folders.dangling(path)
            if wrong:
                problems.append((ascii(str(path)) if unreadable(path) else str(path), wrong, True))
                continue
            row = rows.get(path.stem.rstrip("_"))
            try:
                clip, ending = read_name(path.stem, split)
                attributes = (
                    {}
                    if form == "hidden" and split == "test"
                    else read_ending(ending, form)
                    if row is None
                    else row
                )
            except ValueError as error:
                problems.append((str(path), str(error), True))
                continue
            if row is None and clip["label"] != "unlabeled" and (clip["section"], split) in listed:
                problems.append(
                    (
                        str(path),
                        "no row in the machine's attributes csv; attributes are read from the file name",
                        False,
                    )
                )
            head = {
                "clip": f"{folder.name}/{split}/{path.name}",
                "path": str(path),
                "machine": folder.name,
                "split": split,
            }
            yield head | clip | {f"attr_{key}": value for key, value in attributes.items()}
    for stem in sorted(set(rows) - met):
        split = "train" if "_train_" in stem else "test"
        reason = (
            f"listed in an attributes csv of {folder.name}, but the file does not exist; is the download"
            " complete?"
        )
        problems.append((str(folder / split / f"{stem}.wav"), reason, False))


def unreadable(path: str | Path) -> str:
    """Message for a path that no table can store, else ""."""
    odd = any(unicodedata.category(letter) in UNREADABLE for letter in str(path))
    return "name is not valid UTF-8 or contains control characters; rename it" if odd else ""


def read_name(stem: str, split: str) -> tuple[dict[str, str], str]:
    """(Section, domain and label; ending) of a challenge file name without suffix.

    stem : "section_00_source_train_normal_0001_vel_4", "normal_id_02_00000001".  split : of its folder
    raises : ValueError for another form, or a contradiction to the folder.  Source: METHOD 7.2
    """
    by_id = ID_NAME.fullmatch(stem)
    if by_id:
        section, domain, label, ending = by_id["section"], "source", by_id["label"], ""
    else:
        by_section = SECTION_NAME.fullmatch(stem)
        if not by_section or (by_section["label"] and not by_section["domain"]):
            raise ValueError(
                "name cannot be parsed, expected"
                " section_NN_<source|target>_<train|test>_<normal|anomaly>_NNNN; rename it"
            )
        if by_section["split"] not in (None, split):
            raise ValueError(f"name says {by_section['split']} but the file is in {split}; move or rename it")
        section, domain, label, ending = by_section.group("section", "domain", "label", "ending")
    clip = {"section": section, "domain": domain or "unknown", "label": label or "unlabeled"}
    if split == "train" and clip["label"] != "normal":
        raise ValueError(
            f"{clip['label']} clip in the train folder, expected normal clips only; move it to test"
        )
    return clip, ending or ""


def read_ending(ending: str, form: str) -> dict[str, str]:
    """Attributes (key -> value) from the end of a file name.

    form : "pairs" (key_value_key_value) or "words" (2021: a single value)
    raises : ValueError for an ambiguous ending.  Source: METHOD 7.2
    """
    ending = ending.rstrip("_")
    if ending in ("", NO_ATTRIBUTE):
        return {}
    if form == "words":
        return {"condition": ending}
    tokens = ending.split("_")
    joined = [JOINED.fullmatch(token) for token in tokens]
    if all(joined):
        pairs = [(match[1], match[2]) for match in joined]
    else:
        pairs = list(zip(tokens[::2], tokens[1::2], strict=False))
    keys = [key for key, _ in pairs]
    whole = all(joined) or len(tokens) % 2 == 0
    if (
        not whole
        or len(set(keys)) < len(keys)
        or not all(KEY.fullmatch(key) and value for key, value in pairs)
    ):
        raise ValueError(
            f"name cannot be parsed: {ending!r} is not a list of key_value pairs; add a row for the clip to"
            " attributes_00.csv"
        )
    return dict(pairs)


def _attribute_lists(folder: Path, problems: list) -> tuple[dict[str, dict[str, str]], set[tuple[str, str]]]:
    """Attributes by file stem from attributes_*.csv, and the (section, split) pairs they list."""
    rows: dict[str, tuple[str, dict[str, str]]] = {}  # position of a row and its attributes
    listed: set[tuple[str, str]] = set()
    disagree: set[str] = set()
    for path in [folder / name for name in _names(folder) if name.lower().startswith("attributes")]:
        if not ATTRIBUTES.fullmatch(path.name):
            if not HIDDEN_ATTRIBUTES.fullmatch(path.name):
                problems.append(
                    (
                        str(path),
                        "only files named like attributes_00.csv are read as attributes; rename or remove it",
                        False,
                    )
                )
            continue
        for where, stem, attributes in _attribute_rows(path, problems):
            first, others = rows.setdefault(stem, (where, attributes))
            if others != attributes:
                what = (
                    f"{first} and {where} disagree about the attributes of {stem}; neither is used, fix the"
                    " list"
                )
                problems.append((str(path), what, False))
                disagree.add(stem)
            parsed = SECTION_NAME.fullmatch(stem)
            if parsed and parsed["split"]:
                listed.add((parsed["section"], parsed["split"]))
    return {stem: attributes for stem, (_, attributes) in rows.items() if stem not in disagree}, listed


def _attribute_rows(path: Path, problems: list) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield (position such as 'attributes_00.csv:3', file stem, attributes) per valid row of a list."""
    try:
        header, lines = lists.read(path)
        if not header or header[0].lower() != "file_name":
            raise ValueError("no header, expected file_name,d1p,d1v,... in the first line; add it")
        if len({cell for _, (_, *cells) in lines for cell in cells[::2]}) > MOST_KEYS:
            raise ValueError(f"more than {MOST_KEYS} attributes, expected a few: file_name,d1p,d1v,...")
    except (OSError, ValueError) as error:
        problems.append((str(path), f"{error}; attributes are read from the file names", False))
        return
    for number, (name, *cells) in lines:
        where = f"{path.name}:{number}"
        if not name:
            continue
        if len(cells) % 2 and cells[-1]:
            what = (
                f"{where} has {len(cells) + 1} cells, expected file_name and attribute, value pairs; the row"
                " is ignored, fix it"
            )
            problems.append((str(path), what, False))
            continue
        stem = PurePosixPath(name.replace("\\", "/")).name
        stem = (stem[: -len(Path(stem).suffix)] if stem.lower().endswith(AUDIO) else stem).rstrip("_")
        pairs = zip(cells[::2], cells[1::2], strict=False)
        yield where, stem, {key: value for key, value in pairs if key not in ("", NO_ATTRIBUTE)}


def attribute_keys(table: pd.DataFrame) -> list[str]:
    """Attribute keys with a value in at least one clip of the table."""
    return [name[5:] for name in table if name.startswith("attr_") and (table[name] != "").any()]


def training_classes(table: pd.DataFrame) -> pd.Series:
    """Class of every training clip: machine, section, attribute values and domain (METHOD 5.4).

    returns : str, indexed like the training rows of the table, for instance 'fan/00/m-n=X/source'. Notebook:
        04_classifier
    """
    train = table[table["split"] == "train"]
    words = [
        [f"{key}={value}" if value else "" for value in train[f"attr_{key}"]] for key in attribute_keys(train)
    ]
    values = [",".join(filter(None, row)) for row in zip(*words, strict=True)] if words else [""] * len(train)
    return (
        train["machine"]
        + "/"
        + train["section"]
        + "/"
        + pd.Series(values, index=train.index, dtype="str")
        + "/"
        + train["domain"]
    )


def natural(text: str) -> list[tuple[float, str]]:
    """Sort key under which '8' comes before '12' and 'B2' before 'B10'."""
    parts = re.findall(r"\d+(?:[.,]\d+)?|\D+", text)
    return [
        (float(part.replace(",", ".")), "") if part[0].isdigit() else (float("inf"), part) for part in parts
    ]


def summary(table: pd.DataFrame, problems: pd.DataFrame) -> dict:
    """Counts, attribute values per domain, training classes, durations and problems, ready for JSON.

    Attribute values are those of clips with a known domain; `seconds` is [shortest, longest], or None before
    decoding (`asdlib.data.store.inspect`). Notebook: 01_data
    """
    classes = training_classes(table)
    machines = {}
    for machine, clips in table.groupby("machine"):
        train, test = clips[clips["split"] == "train"], clips[clips["split"] == "test"]
        kinds = test["domain"] + "_" + test["label"]
        counts = {
            f"{domain}_{label}": int((kinds == f"{domain}_{label}").sum())
            for domain in DOMAINS
            for label in ("normal", "anomaly")
        }
        machines[machine] = {
            "train": {domain: int((train["domain"] == domain).sum()) for domain in DOMAINS},
            "test": counts | {"unlabeled": int((test["label"] == "unlabeled").sum())},
            "attributes": {
                key: {
                    domain: sorted(
                        set(clips.loc[clips["domain"] == domain, f"attr_{key}"]) - {""}, key=natural
                    )
                    for domain in DOMAINS
                }
                for key in attribute_keys(clips)
            },
            "classes": int(classes[train.index].nunique()),
            "seconds": (
                [float(clips["seconds"].min()), float(clips["seconds"].max())] if "seconds" in clips else None
            ),
        }
    listed = [
        {"path": path, "reason": reason}
        for path, reason in zip(problems["path"], problems["reason"], strict=True)
    ]
    return {"machines": machines, "classes": int(classes.nunique()), "problems": listed}


def summary_text(content: dict, most: int = 20) -> str:
    """Summary formatted for the terminal, with at most `most` problems."""
    lines = [
        f"{'machine':16} {'train s/t':>12} {'test source n/a':>16} {'target n/a':>12} {'no label':>9}"
        f" {'classes':>8} {'seconds':>12}"
    ]
    for machine, part in content["machines"].items():
        train, test, seconds = part["train"], part["test"], part["seconds"]
        span = "-" if seconds is None else "-".join(dict.fromkeys(f"{value:g}" for value in seconds))
        lines.append(
            f"{machine:16} {train['source']:>7}/{train['target']:<4}"
            f" {test['source_normal']:>10}/{test['source_anomaly']:<5}"
            f" {test['target_normal']:>6}/{test['target_anomaly']:<5} {test['unlabeled']:>9}"
            f" {part['classes']:>8} {span:>12}"
        )
        for key, values in part["attributes"].items():
            lines.append(
                f"    {key}: source {', '.join(values['source']) or 'none'} | target"
                f" {', '.join(values['target']) or 'none'}"
            )
        for what, count in content.get("supplemental", {}).get(machine, {}).items():
            lines.append(f"    supplemental, neither trained on nor tested: {count} of {what}")
    problems = content["problems"]
    lines.append(
        f"{content['classes']} training classes, {len(problems)} problem{'s' * (len(problems) != 1)}"
    )
    lines += [f"  {problem['path']}: {problem['reason']}" for problem in problems[:most]]
    return "\n".join([*lines, *([f"  and {len(problems) - most} more"] if len(problems) > most else [])])
