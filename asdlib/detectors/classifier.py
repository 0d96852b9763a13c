"""Classification-based detector: one network for all machines, and back-ends on its embeddings.

The network predicts machine, attribute values and domain of a normal training clip; a clip whose embedding is
far from all training embeddings of its machine is anomalous. Classes come from training clips only: attribute
values that first occur in test clips are ignored (METHOD 5.4). Part of each class is held out
(`classifier.holdout`, rounded down, so small classes are kept whole) for the logged accuracy only.

With `classifier.smote.space = "logmel"` synthetic items are added to training (`synthetic`).

Clips are tiled or cropped to `clip_seconds`: from a random start drawn anew every epoch in training, from the
beginning for embeddings (METHOD 5.1). Tiled clips start at random within the slack of their last copy.
Waveforms are standardized (`classifier.wave_norm`, METHOD 3.2) before mixup: without, as in the cited code, a
recording at half the gain would score as an anomaly.

Components: every back-end of `asdlib.scoring.backends`, and `_score` of `classifier.backend`. Sources: report
3.1; METHOD 3.5, 5. Notebook: 04_classifier.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from asdlib import errors, io
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.detectors.classifier_training import ClassifierTraining
from asdlib.models import classifier, training
from asdlib.scoring import backends, pooling
from asdlib.settings import to_tree

EMBEDDINGS = "embeddings.safetensors"


class Classifier(ClassifierTraining, Detector):
    """Detector `classifier`: one network for all machines, back-ends per machine (or section)."""

    name, Settings, systems = "classifier", classifier.ClassifierSettings, ("classifier",)
    training_module = "asdlib.detectors.classifier_training"
    scoring_settings = (
        *("crops", "layers", "pooling", "backend", "kmeans", "density_neighbors", "smote", "ablation"),
    )

    @classmethod
    def check(cls, settings: classifier.ClassifierSettings) -> None:
        """Check the name of the back-end.  raises : errors.InputError"""
        errors.check_choice("classifier.backend", settings.backend, list(backends.BACKENDS))

    def training_settings(self) -> dict:
        """Settings that affect training; SMOTE on embeddings only affects a back-end."""
        chosen, smote = super().training_settings(), self.settings.smote
        return chosen if smote.space == "embed" else chosen | {"smote": to_tree(smote)}

    def _prepare(self) -> None:
        """Compute the training embeddings."""
        self.trained_target = self.store.clips["domain"].to_numpy()[self.train_rows] == "target"
        self.train_vectors, self._backends = self.compared(self.train_rows), {}

    def _accept(self) -> None:
        self._backends = {}

    def _vectors(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of clips, (clips, dim · branches), cached.

        Training clips are computed in fixed blocks, other clips one by one.
        """
        for block in self._new(rows, self.embeddings):
            self.embeddings.update(zip(block.tolist(), self._embed(block)[0]))
        return np.stack([self.embeddings[row] for row in rows.tolist()])

    def _new(self, rows: np.ndarray, known: Container[int]) -> list[np.ndarray]:
        new = np.array([row for row in rows.tolist() if row not in known], np.int64)
        own = np.isin(new, self.train_rows)
        return [*([new[own]] if own.any() else []), *new[~own, None]]

    def parts(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Vectors compared by the back-ends per branch, float32 (clips, dim of the branch), cached.

        A branch's columns of the embedding, or its pooled stages (not for `fft`).  Notebook: 04_classifier
        """
        s = self.settings
        if not s.inner:
            return dict(zip(s.branches, np.split(self._vectors(rows), len(s.branches), axis=1)))
        names = [name for name in s.branches if name != "fft"]
        for block in self._new(rows, self.inner):
            of = [self._over_crops(block, functools.partial(self._pooled, name)) for name in names]
            self.inner.update((row, dict(zip(names, parts))) for row, *parts in zip(block.tolist(), *of))
        return {name: np.stack([self.inner[row][name] for row in rows.tolist()]) for name in names}

    def _pooled(self, branch: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        stages = self.net.branches[branch].stages(inputs[branch])
        return pooling.pool([stages[name] for name in self.settings.layers], self.settings.pooling)

    def compared(self, rows: np.ndarray) -> np.ndarray:
        """Concatenated `parts`, float32 (clips, dim). Notebook: 04_classifier"""
        return np.concatenate(list(self.parts(rows).values()), axis=1)

    def embedding_inputs(self) -> dict:
        """Crops, layers, pooling and code; empty for the embedding of a clip's beginning."""
        s, found = self.settings, {}
        if s.crops > 1:
            found["crops"] = s.crops
        if s.inner:
            found |= {"layers": s.layers, "pooling": s.pooling, "code": io.code(type(self).__module__)}
        return found

    def embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`embedding` float32 (clips, dim · branches); with stages `inner_<branch>` (clips, branch dim)."""
        inner = self.parts(rows) if self.settings.inner else {}
        return {"embedding": self._vectors(rows)} | {f"inner_{name}": x for name, x in inner.items()}

    def take_embedded(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Set embeddings from `embedded`."""
        self.embeddings.update(zip(rows.tolist(), arrays["embedding"]))
        inner = {name[6:]: x for name, x in arrays.items() if name.startswith("inner_")}
        for i, row in enumerate(rows.tolist() if inner else ()):
            self.inner[row] = {name: x[i] for name, x in inner.items()}

    def _made(
        self, machine: str, columns: slice | np.ndarray, names: Sequence[str]
    ) -> dict[str, backends.Backend]:
        """Back-ends of a machine on some columns of its training embeddings.

        Accepted clips are individual references, like target clips.
        """
        own = self.group == machine
        more = self.accepted.get(machine, self.train_vectors[:0])
        vectors = np.concatenate([self.train_vectors[own], more])[:, columns]
        target = np.concatenate([self.trained_target[own], np.full(len(more), True)])
        with training.one_thread():
            parts = vectors, target, self.settings, self.seed
            return {name: backends.BACKENDS[name](*parts) for name in names}

    def _by_machine(self, rows: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (machine or section, positions in rows); raises errors.InputError for one not trained on."""
        of = self.group_of(self.store.clips.iloc[rows])
        for machine in np.unique(of):
            errors.check_choice("machine of a trained classifier", machine, sorted(set(self.group)))
            yield machine, np.flatnonzero(of == machine)

    def _backends_of(self, machine: str) -> dict[str, backends.Backend]:
        """All back-ends of one machine, cached."""
        if machine not in self._backends:
            self._backends[machine] = self._made(machine, slice(None), list(backends.BACKENDS))
        return self._backends[machine]

    def _named(self, values: dict[str, np.ndarray]) -> Scores:
        return {("classifier", "score"): values[self.settings.backend]} | {
            ("classifier", name): x for name, x in values.items()
        }

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Scores of new clips by every back-end of their machine."""
        vectors = self.compared(rows)
        values = {name: np.empty(len(rows)) for name in backends.BACKENDS}
        for machine, where in self._by_machine(rows):
            for name, backend in self._backends_of(machine).items():
                values[name][where] = backend(vectors[where])
        return self._named(values)

    @property
    def unseen(self) -> np.ndarray:
        """Held-out training clips."""
        return self.kept_out

    def _training_scores(self) -> Scores:
        """Leave-clip-out scores of the training clips; the network saw all but the held-out ones."""
        values = {name: np.empty(len(self.train_rows)) for name in backends.BACKENDS}
        for machine, where in self._by_machine(self.train_rows):
            for name, backend in self._backends_of(machine).items():
                values[name][where] = backend.training()
        return self._named(values)

    def branch_scores(self, rows: np.ndarray) -> Scores:
        """Scores by the chosen back-end on parts of the existing embeddings, to compare branches.

        returns : components `all branches`, `only <branch>` (only its columns of the embedding, for training
            and scored clips alike) and `without <branch>` (all other columns). The network is not retrained,
            so branches are evaluated as trained jointly.  Notebook: 04_classifier
        """
        s, parts = self.settings, self.parts(rows)
        column = np.repeat(np.arange(len(parts)), [x.shape[1] for x in parts.values()])
        chosen = {"all branches": np.full(len(column), True)}
        if len(parts) > 1:
            chosen |= {f"only {name}": column == i for i, name in enumerate(parts)}
            chosen |= {f"without {name}": column != i for i, name in enumerate(parts)}
        out, vectors = {}, np.concatenate(list(parts.values()), axis=1)
        for part, columns in chosen.items():
            out["classifier", part] = np.empty(len(rows))
            for machine, where in self._by_machine(rows):
                backend = self._made(machine, columns, [s.backend])[s.backend]
                out["classifier", part][where] = backend(vectors[where][:, columns])
        return out

    def branch_parts(self, rows: np.ndarray) -> np.ndarray:
        """Each branch's share of the squared distance to the reference that determines the score.

        Measured in the space in which the back-end compares vectors.
        returns : float64 (clips, branches), >= 0, in the order of `classifier.branches`, 0 for branches not
            compared; for `kmeans` a row sums to twice the score. Training clips are not their own reference.
            Notebook: 06_embeddings
        """
        rows, parts = np.asarray(rows), self.parts(np.asarray(rows))
        vectors, out = np.concatenate(list(parts.values()), axis=1), np.zeros((len(rows), len(parts)))
        first = np.cumsum([0, *(x.shape[1] for x in parts.values())])[:-1]
        for machine, where in self._by_machine(rows):
            # empty for another store
            train = self.train_rows[self.group == machine] if len(self.train_rows) else self.train_rows
            place = {row: i for i, row in enumerate(train.tolist())}
            own = np.array([place.get(row, -1) for row in rows[where].tolist()])
            gap = self._backends_of(machine)[self.settings.backend].gap(vectors[where], own)
            out[where] = np.add.reduceat(gap**2, first, axis=1)
        places = [self.settings.branches.index(name) for name in parts]
        every = np.zeros((len(rows), len(self.settings.branches)))
        every[:, places] = out
        return every

    def _save(self, folder: Path) -> None:
        """Save all computed embeddings as given by `embedded`, and `clip` int64 (n,), store rows."""
        rows = np.array(sorted(self.embeddings), dtype=np.int64)
        save_file(self.embedded(rows) | {"clip": rows}, folder / EMBEDDINGS)

    def _load(self, folder: Path) -> None:
        """Load what `_save` wrote.  raises : errors.InputError if training clips are missing"""
        found = _read(folder)
        self.take_embedded(found.pop("clip"), found)
        if not set(self.train_rows.tolist()) <= set(self.embeddings):
            raise errors.InputError(
                f"{folder / EMBEDDINGS}: embeddings of some training clips are missing; run the study again"
            )
        self._prepare()

    def standardization(self) -> dict[str, np.ndarray]:
        """`mean` and `std` float32 (clips of the store,) of each clip's machine."""
        arrays = {"mean": self.mean.cpu().numpy(), "std": self.std.cpu().numpy()}
        return arrays if self.settings.wave_norm == "machine" else {}

    def take_standardization(self, arrays: dict[str, np.ndarray]) -> None:
        """Set statistics from `standardization`."""
        self.mean, self.std = (torch.from_numpy(arrays[name]).to(self.device) for name in ("mean", "std"))

    def _moved(self, other: Classifier) -> None:
        other._read(other.store)
        if self.settings.wave_norm == "machine":
            row_of = {self.machines[row]: row for row in self.train_rows.tolist()}
            for machine in np.unique(other.machines):
                errors.check_choice("machine of a trained classifier", machine, sorted(row_of))
            rows = torch.tensor([row_of[machine] for machine in other.machines], device=self.mean.device)
            other.mean, other.std = self.mean[rows], self.std[rows]
        other.train_rows = np.empty(0, np.int64)  # no training clips in the other store


def load_embeddings(folder: Path) -> tuple[list[int], np.ndarray]:
    """Store rows and embeddings float32 (n, dim · branches) of a finished classifier, without its network.

    raises : errors.InputError for a missing, damaged or foreign file
    """
    found = _read(folder)
    return found["clip"].tolist(), found["embedding"]


def _read(folder: Path) -> dict[str, np.ndarray]:
    path = folder / EMBEDDINGS
    try:
        found = load_file(path)
        return {"clip": found["clip"], "embedding": found["embedding"]} | found
    except Exception as error:
        raise errors.InputError(
            f"{path}: does not contain embeddings ({type(error).__name__}); run the study again"
        ) from error


def ablations(settings: classifier.ClassifierSettings) -> dict[str, classifier.ClassifierSettings]:
    """Settings of the short trainings compared in notebook 04: `full`, and without each regularizer.

    Empty if `ablation` is 0.
    """
    if not settings.ablation:
        return {}
    full = settings.replace(epochs=settings.ablation)
    changed = {"no mixup": {"mixup_prob": 0.0}, "no FeatEx": {"featex_weight": 0.0}}
    return {"full": full} | {name: full.replace(**change) for name, change in changed.items()}
