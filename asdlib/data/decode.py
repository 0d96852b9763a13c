"""Decoding of recordings to mono int16 samples, with reports of problems.

Conventions
-----------
A clip is mono int16 at the study's sample rate. `level_db` is the mean power of the raw clip in dB re full
scale (0 dB: full-scale square wave; floor -120 dB), before standardization.

Clips are left out if unreadable, truncated, empty, non-finite, longer than 33 million samples, of another
rate (unless data.resample), or without the selected channel. Reported but kept: a header that disagrees with
the file (`audio_headers`), clipping (runs of 3 or more full-scale samples), silence (-90 dB or less, the last
of 16 bits) and DC offset without sound, in the selected channel or in all, and duplicate audio (not silence).

Source: METHOD 3.2, 4.4. Notebook: 01_data
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
import torch
import torchaudio
from pydantic import SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from asdlib import errors, schemas
from asdlib.data import audio_headers, index
from asdlib.settings import Many, Settings, setting


class DataSettings(Settings):
    """Selection and decoding of recordings."""

    roots: Many[str] = setting(
        (), "folders with <machine>/train and <machine>/test; empty: generate the [synthetic] machines"
    )
    recorded: bool = setting(False, "require data roots instead of generating synthetic recordings")
    machines: Many[str] = setting((), "machines to use; empty: all found")
    sample_rate: int = setting(16000, "Hz (report 4.2)", 1000, 192000)
    resample: bool = setting(False, "resample clips of other rates on load; false: exclude and report them")
    channel: int = setting(0, "channel of a multi-channel recording (2026: near or far microphone)", 0, 63)
    subtract: int = setting(
        -1, "channel of a far microphone; what it shares with data.channel is subtracted; -1: none", -1, 63
    )
    supplemental: bool = setting(
        False,
        "add supplemental recordings (since 2025: machine without noise, noise without machine) to OEVAE's"
        " pseudo-anomalies; not used otherwise",
    )

    @model_serializer(mode="wrap")
    def _keys(self, plain: SerializerFunctionWrapHandler) -> dict:
        """Omit `supplemental` while it is off, so that digests of earlier results stay valid."""
        return {name: value for name, value in plain(self).items() if name != "supplemental" or value}

    @model_validator(mode="after")
    def _two_channels(self) -> DataSettings:
        if self.subtract == self.channel:
            raise errors.InputError(
                f"settings data.channel and data.subtract: both are {self.channel}, expected different"
                " channels"
            )
        return self

    @field_validator("roots")
    @classmethod
    def _whole_paths(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            if "\0" in root or not Path(root).is_absolute():
                raise errors.InputError(
                    f"setting data.roots: {root!r} is a relative path; use an absolute path, or --data-root"
                    " DIR on the command line"
                )
        return roots


SHORTEST_S = 0.15  # s; the autoencoder needs five frames
# over all channels, before and after resampling: 35 minutes at 16 kHz, below 1 GB
MOST_SAMPLES = 2**25
# resampling filter size: coprime rates need gigabytes (44101 to 16000 Hz: 12 GB)
MOST_TAPS = 2**24
FULL_SCALE = 32768
FLOOR_DB = -120.0
SILENT_DB = -90.0
CLIPPED_RUN = 3  # consecutive full-scale samples that count as clipping
COLUMNS = ("samples", "seconds", "level_db", "digest")


@dataclass(frozen=True)
class Decoded:
    """Decoded recording: samples int16 (n,), or why it is `refused`; `remarks` on usable clips."""

    samples: np.ndarray | None
    refused: str = ""
    remarks: tuple[str, ...] = ()
    level_db: float = math.nan
    digest: str = ""
    rate: int = 0  # Hz, original rate of the file


def decode(path: str | Path, data: DataSettings, span: tuple[int, int] | None = None) -> Decoded:
    """Decode a recording (any format of libsndfile) to mono int16 at data.sample_rate.

    span : (first sample, number of samples) to read, at the recording's own rate; None for all
    returns : Decoded; bad files raise no exception but set `refused`. Notebook: 01_data
    """
    try:
        samples, rate, remarks = _read(Path(path), data, span)
    except ValueError as error:
        return Decoded(None, refused=str(error))
    except (OSError, RuntimeError, MemoryError) as error:  # soundfile.LibsndfileError is a RuntimeError
        return Decoded(
            None, refused=f"unreadable ({reason(error)}), expected audio; copy or download it again"
        )
    cut = _clipped(samples)
    if cut:
        remarks.append(f"clipped ({cut} samples at full scale, in runs of {CLIPPED_RUN} or more)")
    return Decoded(samples, "", tuple(remarks), levels(samples)[0], sample_digest(samples), rate)


def sample_digest(samples: np.ndarray) -> str:
    """Digest of int16 samples (n,), 32 hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(samples).data, digest_size=16).hexdigest()


def reason(error: Exception) -> str:
    """Error message of a library or the system, without numbers and path."""
    return (
        str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error).strip().rstrip(".")
    )


def shape(path: str | Path, shortest_s: float = SHORTEST_S) -> tuple[int, int, int]:
    """Number of samples, rate in Hz and number of channels of a recording, without decoding it.

    shortest_s : minimum duration, s
    raises : ValueError for an unreadable, truncated or shorter file
    """
    try:
        with audio_headers.opened(Path(path)) as (file, remark):
            _check_length(file.frames, file.samplerate, shortest_s, remark)
            return file.frames, file.samplerate, file.channels
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"unreadable ({reason(error)}), expected audio; copy or download it again"
        ) from error


def _check_length(frames: int, rate: int, shortest_s: float, remark: str) -> None:
    why = f" ({remark})" if remark else ""
    if frames <= 0:
        raise ValueError(f"empty, no audio samples{why}; record or download it again")
    if frames < shortest_s * rate:
        raise ValueError(
            f"too short: {frames / rate:.3g} s, expected at least {shortest_s:g} s{why}; remove it or record"
            " longer clips"
        )


def _read(path: Path, data: DataSettings, span: tuple[int, int] | None) -> tuple[np.ndarray, int, list[str]]:
    """Mono int16 at the study's rate, original rate, and remarks.  Raises ValueError with the reason."""
    with audio_headers.opened(path) as (file, remark):
        first, frames = span or (0, file.frames)
        rate, channels = file.samplerate, file.channels
        exact = file.subtype == "PCM_16"
        _check_length(frames, rate, SHORTEST_S, remark)
        if rate != data.sample_rate and not data.resample:
            raise ValueError(
                f"{rate} Hz, expected {data.sample_rate} Hz; set data.resample = true to resample on load"
            )
        if max(frames * channels, frames * data.sample_rate / rate) > MOST_SAMPLES:
            raise ValueError(
                f"too long ({frames / rate:.0f} s of {channels} channels), expected at most {MOST_SAMPLES}"
                " samples; cut it into clips, for example by asd import --clip-seconds 10"
            )
        if (
            rate // math.gcd(rate, data.sample_rate) * (data.sample_rate // math.gcd(rate, data.sample_rate))
            > MOST_TAPS
        ):
            raise ValueError(
                f"{rate} Hz cannot be resampled to {data.sample_rate} Hz, the greatest common divisor of the"
                " rates is too small; convert the file"
            )
        for name in ("channel", "subtract"):
            if getattr(data, name) >= channels:
                raise ValueError(
                    f"channels 0 to {channels - 1} only, expected channel {getattr(data, name)}; set"
                    f" data.{name} below {channels}"
                )
        if first:
            file.seek(first)
        every = file.read(frames, dtype="int16" if exact else "float32", always_2d=True)
    if len(every) < frames:
        raise ValueError(f"truncated, {len(every)} of {frames} samples present; copy or download it again")
    wave = every[:, data.channel]
    if not exact and not np.isfinite(wave).all():
        raise ValueError(
            f"{int((~np.isfinite(wave)).sum())} samples are NaN or infinite, expected finite values; record"
            " or export it again"
        )
    # report the header once, with the first part
    remarks = [text for text in (remark if first == 0 else "", _dead(every, data.channel)) if text]
    if data.subtract >= 0:
        both = every[:, [data.channel, data.subtract]].T.astype(np.float32) / (FULL_SCALE if exact else 1)
        wave, exact = subtracted(*torch.from_numpy(both)).numpy(), False
    if exact and rate == data.sample_rate:
        return np.ascontiguousarray(wave), rate, remarks
    wave = wave.astype(np.float32) / FULL_SCALE if exact else wave
    if rate != data.sample_rate:
        wave = torchaudio.functional.resample(
            torch.from_numpy(np.ascontiguousarray(wave)), rate, data.sample_rate
        ).numpy()
    return np.clip(np.rint(wave * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16), rate, remarks


def subtracted(near: torch.Tensor, far: torch.Tensor, n_fft: int = 2048) -> torch.Tensor:
    """Near-microphone signal minus its estimate from the far microphone, by one transfer function per clip.

    H = Σ C·conj(F) / Σ |F|² and Y = C − H·F per frequency, from the spectra C of near and F of far.
    near, far : float32 (n,).  n_fft : window length in samples, longer than the transfer function
    returns : float32 (n,); near itself if far is silent. Source: METHOD 3.1
    """
    n_fft = min(n_fft, 2 ** (len(near).bit_length() - 1))
    how = {"n_fft": n_fft, "hop_length": n_fft // 4, "window": torch.hann_window(n_fft, dtype=torch.float64)}
    c, f = torch.stft(torch.stack([near, far]).double(), return_complex=True, **how)
    transfer = (c * f.conj()).sum(1, keepdim=True) / f.abs().square().sum(1, keepdim=True).clamp_min(1e-20)
    return torch.istft(c - transfer * f, length=len(near), **how).float()


def microphones(path: str | Path, data: DataSettings) -> dict[str, np.ndarray]:
    """Near and far microphone signals of a recording, and near with far subtracted.

    data : near is data.channel, far is data.subtract, or the first other channel if that is -1
    returns : float32 (n,) in [-1, 1) by "near", "far" and "near without far"; empty for a single-channel or
        unreadable recording. Notebook: 02_preprocessing
    """
    try:
        channels = shape(path)[2]
    except ValueError:
        return {}
    if channels == 1:
        return {}
    far = data.subtract if data.subtract >= 0 else int(data.channel == 0)
    heard = {"near": (data.channel, -1), "far": (far, -1), "near without far": (data.channel, far)}
    decoded = {
        name: decode(path, data.replace(channel=channel, subtract=subtract)).samples
        for name, (channel, subtract) in heard.items()
    }
    return {name: x.astype(np.float32) / FULL_SCALE for name, x in decoded.items() if x is not None}


def levels(wave: np.ndarray) -> tuple[float, float]:
    """Level of a channel with and without its mean, in dB re full scale; the floor for non-finite values.

    wave : (n,), int16 or float in [-1, 1]
    """
    full = FULL_SCALE if wave.dtype == np.int16 else 1.0
    with np.errstate(all="ignore"):
        power, mean = (
            float(np.mean(np.square(wave, dtype=np.float64))) / full**2,
            float(np.mean(wave, dtype=np.float64)) / full,
        )
    return tuple(
        max(FLOOR_DB, 10 * math.log10(value)) if 0 < value < math.inf else FLOOR_DB
        for value in (power, power - mean**2)
    )


def _dead(every: np.ndarray, channel: int) -> str:
    """Message for a selected channel without sound, naming the loudest channel; "" for one with sound.

    every : (n, channels)
    """
    wave = every[:, channel]
    if levels(wave[::16])[1] > SILENT_DB + 20:  # fast path for nearly all clips
        return ""
    level, sound = levels(wave)
    if sound > SILENT_DB:
        return ""
    what = (
        f"silent ({level:.0f} dB re full scale)"
        if level <= SILENT_DB
        else f"constant ({level:.0f} dB re full scale, no sound)"
    )
    others = [levels(other)[1] for other in every.T]
    best = int(np.argmax(others))
    if others[best] <= SILENT_DB:
        return what
    return (
        f"channel {channel} is {what}, channel {best} is not ({others[best]:.0f} dB): select it with"
        f" data.channel = {best} (asd import: --channel {best})"
    )


def _clipped(samples: np.ndarray) -> int:
    if samples.max() < FULL_SCALE - 1 and samples.min() > -FULL_SCALE:
        return 0
    total = 0
    for full in (samples == FULL_SCALE - 1, samples == -FULL_SCALE):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], full.view(np.int8), [0]))))
        runs = edges[1::2] - edges[::2]
        total += int(runs[runs >= CLIPPED_RUN].sum())
    return total


def _decode_all(
    table: pd.DataFrame, decoder: Callable[[str], Decoded], threads: int | None
) -> Iterator[Decoded]:
    """Decoded clips in table order, with a bounded number decoded ahead to limit memory."""
    threads = threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque = collections.deque()
        for path in table["path"]:
            waiting.append(pool.submit(decoder, path))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def inspect(
    table: pd.DataFrame,
    problems: pd.DataFrame,
    data: DataSettings,
    threads: int | None = None,
    keep: Callable[[np.ndarray], object] = lambda samples: None,
    decoder: Callable[[str], Decoded] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every clip of a table and collect facts and problems.

    keep : called with the int16 samples (n,) of every usable clip, in order
    threads : number of decoder threads; None for one per core.  decoder : None for `decode`
    returns : (usable clips with samples, seconds, level_db and digest; problems, new ones appended).
        Notebook: 01_data
    """
    table = schemas.clip_table(table).drop(columns=list(COLUMNS), errors="ignore")
    found, usable, facts = [], [], []
    first: dict[str, tuple[str, str]] = {}  # digest -> (clip, split) of its first occurrence
    for clip, path, split, decoded in zip(
        table["clip"],
        table["path"],
        table["split"],
        _decode_all(table, decoder or (lambda path: decode(path, data)), threads),
        strict=True,
    ):
        usable.append(decoded.samples is not None)
        if decoded.samples is None:
            found.append((path, decoded.refused, True))
            continue
        keep(decoded.samples)
        facts.append(
            (len(decoded.samples), len(decoded.samples) / data.sample_rate, decoded.level_db, decoded.digest)
        )
        found += [(path, f"{remark}; used as is", False) for remark in decoded.remarks]
        other, other_split = first.setdefault(decoded.digest, (clip, split))
        if other != clip and decoded.level_db > SILENT_DB:
            overlap = " (one in train, one in test)" if other_split != split else ""
            found.append((path, f"same audio as {other}{overlap}; both are used, remove one", False))
    decoded_table = table[usable].reset_index(drop=True)
    for place, name in enumerate(COLUMNS):
        decoded_table[name] = pd.Series(
            [row[place] for row in facts], dtype=("int64", "float64", "float64", "str")[place]
        )
    return decoded_table, pd.concat([problems, index.problem_table(found)], ignore_index=True)
