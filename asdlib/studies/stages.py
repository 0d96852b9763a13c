"""The stages of a study: its notebooks, how often each runs, what each trains and reads.

A job is a stage for one seed and machine. Source: METHOD 8.2. Used by: `run`, `jobs`, `runner`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from asdlib import errors
from asdlib.detectors import SYSTEMS

if TYPE_CHECKING:
    from asdlib.studies.run import Run


@dataclass(frozen=True)
class Stage:
    """One notebook of the series."""

    notebook: str
    per_machine: bool
    per_seed: bool
    sections: tuple[str, ...]  # settings that its results depend on
    detectors: tuple[str, ...] = ()  # detectors it trains
    reads: tuple[str, ...] = ()  # detectors of earlier stages it requires
    shows: tuple[str, ...] = ()  # detectors it also reads if the study has them

    def serves(self, systems: Sequence[str]) -> bool:
        """Return True if a study of these systems needs the stage."""
        for system in systems:
            errors.check_choice("system", system, list(SYSTEMS))
        own = self.detectors + self.reads
        return not own or any(SYSTEMS[system] in own for system in systems)


BASELINES = ("baseline_knn", "multires", "pretrained", "autoencoder")
DETECTORS = (*BASELINES, "oevae", "classifier")
SHOWN = (*DETECTORS, "fusion", "metrics", "report")
STAGES = (
    Stage("01_data", False, False, ("report", "oevae.condition")),
    Stage(
        "02_preprocessing",
        False,
        False,
        ("report", "oevae.condition", "oevae.features", "oevae.smote", "classifier"),
    ),
    Stage("03_baseline", True, True, (*BASELINES, "metrics"), BASELINES),
    Stage("04_classifier", False, True, ("classifier", "metrics"), ("classifier",)),
    Stage("05_oevae", True, True, ("oevae", "fusion", "metrics"), ("oevae",)),
    Stage(
        "06_embeddings",
        False,
        True,
        ("systems", "maps", *SHOWN),
        reads=("oevae", "classifier"),
        shows=BASELINES,
    ),
    Stage("07_latents", False, True, ("oevae",), reads=("oevae",)),
    Stage(
        "08_tuning",
        False,
        False,
        ("systems", "seeds", "oevae", "classifier", "fusion", "metrics"),
        reads=("oevae",),
        shows=("classifier",),
    ),
    Stage(
        "09_report",
        False,
        False,
        ("name", "about", "include", "chosen_by", "systems", "seeds", *SHOWN),
        shows=DETECTORS,
    ),
)


def stage_of(notebook: str) -> Stage:
    """Return the stage with this notebook name or number.  raises : errors.InputError if there is none"""
    for stage in STAGES:
        if notebook in (stage.notebook, stage.notebook[:2]):
            return stage
    raise errors.InputError(
        f"unknown stage {notebook!r}; known: {', '.join(stage.notebook for stage in STAGES)}"
    )


OUTPUTS = {  # files that a stage writes outside its folder
    "08_tuning": ("tuned.toml",),
    "09_report": ("clips.parquet", "scores.parquet", "metrics.csv", "controls.csv"),
}


def jobs(run: Run, only: Sequence[str] = ()) -> list[tuple[Stage, int, str]]:
    """Return the jobs of a study in order, as (stage, seed, machine).

    only : names or numbers of stages; default: all that the study's systems need
    raises : errors.InputError if `only` names an unknown stage, or one that the systems do not need
    """
    chosen = [stage_of(name) for name in only]
    for stage in chosen:
        if not stage.serves(run.cfg.systems):
            wanted = ", ".join(
                system for system, name in SYSTEMS.items() if name in stage.detectors + stage.reads
            )
            raise errors.InputError(
                f"stage {stage.notebook} is for the systems {wanted}, but the study has"
                f" {', '.join(run.cfg.systems)}; add one of the former to the setting systems"
            )
    chosen = chosen or [stage for stage in STAGES if stage.serves(run.cfg.systems)]
    out = []
    for stage in (stage for stage in STAGES if stage in chosen):
        for seed in run.cfg.seeds if stage.per_seed else run.cfg.seeds[:1]:
            out += [(stage, seed, machine) for machine in (run.machines if stage.per_machine else [""])]
    return out


def code_cells(notebook: Path) -> str:
    """Return the digest of a notebook's code, independent of outputs, markdown and metadata."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()[:16]
