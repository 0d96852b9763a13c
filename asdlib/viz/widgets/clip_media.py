"""Clips as they are heard and seen beside a map: sounds with one gain per machine, so that levels can be
compared by ear, and pictures fast enough to follow a key.

Source: METHOD 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

import numpy as np
import torch

from asdlib import features
from asdlib.analysis import explain
from asdlib.data.store import Store
from asdlib.viz import audio, embedding_plots, tables

# of the pictures: fine enough to see, small enough to follow a key
N_FFT, HOP, MELS, LOW_HZ = 1024, 256, 96, 50.0
FLOOR_DB = 80.0  # below the loudest cell of a picture
FADE_DB = 50.0  # below it a phase is noise and fades
MOST_DB = 20.0  # ends of the scale of a difference
HEARD = 64  # clips, evenly spaced over a machine, that set its common gain


class ClipMedia:
    """Clips as they are heard and seen: one gain for all clips of a machine, log-mel, difference and
    phase.
    """

    def __init__(self, store: Store, rate: int):
        self.store, self.rate, self._gains = store, rate, {}

    def gain(self, machine: str) -> float:
        """The gain of a machine's clips, from some of them, with 6 dB to spare for louder ones."""
        if machine not in self._gains:
            rows = np.flatnonzero(self.store.clips["machine"] == machine)
            some = rows[:: max(len(rows) // HEARD, 1)]
            self._gains[machine] = 0.5 * audio.common_gain([self.store.int16(row) / 32768.0 for row in some])
        return self._gains[machine]

    def uri(self, row: int) -> str:
        """The clip for an <audio>; only a clip that would be cut off at full scale is made softer."""
        wave, gain = self.store.int16(row) / 32768.0, self.gain(self.store.clips["machine"].iloc[row])
        return audio.vorbis(wave, self.rate, min(gain, audio.PEAK / max(float(np.abs(wave).max()), 1e-9)))

    def log_mel(self, row: int) -> np.ndarray:
        """Log-mel of a clip, dB, (mels, frames)."""
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        return features.log_mel(wave, n_mels=MELS, hop=HOP, **self._bands())[0, 0].numpy()

    def _bands(self) -> dict:
        return {"n_fft": N_FFT, "low_hz": LOW_HZ, "high_hz": 0.4875 * self.rate, "rate": self.rate}

    def pictures(self, row: int, normal: int = -1) -> str:
        """Pictures of a clip as inline SVGs: log-mel, level above a normal clip, phase.

        normal : row of the clip to compare with, -1: none. The two are not aligned in time: the difference
            is to the mean level of each band of the normal clip
        """
        mel, hz = self.log_mel(row), features.band_hz(MELS, **self._bands())
        top, step = float(mel.max()), HOP / self.rate
        shown = embedding_plots.picture(
            explain.Map(mel, hz, step),
            title="log-mel",
            unit="dB",
            colors="magma",
            limits=(top - FLOOR_DB, top),
        )
        if normal >= 0:
            usual = 10 * np.log10(np.mean(10 ** (self.log_mel(normal) / 10), axis=1, keepdims=True))
            title = "level above the mean of its nearest normal clip; orange: louder, purple: softer"
            shown += embedding_plots.picture(
                explain.Map(mel - usual, hz, step),
                title=title,
                unit="dB",
                colors="PuOr_r",
                limits=(-MOST_DB, MOST_DB),
            )
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        if wave.shape[1] < N_FFT:
            return shown
        turn = features.phase(wave, representation="if", n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        loud = features.spectrogram(wave, n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        weight = 1 + 20 * np.log10(np.maximum(loud / max(float(loud.max()), 1e-12), 1e-9)) / FADE_DB
        phase = explain.Map(turn, np.arange(len(turn)) * self.rate / N_FFT, step)
        title = "phase: turn from frame to frame beyond that of the bin's center; faint where it is soft"
        phase = embedding_plots.picture(
            phase, title=title, unit="π rad", colors="twilight", limits=(-1.0, 1.0), weight=weight
        )
        return shown + tables.folded("Phase", phase)
