"""What every detector is handed, and the pieces that several of them share."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from asdlib import checks, config, training
from asdlib.audio import Store

Scores = dict[tuple[str, str], np.ndarray]  # (system, component): one value per clip, higher = more anomalous

BATCH_SAMPLES = 1_600_000  # of waveform that become features at once: 6 MB, ten clips of 10 s, some 50 MB of spectra


@dataclass(frozen=True)
class Context:
    """The study's settings and recordings, where to compute, and where checkpoints lie (None: none are kept)."""

    cfg: config.Study
    store: Store
    device: torch.device
    seed: int = 0
    folder: Path | None = None


def judged_as(clips: pd.DataFrame, train_rows: np.ndarray) -> tuple[np.ndarray, Callable[[pd.DataFrame], np.ndarray]]:
    """Which references a clip has: those of its machine, or of its section where sections are judged apart (`checks.by_references`).

    clips : clip table of the training clips' store.  train_rows : int (n,)
    returns : the group of each training clip, str (n,), and a function that names the groups of the clips of any clip table
    """
    train = checks.by_references(clips)["machine"].to_numpy()[train_rows]
    groups = set(train)

    def of(table: pd.DataFrame) -> np.ndarray:
        sections = (table["machine"] + "_" + table["section"]).to_numpy()
        return np.where(np.isin(sections, list(groups)), sections, table["machine"].to_numpy())

    return train, of


def clip_by_clip(scores: Callable[[object, np.ndarray], Scores]) -> Callable[[object, np.ndarray], Scores]:
    """A detector's `scores(rows)` that takes one clip after the other, on one thread.

    Matrix products and convolutions of another shape may differ in the last bit. One clip at a time, a clip has the same score
    to the bit whatever stands beside it: in its study, in a later `asd score`, alone or among others.
    """

    @functools.wraps(scores)
    def each(self, rows: np.ndarray) -> Scores:
        with training.one_thread():
            parts = [scores(self, rows[i : i + 1]) for i in range(len(rows))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    return each


def moved(detector, store: Store):
    """A copy of a trained detector that reads the clips of another store; what it has learnt is shared, not copied.

    Its `home` is the detector on the store it was trained on, whose training clips the other store lacks.
    """
    other = copy.copy(detector)
    other.home = detector
    other.context = dataclasses.replace(detector.context, store=store)
    return other


def frames_of(context: Context, rows: np.ndarray, feature: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """A frames-first feature of many clips of any lengths, end to end.

    feature : waveforms (n, samples) → (n, frames, bands)
    returns : float32 (frames of all clips, bands) on the device, and the frames of each clip
    """
    if len(rows) == 1:
        made = feature(context.store.audio(rows, device=context.device))[0]
        return made, [len(made)]
    samples = context.store.clips["samples"].to_numpy()[rows]
    sizes, which = np.unique(samples, return_inverse=True)
    shapes = [feature(torch.zeros(1, int(size), device=context.device)).shape[1:] for size in sizes]
    lengths = np.array([shape[0] for shape in shapes])[which]
    ends = np.cumsum(lengths)
    out = torch.empty(int(ends[-1]), shapes[0][1], device=context.device)  # one tensor, filled in place: no second copy
    for number, size in enumerate(sizes):
        where = np.flatnonzero(which == number)
        for part in np.array_split(where, math.ceil(len(where) * int(size) / BATCH_SAMPLES)):
            for clip, made in zip(part, feature(context.store.audio(rows[part], device=context.device))):
                out[ends[clip] - lengths[clip] : ends[clip]] = made
    return out, lengths.tolist()
