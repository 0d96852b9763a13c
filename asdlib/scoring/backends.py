"""Back-ends: anomaly scores from the embeddings of a trained network, per machine.

Conventions
-----------
Embeddings are rows, one per clip. All back-ends compute in float64 and, except `standardized_density`,
normalize embeddings to unit length first. `target` marks the training clips of the target domain; all others
(source or unknown domain) count as source.

A back-end is constructed from the training embeddings of one machine and called with the embeddings of other
clips. `training` scores its own training clips leave-clip-out, without references derived from the clip.

| name            | score                                                                               |
|-----------------|-------------------------------------------------------------------------------------|
| `kmeans`        | smallest 1 − cosine to k-means centers of the source clips and to each target clip  |
| `knn`           | Euclidean distance to the nearest training clip of either domain                    |
| `smote_knn`     | `knn` with SMOTE items of the target domain added to the references                 |
| `local_density` | smallest distance to a reference, divided by that reference's distance to its K nearest |
| `standardized_density` | mean of the 2 smallest such ratios (K = 2), embeddings divided by their deviation |

Leaving a clip out of the references does not undo that the network was trained on it. The detector therefore
raises the training scores to the level of the held-out clips (`thresholds.as_unseen`).

Sources: METHOD 3.5, 3.9, 4.13, 5.8. Notebooks: 04_classifier, 06_embeddings.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from asdlib import augment, errors, schemas
from asdlib.models import classifier, training
from asdlib.scoring.distances import (
    density_references,
    density_scores,
    density_scores_left_out,
    knn_distances,
)

FOLDS = 10  # cross-validation folds of the source clips in `KMeansCosine.training`
SMALLEST_DENSITY = 1e-6  # lower bound; closer unit vectors are treated as duplicates
FEWEST = 3  # minimum training clips per machine: the scored clip, a reference, and its neighbor


class Backend(Protocol):
    """Interface of a back-end; scores are float64, one per row, higher = more anomalous."""

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ): ...

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Scores (n,) of test embeddings (n, dim)."""
        ...

    def training(self) -> np.ndarray:
        """Leave-clip-out scores of the training clips, (n_train,)."""
        ...

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Difference between each row and the reference that determines its score, (n, dim).

        Computed in the back-end's own space (normalized or standardized).
        own : (n,) index of the row among the training clips, excluded from its references; -1 for new clips
        Notebook: 06_embeddings
        """
        ...


def unit(embedding: np.ndarray) -> np.ndarray:
    """L2-normalized rows, float64; all-zero rows stay zero."""
    x = np.asarray(embedding, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _references(train: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    schemas.embeddings(train, train)
    if len(train) < FEWEST or len(target) != len(train):
        raise errors.InputError(
            f"back-end got {len(train)} training clips with {len(target)} domain labels, expected at least"
            f" {FEWEST} clips of one machine and a label for each; add recordings"
        )
    return unit(train), np.asarray(target, bool)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances √(2 − 2·cosine) between unit rows, (n_a, n_b)."""
    return np.sqrt(np.maximum(2.0 - 2.0 * a @ b.T, 0.0))


def _decisive(away: np.ndarray, references: np.ndarray, parents: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Nearest reference per row, excluding those derived from the clip `own`.

    away : distances (n, references).  parents : (references, any number) clip indices, -1 for none
    """
    barred = ((parents[None] == own[:, None, None]) & (own >= 0)[:, None, None]).any(2)
    return references[np.where(barred, np.inf, away).argmin(1)]


def centers(x: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """k-means centers of unit rows, normalized to unit length.

    The cited code keeps the cluster means, which are shorter than 1. There 1 − ⟨e, c⟩ is no cosine distance:
    at the same angle it is larger for a wide cluster than for a narrow one or a single target clip (METHOD
    5.9).
    x : (n, dim).  returns : (at most `clusters`, dim)
    """
    clusters = min(clusters, len(np.unique(x, axis=0)))
    with training.one_thread():  # multi-threaded sums depend on the order in which threads finish
        return unit(KMeans(clusters, n_init=1, random_state=seed).fit(x).cluster_centers_)


class KMeansCosine:
    """Smallest 1 − cosine to the source centers and all target clips, in [0, 2].  Source: METHOD 3.5, 5.8.

    `training` uses 10-fold cross-validation over the source clips: each fold is scored against centers of the
    other folds. Target clips are scored against all centers and the other target clips. Exact leave-one-out
    would need one k-means fit per clip.
    """

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        self.x, self.target = _references(train, target)
        self.clusters, self.seed = settings.kmeans, seed
        self.centers = self._fit(~self.target)

    def _fit(self, chosen: np.ndarray) -> np.ndarray:
        return (
            centers(self.x[chosen], self.clusters, self.seed)
            if chosen.any()
            else np.empty((0, self.x.shape[1]))
        )

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Cosine distance (n,) of test embeddings (n, dim) to the nearest center or target clip."""
        schemas.embeddings(test, self.x)
        return (1.0 - unit(test) @ np.vstack([self.centers, self.x[self.target]]).T).min(1)

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Difference to the nearest center or target clip; centers include the source clip itself."""
        references = np.vstack([self.centers, self.x[self.target]])
        parents = np.concatenate([np.full(len(self.centers), -1), np.flatnonzero(self.target)])[:, None]
        return unit(test) - _decisive(1.0 - unit(test) @ references.T, references, parents, own)

    def training(self) -> np.ndarray:
        """Leave-clip-out scores of the training clips, (n_train,)."""
        to_target = 1.0 - self.x @ self.x[self.target].T
        to_target[np.flatnonzero(self.target), np.arange(to_target.shape[1])] = np.inf
        best = to_target.min(1, initial=np.inf)
        source = np.flatnonzero(~self.target)
        fold = np.full(len(self.x), -1)
        fold[np.random.default_rng(self.seed).permutation(source)] = np.arange(len(source)) % min(
            FOLDS, max(len(source), 1)
        )
        # -1: the target clips; centers are fitted to source clips only
        for number in range(-1, fold.max() + 1):
            scored = fold == number
            made = self.centers if number < 0 else self._fit((fold >= 0) & ~scored)
            if len(made):
                best[scored] = np.minimum(best[scored], (1.0 - self.x[scored] @ made.T).min(1))
        return best


class Nearest:
    """Distance to the nearest training clip of either domain, in [0, 2]."""

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        self.x, _ = _references(train, target)
        self.references, self.parents = self.x, np.arange(len(self.x))[:, None]

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Distance (n,) of test embeddings (n, dim) to the nearest reference."""
        return knn_distances(unit(test), self.references, k_max=1)[:, 0]

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Difference to the nearest training clip or synthetic item."""
        return unit(test) - _decisive(
            distances(unit(test), self.references), self.references, self.parents, own
        )

    def training(self) -> np.ndarray:
        """Leave-clip-out scores, (n_train,); synthetic items derived from a clip are excluded with it."""
        clip = np.arange(len(self.x))
        return knn_distances(self.x, self.references, k_max=1, test_clip=clip, train_clip=self.parents)[:, 0]


class SmoteNearest(Nearest):
    """`knn` with SMOTE target clips between unit embeddings (ratio 0.2, k 2), renormalized.  METHOD 5.8.

    Equal to `knn` for a machine with fewer than two target clips.
    """

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        super().__init__(train, target, settings, seed)
        smote, target = settings.smote, np.asarray(target, bool)
        few, clip = int(min(target.sum(), (~target).sum())), np.arange(len(self.x))
        if few > 1:
            blend = augment.smote(self.x, target, clip, ratio=smote.ratio, k=min(smote.k, few - 1), seed=seed)
            made = unit(blend.of(torch.from_numpy(self.x)).numpy())
            self.references = np.vstack([self.x, made])
            self.parents = np.vstack([np.repeat(self.parents, 2, axis=1), blend.parents(clip)])


class LocalDensity:
    """Smallest ‖x − r‖ / d_K(r), d_K(r) the mean distance of r to its K nearest references (METHOD 5.8).

    The minimum is taken over the ratios, not over the distances. K is capped by the number of references.
    """

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        self.x, _ = _references(train, target)
        self.between = distances(self.x, self.x)
        np.fill_diagonal(self.between, np.inf)
        # one fewer, so that K neighbors remain when a clip is left out
        self.k = min(settings.density_neighbors, len(self.x) - 2)
        self.order = np.argsort(self.between, axis=1)[:, : self.k + 1]
        self.near = np.take_along_axis(self.between, self.order, axis=1)

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Smallest density-relative distance (n,) of test embeddings (n, dim)."""
        schemas.embeddings(test, self.x)
        return (distances(unit(test), self.x) / self._density).min(1)

    @property
    def _density(self) -> np.ndarray:
        return np.maximum(self.near[:, : self.k].mean(1), SMALLEST_DENSITY)

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Difference to the training clip with the smallest ratio; densities include all training clips."""
        return unit(test) - _decisive(
            distances(unit(test), self.x) / self._density, self.x, np.arange(len(self.x))[:, None], own
        )

    def training(self) -> np.ndarray:
        """Leave-clip-out scores, (n_train,); each clip is also excluded from the other densities."""
        n, first, more = len(self.x), self.near[:, : self.k].sum(1), self.near[:, self.k]
        # (clip left out, reference): sum over the K nearest remaining references
        total = np.broadcast_to(first, (n, n)).copy()
        reference = np.repeat(np.arange(n), self.k)
        left_out = self.order[:, : self.k].ravel()
        total[left_out, reference] += more[reference] - self.between[left_out, reference]
        return (self.between / np.maximum(total / self.k, SMALLEST_DENSITY)).min(1)


class StandardizedDensity:
    """Density scores of `multires` (`distances.density_scores`): standardized, not unit-length embeddings.
    Source: METHOD 3.6, 3.10
    """

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        _references(train, target)
        self.train = np.asarray(train, np.float64)
        self.references = density_references(self.train)

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Scores (n,) of test embeddings (n, dim)."""
        return density_scores(test, self.references)

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Difference to the training clip with the smallest ratio; densities include all training clips."""
        x, references = np.asarray(test, np.float64) / self.references.deviation, self.references
        away = cdist(x, references.x) / references.density
        return x - _decisive(away, references.x, np.arange(len(references.x))[:, None], own)

    def training(self) -> np.ndarray:
        """Leave-clip-out scores, (n_train,); each clip is also excluded from deviations and densities."""
        return density_scores_left_out(self.train)


BACKENDS: dict[str, type[Backend]] = {
    "kmeans": KMeansCosine,
    "knn": Nearest,
    "smote_knn": SmoteNearest,
    "local_density": LocalDensity,
    "standardized_density": StandardizedDensity,
}
