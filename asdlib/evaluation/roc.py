"""Areas under ROC curves: the official metrics on arrays, for whole grids of score vectors and for bootstrap
resamples.

Conventions
-----------
Higher score = more anomalous. Values are fractions in [0, 1], not percent.

    auc_source   normal clips of the source domain against the anomalies of all domains; ties count half
    auc_target   the same with the normal clips of the target domain
    pauc         all clips, area up to a false positive rate of 0.1, standardized after McClish (chance 0.5,
                 perfect 1)

NaN means not available: the normals or the anomalies of a metric are absent. Clips of unknown domain count in
pauc, and as anomalies everywhere; clips without a label count nowhere. `asdlib.evaluation.metrics` makes
tables of these numbers.

Source: METHOD 7.3 (official evaluator); McClish 1989. Notebooks: 03_baseline, 08_tuning, 09_report.
"""

from __future__ import annotations

import numpy as np

from asdlib import errors, schemas

THREE = ("auc_source", "auc_target", "pauc")
FIELD = (1 << 15) - 1  # largest count of one kind of clip, see clip_codes
STEP = np.array(
    [sum(1 << 16 * field for field in range(4) if kind >> field & 1) for kind in range(16)]
)  # code of `clip_codes` with these fields
BLOCK = 160  # score vectors handled at once: temporaries of 160 x 200 x 8 bytes stay in the cache


def harmonic(values: np.ndarray, axis: int | None = -1) -> np.ndarray:
    """Harmonic mean with every value floored at the float epsilon, as the official evaluator does.

    values : (..., n) along axis; NaN is not available and does not count.  returns : (...,), NaN where no
        value is available
    """
    inverse = 1.0 / np.maximum(np.asarray(values, float), np.finfo(float).eps)
    there = ~np.isnan(inverse)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1.0 / (np.where(there, inverse, 0.0).sum(axis) / there.sum(axis))


# ---------------------------------------------------------------- point values of many score vectors at once


def grid(scores: np.ndarray, domain: np.ndarray, label: np.ndarray, max_fpr: float = 0.1) -> np.ndarray:
    """The three official metrics of one machine for any number of score vectors.

    scores : (..., n_clips), for example (51 omegas, 32 k, 200)
    domain, label : (n_clips,) of str, as in the score table
    returns : float64 (..., 3) in the order of THREE; NaN where normals or anomalies are absent
    raises : errors.InputError for NaN or infinite scores, or lengths that differ
    """
    scores, domain, label = np.asarray(scores, float), np.asarray(domain), np.asarray(label)
    if scores.shape[-1:] != domain.shape or domain.shape != label.shape:
        raise errors.InputError(
            f"scores of {scores.shape}, {domain.shape} domains and {label.shape} labels came, expected one"
            " each per clip"
        )
    if not np.isfinite(scores).all():
        raise errors.InputError(
            "scores with NaN or infinite values came, expected finite numbers; did training diverge?"
        )
    code = clip_codes(domain, label)
    flat = scores.reshape(-1, scores.shape[-1])
    if not code.all():
        flat, code = flat[:, code != 0], code[code != 0]
    out = np.empty((len(flat), 3))
    for start in range(0, len(flat), BLOCK):
        out[start : start + BLOCK] = areas(flat[start : start + BLOCK], code, max_fpr)
    return out.reshape(*scores.shape[:-1], 3)


def clip_codes(domain: np.ndarray, label: np.ndarray) -> np.ndarray:
    """What each clip adds to the counts of `areas`: int64 (n_clips,), 0 for clips without a label.

    A count is one integer of four 15-bit fields, 16 bits apart: anomalies, source normals, target normals,
    all normals. One gather, one running sum and one subtraction then serve all four, and no field can spill
    into the next; for that, more clips are refused.
    """
    anomaly, normal = label == "anomaly", label == "normal"
    if anomaly.sum() + normal.sum() > FIELD:
        raise errors.InputError(
            f"{anomaly.sum() + normal.sum()} labelled test clips of one machine came, expected at most"
            f" {FIELD}; evaluate sections apart"
        )
    one = np.array([1, (1 << 48) + (1 << 16), (1 << 48) + (1 << 32), 1 << 48])
    return np.where(
        anomaly | normal, one[np.select([anomaly, domain == "source", domain == "target"], [0, 1, 2], 3)], 0
    )


def areas(scores: np.ndarray, code: np.ndarray, max_fpr: float = 0.1) -> np.ndarray:
    """The three metrics of g score vectors at once, without checks: the inner step of `grid`, and a whole
    tick of the tuner.

    scores : finite float (g, n).  code : of `clip_codes`, (n,) for all vectors, or (g, n) where each belongs
        to other clips; clips of code 0 count nowhere, so that machines with fewer clips can be filled up
    returns : float64 (g, 3); NaN where normals or anomalies are absent.  Notebook: 08_tuning
    """
    g, n = scores.shape
    steps, tied = _falling(scores, code)
    counts = np.zeros((g, n + 1), np.int64)  # clips at or above each threshold, from the highest score down
    np.cumsum(steps, axis=1, out=counts[:, 1:])
    total = counts[:, -1].copy()
    rise = None
    if (
        tied is not None
        # tied clips form one sloped segment of the curve: only its end is a vertex, the others repeat the
        # vertex
        # before
    ):
        np.copyto(counts[:, 1:-1], 0, where=tied)
        np.maximum.accumulate(counts, axis=1, out=counts)
        steps = counts[:, 1:] - counts[:, :-1]
        rise = steps & FIELD
    after = counts[:, 1:] & FIELD
    anomalies, normals = total & FIELD, total >> 48
    out = np.full((g, 3), np.nan)
    for column, shift in enumerate((16, 32)):
        pairs = anomalies * (total >> shift & FIELD)
        if pairs.any():  # twice (mean height of each segment times its width), in whole numbers
            height2 = 2 * after if rise is None else 2 * after - rise
            np.divide(
                np.einsum("gn,gn->g", steps >> shift & FIELD, height2),
                2 * pairs,
                out=out[:, column],
                where=pairs > 0,
            )
    if (anomalies * normals).any():
        limit, before = max_fpr * normals[:, None], counts[:, :-1] >> 48
        reach = int((before < limit).any(0).sum())  # all curves have passed max_fpr there
        width = steps[:, :reach] >> 48
        inside = np.clip(
            limit - before[:, :reach], 0, width
        )  # the part of each segment's width below max_fpr
        height = after[:, :reach]
        if rise is not None:
            height = height - rise[:, :reach] * (1 - 0.5 * inside / np.maximum(width, 1))
        pairs = anomalies * normals
        np.divide(np.einsum("gn,gn->g", inside, height), pairs, out=out[:, 2], where=pairs > 0)
        out[:, 2] = _mcclish(out[:, 2], max_fpr)
    return out


def _falling(scores: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes of the clips from the highest score down, (g, n), and (g, n - 1) where a score equals the one
    before; None where no two are equal.

    The bits of a float64 sort as integers once those of negative numbers are turned round, and the last four
    of them make room for the kind of clip: one sort of numbers then does for an argsort and two gathers.
    Where two scores of a vector agree in all other bits the last four may decide, and the slower way is
    taken.
    """
    key = np.subtract(0.0, scores, dtype=float).view(np.int64)  # 0 - x: both zeros become one
    key ^= key >> 63 & np.iinfo(np.int64).max
    key &= -16
    key |= code & 1 | code >> 15 & 2 | code >> 30 & 4 | code >> 45 & 8
    key.sort(axis=1)
    steps = STEP.take(key & 15)
    key >>= 4
    if not (key[:, 1:] == key[:, :-1]).any():
        return steps, None
    order = np.argsort(-scores, axis=1)
    falling = np.take_along_axis(scores, order, axis=1)
    steps = code.take(order) if code.ndim == 1 else np.take_along_axis(code, order, axis=1)
    return steps, falling[:, 1:] == falling[:, :-1]


def _mcclish(area: np.ndarray, max_fpr: float) -> np.ndarray:
    """Partial area -> chance 0.5, perfect 1 (McClish 1989), as scikit-learn standardises it."""
    least = 0.5 * max_fpr**2
    return 0.5 * (1 + (area - least) / (max_fpr - least))


def auc(normal: np.ndarray, anomaly: np.ndarray) -> np.ndarray:
    """Probability that an anomaly scores above a normal clip, ties counted half.

    normal, anomaly : (..., n) and (..., m) scores
    raises : errors.InputError for NaN and for an empty class
    """
    return _two_samples(normal, anomaly, 0.1)[..., 0]


def pauc(normal: np.ndarray, anomaly: np.ndarray, max_fpr: float = 0.1) -> np.ndarray:
    """Area under the ROC curve up to max_fpr in (0, 1], standardised after McClish; equal to scikit-learn's
    roc_auc_score(max_fpr=...).

    normal, anomaly : (..., n) and (..., m) scores.  raises : errors.InputError for NaN and for an empty class
    """
    return _two_samples(normal, anomaly, max_fpr)[..., 2]


def _two_samples(normal: np.ndarray, anomaly: np.ndarray, max_fpr: float) -> np.ndarray:
    normal, anomaly = np.asarray(normal, float), np.asarray(anomaly, float)
    if normal.shape[-1] == 0 or anomaly.shape[-1] == 0:
        raise errors.InputError(
            f"{normal.shape[-1]} normal and {anomaly.shape[-1]} anomalous scores came, expected at least one"
            " of each"
        )
    label = np.repeat(["normal", "anomaly"], [normal.shape[-1], anomaly.shape[-1]])
    return grid(np.concatenate([normal, anomaly], axis=-1), np.full(len(label), "source"), label, max_fpr)


# ---------------------------------------------------------------- resamples of one score vector


def bootstrap_weights(domain: np.ndarray, label: np.ndarray, n: int, seed: int | list[int]) -> np.ndarray:
    """How often each clip occurs in each of n resamples, drawn with replacement within every (domain, label).

    returns : int16 (n, n_clips); whole columns of 0 for clips without a label. Equal input, equal resamples
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
    """The three metrics of one score vector in every resample; weights of 1 give the point value.

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
    """Weighted areas by matrix products: anomalies `high` (na,) with weights (B, na), normals `low` (nn,)
    with (B, nn); `kinds` (2, nn) marks the source and the target normals. The order of the clips is the same
    in all resamples: compared once, then only counted.
    """
    w_high, w_low = w_high.astype(float), w_low.astype(float)
    out = np.full((len(w_high), 3), np.nan)
    total = w_high.sum(1)
    if not (total.all() and w_low.any(1).all()):
        return out
    for column, kind in enumerate(kinds):
        mine = w_low[:, kind]
        if mine.any(1).all():
            above = 0.5 * ((high[:, None] > low[kind]).astype(float) + (high[:, None] >= low[kind]))
            out[:, column] = np.einsum("bj,bj->b", w_high @ above, mine) / (total * mine.sum(1))
    order = np.argsort(-low, kind="stable")
    values, first = np.unique(-low[order], return_index=True)
    width = w_low[:, order]  # (B, distinct values), from the highest normal down
    if len(first) < len(order):
        width = np.add.reduceat(width, first, axis=1)
    before = np.cumsum(width, axis=1) - width
    limit = max_fpr * w_low.sum(1)[:, None]
    reach = max(
        1, int((before < limit).any(0).sum())
    )  # the rest of the curve lies beyond max_fpr in every resample
    values, width = -values[:reach], width[:, :reach]
    inside = np.clip(limit - before[:, :reach], 0, width)
    height, ties = w_high @ (high[:, None] > values).astype(float), high[:, None] == values
    if ties.any():
        height += 0.5 * inside / np.maximum(width, 1) * (w_high @ ties.astype(float))
    out[:, 2] = _mcclish(np.einsum("bk,bk->b", inside, height) / (total * w_low.sum(1)), max_fpr)
    return out


def shuffled(
    scores: np.ndarray,
    domain: np.ndarray,
    label: np.ndarray,
    n: int,
    seed: int | list[int],
    max_fpr: float = 0.1,
) -> np.ndarray:
    """The three metrics of one score vector under n random permutations of the labels within each domain:
    what chance gives.

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
