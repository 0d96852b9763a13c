"""Slow, plain second derivations of what the library computes fast: loops, definitions, scikit-learn, scipy.

Nothing here is shared with the library; a test compares the two.
"""

from __future__ import annotations

import functools
import math
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
    """Walk the ROC curve threshold by threshold, cut it at max_fpr by interpolation, standardize after
    McClish.
    """
    points = [(0.0, 0.0)]
    for threshold in sorted({*normal, *anomaly}, reverse=True):
        points.append(
            (
                sum(x >= threshold for x in normal) / len(normal),
                sum(x >= threshold for x in anomaly) / len(anomaly),
            )
        )
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
    """AUC_source, AUC_target, pAUC as the official evaluator takes them, by scikit-learn; NaN where a class
    is absent.
    """
    out = []
    for wanted in ("source", "target", None):
        rows = [
            i
            for i, m in enumerate(label)
            if m == "anomaly" or (m == "normal" and wanted in (None, domain[i]))
        ]
        truth = [int(label[i] == "anomaly") for i in rows]
        if len(set(truth)) < 2:
            out.append(float("nan"))
        else:
            out.append(
                float(
                    roc_auc_score(
                        truth, [scores[i] for i in rows], max_fpr=max_fpr if wanted is None else None
                    )
                )
            )
    return out


def resampled_metrics(scores, domain, label, counts, max_fpr: float = 0.1) -> list[float]:
    """The same on a resample written out: every clip as often as it was drawn."""
    rows = [i for i, times in enumerate(counts) for _ in range(int(times))]
    return official_metrics(
        [scores[i] for i in rows], [domain[i] for i in rows], [label[i] for i in rows], max_fpr
    )


def harmonic_mean(values) -> float:
    total = 0.0
    for value in values:
        total += 1.0 / max(value, np.finfo(float).eps)
    return len(values) / total


def decision_quality(flagged, anomalous) -> tuple[float, float, float]:
    """Precision, recall, F1 by scikit-learn, 0 where nothing was flagged."""
    precision, recall, f1, _ = precision_recall_fscore_support(
        anomalous, flagged, average="binary", zero_division=0.0
    )
    return float(precision), float(recall), float(f1)


def mid_rank(score, train) -> float:
    return sum(1.0 if x < score else 0.5 if x == score else 0.0 for x in train) / len(train)


# ---------------------------------------------------------------- augmentation and losses


def sub_cluster_adacos(e, centers, y, classes: int, subclusters: int, scale: float) -> float:
    """Mean over items of −Σ_j y_ij ln p_ij (METHOD 5.7)."""
    total = 0.0
    for i in range(len(e)):
        weights = []
        for center in centers:
            cosine = float(np.dot(e[i], center) / (np.linalg.norm(e[i]) * np.linalg.norm(center)))
            weights.append(math.exp(scale * cosine))
        for j in range(classes):
            p = sum(weights[j * subclusters + k] for k in range(subclusters)) / sum(weights)
            total -= float(y[i, j]) * math.log(p)
    return total / len(e)


def adapted_scale(cosines, y, classes: int, subclusters: int, scale: float) -> tuple[float, float]:
    """The adaptive rule's next scale and the θ_med it used (METHOD 5.7)."""
    n = len(cosines)
    m = max(scale * float(c) for row in cosines for c in row)
    b = sum(math.exp(scale * float(c) - m) for row in cosines for c in row) / n
    angles = []
    for i in range(n):
        theta = 0.0
        for j in range(classes):
            for k in range(subclusters):
                theta += float(y[i, j]) * math.acos(float(cosines[i][j * subclusters + k]))
        angles.append(sum(float(v) != 0 for v in y[i]) * theta)
    median = sorted(angles)[(n - 1) // 2]
    return (m + math.log(b)) / math.cos(min(math.pi / 4, median)) + 1e-7, median


def oevae_terms(t, logit, mu, logvar, h, h_hat, kv, domain: int) -> dict[str, float]:
    """Eq. 2 (bounded form), 3 and 4 for hard or soft t; VAE terms over items with t = 1 only."""
    machine, kl_d, kl_c, recon, normals = 0.0, 0.0, 0.0, 0.0, 0
    for i in range(len(t)):
        phi = 1 / (1 + math.exp(-float(logit[i])))
        machine -= float(t[i]) * math.log(phi) + (1 - float(t[i])) * math.log(1 - phi)
        if t[i] != 1:
            continue
        normals += 1
        for c in range(len(mu[i])):
            prior = float(kv[i]) if c < domain else 0.0
            kl = 0.5 * (
                math.exp(float(logvar[i][c])) + (float(mu[i][c]) - prior) ** 2 - 1 - float(logvar[i][c])
            )
            if c < domain:
                kl_d += kl
            else:
                kl_c += kl
        recon += sum((float(a) - float(b)) ** 2 for a, b in zip(h[i], h_hat[i]))
    return {
        "machine": machine / len(t),
        "kl_d": kl_d / normals,
        "kl_c": kl_c / normals,
        "recon": recon / normals,
    }


def same_conv_size(size: int, stride: int) -> int:
    """Length after a convolution with `same` padding."""
    return math.ceil(size / stride)


# ---------------------------------------------------------------- back-ends


def _length(x) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in x))


def _apart(a, b) -> float:
    """Euclidean distance of two vectors brought to unit length."""
    la, lb = _length(a), _length(b)
    return math.sqrt(sum((float(p) / la - float(q) / lb) ** 2 for p, q in zip(a, b)))


def nearest_unit(test, references) -> list[float]:
    """Distance to the nearest reference, on the unit sphere."""
    return [min(_apart(x, r) for r in references) for x in test]


def smallest_cosine_distance(test, references) -> list[float]:
    """Smallest 1 − cosine to any reference."""
    return [
        min(1 - sum(float(p) * float(q) for p, q in zip(x, r)) / _length(x) / _length(r) for r in references)
        for x in test
    ]


def local_density(test, references, k: int) -> list[float]:
    """Smallest distance to a reference over the mean distance of that reference to its k nearest others."""
    density = []
    for i, r in enumerate(references):
        others = sorted(_apart(r, o) for j, o in enumerate(references) if j != i)
        density.append(sum(others[:k]) / k)
    return [min(_apart(x, r) / d for r, d in zip(references, density)) for x in test]


# ---------------------------------------------------------------- multi-resolution density


@functools.cache
def mel_filters(n_fft: int, n_mels: int, low_hz: float, high_hz: float, rate: int) -> np.ndarray:
    """Triangles (n_mels, bins) whose corners are equally far apart on the mel scale of HTK."""
    to_mel, to_hz = (lambda hz: 2595 * math.log10(1 + hz / 700)), (lambda mel: 700 * (10 ** (mel / 2595) - 1))
    low, high = to_mel(low_hz), to_mel(high_hz)
    corners = [to_hz(low + (high - low) * i / (n_mels + 1)) for i in range(n_mels + 2)]
    out = np.zeros((n_mels, n_fft // 2 + 1))
    for band, (left, middle, right) in enumerate(zip(corners, corners[1:], corners[2:])):
        for place in range(n_fft // 2 + 1):
            hz = place * rate / n_fft
            rising, falling = (hz - left) / (middle - left), (right - hz) / (right - middle)
            out[band, place] = max(0.0, min(rising, falling))
    return out


def decibel_mel(wave: np.ndarray, n_fft: int, n_mels: int, rate: int) -> np.ndarray:
    """Log-mel (n_mels, frames) frame by frame: half overlap, the ends mirrored, a periodic Hann window."""
    half = n_fft // 2
    padded = np.concatenate([wave[half:0:-1], wave, wave[-2 : -half - 2 : -1]])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    filters = mel_filters(n_fft, n_mels, 50.0, min(8000.0, rate / 2), rate)
    columns = []
    for first in range(0, len(wave) + 1, half):
        power = np.abs(np.fft.rfft(padded[first : first + n_fft] * window)) ** 2
        columns.append(10 * np.log10(np.maximum(filters @ power, 1e-10)))
    return np.array(columns).T


def modulation(
    mel: np.ndarray, frame_hz: float, groups: int = 8, bins: int = 14, low_hz: float = 0.5
) -> list[float]:
    """Power of the level of each group of bands at each line of a dense grid, by the definition of Fourier's
    transform, averaged over the lines of a bin.
    """
    frames, ratio = mel.shape[1], (frame_hz / 2 / low_hz) ** (1 / bins)
    lines = 2 ** math.ceil(math.log2(max(frames, 4 * frame_hz / (low_hz * (ratio - 1)))))
    hz = np.arange(lines // 2 + 1) * frame_hz / lines
    waves = np.exp(-2j * np.pi * np.outer(hz, np.arange(frames)) / frame_hz)
    out = []
    for bands in np.array_split(mel, groups):
        level = bands.mean(0)
        power = np.abs(waves @ (level - level.mean())) ** 2 / frames
        for number in range(bins):
            inside = hz >= low_hz * ratio**number
            if number < bins - 1:
                inside &= hz < low_hz * ratio ** (number + 1)
            out.append(10 * math.log10(max(power[inside].mean(), 1e-10)))
    return out


def resolutions(wave: np.ndarray, rate: int = 16000) -> dict[str, np.ndarray]:
    """The four views of a clip by their names."""
    wave = np.asarray(wave, float)
    wave = np.concatenate([wave] * math.ceil(4096 / len(wave)))[: max(len(wave), 4096)]
    wave = (wave - wave.mean()) / max(wave.std(), 1e-6)
    mels = {n: decibel_mel(wave, n, bands, rate) for n, bands in ((256, 32), (1024, 64), (4096, 128))}
    views = {f"mel{n}": np.concatenate([mel.mean(1), mel.std(1)]) for n, mel in mels.items()}
    return views | {"modulation": np.array(modulation(mels[256], rate / 128))}


def standardized_density(x, references, k: int = 2, neighbors: int = 2) -> float:
    """Mean of the k smallest distances to a reference over that reference's mean distance to its own nearest."""
    scale = np.maximum(np.std(references, axis=0), 1e-3)
    references, x = [reference / scale for reference in references], x / scale
    ratios = []
    for i, r in enumerate(references):
        others = sorted(math.dist(r, o) for j, o in enumerate(references) if j != i)
        ratios.append(math.dist(x, r) / max(sum(others[:neighbors]) / neighbors, 1e-6))
    return sum(sorted(ratios)[:k]) / k


def multi_resolution(train, test) -> tuple[list[float], list[float]]:
    """Final scores of test clips, and of training clips each scored without itself, view by view.

    train, test : waveforms of one machine
    """
    train, test = [resolutions(wave) for wave in train], [resolutions(wave) for wave in test]
    of_train, of_test = np.zeros(len(train)), np.zeros(len(test))
    for view in train[0]:
        known = [clip[view] for clip in train]
        own = [standardized_density(x, known[:i] + known[i + 1 :]) for i, x in enumerate(known)]
        new = [standardized_density(clip[view], known) for clip in test]
        mean, spread = np.mean(own), np.std(own)
        of_train += (np.array(own) - mean) / spread / 4
        of_test += (np.array(new) - mean) / spread / 4
    return list(of_test), list(of_train)


def shrunk_mahalanobis(x, train, share: float = 0.1) -> float:
    """Mahalanobis distance of x to the mean of train, correlations times 1 − share, cell by cell."""
    n, dim = len(train), len(x)
    mean = [sum(row[j] for row in train) / n for j in range(dim)]
    gaps = [[row[j] - mean[j] for j in range(dim)] for row in train]
    spread = [max(math.sqrt(sum(g[j] ** 2 for g in gaps) / n), 1e-3) for j in range(dim)]
    matrix = np.zeros((dim, dim))
    for i in range(dim):
        for j in range(dim):
            matrix[i, j] = (1 - share) * sum(g[i] * g[j] for g in gaps) / n / spread[i] / spread[j]
            matrix[i, j] += share * (i == j)
    gap = np.array([(x[j] - mean[j]) / spread[j] for j in range(dim)])
    return math.sqrt(gap @ np.linalg.inv(matrix) @ gap)


def pooled(maps, how: str) -> list[float]:
    """One map (channels, frequency, time) as a vector, by loops: `mean`, `mean_std` or `bands`."""

    def moments(values):
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))

    channels, bins, frames = maps.shape
    if how == "bands":
        count = min(8, bins)
        sizes = [bins // count + (i < bins % count) for i in range(count)]
        courses = []
        for band in range(count):
            low = sum(sizes[:band])
            for c in range(channels):
                cells = maps[c, low : low + sizes[band]]
                courses.append(moments([float(sum(cells[:, t])) / sizes[band] for t in range(frames)]))
        return [m for m, _ in courses] + [s for _, s in courses]
    parts = [sum(float(v) for v in maps[c].ravel()) / (bins * frames) for c in range(channels)]
    if how == "mean_std":
        for axis, size in ((0, bins), (1, frames)):
            parts += [moments([float(v) / size for v in maps[c].sum(axis)])[1] for c in range(channels)]
    return parts
