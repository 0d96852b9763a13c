"""Recordings that a person called normal: references of a machine on which nothing is trained.

    <folder>/accepted/accepted.csv    a row per recording: digest, machine, section, file, when, level_db
    <folder>/accepted/<digest>.wav    its samples, as the study decoded them

The folder is that of a study, runs/<study>, or of an exported detector. What is accepted shapes the scores of
recordings from then on (`Scorer.accepting`); the networks, and the scores that the study measured, stay. A
test clip of the study that was accepted has no label there any more (`Run.clips`, `Run.load_scores`): whoever
accepts a clip has judged it, and it tests nothing after that. No label of a test clip is read here.

Source: METHOD 3.8.  Used by: `asd score --accept`, `asd accepted`, asdlib.studies.scorer, .study, .export.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import soundfile

from asdlib import errors, io, schemas
from asdlib.data.decode import sample_digest
from asdlib.data.folders import shown
from asdlib.data.store import machine_rows

if TYPE_CHECKING:
    from asdlib.studies.scorer import Scorer

COLUMNS = ("digest", "machine", "section", "file", "when", "level_db")
MOST = 10  # clips that are named, of those whose decision changes


def listed(folder: Path) -> pd.DataFrame:
    """What was accepted, sorted by digest: COLUMNS, all text but level_db.

    raises : errors.InputError for a list that cannot be read
    """
    path = folder / "accepted" / "accepted.csv"
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    with io.refused(path, "a list of accepted recordings"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[list(COLUMNS)]
        return table.assign(level_db=table["level_db"].astype(float)).sort_values("digest", ignore_index=True)


def of(folder: Path, machine: str, section: str) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """What was accepted of a machine (and section, where those are judged apart), and its samples, int16
    (n,) of each.

    raises : errors.InputError for a recording that is gone or altered
    """
    table, samples = listed(folder), []
    table = table[(table["machine"] == machine) & (table["section"] == section)].reset_index(drop=True)
    for digest in table["digest"]:
        path = folder / "accepted" / f"{digest}.wav"
        with io.refused(path, "an accepted recording"):
            samples.append(soundfile.read(path, dtype="int16")[0])
        if sample_digest(samples[-1]) != digest:
            raise errors.InputError(
                f"{path}: is not the recording that was accepted; revoke it with `asd accepted --revoke`"
            )
    return table, samples


def among(folder: Path, clips: pd.DataFrame) -> np.ndarray:
    """Which test clips of a clip table were accepted as normal, bool (clips,)."""
    table = listed(folder)
    if table.empty:
        return np.zeros(len(clips), bool)
    kept = pd.MultiIndex.from_frame(table[["machine", "digest"]])
    return (
        pd.MultiIndex.from_frame(clips[["machine", "digest"]]).isin(kept)
        & (clips["split"] == "test").to_numpy()
    )


def asked(run, ready: Scorer, paths: Sequence[str | Path]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Recordings that are to be accepted, as `of` gives those that were.

    run : run.Run.  ready : of `run.scorer`
    raises : errors.InputError for a file that cannot be scored, a training clip, and one that was accepted
    """
    train = run.clips[(run.clips["split"] == "train") & (run.clips["machine"] == ready.machine)]
    known = dict.fromkeys(train["digest"], "is a training clip of this machine: it is a reference already")
    known |= dict.fromkeys(ready.accepted["digest"], "was accepted already; see `asd accepted`")
    rows, samples, now = [], [], datetime.datetime.now().isoformat(" ", "seconds")
    for path, one in zip(paths, ready.decoded(paths)[1], strict=True):
        if one.samples is None or one.digest in known:
            raise errors.InputError(f"{shown(path)}: {one.refused or known[one.digest]}")
        known[one.digest] = "stands there twice"
        rows.append((one.digest, ready.machine, ready.section, shown(path), now, one.level_db))
        samples.append(one.samples)
    return pd.DataFrame(rows, columns=list(COLUMNS)), samples


def keep(folder: Path, table: pd.DataFrame, samples: Sequence[np.ndarray], rate: int) -> None:
    """Add recordings to what was accepted; the list is written last.

    table, samples : of `asked`, samples int16 (n,) of each.  rate : Hz
    """
    (folder / "accepted").mkdir(parents=True, exist_ok=True)
    for digest, wave in zip(table["digest"], samples, strict=True):
        soundfile.write(folder / "accepted" / f"{digest}.wav", wave, rate)
    kept = [part for part in (listed(folder), table) if len(part)]
    if kept:
        io.write_table(folder / "accepted" / "accepted.csv", pd.concat(kept))


def revoke(folder: Path, words: Sequence[str]) -> pd.DataFrame:
    """Take recordings back.

    words : of each its file, or the first digits of its digest.  returns : their rows
    raises : errors.InputError for one that was not accepted
    """
    table = listed(folder)
    gone = np.zeros(len(table), bool)
    for word in words:
        found = (table["file"] == word) | table["digest"].str.startswith(word)
        if not word or not found.any():
            raise errors.InputError(
                f"{word!r} was not accepted{errors.suggest(word, table['file'].tolist())}"
            )
        gone |= found.to_numpy(bool)
    io.write_table(folder / "accepted" / "accepted.csv", table[~gone])
    for digest in set(table["digest"][gone]) - set(table["digest"][~gone]):
        (folder / "accepted" / f"{digest}.wav").unlink(missing_ok=True)
    return table[gone]


def preview(run, before: Scorer, paths: Sequence[str | Path]) -> tuple[str, pd.DataFrame, list[np.ndarray]]:
    """What accepting recordings would change, in words; and the recordings, as `keep` takes them.

    run : run.Run.  before : of `run.scorer`.  paths : recordings
    returns : the threshold, their scores, and decisions on the study's test clips that would be others
    """

    def scores(one: Scorer, *clips) -> np.ndarray:
        return one.scores(*clips)[one.system, "score"]

    def words(score: float, one: Scorer) -> str:
        return f"{score:.4g} ({'anomaly' if score > one.threshold.value else 'normal'})"

    table, samples = asked(run, before, paths)
    old, waves = of(run.study_folder, before.machine, before.section)
    whole = pd.concat([part for part in (old, table) if len(part)], ignore_index=True)
    order = np.argsort(whole["digest"].to_numpy(str))
    waves = [[*waves, *samples][i] for i in order]
    after = before.accepting(whole.iloc[order].reset_index(drop=True), waves)
    store = after.store(table, samples)
    lines = [f"threshold: {before.threshold.value:.4g} -> {after.threshold.value:.4g}"]
    for file, was, now in zip(table["file"], scores(before, store), scores(after, store)):
        lines.append(f"{file}: {words(was, before)} -> {words(now, after)}")
    rows = machine_rows(run.clips, after.machine, "test")
    names, section = run.clips["clip"].to_numpy()[rows], run.clips["section"].to_numpy()[rows]
    own = (section == after.section) | (after.section == "")
    rows, names = rows[own], names[own]
    if len(rows):
        was, now = (scores(one, run.store, rows) > one.threshold.value for one in (before, after))
        lines.append(f"{(was != now).sum()} of {len(rows)} decisions on test clips of the study change")
        for what, part in {"anomaly -> normal": was & ~now, "normal -> anomaly": ~was & now}.items():
            more = f" and {part.sum() - MOST} more" if part.sum() > MOST else ""
            lines += [f"  {what}: {', '.join(names[part][:MOST])}{more}"] if part.any() else []
    return "\n".join(lines), table, samples


def accept(run, ready: Scorer, paths: Sequence[str | Path], keep_them: bool = False) -> str:
    """Say what accepting recordings as normal changes, and keep them if that is wanted.

    run : run.Run.  ready : of `run.scorer`
    raises : errors.InputError as `asked`, and while the study is being run
    """
    words, *shown = preview(run, ready, paths)
    return "\n".join([ready.about(), words, _kept(run, *shown) if keep_them else "nothing was kept"])


def _kept(run, table: pd.DataFrame, samples: Sequence[np.ndarray]) -> str:
    """Keep recordings; what follows from it, in words."""
    with io.locked(run.study_folder):
        keep(run.study_folder, table, samples, run.cfg.data.sample_rate)
    words = f"kept; `asd accepted {run.cfg.name}` lists and revokes"
    if among(run.study_folder, run.store.clips).any():
        words += f"\ntest clips among them count until `asd run {run.cfg.name}` makes its report anew"
    return words


class Review:
    """Clips of a finished study, accepted one by one: what would change is shown, then it may be kept.

    run : run.Run.  Notebook: 06_embeddings
    """

    def __init__(self, run):
        self.run, self._shown = run, None

    def preview(self, row: int, system: str) -> str:
        """What accepting a clip changes for one system, in words.  row : of the store

        raises : errors.InputError as `scorer.of` and `asked`
        """
        self._shown = None
        machine = schemas.by_references(self.run.clips)["machine"].iloc[row]
        ready = self.run.scorer(machine, system)
        words, *self._shown = preview(self.run, ready, [self.run.clips["path"].iloc[row]])
        return f"{ready.about()}\n{words}"

    def keep(self) -> str:
        """Keep what was shown last.

        raises : errors.InputError where nothing was, and while the study is being run
        """
        if self._shown is None:
            raise errors.InputError("nothing was shown that could be kept; show a clip's effect first")
        words, self._shown = _kept(self.run, *self._shown), None
        return words

    def listed(self) -> pd.DataFrame:
        """As the function `listed`, of this study."""
        return listed(self.run.study_folder)

    def revoke(self, digest: str) -> str:
        """Take a recording back; says which."""
        with io.locked(self.run.study_folder):
            [file] = revoke(self.run.study_folder, [digest])["file"]
        return f"revoked: {file}"
