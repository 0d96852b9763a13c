"""Training of the official autoencoder on all training clips and per fold, and residual moments.

Scores are added by `autoencoder.Autoencoder`.
Sources: METHOD 3.6, 7.5. Notebook: 03_baseline.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file

from asdlib import errors, features, io
from asdlib.data.store import Store, frames_of
from asdlib.models import autoencoder, training
from asdlib.models.autoencoder import Vectors

EVAL_VECTORS = 4096  # vectors per inference block: 10 MB
Moments = tuple[np.ndarray, int]  # float64 (n_mels, n_mels), and the number of vectors summed


class AutoencoderTraining:
    """Learned state: `net` and its `moments` from all training clips, `of_folds` the same without one fold.

    The annotated attributes belong to `base.Detector`.
    """

    settings: autoencoder.AutoencoderSettings
    seed: int
    device: torch.device
    checkpoints: Path | None
    store: Store
    train_rows: np.ndarray
    group: np.ndarray
    history: pd.DataFrame

    def log_mel(self, rows: np.ndarray) -> tuple[torch.Tensor, list[int]]:
        """Concatenated log-mels of clips, float32 (frames, n_mels), dB, and the number of frames per clip."""
        s = self.settings
        shape = {"n_fft": s.n_fft, "hop": s.hop_length, "n_mels": s.n_mels, "rate": self.store.rate}
        return frames_of(self.store, self.device, rows, lambda wave: features.baseline_mel(wave, **shape))

    def _train(self, others: np.ndarray) -> None:
        """Train on all training clips and per fold; on the CPU one single-threaded training per core."""
        s = self.settings
        domain = self._domains()
        self.fold = fold_of(domain, s.folds)
        vectors = Vectors(*self.log_mel(self.train_rows), s.frames)
        work = []
        for number in range(self.fold.max() + 2):  # 0: trained on all clips
            if (seen := self.fold != number - 1).any():
                # uses torch's global generator, hence not in a thread
                with training.seeded_init(self.seed, number):
                    net = autoencoder.Autoencoder(s).to(self.device)
                work.append((net, vectors, np.where(seen, domain, ""), number))
        with ThreadPoolExecutor(1 if self.device.type == "cuda" else training.cores()) as pool:
            work = [pool.submit(self._train_one, *each) for each in work]
            (self.net, self.moments, self.history), *self.of_folds = [job.result() for job in work]

    def _train_one(
        self, net: autoencoder.Autoencoder, vectors: Vectors, domain: np.ndarray, number: int
    ) -> tuple[autoencoder.Autoencoder, dict[str, Moments], pd.DataFrame]:
        """Train one network and measure its residual covariances.

        domain : (clips,), "" for clips excluded from training
        """
        torch.set_num_threads(1)  # the setting is per thread
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
            epochs=round(s.epochs * len(vectors) / len(seen)),  # equal number of steps, for comparable scores
            seed=self.seed,
            what=f"autoencoder {machine}" + (f", fold {number} of {s.folds}" if number else ""),
            checkpoint=self.checkpoints and self.checkpoints / f"checkpoint{number}.pt",
            evaluate=(lambda: {"held_out": self._error(net, vectors, kept)}) if n_kept else None,
        )
        return net, self._moments(net, vectors, used, domain), history

    def _error(self, net: autoencoder.Autoencoder, vectors: Vectors, index: torch.Tensor) -> float:
        """Mean squared error over vectors."""
        sums = [
            (x - net(x)).square().mean(1).sum() for x in (vectors[part] for part in index.split(EVAL_VECTORS))
        ]
        return float(torch.stack(sums).sum()) / len(index)

    @torch.inference_mode()
    def _moments(
        self, net: autoencoder.Autoencoder, vectors: Vectors, used: torch.Tensor, domain: np.ndarray
    ) -> dict[str, Moments]:
        """Second moments of the training residuals and vector counts, per "<group>/<domain>".

        Batch means are removed per batch, as in the official code.
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
        return {name: (moments[i].cpu().numpy(), int(counts[i])) for i, name in enumerate(names)}

    def _domains(self) -> np.ndarray:
        domain = self.store.clips["domain"].to_numpy()[self.train_rows]
        return np.where(domain == "target", "target", "source")

    def _save_training(self, folder: Path) -> None:
        """Save weights and moments: 0 for the network of all clips, 1 ... for the folds."""
        arrays = {}
        for number, (net, moments, _) in enumerate([(self.net, self.moments, None), *self.of_folds]):
            training.save_weights(net, folder / f"weights{number}.safetensors")
            for name, (matrix, count) in moments.items():
                arrays |= {f"{number}/{name}": matrix, f"{number}/{name}/count": np.array(count)}
        save_file(arrays, folder / "moments.safetensors")

    def _load_training(self, folder: Path) -> None:
        """Load what `_save_training` wrote."""
        self.fold = fold_of(self._domains(), self.settings.folds)
        arrays, size, found = io.tensors(folder / "moments.safetensors", {}), self.settings.n_mels, []
        for number in range(len(list(folder.glob("weights*.safetensors")))):
            net, own = autoencoder.Autoencoder(self.settings).to(self.device), {}
            training.load_weights(net, folder / f"weights{number}.safetensors")
            for name, matrix in arrays.items():
                if name.startswith(f"{number}/") and f"{name}/count" in arrays:
                    own[name.removeprefix(f"{number}/")] = matrix, int(arrays[f"{name}/count"])
            if not own or any(matrix.shape != (size, size) for matrix, _ in own.values()):
                raise errors.InputError(f"{folder}: moments do not have {size} bands; {io.AGAIN}")
            found.append((net, own, pd.DataFrame()))
        if not found:
            raise errors.InputError(f"{folder}: contains no weights; {io.AGAIN}")
        (self.net, self.moments, _), *self.of_folds = found


def fold_of(domain: np.ndarray, folds: int) -> np.ndarray:
    """Fold of each clip; clips of a domain are assigned round-robin, so folds are stratified.

    domain : str (clips,).  folds : at most the number of clips.  returns : int (clips,), from 0
    """
    folds = min(folds, len(domain))
    out = np.empty(len(domain), int)
    dealt = 0
    for name in np.unique(domain):
        where = np.flatnonzero(domain == name)
        out[where] = (dealt + np.arange(len(where))) % folds
        dealt += len(where)
    return out
