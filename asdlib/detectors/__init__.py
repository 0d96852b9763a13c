"""Detectors: a network or a feature, its training and its back-ends, as one thing that scores clips; `base` says what each answers to.

`detect` fits one to the training clips of some machines and scores all their clips. Notebooks: 03_baseline, 04_classifier, 05_oevae.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from asdlib.data.store import Clips, Store
from asdlib.detectors.autoencoder import Autoencoder, NearestNeighbor
from asdlib.detectors.base import Detector, machine_rows, score_table, training_rows
from asdlib.detectors.classifier import Classifier
from asdlib.detectors.oevae import OEVAE


def training_clips(store: Store, machines: Sequence[str]) -> tuple[Clips, Clips]:
    """Normal training clips of some machines, and those of all other machines of the store.

    raises : errors.Refusal for a machine without training clips
    """
    own = np.concatenate([training_rows(store.clips, machine) for machine in machines])
    normal = (store.clips["split"] == "train") & (store.clips["label"] == "normal")
    return Clips(store, own), Clips(store, np.flatnonzero(normal & ~store.clips["machine"].isin(machines)))


def detect(detector: Detector, store: Store, machines: Sequence[str]) -> pd.DataFrame:
    """Fit a detector to the training clips of the machines (one, or all that share a network) and score all their clips.

    returns : score table of the components; test rows as a clip alone would be scored, train rows leave-clip-out
    raises : errors.Refusal for a machine without training clips
    """
    test = np.concatenate([machine_rows(store.clips, machine, "test") for machine in machines])
    tables = [detector.fit(*training_clips(store, machines)).training_table_]
    if len(test):
        tables.append(score_table(store.clips, test, detector.components(Clips(store, test)), detector.seed))
    return pd.concat(tables, ignore_index=True)


DETECTORS: dict[str, type[Detector]] = {detector.name: detector for detector in (NearestNeighbor, Autoencoder, OEVAE, Classifier)}
SYSTEMS = {system: detector.name for detector in DETECTORS.values() for system in detector.systems}  # system: its detector
