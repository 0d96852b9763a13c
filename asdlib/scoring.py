"""Anomaly scores: how unlike the normal training sounds a clip is.

Conventions
-----------
Higher is more anomalous, for every score. A score sees normal training items only; it never sees another test item.
Training clips are scored leave-clip-out: the items of a clip are never among its own references.
Embeddings are float32 (items, dim) with a clip number per item (several items of one clip share it).
Sources: report.txt 3.2 Eq. 5; SYSTEM 4, 5, 6; FACTS A8, F5. Notebooks: 03_baseline, 04_classifier, 05_oevae.
"""

from __future__ import annotations

import numpy as np

from asdlib import checks

BLOCK_BYTES = 256 * 2**20  # of the distance matrix held at once


def knn_distances(
    test: np.ndarray, train: np.ndarray, *, k_max: int, test_clip: np.ndarray | None = None, train_clip: np.ndarray | None = None
) -> np.ndarray:
    """Euclidean distances to the k_max nearest training embeddings, ascending.

    test, train : float32 (n_test, dim) and (n_train, dim)
    test_clip, train_clip : int, clip numbers; where both are given, references of the item's own clip are left out. An
        interpolated reference has several parents, train_clip (n_train, parents), and is left out for each of them
    returns : float64 (n_test, k_max), >= 0; column j − 1 is the j-th nearest.  Source: report.txt 3.2.  Notebooks: 03_baseline, 05_oevae
    raises : checks.Refusal when fewer than k_max references remain
    """
    checks.embeddings(test, train)
    out = np.empty((len(test), k_max))
    train = train.astype(np.float64)
    norms = np.einsum("ij,ij->i", train, train)
    rows = max(1, BLOCK_BYTES // (8 * len(train)))
    for start in range(0, len(test), rows):
        block = test[start : start + rows].astype(np.float64)
        square = np.einsum("ij,ij->i", block, block)[:, None] + norms - 2.0 * block @ train.T
        if test_clip is not None and train_clip is not None:
            for parent in np.reshape(train_clip, (len(train), -1)).T:
                square[test_clip[start : start + rows, None] == parent] = np.inf
        if k_max > square.shape[1]:
            raise checks.Refusal(f"{square.shape[1]} training items came, expected at least k = {k_max}; use a smaller k")
        near = np.partition(square, k_max - 1, axis=1)[:, :k_max]
        if np.isinf(near).any():
            raise checks.Refusal(f"fewer than k = {k_max} training items of other clips came; use a smaller k or more training clips")
        out[start : start + rows] = np.sqrt(np.maximum(np.sort(near, axis=1), 0.0))
    return out


def knn_score(distances: np.ndarray, k: int) -> np.ndarray:
    """Mean of the k smallest of sorted distances (n, k_max ≥ k) → (n,).  Source: report.txt 4.2.  Notebook: 05_oevae"""
    return distances[:, :k].mean(axis=1)


def to_clips(values: np.ndarray, clip: np.ndarray, n_clips: int) -> np.ndarray:
    """Mean over the items of each clip, (items,) → (n_clips,).  Source: report.txt 4.2.  Notebook: 05_oevae"""
    return np.bincount(clip, values, n_clips) / np.bincount(clip, minlength=n_clips)


def precision(moments: np.ndarray, n_vectors: int) -> np.ndarray:
    """Inverse of the official residual covariance of one domain.

    moments : (bands, bands) sum of dᵀd over residual rows, batch means removed
    n_vectors : input vectors, of several residual rows each; the official divisor is n_vectors − 1, hence about 5 ×
        the usual covariance, a constant that changes no order
    returns : (bands, bands).  Source: FACTS F5.  Notebook: 03_baseline
    raises : checks.Refusal when there are too few vectors for an inverse
    """
    covariance = moments / max(n_vectors - 1, 1)
    if np.linalg.matrix_rank(covariance, hermitian=True) < len(covariance):
        raise checks.Refusal(
            f"the residual covariance of {n_vectors} vectors is singular; use more or longer training clips, or fewer autoencoder.n_mels"
        )
    return np.linalg.inv(covariance)


def mahalanobis(residual: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Quadratic form rᵀ P r of rows (n, bands) → (n,).  Source: FACTS F5.  Notebook: 03_baseline"""
    return np.einsum("ij,jk,ik->i", residual, precision, residual)
