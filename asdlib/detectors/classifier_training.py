"""Training of the classification-based detector: classes, batches, training loop, embeddings.

Scores are added by `classifier.Classifier`.

Sources: report 3.1; METHOD 3.5, 5. Notebook: 04_classifier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from asdlib import augment, errors, features
from asdlib.data.index import training_classes
from asdlib.data.store import BATCH_SAMPLES, Store, machine_statistics, segment_starts, standardize
from asdlib.models import classifier, training
from asdlib.models.classifier import Batch

WEIGHTS, SPLIT = 4, 5  # random streams: initial weights, held-out clips
FEWEST_CLIPS = 3  # per machine: the scored clip, a reference, and its neighbor


def held_out(classes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Held-out mask, bool (n,): floor(share · size) clips of each class, drawn by the seed.

    classes : int or str (n,)
    """
    out = np.zeros(len(classes), bool)
    rng = np.random.default_rng([seed, SPLIT])
    for name in np.unique(classes):
        members = np.flatnonzero(classes == name)
        out[rng.permutation(members)[: int(share * len(members) + 1e-9)]] = True  # 0.3 · 10 is 2.9999…
    return out


class ClassifierTraining:
    """State learned by the classifier: `net`, `classes`, `kept_out` bool (training clips,) and `history`.

    The annotated attributes belong to `base.Detector`.
    """

    settings: classifier.ClassifierSettings
    seed: int
    device: torch.device
    checkpoints: Path | None
    training_dtype: torch.dtype
    store: Store
    train_rows: np.ndarray
    history: pd.DataFrame

    def _open(self) -> None:
        """Set up classes, held-out clips, and a network with initial weights."""
        self._read(self.store)
        names = training_classes(self.store.clips)[self.train_rows]
        self.classes, self.codes = np.unique(names.to_numpy(dtype=object).astype(str), return_inverse=True)
        if len(self.classes) < 2:
            raise errors.InputError(
                f"the training clips form a single class ({self.classes[0]}), expected at least 2; add"
                " machines, or remove classifier from systems"
            )
        for machine, count in zip(*np.unique(self.machines[self.train_rows], return_counts=True)):
            if count < FEWEST_CLIPS:  # fail before training, not after
                raise errors.InputError(
                    f"machine {machine} has {count} training clip{'s' * int(count > 1)}, expected at least"
                    f" {FEWEST_CLIPS} for the classifier's back-ends; add recordings or exclude it with"
                    " --machines"
                )
        self.class_machine = np.array([name.split("/", 1)[0] for name in self.classes])
        self.kept_out = held_out(self.codes, self.settings.holdout, self.seed)
        self.mean, self.std = self._statistics()
        with training.seeded_init(self.seed, WEIGHTS):
            self.net = classifier.Classifier(self.settings, len(self.classes), self.rate)
        self.net.to(self.device, memory_format=torch.channels_last)
        self._pairs: augment.MixPairs | None = None

    def _read(self, store: Store) -> None:
        """Use the clips of a store."""
        self.rate, self.resident, self.machines = (
            store.rate,
            store.to(self.device),
            store.clips["machine"].to_numpy(),
        )
        self.length = round(self.settings.clip_seconds * self.rate)
        self.embeddings: dict[int, np.ndarray] = {}  # store row -> embedding
        self.inner: dict[int, dict[str, np.ndarray]] = {}  # store row -> branch -> pooled stages

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std of the training clips of each store clip's machine, (clips,) on the device.

        Only for wave_norm = "machine", otherwise 0 and 1.
        """
        mean, std = np.zeros(len(self.machines), np.float32), np.ones(len(self.machines), np.float32)
        of = self.machines[self.train_rows]
        for machine in np.unique(of) if self.settings.wave_norm == "machine" else ():
            here = self.machines == machine
            mean[here], std[here] = machine_statistics(self.store, self.train_rows[of == machine])
        return torch.from_numpy(mean).to(self.device), torch.from_numpy(std).to(self.device)

    def _waves(self, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Waveforms of `clip_seconds`, float32 (n, samples), standardized.  rows, starts : (n,)"""
        wave = self.resident.segments(rows, starts, self.length)
        if self.settings.wave_norm == "none":
            return wave
        index = rows.to(self.mean.device)
        return (
            standardize(wave)
            if self.settings.wave_norm == "clip"
            else standardize(wave, self.mean[index], self.std[index])
        )

    def _train(self, others: np.ndarray) -> None:
        """Train on the training clips of all machines, excluding the held-out ones."""
        self._open()
        s = self.settings
        self.history = training.fit(
            self.net,
            self._batches,
            torch.optim.Adamax(self.net.parameters(), lr=s.lr),
            epochs=s.epochs,
            seed=self.seed,
            what=f"classifier, {len(self.classes)} classes",
            checkpoint=self.checkpoints and self.checkpoints / "checkpoint.pt",
            evaluate=self._held_out_accuracy if self.kept_out.any() else None,
            precision=self.training_dtype,
        )

    def synthetic(self) -> augment.MixPairs:
        """SMOTE items for training, as pairs of indices into the training clips that are not held out.

        Empty unless `smote.space` = "logmel". Within a machine, every class of two or more clips is
        oversampled to `smote.ratio` of the largest class. Neighbors are searched among log-mels of the
        beginning of the class's clips; k is capped by the class size. Source: report 2.2, 4.2; METHOD 4.13
        """
        s = self.settings.smote
        if self._pairs is None:
            used, codes = self.train_rows[~self.kept_out], self.codes[~self.kept_out]
            size = np.bincount(codes, minlength=len(self.classes))
            none = torch.empty(0, dtype=torch.int64)
            parts = [augment.MixPairs(none, none, torch.empty(0))]
            for code in np.flatnonzero(size > 1) if s.space == "logmel" else ():
                largest = int(size[self.class_machine == self.class_machine[code]].max())
                if size[code] >= int(s.ratio * largest):
                    continue
                own = np.flatnonzero(codes == code)
                mels = self._log_mels(used[own])
                x = np.zeros((len(own) + largest, mels.shape[1]), np.float32)
                x[: len(own)] = mels  # only the size of the largest class matters
                of_class, clips = np.arange(len(x)) < len(own), np.arange(len(x))
                made = augment.smote(
                    x, of_class, clips, ratio=s.ratio, k=min(s.k, len(own) - 1), seed=self.seed
                )
                place = torch.from_numpy(own)
                parts.append(augment.MixPairs(place[made.first], place[made.second], made.weight))
            joined = (
                torch.cat([getattr(part, name) for part in parts]) for name in ("first", "second", "weight")
            )
            self._pairs = augment.MixPairs(*joined)
        return self._pairs

    @torch.inference_mode()
    def _log_mels(self, rows: np.ndarray) -> np.ndarray:
        """Log-mels of the beginning of clips, float32 (clips, bands · frames)."""
        s, out = self.settings, []
        shape = {"n_fft": s.n_fft, "win": s.n_fft, "hop": s.hop_length, "n_mels": s.n_mels}
        for index in self._blocks(rows):
            wave = self._waves(index, torch.zeros_like(index))
            mel = features.log_mel(wave, **shape, high_hz=min(7800.0, self.rate / 2), rate=self.rate)
            out.append(mel.flatten(1).cpu().numpy())
        return np.concatenate(out)

    def _batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """Batches of one epoch, without host synchronization.

        Every clip occurs once, cropped at this epoch's start and mixed. Every synthetic item occurs once, its
        branch inputs interpolated between those of its parents by one weight, without mixup.
        """
        s, device, home = self.settings, self.device, self.resident.samples.device
        used, pairs = np.flatnonzero(~self.kept_out), self.synthetic()
        real, made = len(used), len(pairs)
        # clips, first parents, second parents
        clip = torch.cat([torch.arange(real), pairs.first, pairs.second])
        rows = torch.from_numpy(self.train_rows[used])[clip].to(home)
        labels = F.one_hot(torch.from_numpy(self.codes[used]), len(self.classes)).float()[clip].to(device)
        weight = torch.cat([torch.ones(real), pairs.weight]).to(device)
        count = self.resident.count[rows]
        room = (self.length + count - 1) // count * count - self.length  # slack of the tiled copies
        place = torch.rand(len(rows), generator=generator, device=generator.device, dtype=torch.float64).to(
            home
        )
        starts = (place * (room + 1)).long()
        for index in training.shuffled_batches(real + made, s.batch, generator, home):
            wave = self._waves(rows[index], starts[index])
            blend = augment.draw_mixup(len(index), prob=s.mixup_prob, generator=generator, beta=s.mixup_beta)
            if made:
                new = (index >= real).to(blend.weight.device)
                plain = new[blend.first] | new[blend.second]
                blend = dataclasses.replace(blend, weight=torch.where(plain, 1.0, blend.weight))
            inputs = classifier.branch_inputs(blend.of(wave), s, self.rate)
            if made:  # a real clip is its own other parent, at weight 0
                other = torch.where(index >= real, index + made, index)
                second = classifier.branch_inputs(self._waves(rows[other], starts[other]), s, self.rate)
                share = weight[index.to(device)]
                inputs = {
                    name: torch.lerp(second[name], x, share.reshape(-1, *[1] * (x.ndim - 1)))
                    for name, x in inputs.items()
                }
            yield Batch(inputs, blend.of(labels[index.to(device)]))

    def _blocks(self, rows: np.ndarray) -> Iterator[torch.Tensor]:
        for block in np.array_split(rows, -(-len(rows) // max(1, BATCH_SAMPLES // self.length))):
            yield torch.as_tensor(block, device=self.resident.samples.device)

    def _inputs(self, rows: np.ndarray, crop: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        """Branch inputs of clips in blocks, from the beginning or at another of the `crops`."""
        for index in self._blocks(rows):
            counts = self.resident.count[index].tolist()
            starts = [segment_starts(count, self.settings.crops, self.length)[crop] for count in counts]
            wave = self._waves(index, torch.as_tensor(np.array(starts), device=index.device))
            yield classifier.branch_inputs(wave, self.settings, self.rate)

    @torch.inference_mode()
    def _over_crops(
        self, rows: np.ndarray, of: Callable[[dict[str, torch.Tensor]], torch.Tensor]
    ) -> np.ndarray:
        """Mean of `of(inputs)` over the crops of each clip, float32 (clips, dim), in full precision."""
        crops = [
            np.concatenate([of(inputs).cpu().numpy() for inputs in self._inputs(rows, crop)])
            for crop in range(self.settings.crops)
        ]
        return np.mean(crops, axis=0)

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Clip embeddings before the heads, float32 (clips, dim · branches); one item per clip."""
        return self._over_crops(rows, self.net), np.arange(len(rows))

    @torch.inference_mode()
    def _probabilities(self) -> torch.Tensor:
        return torch.cat(
            [self.net.class_probabilities(inputs) for inputs in self._inputs(self.train_rows[self.kept_out])]
        )

    def _held_out_accuracy(self) -> dict[str, float]:
        table = self.accuracy()
        weight = table["clips"] / table["clips"].sum()
        return {name: float((table[name] * weight).sum()) for name in ("machine_accuracy", "class_accuracy")}

    @torch.inference_mode()
    def accuracy(self) -> pd.DataFrame:
        """Accuracy of the plain head on held-out training clips, for machine and class.

        returns : machine, clips (held out), machine_accuracy (most likely class is of this machine),
            class_accuracy; no row for a machine without held-out clips.  Notebook: 04_classifier
        """
        columns = ["machine", "clips", "machine_accuracy", "class_accuracy"]
        if not self.kept_out.any():
            return pd.DataFrame(columns=columns)
        guess, truth = self._probabilities().argmax(1).cpu().numpy(), self.codes[self.kept_out]
        machine = self.class_machine[truth]
        right = pd.DataFrame(
            {"machine": machine, "same": self.class_machine[guess] == machine, "exact": guess == truth}
        )
        table = right.groupby("machine").agg(
            clips=("same", "size"), machine_accuracy=("same", "mean"), class_accuracy=("exact", "mean")
        )
        return table.reset_index()[columns]

    def _save_training(self, folder: Path) -> None:
        """Save the weights."""
        training.save_weights(self.net, folder / "weights.safetensors")

    def _load_training(self, folder: Path) -> None:
        """Load what `_save_training` wrote."""
        self._open()
        training.load_weights(self.net, folder / "weights.safetensors")
