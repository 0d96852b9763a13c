"""Density of log-mel statistics at several resolutions and a modulation spectrum. Training-free.
Notebook: 03_baseline
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from safetensors.numpy import save

from asdlib import errors, features, io
from asdlib.data.store import BATCH_SAMPLES, standardize
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.models import training
from asdlib.scoring.distances import (
    density_references,
    density_scores,
    density_scores_left_out,
    gaussian_references,
    mahalanobis_scores,
    mahalanobis_scores_left_out,
)
from asdlib.scoring.thresholds import ZScore
from asdlib.settings import Many, Settings, setting


class MultiResolutionSettings(Settings):
    """Training-free density of log-mel statistics at several resolutions (METHOD 3.6)."""

    n_fft: Many[Annotated[int, Field(ge=64, le=65536)]] = setting(
        (256, 1024, 4096), "window lengths of the log-mels in samples, one view each; hop: half a window"
    )
    n_mels: Many[Annotated[int, Field(ge=4, le=512)]] = setting(
        (32, 64, 128), "mel bands from 50 to 8000 Hz, per window"
    )
    modulation_groups: int = setting(
        8, "band groups of the modulation view, computed with the shortest window; 0: no such view", 0, 512
    )
    modulation_bins: int = setting(14, "geometric bins of the modulation spectrum", 1, 64)
    backend: Literal["density", "mahalanobis", "both"] = setting(
        "density", "score of each view: local density, Mahalanobis distance, or the mean of both (METHOD 3.6)"
    )
    k: int = setting(
        2, "nearest references over which the rescaled distance is averaged (METHOD 3.6)", 1, 100
    )
    neighbors: int = setting(
        2, "neighbors per reference whose mean distance rescales the distance to it (METHOD 3.6)", 1, 100
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not self.n_fft or len(self.n_fft) != len(self.n_mels) or len(set(self.n_fft)) < len(self.n_fft):
            raise errors.InputError(
                f"settings multires.n_fft and n_mels: got {list(self.n_fft)} and {list(self.n_mels)},"
                " expected different windows and a number of bands for each"
            )
        if self.modulation_groups > self.n_mels[self.finest]:
            raise errors.InputError(
                f"setting multires.modulation_groups: got {self.modulation_groups}, expected at most the"
                f" {self.n_mels[self.finest]} bands of the shortest window"
            )
        return self

    @property
    def finest(self) -> int:
        """Index of the shortest window."""
        return self.n_fft.index(min(self.n_fft))

    @property
    def views(self) -> dict[str, int]:
        """Number of features per view, by name."""
        found = {f"mel{n_fft}": 2 * n_mels for n_fft, n_mels in zip(self.n_fft, self.n_mels)}
        if self.modulation_groups:
            found["modulation"] = self.modulation_groups * self.modulation_bins
        return found

    @property
    def parts(self) -> list[tuple[str, str]]:
        """(view, back-end) of each score that is averaged into the final one."""
        kinds = ("density", "mahalanobis") if self.backend == "both" else (self.backend,)
        return list(itertools.product(self.views, kinds))


LOW_HZ, HIGH_HZ = 50.0, 8000.0  # range of the mel bands, capped at half the sample rate


class MultiResolution(Detector):
    """Mean over views of a clip's distance to the training clips, relative to their local density.

    Training-free. Views of a standardized clip: mean and standard deviation over time of a log-mel at each
    window, and the modulation spectrum of its level in groups of bands. Each feature is divided by its
    standard deviation over the training clips. A view's score is the mean of the k smallest distances to a
    training clip, each divided by that clip's mean distance to its nearest neighbors (`density_scores`);
    `multires.backend` selects the Mahalanobis distance instead, or both. View scores are z-scored by the
    training clips' own scores and averaged: 0 is a typical normal clip, 1 is one standard deviation above.

    When scored, a training clip is excluded from references, neighbors and deviations. Features and scores
    are float64. Components: each view ("<view>_mahalanobis" for Mahalanobis distances), and `score`.

    Source: METHOD 3.6, 3.10.  Notebook: 03_baseline
    """

    name, Settings, systems = "multires", MultiResolutionSettings, ("multires",)

    training_module = "asdlib.features"
    scoring_settings = ("backend", "k", "neighbors")

    @training.one_thread()  # bit-identical sums in every process
    def _prepare(self) -> None:
        """Compute and score the training features."""
        self.train = self._features(self.train_rows)
        self.left_out = np.empty((len(self.train), len(self.settings.parts)))
        for group in np.unique(self.group):
            own = self.group == group
            self.left_out[own] = self._left_out(self.train[own])
        self._remember()

    def _remember(self) -> None:
        """Build references and score scales per group and view."""
        neighbors, self.references, self.scales = self.settings.neighbors, {}, {}
        for group in np.unique(self.group):
            own = self.group == group
            train = np.concatenate([self.train[own], self.accepted.get(group, self.train[:0])])
            self.references[group] = [
                density_references(x, neighbors=neighbors) if kind == "density" else gaussian_references(x)
                for x, kind in self._parts(train)
            ]
            self.scales[group] = [ZScore.fit(scores) for scores in self.left_out[own].T]

    def compared(self, rows: np.ndarray) -> np.ndarray:
        """Concatenated views, float64 (clips, features)."""
        return self._features(rows)

    _accept = _remember

    def _parts(self, vectors: np.ndarray) -> list[tuple[np.ndarray, str]]:
        """Features (n, dim) and back-end of every score."""
        views = dict(zip(self.settings.views, self.split(vectors)))
        return [(views[view], kind) for view, kind in self.settings.parts]

    def _left_out(self, train: np.ndarray) -> np.ndarray:
        k, neighbors = self.settings.k, self.settings.neighbors
        if len(train) <= max(k, 2):
            raise errors.InputError(
                f"got {len(train)} training clips, expected at least 3 and more than multires.k = {k}; add"
                " recordings or use a smaller k"
            )
        found = [
            density_scores_left_out(x, k=k, neighbors=neighbors)
            if kind == "density"
            else mahalanobis_scores_left_out(x)
            for x, kind in self._parts(train)
        ]
        return np.stack(found, axis=1)

    def split(self, vectors: np.ndarray) -> list[np.ndarray]:
        """Split embeddings (n, features) into views, each (n, dim)."""
        return np.split(vectors, np.cumsum(list(self.settings.views.values()))[:-1], axis=1)

    def _features(self, rows: np.ndarray) -> np.ndarray:
        """Concatenated views of clips, dB: float64 (clips, features).

        Clips of equal length are batched; clips shorter than the longest window are repeated to fill it.
        """
        samples = np.maximum(self.store.clips["samples"].to_numpy()[rows], max(self.settings.n_fft))
        out = np.empty((len(rows), sum(self.settings.views.values())))
        for size in np.unique(samples):
            where = np.flatnonzero(samples == size)
            for part in np.array_split(where, -(-len(where) * int(size) // BATCH_SAMPLES)):
                wave = self.store.audio(rows[part], device=self.device, length=int(size))
                out[part] = self._views(wave).cpu().numpy()
        return out

    def _views(self, wave: torch.Tensor) -> torch.Tensor:
        s, rate = self.settings, self.store.rate
        wave, found = standardize(wave.double()), []
        for n_fft, n_mels in zip(s.n_fft, s.n_mels):
            size = {"n_fft": n_fft, "win": n_fft, "hop": n_fft // 2, "n_mels": n_mels}
            mel = features.log_mel(wave, **size, low_hz=LOW_HZ, high_hz=min(HIGH_HZ, rate / 2), rate=rate)
            found += [mel[:, 0].mean(2), mel[:, 0].std(2, correction=0)]
            if n_fft == min(s.n_fft):
                finest = mel[:, 0]
        if s.modulation_groups:
            speed = rate / (min(s.n_fft) // 2)
            groups, bins = s.modulation_groups, s.modulation_bins
            found.append(features.modulation_spectrum(finest, frame_hz=speed, groups=groups, bins=bins))
        return torch.cat(found, dim=1)

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Concatenated views, dB: float32 (clips, features); one item per clip."""
        return self._features(rows).astype(np.float32), np.arange(len(rows))

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Scores of new clips."""
        [group] = self.group_of(self.store.clips.iloc[rows])  # one clip at a time
        found = [
            density_scores(x, references, k=self.settings.k)
            if kind == "density"
            else mahalanobis_scores(x, references)
            for (x, kind), references in zip(self._parts(self._features(rows)), self.references[group])
        ]
        return self._named(np.stack(found, axis=1), np.array([group]))

    def _training_scores(self) -> Scores:
        """Leave-one-out scores of the training clips."""
        return self._named(self.left_out, self.group)

    def _named(self, scores: np.ndarray, group: np.ndarray) -> Scores:
        """Scores (clips, parts) by name, and their standardized mean."""
        final = np.empty(len(scores))
        for one in np.unique(group):
            own = group == one
            scaled = [scale(column) for scale, column in zip(self.scales[one], scores[own].T)]
            final[own] = np.mean(scaled, axis=0)
        ending = {"density": "", "mahalanobis": "_mahalanobis"}
        names = [view + ending[kind] for view, kind in self.settings.parts]
        return {("multires", name): column for name, column in zip([*names, "score"], [*scores.T, final])}

    def _save(self, folder: Path) -> None:
        """Save references and training scores as safetensors."""
        tensors = {"train": self.train, "left_out": self.left_out}
        (folder / "references.safetensors").write_bytes(save(tensors))

    @training.one_thread()
    def _load(self, folder: Path) -> None:
        """Load what `_save` wrote."""
        found = io.tensors(folder / "references.safetensors", {"train": 2, "left_out": 2})
        self.train, self.left_out = found["train"], found["left_out"]
        self._remember()
