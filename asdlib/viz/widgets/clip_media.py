"""Audio and pictures of clips next to a map: one gain per machine, so that levels can be compared by ear.

Source: METHOD 8.5.  Notebook: 06_embeddings
"""

from __future__ import annotations

import numpy as np
import torch

from asdlib import features
from asdlib.analysis import explain
from asdlib.data.store import Store
from asdlib.viz import audio, embedding_plots, tables

# of the pictures: a resolution that is drawn fast enough to step through clips
N_FFT, HOP, MELS, LOW_HZ = 1024, 256, 96, 50.0
FLOOR_DB = 80.0  # dynamic range of a picture
FADE_DB = 50.0  # dynamic range within which the phase fades out
MAX_DB = 20.0  # limits of the scale of a difference
GAIN_CLIPS = 64  # evenly spaced clips of a machine from which the common gain is computed


class ClipMedia:
    """Audio and pictures of clips: one gain for all clips of a machine; log-mel, difference and phase."""

    def __init__(self, store: Store, rate: int):
        self.store, self.rate, self._gains = store, rate, {}

    def gain(self, machine: str) -> float:
        """Return the gain of a machine's clips, computed from some of them, with 6 dB of headroom."""
        if machine not in self._gains:
            rows = np.flatnonzero(self.store.clips["machine"] == machine)
            some = rows[:: max(len(rows) // GAIN_CLIPS, 1)]
            self._gains[machine] = 0.5 * audio.common_gain([self.store.int16(row) / 32768.0 for row in some])
        return self._gains[machine]

    def uri(self, row: int) -> str:
        """Return the clip as a data URI; the gain is reduced only for clips that would be clipped."""
        wave, gain = self.store.int16(row) / 32768.0, self.gain(self.store.clips["machine"].iloc[row])
        return audio.vorbis(wave, self.rate, min(gain, audio.PEAK / max(float(np.abs(wave).max()), 1e-9)))

    def log_mel(self, row: int) -> np.ndarray:
        """Return the log-mel of a clip, dB, (mels, frames)."""
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        return features.log_mel(wave, n_mels=MELS, hop=HOP, **self._bands())[0, 0].numpy()

    def _bands(self) -> dict:
        return {"n_fft": N_FFT, "low_hz": LOW_HZ, "high_hz": 0.4875 * self.rate, "rate": self.rate}

    def pictures(self, row: int, normal: int = -1) -> str:
        """Return pictures of a clip as inline SVGs: log-mel, level relative to a normal clip, phase.

        normal : row of the clip to compare with, -1: none. The clips are not aligned in time, so each band is
            compared with its mean level in the normal clip
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
            title = "level relative to the mean of the nearest normal clip; orange: louder, purple: softer"
            shown += embedding_plots.picture(
                explain.Map(mel - usual, hz, step),
                title=title,
                unit="dB",
                colors="PuOr_r",
                limits=(-MAX_DB, MAX_DB),
            )
        wave = torch.from_numpy(self.store.int16(row) / np.float32(32768))[None]
        if wave.shape[1] < N_FFT:
            return shown
        advance = features.phase(wave, representation="if", n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        loud = features.spectrogram(wave, n_fft=N_FFT, hop=HOP)[0, 0].numpy()
        weight = 1 + 20 * np.log10(np.maximum(loud / max(float(loud.max()), 1e-12), 1e-9)) / FADE_DB
        phase = explain.Map(advance, np.arange(len(advance)) * self.rate / N_FFT, step)
        title = "phase: advance per frame relative to the bin's center frequency; faint at low level"
        phase = embedding_plots.picture(
            phase, title=title, unit="π rad", colors="twilight", limits=(-1.0, 1.0), weight=weight
        )
        return shown + tables.folded("Phase", phase)
