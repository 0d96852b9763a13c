"""Recordings that a person accepted as normal; they become references of a machine, without training.

    <folder>/accepted/accepted.csv    a row per recording: digest, machine, section, file, when, level_db
    <folder>/accepted/<digest>.wav    its decoded samples

The folder is runs/<study> or an exported detector. Accepted recordings change the scores of new recordings
(`Scorer.accepting`), but not the networks or the scores of the study. An accepted test clip of the study
becomes unlabeled (`Run.clips`, `Run.load_scores`), because it has been judged and is no longer a valid test.
Labels of test clips are not read here.

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
from asdlib.data.decode import SILENT_DB, sample_digest
from asdlib.data.folders import shown
from asdlib.data.store import machine_rows

if TYPE_CHECKING:
    from asdlib.studies.scorer import Scorer

COLUMNS = ("digest", "machine", "section", "file", "when", "level_db")
MAX_LISTED = 10  # changed decisions that are listed by name


def listed(folder: Path) -> pd.DataFrame:
    """Return the accepted recordings, sorted by digest: COLUMNS, text except level_db.

    raises : errors.InputError if the list cannot be read
    """
    path = folder / "accepted" / "accepted.csv"
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    with io.refused(path, "a list of accepted recordings"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)[list(COLUMNS)]
        return table.assign(level_db=table["level_db"].astype(float)).sort_values("digest", ignore_index=True)


def of(folder: Path, machine: str, section: str) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return the accepted recordings of a machine and section, and their samples, int16 (n,) each.

    section : "" unless sections have separate references
    raises : errors.InputError for a missing or altered recording
    """
    table, samples = listed(folder), []
    table = table[(table["machine"] == machine) & (table["section"] == section)].reset_index(drop=True)
    for digest in table["digest"]:
        path = folder / "accepted" / f"{digest}.wav"
        with io.refused(path, "an accepted recording"):
            samples.append(soundfile.read(path, dtype="int16")[0])
        if sample_digest(samples[-1]) != digest:
            raise errors.InputError(
                f"{path} is not the accepted recording; revoke it with `asd accepted --revoke`"
            )
    return table, samples


def among(folder: Path, clips: pd.DataFrame) -> np.ndarray:
    """Return a mask of the test clips of a clip table that were accepted as normal, bool (clips,)."""
    accepted = pd.MultiIndex.from_frame(listed(folder)[["machine", "digest"]])
    found = pd.MultiIndex.from_frame(clips[["machine", "digest"]]).isin(accepted)
    return found & (clips["split"] == "test").to_numpy()


def asked(run, ready: Scorer, paths: Sequence[str | Path]) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Decode recordings to be accepted; return them as `of` does.

    run : run.Run.  ready : from `run.scorer`
    raises : errors.InputError for files that cannot be scored, silence, training clips, duplicates, and
        recordings that are already accepted
    """
    train = run.clips[(run.clips["split"] == "train") & (run.clips["machine"] == ready.machine)]
    known = dict.fromkeys(train["digest"], "is a training clip of this machine and already a reference")
    known |= dict.fromkeys(ready.accepted["digest"], "is already accepted; see `asd accepted`")
    rows, samples, now = [], [], datetime.datetime.now().isoformat(" ", "seconds")
    for path, clip in zip(paths, ready.decoded(paths)[1], strict=True):
        if clip.samples is None or clip.digest in known:
            raise errors.InputError(f"{shown(path)}: {clip.refused or known[clip.digest]}")
        if clip.level_db <= SILENT_DB:
            what = "; ".join(clip.remarks)
            raise errors.InputError(f"{shown(path)}: {what}; expected the sound of a normal machine")
        known[clip.digest] = "was given twice"
        rows.append((clip.digest, ready.machine, ready.section, shown(path), now, clip.level_db))
        samples.append(clip.samples)
    return pd.DataFrame(rows, columns=list(COLUMNS)), samples


def keep(folder: Path, table: pd.DataFrame, samples: Sequence[np.ndarray], rate: int) -> None:
    """Save recordings as accepted; the list is written last.

    table, samples : from `asked`; samples int16 (n,) each.  rate : Hz
    """
    (folder / "accepted").mkdir(parents=True, exist_ok=True)
    for digest, wave in zip(table["digest"], samples, strict=True):
        soundfile.write(folder / "accepted" / f"{digest}.wav", wave, rate)
    tables = [part for part in (listed(folder), table) if len(part)]
    if tables:
        io.write_table(folder / "accepted" / "accepted.csv", pd.concat(tables))


def revoke(folder: Path, names: Sequence[str]) -> pd.DataFrame:
    """Remove recordings from the accepted ones and return their rows.

    names : files as listed, or leading digits of digests
    raises : errors.InputError for a recording that is not accepted
    """
    table = listed(folder)
    revoked = np.zeros(len(table), bool)
    for name in names:
        found = (table["file"] == name) | table["digest"].str.startswith(name)
        if not name or not found.any():
            raise errors.InputError(f"{name!r} is not accepted{errors.suggest(name, table['file'].tolist())}")
        revoked |= found.to_numpy(bool)
    io.write_table(folder / "accepted" / "accepted.csv", table[~revoked])
    for digest in set(table["digest"][revoked]) - set(table["digest"][~revoked]):
        (folder / "accepted" / f"{digest}.wav").unlink(missing_ok=True)
    return table[revoked]


def preview(run, before: Scorer, paths: Sequence[str | Path]) -> tuple[str, pd.DataFrame, list[np.ndarray]]:
    """Describe what accepting recordings would change, without keeping them.

    run : run.Run.  before : from `run.scorer`.  paths : recordings
    returns : text on the threshold, their scores, and changed decisions on the study's test clips; and the
        recordings for `keep`
    """

    def scores(scorer: Scorer, *clips) -> np.ndarray:
        return scorer.scores(*clips)[scorer.system, "score"]

    def decision(score: float, scorer: Scorer) -> str:
        return f"{score:.4g} ({'anomaly' if score > scorer.threshold.value else 'normal'})"

    table, samples = asked(run, before, paths)
    old, waves = of(run.study_folder, before.machine, before.section)
    combined = pd.concat([part for part in (old, table) if len(part)], ignore_index=True)
    order = np.argsort(combined["digest"].to_numpy(str))
    waves = [[*waves, *samples][i] for i in order]
    after = before.accepting(combined.iloc[order].reset_index(drop=True), waves)
    store = after.store(table, samples)
    lines = [f"threshold: {before.threshold.value:.4g} -> {after.threshold.value:.4g}"]
    for file, was, now in zip(table["file"], scores(before, store), scores(after, store)):
        lines.append(f"{file}: {decision(was, before)} -> {decision(now, after)}")
    rows = machine_rows(run.clips, after.machine, "test")
    names, section = run.clips["clip"].to_numpy()[rows], run.clips["section"].to_numpy()[rows]
    own = (section == after.section) | (after.section == "")
    rows, names = rows[own], names[own]
    if len(rows):
        was, now = (scores(scorer, run.store, rows) > scorer.threshold.value for scorer in (before, after))
        lines.append(f"{(was != now).sum()} of {len(rows)} decisions on test clips of the study change")
        for what, part in {"anomaly -> normal": was & ~now, "normal -> anomaly": ~was & now}.items():
            more = f" and {part.sum() - MAX_LISTED} more" if part.sum() > MAX_LISTED else ""
            lines += [f"  {what}: {', '.join(names[part][:MAX_LISTED])}{more}"] if part.any() else []
    return "\n".join(lines), table, samples


def accept(run, ready: Scorer, paths: Sequence[str | Path], keep_them: bool = False) -> str:
    """Describe what accepting recordings as normal changes, and keep them if `keep_them`.

    run : run.Run.  ready : from `run.scorer`
    raises : errors.InputError as in `asked`, and while the study is running
    """
    effect, *recordings = preview(run, ready, paths)
    return "\n".join([ready.about(), effect, _keep(run, *recordings) if keep_them else "nothing was kept"])


def _keep(run, table: pd.DataFrame, samples: Sequence[np.ndarray]) -> str:
    """Save recordings as accepted in a study; return a message."""
    with io.locked(run.study_folder):
        keep(run.study_folder, table, samples, run.cfg.data.sample_rate)
    message = f"kept; list or revoke them with `asd accepted {run.cfg.name}`"
    if among(run.study_folder, run.store.clips).any():
        message += f"\nrun `asd run {run.cfg.name}` to exclude test clips among them from its report"
    return message


class Review:
    """Review clips of a finished study one by one: preview the effect of accepting a clip, then keep it.

    run : run.Run.  Notebook: 06_embeddings
    """

    def __init__(self, run):
        self.run, self._previewed = run, None

    def preview(self, row: int, system: str) -> str:
        """Describe what accepting a clip changes for a system.  row : of the store

        raises : errors.InputError as in `scorer.of` and `asked`
        """
        self._previewed = None
        machine = schemas.by_references(self.run.clips)["machine"].iloc[row]
        ready = self.run.scorer(machine, system)
        effect, *self._previewed = preview(self.run, ready, [self.run.clips["path"].iloc[row]])
        return f"{ready.about()}\n{effect}"

    def keep(self) -> str:
        """Keep the clip that was previewed last.

        raises : errors.InputError without a preview, and while the study is running
        """
        if self._previewed is None:
            raise errors.InputError("no clip to keep; preview the effect of accepting one first")
        message, self._previewed = _keep(self.run, *self._previewed), None
        return message

    def listed(self) -> pd.DataFrame:
        """Return the accepted recordings of the study, see `listed`."""
        return listed(self.run.study_folder)

    def revoke(self, digest: str) -> str:
        """Revoke a recording; return a message."""
        with io.locked(self.run.study_folder):
            [file] = revoke(self.run.study_folder, [digest])["file"]
        return f"revoked: {file}"
