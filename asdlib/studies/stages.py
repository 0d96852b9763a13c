"""The notebooks of the series as stages: how often each runs, what shapes what it writes, what it trains and reads.

A stage runs once, once per seed, or once per machine, or both; its settings sections enter its digest. `STAGES` stands in the order of the
notebooks, and a study runs those that serve one of its systems.
Sources: METHOD 8.2, 8.3. Notebooks: all (through `study`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asdlib import errors
from asdlib.detectors import SYSTEMS


@dataclass(frozen=True)
class Stage:
    """One notebook of the series: how often it runs, and the settings that shape what it writes."""

    notebook: str
    per_machine: bool
    per_seed: bool
    sections: tuple[str, ...]  # of the settings
    detectors: tuple[str, ...] = ()  # that it trains
    reads: tuple[str, ...] = ()  # detectors of earlier stages that it is of no use without
    shows: tuple[str, ...] = ()  # others that it reads where the study has them

    def serves(self, systems: Sequence[str]) -> bool:
        """Whether a study of these systems has a use for the stage."""
        for system in systems:
            errors.known_name("system", system, list(SYSTEMS))
        about = self.detectors + self.reads
        return not about or any(SYSTEMS[system] in about for system in systems)


STAGES = (
    Stage("01_data", False, False, ("report", "oevae")),
    Stage("02_preprocessing", False, False, ("report", "oevae")),
    Stage("03_baseline", True, True, ("baseline_knn", "autoencoder", "metrics"), ("baseline_knn", "autoencoder")),
    Stage("04_classifier", False, True, ("classifier", "metrics"), ("classifier",)),
    Stage("05_oevae", True, True, ("oevae", "fusion", "metrics"), ("oevae",)),
    Stage("06_embeddings", False, True,
          ("systems", "baseline_knn", "autoencoder", "oevae", "classifier", "fusion", "metrics", "maps", "report"),
          reads=("oevae", "classifier"), shows=("baseline_knn", "autoencoder")),
    Stage("07_latents", False, True, ("oevae",), reads=("oevae",)),
    Stage("08_tuning", False, False, ("systems", "seeds", "oevae", "classifier", "fusion", "metrics"), reads=("oevae",), shows=("classifier",)),
    Stage("09_report", False, False,
          ("name", "about", "include", "systems", "seeds", "baseline_knn", "autoencoder", "oevae", "classifier", "fusion", "metrics", "report"),
          shows=("baseline_knn", "autoencoder", "oevae", "classifier")),
)


def stage_of(notebook: str) -> Stage:
    """The stage of a notebook's name or number.  raises : errors.Refusal for an unknown one"""
    for stage in STAGES:
        if notebook in (stage.notebook, stage.notebook[:2]):
            return stage
    raise errors.Refusal(f"unknown stage {notebook!r}; known: {', '.join(stage.notebook for stage in STAGES)}")
