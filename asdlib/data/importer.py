"""Import of arbitrary recordings as a machine in the challenge's layout.

Folders, files and lists (csv) become ROOT/<machine>/train and ROOT/<machine>/test with challenge names.
Sources are not modified: a suitable recording is linked (or copied), any other is decoded, converted to one
channel and the sample rate, and written as 16-bit WAV. Long recordings can be cut into clips, one at a time
to limit memory. Formats unknown to libsndfile are converted by ffmpeg, if installed.

Importing into a machine made by an earlier import extends it: numbering continues, audio that it contains or
once contained is recognized by content and skipped, and links to moved recordings are repaired.

`asdlib.data.sources` determines what a recording is. Clips cut from one recording never end up in both
training and test, but they are similar: thresholds from them are slightly too tight.

Source: METHOD 7.1, 7.2, 8.6.  Used by: `asd import`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from asdlib import errors
from asdlib.data import decode, folders, index
from asdlib.data.sources import FACTS, SOUNDS, found

SHORTEST_S, LONGEST_S = 1.0, 2000.0  # s, range of clip lengths
REMOVED = "removed"  # value of the column `made` in imported.csv for a clip that was deleted
PLACE = ("file", "source", "start_s", "seconds", "made", "digest")


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    clips : a row per new clip (PLACE, split, label, domain, section, said, attributes)
    problems : path, reason, left_out
    notes : how the sources were interpreted, one sentence each
    earlier : clips from earlier imports
    planned : whether this was a dry run
    """

    folder: Path
    clips: pd.DataFrame
    problems: pd.DataFrame
    notes: tuple[str, ...] = ()
    earlier: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=[*PLACE, *FACTS[1:]]))
    planned: bool = False

    @property
    def every(self) -> pd.DataFrame:
        """All clips of the machine, those of earlier imports first."""
        out = self.earlier["file"].isin(self.clips["file"]) | (self.earlier["made"] == REMOVED)
        return _joined(self.earlier[~out], self.clips)

    def table(self) -> str:
        """Planned clips as text, one block per folder and kind of clip."""
        rows = self.clips.assign(folder=[os.path.dirname(path) for path in self.clips["source"]])
        out = []
        for (folder, *kind, said), clips in rows.groupby(
            ["folder", "split", "label", "domain", "section", "said"]
        ):
            first, last = clips["file"].iloc[0], clips["file"].iloc[-1]
            what = f"{clips['source'].nunique()} recordings, {len(clips)} clips: {' '.join(kind)} by {said}"
            out.append(f"{folder}\n  {what}\n  {first}{f' ... {last}' if first != last else ''}")
        return "\n".join(out)

    def text(self) -> str:
        """Report for the terminal."""
        table = self.clips
        what = "would become " if self.planned else "added " if len(self.earlier) else ""
        out = [f"{self.folder}: {what}{len(table)} clips, {table['seconds'].sum():.0f} s"]
        if len(self.earlier):
            out[0] += f", to {(self.earlier['made'] != REMOVED).sum()} existing ones"
        for (split, label, domain), rows in table.groupby(["split", "label", "domain"]):
            span = "-".join(
                dict.fromkeys(
                    f"{value:g}" for value in (rows["seconds"].min().round(2), rows["seconds"].max().round(2))
                )
            )
            out.append(f"  {split:5} {label:10} {domain:7} {len(rows):5} clips of {span} s")
        out += self._grouped("left out", self.problems[self.problems["left_out"]])
        if len(table):
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
                f"{len(silent)} recordings have no label or split (first: {silent['source'].iloc[0]}):"
                " imported as normal training recordings"
            )
        if table.duplicated("source").any():
            out.append(
                "clips cut from the same recording are similar: thresholds from training clips will be"
                " slightly too tight"
            )
        if not (self.every["split"] == "test").any():
            out.append("no test recordings: a study will report thresholds and scores, but no AUC")
        out += [
            *(
                f"note: {words}"
                for words in index.one_sided(self.every.assign(machine=self.folder.name)).get(
                    self.folder.name, ()
                )
            ),
            *self.notes,
        ]
        return "\n".join([*out, *self._grouped("remarks", self.problems[~self.problems["left_out"]])])

    def _grouped(self, what: str, rows: pd.DataFrame, most: int = 10) -> list[str]:
        """Report lines of problems, grouped by reason, most frequent first."""
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
        return out + [f"    and {len(groups) - most} more reasons; see {self.folder / 'imported.csv'}"] * (
            len(groups) > most
        )


def _joined(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Concatenated clip tables, with "" for missing attributes."""
    parts = [part for part in (first, second) if len(part)] or [second]
    return pd.concat(parts, ignore_index=True).fillna("")


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
    dry_run: bool = False,
) -> Imported:
    """Create ROOT/<machine> from recordings, or extend it; all or nothing.

    sources : folders, audio files and .csv lists
    rate : Hz.  channel : channel of multi-channel recordings
    clip_seconds : s; longer recordings are cut into clips of this length, keeping a remainder of at least
        half of it; 0 disables cutting
    copy : copy recordings instead of linking them.  license : of the recordings, written to LICENSE.txt
    accept : names of folders to ignore when interpreting paths
    dry_run : report the plan without decoding or writing
    raises : errors.InputError for an existing folder that no import made, no training recording, an
        unreadable or unwritable folder, or a machine that another import changed meanwhile
    """
    folder = Path(root) / machine
    if not re.fullmatch(r"[\w-]+", machine) or machine in index.SPLIT_OF or not index.usable_name(machine):
        raise errors.InputError(
            f"machine name {machine!r}: expected letters, digits, - and _, at most {index.LONGEST_NAME}"
            " bytes, other than all and the split names; choose another --machine"
        )
    if clip_seconds and not SHORTEST_S <= clip_seconds <= LONGEST_S:
        raise errors.InputError(
            f"--clip-seconds {clip_seconds:g}: expected {SHORTEST_S:g} to {LONGEST_S:g} s, or 0 not to cut"
        )
    try:
        data = decode.DataSettings(sample_rate=rate, channel=channel, resample=True)
    except errors.InputError as refusal:
        message = str(refusal).replace("setting sample_rate:", "--rate:")
        raise errors.InputError(message.replace("setting channel:", "--channel:")) from refusal
    before = _listed(folder)
    earlier, notes = _earlier(folder, rate)
    table, problems, told = found(sources, accept)
    try:
        with contextlib.ExitStack() as stack:
            beside = folder
            if not dry_run:
                Path(root).mkdir(parents=True, exist_ok=True)
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{machine}-", dir=root))
                beside = Path(scratch) / machine
            made = _written(table, problems, beside, data, clip_seconds, copy, dry_run, folder, earlier)
            shown = index.problem_table(problems)
            done = Imported(folder, made, shown, (*notes, *told), earlier, dry_run)
            if not (done.every["split"] == "train").any():
                first = f"; the first one skipped is {problems[0][0]}: {problems[0][1]}" if problems else ""
                held = int((made["label"] == "normal").sum())
                back = (
                    f"; {held} normal ones are in a test folder, pass it to --accept-folders if it is not a"
                    " test set"
                    if held
                    else ""
                )
                where = ", ".join(map(str, sources))
                raise errors.InputError(
                    f"no normal training recordings in {where}, expected some in a folder named normal or"
                    f" train{back}{first}"
                )
            if not dry_run:
                beside.mkdir(exist_ok=True)  # missing if nothing was new
                _write_lists(beside, done, license)
                beside.chmod(0o755)
                with _locked(Path(root)):
                    if _listed(folder) != before:
                        raise errors.InputError(
                            f"{folder}: another import changed it meanwhile; run the same command again"
                        )
                    _put_in_place(beside, folder)
    except OSError as error:
        what = f"{error.filename or root}: {error.strerror or error}"
        raise errors.InputError(
            f"{what}; free up disk space, choose another --root, or use --copy if links are not supported"
        ) from error
    return done


def _earlier(folder: Path, rate: int) -> tuple[pd.DataFrame, list[str]]:
    """Clips in a machine's imported.csv, deleted ones marked REMOVED, and notes; empty for a new machine.

    raises : errors.InputError for a folder that no import made, a damaged list, or another sample rate
    """
    if not (folder.exists() or folder.is_symlink()):
        return pd.DataFrame(columns=[*PLACE, *FACTS[1:]]), []
    if not folders.imported(folder):
        raise errors.InputError(
            f"{folder} already exists and is not overwritten; choose another --machine or --root, or remove"
            " it first"
        )
    try:
        rows = pd.read_csv(folder / folders.IMPORTED, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        rows = rows[rows["file"] != ""].reset_index(drop=True).drop(columns="reason", errors="ignore")
        rows = rows.astype({"start_s": float, "seconds": float})
        missing = sorted({*PLACE[:-1], *FACTS[1:]} - set(rows))
        if missing:
            raise ValueError(f"no column {missing[0]}")
        first = next(filter(os.path.exists, (folder / file for file in rows["file"])), None)
        now = rate if first is None else soundfile.info(first).samplerate
    except (OSError, ValueError, KeyError, soundfile.SoundFileError) as error:
        raise errors.InputError(
            f"{folder}: imported.csv or its first clip was changed since asd import wrote it ({error});"
            " restore it, or import into another --machine"
        ) from error
    if now != rate:
        raise errors.InputError(f"{folder} has clips at {now} Hz, got --rate {rate}; use --rate {now}")
    if "digest" not in rows:  # written by an earlier version
        data = decode.DataSettings(sample_rate=rate, resample=True)
        rows.insert(5, "digest", [decode.decode(folder / file, data).digest for file in rows["file"]])
    lost = pd.Series([not os.path.lexists(folder / file) for file in rows["file"]], dtype=bool)
    gone = lost & (rows["made"] != REMOVED)
    notes = []
    if gone.any():
        notes = [
            f"{gone.sum()} clips of earlier imports were deleted (first: {rows['file'][gone].iloc[0]}):"
            " their recordings are not imported again; to restore one, delete its row in"
            f" {folder / folders.IMPORTED}"
        ]
    return rows.assign(made=rows["made"].where(~gone, REMOVED)), notes


def _listed(folder: Path) -> bytes:
    """Return the current content of a machine's imported.csv, empty if there is none."""
    path = folder / folders.IMPORTED
    return path.read_bytes() if path.is_file() else b""


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for other imports into a folder; without effect on file systems that lack flock."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _put_in_place(beside: Path, folder: Path) -> None:
    """Rename a new machine into place, or move files into an existing one, its list last."""
    if not folder.exists():
        os.rename(beside, folder)
        return
    files = [path for path in sorted(beside.rglob("*")) if not path.is_dir() or path.is_symlink()]
    for path in sorted(files, key=lambda path: path.name == folders.IMPORTED):
        target = folder / path.relative_to(beside)
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)


def _written(
    table: pd.DataFrame,
    problems: list,
    folder: Path,
    data: decode.DataSettings,
    clip_seconds: float,
    copy: bool,
    dry_run: bool,
    target: Path,
    earlier: pd.DataFrame,
) -> pd.DataFrame:
    """Write clips under challenge names as links, copies or decoded files; append to `problems`.

    target : final machine folder.  earlier : its existing clips
    """
    numbers = _next_numbers(target, earlier)
    known = {row["digest"]: row for row in earlier.to_dict("records")}
    rows = []
    keys = [name.removeprefix("attr_") for name in table if name.startswith("attr_")]
    bad = [key for key in keys if not index.KEY.fullmatch(key)]
    if bad:
        raise errors.InputError(
            f"attribute {bad[0]!r}: expected a name of letters, digits and -, starting with a letter; rename"
            " the column"
        )
    for fact in table.to_dict("records"):
        path = Path(fact["path"])
        kind = (fact["section"], fact["split"], fact["label"], fact["domain"])
        attributes = {key: fact[f"attr_{key}"] for key in keys if fact[f"attr_{key}"]}
        with contextlib.ExitStack() as stack:
            try:
                sound = stack.enter_context(_readable(path))
                spans, whole = _spans(sound, clip_seconds)
            except ValueError as error:
                refused = decode.decode(path, data).refused if path.suffix.lower() in SOUNDS else ""
                problems.append((str(path), refused or str(error), True))
                continue
            for first, count, file_rate, channels in spans:
                facts = {name: fact[name] for name in (*FACTS[1:], *(f"attr_{key}" for key in keys))}
                fits = path.suffix.lower() == ".wav" and (file_rate, channels) == (data.sample_rate, 1)
                made = ("copied" if copy else "linked") if fits and whole else "decoded" if whole else "cut"
                file, digest = f"{fact['split']}/{_name(*kind, numbers[kind], attributes)}", ""
                if not dry_run:
                    decoded = decode.decode(sound, data, None if whole else (first, count))
                    if decoded.samples is None:
                        why = decoded.refused.replace("set data.channel", "give --channel")
                        problems.append((str(path), why, True))
                        break
                    digest = decoded.digest
                    old = known.get(digest) if decoded.level_db > decode.SILENT_DB else None
                    if old and folders.dangling(target / old["file"]):
                        file, facts = old["file"], {name: old.get(name, "") for name in facts}
                    elif old:
                        has = "was removed from it" if old["made"] == REMOVED else "is already in it"
                        problems.append((str(path), f"not added to {target.name}: its audio {has}", True))
                        continue
                    problems += [(str(path), f"{what}; used as is", False) for what in decoded.remarks]
                    _write(folder / file, path, made, decoded.samples, data.sample_rate)
                numbers[kind] += 1
                place = (file, os.path.abspath(path), first / file_rate, count / file_rate, made, digest)
                rows.append(dict(zip(PLACE, place, strict=True)) | facts)
    columns = [*PLACE, *FACTS[1:], *(f"attr_{key}" for key in keys)]
    return pd.DataFrame(rows, columns=columns).astype({"start_s": float, "seconds": float})


def _write(out: Path, path: Path, made: str, samples: np.ndarray, rate: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if made == "linked":
        out.symlink_to(path.resolve())
    elif made == "copied":
        shutil.copyfile(path, out)
    else:
        soundfile.write(out, samples, rate, subtype="PCM_16")


def _next_numbers(target: Path, earlier: pd.DataFrame) -> Counter:
    """Next clip number per (section, split, label, domain), counting existing and deleted clips."""
    numbers: Counter = Counter()
    there = [path.relative_to(target).as_posix() for path in target.glob("t*/*.wav")]
    for file in {*earlier["file"], *there}:
        split, name = Path(file).parts
        with contextlib.suppress(ValueError):  # not a name written by an import
            clip, _ = index.read_name(Path(name).stem, split)
            kind = (clip["section"], split, clip["label"], clip["domain"])
            number = index.SECTION_NAME.fullmatch(Path(name).stem)
            numbers[kind] = max(numbers[kind], int(number["number"]) + 1 if number else 0)
    return numbers


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[Path]:
    """Yield a path readable by libsndfile: the recording itself, or a temporary ffmpeg conversion.

    raises : ValueError if ffmpeg fails
    """
    if path.suffix.lower() in SOUNDS:
        yield path
        return
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "converted.wav"
        how = ["-nostdin", "-v", "error", "-i", f"file:{path.absolute()}", "-vn", "-c:a", "pcm_s16le"]
        done = subprocess.run(["ffmpeg", *how, "-rf64", "auto", str(out)], capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ValueError(
                f"ffmpeg cannot read it ({': '.join(said)}), expected audio; convert it to wav or flac"
            )
        yield out


def _spans(path: Path, clip_seconds: float) -> tuple[list[tuple[int, int, int, int]], bool]:
    """(first sample, samples, rate, channels) per clip, and whether the recording is kept whole.

    raises : ValueError for an unusable recording
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
    """Challenge name that `index` parses to the same facts; other attributes are only in the csv."""
    if label == "unlabeled":
        return f"section_{section}_{'' if domain == 'unknown' else f'{domain}_{split}_'}{number:04}.wav"
    ending = "_".join(f"{key}_{value}" for key, value in attributes.items()) or index.NO_ATTRIBUTE
    try:
        plain = re.fullmatch(r"[\w.-]+", ending) and index.read_ending(ending, "pairs") == attributes
    except ValueError:
        plain = False
    return f"section_{section}_{domain}_{split}_{label}_{number:04}{f'_{ending}' if plain else ''}.wav"


def _write_lists(folder: Path, done: Imported, license: str) -> None:
    """Write attributes_00.csv (if any), imported.csv (origins and what was left out) and LICENSE.txt."""
    every = done.every
    keys = index.attribute_keys(every)
    if keys:
        wide = pd.DataFrame({"file_name": done.folder.name + "/" + every["file"]})
        for place, key in enumerate(keys, 1):
            value = every[f"attr_{key}"]
            wide[f"d{place}p"], wide[f"d{place}v"] = value.where(value == "", key), value
        wide.to_csv(folder / "attributes_00.csv", index=False)
    removed = done.earlier[done.earlier["made"] == REMOVED]
    gone = done.problems.rename(columns={"path": "source"}).drop(columns="left_out")
    listed = pd.concat([_joined(removed, every), gone], ignore_index=True)
    listed.to_csv(folder / folders.IMPORTED, index=False)
    if license:
        (folder / "LICENSE.txt").write_text(license.strip() + "\n", encoding="utf-8")
