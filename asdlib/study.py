"""A study as a graph of notebooks: where its artefacts lie, what is stale, how it is run and resumed.

    runs/<study>/store                         decoded clips; runs/<study>/data: synthetic recordings, where there are none
    runs/<study>/<stage>                       stages 01, 02 and 09, which are the same for all seeds
    runs/<study>/seed<k>/<stage>[/<machine>]   stages that train: executed notebook, params, manifest, tables, weights
    runs/<study>/scores.parquet, metrics.csv   what the study says; reports/<study>/index.html shows it
    runs/<study>/sweep                         the same for other settings (asdlib.sweeps); what these do not touch is taken from above

What is finished (artefacts.finished) is never computed again; what is not, starts again or goes on from its checkpoint.
Sources: DESIGN 3, 4. Notebooks: all (second cell, `arrive`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from asdlib import artefacts, audio, checks, clips, config, fusion, metrics, synthetic, training
from asdlib.detectors import DETECTORS, SYSTEMS, detect, training_rows
from asdlib.detectors.context import Context

NOTEBOOKS = artefacts.CLONE / "notebooks"
VARIANT = "variant="  # among overrides


@dataclass(frozen=True)
class Stage:
    """One notebook of the series: how often it runs, and the settings that shape what it writes."""

    notebook: str
    per_machine: bool
    per_seed: bool
    sections: tuple[str, ...]  # of the settings
    detectors: tuple[str, ...] = ()  # that it trains
    reads: tuple[str, ...] = ()  # detectors of earlier stages that it cannot do without

    def serves(self, systems: Sequence[str]) -> bool:
        """Whether a study of these systems has a use for the stage."""
        for system in systems:
            checks.known_name("system", system, list(SYSTEMS))
        about = self.detectors + self.reads
        return not about or any(SYSTEMS[system] in about for system in systems)


STAGES = (
    Stage("01_data", False, False, ("report", "oevae")),
    Stage("02_preprocessing", False, False, ("report", "oevae")),
    Stage("03_baseline", True, True, ("baseline_knn", "autoencoder", "metrics"), ("baseline_knn", "autoencoder")),
    Stage("04_classifier", False, True, ("classifier", "metrics"), ("classifier",)),
    Stage("05_oevae", True, True, ("oevae", "fusion", "metrics"), ("oevae",)),
    Stage("07_latents", False, True, ("oevae",), reads=("oevae",)),
    Stage("09_report", False, False,
          ("name", "about", "systems", "seeds", "baseline_knn", "autoencoder", "oevae", "classifier", "fusion", "metrics", "report")),
)


def stage_of(notebook: str) -> Stage:
    """The stage of a notebook's name or number."""
    for stage in STAGES:
        if notebook in (stage.notebook, stage.notebook[:2]):
            return stage
    raise checks.Refusal(f"unknown stage {notebook!r}; known: {', '.join(stage.notebook for stage in STAGES)}")


class Run:
    """A study opened: its settings, recordings, folders, and what has been computed.

    Notebooks get one from `arrive`; scripts from `open_run`. Nothing is computed until it is asked for.
    """

    def __init__(self, cfg: config.Study, home: Path, seed: int, variant: str = "", base: Run | None = None):
        """variant, base : of a sweep: its name, and the study that it varies, whose recordings and finished jobs it shares"""
        self.cfg, self.home, self.seed, self.variant, self.base = cfg, home, seed, variant, base
        self.study_folder = home / "runs" / cfg.name  # one lock for all of it
        self.folder = self.study_folder / "sweep" / variant if variant else self.study_folder
        self.reports = home / "reports" / cfg.name
        made = config.digest(cfg.data, cfg.synthetic)
        same = base is None or made == config.digest(base.cfg.data, base.cfg.synthetic)
        self.data_folder = self.study_folder if same else self.study_folder / "sweep" / "recordings" / made[:8]
        self.device = training.pick_device(cfg.device)
        self.stage, self.machine = None, ""
        self.synthetic = not cfg.data.roots

    @property
    def roots(self) -> list[Path]:
        """Folders of recordings: the study's own, or the synthetic tree."""
        if not self.synthetic:
            return [Path(root) for root in self.cfg.data.roots]
        return [self.data_folder / "data" / config.digest(self.cfg.synthetic, self.cfg.data.sample_rate)]

    @functools.cached_property
    def store(self) -> audio.Store:
        """The recordings, decoded; made on first use and found again after."""
        if self.synthetic and self.cfg.data.recorded:
            raise checks.Refusal(f"study {self.cfg.name} is for recordings and none were given; add --data-root DIR")
        if self.base is not None and self.data_folder == self.base.data_folder:
            return self.base.store
        if not self.synthetic or self.roots[0].is_dir():
            table, problems = clips.index(self.roots, self.cfg.data.machines)
            found = audio.find_store(table, problems, self.data_folder / "store", self.cfg.data)
            if found is not None:
                return found
        with artefacts.locked(self.study_folder):
            if self.synthetic and not self.roots[0].is_dir():
                self.roots[0].parent.mkdir(parents=True, exist_ok=True)
                synthetic.write_tree(self.roots[0], self.cfg.synthetic, self.cfg.data.sample_rate)
                for old in self.roots[0].parent.glob("[0-9a-f]" * 16):
                    if old != self.roots[0]:
                        shutil.rmtree(old, ignore_errors=True)
            table, problems = clips.index(self.roots, self.cfg.data.machines)
            return audio.open_store(table, problems, self.data_folder / "store", self.cfg.data)

    def decode_again(self) -> None:
        """Make the store anew from the recordings; only for who holds the study."""
        (self.data_folder / "store" / "DONE.json").unlink(missing_ok=True)
        for run in (self, self.base):
            if run is not None and run.data_folder == self.data_folder:
                run.__dict__.pop("store", None)

    @property
    def clips(self) -> pd.DataFrame:
        """Clip table; row i is item i of the store."""
        return self.store.clips

    @property
    def problems(self) -> pd.DataFrame:
        """What is wrong with the recordings: path, reason, left_out."""
        return self.store.problems

    @property
    def machines(self) -> list[str]:
        """Machines that have usable clips, in alphabetical order."""
        return sorted(self.clips["machine"].unique())

    def stage_folder(self, stage: Stage, seed: int, machine: str = "") -> Path:
        """Where a stage's artefacts lie; variants that train the same, or the same as their study, share a folder."""
        folder = self.study_folder
        if self.base is not None and self._settings(stage) != self.base._settings(stage):
            folder = folder / "sweep" / "jobs" / config.digest(self._settings(stage))[:8]
        folder = folder / f"seed{seed}" if stage.per_seed else folder
        return folder / stage.notebook / machine if stage.per_machine else folder / stage.notebook

    def _settings(self, stage: Stage) -> dict:
        """The settings that shape what a stage trains, and its recordings."""
        return {name: config.to_tree(self.cfg)[name] for name in (*(stage.detectors or stage.sections), "precision", "data", "synthetic")}

    def detector_folder(self, name: str, machine: str, seed: int) -> Path:
        """Where a detector that is trained per machine has left its files; one that is not finished, or torn, is refused."""
        stage = next(stage for stage in STAGES if name in stage.detectors)
        folder = self.stage_folder(stage, seed, machine) / name
        if not artefacts.finished(folder, self.detector_digest(name, seed, machine)):
            wrong = ", ".join(artefacts.torn(folder)) if (folder / "DONE").is_file() else ""
            what = f"{name} of {machine or 'all machines'} (seed {seed}) is {'not whole' if wrong else 'not finished'} for these settings"
            raise checks.Refusal(f"{what}{f': {wrong}' if wrong else ''}; run `asd run {self.cfg.name}` with them first")
        return folder

    def shaped_by(self, stage: Stage, seed: int, machine: str = "") -> dict:
        """Everything that shapes a stage, by name: settings, recordings, code, notebook, device, seed, machine."""
        cfg = dataclasses.asdict(self.cfg)
        settings = {name: cfg[name] for name in (*stage.sections, "precision")}
        if not stage.detectors:  # pages that list what is wrong with the recordings
            settings["problems"] = config.digest(self.problems.to_json(orient="values"))
        book = hashlib.sha256((NOTEBOOKS / f"{stage.notebook}.ipynb").read_bytes()).hexdigest()[:16]
        which = {"seed": seed if stage.per_seed else None, "machine": machine if stage.per_machine else None}
        made_by = {"recordings": self.store.fingerprint, "code": artefacts.code_digest(), "notebook": book, "device": self.device.type}
        return {"settings": settings, **made_by, **which}

    def digest(self, stage: Stage, seed: int, machine: str = "") -> str:
        """Digest of everything that shapes a stage."""
        return config.digest(self.shaped_by(stage, seed, machine))

    def detector_shaped_by(self, name: str, seed: int, machine: str, settings=None) -> dict:
        """Everything that shapes a detector: its settings, recordings, code, device, seed, machine ("": all of them)."""
        cfg = dataclasses.asdict(self.cfg)
        chosen = {name: cfg[name] if settings is None else dataclasses.asdict(settings), "precision": cfg["precision"]}
        made_by = {"recordings": self.store.fingerprint, "code": artefacts.code_digest(), "device": self.device.type}
        return {"settings": chosen, **made_by, "seed": seed, "machines": [machine] if machine else self.machines}

    def detector_digest(self, name: str, seed: int, machine: str, settings=None) -> str:
        """Digest of everything that shapes a detector."""
        return config.digest(name, self.detector_shaped_by(name, seed, machine, settings))

    def outputs(self, stage: Stage) -> list[Path]:
        """Files that a stage leaves outside its folder and that belong to it."""
        return [self.folder / name for name in ("scores.parquet", "metrics.csv", "controls.csv")] if stage.notebook == "09_report" else []

    def finished(self, stage: Stage, seed: int, machine: str = "") -> bool:
        """True if a stage, its detectors and what it leaves elsewhere are there, whole, and made of what holds now."""
        folder = self.stage_folder(stage, seed, machine)
        shown = [self.reports / name for name in ("summary.md", "report.json")] if self.outputs(stage) else []
        return (
            artefacts.finished(folder, self.digest(stage, seed, machine))
            and all(artefacts.finished(folder / name, self.detector_digest(name, seed, machine)) for name in stage.detectors)
            and all(path.is_file() for path in shown)
        )

    def detect(self, name: str, variant: str = "", settings=None) -> tuple[object, pd.DataFrame, pd.DataFrame]:
        """A detector of this run's machine: fitted now, or loaded if it is finished.

        variant, settings : a folder of its own, and the detector's section of the settings in place of the study's
        returns : the detector, its score table, its training history
        """
        folder = self.stage_folder(self.stage, self.seed, self.machine) / (variant or name)
        machines = [self.machine] if self.stage.per_machine else self.machines
        chosen = self.cfg if settings is None else dataclasses.replace(self.cfg, **{name: settings})
        cfg = dataclasses.asdict(chosen)
        of = (name, self.seed, self.machine if self.stage.per_machine else "", settings)
        digest = self.detector_digest(*of)
        detector = DETECTORS[name](Context(chosen, self.store, self.device, self.seed, folder))
        if self.base is not None:  # trained already for the study or for another variant
            artefacts.adopt(folder, digest, self.study_folder.glob(f"**/{folder.relative_to(folder.parents[1 + self.stage.per_machine])}"))
        if artefacts.finished(folder, digest):
            detector.load(folder, np.concatenate([training_rows(self.clips, machine) for machine in machines]))
            history = pd.read_parquet(folder / "history.parquet") if (folder / "history.parquet").is_file() else pd.DataFrame()
            return detector, pd.read_parquet(folder / "scores.parquet"), history
        with artefacts.locked(self.study_folder), artefacts.guarded(folder):
            artefacts.begin(folder, digest)
            began = time.perf_counter()
            scores = detect(detector, detector.context, machines)
            artefacts.write_table(folder / "scores.parquet", scores)
            if len(detector.history):
                artefacts.write_table(folder / "history.parquet", detector.history)
            detector.save(folder)
            facts = {"detector": name, "machines": machines, "seed": self.seed, "settings": cfg[name], "seconds": time.perf_counter() - began}
            facts |= {"device": self.device.type, "data": self.store.fingerprint, "peak_memory_mb": artefacts.peak_memory_mb()}
            facts |= {"shaped_by": self.detector_shaped_by(*of)}
            artefacts.seal(folder, digest, facts)
        return detector, scores, detector.history

    def collect(self) -> pd.DataFrame:
        """Scores of all seeds and machines, written to scores.parquet; what is missing is refused by name."""
        tables, missing = [], []
        for stage, seed, machine in jobs(self):
            for name in stage.detectors:
                path = self.stage_folder(stage, seed, machine) / name / "scores.parquet"
                if artefacts.finished(path.parent, self.detector_digest(name, seed, machine)):
                    tables.append(pd.read_parquet(path))
                elif any(SYSTEMS[system] == name for system in self.cfg.systems):
                    missing.append(f"{stage.notebook} of {machine or 'all machines'} (seed {seed})")
        if missing or not tables:
            what = ", ".join(dict.fromkeys(missing)) or "every stage"
            raise checks.Refusal(f"scores are missing of {what}; run `asd run {self.cfg.name}` with these settings first")
        scores = fusion.systems(pd.concat(tables, ignore_index=True), self.cfg.fusion)
        scores = checks.score_table(scores[scores["system"].isin(self.cfg.systems)].reset_index(drop=True))
        self.folder.mkdir(parents=True, exist_ok=True)
        artefacts.write_table(self.folder / "scores.parquet", scores)
        return scores

    def measure(self, scores: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Metrics and controls with intervals, written to metrics.csv and controls.csv."""
        table = pd.concat([metrics.table(part, self.cfg.metrics, seed) for seed, part in scores.groupby("seed")], ignore_index=True)
        controls = metrics.controls(self.clips, scores, self.cfg.metrics, self.seed)
        artefacts.write_table(self.folder / "metrics.csv", table)
        artefacts.write_table(self.folder / "controls.csv", controls)
        return table, controls

    def timings(self) -> pd.DataFrame:
        """Seconds of every finished job of this study: stage, machine, seed, seconds; and the peak memory of those that train."""
        rows = []
        for stage, seed, machine in jobs(self):
            folder = self.stage_folder(stage, seed, machine)
            if not artefacts.finished(folder, self.digest(stage, seed, machine)):
                continue
            facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            inner = [json.loads(path.read_text(encoding="utf-8"))["peak_memory_mb"] for path in folder.glob("*/manifest.json")]
            peak = str(max(inner)) if inner else ""
            rows.append((stage.notebook, machine, seed if stage.per_seed else "", facts["seconds"], peak))
        return pd.DataFrame(rows, columns=["stage", "machine", "seed", "seconds", "peak_memory_mb"])


def jobs(run: Run, only: Sequence[str] = ()) -> list[tuple[Stage, int, str]]:
    """The notebooks of a study in order: (stage, seed, machine); stages that serve none of its systems are left out.

    raises : checks.Refusal for such a stage that was asked for by name
    """
    chosen = [stage_of(name) for name in only]
    for stage in chosen:
        if not stage.serves(run.cfg.systems):
            wanted = ", ".join(system for system, name in SYSTEMS.items() if name in stage.detectors + stage.reads)
            raise checks.Refusal(f"stage {stage.notebook} serves {wanted}, the study has {', '.join(run.cfg.systems)}; add it to systems")
    chosen = chosen or [stage for stage in STAGES if stage.serves(run.cfg.systems)]
    out = []
    for stage in (stage for stage in STAGES if stage in chosen):
        for seed in run.cfg.seeds if stage.per_seed else run.cfg.seeds[:1]:
            out += [(stage, seed, machine) for machine in (run.machines if stage.per_machine else [""])]
    return out


def open_run(study: str, overrides: Sequence[str] = (), home: str | Path = "", seed: int | None = None) -> Run:
    """Open a study by name (see notebooks/studies) or TOML path; `home` holds runs/ and reports/ (default: the clone).

    overrides : `name=value`; after `variant=NAME` follow the settings of one variant of a sweep
    """
    for number, text in enumerate(overrides):
        if text.startswith(VARIANT):  # what follows it varies the study that stands before it
            base = open_run(study, overrides[:number], home, seed)
            return Run(load(study, [*overrides[:number], *overrides[number + 1 :]]), base.home, base.seed, text.removeprefix(VARIANT), base)
    cfg = load(study, overrides)
    return Run(cfg, Path(home or artefacts.CLONE).resolve(), cfg.seeds[0] if seed is None else seed)


def load(study: str, overrides: Sequence[str] = ()) -> config.Study:
    """Settings of a study (config.load) whose systems are known and whose seeds and systems stand there once."""
    cfg = config.load(study, overrides)
    for system in cfg.systems:
        checks.known_name("system", system, list(SYSTEMS))
    for name, values in (("seeds", cfg.seeds), ("systems", cfg.systems)):
        if not values or len(set(values)) < len(values):
            raise checks.Refusal(f"setting {name}: got {list(values)}, expected at least one value and none twice")
    return cfg


def arrive(notebook: str, *, study: str, overrides: list, home: str, seed: int = 0, machine: str = "") -> Run:
    """The second cell of every notebook: check the parameters' names and types, then open the study.

    machine : "" takes the first machine of the study
    raises : checks.Refusal for a wrong type, an unknown machine or seed
    """
    came = {"study": (study, str), "overrides": (overrides, list), "home": (home, str), "seed": (seed, int), "machine": (machine, str)}
    for name, (value, kind) in came.items():
        if type(value) is not kind:
            raise checks.Refusal(f"parameter {name}: got {value!r} ({type(value).__name__}), expected {kind.__name__}")
    run = open_run(study, overrides, home, seed)
    run.stage = stage_of(notebook)
    run.machine = checks.known_name("machine", machine, run.machines) if machine else run.machines[0]
    if artefacts.HOLDS in os.environ:  # not by hand
        artefacts.alone(run.stage_folder(run.stage, run.seed, run.machine if run.stage.per_machine else ""))
    torch.set_num_threads(1)  # two spinning threads on two busy cores are ten times slower than one
    return run
