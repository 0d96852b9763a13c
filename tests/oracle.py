"""Slow, plain second derivations of what the library computes fast: loops, definitions, scikit-learn, scipy.

Nothing here is shared with the library; a test compares the two.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

# ---------------------------------------------------------------- metrics


def pair_auc(normal, anomaly) -> float:
    """Count every pair: 1 if the anomaly is above, one half if equal."""
    wins = 0.0
    for high in anomaly:
        for low in normal:
            wins += 1.0 if high > low else 0.5 if high == low else 0.0
    return wins / (len(normal) * len(anomaly))


def trapezoid_pauc(normal, anomaly, max_fpr: float) -> float:
    """Walk the ROC curve threshold by threshold, cut it at max_fpr by interpolation, standardise after McClish."""
    points = [(0.0, 0.0)]
    for threshold in sorted({*normal, *anomaly}, reverse=True):
        points.append((sum(x >= threshold for x in normal) / len(normal), sum(x >= threshold for x in anomaly) / len(anomaly)))
    area = 0.0
    for (f0, t0), (f1, t1) in pairwise(points):
        if f1 == f0 or f0 >= max_fpr:
            continue
        end = min(f1, max_fpr)
        t_end = t0 + (t1 - t0) * (end - f0) / (f1 - f0)
        area += (end - f0) * (t0 + t_end) / 2
    least, most = max_fpr**2 / 2, max_fpr
    return 0.5 * (1 + (area - least) / (most - least))


def official_metrics(scores, domain, label, max_fpr: float = 0.1) -> list[float]:
    """AUC_source, AUC_target, pAUC as the official evaluator takes them, by scikit-learn; NaN where a class is absent."""
    out = []
    for wanted in ("source", "target", None):
        rows = [i for i, m in enumerate(label) if m == "anomaly" or (m == "normal" and wanted in (None, domain[i]))]
        truth = [int(label[i] == "anomaly") for i in rows]
        if len(set(truth)) < 2:
            out.append(float("nan"))
        else:
            out.append(float(roc_auc_score(truth, [scores[i] for i in rows], max_fpr=max_fpr if wanted is None else None)))
    return out


def resampled_metrics(scores, domain, label, counts, max_fpr: float = 0.1) -> list[float]:
    """The same on a resample written out: every clip as often as it was drawn."""
    rows = [i for i, times in enumerate(counts) for _ in range(int(times))]
    return official_metrics([scores[i] for i in rows], [domain[i] for i in rows], [label[i] for i in rows], max_fpr)


def harmonic_mean(values) -> float:
    total = 0.0
    for value in values:
        total += 1.0 / max(value, np.finfo(float).eps)
    return len(values) / total


def decision_quality(flagged, anomalous) -> tuple[float, float, float]:
    """Precision, recall, F1 by scikit-learn, 0 where nothing was flagged."""
    precision, recall, f1, _ = precision_recall_fscore_support(anomalous, flagged, average="binary", zero_division=0.0)
    return float(precision), float(recall), float(f1)


def mid_rank(score, train) -> float:
    return sum(1.0 if x < score else 0.5 if x == score else 0.0 for x in train) / len(train)
