"""The official autoencoder baseline with its two scores.

Sources: METHOD 3.6, 7.5. Notebook: 03_baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from asdlib import errors
from asdlib.detectors.autoencoder_training import EVAL_VECTORS, AutoencoderTraining, Moments
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.models import autoencoder, training
from asdlib.models.autoencoder import Vectors
from asdlib.scoring.distances import mahalanobis, precision

EVAL_CLIPS = 64  # clips per inference block: 10 MB of log-mel


class Autoencoder(AutoencoderTraining, Detector):
    """The official autoencoder: `baseline_mse` and `baseline_mahala` (selective Mahalanobis).

    Test clips are scored by a network trained on all training clips, to which training clips look too normal.
    Training clips are therefore scored by cross-fitting: a network and covariances from the other folds
    (stratified by domain), trained for as many steps. As two trainings end at different errors, these scores
    are rescaled by the ratio of the two networks' median scores on the clips that both were trained on.
    """

    name, Settings, systems = (
        "autoencoder",
        autoencoder.AutoencoderSettings,
        ("baseline_mse", "baseline_mahala"),
    )
    training_module = "asdlib.detectors.autoencoder_training"
    scoring_settings = ("mahala",)

    @torch.inference_mode()
    def _residuals(
        self, net: autoencoder.Autoencoder, precisions: dict[str, np.ndarray], rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Means over each clip's vectors: `error` (clips,) and `residual` (clips, n_mels).

        With `mahala = "per_frame"` also the quadratic form of each domain, (clips,).
        """
        s, device = self.settings, self.device
        matrices = {
            name: torch.as_tensor(value, dtype=torch.float32, device=device)
            for name, value in precisions.items()
        }
        widths = {"error": 1, "residual": s.n_mels} | dict.fromkeys(matrices, 1)
        sums = {
            name: torch.zeros(len(rows), width, dtype=torch.float64, device=device)
            for name, width in widths.items()
        }
        for block in np.array_split(np.arange(len(rows)), math.ceil(len(rows) / EVAL_CLIPS)):
            vectors = Vectors(*self.log_mel(rows[block]), s.frames)
            clip = vectors.clip + int(block[0])
            for index in torch.arange(len(vectors), device=device).split(EVAL_VECTORS):
                x = vectors[index]
                gap = x - net(x)
                bands = gap.view(len(x), s.frames, s.n_mels)
                values = {"error": gap.square().mean(1, keepdim=True), "residual": bands.mean(1)}
                if s.mahala == "per_frame":
                    values |= {
                        name: ((bands @ matrix) * bands).sum(2).mean(1, keepdim=True)
                        for name, matrix in matrices.items()
                    }
                for name, value in values.items():
                    sums[name].index_add_(0, clip[index], value.double())
            count = torch.bincount(vectors.clip).double()[:, None]
            for value in sums.values():
                value[block[0] : block[-1] + 1] /= count
        return {
            name: value.squeeze(1).cpu().numpy() if value.shape[1] == 1 else value.cpu().numpy()
            for name, value in sums.items()
        }

    def _score(
        self, net: autoencoder.Autoencoder, precisions: dict[str, np.ndarray], rows: np.ndarray
    ) -> Scores:
        means = self._residuals(net, precisions, rows)
        of_group = {name: mahalanobis(means["residual"], matrix) for name, matrix in precisions.items()}
        if self.settings.mahala == "per_frame":
            of_group = {name: means[name] for name in precisions}
        group = self.group_of(self.store.clips.iloc[rows])
        form = {
            name: np.array([of_group[f"{own}/{name}"][i] for i, own in enumerate(group)])
            for name in ("source", "target")
        }
        return {
            ("baseline_mse", "score"): means["error"],
            ("baseline_mahala", "score"): np.minimum(form["source"], form["target"]),
            ("baseline_mahala", "source"): form["source"],
            ("baseline_mahala", "target"): form["target"],
        }

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean residual of each clip per band, dB: float32 (clips, n_mels); one item per clip."""
        return self._residuals(self.net, {}, rows)["residual"].astype(np.float32), np.arange(len(rows))

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Both scores of new clips, and the two distances behind the selective one."""
        return self._score(self.net, self.precisions, rows)

    def _training_scores(self) -> Scores:
        """Both scores of each training clip, from the other folds (a single clip: from itself)."""
        out: Scores = {}
        own = self._score(self.net, self.precisions, self.train_rows)
        for number, (net, precisions, _) in enumerate(self.by_fold or [(self.net, self.precisions, None)]):
            held_out = self.fold == number
            for key, values in self._score(net, precisions, self.train_rows).items():
                both = ~held_out if (~held_out).any() else held_out  # clips seen by both networks
                ratio = np.median(own[key][both]) / max(np.median(values[both]), np.finfo(float).tiny)
                out.setdefault(key, np.empty(len(held_out)))[held_out] = ratio * values[held_out]
        return out

    @training.one_thread()  # bit-identical inverses in every process
    def _prepare(self) -> None:
        """Compute each network's inverse residual covariances."""
        groups = np.unique(self.group)
        self.precisions = inverses(self.moments, groups)
        self.by_fold = [(net, inverses(moments, groups), history) for net, moments, history in self.of_folds]


def inverses(moments: dict[str, Moments], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Inverse residual covariance per group and domain, "<group>/<domain>": float64 (n_mels, n_mels).

    A domain with no training clips, or too few for an inverse, uses the other domain's (the official rule); a
    group without any uses another group's.  raises : errors.InputError if there is none at all
    """
    found, refused = {}, None
    for name, (matrix, count) in moments.items():
        try:
            found[name] = precision(matrix, count)
        except errors.InputError as refusal:
            refused = refusal
    if not found:
        raise refused
    out = {}
    for group in groups:
        names = [f"{group}/{domain}" for domain in ("source", "target")]
        own = [found[name] for name in names if name in found] or list(found.values())
        out |= {name: found.get(name, own[0]) for name in names}
    return out
