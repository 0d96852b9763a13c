"""Back-ends with PyOD's interface for arbitrary embeddings.

    scores = KNN(k=2).fit(train).decision_function(test)

Conventions
-----------
Higher is more anomalous (scikit-learn's `score_samples` has the opposite sign). Scored vectors do not
influence each other, and `decision_scores_` excludes each fitted vector from its own references. The
detectors use the same implementations (`distances`, `backends`, `thresholds`).

Source: METHOD 5.8; Wilkinghoff et al. (local density).
"""

from __future__ import annotations

import inspect
from typing import Self

import numpy as np

from asdlib import errors
from asdlib.models.classifier import ClassifierSettings
from asdlib.scoring import backends, distances, thresholds


class Estimator:
    """Base class of the back-ends on arrays.

    Raises
    ------
    errors.InputError for a wrong shape or width, non-finite values, too few vectors, or a call before `fit`
    """

    contamination = 0.1

    def fit(self, x: np.ndarray, target: np.ndarray | None = None) -> Self:
        """Fit to normal vectors.

        Parameters
        ----------
        x : float (n, dim)
        target : bool (n,), marks vectors of the target domain; None for none. Only `KMeansCosine` uses it
        """
        x = _vectors(x)
        domain = np.zeros(len(x), bool) if target is None else np.asarray(target, bool)
        if domain.shape != (len(x),):
            raise errors.InputError(
                f"got {len(x)} vectors and domains of shape {domain.shape}, expected one domain per vector"
            )
        self.x_ = x
        self.decision_scores_ = self._fit(x, domain)
        self.threshold_ = thresholds.gamma_threshold(self.decision_scores_, 1 - self.contamination).value
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        """Anomaly scores, float64 (n,).  x : float (n, dim)"""
        if not hasattr(self, "x_"):
            raise errors.InputError(f"this {type(self).__name__} instance is not fitted yet; call fit first")
        x = _vectors(x)
        if x.shape[1] != self.x_.shape[1]:
            raise errors.InputError(
                f"vectors have {x.shape[1]} dimensions, expected {self.x_.shape[1]} as in fit"
            )
        return self._score(x)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Labels, int (n,): 1 for scores above `threshold_`, else 0.  x : float (n, dim)"""
        return (self.decision_function(x) > self.threshold_).astype(int)

    def get_params(self, deep: bool = True) -> dict:
        """Constructor arguments, as in scikit-learn."""
        return {
            name: getattr(self, name)
            for name in inspect.signature(type(self).__init__).parameters
            if name != "self"
        }

    def __sklearn_clone__(self) -> Self:
        """Unfitted copy, for scikit-learn's `clone`."""
        return type(self)(**self.get_params())

    def __repr__(self) -> str:
        """Class name with its parameters."""
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
    k : number of neighbors, at least 1
    contamination : expected false positive rate at `threshold_`, in (0, 1)

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
    """Smallest 1 - cosine to the k-means centers of the source vectors and to every target vector, in [0, 2].

    Parameters
    ----------
    clusters : number of k-means centers
    seed : k-means seed
    contamination : expected false positive rate at `threshold_`, in (0, 1)
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
    """Smallest distance to a reference over its mean distance to its k nearest references (unit vectors).

    Parameters
    ----------
    k : neighbors per reference, at least 1
    contamination : expected false positive rate at `threshold_`, in (0, 1)
    """

    def __init__(self, k: int = 2, contamination: float = 0.1):
        self.k, self.contamination = _at_least("k", k, 1), _share(contamination)

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.backend_ = backends.LocalDensity(x, target, ClassifierSettings(density_neighbors=self.k), 0)
        return self.backend_.training()

    def _score(self, x: np.ndarray) -> np.ndarray:
        return self.backend_(x)


class StandardizedDensity(Estimator):
    """Mean of the k smallest ratios of the distance to a fitted vector and its mean neighbor distance.

    Every dimension is divided by its standard deviation.

    Parameters
    ----------
    k : number of ratios averaged, at least 1
    neighbors : neighbors per fitted vector, at least 1
    contamination : expected false positive rate at `threshold_`, in (0, 1)

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
    """Mahalanobis distance to the mean of the fitted vectors, with shrunk correlations.

    Parameters
    ----------
    shrinkage : weight of the identity in the correlation matrix, in (0, 1]
    contamination : expected false positive rate at `threshold_`, in (0, 1)

    Source: METHOD 3.6.
    """

    def __init__(self, shrinkage: float = 0.1, contamination: float = 0.1):
        if not 0 < shrinkage <= 1:
            raise errors.InputError(f"shrinkage: got {shrinkage!r}, expected a number in (0, 1]")
        self.shrinkage, self.contamination = shrinkage, _share(contamination)

    def _fit(self, x: np.ndarray, target: np.ndarray) -> np.ndarray:
        self.references_ = distances.gaussian_references(x, shrinkage=self.shrinkage)
        return distances.mahalanobis_scores_left_out(x, shrinkage=self.shrinkage)

    def _score(self, x: np.ndarray) -> np.ndarray:
        return distances.mahalanobis_scores(x, self.references_)


def _vectors(x: np.ndarray) -> np.ndarray:
    found = np.asarray(x, np.float32)
    if found.ndim != 2 or not found.size:
        raise errors.InputError(f"vectors have shape {np.shape(x)}, expected (n, dim) with n, dim >= 1")
    if not np.isfinite(found).all():
        raise errors.InputError("vectors contain NaN or infinite values, expected finite values")
    return found


def _at_least(name: str, value: int, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or value < least:
        raise errors.InputError(f"{name}: got {value!r}, expected an integer >= {least}")
    return value


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise errors.InputError(f"contamination: got {value!r}, expected a fraction between 0 and 1")
    return value
