"""Distance-based anomaly scores: how far a clip lies from the normal training sounds.

Conventions
-----------
Higher is more anomalous. A score depends on normal training items only, never on another test item. Training
clips are scored leave-clip-out: the items of a clip are never among its own references. Embeddings are
float32 (items, dim) with a clip number per item; several items may share one clip.
Sources: report 3.2, Eq. 5; METHOD 3.4, 3.5, 3.6, 5.8, 7.5. Notebooks: 03_baseline, 04_classifier, 05_oevae.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import solve_triangular

from asdlib import errors, schemas

BLOCK_BYTES = 64 * 2**20  # block of the distance matrix
SPARE = 12  # additional candidates whose distances are recomputed exactly


def knn_distances(
    test: np.ndarray,
    train: np.ndarray,
    *,
    k_max: int,
    test_clip: np.ndarray | None = None,
    train_clip: np.ndarray | None = None,
) -> np.ndarray:
    """Euclidean distances to the k_max nearest training embeddings, ascending.

    test, train : float32 (n_test, dim) and (n_train, dim)
    test_clip, train_clip : int clip numbers; if both are given, references from the item's own clip are
        excluded. Interpolated references have train_clip (n_train, parents) and are excluded for each parent
    returns : float64 (n_test, k_max), >= 0; column j − 1 is the j-th nearest.  Source: report 3.2.
        Notebooks: 03_baseline, 05_oevae
    raises : errors.InputError if fewer than k_max references remain

    The result is exact. A float32 matrix product finds k_max + SPARE candidates, whose distances are
    recomputed in float64 from differences. Rows where the rounding bound cannot rule out a missed neighbor
    (many nearly equal distances) are searched again in float64.
    """
    schemas.embeddings(test, train)
    if k_max > len(train):
        raise errors.InputError(
            f"got {len(train)} training items, expected at least k = {k_max}; use a smaller k"
        )
    own = (
        None
        if test_clip is None or train_clip is None
        else _Own(np.asarray(test_clip), np.reshape(train_clip, (len(train), -1)))
    )
    exact = train.astype(np.float64)
    center = exact.mean(0)  # centering cancels in differences and reduces float32 rounding errors
    exact -= center
    norms = np.einsum("ij,ij->i", exact, exact)
    rounded, norms32 = exact.astype(np.float32), norms.astype(np.float32)
    near, widest, dim = min(k_max + SPARE, len(train)), float(np.sqrt(norms.max())), train.shape[1]
    out = np.empty((len(test), k_max))
    rows = max(1, min(BLOCK_BYTES // (8 * len(train)), BLOCK_BYTES // (8 * near * dim)))
    for start in range(0, len(test), rows):
        items = test[start : start + rows].astype(np.float64) - center
        every = np.arange(start, start + len(items))
        reached, found = _nearest(items.astype(np.float32), rounded, norms32, near, own and own(every))
        if (np.isfinite(reached).sum(1) < k_max).any():
            raise errors.InputError(
                f"fewer than k = {k_max} training items from other clips; use a smaller k or more training"
                " clips"
            )
        square = _squares(items, exact, reached, found)[:, :k_max]
        length = np.einsum("ij,ij->i", items, items)
        rounding = 2.0**-24 * ((2 * dim + 8) * np.sqrt(length) * widest + 4 * widest**2)
        doubtful = (
            np.flatnonzero(square[:, -1] - length > reached[:, -1] - rounding) if near < len(train) else ()
        )
        if len(doubtful):
            again = _nearest(items[doubtful], exact, norms, near, own and own(every[doubtful]))
            square[doubtful] = _squares(items[doubtful], exact, *again)[:, :k_max]
        out[every] = np.sqrt(square)
    return out


def _nearest(
    items: np.ndarray,
    references: np.ndarray,
    norms: np.ndarray,
    near: int,
    left_out: tuple[np.ndarray, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances less |x|², ascending, and indices of the `near` best references per item.

    Computed as |r|² − 2⟨x, r⟩ for items x and references r.
    """
    partial = (items.dtype.type(-2) * items) @ references.T
    partial += norms
    if left_out is not None:
        partial[left_out] = np.inf
    # five times faster than numpy's argpartition
    reached, found = torch.topk(torch.from_numpy(partial), near, largest=False)
    return reached.numpy(), found.numpy()


def _squares(items: np.ndarray, references: np.ndarray, reached: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Squared distances to the references `found`, ascending; infinite where `reached` is."""
    gaps = references[found]
    gaps -= items[:, None]
    return np.sort(np.where(np.isinf(reached), np.inf, np.einsum("ijk,ijk->ij", gaps, gaps)), axis=1)


class _Own:
    """References excluded per item.  test_clip : int (n_test,);  parents : int (n_train, parents)"""

    def __init__(self, test_clip: np.ndarray, parents: np.ndarray):
        self.clip, kin = test_clip, parents.ravel()
        self.order = np.argsort(kin, kind="stable")
        self.sorted, self.reference = kin[self.order], self.order // parents.shape[1]

    def __call__(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Index pairs (position in `items`, reference) to exclude."""
        clip = self.clip[items]
        first, last = (np.searchsorted(self.sorted, clip, side) for side in ("left", "right"))
        count = last - first
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(np.arange(len(clip)), count), self.reference[np.repeat(first, count) + place]


def knn_score(distances: np.ndarray, k: int) -> np.ndarray:
    """Mean of the k smallest of sorted distances (n, k_max ≥ k) → (n,).  Source: report 4.2"""
    return distances[:, :k].mean(axis=1)


class DensityReferences(NamedTuple):
    """References of `density_scores`, float64; see `density_references`."""

    x: np.ndarray  # (n, dim) standardized references
    deviation: np.ndarray  # (dim,)
    density: np.ndarray  # (n,) mean distance of each reference to its nearest neighbors


SMALLEST_DEVIATION = 1e-3  # lower bound; dimensions that vary less are treated as constant
SMALLEST_DENSITY = 1e-6  # lower bound; closer references are treated as duplicates


def density_references(train: np.ndarray, *, neighbors: int = 2) -> DensityReferences:
    """Standardized training embeddings, each with its mean distance to its nearest neighbors.

    Each dimension is divided by its population standard deviation over `train`, at least 1e-3.

    Parameters
    ----------
    train : float (n, dim), one row per item, n >= 3
    neighbors : number of neighbors averaged, at most n - 2

    Raises
    ------
    errors.InputError for a wrong shape, non-finite values, or fewer than 3 rows

    Source: METHOD 3.6, 5.8.  Notebook: 03_baseline
    """
    x, neighbors = _density_items(train, 1, neighbors)
    deviation = np.maximum(x.std(0), SMALLEST_DEVIATION)
    x = x / deviation
    away = _exact_distances(x, x)
    np.fill_diagonal(away, np.inf)
    return DensityReferences(x, deviation, _mean_smallest(away, neighbors, SMALLEST_DENSITY))


def density_scores(test: np.ndarray, references: DensityReferences, *, k: int = 2) -> np.ndarray:
    """Mean of the k smallest ratios of the distance to a reference and that reference's neighbor distance.

    References in sparse regions (a domain with few clips) thus reach farther than those in dense regions.

    Parameters
    ----------
    test : float (n, dim)
    references : from `density_references`
    k : number of ratios averaged, at most the number of references

    Returns
    -------
    float64 (n,), >= 0; about 1 for an item among the references

    Raises
    ------
    errors.InputError for a wrong width, non-finite values, or fewer than k references

    Source: METHOD 3.6, 5.8.  Notebook: 03_baseline
    """
    schemas.embeddings(test, references.x)
    _enough(len(references.x), k)
    away = _exact_distances(np.asarray(test, np.float64) / references.deviation, references.x)
    return _mean_smallest(away / references.density, k)


def density_scores_left_out(train: np.ndarray, *, k: int = 2, neighbors: int = 2) -> np.ndarray:
    """Leave-one-out `density_scores` of the training items.

    Each item is removed from the references, their neighbors, and the deviations.

    Parameters
    ----------
    train : float (n, dim), n >= 3 and n > k
    k, neighbors : see `density_scores` and `density_references`

    Returns
    -------
    float64 (n,), >= 0

    Raises
    ------
    errors.InputError for a wrong shape, non-finite values, or too few rows

    Exact: deviations without item i shrink squared distances by at most the factor 1 - 1/n. Neighbors are
    therefore searched among those under the full deviations first, and among all items only where this bound
    is insufficient.
    Source: METHOD 3.6, 5.8.  Notebook: 03_baseline
    """
    x, neighbors = _density_items(train, k, neighbors)
    n, dim = x.shape
    x = x - x.mean(0)
    square = x * x
    variance = (square.sum(0) - square) / (n - 1) - (x / (n - 1)) ** 2  # row i: variance without item i
    usual = np.maximum(x.std(0), SMALLEST_DEVIATION)
    weight = (usual / np.sqrt(np.maximum(variance, SMALLEST_DEVIATION**2))) ** 2
    x = x / usual
    away = _exact_distances(x, x)
    np.fill_diagonal(away, np.inf)
    near = min(neighbors + SPARE, n - 1)
    found = np.argpartition(away, near - 1, axis=1)[:, :near]
    beyond = away.copy()
    np.put_along_axis(beyond, found, np.inf, axis=1)
    # lower bound for all items not in `found`, whichever item is left out
    beyond = (1 - 1 / n) * beyond.min(1) ** 2
    gaps = ((x[found] - x[:, None]) ** 2).reshape(n * near, dim)
    scores = np.empty(n)
    step = max(1, BLOCK_BYTES // (8 * n * max(dim, near)))
    for start in range(0, n, step):
        out = np.arange(start, min(start + step, n))
        squared = (gaps @ weight[out].T).reshape(n, near, len(out))
        squared[np.broadcast_to(found[:, :, None] == out, squared.shape)] = np.inf
        squared = np.sort(squared, axis=1)[:, :neighbors]  # (reference, neighbor, left out)
        doubtful = (squared[:, -1] > beyond[:, None]) & (np.arange(n)[:, None] != out)
        density = np.sqrt(squared).mean(1).T  # (left out, reference)
        for i, reference in zip(*np.nonzero(doubtful.T)):
            every = ((x - x[reference]) ** 2) @ weight[out[i]]
            every[[reference, out[i]]] = np.inf
            density[i, reference] = np.sqrt(np.sort(every)[:neighbors]).mean()
        own = np.sqrt(((x[out, None] - x) ** 2 @ weight[out, :, None])[..., 0])
        own[np.arange(len(out)), out] = np.inf
        scores[out] = _mean_smallest(own / np.maximum(density, SMALLEST_DENSITY), k)
    return scores


class GaussianReferences(NamedTuple):
    """Gaussian fit used by `mahalanobis_scores`, float64; see `gaussian_references`."""

    mean: np.ndarray  # (dim,)
    deviation: np.ndarray  # (dim,)
    factor: np.ndarray  # (dim, dim) lower Cholesky factor of the shrunk correlations


def gaussian_references(train: np.ndarray, *, shrinkage: float = 0.1) -> GaussianReferences:
    """Mean, deviations and shrunk correlations of training embeddings.

    Parameters
    ----------
    train : float (n, dim), one row per item, n >= 3
    shrinkage : weight of the identity in the correlation matrix, in (0, 1]; 1 ignores correlations

    Raises
    ------
    errors.InputError for a wrong shape, non-finite values, or fewer than 3 rows

    Population standard deviations, at least 1e-3.  Source: METHOD 3.6.  Notebook: 03_baseline
    """
    x, _ = _density_items(train, 1, 2)
    mean = x.mean(0)
    return _gaussian(mean, (x - mean).T @ (x - mean) / len(x), shrinkage)


def _gaussian(mean: np.ndarray, covariance: np.ndarray, shrinkage: float) -> GaussianReferences:
    deviation = np.sqrt(np.maximum(np.diag(covariance), SMALLEST_DEVIATION**2))
    shrunk = (1 - shrinkage) * covariance / deviation / deviation[:, None] + shrinkage * np.eye(len(mean))
    return GaussianReferences(mean, deviation, np.linalg.cholesky(shrunk))


def mahalanobis_scores(test: np.ndarray, references: GaussianReferences) -> np.ndarray:
    """Mahalanobis distance to the mean of the training embeddings, float64 (n,), >= 0.

    test : float (n, dim).  references : from `gaussian_references`
    raises : errors.InputError for a wrong width or non-finite values.  Source: METHOD 3.6
    """
    schemas.embeddings(test, references.mean[None])
    gap = (np.asarray(test, np.float64) - references.mean) / references.deviation
    return np.linalg.norm(solve_triangular(references.factor, gap.T, lower=True), axis=0)


def mahalanobis_scores_left_out(train: np.ndarray, *, shrinkage: float = 0.1) -> np.ndarray:
    """Leave-one-out `mahalanobis_scores` of the training items, float64 (n,).

    train, shrinkage : see `gaussian_references`. Each item is removed from mean, deviations and correlations,
        at one Cholesky factorization per item
    """
    x, _ = _density_items(train, 1, 2)
    center, n = x.mean(0), len(x)
    x = x - center
    products, scores = x.T @ x, np.empty(n)
    for i in range(n):
        mean = -x[i] / (n - 1)
        covariance = (products - np.outer(x[i], x[i])) / (n - 1) - np.outer(mean, mean)
        scores[i] = mahalanobis_scores(x[i : i + 1], _gaussian(mean, covariance, shrinkage))[0]
    return scores


def _density_items(train: np.ndarray, k: int, neighbors: int) -> tuple[np.ndarray, int]:
    """Validated float64 training items, and the number of neighbors that leaves room for leave-one-out."""
    x = np.asarray(train, np.float64)
    schemas.embeddings(x, x)
    _enough(len(x) - 1, max(k, 2))
    return x, min(neighbors, len(x) - 2)


def _enough(references: int, k: int) -> None:
    if references < k:
        raise errors.InputError(
            f"got {references} references, expected at least {k}; add recordings or use a smaller k"
        )


def _exact_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (n_a, n_b) from differences, so that each is independent of the other rows."""
    direct = "donot_use_mm_for_euclid_dist"
    return torch.cdist(torch.from_numpy(a), torch.from_numpy(b), compute_mode=direct).numpy()


def _mean_smallest(away: np.ndarray, k: int, least: float = 0.0) -> np.ndarray:
    """Mean of the k smallest values per row, clipped below at `least`, (n, m) → (n,)."""
    return np.maximum(np.sort(np.partition(away, k - 1, axis=1)[:, :k], axis=1).mean(1), least)


def to_clips(values: np.ndarray, clip: np.ndarray, n_clips: int) -> np.ndarray:
    """Mean over the items of each clip, (items,) → (n_clips,).  Source: report 4.2.  Notebook: 05_oevae"""
    return np.bincount(clip, values, n_clips) / np.bincount(clip, minlength=n_clips)


def precision(moments: np.ndarray, n_vectors: int) -> np.ndarray:
    """Inverse of the official residual covariance of one domain.

    moments : (bands, bands) sum of dᵀd over residual rows, batch means removed
    n_vectors : number of input vectors, each with several residual rows; the official divisor n_vectors − 1
        makes the covariance about 5 times the usual one, which does not affect the ranking
    returns : (bands, bands).  Source: METHOD 7.5.  Notebook: 03_baseline
    raises : errors.InputError if the covariance is singular
    """
    covariance = moments / max(n_vectors - 1, 1)
    if np.linalg.matrix_rank(covariance, hermitian=True) < len(covariance):
        raise errors.InputError(
            f"the residual covariance of {n_vectors} vectors is singular; use more or longer training clips,"
            " or fewer autoencoder.n_mels"
        )
    return np.linalg.inv(covariance)


def mahalanobis(residual: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Quadratic form rᵀ P r of rows (n, bands) → (n,).  Source: METHOD 7.5.  Notebook: 03_baseline"""
    return np.einsum("ij,jk,ik->i", residual, precision, residual)
