"""Back-ends: anomaly scores of embeddings that a trained network made, one machine at a time.

Conventions
-----------
Embeddings are rows; every back-end but the last first brings them to unit length; all compute in float64.
`target` marks the training clips of the target domain; all others (source, or of unknown domain) count as
source. One item per clip.

A back-end is made from the training embeddings of one machine, is called with the embeddings of other clips,
and scores its own clips by `training`, leave-clip-out: no clip is among its own references, in whatever form.

| name            | score                                                                               |
|-----------------|-------------------------------------------------------------------------------------|
| `kmeans`        | smallest 1 − cosine to k-means centers of the source clips and to each target clip  |
| `knn`           | Euclidean distance to the nearest training clip of either domain                    |
| `smote_knn`     | the same with SMOTE items of the target domain among the references                 |
| `local_density` | smallest distance to a reference, divided by that reference's distance to its K nearest |
| `standardized_density` | the same (mean of the 2 smallest, K = 2) of vectors divided by their deviation |

The network saw the training clips while it learnt, whatever the back-end leaves out; the detector raises
their scores to the level of the clips that were held out (`thresholds.as_unseen`). Notebook 04_classifier
shows by how much.

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

FOLDS = 10  # of the source clips, for the k-means that score training clips
SMALLEST_DENSITY = 1e-6  # distance between unit vectors below which references are copies of each other
FEWEST = 3  # training clips of a machine: one to be scored, one reference, and that one's neighbor


class Backend(Protocol):
    """What every back-end answers to; scores are float64, one per row, higher = more anomalous."""

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ): ...

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Scores (n,) of test embeddings (n, dim)."""
        ...

    def training(self) -> np.ndarray:
        """Scores of the training clips, leave-clip-out."""
        ...

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Each row less the reference that decides its score, as the back-end compares them, (n, dim).

        own : (n,) position of the row among the training clips, which is then no reference of its own; -1 for
            new clips.  Notebook: 06_embeddings
        """
        ...


def unit(embedding: np.ndarray) -> np.ndarray:
    """Rows of unit length, float64; a row of zeros stays one."""
    x = np.asarray(embedding, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _references(train: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    schemas.embeddings(train, train)
    if len(train) < FEWEST or len(target) != len(train):
        raise errors.InputError(
            f"{len(train)} training clips with {len(target)} domains came to a back-end, expected at least"
            f" {FEWEST} of one machine; add recordings"
        )
    return unit(train), np.asarray(target, bool)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n_a, n_b) Euclidean distances of unit rows: √(2 − 2·cosine)."""
    return np.sqrt(np.maximum(2.0 - 2.0 * a @ b.T, 0.0))


def _decisive(away: np.ndarray, references: np.ndarray, parents: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Of each row of distances (n, references) the nearest reference with another parent than `own`.  parents
    : (references, any number), -1: none
    """
    barred = ((parents[None] == own[:, None, None]) & (own >= 0)[:, None, None]).any(2)
    return references[np.where(barred, np.inf, away).argmin(1)]


def centers(x: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """k-means centers of unit rows, brought back to unit length.

    The cited code leaves them as means, shorter than 1, so that 1 − ⟨e, c⟩ is larger for a wide cluster than
    for a narrow one at the same angle, and larger than for a single target clip: no cosine distance (METHOD
    5.9). Here it is one.
    x : (n, dim).  returns : (clusters or fewer, dim)
    """
    clusters = min(clusters, len(np.unique(x, axis=0)))
    with training.one_thread():  # threads would add up a cluster in the order in which they come to their end
        return unit(KMeans(clusters, n_init=1, random_state=seed).fit(x).cluster_centers_)


class KMeansCosine:
    """Smallest 1 − cosine to the centers of the source clips and to all target clips, 0 to 2.  Source: METHOD
    3.5, 5.8.

    For `training` the source clips are dealt to 10 folds; those of a fold are scored by centers of the other
    folds, and a target clip by all centers and the other target clips. Exact leave-one-out would need a
    k-means per clip.
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
        """Scores (n,) of test embeddings (n, dim): cosine distance to the nearest center or target clip."""
        schemas.embeddings(test, self.x)
        return (1.0 - unit(test) @ np.vstack([self.centers, self.x[self.target]]).T).min(1)

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Each row less the center or target clip next to it; a source clip's share in the centers stays."""
        references = np.vstack([self.centers, self.x[self.target]])
        parents = np.concatenate([np.full(len(self.centers), -1), np.flatnonzero(self.target)])[:, None]
        return unit(test) - _decisive(1.0 - unit(test) @ references.T, references, parents, own)

    def training(self) -> np.ndarray:
        """Scores of the training clips, leave-clip-out."""
        to_target = 1.0 - self.x @ self.x[self.target].T
        to_target[np.flatnonzero(self.target), np.arange(to_target.shape[1])] = np.inf
        best = to_target.min(1, initial=np.inf)
        source = np.flatnonzero(~self.target)
        fold = np.full(len(self.x), -1)
        fold[np.random.default_rng(self.seed).permutation(source)] = np.arange(len(source)) % min(
            FOLDS, max(len(source), 1)
        )
        for number in range(-1, fold.max() + 1):  # -1: the target clips, which no center contains
            scored = fold == number
            made = self.centers if number < 0 else self._fit((fold >= 0) & ~scored)
            if len(made):
                best[scored] = np.minimum(best[scored], (1.0 - self.x[scored] @ made.T).min(1))
        return best


class Nearest:
    """Distance to the nearest training clip, 0 to 2: source and target pooled, which is the smaller of the
    two domains' distances.
    """

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        self.x, _ = _references(train, target)
        self.references, self.parents = self.x, np.arange(len(self.x))[:, None]

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Scores (n,) of test embeddings (n, dim): distance to the nearest reference."""
        return knn_distances(unit(test), self.references, k_max=1)[:, 0]

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Each row less the reference next to it: a training clip or a synthetic item."""
        return unit(test) - _decisive(
            distances(unit(test), self.references), self.references, self.parents, own
        )

    def training(self) -> np.ndarray:
        """Scores of the training clips among the others and the items that are no child of theirs."""
        clip = np.arange(len(self.x))
        return knn_distances(self.x, self.references, k_max=1, test_clip=clip, train_clip=self.parents)[:, 0]


class SmoteNearest(Nearest):
    """`knn` with synthetic target clips: SMOTE between unit embeddings (ratio 0.2, k 2), brought back to unit
    length.  METHOD 5.8.

    A machine with fewer than two target clips gets none, and is scored as by `knn`.
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
    """Smallest ‖x − r‖ / d_K(r), d_K(r) the mean distance of reference r to its K nearest references.
    Source: METHOD 5.8.

    The smallest of the divided distances, not the divided smallest. K is at most the number of references
    left for r.
    """

    def __init__(
        self, train: np.ndarray, target: np.ndarray, settings: classifier.ClassifierSettings, seed: int
    ):
        self.x, _ = _references(train, target)
        self.between = distances(self.x, self.x)
        np.fill_diagonal(self.between, np.inf)
        self.k = min(settings.density_neighbors, len(self.x) - 2)  # also when a clip is left out
        self.order = np.argsort(self.between, axis=1)[:, : self.k + 1]
        self.near = np.take_along_axis(self.between, self.order, axis=1)

    def __call__(self, test: np.ndarray) -> np.ndarray:
        """Scores (n,) of test embeddings (n, dim): the least distance, each relative to local density."""
        schemas.embeddings(test, self.x)
        return (distances(unit(test), self.x) / self._density).min(1)

    @property
    def _density(self) -> np.ndarray:
        return np.maximum(self.near[:, : self.k].mean(1), SMALLEST_DENSITY)

    def gap(self, test: np.ndarray, own: np.ndarray) -> np.ndarray:
        """Less the training clip at the smallest divided distance; densities are those of all of them."""
        return unit(test) - _decisive(
            distances(unit(test), self.x) / self._density, self.x, np.arange(len(self.x))[:, None], own
        )

    def training(self) -> np.ndarray:
        """Scores of the training clips; a clip is missing among the neighbors of its references too."""
        n, first, more = len(self.x), self.near[:, : self.k].sum(1), self.near[:, self.k]
        total = np.broadcast_to(
            first, (n, n)
        ).copy()  # (clip left out, reference): sum over the K nearest that remain
        reference = np.repeat(np.arange(n), self.k)
        left_out = self.order[:, : self.k].ravel()
        total[left_out, reference] += more[reference] - self.between[left_out, reference]
        return (self.between / np.maximum(total / self.k, SMALLEST_DENSITY)).min(1)


class StandardizedDensity:
    """`distances.density_scores`: local density where each dimension counts in units of its deviation over
    the training clips, as in `multires`; nothing is brought to unit length.  Source: METHOD 3.6, 3.10
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
        """Less the training clip at the smallest divided distance; densities are those of all of them."""
        x, references = np.asarray(test, np.float64) / self.references.deviation, self.references
        away = cdist(x, references.x) / references.density
        return x - _decisive(away, references.x, np.arange(len(references.x))[:, None], own)

    def training(self) -> np.ndarray:
        """Scores of the training clips; a clip is missing in deviations and densities too."""
        return density_scores_left_out(self.train)


BACKENDS: dict[str, type[Backend]] = {
    "kmeans": KMeansCosine,
    "knn": Nearest,
    "smote_knn": SmoteNearest,
    "local_density": LocalDensity,
    "standardized_density": StandardizedDensity,
}
