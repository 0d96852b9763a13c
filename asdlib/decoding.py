"""From a recording to mono int16 samples, and what is wrong with it in words.

Conventions
-----------
A clip is mono int16 at the study's sample rate. `level_db` is the mean power of the raw clip in dB re full scale (a
full-scale square wave has 0 dB, floor -120 dB), before any standardisation.

What leaves a clip out: unreadable or truncated files, no sample, NaN or infinite samples, more than 33 million samples, another
rate (unless data.resample), a missing channel. What is reported and kept: clipping (runs of 3 or more samples at full scale),
silence (-90 dB or less, the last bit of 16), audio that repeats another clip's (silent ones excepted).

Source: SYSTEM 2; FACTS E4. Notebook: 01_data
"""

from __future__ import annotations

import collections
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
import torchaudio

from asdlib import checks, clips
from asdlib.config import Data

SHORTEST_S = 0.15  # s; below, five frames of the autoencoder do not fit
MOST_SAMPLES = 2**25  # of all channels, before and after resampling: 35 minutes at 16 kHz, decoded in less than 1 GB
MOST_TAPS = 2**24  # of a resampler's filters: rates without a common divisor take gigabytes (44101 to 16000 Hz: 12 GB)
MOST_CHUNKS = 1000  # before the audio of a RIFF file
FULL_SCALE = 32768
FLOOR_DB = -120.0
SILENT_DB = -90.0
CLIPPED_RUN = 3  # samples; a single sample at full scale is a loud moment, three in a row are a cut top
COLUMNS = ("samples", "seconds", "level_db", "digest")


@dataclass(frozen=True)
class Decoded:
    """One recording: samples int16 (n,), or why there are none (`refused`); `remarks` are problems of a clip that is kept."""

    samples: np.ndarray | None
    refused: str = ""
    remarks: tuple[str, ...] = ()
    level_db: float = math.nan
    digest: str = ""


def decode(path: str | Path, data: Data, span: tuple[int, int] | None = None) -> Decoded:
    """One recording (WAV, FLAC or what else libsndfile reads; any bits and channels) as mono int16 at data.sample_rate.

    span : first sample and number of samples of a part, at the recording's own rate; none: all of it
    returns : Decoded; no exception for bad files, their problem is worded in `refused`. Notebook: 01_data
    """
    try:
        samples = _read(Path(path), data, span)
    except ValueError as error:
        return Decoded(None, refused=str(error))
    except (OSError, RuntimeError, MemoryError) as error:  # soundfile.LibsndfileError is a RuntimeError
        return Decoded(None, refused=f"unreadable ({reason(error)}), expected audio; copy or download it again")
    power = float(np.mean(np.square(samples, dtype=np.float64))) / FULL_SCALE**2
    level = max(FLOOR_DB, 10 * math.log10(power)) if power > 0 else FLOOR_DB
    remarks = [f"silent ({level:.0f} dB re full scale)"] if level <= SILENT_DB else []
    cut = _clipped(samples)
    if cut:
        remarks.append(f"clipped ({cut} samples at full scale, in runs of {CLIPPED_RUN} or more)")
    return Decoded(samples, "", tuple(remarks), level, sample_digest(samples))


def sample_digest(samples: np.ndarray) -> str:
    """Digest of int16 samples: equal audio, equal digest.  samples : int16 (n,).  returns : hexadecimal, 32 digits"""
    return hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).hexdigest()


def reason(error: Exception) -> str:
    """What a library or the system says went wrong, without numbers and path."""
    return str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).strip().rstrip(".")


def _read(path: Path, data: Data, span: tuple[int, int] | None) -> np.ndarray:
    size = path.stat().st_size
    if size == 0:
        raise ValueError("empty file, expected audio; record or download it again")
    if path.suffix.lower() == ".wav":
        _check_length(path, size)
    with soundfile.SoundFile(str(path)) as file:
        first, frames = span or (0, file.frames)
        rate, channels = file.samplerate, file.channels
        exact = file.subtype == "PCM_16"
        if frames <= 0:
            raise ValueError("empty, no sample in it; record or download it again")
        if frames < SHORTEST_S * rate:
            raise ValueError(f"too short ({frames / rate:.3g} s), expected at least {SHORTEST_S} s; leave it out or record longer clips")
        if rate != data.sample_rate and not data.resample:
            raise ValueError(f"{rate} Hz, expected {data.sample_rate} Hz; set data.resample = true to resample on load")
        if max(frames * channels, frames * data.sample_rate / rate) > MOST_SAMPLES:
            raise ValueError(f"too long ({frames / rate:.0f} s of {channels} channels), expected at most {MOST_SAMPLES} samples; cut it into clips")
        if rate // math.gcd(rate, data.sample_rate) * (data.sample_rate // math.gcd(rate, data.sample_rate)) > MOST_TAPS:
            raise ValueError(f"{rate} Hz cannot be resampled to {data.sample_rate} Hz, the rates have too little in common; convert the file")
        if data.channel >= channels:
            raise ValueError(f"channels 0 to {channels - 1} only, expected channel {data.channel}; set data.channel below {channels}")
        file.seek(first)
        wave = file.read(frames, dtype="int16" if exact else "float32", always_2d=True)[:, data.channel]
    if len(wave) < frames:
        raise ValueError(f"truncated, {len(wave)} of {frames} samples are there; copy or download it again")
    if exact and rate == data.sample_rate:
        return np.ascontiguousarray(wave)
    wave = wave.astype(np.float32) / FULL_SCALE if exact else wave
    if not np.isfinite(wave).all():
        raise ValueError(f"{int((~np.isfinite(wave)).sum())} samples are NaN or infinite, expected finite ones; record or export it again")
    if rate != data.sample_rate:
        wave = torchaudio.functional.resample(torch.from_numpy(np.ascontiguousarray(wave)), rate, data.sample_rate).numpy()
    return np.clip(np.rint(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def _check_length(path: Path, size: int) -> None:
    """A RIFF file must hold the data its header announces; libsndfile would silently shorten it."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return
        file.seek(12)
        for _ in range(MOST_CHUNKS):
            if len(head := file.read(8)) < 8:
                return
            length, start = int.from_bytes(head[4:], "little"), file.tell()
            if head[:4] == b"data":
                if start + length > size and length < 0xFFFFFF00:  # writers that stream put the largest number there
                    raise ValueError(f"truncated, {size - start} of {length} bytes of audio are there; copy or download it again")
                return
            file.seek(start + length + length % 2)
    raise ValueError(f"no audio in its first {MOST_CHUNKS} parts, expected one called data; copy or download it again")


def _clipped(samples: np.ndarray) -> int:
    if samples.max() < FULL_SCALE - 1 and samples.min() > -FULL_SCALE:
        return 0
    total = 0
    for full in (samples == FULL_SCALE - 1, samples == -FULL_SCALE):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], full.view(np.int8), [0]))))
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= CLIPPED_RUN].sum())
    return total


def _decode_all(table: pd.DataFrame, data: Data, threads: int | None) -> Iterator[Decoded]:
    """Decoded clips in the order of the table, a few ahead at any time, so that memory stays small."""
    threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for path in table["path"]:
            waiting.append(pool.submit(decode, path, data))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def inspect(
    table: pd.DataFrame,
    problems: pd.DataFrame,
    data: Data,
    threads: int | None = None,
    keep: Callable[[np.ndarray], object] = lambda samples: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every clip of a table once: what it is, and what is wrong with it.

    keep : called with the samples of every usable clip, in order
    returns : (usable clips with samples, seconds, level_db and digest; problems, the new ones after the old)
    Notebook: 01_data
    keep takes int16 (n,); threads: as many as cores
    """
    table = checks.clip_table(table).drop(columns=list(COLUMNS), errors="ignore")
    found, usable, facts = [], [], []
    first: dict[str, tuple[str, str]] = {}  # digest -> (clip, split) of its first appearance
    for clip, path, split, decoded in zip(table["clip"], table["path"], table["split"], _decode_all(table, data, threads), strict=True):
        usable.append(decoded.samples is not None)
        if decoded.samples is None:
            found.append((path, decoded.refused, True))
            continue
        keep(decoded.samples)
        facts.append((len(decoded.samples), len(decoded.samples) / data.sample_rate, decoded.level_db, decoded.digest))
        found += [(path, f"{remark}; it is used as it is", False) for remark in decoded.remarks]
        other, other_split = first.setdefault(decoded.digest, (clip, split))
        if other != clip and decoded.level_db > SILENT_DB:
            overlap = ", one in training and one in the test" if other_split != split else ""
            found.append((path, f"same audio as {other}{overlap}; both are used, remove one", False))
    decoded_table = table[usable].reset_index(drop=True)
    for place, name in enumerate(COLUMNS):
        decoded_table[name] = pd.Series([row[place] for row in facts], dtype=("int64", "float64", "float64", "str")[place])
    return decoded_table, pd.concat([problems, clips.problem_table(found)], ignore_index=True)
