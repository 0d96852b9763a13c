"""Input features of the models, computed from waveforms.

A batch of waveforms float32 (n, samples) is transformed to float32 features on the device of the batch
(`log_mel` and `modulation_spectrum` keep float64 inputs in float64):

| function              | shape                          | unit                              | used by     |
|-----------------------|--------------------------------|-----------------------------------|-------------|
| `log_mel`             | (n, 1, mels, frames)           | dB, 10·log10 of mel power         | OEVAE, kNN  |
| `modulation_spectrum` | (n, groups · bins)             | dB, 10·log10 of dB² per frame     | multires    |
| `baseline_mel`        | (n, frames, mels), frame-major | dB, as in the official code       | autoencoder |
| `spectrum`            | (n, 1, samples // 2)           | linear magnitude                  | classifier  |
| `spectrogram`         | (n, 1, bins, frames)           | linear or mel magnitude           | classifier  |
| `phase`               | (n, 1 or 2, bins, frames)      | see `PHASE`                       | classifier  |

Filter banks and windows are cached. Sources: report 4.2; METHOD 3.2, 5.2, 5.3, 6.1, 7.5.
Notebook: 02_preprocessing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torchaudio

from asdlib import errors, schemas

SAMPLE_RATE = 16000
CHUNK = 2**17  # samples per block on a CPU: spectra of 1 MB fit into a core's cache, twice as fast
POWER_FLOOR = 1e-10  # -100 dB: below the noise of 16-bit sound after standardization


@functools.lru_cache(maxsize=32)
def _mel_bank(
    n_fft: int, n_mels: int, low_hz: float, high_hz: float, rate: int, slaney: bool, device: torch.device
) -> torch.Tensor:
    scale, norm = ("slaney", "slaney") if slaney else ("htk", None)
    bank = torchaudio.functional.melscale_fbanks(n_fft // 2 + 1, low_hz, high_hz, n_mels, rate, norm, scale)
    return bank.to(device)  # (bins, mels)


@functools.lru_cache(maxsize=32)
def _fine_mel_bank(
    n_fft: int, n_mels: int, low_hz: float, high_hz: float, rate: int, device: torch.device
) -> torch.Tensor:
    """HTK filter bank of `_mel_bank` computed in float64 (torchaudio uses float32), (mels, bins)."""
    low, high = (math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    left, middle, right = (
        700 * (10 ** np.linspace(low, high, n_mels + 2)[i : n_mels + i, None] - 1) for i in range(3)
    )
    hz = np.arange(n_fft // 2 + 1) * rate / n_fft
    made = np.minimum((hz - left) / (middle - left), (right - hz) / (right - middle))
    return torch.from_numpy(np.maximum(made, 0.0)).to(device)


def band_hz(
    n_mels: int, *, n_fft: int, low_hz: float, high_hz: float, rate: int = SAMPLE_RATE, slaney: bool = False
) -> np.ndarray:
    """Centroid of each mel band in Hz, float64 (n_mels,), ascending; for the axes of figures.

    slaney : use the filter bank of `baseline_mel`
    """
    bank = _mel_bank(n_fft, n_mels, low_hz, high_hz, rate, slaney, torch.device("cpu")).double().numpy()
    return (np.arange(len(bank)) * rate / n_fft) @ bank / np.maximum(bank.sum(0), 1e-12)


@functools.lru_cache(maxsize=32)
def _window(length: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.hann_window(length, device=device, dtype=dtype)


def _stft(
    wave: torch.Tensor, n_fft: int, hop: int, win: int, center: bool, pad_mode: str = "reflect"
) -> torch.Tensor:
    """Complex STFT (n, bins, frames) with a Hann window of `win` samples, zero-padded to n_fft."""
    if not center and wave.shape[1] < n_fft:
        raise errors.InputError(
            f"waveforms have {wave.shape[1]} samples, expected at least n_fft = {n_fft}; use longer clips or"
            " a smaller n_fft"
        )
    return torch.stft(
        wave,
        n_fft,
        hop,
        win,
        _window(win, wave.device, wave.dtype),
        center=center,
        pad_mode=pad_mode,
        return_complex=True,
    )


def _power(spec: torch.Tensor) -> torch.Tensor:
    return spec.real.square() + spec.imag.square()


def _in_pieces(wave: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """make(wave), computed in blocks of a few waveforms on a CPU."""
    if wave.is_cuda or wave.numel() <= CHUNK:
        return make(wave)
    return torch.cat([make(part) for part in wave.split(max(1, CHUNK // wave.shape[1]))])


def log_mel(
    wave: torch.Tensor,
    *,
    n_fft: int = 1024,
    win: int = 1024,
    hop: int = 256,
    n_mels: int = 224,
    low_hz: float = 50.0,
    high_hz: float = 7800.0,
    rate: int = SAMPLE_RATE,
) -> torch.Tensor:
    """Log-mel spectrogram in dB with centered frames; 224 x 126 for 2 s at the defaults.

    wave : float32 or float64 (n, samples)
    n_fft, win, hop : samples (64 ms and 16 ms at 16 kHz; n_fft 2048 gives a full-rank filter bank)
    returns : dtype of `wave`, (n, 1, n_mels, 1 + samples // hop), >= -100 dB.  Source: report 4.2; METHOD
        4.10.
        Notebook: 02_preprocessing
    """
    schemas.waves(wave)
    if wave.dtype == torch.float64:
        bank = _fine_mel_bank(n_fft, n_mels, low_hz, high_hz, rate, wave.device)
    else:
        bank = _mel_bank(n_fft, n_mels, low_hz, high_hz, rate, False, wave.device).T
    mel = _in_pieces(wave, lambda part: bank @ _power(_stft(part, n_fft, hop, win, center=True)))
    return mel.clamp_min_(POWER_FLOOR).log10_().mul_(10.0).unsqueeze(1)


SLOWEST_HZ = 0.5  # lowest modulation: one period in 2 s
LINES = 4  # minimum number of FFT lines in the narrowest bin of `modulation_spectrum`


def modulation_spectrum(
    mel: torch.Tensor, *, frame_hz: float, groups: int = 8, bins: int = 14, low_hz: float = SLOWEST_HZ
) -> torch.Tensor:
    """Modulation spectrum: log power spectrum over time of the level of groups of mel bands.

    The mean level is subtracted, and the course zero-padded until every bin holds at least four FFT lines, so
    that clips of any length have the same bins.
    mel : dB, float (n, mels, frames).  frame_hz : frames per second
    groups : number of groups of neighboring bands of nearly equal size, averaged in dB; at most mels
    bins : geometric bins between low_hz and frame_hz / 2, each the mean over its lines of |FFT|² / frames
    returns : dB, dtype of `mel`, (n, groups · bins), group by group, slow to fast; >= -100 dB
    raises : errors.InputError for more groups than bands, or a frame rate too low for low_hz
    Source: METHOD 3.6.  Notebook: 03_baseline
    """
    n, n_mels, frames = mel.shape
    if not 1 <= groups <= n_mels:
        raise errors.InputError(f"got {groups} groups for {n_mels} mel bands, expected 1 to {n_mels} groups")
    if frame_hz / 2 <= low_hz:
        raise errors.InputError(
            f"frame rate is {frame_hz:g} Hz, expected more than {2 * low_hz:g} Hz to resolve modulations of"
            f" {low_hz:g} Hz; use a smaller n_fft"
        )
    edges = np.geomspace(low_hz, frame_hz / 2, bins + 1)
    length = 1 << (max(frames, math.ceil(LINES * frame_hz / (edges[1] - edges[0]))) - 1).bit_length()
    ends = np.ceil(edges * length / frame_hz).astype(int)
    ends[-1] = length // 2 + 1
    level = torch.stack([part.mean(1) for part in mel.tensor_split(groups, dim=1)], dim=1)
    power = _power(torch.fft.rfft(level - level.mean(2, keepdim=True), length)) / frames
    parts = power[..., ends[0] : ends[-1]].split(np.diff(ends).tolist(), dim=2)
    found = torch.stack([part.mean(2) for part in parts], dim=2)
    return found.clamp_min_(POWER_FLOOR).log10_().mul_(10.0).reshape(n, groups * bins)


def baseline_mel(
    wave: torch.Tensor, *, n_fft: int = 1024, hop: int = 512, n_mels: int = 128, rate: int = SAMPLE_RATE
) -> torch.Tensor:
    """Log-mel of the official baseline: Slaney bank, power 2, zero-padded ends, 10·log10(max(mel, 2.2e-16)).

    wave : float32 (n, samples) in [-1, 1), not standardized
    returns : float32 (n, 1 + samples // hop, n_mels), frame-major: 5 frames are 640 contiguous values.
        Source: METHOD 7.5.  Notebook: 03_baseline
    """
    schemas.waves(wave)
    bank = _mel_bank(n_fft, n_mels, 0.0, rate / 2, rate, True, wave.device)
    mel = _in_pieces(
        wave, lambda part: _power(_stft(part, n_fft, hop, n_fft, center=True, pad_mode="constant")).mT @ bank
    )
    return mel.clamp_min_(torch.finfo(torch.float64).eps).log10_().mul_(10.0)


def spectrum(wave: torch.Tensor) -> torch.Tensor:
    """Magnitude spectrum of the whole clip without the Nyquist bin; linear, not normalized.

    wave : float32 (n, samples)
    returns : float32 (n, 1, samples // 2), bin width 1 / duration Hz.  Source: METHOD 5.2.  Notebook:
        02_preprocessing
    """
    schemas.waves(wave)
    return torch.fft.rfft(wave).abs()[:, None, : wave.shape[1] // 2]


def spectrogram(
    wave: torch.Tensor,
    *,
    kind: Literal["mel", "stft"] = "stft",
    n_fft: int = 1024,
    hop: int = 512,
    n_mels: int = 128,
    rate: int = SAMPLE_RATE,
) -> torch.Tensor:
    """Linear magnitude spectrogram without padding: 374 frames for 12 s at the defaults.

    kind : `stft` for n_fft // 2 + 1 linear bins (the cited code), `mel` for n_mels mel bands (the report)
    returns : float32 (n, 1, bins, frames).  Source: METHOD 5.3, 4.15.  Notebook: 02_preprocessing
    """
    schemas.waves(wave)
    if kind == "stft":
        return _in_pieces(wave, lambda part: _stft(part, n_fft, hop, n_fft, center=False).abs()).unsqueeze(1)
    bank = _mel_bank(n_fft, n_mels, 0.0, rate / 2, rate, False, wave.device).T
    return _in_pieces(wave, lambda part: bank @ _stft(part, n_fft, hop, n_fft, center=False).abs()).unsqueeze(
        1
    )


def _wrap(angle: torch.Tensor) -> torch.Tensor:
    """Wrap angles in rad to [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _phase_angle(spec: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    return (torch.angle(spec) / math.pi).unsqueeze(1)


def _advance(spec: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    """Complex frame-to-frame product without the advance 2π·bin·hop/n_fft of a tone at the bin center."""
    bins = torch.arange(spec.shape[1], device=spec.device, dtype=torch.float64)
    expected = torch.remainder(2 * math.pi * bins * hop / n_fft, 2 * math.pi).to(torch.float32)
    turn = torch.polar(torch.ones_like(expected), -expected)
    product = spec[:, :, 1:] * spec[:, :, :-1].conj() * turn[:, None]
    return torch.cat([product[:, :, :1], product], dim=2)  # repeated first frame keeps frames aligned


def _phase_cossin(spec: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    product = _advance(spec, n_fft, hop)
    unit = product / product.abs().clamp_min(1e-12)
    weighted = unit * torch.log1p(spec.abs())
    return torch.stack([weighted.real, weighted.imag], dim=1)


def _phase_if(spec: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    return (torch.angle(_advance(spec, n_fft, hop)) / math.pi).unsqueeze(1)


def _phase_gd(spec: torch.Tensor, n_fft: int, hop: int) -> torch.Tensor:
    # The window center alone causes a delay of n_fft/2 samples, -π per bin; it is removed before
    # wrapping.
    step = torch.angle(spec[:, 1:] * spec[:, :-1].conj())
    delay = _wrap(-step - math.pi) / math.pi
    return torch.cat([delay[:, :1], delay], dim=1).unsqueeze(1)


def phase(
    wave: torch.Tensor, *, representation: str = "cossin", n_fft: int = 1024, hop: int = 512
) -> torch.Tensor:
    """STFT phase in one of four representations; frames and bins as in `spectrogram(kind="stft")`.

    representation : `angle` wrapped phase / π (`paper`); `cossin` cosine and sine of the frame-to-frame phase
        difference, weighted by log(1 + magnitude) (`best`, two channels); `if` that difference / π, 0 for a
        tone at the bin center; `gd` group delay relative to the frame center, / (n_fft / 2) samples
    returns : float32 (n, 1 or 2, n_fft // 2 + 1, frames), in [-1, 1] except `cossin`.  Source: METHOD 3.2,
        6.1.
        Notebook: 02_preprocessing
    """
    schemas.waves(wave)
    errors.check_choice("phase representation", representation, list(PHASE))
    return _in_pieces(
        wave, lambda part: PHASE[representation](_stft(part, n_fft, hop, n_fft, center=False), n_fft, hop)
    )


PHASE = {"angle": _phase_angle, "cossin": _phase_cossin, "if": _phase_if, "gd": _phase_gd}
