"""What every detector is handed, and the pieces that several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asdlib import config
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


def frames_of(context: Context, rows: np.ndarray, feature: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, list[int]]:
    """A frames-first feature of many clips of any lengths, end to end.

    feature : waveforms (n, samples) → (n, frames, bands)
    returns : float32 (frames of all clips, bands) on the device, and the frames of each clip
    """
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
