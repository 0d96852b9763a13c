"""What every detector is handed, and the pieces that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from asdlib import config
from asdlib.audio import Store

Scores = dict[tuple[str, str], np.ndarray]  # (system, component): one value per clip, higher = more anomalous

BATCH_SAMPLES = 4_000_000  # of waveform that become features at once: 16 MB, some 25 clips of 10 s


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
    blocks: dict[int, torch.Tensor] = {}
    for size in np.unique(samples):
        where = np.flatnonzero(samples == size)
        step = max(1, BATCH_SAMPLES // int(size))
        for start in range(0, len(where), step):
            part = where[start : start + step]
            made = feature(context.store.audio(rows[part], device=context.device))
            blocks.update(zip(part.tolist(), made))
    parts = [blocks[i] for i in range(len(rows))]
    return torch.cat(parts), [len(part) for part in parts]
