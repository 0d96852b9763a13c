"""The official autoencoder baseline: 640 → 4 × 128 → 8 → 4 × 128 → 640, BatchNorm and ReLU after every layer but the last.

Input vectors are 5 consecutive log-mel frames of 128 bands, frame-major. They are never materialised: in a spectrogram
stored frames first, the 5 x 128 values that start at a frame lie in a row, so a batch is one strided gather.
Sources: METHOD 3.6, 7.5. Notebook: 03_baseline.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from asdlib import errors
from asdlib.studies import config

BN_MOMENTUM, BN_EPS = 0.01, 1e-3  # as the official code sets them (Keras' defaults)


class Vectors:
    """All input vectors of a set of clips, as a view of their log-mels; clips may differ in length.

    mel : float32 (frames of all clips, bands), contiguous
    lengths : frames of each clip, in the order of `mel`
    frames : consecutive frames per vector
    """

    def __init__(self, mel: torch.Tensor, lengths: list[int], frames: int):
        if min(lengths) < frames:
            raise errors.Refusal(f"a clip of {min(lengths)} frames came, expected at least {frames}; use longer clips or fewer autoencoder.frames")
        bands = mel.shape[1]
        self._rows = mel.view(-1).as_strided((len(mel) - frames + 1, frames * bands), (bands, 1))
        size = torch.tensor(lengths, device=mel.device)
        counts = size - frames + 1
        self.clip = torch.repeat_interleave(torch.arange(len(lengths), device=mel.device), counts)
        first = torch.cumsum(size, 0) - size - (torch.cumsum(counts, 0) - counts)
        self._start = torch.arange(len(self.clip), device=mel.device) + first[self.clip]

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Vectors (n, frames · bands) by number; vector i belongs to clip `clip[i]`."""
        return self._rows[self._start[index]]


class Autoencoder(nn.Module):
    """The official network (METHOD 7.5): 267,928 parameters at the defaults.

    forward : float32 (n, frames · bands) → reconstruction of the same shape
    """

    def __init__(self, settings: config.Autoencoder):
        super().__init__()
        width, hidden = settings.frames * settings.n_mels, settings.hidden
        sizes = [width, *[hidden] * 4, settings.bottleneck, *[hidden] * 4, width]
        layers = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out, BN_EPS, BN_MOMENTUM), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Mean squared error of a batch of vectors (n, frames · bands), for training; draws nothing from the generator."""
        return {"loss": nn.functional.mse_loss(self(batch), batch)}
