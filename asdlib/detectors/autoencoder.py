"""The baselines: a nearest neighbour without training, and the official autoencoder with its two scores.

Sources: METHOD 3.6, 7.5. Notebook: 03_baseline.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save

from asdlib import errors, features, io
from asdlib.detectors.base import Detector, Scores, clip_by_clip, frames_of
from asdlib.models import autoencoder, training
from asdlib.models.autoencoder import Vectors
from asdlib.scoring.distances import mahalanobis, precision

EVAL_CLIPS, EVAL_VECTORS = 64, 4096  # per block of the scoring pass: 10 MB of log-mel, 10 MB of vectors


class Autoencoder(Detector):
    """The official autoencoder: `baseline_mse` and `baseline_mahala` (selective Mahalanobis).

    The score of a test clip comes from a network trained on all training clips. A training clip would look
    too normal to that network, so it is scored by one trained on the other folds (stratified by domain) for
    as many steps, covariances included. Two trainings end at different errors, so such a score is brought to
    the network of the test clips: times the ratio of the two networks' median scores on the clips that both
    were trained on.
    """

    name, Settings, systems = (
        "autoencoder",
        autoencoder.AutoencoderSettings,
        ("baseline_mse", "baseline_mahala"),
    )

    def log_mel(self, rows: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        """Log-mel of clips of its store, end to end, float32 (frames, n_mels), dB, and the frames of each
        clip.
        """
        s = self.settings
        shape = {"n_fft": s.n_fft, "hop": s.hop_length, "n_mels": s.n_mels, "rate": self.store.rate}
        return frames_of(self.store, self.device, rows, lambda wave: features.baseline_mel(wave, **shape))

    def _fit(self, others: np.ndarray) -> None:
        """Train on all training clips and on each of the folds; on the CPU one training per core, each with
        one thread.
        """
        s = self.settings
        domain = np.where(
            self.store.clips["domain"].to_numpy()[self.train_rows] == "target", "target", "source"
        )
        self.fold = fold_of(domain, s.folds)
        vectors = Vectors(*self.log_mel(self.train_rows), s.frames)
        work = []
        for number in range(self.fold.max() + 2):  # 0: all clips
            if (seen := self.fold != number - 1).any():
                with training.seeded_init(
                    self.seed, number
                ):  # weights are drawn from torch's global generator, so not in a thread
                    net = autoencoder.Autoencoder(s).to(self.device)
                work.append((net, vectors, np.where(seen, domain, ""), number))
        with ThreadPoolExecutor(1 if self.device.type == "cuda" else training.cores()) as pool:
            work = [pool.submit(self._train, *each) for each in work]
            (self.net, self.precisions, self.history), *self.by_fold = [job.result() for job in work]

    def _train(
        self, net: autoencoder.Autoencoder, vectors: Vectors, domain: np.ndarray, number: int
    ) -> tuple[autoencoder.Autoencoder, dict[str, np.ndarray], pd.DataFrame]:
        """Train one network and measure the residual covariances. domain : of each clip, "" for those that it
        must not see.
        """
        torch.set_num_threads(1)  # a thread has its own count
        s, device = self.settings, vectors.clip.device
        seen = torch.as_tensor(domain != "", device=device)[vectors.clip].nonzero()[:, 0]
        split = training.generator_for(self.seed, number, device=device)
        order = seen[torch.randperm(len(seen), generator=split, device=device)]
        n_kept = min(len(seen) - 1, round(s.holdout * len(seen)))
        kept, used = order[:n_kept], order[n_kept:]
        machine = self.store.clips["machine"].iloc[self.train_rows[0]]
        history = training.fit(
            net,
            lambda generator: (
                vectors[used[index]]
                for index in training.shuffled_batches(len(used), s.batch, generator, device)
            ),
            torch.optim.Adam(net.parameters(), lr=s.lr, fused=True),
            epochs=round(
                s.epochs * len(vectors) / len(seen)
            ),  # as many steps on fewer clips: scores of one scale
            seed=self.seed,
            what=f"autoencoder {machine}" + (f", fold {number} of {s.folds}" if number else ""),
            checkpoint=self.checkpoints and self.checkpoints / f"checkpoint{number}.pt",
            evaluate=(lambda: {"held_out": self._error(net, vectors, kept)}) if n_kept else None,
        )
        return net, self._precisions(net, vectors, used, domain), history

    def _error(self, net: autoencoder.Autoencoder, vectors: Vectors, index: torch.Tensor) -> float:
        """Mean squared error over some vectors."""
        sums = [
            (x - net(x)).square().mean(1).sum() for x in (vectors[part] for part in index.split(EVAL_VECTORS))
        ]
        return float(torch.stack(sums).sum()) / len(index)

    @torch.inference_mode()
    def _precisions(
        self, net: autoencoder.Autoencoder, vectors: Vectors, used: torch.Tensor, domain: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Inverse residual covariance per group and domain, "<group>/<domain>", from the vectors trained on:
        batch means removed batch by batch, as the official code does. A domain without training clips takes
        the other's (the official rule), and so does one with too few for an inverse; a group without any
        takes another's.
        """
        s, kind = (
            self.settings,
            np.where(domain != "", self.group.astype(object) + "/" + domain.astype(object), ""),
        )
        names = [
            f"{group}/{name}"
            for group in np.unique(self.group)
            for name in ("source", "target")
            if (kind == f"{group}/{name}").any()
        ]
        code = torch.as_tensor(
            np.array([names.index(name) if name else -1 for name in kind]), device=used.device
        )[vectors.clip]
        moments = torch.zeros(len(names), s.n_mels, s.n_mels, dtype=torch.float64, device=used.device)
        generator = training.generator_for(self.seed, s.epochs, device=used.device)
        for part in training.shuffled_batches(len(used), s.batch, generator, used.device):
            x = vectors[used[part]]
            residual = (x - net(x)).view(len(x), s.frames, s.n_mels)
            for i in range(len(names)):
                rows_of = residual[code[used[part]] == i].reshape(-1, s.n_mels).double()
                if len(rows_of):
                    rows_of = rows_of - rows_of.mean(0)
                    moments[i] += rows_of.T @ rows_of
        counts = torch.bincount(code[used], minlength=len(names))
        found, refused = {}, None
        for i, name in enumerate(names):
            try:
                found[name] = precision(moments[i].cpu().numpy(), int(counts[i]))
            except errors.InputError as refusal:
                refused = refusal
        if not found:
            raise refused
        out = {}
        for group in np.unique(self.group):
            own = [
                found[f"{group}/{name}"] for name in ("source", "target") if f"{group}/{name}" in found
            ] or list(found.values())
            out |= {f"{group}/{name}": found.get(f"{group}/{name}", own[0]) for name in ("source", "target")}
        return out

    @torch.inference_mode()
    def _residuals(
        self, net: autoencoder.Autoencoder, precisions: dict[str, np.ndarray], rows: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Means over each clip's vectors: `error` (clips,), `residual` (clips, n_mels), and per domain the
        quadratic form per frame (clips,).
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
        """Mean residual of each clip per band, dB: float32 (clips, n_mels), and one item per clip."""
        return self._residuals(self.net, {}, rows)["residual"].astype(np.float32), np.arange(len(rows))

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Both scores of clips outside training, and the two distances behind the selective one."""
        return self._score(self.net, self.precisions, rows)

    def _training_scores(self) -> Scores:
        """Both scores of each training clip, by networks and covariances that never saw it (one clip alone:
        by its own).
        """
        out: Scores = {}
        own = self._score(self.net, self.precisions, self.train_rows)
        for number, (net, precisions, _) in enumerate(self.by_fold or [(self.net, self.precisions, None)]):
            held_out = self.fold == number
            for key, values in self._score(net, precisions, self.train_rows).items():
                both = ~held_out if (~held_out).any() else held_out  # clips that both networks know
                ratio = np.median(own[key][both]) / max(np.median(values[both]), np.finfo(float).tiny)
                out.setdefault(key, np.empty(len(held_out)))[held_out] = ratio * values[held_out]
        return out

    def _save(self, folder: Path) -> None:
        """Weights and covariances, as safetensors."""
        training.save_weights(self.net, folder / "weights.safetensors")
        (folder / "precisions.safetensors").write_bytes(save(self.precisions))

    def _load(self, folder: Path) -> None:
        """What `save` wrote."""
        self.net = autoencoder.Autoencoder(self.settings).to(self.device)
        training.load_weights(self.net, folder / "weights.safetensors")
        names = [f"{group}/{name}" for group in np.unique(self.group) for name in ("source", "target")]
        self.precisions = io.tensors(folder / "precisions.safetensors", dict.fromkeys(names, 2))
        square = (self.settings.n_mels, self.settings.n_mels)
        if set(self.precisions) != set(names) or any(
            matrix.shape != square for matrix in self.precisions.values()
        ):
            raise errors.InputError(
                f"{folder}: its covariances are not of {square[0]} bands in source and target; {io.AGAIN}"
            )


def fold_of(domain: np.ndarray, folds: int) -> np.ndarray:
    """Fold number of each clip: the clips of a domain are dealt out in turn, so that each fold holds its
    share.

    domain : str (clips,).  folds : how many, at most as many as clips.  returns : int (clips,), from 0
    """
    folds = min(folds, len(domain))
    out = np.empty(len(domain), int)
    dealt = 0
    for name in np.unique(domain):
        where = np.flatnonzero(domain == name)
        out[where] = (dealt + np.arange(len(where))) % folds
        dealt += len(where)
    return out
