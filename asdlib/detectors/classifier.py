"""The classification-based detector: one network for all machines, and four back-ends on its embeddings.

The network learns which machine, attribute values and domain a normal training clip has; a clip whose
embedding lies far from all training embeddings of its machine is anomalous. Classes come from training clips
only: an attribute value that first occurs in a test clip never becomes one (METHOD 5.4). A class is held out
in part (`classifier.holdout`, the whole part of that share, so classes of few clips keep them all) for the
accuracy that is logged; nothing is selected by it.

Clips are tiled or cropped to `clip_seconds`: in training from a random place that is drawn anew every epoch,
for embeddings from the start (METHOD 5.1). A tiled clip starts anywhere in the room that its last copy
leaves. Waveforms are standardised (`classifier.wave_norm`, METHOD 3.2) before they are mixed: with none, as
in the cited code, a recording at half the gain scores as an anomaly.

Components of the scores: every back-end of `asdlib.scoring.backends`, and `_score`, the one chosen by
`classifier.backend`. Sources: report 3.1; METHOD 3.5, 5. Notebook: 04_classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from asdlib import augment, errors
from asdlib.data.index import training_classes
from asdlib.data.store import Store, machine_statistics, standardize
from asdlib.detectors.base import BATCH_SAMPLES, Detector, Scores, clip_by_clip
from asdlib.models import classifier, training
from asdlib.models.classifier import Batch
from asdlib.scoring import backends

WEIGHTS, SPLIT = 4, 5  # streams of the seed: initial weights, held-out clips
EMBEDDINGS = "embeddings.safetensors"


def held_out(classes: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool (n,): the whole part of `share` of each class's clips, drawn by the seed, never all of them.
    classes : int or str (n,)
    """
    out = np.zeros(len(classes), bool)
    rng = np.random.default_rng([seed, SPLIT])
    for name in np.unique(classes):
        members = np.flatnonzero(classes == name)
        out[rng.permutation(members)[: int(share * len(members) + 1e-9)]] = True  # 0.3 · 10 is 2.9999…
    return out


class Classifier(Detector):
    """System `classifier`. Rows may be of several machines: the network is shared, the back-ends belong to
    one machine (or section) each.
    """

    name, Settings, systems = "classifier", classifier.ClassifierSettings, ("classifier",)

    def _prepare(self) -> None:
        """Classes, the held-out clips, and a network with fresh weights."""
        self._read(self.store)
        self.trained_target = self.store.clips["domain"].to_numpy()[self.train_rows] == "target"
        names = training_classes(self.store.clips)[self.train_rows]
        self.classes, self.codes = np.unique(names.to_numpy(dtype=object).astype(str), return_inverse=True)
        if len(self.classes) < 2:
            raise errors.InputError(
                f"the training clips make 1 class ({self.classes[0]}), expected 2 or more; add machines, or"
                " take classifier out of systems"
            )
        for machine, count in zip(*np.unique(self.machines[self.train_rows], return_counts=True)):
            if count < backends.FEWEST:  # said before hours of training, not after
                raise errors.InputError(
                    f"machine {machine} has {count} training clip{'s' * int(count > 1)}, the classifier's"
                    f" back-ends expect at least {backends.FEWEST}; add recordings or leave it out with"
                    " --machines"
                )
        self.class_machine = np.array([name.split("/", 1)[0] for name in self.classes])
        self.kept_out = held_out(self.codes, self.settings.holdout, self.seed)
        self.mean, self.std = self._statistics()
        with training.seeded_init(self.seed, WEIGHTS):
            self.net = classifier.Classifier(self.settings, len(self.classes), self.rate)
        self.net.to(self.device, memory_format=torch.channels_last)

    def _read(self, store: Store) -> None:
        """Take clips from a store from now on."""
        self.rate, self.resident, self.machines = (
            store.rate,
            store.to(self.device),
            store.clips["machine"].to_numpy(),
        )
        self.length = round(self.settings.clip_seconds * self.rate)
        self.embeddings: dict[int, np.ndarray] = {}  # store row: its embedding

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For wave_norm = "machine": mean and std of its machine's training clips for every clip of the
        store, (clips,) on the device.
        """
        mean, std = np.zeros(len(self.machines), np.float32), np.ones(len(self.machines), np.float32)
        of = self.machines[self.train_rows]
        for machine in np.unique(of) if self.settings.wave_norm == "machine" else ():
            here = self.machines == machine
            mean[here], std[here] = machine_statistics(self.store, self.train_rows[of == machine])
        return torch.from_numpy(mean).to(self.device), torch.from_numpy(std).to(self.device)

    def _waves(self, rows: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Standardised waveforms of `clip_seconds`, float32 (n, samples): by themselves, by their machine, or
        as they are.  rows, starts : (n,)
        """
        wave = self.resident.segments(rows, starts, self.length)
        if self.settings.wave_norm == "none":
            return wave
        index = rows.to(self.mean.device)
        return (
            standardize(wave)
            if self.settings.wave_norm == "clip"
            else standardize(wave, self.mean[index], self.std[index])
        )

    def _fit(self, others: np.ndarray) -> None:
        """Train on the training clips of all machines, less the held-out ones, then embed all of them."""
        self._prepare()
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
        self._keep(self.train_rows, self._embed(self.train_rows)[0])

    def _batches(self, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch: every clip once, from its place of this epoch, mixed, as features and soft labels.
        Nothing here waits for a GPU.
        """
        s, device, home = self.settings, self.device, self.resident.samples.device
        used = np.flatnonzero(~self.kept_out)
        rows = torch.from_numpy(self.train_rows[used]).to(home)
        labels = F.one_hot(torch.from_numpy(self.codes[used]), len(self.classes)).float().to(device)
        count = self.resident.count[rows]
        room = (self.length + count - 1) // count * count - self.length  # of the copies that cover the length
        place = torch.rand(len(rows), generator=generator, device=generator.device, dtype=torch.float64).to(
            home
        )
        starts = (place * (room + 1)).long()
        for index in training.shuffled_batches(len(rows), s.batch, generator, home):
            wave = self._waves(rows[index], starts[index])
            y = labels[index.to(device)]
            wave, y = augment.mixup(wave, y, prob=s.mixup_prob, generator=generator, beta=s.mixup_beta)
            yield Batch(classifier.branch_inputs(wave, s, self.rate), y)

    def _inputs(self, rows: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
        """Branch inputs of clips from their start, in blocks that fit."""
        for block in np.array_split(rows, -(-len(rows) // max(1, BATCH_SAMPLES // self.length))):
            index = torch.as_tensor(block, device=self.resident.samples.device)
            yield classifier.branch_inputs(
                self._waves(index, torch.zeros_like(index)), self.settings, self.rate
            )

    @torch.inference_mode()
    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embedding of each clip before the heads, float32 (clips, dim · branches), and one item per clip.
        Always computed in float32.
        """
        made = [self.net(inputs).cpu().numpy() for inputs in self._inputs(rows)]
        return np.concatenate(made), np.arange(len(rows))

    def _keep(self, rows: np.ndarray, embedding: np.ndarray) -> None:
        self.embeddings.update(zip(np.asarray(rows).tolist(), embedding))
        if rows is self.train_rows:
            self.train_vectors, self._backends = self._vectors(rows), {}

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self.embeddings[row] for row in np.asarray(rows).tolist()])

    def _made(
        self, machine: str, columns: slice | np.ndarray, names: Sequence[str]
    ) -> dict[str, backends.Backend]:
        """Back-ends of a machine, on some columns of its training embeddings."""
        own = self.group == machine
        with training.one_thread():
            parts = self.train_vectors[own][:, columns], self.trained_target[own], self.settings, self.seed
            return {name: backends.BACKENDS[name](*parts) for name in names}

    def _by_machine(self, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(machine or section, positions in rows); one that was not trained on is refused."""
        of = self.group_of(self.store.clips.iloc[rows])
        for machine in np.unique(of):
            errors.check_choice("machine of a trained classifier", machine, sorted(set(self.group)))
            yield machine, np.flatnonzero(of == machine)

    def _backends_of(self, machine: str) -> dict[str, backends.Backend]:
        """All back-ends of one machine, made when they are first asked for."""
        if machine not in self._backends:
            self._backends[machine] = self._made(machine, slice(None), list(backends.BACKENDS))
        return self._backends[machine]

    def _named(self, values: dict[str, np.ndarray]) -> Scores:
        return {("classifier", "score"): values[self.settings.backend]} | {
            ("classifier", name): x for name, x in values.items()
        }

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Score of clips that are not training clips, by every back-end of their machine."""
        embedding = self._embed(rows)[0]
        self._keep(rows, embedding)
        values = {name: np.empty(len(rows)) for name in backends.BACKENDS}
        for machine, where in self._by_machine(rows):
            for name, backend in self._backends_of(machine).items():
                values[name][where] = backend(embedding[where])
        return self._named(values)

    def _training_scores(self) -> Scores:
        """Score of each training clip, leave-clip-out in the back-ends; the network saw all but the held-out
        ones.
        """
        values = {name: np.empty(len(self.train_rows)) for name in backends.BACKENDS}
        for machine, where in self._by_machine(self.train_rows):
            for name, backend in self._backends_of(machine).items():
                values[name][where] = backend.training()
        return self._named(values)

    def branch_scores(self, rows: np.ndarray) -> Scores:
        """What each branch carries: scores by the chosen back-end on parts of the embeddings that were
        already made.

        returns : components `all branches`, `only <branch>` (its columns of the embedding and nothing else,
            in training clips and in the clips scored alike) and `without <branch>` (all other columns). The
            network is not trained again: a branch by itself is judged
            as it learnt beside the others, which may have left work to them.  Notebook: 04_classifier
        """
        s, column = self.settings, np.repeat(np.arange(len(self.settings.branches)), self.settings.dim)
        chosen = {"all branches": np.full(len(column), True)}
        if len(s.branches) > 1:
            chosen |= {f"only {name}": column == i for i, name in enumerate(s.branches)}
            chosen |= {f"without {name}": column != i for i, name in enumerate(s.branches)}
        out, embedding = {}, self._vectors(rows)
        for part, columns in chosen.items():
            out["classifier", part] = np.empty(len(rows))
            for machine, where in self._by_machine(rows):
                backend = self._made(machine, columns, [s.backend])[s.backend]
                out["classifier", part][where] = backend(embedding[where][:, columns])
        return out

    def branch_parts(self, rows: np.ndarray) -> np.ndarray:
        """What each branch adds to the squared distance between a clip's unit embedding and the reference
        that decides its score.

        returns : float64 (clips, branches), >= 0, in the order of `classifier.branches`; the sum of a row is
            d² = 2·(1 − cosine), so that half
            of it is the score of `kmeans` and its root that of `knn`. Training clips are no reference of
            their own.  Notebook: 06_embeddings
        """
        rows, width = np.asarray(rows), self.settings.dim
        fresh = np.array([row for row in rows.tolist() if row not in self.embeddings], dtype=int)
        if len(fresh):
            self._keep(fresh, self._embed(fresh)[0])
        embedding, out = self._vectors(rows), np.empty((len(rows), len(self.settings.branches)))
        for machine, where in self._by_machine(rows):
            train = (
                self.train_rows[self.group == machine] if len(self.train_rows) else self.train_rows
            )  # none of another store
            place = {row: i for i, row in enumerate(train.tolist())}
            own = np.array([place.get(row, -1) for row in rows[where].tolist()])
            gap = backends.unit(embedding[where]) - self._backends_of(machine)[self.settings.backend].nearest(
                embedding[where], own
            )
            out[where] = (gap**2).reshape(len(where), -1, width).sum(2)
        return out

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
        """How often the plain head names the machine and the class of held-out training clips.

        returns : machine, clips (held out), machine_accuracy (the likeliest class is of this machine),
            class_accuracy; no row for a
            machine without held-out clips.  Notebook: 04_classifier
        """
        columns = ["machine", "clips", "machine_accuracy", "class_accuracy"]
        if not self.kept_out.any():
            return pd.DataFrame(columns=columns)
        said, truth = self._probabilities().argmax(1).cpu().numpy(), self.codes[self.kept_out]
        machine = self.class_machine[truth]
        right = pd.DataFrame(
            {"machine": machine, "same": self.class_machine[said] == machine, "exact": said == truth}
        )
        table = right.groupby("machine").agg(
            clips=("same", "size"), machine_accuracy=("same", "mean"), class_accuracy=("exact", "mean")
        )
        return table.reset_index()[columns]

    def _save(self, folder: Path) -> None:
        """Weights, and every embedding made: `embedding` float32 (n, dim · branches) and `clip` int64 (n,),
        the row in the store.
        """
        training.save_weights(self.net, folder / "weights.safetensors")
        rows = np.array(sorted(self.embeddings), dtype=np.int64)
        save_file({"embedding": self._vectors(rows), "clip": rows}, folder / EMBEDDINGS)

    def _load(self, folder: Path) -> None:
        """What `save` wrote; embeddings of other training clips than these are refused."""
        self._prepare()
        training.load_weights(self.net, folder / "weights.safetensors")
        self.embeddings = dict(zip(*load_embeddings(folder)))
        if not set(self.train_rows.tolist()) <= set(self.embeddings):
            raise errors.InputError(
                f"{folder / EMBEDDINGS}: lacks the embeddings of some training clips; run the study again"
            )
        self._keep(self.train_rows, self._vectors(self.train_rows))

    def _moved(self, other: Classifier) -> None:
        other._read(other.store)
        other.train_rows = np.empty(0, np.int64)  # none of the other store's clips was trained on


def load_embeddings(folder: Path) -> tuple[list[int], np.ndarray]:
    """Store rows and their embeddings float32 (n, dim · branches) of a finished classifier, without its
    network.

    raises : errors.InputError for a file that is missing, torn or foreign
    """
    path = folder / EMBEDDINGS
    try:
        found = load_file(path)
        return found["clip"].tolist(), found["embedding"]
    except Exception as error:
        raise errors.InputError(
            f"{path}: does not hold embeddings ({type(error).__name__}); run the study again"
        ) from error


def ablations(settings: classifier.ClassifierSettings) -> dict[str, classifier.ClassifierSettings]:
    """Settings of the short trainings that notebook 04 compares: `full`, and each regulariser taken out; none
    if `ablation` is 0.
    """
    if not settings.ablation:
        return {}
    full = settings.replace(epochs=settings.ablation)
    changed = {"no mixup": {"mixup_prob": 0.0}, "no FeatEx": {"featex_weight": 0.0}}
    return {"full": full} | {name: full.replace(**change) for name, change in changed.items()}
