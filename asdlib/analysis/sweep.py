"""All points of a tuner at once: metrics over ω × k × k_scale × η, bootstrap bands, and what each rule of choosing makes of them.

Conventions
-----------
A *slot* is the system shown: slot 0 is OEVAE alone, slot 1 + i the ensemble with the i-th η. Bands are percentile intervals of BAND_RESAMPLES
stratified resamples of the test clips, paired over the whole curve, at every fifth ω; between them they are joined by lines. Rules look at η in
tenths, the training rule at ω in tenths too.

Three rules choose a point, and only two of them may be used for a claim:

    default     the values in the settings, fixed before anything was seen
    training    the least *domain mismatch* of the leave-clip-out training scores: the mean over machines of |2·AUC − 1|, where the AUC is that of
                target training clips against source ones. 0: the score does not tell the domains apart, and one threshold serves both. The
                default stays unless the mismatch falls by more than chance (bootstrap of the training clips, interval above 0)
    oracle      the best Ω (without it, the best mean there is) on the labelled test clips: what was there to gain, never a claim

What `training` is worth: it sees normal clips only and asks what a shift of domain does, not what a fault does; a score that knows
nothing passes it best of all, and ten target clips are few. The interval does not count that the best of many points was picked.
`worth` measures afterwards, with test labels, whether the rule pointed the right way. On the synthetic demo it did not (−0.85: it chose α
alone), so a batch run keeps the default. Pseudo-anomalies, clips of other machines, would be better grounds; their scores are in no
artefact and need the networks.

Sources: METHOD 3.7, 3.8, 4.11, 7.4.  Notebook: 08_tuning
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from scipy import stats

from asdlib import errors, io
from asdlib.analysis.tuning import Choice, Parts, Split
from asdlib.evaluation import roc
from asdlib.studies import artifacts

STEPS = {"gamma": 10}  # of ω, where fitting a scale at every point takes too long
FINE, ETA_STEPS, EVERY = 50, 10, 5
BAND_RESAMPLES, MISMATCH_RESAMPLES = 200, 1000
RULES = {"default": "fixed default", "training": "training clips only, least domain mismatch", "oracle": "test labels: oracle, not a claim"}


class Sweep(NamedTuple):
    """Metrics of every point. P priors, K values of k, W omegas, M machines."""

    omegas: np.ndarray  # (W,), 0 to 1
    etas: np.ndarray  # (E,), 0 to 1, with the study's own; empty without a classifier
    areas: np.ndarray  # (1 + E, P, K, W, M, 3): AUC source, AUC target, pAUC
    mismatch: np.ndarray  # (1 + E, P, K, V) at omegas[::EVERY]; NaN without target training clips
    bands: np.ndarray  # (systems, P, K, V, 2, M + 1, 4): low and high at omegas[::EVERY], of OEVAE and of the ensemble at the study's η


class Rule(NamedTuple):
    """What a rule chooses, and on what grounds. choice is None where the rule has nothing to go by."""

    name: str
    choice: Choice | None
    why: str


def make(parts: Parts, seed: int) -> Sweep:
    """Evaluate everything. seed : of the bootstrap, as for metrics.csv. About 2 s for 7 machines × 200 clips × 3 k × 5 priors."""
    omegas = np.round(np.linspace(0, 1, STEPS.get(parts.mode, FINE) + 1), 10)  # 0.3, not 0.30000000000000004
    etas = np.unique(np.append(np.round(np.linspace(0, 1, ETA_STEPS + 1), 10), parts.default.eta)) if parts.classifier else np.zeros(0)
    shape = (1 + len(etas), len(parts.alphas), len(parts.betas), len(omegas))
    areas, mismatch = np.empty((*shape, len(parts.machines), 3)), np.empty((*shape[:3], len(omegas[::EVERY])))
    weights, one_seed = resamples(parts, seed), next(iter(parts.betas.values())).test.shape[1] == 1
    band_shape = (len(parts.systems), *shape[1:3], len(omegas[::EVERY]), 2, len(parts.machines) + 1, 4)
    bands = np.empty(band_shape)
    for p, prior in enumerate(parts.alphas):
        for j, k in enumerate(parts.betas):
            oevae = parts.oevae(prior, k, omegas[:, None, None, None])
            scaled = parts.scaled(oevae) if parts.classifier else oevae
            if one_seed:  # training scores scale nothing any more: only those of the mismatch are carried on
                oevae, scaled = (Split(both.test, both.train[::EVERY]) for both in (oevae, scaled))
            for slot, eta in enumerate([None, *etas]):
                final = parts.over_seeds(oevae if eta is None else parts.ensemble(scaled, eta))
                areas[slot, p, j] = parts.areas(final.test)
                mismatch[slot, p, j] = domain_mismatch(parts, final.train if one_seed else final.train[::EVERY])
                if eta is None or eta == parts.default.eta:
                    bands[int(eta is not None), p, j] = band(parts, final.test[::EVERY], weights)
    return Sweep(omegas, etas, areas, mismatch, bands)


def resamples(parts: Parts, seed: int) -> list[np.ndarray]:
    """Bootstrap weights of each machine's test clips, int16 (BAND_RESAMPLES, clips)."""
    streams = [[seed, zlib.crc32(machine.encode())] for machine in parts.machines]
    return [roc.bootstrap_weights(d, kind, BAND_RESAMPLES, s) for d, kind, s in zip(parts.domain, parts.label, streams, strict=True)]


def band(parts: Parts, test: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Low and high of all metrics for final scores (V, machines, n): float64 (V, 2, machines + 1, 4)."""
    return np.stack([interval(parts, replicates(parts, scores, weights)) for scores in test])


def replicates(parts: Parts, test: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """All metrics of final scores (machines, n) in every resample: float64 (resamples, machines + 1, 4)."""
    limit, facts = parts.settings.max_fpr, zip(test, parts.domain, parts.label, weights, strict=True)
    boots = [roc.bootstrap(s[: len(d)], d, kind, w, limit) if len(d) else np.full((len(w), 3), np.nan) for s, d, kind, w in facts]
    return parts.table(np.stack(boots, axis=1))


def interval(parts: Parts, boots: np.ndarray) -> np.ndarray:
    """Low and high of resampled values (resamples, ...): float64 (2, ...)."""
    tail = (1 - parts.settings.confidence) / 2
    return np.quantile(boots, [tail, 1 - tail], axis=0)


def domain_mismatch(parts: Parts, train: np.ndarray) -> np.ndarray:
    """Mean over machines of |2·AUC − 1|, target against source training clips. train : (..., machines, m).  returns : (...)"""
    found = []
    for i, target in enumerate(parts.target):
        if target.any() and not target.all():
            own = train[..., i, : len(target)]
            low, wins = own[..., ~target], 0  # twice the pairs in which target is above, ties once
            for column in np.flatnonzero(target):  # few; one at a time stays in the cache
                high = own[..., column, None]
                wins = wins + np.count_nonzero(high > low, axis=-1) + np.count_nonzero(high >= low, axis=-1)
            found.append(np.abs(wins / (target.sum() * low.shape[-1]) - 1))
    return np.mean(found, axis=0) if found else np.full(train.shape[:-2], np.nan)


def open_sweep(folder: Path, parts: Parts, seed: int) -> Sweep:
    """`make`, or what an earlier run left in the folder for exactly these scores, labels, settings and code."""
    split = [array for part in (*parts.alphas.values(), *parts.betas.values(), *filter(None, [parts.classifier])) for array in part]
    facts = (parts.machines, parts.mode, parts.settings, parts.default, list(parts.alphas), list(parts.betas), seed, artifacts.code_digest())
    content = hashlib.sha256(repr(facts).encode())
    for array in (*split, parts.code, *parts.target):
        content.update(np.ascontiguousarray(array).tobytes())
    path = folder / f"sweep-{content.hexdigest()[:16]}.safetensors"
    if path.is_file():
        with io.refused(path, "a sweep of the tuner"):
            return Sweep(**io.tensors(path, {}))
    found = make(parts, seed)
    beside = path.with_name(f".{path.name}")
    with artifacts.guarded(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(array) for name, array in found._asdict().items()}, beside)
        beside.replace(path)
    return found


# ---------------------------------------------------------------- rules


def rules(parts: Parts, sweep: Sweep, seed: int) -> dict[str, Rule]:
    """What each rule of RULES chooses, for the ensemble where there is one, else for OEVAE. seed : of the bootstrap."""
    first = 1 if parts.classifier else 0
    return {"default": Rule("default", parts.default, "the values in the settings"), "training": _training(parts, sweep, first, seed),
            "oracle": _oracle(parts, sweep, first)}  # fmt: skip


def worth(parts: Parts, sweep: Sweep) -> float:
    """Rank correlation over all points of a small mismatch with a large Ω, −1 to 1; NaN without labels or without target clips.

    An afterthought with test labels; nothing is chosen by it.
    """
    first = 1 if parts.classifier else 0
    x, y = -sweep.mismatch[first:].ravel(), quality(parts, sweep)[first:, ..., ::EVERY].ravel()
    constant = np.isnan(x).any() or np.isnan(y).any() or np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if constant else float(stats.spearmanr(x, y).statistic)


def quality(parts: Parts, sweep: Sweep) -> np.ndarray:
    """What the oracle looks at, and the map shows: Ω of every point (slots, P, K, W)."""
    return parts.table(sweep.areas)[..., -1, 3]


def _point(parts: Parts, sweep: Sweep, slot: int, p: int, j: int, w: int) -> Choice:
    eta = float(sweep.etas[slot - 1]) if slot else parts.default.eta
    return Choice(float(sweep.omegas[w]), eta, list(parts.betas)[j], list(parts.alphas)[p])


def _oracle(parts: Parts, sweep: Sweep, first: int) -> Rule:
    omega = quality(parts, sweep)[first:]
    if np.isnan(omega).all():
        return Rule("oracle", None, "no labelled test clip")
    best = np.unravel_index(np.nanargmax(omega), omega.shape)
    return Rule("oracle", _point(parts, sweep, best[0] + first, *best[1:]), f"the best of {omega.size} points on the very labels it is measured by")


def _training(parts: Parts, sweep: Sweep, first: int, seed: int) -> Rule:
    mismatch = sweep.mismatch[first:]
    if np.isnan(mismatch).all():
        return Rule("training", parts.default, "no machine has training clips of both domains: the default stays")
    best = np.unravel_index(np.nanargmin(mismatch), mismatch.shape)
    choice = _point(parts, sweep, best[0] + first, *best[1:3], best[3] * EVERY)
    boots = []
    for point in (parts.default, choice):
        train, found = parts.final(parts.systems[-1], point).train, []
        for i, target in enumerate(parts.target):
            if target.any() and not target.all():
                kind, domain = np.where(target, "anomaly", "normal"), np.full(len(target), "source")
                weights = roc.bootstrap_weights(domain, kind, MISMATCH_RESAMPLES, [seed, zlib.crc32(parts.machines[i].encode()), 2])
                found.append(np.abs(2 * roc.bootstrap(train[i, : len(target)], domain, kind, weights)[:, 0] - 1))
        boots.append(np.mean(found, axis=0))
    low, high = interval(parts, boots[0] - boots[1])
    before = float(domain_mismatch(parts, parts.final(parts.systems[-1], parts.default).train))
    told = f"domain mismatch {before:.3f} at the default, {mismatch[best]:.3f} at its smallest (difference [{low:.3f}, {high:.3f}])"
    return Rule("training", choice, told) if low > 0 else Rule("training", parts.default, f"{told}: not more than chance, the default stays")


def named(name: str) -> str:
    """A rule in words."""
    return RULES[errors.known_name("rule", name, list(RULES))]
