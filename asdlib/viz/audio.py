"""Playback of clips: encoding as OGG Vorbis for embedding in pages, and a common gain for several clips.

Conventions
-----------
Waveforms are int16, or float with full scale 1. Clips shown together have one common gain, so that their
levels can be compared. 10 s take about 46 kB, a tenth of a WAV file.
Source: METHOD 8.4. Notebooks: 01_data, 06_embeddings, 09_report.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import soundfile

PEAK, MAX_GAIN = 0.9, 100.0  # full scale 1; 40 dB
BLOCK = 65536  # samples per write: the Vorbis encoder keeps a block on its stack


def common_gain(waves: Sequence[np.ndarray]) -> float:
    """Return the factor that scales the loudest of these clips to a peak of 0.9, at most 40 dB.

    waves : float (samples,) each, full scale 1
    """
    loudest = max((float(np.abs(wave).max()) for wave in waves if len(wave)), default=0.0)
    return min(PEAK / loudest, MAX_GAIN) if loudest > 0 else 1.0


def vorbis(samples: np.ndarray, sample_rate: int, gain: float) -> str:
    """Return a clip as a data URI for an <audio> element.

    samples : int16, or float with full scale 1, (n,).  gain : factor, see `common_gain`
    """
    wave = samples / 32768.0 if np.issubdtype(samples.dtype, np.integer) else samples
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", sample_rate, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(wave), BLOCK):
            file.write(np.clip(gain * wave[start : start + BLOCK], -1, 1))
    return f"data:audio/ogg;base64,{base64.b64encode(out.getvalue()).decode()}"
