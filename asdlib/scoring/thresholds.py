"""Gamma fit of leave-clip-out training scores, for thresholds and normalization.

`as_unseen` corrects the scores of clips that a network was trained on.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from asdlib import errors

# ---------------------------------------------------------------- decisions


class Threshold(NamedTuple):
    """Decision threshold; method is "gamma", or "empirical" if no gamma distribution fits."""

    value: float
    method: str


def gamma_threshold(train_scores: np.ndarray, quantile: float = 0.9) -> Threshold:
    """Threshold at a quantile of the normal scores, from leave-clip-out training scores.

    train_scores : (n,) finite, of any sign;  quantile : in (0, 1)
    Uses a three-parameter gamma fit (METHOD 7.5), or the empirical quantile if `fit_gamma` fails.
    raises : errors.InputError for no scores or non-finite ones
    """
    train = np.asarray(train_scores, float)
    if len(train) == 0 or not np.isfinite(train).all():
        raise errors.InputError(
            f"threshold: got {len(train)} training scores, expected at least one and all finite; score the"
            " train split"
        )
    fit = fit_gamma(train)
    return (
        Threshold(float(np.quantile(train, quantile)), "empirical")
        if fit is None
        else Threshold(fit.quantile(quantile), "gamma")
    )


def as_unseen(scores: np.ndarray, unseen: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Training scores corrected for the network having been trained on those clips.

    Such clips look more normal than new ones, so a threshold or scale fitted to their scores is too low. They
    are raised by the mean difference g between unseen and seen clips, taken within each domain and weighted
    by its number of unseen clips, times max(0, 1 − s²/g²) with s the standard error of g. Scores are never
    lowered, nor raised if chance explains g.

    scores : float (n,).  unseen : bool (n,).  domain : str (n,)
    returns : float (n,); unchanged if all or none are unseen.  Source: METHOD 3.8
    """
    gap = variance = 0.0
    for name in np.unique(domain[unseen]):
        new, seen = (scores[(domain == name) & side] for side in (unseen, ~unseen))
        if len(seen) > 1:
            share = len(new) / unseen.sum()
            gap += share * (new.mean() - seen.mean())
            variance += share**2 * seen.var(ddof=1) * (1 / len(new) + 1 / len(seen))
    return scores + ~unseen * (gap - variance / gap if gap**2 > variance and gap > 0 else 0.0)


TAIL = 1e-100  # probability below which the gamma scale continues linearly
ENOUGH = 10  # minimum number of scores for a gamma fit


@dataclass(frozen=True)
class ZScore:
    """(score - mean) / std of the training scores; std 1 if they are all equal."""

    mean: float
    std: float

    @classmethod
    def fit(cls, train: np.ndarray) -> ZScore:
        """Fit to training scores (n,)."""
        mean, std = float(np.mean(train)), float(np.std(train))
        # equal scores have a std of about 1e-16 from rounding
        return cls(mean, std if std > 1e-12 * abs(mean) else 1.0)

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Standardized scores (n,)."""
        return (np.asarray(scores, float) - self.mean) / self.std


@dataclass(frozen=True)
class Gamma:
    """Negative log survival probability under a three-parameter gamma fit to the training scores.

    The cdf saturates at 1.0 in float64 a few widths above the training scores, where the order of anomalies
    matters; -log sf preserves it. Where sf < 1e-100 the curve continues along its tangent, and where cdf <
    1e-100 (at the latest below the support) with slope 1 per standard deviation, so it increases everywhere.
    """

    shape: float
    loc: float
    scale: float

    @classmethod
    def fit(cls, train: np.ndarray) -> Gamma | ZScore:
        """Gamma fit, or `ZScore.fit(train)` if `fit_gamma` returns None."""
        found = fit_gamma(train)
        return ZScore.fit(train) if found is None else found

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """-log sf (n,) of scores (n,), with linear tails."""
        z = (np.asarray(scores, float) - self.loc) / self.scale
        z_low, z_tail = special.gammaincinv(self.shape, TAIL), special.gammainccinv(self.shape, TAIL)
        inside = np.clip(z, z_low, z_tail)
        cdf, sf = special.gammainc(self.shape, inside), special.gammaincc(self.shape, inside)
        low = -np.log1p(-np.minimum(cdf, 0.5))  # precise for tiny values, unlike 1 - sf
        high = -np.log(np.maximum(sf, TAIL / 2))
        hazard = np.exp(
            special.xlogy(self.shape - 1, z_tail) - z_tail - special.gammaln(self.shape) - np.log(TAIL)
        )
        beyond = hazard * np.maximum(z - z_tail, 0.0) + np.minimum(z - z_low, 0.0) / np.sqrt(self.shape)
        return np.where(cdf < 0.5, low, high) + beyond

    def quantile(self, q: float) -> float:
        """Score below which a share q of normal scores is expected."""
        return float(self.loc + self.scale * special.gammaincinv(self.shape, q))


def fit_gamma(train: np.ndarray) -> Gamma | None:
    """Maximum-likelihood three-parameter gamma (shape, location, scale), or None if it is not meaningful.

    train : (n,) finite scores of any sign
    None for fewer than 10 scores, equal scores, or a poor fit (two groups, a far outlier, a long left tail):
    the share of training scores above the fitted 0.9 quantile must be within 3 binomial standard deviations
    of 0.1. Emits no warnings. Source: METHOD 7.5 (official threshold)
    """
    train = np.asarray(train, float)
    spread = train.std() if len(train) else 0.0
    if len(train) < ENOUGH or not spread > 1e-9 * np.abs(train).max():
        return None
    unit = (train - train.mean()) / spread  # makes the fit independent of the unit of the scores
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shape, loc, scale = stats.gamma.fit(unit)
        except (ValueError, RuntimeError, FloatingPointError):
            return None
    found = Gamma(float(shape), float(train.mean() + spread * loc), float(spread * scale))
    if not (np.isfinite([shape, loc, scale]).all() and shape >= 1 and scale > 0):
        return None  # for shape < 1 the likelihood is unbounded as the location approaches the smallest score
    miss = abs(np.mean(train > found.quantile(0.9)) - 0.1)
    return found if miss <= 3 * np.sqrt(0.09 / len(train)) + 0.5 / len(train) else None
