"""Nearest-neighbor baseline on mean and standard deviation over time of a log-mel. Notebook: 03_baseline"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from asdlib import errors, features, io
from asdlib.data.store import frames_of
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.scoring.distances import knn_distances, knn_score
from asdlib.settings import Settings, setting


class NearestNeighborSettings(Settings):
    """Training-free nearest neighbor on mean and standard deviation over time of a log-mel (METHOD 3.6)."""

    n_mels: int = setting(128, "mel bands", 16, 512)
    k: int = setting(2, "neighbors over which the distance is averaged (METHOD 3.6)", 1, 100)


SMALLEST_DB = 1e-3  # lower bound; features that vary less are treated as constant


class NearestNeighbor(Detector):
    """Mean distance to the k nearest training clips on the mean and std over time of a log-mel.

    Training-free. Each of the 2 · n_mels features is divided by its standard deviation over the training
    clips, so that no band dominates; for a training clip, over the other training clips.
    """

    name, Settings, systems = "baseline_knn", NearestNeighborSettings, ("baseline_knn",)

    training_module = "asdlib.features"
    scoring_settings = ("k",)

    def _prepare(self) -> None:
        """Compute the training features."""
        self.train, _ = self._embed(self.train_rows)

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and std over time per band, dB: float32 (clips, 2 · n_mels); one item per clip."""
        n_mels, rate = self.settings.n_mels, self.store.rate
        mel, lengths = frames_of(
            self.store,
            self.device,
            rows,
            lambda wave: features.log_mel(wave, n_mels=n_mels, hop=512, rate=rate)[:, 0].mT,
        )
        parts = mel.split(lengths)
        made = torch.stack([torch.cat([part.mean(0), part.std(0, correction=0)]) for part in parts])
        return made.cpu().numpy(), np.arange(len(rows))

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Scores of new clips."""
        [group] = self.group_of(self.store.clips.iloc[rows])  # one clip at a time
        train = self.train[self.group == group]
        train = np.concatenate([train, self.accepted.get(group, train[:0])])
        deviation = np.maximum(train.std(0), SMALLEST_DB)
        distances = knn_distances(self._embed(rows)[0] / deviation, train / deviation, k_max=self.settings.k)
        return {("baseline_knn", "score"): knn_score(distances, self.settings.k)}

    def _training_scores(self) -> Scores:
        """Leave-one-out scores of the training clips; the scaling also leaves out the clip."""
        scores = np.empty(len(self.train))
        for group in np.unique(self.group):
            scores[self.group == group] = self._leave_one_out(self.train[self.group == group])
        return {("baseline_knn", "score"): scores}

    def _leave_one_out(self, train: np.ndarray) -> np.ndarray:
        x = train.astype(np.float64) - train.mean(0, dtype=np.float64)
        n = len(x)
        if n <= self.settings.k:
            raise errors.InputError(
                f"got {n} training clips, expected more than baseline_knn.k = {self.settings.k}; add"
                " recordings or use a smaller k"
            )
        mean = (x.sum(0) - x) / (n - 1)
        variance = ((x * x).sum(0) - x * x) / (n - 1) - mean * mean
        weight = 1.0 / np.maximum(variance, SMALLEST_DB**2)  # (n, dim): row i without clip i
        square = (weight * x * x).sum(1)[:, None] - 2.0 * (weight * x) @ x.T + weight @ (x * x).T
        np.fill_diagonal(square, np.inf)
        distances = np.sqrt(np.maximum(np.sort(square, axis=1)[:, : self.settings.k], 0.0))
        return knn_score(distances, self.settings.k)

    def _save(self, folder: Path) -> None:
        """Save the references as safetensors."""
        (folder / "references.safetensors").write_bytes(save({"train": self.train}))

    def _load(self, folder: Path) -> None:
        """Load what `_save` wrote."""
        self.train = io.tensors(folder / "references.safetensors", {"train": 2})["train"]
