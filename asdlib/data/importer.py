"""From recordings as people have them to a machine in the challenge's layout.

Task
----
Folders, single files and lists (csv) become ROOT/<machine>/train and ROOT/<machine>/test with challenge
names, which every study reads. Nothing existing is changed: a recording that fits is linked (or copied), any
other is decoded, brought to one channel and one rate, and written as 16-bit WAV; long ones are cut into clips
where that is asked for.

What a recording is, says `asdlib.data.sources`. Clips cut from one recording never stand on both sides of a
study, but they resemble each other: thresholds from them are a little too tight, which the report of the
import says too.

Source: METHOD 7.1, 7.2, 8.6.  Used by: `asd import`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import soundfile

from asdlib import errors
from asdlib.data import decode, index
from asdlib.data.sources import FACTS, found

SHORTEST_S, LONGEST_S = 1.0, 2000.0  # s, of clips


@dataclass(frozen=True)
class Imported:
    """What an import did. clips : a row per clip made (file, source, start_s, seconds, split, label, domain,
    section, said, made, attributes);
    problems : path, reason, left_out; notes : how the sources were read, a sentence each.
    """

    folder: Path
    clips: pd.DataFrame
    problems: pd.DataFrame
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """The report for a terminal."""
        table, out = (
            self.clips,
            [f"{self.folder}: {len(self.clips)} clips, {self.clips['seconds'].sum():.0f} s"],
        )
        for (split, label, domain), rows in table.groupby(["split", "label", "domain"]):
            span = "-".join(
                dict.fromkeys(
                    f"{value:g}" for value in (rows["seconds"].min().round(2), rows["seconds"].max().round(2))
                )
            )
            out.append(f"  {split:5} {label:10} {domain:7} {len(rows):5} clips of {span} s")
        out += self._grouped("left out", self.problems[self.problems["left_out"]])
        out.append(
            "  " + ", ".join(f"{count} {made}" for made, count in table["made"].value_counts().items())
        )
        out += [
            f"  attribute {key}: {', '.join(sorted(set(table[f'attr_{key}']) - {''}, key=index.natural))}"
            for key in index.attribute_keys(table)
        ]
        silent = table[table["said"] == "nothing"]
        if len(silent):
            out.append(
                f"nothing says what {len(silent)} of them are (first: {silent['source'].iloc[0]}): taken as"
                " normal training recordings"
            )
        if table.duplicated("source").any():
            out.append(
                "clips cut from one recording resemble each other: thresholds from training clips will be a"
                " little too tight"
            )
        if not (table["split"] == "test").any():
            out.append("no test recordings: a study gives thresholds and scores, but no AUC")
        out += [
            *(
                f"note: {words}"
                for words in index.one_sided(table.assign(machine=self.folder.name)).get(self.folder.name, ())
            ),
            *self.notes,
        ]
        return "\n".join([*out, *self._grouped("remarks", self.problems[~self.problems["left_out"]])])

    def _grouped(self, what: str, rows: pd.DataFrame, most: int = 10) -> list[str]:
        """Problems as lines of a report, those of one reason together, the most frequent first."""
        if rows.empty:
            return []
        groups = (
            rows.groupby("reason", sort=False)["path"]
            .agg(["size", "first"])
            .sort_values("size", ascending=False, kind="stable")
        )
        out = [f"  {what:24} {len(rows):5}"]
        for reason, (size, first) in groups.head(most).iterrows():
            out.append(f"    {size} x {reason}; the first: {first}" if size > 1 else f"    {first}: {reason}")
        return out + [
            f"    and {len(groups) - most} more reasons; all stand in {self.folder / 'imported.csv'}"
        ] * (len(groups) > most)


def import_machine(
    sources: Sequence[str | Path],
    root: str | Path,
    machine: str,
    *,
    rate: int = 16000,
    channel: int = 0,
    clip_seconds: float = 0.0,
    copy: bool = False,
    license: str = "",
    accept: Sequence[str] = (),
) -> Imported:
    """Make ROOT/<machine> of recordings; all of it or nothing.

    sources : folders, audio files and .csv lists.  rate : Hz.  channel : of recordings with several
    clip_seconds : s; longer recordings are cut into clips of this length, a rest of half of it or more
        becomes a clip too; 0: never
    copy : whole copies instead of links.  license : of the recordings, written to LICENSE.txt for the model
        card
    accept : names of folders that say nothing about the recordings in them
    raises : errors.InputError for a machine that exists, no training recording, a folder that cannot be read
        or written
    """
    folder = Path(root) / machine
    if not re.fullmatch(r"[\w-]+", machine) or machine in index.SPLIT_OF or not index.usable_name(machine):
        raise errors.InputError(
            f"--machine {machine!r}: {index.NAME_RULE}, of letters, digits, - and _, and not the name of a"
            " split; give another"
        )
    if folder.exists() or folder.is_symlink():
        raise errors.InputError(
            f"{folder} exists and is never overwritten; give another --machine or --root, or remove it first"
        )
    if clip_seconds and not SHORTEST_S <= clip_seconds <= LONGEST_S:
        raise errors.InputError(
            f"--clip-seconds {clip_seconds:g}: expected {SHORTEST_S:g} to {LONGEST_S:g} s, or 0 not to cut"
        )
    try:
        data = decode.DataSettings(sample_rate=rate, channel=channel, resample=True)
    except errors.InputError as refusal:
        words = str(refusal).replace("setting sample_rate:", "--rate:")
        raise errors.InputError(words.replace("setting channel:", "--channel:")) from refusal
    table, problems, notes = found(sources, accept)
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{machine}-", dir=root) as scratch:
            beside = Path(scratch) / machine
            made = _written(table, problems, beside, data, clip_seconds, copy)
            if not (made["split"] == "train").any():
                first = f"; the first left out is {problems[0][0]}: {problems[0][1]}" if problems else ""
                held = int((made["label"] == "normal").sum())
                back = (
                    f"; {held} normal ones lie in a test folder, name it in --accept-folders if it is none"
                    if held
                    else ""
                )
                where = ", ".join(map(str, sources))
                raise errors.InputError(
                    f"no normal training recording in {where}, expected some in a folder normal or"
                    f" train{back}{first}"
                )
            out = Imported(folder, made, index.problem_table(problems), tuple(notes))
            _write_lists(beside, out, license)
            beside.chmod(0o755)
            os.rename(beside, folder)
    except OSError as error:
        what = f"{error.filename or root}: {error.strerror or error}"
        raise errors.InputError(
            f"{what}; free space, choose another --root, or --copy where links are not possible"
        ) from error
    return out


def _written(
    table: pd.DataFrame,
    problems: list,
    folder: Path,
    data: decode.DataSettings,
    clip_seconds: float,
    copy: bool,
) -> pd.DataFrame:
    """Links, copies and decoded clips under challenge names; what cannot be used goes to the problems."""
    numbers: Counter = Counter()
    rows = []
    keys = [name.removeprefix("attr_") for name in table if name.startswith("attr_")]
    bad = [key for key in keys if not index.KEY.fullmatch(key)]
    if bad:
        raise errors.InputError(
            f"attribute {bad[0]!r}: expected a name of letters, digits and -, beginning with a letter; rename"
            " the column"
        )
    for fact in table.to_dict("records"):
        path = Path(fact["path"])
        try:
            spans, whole = _spans(path, clip_seconds)
        except ValueError as error:
            problems.append((str(path), decode.decode(path, data).refused or str(error), True))
            continue
        for first, count, file_rate, channels in spans:
            decoded = decode.decode(path, data, None if whole else (first, count))
            if decoded.samples is None:
                problems.append((str(path), decoded.refused, True))
                break
            problems += [(str(path), f"{remark}; it is used as it is", False) for remark in decoded.remarks]
            kind = (fact["section"], fact["split"], fact["label"], fact["domain"])
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
            facts = {name: fact[name] for name in FACTS[1:]} | {
                f"attr_{key}": fact[f"attr_{key}"] for key in keys
            }
            place = {
                "file": f"{fact['split']}/{out.name}",
                "source": os.path.abspath(path),
                "start_s": first / file_rate,
            }
            rows.append(place | {"seconds": count / file_rate, "made": made} | facts)
    columns = ["file", "source", "start_s", "seconds", "made", *FACTS[1:], *(f"attr_{key}" for key in keys)]
    return pd.DataFrame(rows, columns=columns).astype({"start_s": float, "seconds": float})


def _spans(path: Path, clip_seconds: float) -> tuple[list[tuple[int, int, int, int]], bool]:
    """(first sample, samples, rate, channels) of every clip of a recording, and whether there is one, the
    whole; ValueError in words.
    """
    frames, rate, channels = decode.shape(path, SHORTEST_S)
    length = round(clip_seconds * rate)
    if not length or frames <= length:
        return [(0, frames, rate, channels)], True
    starts = range(0, frames, length)
    spans = [(start, min(length, frames - start)) for start in starts]
    return [
        (first, count, rate, channels)
        for first, count in spans
        if count >= max(length / 2, SHORTEST_S * rate)
    ], False


def _name(section: str, split: str, label: str, domain: str, number: int, attributes: dict[str, str]) -> str:
    """A challenge name that `clips` reads back to the same facts; attributes that no name can carry stand in
    the csv alone.
    """
    if label == "unlabeled":
        return f"section_{section}_{'' if domain == 'unknown' else f'{domain}_{split}_'}{number:04}.wav"
    ending = "_".join(f"{key}_{value}" for key, value in attributes.items()) or index.NO_ATTRIBUTE
    try:
        plain = re.fullmatch(r"[\w.-]+", ending) and index.read_ending(ending, "pairs") == attributes
    except ValueError:
        plain = False
    return f"section_{section}_{domain}_{split}_{label}_{number:04}{f'_{ending}' if plain else ''}.wav"


def _write_lists(folder: Path, done: Imported, license: str) -> None:
    """attributes_00.csv where there are attributes, imported.csv: where every clip comes from and what was
    left out, LICENSE.txt.
    """
    keys = index.attribute_keys(done.clips)
    if keys:
        wide = pd.DataFrame({"file_name": folder.name + "/" + done.clips["file"]})
        for place, key in enumerate(keys, 1):
            value = done.clips[f"attr_{key}"]
            wide[f"d{place}p"], wide[f"d{place}v"] = value.where(value == "", key), value
        wide.to_csv(folder / "attributes_00.csv", index=False)
    gone = done.problems.rename(columns={"path": "source"}).drop(columns="left_out")
    pd.concat([done.clips, gone], ignore_index=True).to_csv(folder / "imported.csv", index=False)
    if license:
        (folder / "LICENSE.txt").write_text(license.strip() + "\n", encoding="utf-8")
