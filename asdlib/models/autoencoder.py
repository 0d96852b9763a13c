"""The official autoencoder baseline: 640 → 4 × 128 → 8 → 4 × 128 → 640 units.

BatchNorm and ReLU follow every layer but the last. Input vectors are 5 consecutive log-mel frames of 128
bands, frame-major. They are not materialized: in a frame-major spectrogram the 5 x 128 values of a vector are
contiguous, so a batch is one strided gather. Sources: METHOD 3.6, 7.5. Notebook: 03_baseline.
"""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import nn

from asdlib import errors
from asdlib.settings import Settings, setting


class AutoencoderSettings(Settings):
    """The official autoencoder baseline (METHOD 7.5)."""

    n_mels: int = setting(128, "mel bands (METHOD 7.5)", 8, 512)
    n_fft: int = setting(1024, "samples (METHOD 7.5)", 64, 65536)
    hop_length: int = setting(512, "samples (METHOD 7.5)", 16, 65536)
    frames: int = setting(5, "consecutive frames per input vector (METHOD 7.5)", 1, 64)
    hidden: int = setting(128, "units of each hidden layer (METHOD 7.5)", 1, 8192)
    bottleneck: int = setting(8, "units of the latent layer (METHOD 7.5)", 1, 8192)
    epochs: int = setting(100, "passes over all training vectors (METHOD 7.5)", 1, 100000)
    batch: int = setting(256, "vectors per step (METHOD 7.5)", 2, 65536)
    lr: float = setting(1e-3, "Adam step size (METHOD 7.5)", 0.0, 1.0)
    holdout: float = setting(
        0.1, "fraction of vectors held out of training, for the logged error only (METHOD 7.5)", 0.0, 0.9
    )
    mahala: Literal["mean_residual", "per_frame"] = setting(
        "mean_residual",
        "selective Mahalanobis: of the clip's mean residual (official, METHOD 7.5), or the mean over frames",
    )
    folds: int = setting(
        2, "cross-validation folds: training clips are scored by networks not trained on them", 2, 20
    )


BN_MOMENTUM, BN_EPS = 0.01, 1e-3  # as in the official code (Keras defaults)


class Vectors:
    """Input vectors of a set of clips of any lengths, as a strided view of their log-mels.

    mel : float32 (frames of all clips, bands), contiguous
    lengths : number of frames per clip, in the order of `mel`
    frames : consecutive frames per vector
    """

    def __init__(self, mel: torch.Tensor, lengths: list[int], frames: int):
        if min(lengths) < frames:
            raise errors.InputError(
                f"shortest clip has {min(lengths)} frames, expected at least {frames}; use longer clips or"
                " fewer autoencoder.frames"
            )
        bands = mel.shape[1]
        self._rows = mel.view(-1).as_strided((len(mel) - frames + 1, frames * bands), (bands, 1))
        size = torch.tensor(lengths, device=mel.device)
        counts = size - frames + 1
        self.clip = torch.repeat_interleave(torch.arange(len(lengths), device=mel.device), counts)
        first = torch.cumsum(size, 0) - size - (torch.cumsum(counts, 0) - counts)
        self._start = torch.arange(len(self.clip), device=mel.device) + first[self.clip]

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self.clip)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Vectors (n, frames · bands) by index; vector i belongs to clip `clip[i]`."""
        return self._rows[self._start[index]]


class Autoencoder(nn.Module):
    """The official network (METHOD 7.5), 267,928 parameters at the defaults.

    forward : float32 (n, frames · bands) → reconstruction of the same shape
    """

    def __init__(self, settings: AutoencoderSettings):
        super().__init__()
        width, hidden = settings.frames * settings.n_mels, settings.hidden
        sizes = [width, *[hidden] * 4, settings.bottleneck, *[hidden] * 4, width]
        layers = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, BN_EPS, BN_MOMENTUM), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reconstruction of vectors (n, frames · bands), same shape."""
        return self.layers(x)

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Mean squared error of a batch (n, frames · bands); `generator` is unused."""
        return {"loss": nn.functional.mse_loss(self(batch), batch)}
