"""Paired comparison of systems: bootstrap intervals and Holm-corrected p-values (Holm 1979)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from asdlib import errors, schemas
from asdlib.evaluation import metrics
from asdlib.evaluation.metrics import _Block, _Resamples
from asdlib.scoring import fusion

PAIRED_COLUMNS = ("system_a", "system_b", "machine", "metric", "value", "low", "high", "p")
REFERENCE = "multires"  # training-free system used as reference


class Pairs:
    """Paired differences of any two systems on shared bootstrap resamples.

    Each system is evaluated only once.
    scores : score table;  seed : resampling seed;  component : compared component.  Notebook: 09_report
    """

    def __init__(
        self, scores: pd.DataFrame, settings: metrics.MetricsSettings, seed: int, component: str = "score"
    ):
        self._settings, self._resamples, self._sides = settings, _Resamples(settings.bootstrap, seed), {}
        found = metrics._blocks(schemas.by_section(schemas.score_table(scores)))
        self._runs: dict[str, list[list[_Block]]] = {}
        for (system, name, _), blocks in found.items():
            if name == component:
                self._runs.setdefault(system, []).append(blocks)

    def _side(self, system: str) -> tuple[np.ndarray, np.ndarray]:
        """Metric values and resampled values of a system, averaged over its training seeds."""
        if system not in self._sides:
            found = []
            for blocks in self._runs[system]:
                found.append(
                    [
                        metrics.with_means(part)
                        for part in metrics._evaluate(blocks, self._settings, self._resamples)
                    ]
                )
            self._sides[system] = tuple(np.mean([run[part] for run in found], axis=0) for part in (0, 1))
        return self._sides[system]

    def omega(self, system: str) -> float:
        """Official score of a system over all machines, averaged over its training seeds."""
        return float(self._side(system)[0][-1])

    def __call__(self, system_a: str, system_b: str) -> pd.DataFrame:
        """Differences a - b, each metric averaged over training seeds first.

        returns : PAIRED_COLUMNS; p is the two-sided bootstrap p-value, twice the smaller share of resamples
            on either side of zero, at least 2 / (resamples + 1)
        raises : errors.InputError for an unknown system, or systems that scored different clips
        """
        runs = [
            run
            for name in (system_a, system_b)
            for run in self._runs[errors.check_choice("system", name, sorted(self._runs))]
        ]
        clips = [[(b.machine, b.clip.tolist()) for b in run] for run in runs]
        if any(one != clips[0] for one in clips):
            raise errors.InputError(
                f"{system_a} and {system_b} scored different test clips; run both on the same data"
            )
        value, boots = (a - b for a, b in zip(self._side(system_a), self._side(system_b), strict=True))
        low, high = metrics._interval(boots, self._settings.confidence)
        fewer = np.minimum((boots <= 0).sum(0), (boots >= 0).sum(0))
        p = np.where(np.isnan(value), np.nan, np.minimum(1.0, 2 * (fewer + 1) / (len(boots) + 1)))
        rows = pd.DataFrame(metrics._names([b.machine for b in runs[0]]), columns=["machine", "metric"])
        return rows.assign(system_a=system_a, system_b=system_b, value=value, low=low, high=high, p=p)[
            list(PAIRED_COLUMNS)
        ]


def paired(
    scores: pd.DataFrame,
    system_a: str,
    system_b: str,
    settings: metrics.MetricsSettings,
    seed: int,
    component: str = "score",
) -> pd.DataFrame:
    """Paired differences of two systems, see `Pairs`.  Notebook: 09_report"""
    return Pairs(scores, settings, seed, component)(system_a, system_b)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm-corrected p-values of one family (Holm 1979), to compare with the family-wise level.

    p : (m,), NaN entries are ignored.  returns : (m,), in [p, 1]
    """
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN last
    m = int(np.isfinite(p).sum())
    out = np.full(len(p), np.nan)
    out[order[:m]] = np.minimum(np.maximum.accumulate(p[order[:m]] * np.arange(m, 0, -1)), 1.0)
    return out


def enough(pairs: int, settings: metrics.MetricsSettings) -> metrics.MetricsSettings:
    """Settings with enough resamples for Holm correction over `pairs` pairs.

    The smallest attainable p-value is then half of what significance requires.
    """
    return settings.replace(
        bootstrap=max(settings.bootstrap, math.ceil(4 * pairs / (1 - settings.confidence)))
    )


def over_all(pair: pd.DataFrame) -> pd.DataFrame:
    """Row for Ω over all machines in a table of `comparison.Pairs`; empty if not available."""
    return pair[(pair["machine"] == "all") & (pair["metric"] == "omega") & pair["value"].notna()]


def all_pairs(scores: pd.DataFrame, settings: metrics.MetricsSettings, seed: int) -> pd.DataFrame:
    """All pairwise comparisons by Ω over all machines, Holm-corrected as one family.

    scores : SCORE_COLUMNS.  seed : resampling seed
    returns : PAIRED_COLUMNS and p_holm; empty without labeled test clips
    Notebook: 09_report
    """
    tested = fusion.in_order(scores["system"][scores["split"] == "test"])
    pairs = list(itertools.combinations(tested, 2))
    compared = Pairs(scores, enough(len(pairs), settings), seed)
    rows = [over_all(compared(a, b)) for a, b in pairs]
    found = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(PAIRED_COLUMNS))
    return found.assign(p_holm=holm(found["p"]))
