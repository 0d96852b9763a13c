"""From recordings as people have them to a machine in the challenge's layout.

Task
----
Folders, single files and lists (csv) become ROOT/<machine>/train and ROOT/<machine>/test with challenge names, which every
study reads. Nothing existing is changed: a recording that fits is linked (or copied), any other is decoded, brought to one channel and
one rate, and written as 16-bit WAV; long ones are cut into clips where that is asked for.

What a recording is, is read from (the first that says it)
----------------------------------------------------------
1. a csv with the columns path and label, and as they are known split, domain and attributes (every further column);
2. the challenge's own layout (`clips.index`), with its attribute lists;
3. a challenge name anywhere in the file name (`x_section_00_source_train_normal_0001_vel_4.wav`);
4. folders named train, test, source, target, normal, anomaly (or anomalous, abnormal), then one of the label words within the file name;
5. nothing: it is taken as a normal training recording, and the report says so.

A normal recording outside a test folder is for training, an anomalous one always for the test, one without a label in a test folder stays
unlabelled. What contradicts itself is left out, never guessed. Clips cut from one recording never stand on both sides, but
they resemble each other: thresholds from them are a little too tight, which the report of the import says too.

Source: FACTS F1, F2; issue "own machine".  Used by: `asd import`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import soundfile

from asdlib import checks, clips, config, decoding

SHORTEST_S = 1.0  # s
SOUNDS = tuple(sorted({".aif", ".oga", ".opus", *(f".{name.lower()}" for name in soundfile.available_formats())} - {".raw"}))
WORDS = {
    "label": {"normal": "normal", "anomaly": "anomaly", "anomalous": "anomaly", "abnormal": "anomaly"},
    "split": {"train": "train", "test": "test"},
    "domain": {"source": "source", "target": "target"},
}
CHALLENGE = re.compile(r"section_\d+_(?:source|target)_(?P<split>train|test)_(?:normal|anomaly)_\d+(?:_.*)?$")
FACTS = ("path", "split", "label", "domain", "said")
LIST_COLUMNS = ("path", "label", "split", "domain")


@dataclass(frozen=True)
class Imported:
    """What an import did. clips : a row per clip made (file, source, start_s, seconds, split, label, domain, said, made, attributes);
    problems : path, reason, left_out.
    """

    folder: Path
    clips: pd.DataFrame
    problems: pd.DataFrame

    def text(self) -> str:
        """The report for a terminal."""
        table, out = self.clips, [f"{self.folder}: {len(self.clips)} clips, {self.clips['seconds'].sum():.0f} s"]
        for (split, label, domain), rows in table.groupby(["split", "label", "domain"]):
            span = "-".join(dict.fromkeys(f"{value:g}" for value in (rows["seconds"].min().round(2), rows["seconds"].max().round(2))))
            out.append(f"  {split:5} {label:10} {domain:7} {len(rows):5} clips of {span} s")
        out.append("  " + ", ".join(f"{count} {made}" for made, count in table["made"].value_counts().items()))
        out += [f"  attribute {key}: {', '.join(sorted(set(table[f'attr_{key}']) - {''}, key=clips.natural))}" for key in clips.attribute_keys(table)]
        silent = table[table["said"] == "nothing"]
        if len(silent):
            out.append(f"nothing says what {len(silent)} of them are (first: {silent['source'].iloc[0]}): taken as normal training recordings")
        if table.duplicated("source").any():
            out.append("clips cut from one recording resemble each other: thresholds from training clips will be a little too tight")
        if not (table["split"] == "test").any():
            out.append("no test recordings: a study gives thresholds and scores, but no AUC")
        gone, kept = self.problems[self.problems["left_out"]], self.problems[~self.problems["left_out"]]
        for what, rows in ((f"left out: {len(gone)}", gone), (f"remarks: {len(kept)}", kept)):
            if len(rows):
                out += [what, *(f"  {row.path}: {row.reason}" for row in rows.head(10).itertuples())]
                out += [f"  and {len(rows) - 10} more; all stand in {self.folder / 'imported.csv'}"] * (len(rows) > 10)
        return "\n".join(out)


def import_machine(
    sources: Sequence[str | Path], root: str | Path, machine: str, *,
    rate: int = 16000, channel: int = 0, clip_seconds: float = 0.0, copy: bool = False, licence: str = "",
) -> Imported:  # fmt: skip
    """Make ROOT/<machine> of recordings; all of it or nothing.

    sources : folders, audio files and .csv lists.  rate : Hz.  channel : of recordings with several
    clip_seconds : s; longer recordings are cut into clips of this length, a rest of half of it or more becomes a clip too; 0: never
    copy : whole copies instead of links.  licence : of the recordings, written to LICENCE.txt for the model card
    raises : checks.Refusal for a machine that exists, no training recording, a folder that cannot be read or written
    """
    folder = Path(root) / machine
    if not re.fullmatch(r"[\w-]+", machine) or machine in clips.SPLIT_OF:
        raise checks.Refusal(f"machine name {machine!r}: expected letters, digits, - and _, and not the name of a split; give another --machine")
    if folder.exists() or folder.is_symlink():
        raise checks.Refusal(f"{folder} exists and is never overwritten; give another --machine or --root, or remove it first")
    if clip_seconds and clip_seconds < SHORTEST_S:
        raise checks.Refusal(f"clips of {clip_seconds:g} s were asked for, expected {SHORTEST_S:g} s or more; give a larger --clip-seconds")
    table, problems = found(sources)
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{machine}-", dir=root) as scratch:
            beside = Path(scratch) / machine
            made = _written(table, problems, beside, config.Data(sample_rate=rate, channel=channel, resample=True), clip_seconds, copy)
            if not (made["split"] == "train").any():
                first = f"; the first left out is {problems[0][0]}: {problems[0][1]}" if problems else ""
                where = ", ".join(map(str, sources))
                raise checks.Refusal(f"no normal training recording in {where}, expected some in a folder normal or train{first}")
            out = Imported(folder, made, clips.problem_table(problems))
            _write_lists(beside, out, licence)
            beside.chmod(0o755)
            os.rename(beside, folder)
    except OSError as error:
        what = f"{error.filename or root}: {error.strerror or error}"
        raise checks.Refusal(f"{what}; free space, choose another --root, or --copy where links are not possible") from error
    return out


# ---------------------------------------------------------------- what there is


def found(sources: Sequence[str | Path]) -> tuple[pd.DataFrame, list[tuple[str, str, bool]]]:
    """Every recording of the sources once: FACTS and attr_<key>, in order; and what is wrong with others (path, reason, left_out).

    raises : checks.Refusal for a source that does not exist, an unreadable list, or no recording at all
    """
    rows: dict[str, dict[str, str]] = {}
    problems: list[tuple[str, str, bool]] = []
    for source in map(Path, sources):
        if not source.exists():
            raise checks.Refusal(f"{source}: no such file or folder; check the path")
        for row in _listed(source, problems) if source.suffix.lower() == ".csv" else _in_folder(source, problems):
            rows.setdefault(os.path.realpath(row["path"]), row)
    if not rows:
        first = f"; the first problem is {problems[0][0]}: {problems[0][1]}" if problems else ""
        raise checks.Refusal(f"no usable recording in {', '.join(map(str, sources))}, expected audio files{first}")
    return pd.DataFrame(list(rows.values())).fillna(""), problems


def _in_folder(source: Path, problems: list) -> Iterator[dict[str, str]]:
    """Recordings of a folder (or one file): what the challenge's layout says of them, else what their names and folders say."""
    try:
        indexed = clips.index([source])[0] if source.is_dir() else None
    except checks.Refusal:  # not laid out like that
        indexed = None
    known = {} if indexed is None else {row["path"]: row for row in indexed.to_dict("records")}
    machines = {os.path.dirname(os.path.dirname(path)) for path in known}

    def unreadable(error: OSError) -> None:
        problems.append((str(error.filename), f"folder cannot be read ({error.strerror}); check its permissions", True))

    places = sorted(os.walk(source, onerror=unreadable)) if source.is_dir() else [(str(source.parent), [], [source.name])]
    for place, _, names in places:
        for path in (Path(place, name) for name in sorted(names) if name.lower().endswith(SOUNDS) and not name.startswith(".")):
            row = known.get(str(path.absolute()))
            if row is not None:
                attributes = {key: value for key, value in row.items() if key.startswith("attr_")}
                yield {"path": str(path), "said": "challenge layout", **{name: row[name] for name in ("split", "label", "domain")}, **attributes}
            elif any(Path(machine) in path.absolute().parents and path.absolute().relative_to(machine).parts[0] not in clips.SPLIT_OF
                     for machine in machines):  # fmt: skip
                problems.append((str(path), "lies beside train and test of a machine in the challenge's layout, where no clips of it are", True))
            else:
                try:
                    yield {"path": str(path)} | _read(path, source)
                except ValueError as error:
                    problems.append((str(path), str(error), True))


def _read(path: Path, source: Path) -> dict[str, str]:
    """split, label, domain, said and attributes from a name and the folders it lies in; ValueError in words for a contradiction."""
    challenge = CHALLENGE.search(path.stem)
    if challenge:
        facts, ending = clips.read_name(challenge[0], challenge["split"])
        attributes = clips.read_ending(ending, "pairs")
        facts = {name: facts[name] for name in ("label", "domain")} | {"split": challenge["split"], "said": "challenge name"}
        return facts | {f"attr_{key}": value for key, value in attributes.items()}
    folders = [part.lower() for part in (source.resolve().name, *path.relative_to(source).parts[:-1])] if source.is_dir() else []
    own, said = re.split(r"[^a-z]+", path.stem.lower()), {}
    for what, words in WORDS.items():
        told = {words[part] for part in folders if part in words} | {words[part] for part in own if part in words and what == "label"}
        if len(told) > 1:
            raise ValueError(f"says both {' and '.join(sorted(told))}, expected one; move or rename it, or list it in a csv")
        said |= {what: told.pop()} if told else {}
    return _settled(said)


def _settled(said: dict[str, str]) -> dict[str, str]:
    """What follows from what is said; ValueError where an anomaly would be trained on."""
    split = said.get("split", "test" if said.get("label") == "anomaly" else "train")
    label = said.get("label", "normal" if split == "train" else "unlabelled")
    if split == "train" and label == "anomaly":
        raise ValueError("an anomalous recording among the training ones, expected normal ones only; move it to test/anomaly")
    how = "names" if {"label", "split"} & set(said) else "nothing"
    return {"split": split, "label": label, "domain": said.get("domain", "source" if label != "unlabelled" else "unknown"), "said": how}


def _listed(path: Path, problems: list) -> Iterator[dict[str, str]]:
    """Recordings of a csv; paths are relative to it. A row that says what cannot be is left out."""
    try:
        table = pd.read_csv(path, dtype=str, sep=None, engine="python", encoding="utf-8-sig", keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise checks.Refusal(f"{path}: not readable as csv ({decoding.reason(error)}), expected a header with path and label") from error
    table.columns = [name.strip() for name in table.columns]
    if not {"path", "label"} <= set(table.columns):
        came = ", ".join(table.columns)
        raise checks.Refusal(f"{path}: columns {came} came, expected path and label, and where known split, domain and attributes")
    for row in table.to_dict("records"):
        row = {key: str(value or "").strip() for key, value in row.items()}
        where = Path(path.parent, row["path"])
        try:
            if not row["path"] or not where.is_file():
                raise ValueError(f"{path.name} lists it, but there is no such file; correct the list")
            said = {}
            for what, words in WORDS.items():
                value = row.get(what, "").lower()
                if value and value not in words:
                    raise ValueError(f"{path.name} says {what} {row[what]!r}, expected {', '.join(dict.fromkeys(words.values()))} or nothing")
                said |= {what: words[value]} if value else {}
            attributes = {f"attr_{key}": value for key, value in row.items() if key not in LIST_COLUMNS and value}
            if not said.get("label") and "split" not in said:
                said["split"] = "test"  # a list that leaves the label open does not say normal
            yield {"path": str(where)} | _settled(said) | {"said": path.name} | attributes
        except ValueError as error:
            problems.append((str(where), str(error), True))


# ---------------------------------------------------------------- what is made of it


def _written(table: pd.DataFrame, problems: list, folder: Path, data: config.Data, clip_seconds: float, copy: bool) -> pd.DataFrame:
    """Links, copies and decoded clips under challenge names; what cannot be used goes to the problems."""
    numbers: Counter = Counter()
    rows = []
    keys = [name.removeprefix("attr_") for name in table if name.startswith("attr_")]
    bad = [key for key in keys if not clips.KEY.fullmatch(key)]
    if bad:
        raise checks.Refusal(f"attribute {bad[0]!r}: expected a name of letters, digits and -, beginning with a letter; rename the column")
    for fact in table.to_dict("records"):
        path = Path(fact["path"])
        try:
            spans, whole = _spans(path, clip_seconds)
        except ValueError as error:
            problems.append((str(path), decoding.decode(path, data).refused or str(error), True))
            continue
        for first, count, file_rate, channels in spans:
            decoded = decoding.decode(path, data, None if whole else (first, count))
            if decoded.samples is None:
                problems.append((str(path), decoded.refused, True))
                break
            problems += [(str(path), f"{remark}; it is used as it is", False) for remark in decoded.remarks]
            kind = (fact["split"], fact["label"], fact["domain"])
            attributes = {key: fact[f"attr_{key}"] for key in keys if fact[f"attr_{key}"]}
            out = folder / fact["split"] / _name(*kind, numbers[kind], attributes)
            numbers[kind] += 1
            out.parent.mkdir(parents=True, exist_ok=True)
            if whole and path.suffix.lower() == ".wav" and file_rate == data.sample_rate and channels == 1:
                made = "copied" if copy else "linked"
                shutil.copyfile(path, out) if copy else out.symlink_to(path.resolve())
            else:
                made = "decoded" if whole else "cut"
                soundfile.write(out, decoded.samples, data.sample_rate, subtype="PCM_16")
            facts = {name: fact[name] for name in ("split", "label", "domain", "said")} | {f"attr_{key}": fact[f"attr_{key}"] for key in keys}
            place = {"file": f"{fact['split']}/{out.name}", "source": os.path.abspath(path), "start_s": first / file_rate}
            rows.append(place | {"seconds": count / file_rate, "made": made} | facts)
    columns = ["file", "source", "start_s", "seconds", "made", *FACTS[1:], *(f"attr_{key}" for key in keys)]
    return pd.DataFrame(rows, columns=columns).astype({"start_s": float, "seconds": float})


def _spans(path: Path, clip_seconds: float) -> tuple[list[tuple[int, int, int, int]], bool]:
    """(first sample, samples, rate, channels) of every clip of a recording, and whether there is one, the whole; ValueError in words."""
    frames, rate, channels = decoding.shape(path, SHORTEST_S)
    length = round(clip_seconds * rate)
    if not length or frames <= length:
        return [(0, frames, rate, channels)], True
    starts = range(0, frames, length)
    spans = [(start, min(length, frames - start)) for start in starts]
    return [(first, count, rate, channels) for first, count in spans if count >= max(length / 2, SHORTEST_S * rate)], False


def _name(split: str, label: str, domain: str, number: int, attributes: dict[str, str]) -> str:
    """A challenge name that `clips` reads back to the same facts; attributes that no name can carry stand in the csv alone."""
    if label == "unlabelled":
        return f"section_00_{'' if domain == 'unknown' else f'{domain}_{split}_'}{number:04}.wav"
    ending = "_".join(f"{key}_{value}" for key, value in attributes.items()) or clips.NO_ATTRIBUTE
    try:
        plain = re.fullmatch(r"[\w.-]+", ending) and clips.read_ending(ending, "pairs") == attributes
    except ValueError:
        plain = False
    return f"section_00_{domain}_{split}_{label}_{number:04}{f'_{ending}' if plain else ''}.wav"


def _write_lists(folder: Path, done: Imported, licence: str) -> None:
    """attributes_00.csv where there are attributes, imported.csv: where every clip comes from and what was left out, LICENCE.txt."""
    keys = clips.attribute_keys(done.clips)
    if keys:
        wide = pd.DataFrame({"file_name": folder.name + "/" + done.clips["file"]})
        for place, key in enumerate(keys, 1):
            value = done.clips[f"attr_{key}"]
            wide[f"d{place}p"], wide[f"d{place}v"] = value.where(value == "", key), value
        wide.to_csv(folder / "attributes_00.csv", index=False)
    gone = done.problems.rename(columns={"path": "source"}).drop(columns="left_out")
    pd.concat([done.clips, gone], ignore_index=True).to_csv(folder / "imported.csv", index=False)
    if licence:
        (folder / "LICENCE.txt").write_text(licence.strip() + "\n", encoding="utf-8")
