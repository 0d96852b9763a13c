"""Back-ends on anyone's embeddings, with PyOD's names: fitted to vectors of normal items, they score vectors.

Conventions
-----------
Higher is more anomalous (scikit-learn's `score_samples` has the opposite sign). A vector that is scored never
depends on another one that is scored, and `decision_scores_` of the fitted vectors leave each vector out of
its own references.

    scores = KNN(k=2).fit(train).decision_function(test)

They are what the detectors use: `distances`, `backends` and `thresholds`.  Source: METHOD 5.8; Wilkinghoff et
al. (local density).
"""

from __future__ import annotations

import inspect
from typing import Self

import numpy as np

from asdlib import errors
from asdlib.models.classifier import ClassifierSettings
from asdlib.scoring import backends, distances, thresholds


class Estimator:
    """What every back-end on arrays answers to.

    Raises
    ------
    errors.InputError for arrays of another shape or width, not finite or too few, and before `fit`
    """

    contamination = 0.1

    def fit(self, x: np.ndarray, target: np.ndarray | None = None) -> Self:
        """Remember normal vectors.

        Parameters
        ----------
        x : float (n, dim)
        target : bool (n,), which of them belong to the target domain; None: none.  Read by `KMeansCosine`
            only
        """
        x = _vectors(x)
        domain = np.zeros(len(x), bool) if target is None else np.asarray(target, bool)
        if domain.shape != (len(x),):
            raise errors.InputError(
                f"{len(x)} vectors and {domain.shape} domains came, expected one domain per vector"
            )
        self.x_ = x
        self.decision_scores_ = self._fit(x, domain)
        self.threshold_ = thresholds.gamma_threshold(self.decision_scores_, 1 - self.contamination).value
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Score of each vector, float64 (n,).  x : float (n, dim)"""
        if not hasattr(self, "x_"):
            raise errors.InputError(f"this {type(self).__name__} is not fitted; call fit first")
        x = _vectors(x)
        if x.shape[1] != self.x_.shape[1]:
            raise errors.InputError(
                f"vectors of width {x.shape[1]} came, expected {self.x_.shape[1]} as in fit"
            )
        return self._score(x)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """1 where the score lies above `threshold_`, else 0: int (n,)."""
        return (self.decision_function(x) > self.threshold_).astype(int)

    def get_params(self, deep: bool = True) -> dict:
        """The arguments that make an equal estimator."""
        return {
            name: getattr(self, name)
            for name in inspect.signature(type(self).__init__).parameters
            if name != "self"
        }

    def __sklearn_clone__(self) -> Self:
        """An unfitted back-end of the same settings, for scikit-learn's `clone`."""
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        """The class with its settings."""
        params = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({params})"

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _score(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class KNN(Estimator):
    """Mean Euclidean distance to the k nearest fitted vectors.

    Parameters
    ----------
    k : neighbors, at least 1
    contamination : share of normal items that the threshold lets through, in (0, 1)

    Source: report 3.2, Eq. 5.
    """

    def __init__(self, k: int = 1, contamination: float = 0.1):
        self.k, self.contamination = _at_least("k", k, 1), _share(contamination)

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        item = np.arange(len(x))
        found = distances.knn_distances(x, x, k_max=self.k, test_clip=item, train_clip=item)
        return distances.knn_score(found, self.k)

    def _score(self, x: np.ndarray) -> np.ndarray:
        return distances.knn_score(distances.knn_distances(x, self.x_, k_max=self.k), self.k)


class KMeansCosine(Estimator):
    """Smallest 1 - cosine to k-means centers of the source vectors and to every single target vector, 0 to 2.

    Parameters
    ----------
    clusters : k-means centers
    seed : of k-means
    contamination : share of normal items that the threshold lets through, in (0, 1)
    """

    def __init__(self, clusters: int = 16, seed: int = 0, contamination: float = 0.1):
        self.clusters, self.seed, self.contamination = (
            _at_least("clusters", clusters, 1),
            seed,
            _share(contamination),
        )

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.backend_ = backends.KMeansCosine(x, target, ClassifierSettings(kmeans=self.clusters), self.seed)
        return self.backend_.training()

    def _score(self, x: np.ndarray) -> np.ndarray:
        return self.backend_(x)


class LocalDensity(Estimator):
    """Smallest distance to a reference over that reference's mean distance to its own k nearest references,
    of unit vectors.

    Parameters
    ----------
    k : neighbors of a reference, at least 1
    contamination : share of normal items that the threshold lets through, in (0, 1)
    """

    def __init__(self, k: int = 2, contamination: float = 0.1):
        self.k, self.contamination = _at_least("k", k, 1), _share(contamination)

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.backend_ = backends.LocalDensity(x, target, ClassifierSettings(density_neighbors=self.k), 0)
        return self.backend_.training()

    def _score(self, x: np.ndarray) -> np.ndarray:
        return self.backend_(x)


class StandardizedDensity(Estimator):
    """Mean of the k smallest distances to a fitted vector, each over that vector's mean distance to its own
    nearest ones; every dimension in units of its standard deviation.

    Parameters
    ----------
    k : fitted vectors whose divided distance is averaged, at least 1
    neighbors : of a fitted vector, at least 1
    contamination : share of normal items that the threshold lets through, in (0, 1)

    Source: METHOD 3.6.
    """

    def __init__(self, k: int = 2, neighbors: int = 2, contamination: float = 0.1):
        self.k, self.neighbors = _at_least("k", k, 1), _at_least("neighbors", neighbors, 1)
        self.contamination = _share(contamination)

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.references_ = distances.density_references(x, neighbors=self.neighbors)
        return distances.density_scores_left_out(x, k=self.k, neighbors=self.neighbors)

    def _score(self, x: np.ndarray) -> np.ndarray:
        return distances.density_scores(x, self.references_, k=self.k)


class Mahalanobis(Estimator):
    """Mahalanobis distance to the mean of the fitted vectors, with correlations shrunk towards none.

    Parameters
    ----------
    shrinkage : share of the identity in the correlation matrix, in (0, 1]
    contamination : share of normal items that the threshold lets through, in (0, 1)

    Source: METHOD 3.6.
    """

    def __init__(self, shrinkage: float = 0.1, contamination: float = 0.1):
        if not 0 < shrinkage <= 1:
            raise errors.InputError(f"shrinkage: got {shrinkage!r}, expected a share above 0, at most 1")
        self.shrinkage, self.contamination = shrinkage, _share(contamination)

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.references_ = distances.gaussian_references(x, shrinkage=self.shrinkage)
        return distances.mahalanobis_scores_left_out(x, shrinkage=self.shrinkage)

    def _score(self, x: np.ndarray) -> np.ndarray:
        return distances.mahalanobis_scores(x, self.references_)


def _vectors(x: np.ndarray) -> np.ndarray:
    found = np.asarray(x, np.float32)
    if found.ndim != 2 or not found.size:
        raise errors.InputError(
            f"vectors of shape {np.shape(x)} came, expected (n, dim) with at least one of each"
        )
    if not np.isfinite(found).all():
        raise errors.InputError("vectors with NaN or infinite values came, expected finite ones")
    return found


def _at_least(name: str, value: int, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or value < least:
        raise errors.InputError(f"{name}: got {value!r}, expected a whole number of at least {least}")
    return value


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise errors.InputError(f"contamination: got {value!r}, expected a share between 0 and 1")
    return value
