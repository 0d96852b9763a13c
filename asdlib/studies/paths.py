"""Where a study's artefacts lie, what shapes each of them, and whether it is finished.

    runs/<study>/store, data                   decoded clips; recordings that were made, where none were given
    runs/<study>/<stage>                       stages that are the same for all seeds
    runs/<study>/seed<k>/<stage>[/<machine>]   stages that train
    runs/<study>/sweep                         jobs and recordings of variants that differ from the study's (asdlib.studies.sweeps)

A digest is made of everything that shapes an artefact, and `shaped_by` says what that is, by name: it stands in the manifest, so that a stale
artefact can say why it is stale (asdlib.studies.jobs).
Source: METHOD 8.2, 8.3. Notebooks: all (through `study.Run`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
from pathlib import Path

import pandas as pd
import torch

from asdlib import errors
from asdlib.data import index, store, synthetic
from asdlib.evaluation import detectability
from asdlib.models import precision, training
from asdlib.settings import digest, to_tree
from asdlib.studies import artifacts, config
from asdlib.studies.stages import STAGES, Stage

NOTEBOOKS = artifacts.CLONE / "notebooks"
OUTPUTS = {"08_tuning": ("tuned.toml",), "09_report": ("scores.parquet", "metrics.csv", "controls.csv")}  # of a stage, outside its folder


class Places:
    """A study's settings, recordings and folders. Nothing is computed until it is asked for."""

    def __init__(
        self, cfg: config.Study, home: Path, seed: int, stage: Stage | None = None, machine: str = "", variant: str = "", base: Places | None = None
    ):
        """variant, base : of a sweep: its name, and the study that it varies, whose recordings and finished jobs it shares"""
        self.cfg, self.home, self.seed, self.stage, self.machine, self.variant, self.base = cfg, home, seed, stage, machine, variant, base
        self.study_folder = home / "runs" / cfg.name  # one lock for all of it
        self.folder = self.study_folder / "sweep" / variant if variant else self.study_folder
        self.reports = home / "reports" / cfg.name
        made = digest(cfg.data, cfg.synthetic)
        same = base is None or made == digest(base.cfg.data, base.cfg.synthetic)
        self.data_folder = self.study_folder if same else self.study_folder / "sweep" / "recordings" / made[:8]
        self.device = training.pick_device(cfg.device)  # of the artefacts that are meant; whoever else reads them computes `here`
        self.auto = ""  # what the precision `auto` is for these artefacts, where another machine decided it
        self.synthetic = not cfg.data.roots

    @property
    def here(self) -> torch.device:
        """Where this process computes: on the study's device if it has that, else on the CPU."""
        return self.device if self.device.type == "cpu" or torch.cuda.is_available() else torch.device("cpu")

    @property
    def roots(self) -> list[Path]:
        """Folders of recordings: the study's own, or the synthetic tree."""
        if not self.synthetic:
            return [Path(root) for root in self.cfg.data.roots]
        return [self.data_folder / "data" / digest(self.cfg.synthetic, self.cfg.data.sample_rate)]

    @functools.cached_property
    def store(self) -> store.Store:
        """The recordings, decoded; made on first use and found again after."""
        if self.synthetic and self.cfg.data.recorded:
            raise errors.Refusal(f"study {self.cfg.name} is for recordings and none were given; add --data-root DIR")
        if self.base is not None and self.data_folder == self.base.data_folder:
            return self.base.store
        if not self.synthetic or self.roots[0].is_dir():
            table, problems = index.index(self.roots, self.cfg.data.machines)
            found = store.find_store(table, problems, self.data_folder / "store", self.cfg.data)
            if found is not None:
                return found
        with artifacts.locked(self.study_folder):
            if self.synthetic and not self.roots[0].is_dir():
                self.roots[0].parent.mkdir(parents=True, exist_ok=True)
                synthetic.write_tree(self.roots[0], self.cfg.synthetic, self.cfg.data.sample_rate)
                for old in self.roots[0].parent.glob("[0-9a-f]" * 16):
                    if old != self.roots[0]:
                        shutil.rmtree(old, ignore_errors=True)
            table, problems = index.index(self.roots, self.cfg.data.machines)
            return store.open_store(table, problems, self.data_folder / "store", self.cfg.data)

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

    @functools.cached_property
    def severities(self) -> pd.Series:
        """Severity of the fault of each clip, by its name; NaN where none is known. For reports only."""
        return detectability.severities(self.clips)

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
            folder = folder / "sweep" / "jobs" / digest(self._settings(stage))[:8]
        folder = folder / f"seed{seed}" if stage.per_seed else folder
        return folder / stage.notebook / machine if stage.per_machine else folder / stage.notebook

    def _settings(self, stage: Stage) -> dict:
        """The settings that shape what a stage trains, and its recordings."""
        return {name: to_tree(self.cfg)[name] for name in (*(stage.detectors or stage.sections), "precision", "data", "synthetic")}

    def detector_folder(self, name: str, machine: str, seed: int) -> Path:
        """Where a detector that is trained per machine has left its files; one that is not finished, or torn, is refused."""
        stage = next(stage for stage in STAGES if name in stage.detectors)
        folder = self.stage_folder(stage, seed, machine) / name
        if not artifacts.finished(folder, self.detector_digest(name, seed, machine)):
            wrong = ", ".join(artifacts.torn(folder)) if (folder / "DONE").is_file() else ""
            what = f"{name} of {machine or 'all machines'} (seed {seed}) is {'not whole' if wrong else 'not finished'} for these settings"
            raise errors.Refusal(f"{what}{f': {wrong}' if wrong else ''}; run `asd run {self.cfg.name}` with them first")
        return folder

    def shaped_by(self, stage: Stage, seed: int, machine: str = "") -> dict:
        """Everything that shapes a stage, by name: settings, recordings, code, notebook, device, seed, machine."""
        cfg = dataclasses.asdict(self.cfg)
        settings = {name: cfg[name] for name in (*stage.sections, "precision")}
        if not stage.detectors:  # pages that list what is wrong with the recordings, or how severe their faults are
            settings["problems"] = digest(self.problems.to_json(orient="values"))
            settings["severities"] = digest(self.severities.dropna().to_json())
        book = hashlib.sha256((NOTEBOOKS / f"{stage.notebook}.ipynb").read_bytes()).hexdigest()[:16]
        which = {"seed": seed if stage.per_seed else None, "machine": machine if stage.per_machine else None}
        made_by = {"recordings": self.store.fingerprint, "code": artifacts.code_digest(), "notebook": book, "device": self.device.type}
        return {"settings": settings, **made_by, **which}

    def digest(self, stage: Stage, seed: int, machine: str = "") -> str:
        """Digest of everything that shapes a stage."""
        return digest(self.shaped_by(stage, seed, machine))

    def detector_shaped_by(self, name: str, seed: int, machine: str, settings=None) -> dict:
        """Everything that shapes a detector: its settings, recordings, code, device, seed, machine ("": all of them)."""
        cfg = dataclasses.asdict(self.cfg)
        chosen = {name: cfg[name] if settings is None else dataclasses.asdict(settings), "precision": self.precision_of(name)}
        made_by = {"recordings": self.store.fingerprint, "code": artifacts.code_digest(), "device": self.device.type}
        return {"settings": chosen, **made_by, "seed": seed, "machines": [machine] if machine else self.machines}

    def detector_digest(self, name: str, seed: int, machine: str, settings=None) -> str:
        """Digest of everything that shapes a detector."""
        return digest(name, self.detector_shaped_by(name, seed, machine, settings))

    def precision_of(self, name: str) -> str:
        """Precision in which a detector's network is trained (`asdlib.models.precision`)."""
        return precision.of(name, self.cfg, self.device, self.auto)

    def outputs(self, stage: Stage) -> list[Path]:
        """Files that a stage leaves outside its folder and that belong to it."""
        return [self.folder / name for name in OUTPUTS.get(stage.notebook, ())]

    def finished(self, stage: Stage, seed: int, machine: str = "") -> bool:
        """True if a stage, its detectors and what it leaves elsewhere are there, whole, and made of what holds now."""
        folder = self.stage_folder(stage, seed, machine)
        shown = [self.reports / name for name in ("summary.md", "report.json", "model_card.md")] if stage.notebook == "09_report" else []
        return (
            artifacts.finished(folder, self.digest(stage, seed, machine))
            and all(artifacts.finished(folder / name, self.detector_digest(name, seed, machine)) for name in stage.detectors)
            and all(path.is_file() for path in shown)
        )
