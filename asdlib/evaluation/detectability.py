"""Detectability: AUC as a function of fault severity, and the severity at which a system reaches a given AUC.

An overall AUC averages over whichever severities were recorded. Where severities are known, this module
computes one AUC per severity.

Conventions
-----------
Severities come from `<machine>/severity.csv` (file_name, severity), written by `asdlib.data.synthetic` or
provided with other recordings. They are used here and in the report only, never in training, normalization or
selection. The AUC of a severity compares all normal test clips of the machine, both domains, with its
anomalies of that severity; chance is 0.5. Machine "all" is the harmonic mean over machines, at the severities
common to all; values are means over the training seeds of a system. Intervals: percentile bootstrap,
stratified by domain, label and severity, with the same resamples for all systems.

The severity that reaches an AUC is read off an isotonic regression of the AUCs (weighted by number of
anomalies), interpolated linearly between tested severities and from AUC 0.5 at severity 0. Resamples that
never reach it count as infinite, so an interval may end in "not reached" but never beyond the tested range.

Source: METHOD 8.1, 3.8. Notebook: 09_report.
"""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from asdlib import errors, schemas
from asdlib.evaluation import metrics, roc

LEVEL = 0.75  # AUC that counts as detection: halfway between chance and perfect
CURVE_COLUMNS = ("system", "machine", "severity", "value", "low", "high", "anomalies")
REACH_COLUMNS = ("system", "machine", "severity", "low", "high", "tested")


def severities(clips: pd.DataFrame) -> pd.Series:
    """Fault severity of each clip, NaN if unknown.

    clips : clip table; <machine>/severity.csv is expected next to the folder that contains the clip
    returns : float (n_clips,), index `clip`
    raises : errors.InputError for a severity.csv with missing columns or severities other than numbers >= 0.
        Notebook: 09_report
    """
    found: dict[str, float] = {}
    for folder in dict.fromkeys(Path(path).parent.parent for path in clips["path"]):
        path = folder / "severity.csv"
        if not path.is_file():
            continue
        try:
            rows = pd.read_csv(path)
            values = rows["severity"].astype(float)
            names = [Path(name).name for name in rows["file_name"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise errors.InputError(
                f"{path}: cannot be read ({error}), expected columns file_name,severity; fix or remove the"
                " file"
            ) from error
        if not (np.isfinite(values) & (values >= 0)).all():
            raise errors.InputError(
                f"{path}: a severity is missing, negative or not a number, expected a number >= 0 for every"
                " file; fix or remove the file"
            )
        found |= dict(zip((str(folder / name) for name in names), values, strict=True))
    keys = [str(Path(path).parent.parent / Path(path).name) for path in clips["path"]]
    return pd.Series([found.get(key, np.nan) for key in keys], index=clips["clip"].to_numpy(), dtype=float)


class _Curves(NamedTuple):
    """AUC by severity of one system, NaN where not available; the last machine is "all"."""

    values: np.ndarray  # (machines + 1, severities)
    boots: np.ndarray  # (B, machines + 1, severities)


def _one(
    scores: np.ndarray, normal: np.ndarray, kind: np.ndarray, levels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """AUC per severity for B weightings, (B, severities).

    weights : clip weights (B, n).  kind : (n,) severity of each clip, NaN for normal clips
    """
    out = np.full((len(weights), len(levels)), np.nan)
    low, w_low = scores[normal], weights[:, normal].astype(float)
    for column, level in enumerate(levels):
        faulty = kind == level
        if faulty.any() and normal.any():
            high, w_high = scores[faulty], weights[:, faulty].astype(float)
            out[:, column] = roc.weighted_auc(high, w_high, low, w_low)
    return out


def _weights(domain: np.ndarray, normal: np.ndarray, kind: np.ndarray, n: int, seed: list[int]) -> np.ndarray:
    """Bootstrap weights, int (n, clips), stratified by (domain, severity); normal clips are one stratum."""
    group = np.where(normal, -1.0, kind)
    used = normal | ~np.isnan(kind)
    out = np.zeros((n, len(domain)), np.int16)
    for number, pair in enumerate(itertools.product(schemas.DOMAINS, np.unique(group[used]))):
        members = np.flatnonzero(used & (domain == pair[0]) & (group == pair[1]))
        label = np.full(len(members), "normal")
        out[:, members] = roc.bootstrap_weights(np.full(len(members), "source"), label, n, [*seed, number])
    return out


def _evaluate(
    scores: pd.DataFrame, settings: metrics.MetricsSettings, seed: int
) -> tuple[list[str], np.ndarray, np.ndarray, dict[str, _Curves]]:
    """Machines, severities, anomaly counts (machines, severities), and curves by system."""
    test = scores[
        (scores["component"] == "score") & (scores["split"] == "test") & (scores["label"] != "unlabeled")
    ]
    test = test[(test["label"] == "normal") | test["severity"].notna()]
    faulty = test[test["label"] == "anomaly"]
    machines, levels = sorted(faulty["machine"].unique()), np.sort(faulty["severity"].unique())
    counts = np.zeros((len(machines), len(levels)), int)
    drawn: dict[tuple, np.ndarray] = {}
    curves = {}
    for system, of_system in test.groupby("system", sort=False):
        runs = []
        for _, run in of_system.groupby("seed"):
            values = np.full((1 + settings.bootstrap, len(machines), len(levels)), np.nan)
            for number, machine in enumerate(machines):
                part = run[run["machine"] == machine].sort_values("clip", kind="stable")
                if part.empty:
                    continue
                normal = (part["label"] == "normal").to_numpy()
                kind = np.where(normal, np.nan, part["severity"].to_numpy(float))
                domain = part["domain"].to_numpy().astype(str)
                key = (machine, *part["clip"])
                if key not in drawn:  # shared by all systems and seeds that scored the same clips
                    many = _weights(
                        domain, normal, kind, settings.bootstrap, [seed, zlib.crc32(machine.encode()), 2]
                    )
                    drawn[key] = np.concatenate([np.ones((1, len(part)), np.int16), many])
                counts[number] = np.maximum(counts[number], [(kind == level).sum() for level in levels])
                values[:, number] = _one(part["score"].to_numpy(float), normal, kind, levels, drawn[key])
            runs.append(np.concatenate([values, roc.harmonic(values, axis=1)[:, None]], axis=1))
        mean = np.mean(runs, axis=0)
        curves[system] = _Curves(mean[0], mean[1:])
    return machines, levels, counts, curves


def curves(
    scores: pd.DataFrame, settings: metrics.MetricsSettings, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """AUC by severity per system and machine, and the severity at which each reaches `LEVEL`.

    scores : score table with a column severity (NaN for normal clips);  seed : resampling seed
    returns : CURVE_COLUMNS, and REACH_COLUMNS with severity, interval (inf: not reached) and largest tested
        severity; both empty if no labeled anomaly has a severity
    raises : errors.InputError without the column severity.  Notebook: 09_report
    """
    schemas.score_table(scores)
    if "severity" not in scores:
        raise errors.InputError("score table has no column severity; add it from detectability.severities")
    if not (scores["severity"].notna() & (scores["label"] == "anomaly") & (scores["split"] == "test")).any():
        return pd.DataFrame(columns=list(CURVE_COLUMNS)), pd.DataFrame(columns=list(REACH_COLUMNS))
    machines, levels, counts, found = _evaluate(schemas.by_section(scores), settings, seed)
    tail = (1 - settings.confidence) / 2
    rows, reached = [], []
    for system, curve in found.items():
        everywhere = (counts > 0).all(0)
        for place, name in enumerate([*machines, "all"]):
            at, number = (everywhere, counts.sum(0)) if name == "all" else (counts[place] > 0, counts[place])
            if not at.any():
                continue
            value, boots = curve.values[place, at], curve.boots[:, place, at]
            low, high = np.quantile(boots, [tail, 1 - tail], axis=0)
            rows += [
                (system, name, *row) for row in zip(levels[at], value, low, high, number[at], strict=True)
            ]
            point = reach(levels[at], value[None], number[at])[0]
            # no interpolation with inf
            ends = np.quantile(reach(levels[at], boots, number[at]), [tail, 1 - tail], method="inverted_cdf")
            reached.append((system, name, point, *ends, levels[at][-1]))
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS)), pd.DataFrame(reached, columns=list(REACH_COLUMNS))


def rising(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted isotonic regression of each row.

    values : (B, n);  weights : (n,), > 0;  returns : (B, n). Max-min formula, vectorized over B
    """
    n = values.shape[-1]
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values * weights, axis=1)], axis=1)
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    mean = {
        (i, j): (sums[:, j + 1] - sums[:, i]) / (mass[j + 1] - mass[i]) for i in range(n) for j in range(i, n)
    }
    return np.stack(
        [
            np.max([np.min([mean[i, j] for j in range(k, n)], axis=0) for i in range(k + 1)], axis=0)
            for k in range(n)
        ],
        axis=1,
    )


def reach(severity: np.ndarray, auc: np.ndarray, weights: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Severity at which rising curves reach a level, inf if never.

    severity : (n,), ascending, >= 0;  auc : (B, n);  weights : (n,), number of anomalies;  level : > 0.5
    returns : (B,), NaN for rows with NaN
    """
    known = severity > 0
    x = np.concatenate([[0.0], severity[known]])
    y = np.concatenate(
        [np.full((len(auc), 1), 0.5), np.maximum(rising(auc, np.asarray(weights, float))[:, known], 0.5)],
        axis=1,
    )
    out = np.full(len(auc), np.inf)
    for left in range(len(x) - 2, -1, -1):  # right to left, so that the first crossing overwrites later ones
        crosses = (y[:, left] < level) & (y[:, left + 1] >= level)
        share = (level - y[crosses, left]) / (y[crosses, left + 1] - y[crosses, left])
        out[crosses] = x[left] + share * (x[left + 1] - x[left])
    return np.where(np.isnan(auc).any(1), np.nan, out)
