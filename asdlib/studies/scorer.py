"""Scores of recordings that no study has seen: from files to score, threshold and decision.

Task
----
A finished study has trained detectors of every machine and leave-clip-out scores of its training clips.
`Scorer` takes those of one machine and scores any recordings: decoded as the study decodes (other rates are
resampled, one channel is taken), by the same detectors, on the same scales of training scores, with the same
threshold.

Conventions
-----------
Higher is more anomalous. A recording's score depends on nothing but the recording: detectors take one clip
after the other (`detectors.base.clip_by_clip`) and scales come from training scores, so that a clip of the
study gets the very score the study gave it, bit for bit on the same device and precision. A file that cannot
be scored has NaN and a `problem` in words; the others are scored. What indexing would say of a file that is
scored all the same (silent, clipped, ...) is its `remark`.

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
    """Files as they are named, and for every folder the recordings below it, each once, in the order of their
    names.

    problems : gets what is wrong with these folders, and what they hold that is no recording (path, words,
        whether something is left out)
    raises : errors.InputError for a folder without a recording.  A file that is not there stays in the list:
        it is told when it is scored
    """
    found: list[Path] = []
    problems = [] if problems is None else problems
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        passed, before = Counter(), len(problems)
        inside = {
            os.path.realpath(file): file
            for file in reversed(list(folders.below(path, SOUNDS, problems, passed)))
        }
        others = folders.passed_over(passed)
        if not inside:
            why = "".join(
                f"; {what}"
                for what in (others, *(f"{where}: {words}" for where, words, _ in problems[before:]))
                if what
            )
            raise errors.InputError(
                f"{path}: no recording in this folder, expected audio files ({', '.join(SOUNDS[:6])}, ...);"
                f" check the path{why}"
            )
        problems += [(str(path), others, False)] if others else []
        found += sorted(inside.values())
    return found


def detectors_of(*systems: str, views: Sequence[str] = ()) -> list[str]:
    """Names of the detectors that systems need: their own, or those of their parts.  views : of
    `fusion.views`, here and below
    """
    found = (part for system in systems for part, _ in parts_of(system, views))
    return list(dict.fromkeys(SYSTEMS[system] for system in found))


def parts_of(system: str, views: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(system, component) of detectors behind a system's score; a part that is itself composed is followed to
    its own parts.
    """
    ends = [
        end
        for part in fusion.parts(system, views)
        for end in (parts_of(part[0], views) if part[1] == "score" else [part])
    ]
    return list(dict.fromkeys(ends)) or [(system, "score")]


def systems_behind(system: str, views: Sequence[str] = ()) -> list[str]:
    """A system and every system that its score is composed of."""
    others = (name for name, _ in fusion.parts(system, views) if name != system)
    return list(dict.fromkeys([system, *(end for name in others for end in systems_behind(name, views))]))


def final_system(systems: Sequence[str], views: Sequence[str] = ()) -> str:
    """The system that stands for a study where none is named: the fusion of its views, else the one that
    combines most, else the last of the study's list.

    systems : those of the settings; what is composed of them counts too
    """
    found = fusion.with_composed(systems, views)
    return max(reversed(found), key=lambda name: (name == fusion.FUSED, len(parts_of(name, views))))


class Scorer:
    """The trained detectors of one machine, ready for recordings.

    detectors : name -> trained detector, those of `detectors_of(system)`
    scores : score table of the study with the training rows of this machine and seed
    section : of the recordings, where the machine's sections are judged apart (`schemas.by_references`); ""
        elsewhere
    accepted : recordings that are references beside the training clips (`accepted.COLUMNS`), see `accepting`
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
        self.fitted = detectors  # as they are before they accept anything
        self.accepted = pd.DataFrame(columns=list(kept.COLUMNS)) if accepted is None else accepted
        own = scores[(scores["machine"] == machine) & (scores["seed"] == seed) & (scores["split"] == "train")]
        own = own[own["section"] == section] if section else own
        self.name = f"{machine}_{section}" if section else machine
        self.train = own[own["system"].isin(systems_behind(system, cfg.fusion.views))]
        final = self.train[(self.train["system"] == system) & (self.train["component"] == "score")]["score"]
        self.clips = len(final)  # training clips behind the threshold
        self.threshold = thresholds.gamma_threshold(final.to_numpy(float), cfg.metrics.decision_quantile)
        # the study may have left such clips out, here the user named them
        self.data = cfg.data.replace(resample=True)

    def with_quantile(self, quantile: float) -> Scorer:
        """The same scorer with its threshold at another quantile of normal training scores.

        raises : errors.InputError for one that `metrics.decision_quantile` does not allow
        """
        cfg = self.cfg.replace(metrics={"decision_quantile": quantile})
        return self._like(self.detectors, self.train, self.accepted, cfg)

    def accepting(self, table: pd.DataFrame, samples: Sequence[np.ndarray]) -> Scorer:
        """A scorer whose detectors have further normal recordings among their references, and whose scales
        and threshold count them (`Detector.accept`); itself for none.

        table, samples : of `accepted.of` or `accepted.asked`, all that are to be accepted
        """
        if table.empty:
            return self
        store = self.store(table, samples)
        facts = {"split": "train", "label": "normal", "clip": "accepted/" + table["digest"].to_numpy()}
        facts["section"] = self.section or self.train["section"].mode()[0]  # no section of its own
        clips = Clips(dataclasses.replace(store, clips=store.clips.assign(**facts)), np.arange(len(store)))
        found = {name: detector.accept(clips) for name, detector in self.fitted.items()}
        train = pd.concat([detector.training_table_ for detector in found.values()], ignore_index=True)
        own = (train["machine"] == self.machine) & ((train["section"] == self.section) | (self.section == ""))
        return self._like(found, fusion.systems(train[own], self.cfg.fusion), table, self.cfg)

    def _like(self, detectors, scores, accepted, cfg) -> Scorer:
        which = self.machine, self.system, self.seed, self.section
        out = Scorer(cfg, detectors, scores, *which, accepted)
        out.fitted = self.fitted
        return out

    def about(self) -> str:
        """Whose scores these are, and where the threshold lies, in words."""
        quantile = self.cfg.metrics.decision_quantile
        few = (1 - quantile) * self.clips < 1
        known, count = sorted(self.accepted["digest"]), len(self.accepted)
        return (
            f"{self.system} of {self.name}, seed {self.seed}; threshold {self.threshold.value:.6g}: quantile"
            f" {quantile:g} of {self.clips - count} training clips"
            + (f" and {count} accepted (key {digest(known)[:8]})" if count else "")
            + f", by {self.threshold.method}"
            + (", beyond what so few clips can show" if few else "")
        )

    def decoded(self, paths: Sequence[str | Path]) -> tuple[Store | None, list[decode.Decoded]]:
        """Recordings as a store that detectors can read, and every one as it was decoded.

        Clips of the store are named by their position in `paths`; None where no file is usable.
        """
        found = [decode.decode(path, self.data) for path in paths]
        usable = [i for i, one in enumerate(found) if one.samples is not None]
        table = pd.DataFrame(
            [
                {"path": shown(paths[i]), "level_db": found[i].level_db, "digest": found[i].digest}
                for i in usable
            ],
            index=usable,
        )
        return self.store(table, [found[i].samples for i in usable]) if usable else None, found

    def store(self, table: pd.DataFrame, samples: Sequence[np.ndarray]) -> Store:
        """Clips of this machine, of which nothing but the sound is known, as detectors read them.

        table : level_db and digest of each clip; the index names it.  samples : int16 (n,) of each
        """
        facts = {"section": self.section or "00", "split": "test", "domain": "unknown", "label": "unlabeled"}
        names = [f"{i:09d}" for i in table.index]
        table = table.assign(clip=names, machine=self.machine, **facts).reset_index(drop=True)
        return in_memory(table, samples, self.data.sample_rate)

    def __call__(self, paths: Sequence[str | Path]) -> pd.DataFrame:
        """Scores of files.

        paths : recordings (folders: see `recordings`)
        returns : a row per file in the order given: COLUMNS, and `problem`, "" where the file was scored.
            decision is normal or anomaly; alpha, beta and classifier are the raw scores of these parts, NaN
            where the system has no such part; remark is what is odd about a file that was scored, "" for
            nothing
        """
        store, found = self.decoded(paths)
        table = pd.DataFrame({"file": [shown(path) for path in paths]}).reindex(columns=list(COLUMNS))
        table = table.astype(
            dict.fromkeys(("score", "alpha", "beta", "classifier"), float) | {"decision": object}
        )
        table["threshold"] = self.threshold.value
        table["remark"] = [self._remark(one) for one in found]
        table["problem"] = [one.refused for one in found]
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

    def _remark(self, one: decode.Decoded) -> str:
        rate, remarks = self.data.sample_rate, list(one.remarks)
        if one.samples is not None and one.rate != rate:
            above = f": no sound above {one.rate / 2:g} Hz" if one.rate < rate else ""
            remarks.append(f"{one.rate} Hz, resampled to {rate} Hz{above}")
        return "; ".join(remarks)

    def scores(self, store: Store, rows: np.ndarray | None = None) -> dict[tuple[str, str], np.ndarray]:
        """Scores of test clips of a store: (system, component) -> float64 (clips,), fused on the scales of
        the training scores.  rows : of the store; None: all
        """
        rows, tables = np.arange(len(store)) if rows is None else rows, [self.train]
        for detector in self.detectors.values():
            tables.append(score_table(store.clips, rows, detector.components(Clips(store, rows)), self.seed))
        every = fusion.systems(pd.concat(tables, ignore_index=True), self.cfg.fusion)
        new, names = every[every["split"] == "test"], store.clips["clip"].iloc[rows]
        return {
            part: values.set_index("clip")["score"].loc[names].to_numpy()
            for part, values in new.groupby(["system", "component"])
        }


def of(run, jobs: Sequence[tuple], machine: str = "", system: str = "") -> Scorer:
    """The scorer of one machine of a finished study, with what was accepted as normal.

    run : run.Run.  jobs : stages.jobs(run).  machine : "" is the study's only one; <machine>_<section> where
        sections are judged apart
    system : "" is `final_system`
    raises : errors.InputError for an unknown machine or system, and where something is not finished or out of
        date
    """
    train = run.clips[run.clips["split"] == "train"]
    judged = schemas.by_references(train).drop_duplicates("machine")["machine"]
    parts = {
        name: tuple(train.loc[row, ["machine", "section"]]) for row, name in judged.sort_values().items()
    }
    if (not machine and len(parts) > 1) or (machine in run.machines and machine not in parts):
        raise errors.InputError(
            f"study {run.cfg.name} has the machines {', '.join(parts)}; say which one with --machine"
        )
    name = errors.check_choice("machine", machine or next(iter(parts)), list(parts))
    machine, section = parts[name] if name not in run.machines else (name, "")
    every = run.cfg.systems, run.cfg.fusion.views
    known = list(fusion.with_composed(*every))
    system = errors.check_choice("system", system or final_system(*every), known)
    needed = detectors_of(system, views=run.cfg.fusion.views)
    refuse_stale(run, jobs, needed, machine)
    scores = io.scores(run.folder / "scores.parquet")
    found = {name: run.detector(name, machine) for name in needed}
    one = Scorer(run.cfg, found, scores, machine, system, run.seed, section)
    return one.accepting(*kept.of(run.study_folder, machine, section))


def refuse_stale(run, jobs: Sequence[tuple], detectors: Sequence[str], machine: str = "") -> None:
    """Refuse (errors.InputError) if the report or one of these detectors (of one machine; "": of all) is not
    finished, or not of what holds now.
    """
    odd = []
    for stage, seed, of_machine in jobs:
        where = f"{stage.notebook} of {of_machine or 'all machines'}"
        if seed == run.seed and (not machine or of_machine in ("", machine)):
            names = [name for name in stage.detectors if name in detectors]
            odd += [] if all(run.has(name, of_machine, seed) for name in names) else [where]
    folder = run.stage_folder(stage, seed, of_machine)  # the last one gathers
    whole = (folder / "DONE").is_file() and not artifacts.corrupt_files(folder)
    differ = artifacts.changes(folder, run.given_to(stage, seed, of_machine)) if whole else []
    differ = [words for words in differ if words != artifacts.ACCEPTED]  # of those the scorer knows itself
    old = differ and not artifacts.only_code(differ)
    odd += [where] if old or not whole or not (run.folder / "scores.parquet").is_file() else []
    if odd:
        what = f"{', '.join(odd)} is missing or was made of other settings, recordings, code or device"
        raise errors.InputError(
            f"study {run.cfg.name} is not finished: {what}; run `asd run {run.cfg.name}` as before, then ask"
            " again"
        )
