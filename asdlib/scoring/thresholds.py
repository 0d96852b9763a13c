"""Gamma distribution fitted to leave-clip-out training scores; threshold and scale from it. Scores of clips
that a network saw are brought to the level of clips that it never saw before.
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
    """Scores above `value` are called anomalous; method: gamma, or empirical where no gamma fits."""

    value: float
    method: str


def gamma_threshold(train_scores: np.ndarray, quantile: float = 0.9) -> Threshold:
    """The score that the share `quantile` of normal clips stays below, from leave-clip-out training scores.

    train_scores : (n,) finite, of any sign;  quantile : in (0, 1)
    A gamma with three parameters is fitted (METHOD 7.5); for fewer than 10 or equal scores, or a fit that
    misses its own data (`thresholds.fit_gamma`), the empirical quantile is taken instead and the method says
    so.
    raises : errors.InputError without scores, or with one that is not finite
    """
    train = np.asarray(train_scores, float)
    if len(train) == 0 or not np.isfinite(train).all():
        raise errors.InputError(
            f"{len(train)} training scores came for a threshold, expected at least one, all finite; score the"
            " train split"
        )
    fit = fit_gamma(train)
    return (
        Threshold(float(np.quantile(train, quantile)), "empirical")
        if fit is None
        else Threshold(fit.quantile(quantile), "gamma")
    )


def as_unseen(scores: np.ndarray, unseen: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """Scores of training clips as if no network had been trained on any of them.

    Clips that a network saw look more normal to it than new ones do, so that a threshold or a scale fitted to
    their scores is too low. They are moved up by what the unseen clips lie above them: the difference g of
    the means within each domain, weighted by its unseen clips, times max(0, 1 − s²/g²), s the standard error
    of g. A difference that chance explains moves nothing, and nothing is moved down.

    scores : float (n,).  unseen : bool (n,).  domain : str (n,)
    returns : float (n,); the scores themselves where all or none are unseen.  Source: METHOD 3.8
    """
    gap = variance = 0.0
    for name in np.unique(domain[unseen]):
        new, seen = (scores[(domain == name) & side] for side in (unseen, ~unseen))
        if len(seen) > 1:
            share = len(new) / unseen.sum()
            gap += share * (new.mean() - seen.mean())
            variance += share**2 * seen.var(ddof=1) * (1 / len(new) + 1 / len(seen))
    return scores + ~unseen * (gap - variance / gap if gap**2 > variance and gap > 0 else 0.0)


TAIL = 1e-100  # probability beyond which the gamma scale goes on along a straight line
ENOUGH = 10  # fewer training scores than this carry no shape


@dataclass(frozen=True)
class ZScore:
    """(score - mean) / std of the training scores; a std of 0 (equal scores, or a single one) counts as 1."""

    mean: float
    std: float

    @classmethod
    def fit(cls, train: np.ndarray) -> ZScore:
        """The scale of training scores (n,)."""
        mean, std = float(np.mean(train)), float(np.std(train))
        return cls(
            mean, std if std > 1e-12 * abs(mean) else 1.0
        )  # rounding alone gives equal scores a std of 1e-16

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The scores (n,), standardized."""
        return (np.asarray(scores, float) - self.mean) / self.std


@dataclass(frozen=True)
class Gamma:
    """-log of the survival probability under a three-parameter gamma fit to the training scores.

    The cdf itself is 1.0 in float64 a few widths above the training scores, where anomalies lie and their
    order matters; -log sf is the same order, spread out. Where sf < 1e-100 the curve goes on along its
    tangent, and where cdf < 1e-100 (below the support, at the latest) along a line of slope 1 per standard
    deviation, so that it increases everywhere.
    """

    shape: float
    loc: float
    scale: float

    @classmethod
    def fit(cls, train: np.ndarray) -> Gamma | ZScore:
        """The fit, or `ZScore.fit(train)` where `fit_gamma` finds no gamma (few or equal scores)."""
        found = fit_gamma(train)
        return ZScore.fit(train) if found is None else found

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The value -log sf (n,) of scores (n,), with both lines beyond the limits."""
        z = (np.asarray(scores, float) - self.loc) / self.scale
        z_low, z_tail = special.gammaincinv(self.shape, TAIL), special.gammainccinv(self.shape, TAIL)
        inside = np.clip(z, z_low, z_tail)
        cdf, sf = special.gammainc(self.shape, inside), special.gammaincc(self.shape, inside)
        low = -np.log1p(-np.minimum(cdf, 0.5))  # keeps the tiny values that 1 - sf would lose
        high = -np.log(np.maximum(sf, TAIL / 2))
        hazard = np.exp(
            special.xlogy(self.shape - 1, z_tail) - z_tail - special.gammaln(self.shape) - np.log(TAIL)
        )
        beyond = hazard * np.maximum(z - z_tail, 0.0) + np.minimum(z - z_low, 0.0) / np.sqrt(self.shape)
        return np.where(cdf < 0.5, low, high) + beyond

    def quantile(self, q: float) -> float:
        """The score below which the share q of normal scores is expected."""
        return float(self.loc + self.scale * special.gammaincinv(self.shape, q))


def fit_gamma(train: np.ndarray) -> Gamma | None:
    """Three-parameter gamma (shape, location, scale) by maximum likelihood, or None where it means nothing.

    train : (n,) finite scores of any sign
    None for fewer than 10 scores, for equal scores, and where the fit misses its own data (two groups, one
    far outlier, a long tail to the left): the share of training scores above its 0.9 quantile must be within
    3 binomial standard deviations of 0.1. No warnings. Source: METHOD 7.5 (official threshold)
    """
    train = np.asarray(train, float)
    spread = train.std() if len(train) else 0.0
    if len(train) < ENOUGH or not spread > 1e-9 * np.abs(train).max():
        return None
    unit = (
        train - train.mean()
    ) / spread  # the optimizer starts from the same place whatever the unit of the scores
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shape, loc, scale = stats.gamma.fit(unit)
        except (ValueError, RuntimeError, FloatingPointError):
            return None
    found = Gamma(float(shape), float(train.mean() + spread * loc), float(spread * scale))
    if not (np.isfinite([shape, loc, scale]).all() and shape >= 1 and scale > 0):
        return (
            None  # below shape 1 the likelihood grows without bound as the location meets the smallest score
        )
    miss = abs(np.mean(train > found.quantile(0.9)) - 0.1)
    return found if miss <= 3 * np.sqrt(0.09 / len(train)) + 0.5 / len(train) else None
