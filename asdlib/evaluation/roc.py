"""Official ROC areas on arrays, vectorized over score vectors and bootstrap resamples.

Conventions
-----------
Higher score = more anomalous. Values are fractions in [0, 1], not percent.

    auc_source   normal clips of the source domain against the anomalies of all domains; ties count half
    auc_target   the same with the normal clips of the target domain
    pauc         all clips, area up to a false positive rate of 0.1, standardized after McClish (chance 0.5,
                 perfect 1)

NaN means not available: the normals or anomalies of a metric are absent. Clips of unknown domain count in
pauc, and as anomalies everywhere; unlabeled clips are ignored. Tables: `asdlib.evaluation.metrics`.

Source: METHOD 7.3 (official evaluator); McClish 1989. Notebooks: 03_baseline, 08_tuning, 09_report.
"""

from __future__ import annotations

import numpy as np

from asdlib import errors, schemas

THREE = ("auc_source", "auc_target", "pauc")


def harmonic(values: np.ndarray, axis: int | None = -1) -> np.ndarray:
    """Harmonic mean with values floored at the float epsilon, as in the official evaluator.

    values : (..., n) along axis; NaN values are ignored.  returns : (...,), NaN if all values are NaN
    """
    inverse = 1.0 / np.maximum(np.asarray(values, float), np.finfo(float).eps)
    valid = ~np.isnan(inverse)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 / (np.where(valid, inverse, 0.0).sum(axis) / valid.sum(axis))


def grid(scores: np.ndarray, domain: np.ndarray, label: np.ndarray, max_fpr: float = 0.1) -> np.ndarray:
    """Official metrics of one machine for any number of score vectors.

    scores : (..., n_clips), for example (51 omegas, 32 k, 200)
    domain, label : (n_clips,) of str, as in the score table
    returns : float64 (..., 3) in the order of THREE; NaN where normals or anomalies are absent
    raises : errors.InputError for non-finite scores or mismatched lengths
    """
    scores, domain, label = np.asarray(scores, float), np.asarray(domain), np.asarray(label)
    if scores.shape[-1:] != domain.shape or domain.shape != label.shape:
        raise errors.InputError(
            f"scores, domains and labels have shapes {scores.shape}, {domain.shape} and {label.shape},"
            " expected one value each per clip"
        )
    if not np.isfinite(scores).all():
        raise errors.InputError(
            "scores contain NaN or infinite values, expected finite values; did training diverge?"
        )
    found = areas(scores.reshape(-1, scores.shape[-1]), kinds(domain, label)[:, None], max_fpr)
    return found.reshape(*scores.shape[:-1], 3)


def kinds(domain: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Boolean masks (4, n_clips): anomalies, source normals, target normals, all normals."""
    normal = label == "normal"
    return np.stack(
        [label == "anomaly", normal & (domain == "source"), normal & (domain == "target"), normal]
    )


def areas(scores: np.ndarray, kinds: np.ndarray, max_fpr: float = 0.1) -> np.ndarray:
    """Official metrics of g score vectors, without validation.

    scores : finite float (g, n).  kinds : (4, g or 1, n), from `kinds`; clips in no mask do not count
    returns : float64 (g, 3); NaN where normals or anomalies are absent.  Notebook: 08_tuning
    """
    order = np.argsort(-scores, axis=1)
    falling = np.take_along_axis(scores, order, axis=1)
    tied = falling[:, 1:] == falling[:, :-1]
    # number of clips at or above each threshold
    at = np.zeros((4, len(scores), scores.shape[1] + 1))
    np.cumsum(np.take_along_axis(kinds, order[None], axis=2), axis=2, out=at[..., 1:])
    if tied.any():  # ties form one sloped segment: only its end is a vertex
        np.copyto(at[..., 1:-1], 0, where=tied)
        np.maximum.accumulate(at, axis=2, out=at)
    steps, (hits, *_, before), total = np.diff(at), at[..., :-1], at[..., -1]
    rise, width = steps[0], steps[3]
    # part of each segment's width below max_fpr
    inside = np.clip(max_fpr * total[3][:, None] - before, 0, width)
    area = np.empty((3, len(scores)))
    area[:2] = np.einsum("kgn,gn->kg", steps[1:3], hits + 0.5 * rise)
    area[2] = np.einsum("gn,gn->g", inside, hits + 0.5 * rise * inside / np.maximum(width, 1))
    pairs = total[0] * total[1:]
    area = np.divide(area, pairs, out=np.full_like(area, np.nan), where=pairs > 0)
    area[2] = _mcclish(area[2], max_fpr)
    return area.T


def _mcclish(area: np.ndarray, max_fpr: float) -> np.ndarray:
    """Standardized partial area, chance 0.5, perfect 1 (McClish 1989), as in scikit-learn."""
    lowest = 0.5 * max_fpr**2
    return 0.5 * (1 + (area - lowest) / (max_fpr - lowest))


# ---------------------------------------------------------------- resamples of one score vector


def bootstrap_weights(domain: np.ndarray, label: np.ndarray, n: int, seed: int | list[int]) -> np.ndarray:
    """Clip counts of n bootstrap resamples, drawn with replacement within every (domain, label).

    returns : int16 (n, n_clips), 0 for unlabeled clips; deterministic for equal input
    """
    rng = np.random.default_rng(seed)
    domain, label = np.asarray(domain), np.asarray(label)
    weights = np.zeros((n, len(label)), np.int16)
    for stratum in ((d, m) for d in schemas.DOMAINS for m in ("normal", "anomaly")):
        members = np.flatnonzero((domain == stratum[0]) & (label == stratum[1]))
        size = len(members)
        if size:
            drawn = rng.integers(0, size, (n, size)) + size * np.arange(n)[:, None]
            weights[:, members] = np.bincount(drawn.ravel(), minlength=n * size).reshape(n, size)
    return weights


def bootstrap(
    scores: np.ndarray, domain: np.ndarray, label: np.ndarray, weights: np.ndarray, max_fpr: float = 0.1
) -> np.ndarray:
    """Official metrics of one score vector in every resample; weights of 1 give the point estimate.

    scores, domain, label : (n_clips,);  weights : (B, n_clips) from `bootstrap_weights`;  returns : float64
        (B, 3)
    """
    scores, domain, label = np.asarray(scores, float), np.asarray(domain), np.asarray(label)
    normal, anomaly = label == "normal", label == "anomaly"
    kinds = np.stack([normal & (domain == "source"), normal & (domain == "target")])[:, normal]
    return _weighted(scores[anomaly], weights[:, anomaly], scores[normal], weights[:, normal], kinds, max_fpr)


def _weighted(
    high: np.ndarray,
    w_high: np.ndarray,
    low: np.ndarray,
    w_low: np.ndarray,
    kinds: np.ndarray,
    max_fpr: float,
) -> np.ndarray:
    """Weighted areas (B, 3) by matrix products.

    Anomalies `high` (na,) with weights (B, na), normals `low` (nn,) with (B, nn); `kinds` (2, nn) marks
    source and target normals. Clips are compared once, since their order is the same in all resamples. Using
    `areas` with counts as masks makes `metrics.table` 1.5 times slower (6 systems × 4 machines × 200 clips,
    1,000 resamples: 0.35 s against 0.23 s on one thread).
    """
    w_high, w_low = w_high.astype(float), w_low.astype(float)
    out = np.full((len(w_high), 3), np.nan)
    total = w_high.sum(1)
    if not (total.all() and w_low.any(1).all()):
        return out
    for column, kind in enumerate(kinds):
        if w_low[:, kind].any(1).all():
            out[:, column] = weighted_auc(high, w_high, low[kind], w_low[:, kind])
    order = np.argsort(-low, kind="stable")
    values, first = np.unique(-low[order], return_index=True)
    width = w_low[:, order]  # (B, distinct values), from the highest normal down
    if len(first) < len(order):
        width = np.add.reduceat(width, first, axis=1)
    before = np.cumsum(width, axis=1) - width
    limit = max_fpr * w_low.sum(1)[:, None]
    reach = max(1, int((before < limit).any(0).sum()))  # beyond max_fpr in every resample
    values, width = -values[:reach], width[:, :reach]
    inside = np.clip(limit - before[:, :reach], 0, width)
    height, ties = w_high @ (high[:, None] > values).astype(float), high[:, None] == values
    if ties.any():
        height += 0.5 * inside / np.maximum(width, 1) * (w_high @ ties.astype(float))
    out[:, 2] = _mcclish(np.einsum("bk,bk->b", inside, height) / (total * w_low.sum(1)), max_fpr)
    return out


def weighted_auc(high: np.ndarray, w_high: np.ndarray, low: np.ndarray, w_low: np.ndarray) -> np.ndarray:
    """Weighted AUC of anomalies `high` (na,) against normals `low` (nn,), float64 (B,).

    w_high, w_low : float weights (B, na) and (B, nn)
    """
    above = 0.5 * ((high[:, None] > low).astype(float) + (high[:, None] >= low))
    return np.einsum("bj,bj->b", w_high @ above, w_low) / (w_high.sum(1) * w_low.sum(1))


def shuffled(
    scores: np.ndarray,
    domain: np.ndarray,
    label: np.ndarray,
    n: int,
    seed: int | list[int],
    max_fpr: float = 0.1,
) -> np.ndarray:
    """Official metrics of one score vector under n label permutations within each domain (chance level).

    scores, domain, label : (n_clips,);  returns : float64 (n, 3)
    """
    rng = np.random.default_rng(seed)
    keep = np.isin(label, ("normal", "anomaly"))
    scores, domain, anomaly = (
        np.asarray(scores, float)[keep],
        np.asarray(domain)[keep],
        np.asarray(label)[keep] == "anomaly",
    )
    high = np.zeros((n, len(scores)))
    for name in schemas.DOMAINS:
        members = np.flatnonzero(domain == name)
        high[:, members] = rng.permuted(np.tile(anomaly[members], (n, 1)), axis=1)
    return _weighted(
        scores, high, scores, 1 - high, np.stack([domain == "source", domain == "target"]), max_fpr
    )
