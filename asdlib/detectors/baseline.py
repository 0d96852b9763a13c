"""The baselines: a nearest neighbour without training, and the official autoencoder with its two scores.

Sources: SYSTEM 6, FACTS F5. Notebook: 03_baseline.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file, save_file

from asdlib import checks, features, scoring, training
from asdlib.detectors.context import Context, Scores, frames_of
from asdlib.models.autoencoder import Autoencoder, Vectors

SMALLEST_DB = 1e-3  # a feature that varies less is as good as constant
EVAL_VECTORS = 8192  # per block of the scoring pass: 21 MB of input


class NearestNeighbour:
    """Mean distance to the k nearest training clips on [mean, standard deviation over time] of a log-mel. Nothing is trained.

    Each of the 2 · n_mels features is divided by its standard deviation over the training clips, so that no band rules
    by its size; for a training clip, over the other training clips.
    """

    def __init__(self, context: Context):
        self.context, self.settings = context, context.cfg.baseline_knn
        self.history = pd.DataFrame()

    def fit(self, train_rows: np.ndarray) -> None:
        """Remember the training clips' features."""
        self.train, _ = self.embed(train_rows)

    def embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over time per band, dB: float32 (clips, 2 · n_mels), and one item per clip."""
        n_mels, rate = self.settings.n_mels, self.context.cfg.data.sample_rate
        mel, lengths = frames_of(self.context, rows, lambda wave: features.log_mel(wave, n_mels=n_mels, hop=512, rate=rate)[:, 0].mT)
        parts = mel.split(lengths)
        made = torch.stack([torch.cat([part.mean(0), part.std(0, correction=0)]) for part in parts])
        return made.cpu().numpy(), np.arange(len(rows))

    def scores(self, rows: np.ndarray) -> Scores:
        """Score of clips that are not training clips."""
        deviation = np.maximum(self.train.std(0), SMALLEST_DB)
        distances = scoring.knn_distances(self.embed(rows)[0] / deviation, self.train / deviation, k_max=self.settings.k)
        return {("baseline_knn", "score"): scoring.knn_score(distances, self.settings.k)}

    def training_scores(self) -> Scores:
        """Score of each training clip against the others, scaled by the others."""
        x = self.train.astype(np.float64) - self.train.mean(0, dtype=np.float64)
        n = len(x)
        if n <= self.settings.k:
            raise checks.Refusal(f"{n} training clips came, expected more than baseline_knn.k = {self.settings.k}; add recordings or use a smaller k")
        mean = (x.sum(0) - x) / (n - 1)
        variance = ((x * x).sum(0) - x * x) / (n - 1) - mean * mean
        weight = 1.0 / np.maximum(variance, SMALLEST_DB**2)  # (n, dim): row i as clip i sees the others
        square = (weight * x * x).sum(1)[:, None] - 2.0 * (weight * x) @ x.T + weight @ (x * x).T
        np.fill_diagonal(square, np.inf)
        distances = np.sqrt(np.maximum(np.sort(square, axis=1)[:, : self.settings.k], 0.0))
        return {("baseline_knn", "score"): scoring.knn_score(distances, self.settings.k)}

    def save(self, folder: Path) -> None:
        """The references, as safetensors."""
        save_file({"train": self.train}, folder / "references.safetensors")

    def load(self, folder: Path, train_rows: np.ndarray) -> None:
        """What `save` wrote."""
        self.train = load_file(folder / "references.safetensors")["train"]


class AutoencoderBaseline:
    """The official autoencoder: `baseline_mse` and `baseline_mahala` (selective Mahalanobis).

    The score of a test clip comes from a network trained on all training clips. A training clip would look too normal
    to that network, so it is scored by one trained on the other folds (stratified by domain), covariances included.
    """

    def __init__(self, context: Context):
        self.context, self.settings = context, context.cfg.autoencoder
        self.history = pd.DataFrame()

    def _mel(self, rows: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        s = self.settings
        rate = self.context.cfg.data.sample_rate
        return frames_of(self.context, rows, lambda wave: features.baseline_mel(wave, n_fft=s.n_fft, hop=s.hop_length, n_mels=s.n_mels, rate=rate))

    def fit(self, train_rows: np.ndarray) -> None:
        """Train on all training clips and on each of the folds; on the CPU one training per core, each with one thread."""
        s, context = self.settings, self.context
        self.train_rows = train_rows
        self.fold = fold_of(context.store.clips["domain"].to_numpy()[train_rows], s.folds)
        parts = [train_rows] + [train_rows[self.fold != number] for number in range(self.fold.max() + 1)]
        nets = []
        for number in range(len(parts)):  # one after another: weights are drawn from torch's global generator
            with training.seeded_init(context.seed, number):
                nets.append(Autoencoder(s).to(context.device))
        with ThreadPoolExecutor(1 if context.device.type == "cuda" else training.cores()) as pool:
            work = [pool.submit(self._train, net, part, number) for number, (net, part) in enumerate(zip(nets, parts)) if len(part)]
            (self.net, self.precisions, self.history), *self.by_fold = [job.result() for job in work]

    def _train(self, net: Autoencoder, rows: np.ndarray, fold: int) -> tuple[Autoencoder, dict[str, np.ndarray], pd.DataFrame]:
        """Train one network (fold 0: on all clips) and measure the residual covariances of each domain."""
        torch.set_num_threads(1)  # a thread has its own count
        s, context = self.settings, self.context
        vectors = Vectors(*self._mel(rows), s.frames)
        split = training.generator_for(context.seed, fold, device=context.device)
        order = torch.randperm(len(vectors), generator=split, device=context.device)
        n_kept = min(len(vectors) - 1, round(s.holdout * len(vectors)))
        kept, used = order[:n_kept], order[n_kept:]
        machine = context.store.clips["machine"].iloc[rows[0]]
        history = training.fit(
            net,
            lambda generator: (vectors[used[index]] for index in training.shuffled_batches(len(used), s.batch, generator, context.device)),
            torch.optim.Adam(net.parameters(), lr=s.lr, fused=True),
            epochs=s.epochs,
            seed=context.seed,
            what=f"autoencoder {machine}" + (f", fold {fold} of {s.folds}" if fold else ""),
            checkpoint=context.folder and context.folder / f"checkpoint{fold}.pt",
            evaluate=(lambda: {"held_out": self._error(net, vectors, kept)}) if n_kept else None,
        )
        return net, self._precisions(net, vectors, used, rows), history

    def _error(self, net: Autoencoder, vectors: Vectors, index: torch.Tensor) -> float:
        """Mean squared error over some vectors."""
        sums = [(vectors[part] - net(vectors[part])).square().mean(1).sum() for part in index.split(EVAL_VECTORS)]
        return float(torch.stack(sums).sum()) / len(index)

    @torch.inference_mode()
    def _precisions(self, net: Autoencoder, vectors: Vectors, used: torch.Tensor, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Inverse residual covariance per domain, from the vectors trained on: batch means removed batch by batch, as the official code does.

        A domain without training clips takes the other's (the official rule).
        """
        s, domain = self.settings, self.context.store.clips["domain"].to_numpy()[rows]
        names = [name for name in ("source", "target") if (domain == name).any()]
        code = torch.as_tensor(np.array([names.index(name) for name in domain]), device=vectors.clip.device)[vectors.clip]
        moments = torch.zeros(len(names), s.n_mels, s.n_mels, dtype=torch.float64, device=code.device)
        generator = training.generator_for(self.context.seed, s.epochs, device=code.device)
        for part in training.shuffled_batches(len(used), s.batch, generator, code.device):
            index = used[part]
            x = vectors[index]
            residual = (x - net(x)).view(len(x), s.frames, s.n_mels)
            for i in range(len(names)):
                rows_of = residual[code[index] == i].reshape(-1, s.n_mels).double()
                if len(rows_of):
                    rows_of = rows_of - rows_of.mean(0)
                    moments[i] += rows_of.T @ rows_of
        counts = torch.bincount(code[used], minlength=len(names))
        found = {name: scoring.precision(moments[i].cpu().numpy(), int(counts[i])) for i, name in enumerate(names)}
        return {name: found.get(name, next(iter(found.values()))) for name in ("source", "target")}

    @torch.inference_mode()
    def _score(self, net: Autoencoder, precisions: dict[str, np.ndarray], rows: np.ndarray) -> Scores:
        s = self.settings
        vectors = Vectors(*self._mel(rows), s.frames)
        error, residual, form = [], [], {name: [] for name in precisions}
        matrices = {name: torch.as_tensor(value, dtype=torch.float32, device=self.context.device) for name, value in precisions.items()}
        for index in torch.arange(len(vectors), device=vectors.clip.device).split(EVAL_VECTORS):
            x = vectors[index]
            gap = x - net(x)
            error.append(gap.square().mean(1))
            bands = gap.view(len(x), s.frames, s.n_mels)
            residual.append(bands.mean(1))
            if s.mahala == "per_frame":
                for name, matrix in matrices.items():
                    form[name].append(((bands @ matrix) * bands).sum(2).mean(1))
        clip = vectors.clip.cpu().numpy()
        mean_error = scoring.to_clips(torch.cat(error).cpu().numpy(), clip, len(rows))
        if s.mahala == "per_frame":
            distance = {name: scoring.to_clips(torch.cat(values).cpu().numpy(), clip, len(rows)) for name, values in form.items()}
        else:
            all_residuals = torch.cat(residual).cpu().numpy().astype(np.float64)
            mean_residual = np.stack([scoring.to_clips(column, clip, len(rows)) for column in all_residuals.T], axis=1)
            distance = {name: scoring.mahalanobis(mean_residual, matrix) for name, matrix in precisions.items()}
        return {
            ("baseline_mse", "score"): mean_error,
            ("baseline_mahala", "score"): np.minimum(distance["source"], distance["target"]),
            ("baseline_mahala", "source"): distance["source"],
            ("baseline_mahala", "target"): distance["target"],
        }

    def embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean residual of each clip per band, dB: float32 (clips, n_mels), and one item per clip."""
        vectors = Vectors(*self._mel(rows), self.settings.frames)
        made = np.zeros((len(rows), self.settings.n_mels))
        with torch.inference_mode():
            for index in torch.arange(len(vectors), device=vectors.clip.device).split(EVAL_VECTORS):
                x = vectors[index]
                gap = (x - self.net(x)).view(len(x), self.settings.frames, -1).mean(1)
                np.add.at(made, vectors.clip[index].cpu().numpy(), gap.cpu().numpy())
        counts = np.bincount(vectors.clip.cpu().numpy(), minlength=len(rows))
        return (made / counts[:, None]).astype(np.float32), np.arange(len(rows))

    def scores(self, rows: np.ndarray) -> Scores:
        """Both scores of clips that are not training clips, and the two distances behind the selective one."""
        return self._score(self.net, self.precisions, rows)

    def training_scores(self) -> Scores:
        """Both scores of each training clip, by networks and covariances that never saw it (one clip alone: by its own)."""
        out: Scores = {}
        for number, (net, precisions, _) in enumerate(self.by_fold or [(self.net, self.precisions, None)]):
            held_out = self.fold == number
            for key, values in self._score(net, precisions, self.train_rows[held_out]).items():
                out.setdefault(key, np.empty(len(held_out)))[held_out] = values
        return out

    def save(self, folder: Path) -> None:
        """Weights and covariances, as safetensors."""
        training.save_weights(self.net, folder / "weights.safetensors")
        save_file(self.precisions, folder / "precisions.safetensors")

    def load(self, folder: Path, train_rows: np.ndarray) -> None:
        """What `save` wrote."""
        self.train_rows = train_rows
        self.net = Autoencoder(self.settings).to(self.context.device)
        training.load_weights(self.net, folder / "weights.safetensors")
        self.precisions = load_file(folder / "precisions.safetensors")


def fold_of(domain: np.ndarray, folds: int) -> np.ndarray:
    """Fold number of each clip: the clips of a domain are dealt out in turn, so that each fold holds its share."""
    folds = min(folds, len(domain))
    out = np.empty(len(domain), int)
    dealt = 0
    for name in np.unique(domain):
        where = np.flatnonzero(domain == name)
        out[where] = (dealt + np.arange(len(where))) % folds
        dealt += len(where)
    return out
