"""Score new recordings with a finished study: score, threshold and decision per file.

`Scorer` uses the trained detectors of one machine and the leave-clip-out scores of its training clips.
Recordings are decoded as in the study (resampled to its rate, one channel) and scored by the same detectors,
scales and threshold.

Conventions
-----------
Higher is more anomalous. A recording's score depends on that recording only: detectors score clip by clip
(`detectors.base.clip_by_clip`) and scales come from training scores. A clip of the study therefore gets
exactly its score in the study, bit for bit on the same device and precision. Files that cannot be scored have
NaN and a `problem`; a `remark` notes peculiarities of scored files (silent, clipped, ...).

Source: METHOD 3.7, 3.8, 7.5.  Used by: asdlib.studies.study.open(...).score, `asd score`.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from asdlib import errors, io, schemas
from asdlib.data import decode, folders
from asdlib.data.folders import shown
from asdlib.data.sources import SOUNDS
from asdlib.data.store import Clips, Store, in_memory
from asdlib.detectors import SYSTEMS
from asdlib.detectors.base import Detector, score_table
from asdlib.scoring import fusion, thresholds
from asdlib.settings import digest
from asdlib.studies import accepted as kept
from asdlib.studies import artifacts, config

COLUMNS = ("file", "score", "threshold", "decision", "alpha", "beta", "classifier", "remark")
PARTS = {"alpha": ("oevae", "alpha"), "beta": ("oevae", "beta"), "classifier": ("classifier", "score")}


def recordings(paths: Iterable[str | Path], problems: folders.Problems | None = None) -> list[Path]:
    """Replace folders in a list of paths by the recordings in them, sorted, without duplicates.

    Paths of missing files are kept; scoring reports them.

    problems : (path, description, whether something is left out) of folders is appended
    raises : errors.InputError for a folder without recordings
    """
    found: list[Path] = []
    problems = [] if problems is None else problems
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        skipped, before = Counter(), len(problems)
        inside = {
            os.path.realpath(file): file
            for file in reversed(list(folders.below(path, SOUNDS, problems, skipped)))
        }
        others = folders.passed_over(skipped)
        if not inside:
            details = [others, *(f"{where}: {problem}" for where, problem, _ in problems[before:])]
            raise errors.InputError(
                f"{path}: no recordings in this folder, expected audio files ({', '.join(SOUNDS[:6])}, ...);"
                f" check the path{''.join(f'; {detail}' for detail in details if detail)}"
            )
        problems += [(str(path), others, False)] if others else []
        found += sorted(inside.values())
    return found


def detectors_of(*systems: str, views: Sequence[str] = ()) -> list[str]:
    """Return the detectors that systems need.  views : the setting `fusion.views`, here and below"""
    found = (part for system in systems for part, _ in parts_of(system, views))
    return list(dict.fromkeys(SYSTEMS[system] for system in found))


def parts_of(system: str, views: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Return the (system, component) pairs of detectors that a system's score is composed of, recursively."""
    leaves = [
        leaf
        for part in fusion.parts(system, views)
        for leaf in (parts_of(part[0], views) if part[1] == "score" else [part])
    ]
    return list(dict.fromkeys(leaves)) or [(system, "score")]


def systems_behind(system: str, views: Sequence[str] = ()) -> list[str]:
    """Return a system and all systems that its score is composed of."""
    others = (name for name, _ in fusion.parts(system, views) if name != system)
    return list(dict.fromkeys([system, *(name for other in others for name in systems_behind(other, views))]))


def final_system(systems: Sequence[str], views: Sequence[str] = (), system: str = "") -> str:
    """Return `system` if given, else a study's default system.

    The default is the fusion of views, else the system that combines most detectors, else the last.

    systems : of the settings; systems composed of them are also considered
    raises : errors.InputError for an unknown system
    """
    found = fusion.with_composed(systems, views)
    if system:
        return errors.check_choice("system", system, list(found))
    return max(reversed(found), key=lambda name: (name == fusion.FUSED, len(parts_of(name, views))))


class Scorer:
    """The trained detectors of one machine, callable on recordings.

    detectors : name -> trained detector, for `detectors_of(system)`
    scores : score table of the study with the training rows of this machine and seed
    section : set if the machine's sections have separate references (`schemas.by_references`)
    accepted : recordings added to the training references (`accepted.COLUMNS`), see `accepting`
    """

    def __init__(
        self,
        cfg: config.StudySettings,
        detectors: Mapping[str, Detector],
        scores: pd.DataFrame,
        machine: str,
        system: str,
        seed: int,
        section: str = "",
        accepted: pd.DataFrame | None = None,
    ):
        self.cfg, self.detectors, self.machine, self.system, self.seed, self.section = (
            cfg,
            detectors,
            machine,
            system,
            seed,
            section,
        )
        self.fitted = detectors  # without accepted recordings
        self.accepted = pd.DataFrame(columns=list(kept.COLUMNS)) if accepted is None else accepted
        own = scores[(scores["machine"] == machine) & (scores["seed"] == seed) & (scores["split"] == "train")]
        own = own[own["section"] == section] if section else own
        self.name = f"{machine}_{section}" if section else machine
        self.train = own[own["system"].isin(systems_behind(system, cfg.fusion.views))]
        final = self.train[(self.train["system"] == system) & (self.train["component"] == "score")]["score"]
        self.clips = len(final)  # number of training clips that the threshold is set on
        self.threshold = thresholds.gamma_threshold(final.to_numpy(float), cfg.metrics.decision_quantile)
        self.data = cfg.data.replace(resample=True)  # the study may skip other rates, but the user gave these

    def with_quantile(self, quantile: float) -> Scorer:
        """Return a scorer with the threshold at another quantile of normal training scores.

        raises : errors.InputError for a value outside the range of `metrics.decision_quantile`
        """
        cfg = self.cfg.replace(metrics={"decision_quantile": quantile})
        return self._like(self.detectors, self.train, self.accepted, cfg)

    def accepting(self, table: pd.DataFrame, samples: Sequence[np.ndarray]) -> Scorer:
        """Return a scorer with further normal recordings as references (`Detector.accept`).

        Scales and threshold include them.
        table, samples : all accepted recordings, from `accepted.of` or `accepted.asked`
        """
        if table.empty:
            return self
        store = self.store(table, samples)
        columns = {"split": "train", "label": "normal", "clip": "accepted/" + table["digest"].to_numpy()}
        columns["section"] = self.section or self.train["section"].mode()[0]
        clips = Clips(dataclasses.replace(store, clips=store.clips.assign(**columns)), np.arange(len(store)))
        found = {name: detector.accept(clips) for name, detector in self.fitted.items()}
        train = pd.concat([detector.training_table_ for detector in found.values()], ignore_index=True)
        own = (train["machine"] == self.machine) & ((train["section"] == self.section) | (self.section == ""))
        return self._like(found, fusion.systems(train[own], self.cfg.fusion), table, self.cfg)

    def _like(self, detectors, scores, accepted, cfg) -> Scorer:
        scorer = Scorer(cfg, detectors, scores, self.machine, self.system, self.seed, self.section, accepted)
        scorer.fitted = self.fitted
        return scorer

    def about(self) -> str:
        """Describe the system, machine and seed, and how the threshold was set."""
        quantile = self.cfg.metrics.decision_quantile
        too_few = (1 - quantile) * self.clips < 1
        digests, count = sorted(self.accepted["digest"]), len(self.accepted)
        return (
            f"{self.system} of {self.name}, seed {self.seed}; threshold {self.threshold.value:.6g}: quantile"
            f" {quantile:g} of {self.clips - count} training clips"
            + (f" and {count} accepted (key {digest(digests)[:8]})" if count else "")
            + f", by {self.threshold.method}"
            + (", extrapolated beyond so few clips" if too_few else "")
        )

    def decoded(self, paths: Sequence[str | Path]) -> tuple[Store | None, list[decode.Decoded]]:
        """Decode recordings; return a store of the usable ones (None if there are none) and all results.

        Clips of the store are named by their position in `paths`.
        """
        found = [decode.decode(path, self.data) for path in paths]
        usable = [i for i, decoded in enumerate(found) if decoded.samples is not None]
        table = pd.DataFrame(
            [
                {"path": shown(paths[i]), "level_db": found[i].level_db, "digest": found[i].digest}
                for i in usable
            ],
            index=usable,
        )
        return self.store(table, [found[i].samples for i in usable]) if usable else None, found

    def store(self, table: pd.DataFrame, samples: Sequence[np.ndarray]) -> Store:
        """Return a store of unlabeled test clips of this machine.

        table : level_db and digest of each clip; the index becomes its name.  samples : int16 (n,) each
        """
        table = table.assign(
            clip=[f"{i:09d}" for i in table.index],
            machine=self.machine,
            section=self.section or "00",
            split="test",
            domain="unknown",
            label="unlabeled",
        )
        return in_memory(table.reset_index(drop=True), samples, self.data.sample_rate)

    def __call__(self, paths: Sequence[str | Path]) -> pd.DataFrame:
        """Score files.

        paths : recordings (for folders see `recordings`)
        returns : COLUMNS and `problem`, a row per file in the given order. decision is normal or anomaly;
            alpha, beta and classifier are raw component scores, NaN if the system has no such component;
            remark and problem are "" if there is nothing to report
        """
        store, found = self.decoded(paths)
        table = pd.DataFrame({"file": [shown(path) for path in paths]}).reindex(columns=list(COLUMNS))
        table = table.astype(
            dict.fromkeys(("score", "alpha", "beta", "classifier"), float) | {"decision": object}
        )
        table["threshold"] = self.threshold.value
        table["remark"] = [self._remark(decoded) for decoded in found]
        table["problem"] = [decoded.refused for decoded in found]
        if store is not None:
            scores = self.scores(store)
            rows = [int(clip) for clip in store.clips["clip"]]
            for column, part in {"score": (self.system, "score"), **PARTS}.items():
                if part in ((self.system, "score"), *parts_of(self.system, self.cfg.fusion.views)):
                    table.loc[rows, column] = scores[part]
            table.loc[rows, "decision"] = np.where(
                table.loc[rows, "score"] > self.threshold.value, "anomaly", "normal"
            )
        return table

    def _remark(self, decoded: decode.Decoded) -> str:
        rate, remarks = self.data.sample_rate, list(decoded.remarks)
        if decoded.samples is not None and decoded.rate != rate:
            above = f": no sound above {decoded.rate / 2:g} Hz" if decoded.rate < rate else ""
            remarks.append(f"{decoded.rate} Hz, resampled to {rate} Hz{above}")
        return "; ".join(remarks)

    def scores(self, store: Store, rows: np.ndarray | None = None) -> dict[tuple[str, str], np.ndarray]:
        """Score test clips of a store.

        rows : of the store; default: all
        returns : (system, component) -> float64 (clips,); fused scores use the scales of the training scores
        """
        rows, tables = np.arange(len(store)) if rows is None else rows, [self.train]
        for detector in self.detectors.values():
            tables.append(score_table(store.clips, rows, detector.components(Clips(store, rows)), self.seed))
        fused = fusion.systems(pd.concat(tables, ignore_index=True), self.cfg.fusion)
        new, names = fused[fused["split"] == "test"], store.clips["clip"].iloc[rows]
        return {
            part: values.set_index("clip")["score"].loc[names].to_numpy()
            for part, values in new.groupby(["system", "component"])
        }


def of(run, jobs: Sequence[tuple], machine: str = "", system: str = "") -> Scorer:
    """Return the scorer of one machine of a finished study, including recordings accepted as normal.

    run : run.Run.  jobs : stages.jobs(run)
    machine : default: the study's only one; <machine>_<section> if sections have separate references
    system : default: `final_system`
    raises : errors.InputError for an unknown machine or system, or unfinished or outdated results
    """
    train = run.clips[run.clips["split"] == "train"]
    names = schemas.by_references(train).drop_duplicates("machine")["machine"]
    parts = {name: tuple(train.loc[row, ["machine", "section"]]) for row, name in names.sort_values().items()}
    if (not machine and len(parts) > 1) or (machine in run.machines and machine not in parts):
        raise errors.InputError(
            f"study {run.cfg.name} has the machines {', '.join(parts)}; choose one with --machine"
        )
    name = errors.check_choice("machine", machine or next(iter(parts)), list(parts))
    machine, section = parts[name] if name not in run.machines else (name, "")
    systems, views = run.cfg.systems, run.cfg.fusion.views
    system = final_system(systems, views, system)
    needed = detectors_of(system, views=views)
    refuse_stale(run, jobs, needed, machine)
    scores = io.scores(run.folder / "scores.parquet")
    detectors = {name: run.detector(name, machine) for name in needed}
    scorer = Scorer(run.cfg, detectors, scores, machine, system, run.seed, section)
    return scorer.accepting(*kept.of(run.study_folder, machine, section))


def refuse_stale(run, jobs: Sequence[tuple], detectors: Sequence[str], machine: str = "") -> None:
    """Check that the report and the detectors are finished and up to date.

    machine : check detectors of this machine only; "": of all
    raises : errors.InputError that names what is not
    """
    stale = []
    for stage, seed, of_machine in jobs:
        where = f"{stage.notebook} of {of_machine or 'all machines'}"
        if seed == run.seed and (not machine or of_machine in ("", machine)):
            names = [name for name in stage.detectors if name in detectors]
            stale += [] if all(run.has(name, of_machine, seed) for name in names) else [where]
    folder = run.stage_folder(stage, seed, of_machine)  # of the last job, the report
    intact = (folder / "DONE").is_file() and not artifacts.corrupt_files(folder)
    changes = artifacts.changes(folder, run.given_to(stage, seed, of_machine)) if intact else []
    changes = [
        change for change in changes if change != artifacts.ACCEPTED
    ]  # the scorer applies these itself
    outdated = changes and not artifacts.only_code(changes)
    if outdated or not intact or not (run.folder / "scores.parquet").is_file():
        stale.append(where)
    if stale:
        raise errors.InputError(
            f"study {run.cfg.name} is not finished: {', '.join(stale)} is missing or was computed with other"
            f" settings, recordings, code or device; run `asd run {run.cfg.name}` first"
        )
