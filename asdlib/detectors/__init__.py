"""Detectors: a network or a feature, its training and its back-ends, as one thing that scores clips.

Every detector answers to one interface and stands in the dict at the foot of this module:

    detector = DETECTORS[name](context)
    detector.fit(train_rows)                    # rows of normal training clips in the store
    detector.embed(rows)                        # float32 (items, dim) and the position in `rows` of each item
    detector.scores(rows)                       # {(system, component): float64 (len(rows),)}; without "score" where fusion makes it
    detector.training_scores()                  # the same for the training clips, leave-clip-out
    detector.save(folder), detector.load(folder, train_rows)
    detector.on(store)                          # the same, for the clips of another store

`detect` runs one on one machine and returns the score table. Notebooks: 03_baseline, 04_classifier, 05_oevae.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from asdlib import checks
from asdlib.audio import Store
from asdlib.detectors.baseline import AutoencoderBaseline, NearestNeighbour
from asdlib.detectors.classifier import ClassifierDetector
from asdlib.detectors.context import Context, Scores
from asdlib.detectors.oevae import OEVAEDetector


class Detector(Protocol):
    """What every detector answers to."""

    history: pd.DataFrame

    def __init__(self, context: Context): ...
    def fit(self, train_rows: np.ndarray) -> None:
        """Train on normal training clips, int (clips,) rows of the store."""
        ...
    def embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (items, dim), and int (items,): position in `rows`."""
        ...
    def scores(self, rows: np.ndarray) -> Scores:
        """float64 (clips,) per (system, component), of clips that are not training clips; one clip moves no other."""
        ...
    def training_scores(self) -> Scores:
        """The same of the training clips, leave-clip-out."""
        ...
    def save(self, folder: Path) -> None:
        """Write all that `load` needs into a folder."""
        ...
    def load(self, folder: Path, train_rows: np.ndarray) -> None:
        """Read what `save` wrote; checks.Refusal for a torn or foreign file."""
        ...
    def on(self, store: Store) -> Detector:
        """The same detector for the clips of another store."""
        ...


def machine_rows(clips: pd.DataFrame, machine: str, split: str) -> np.ndarray:
    """Store rows of a machine's training or test clips; training rows are normal ones only.

    returns : int (clips,), rising
    """
    keep = (clips["machine"] == machine) & (clips["split"] == split)
    if split == "train":
        keep &= clips["label"] == "normal"
    return np.flatnonzero(keep)


def training_rows(clips: pd.DataFrame, machine: str) -> np.ndarray:
    """Store rows of a machine's normal training clips; a machine without one is refused.

    returns : int (clips,), rising.  raises : checks.Refusal
    """
    rows = machine_rows(clips, machine, "train")
    if len(rows) == 0:
        raise checks.Refusal(f"machine {machine} has no usable training clip; add recordings or leave it out with --machines")
    return rows


def score_table(clips: pd.DataFrame, rows: np.ndarray, scores: Scores, seed: int) -> pd.DataFrame:
    """Scores of the clips at `rows` as a score table (checks.SCORE_COLUMNS).

    rows : int (clips,).  scores : (system, component) -> float (clips,).  raises : checks.Refusal for scores that are not finite
    """
    facts = clips.iloc[rows][["machine", "section", "split", "domain", "label", "clip"]]
    parts = [facts.assign(system=system, component=component, score=values, seed=seed) for (system, component), values in scores.items()]
    return checks.score_table(pd.concat(parts, ignore_index=True)[list(checks.SCORE_COLUMNS)])


def detect(detector: Detector, context: Context, machines: Sequence[str]) -> pd.DataFrame:
    """Fit a detector on the training clips of the machines (one, or all that share a network) and score all their clips.

    returns : score table; test rows as a clip alone would be scored, train rows leave-clip-out
    raises : checks.Refusal for a machine without training clips
    """
    clips = context.store.clips
    train = np.concatenate([training_rows(clips, machine) for machine in machines])
    test = np.concatenate([machine_rows(clips, machine, "test") for machine in machines])
    detector.fit(train)
    tables = [score_table(clips, train, detector.training_scores(), context.seed)]
    if len(test):
        tables.append(score_table(clips, test, detector.scores(test), context.seed))
    return pd.concat(tables, ignore_index=True)


DETECTORS: dict[str, type[Detector]] = {
    "baseline_knn": NearestNeighbour, "autoencoder": AutoencoderBaseline, "oevae": OEVAEDetector, "classifier": ClassifierDetector,
}  # fmt: skip
SYSTEMS = {  # system: its detector
    "baseline_knn": "baseline_knn", "baseline_mse": "autoencoder", "baseline_mahala": "autoencoder",
    "oevae": "oevae", "classifier": "classifier",
}  # fmt: skip
