"""Tuning of ω, η, k and k_scale: metrics of all combinations, bootstrap bands, and rules to choose one.

Conventions
-----------
Arrays are (machines, seeds, clips); machines with fewer clips are padded at the end with clips of no kind,
which are ignored. Components are on the scale of their training scores (`fusion.aligned`). Combinations are
rescaled exactly where `fusion.systems` does it: OEVAE before it is combined with the classifier, and each
seed before averaging over seeds. At the study's settings a combination therefore equals the study's score.

Several training seeds are treated as one ensemble with a single ω.

A *slot* is a system: slot 0 is OEVAE alone, slot 1 + i the ensemble with the i-th η. Bands are percentile
intervals over BAND_RESAMPLES stratified resamples of the test clips, paired over the whole curve, at every
fifth ω with lines in between. Rules consider η in steps of 0.1, and so does the training rule for ω.

There are three rules, of which the oracle must not be used for a claim:

    default     the values in the settings, fixed in advance
    training    the smallest *domain mismatch* of the leave-clip-out training scores: the mean over machines
                of |2·AUC − 1|, with the AUC of target against source training clips. At 0 the score does not
                separate the domains, and one threshold fits both. The default is kept unless the mismatch
                decreases significantly (bootstrap of the training clips, interval above 0)
    oracle      the best Ω (or else mean) on the labeled test clips: an upper bound

Limits of `training`: it measures the effect of a domain shift on normal clips, not of a fault; an
uninformative score passes best, ten target clips are few, and the interval does not account for selecting the
best of many points. `rule_validity` measures afterwards, with test labels, whether the rule was right. On the
synthetic demo it was not (−0.85: it chose α alone), so a batch run keeps the default. Pseudo-anomalies (clips
of other machines) would be a better basis, but their scores are not stored and need the networks.

Sources: METHOD 3.7, 3.8, 4.11, 4.12, 4.18, 7.4.  Notebook: 08_tuning
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from scipy import stats

from asdlib import errors, io, schemas
from asdlib.detectors.oevae import KEPT_K
from asdlib.evaluation import metrics, roc
from asdlib.scoring import fusion, thresholds

if TYPE_CHECKING:
    from asdlib.studies import config

SYSTEMS = ("oevae", "ensemble")  # systems with tunable parameters
COLUMNS = (*roc.THREE, "hmean")  # of a table; for "all" machines the last one is Ω


class Choice(NamedTuple):
    """One point: ω, η, k of kNN, and the prior's name (k_scale, and whether the VAE was refitted for it)."""

    omega: float
    eta: float
    k: int
    prior: str


class Split(NamedTuple):
    """Scores of test clips (..., machines, seeds, n) and training clips (..., machines, seeds, m)."""

    test: np.ndarray
    train: np.ndarray


@dataclass(frozen=True)
class Parts:
    """The component scores of a study; created by `from_scores`."""

    machines: tuple[str, ...]
    alphas: dict[str, Split]  # by name of the prior
    betas: dict[int, Split]  # by k
    classifier: Split | None
    domain: list[np.ndarray]  # of the test clips, per machine
    label: list[np.ndarray]  # of the test clips, per machine
    target: list[np.ndarray]  # bool, of the training clips, per machine
    kinds: np.ndarray  # bool (4, machines, n), see roc.kinds
    mode: str
    settings: metrics.MetricsSettings
    default: Choice
    scales: dict[str, float]  # k_scale of each prior
    chosen_by: str = ""  # how the default was chosen, if known

    @property
    def systems(self) -> tuple[str, ...]:
        """The available ones of SYSTEMS."""
        return SYSTEMS if self.classifier else SYSTEMS[:1]

    def scaled(self, scores: Split) -> Split:
        """Rescale each machine and seed by its training scores."""
        test, train = np.empty_like(scores.test), np.empty_like(scores.train)
        fit = fusion.MODES[self.mode].fit
        for index in np.ndindex(scores.train.shape[:-1]):
            n = len(self.target[index[-2]])
            scale = fit(scores.train[index][:n])
            test[index], train[index] = scale(scores.test[index]), scale(scores.train[index])
        return Split(test, train)

    def oevae(self, prior: str, k: int, omega: float | np.ndarray) -> Split:
        """Return ω·α + (1 − ω)·β; omega may have shape (g, 1, 1, 1)."""
        both = zip(self.alphas[prior], self.betas[k], strict=True)
        return Split(*(fusion.combine({"a": a, "b": b}, {"a": omega, "b": 1.0 - omega}) for a, b in both))

    def ensemble(self, scaled_oevae: Split, eta: float) -> Split:
        """Return η·OEVAE + (1 − η)·classifier."""
        both = zip(scaled_oevae, self.classifier, strict=True)
        return Split(*(fusion.combine({"o": o, "c": c}, {"o": eta, "c": 1.0 - eta}) for o, c in both))

    def over_seeds(self, scores: Split) -> Split:
        """Average the rescaled seeds, to (..., machines, clips); a single seed is not rescaled."""
        if scores.test.shape[-2] > 1:
            scores = self.scaled(scores)
        return Split(scores.test.mean(-2), scores.train.mean(-2))

    def final(self, system: str, choice: Choice) -> Split:
        """Return the final scores of a point: test (machines, n), train (machines, m)."""
        scores = self.oevae(choice.prior, choice.k, choice.omega)
        if system == "ensemble":
            scores = self.ensemble(self.scaled(scores), choice.eta)
        return self.over_seeds(scores)

    def areas(self, test: np.ndarray) -> np.ndarray:
        """Return AUC source, AUC target and pAUC of scores (..., machines, n), float64 (..., machines, 3)."""
        flat = test.reshape(-1, *test.shape[-2:])
        out = [
            roc.areas(flat[:, i], self.kinds[:, i, None], self.settings.max_fpr)
            for i in range(len(self.machines))
        ]
        return np.stack(out, axis=1).reshape(*test.shape[:-1], 3)

    def table(self, areas: np.ndarray) -> np.ndarray:
        """Append means: (..., machines, 3) to (..., machines + 1, 4), COLUMNS of each machine and of all."""
        both = metrics.with_means(areas)
        return both.reshape(*areas.shape[:-2], len(self.machines) + 1, 4)

    def point(self, system: str, choice: Choice) -> np.ndarray:
        """Return all metrics of a point, (machines + 1, 4)."""
        return self.table(roc.areas(self.final(system, choice).test, self.kinds, self.settings.max_fpr))


def from_scores(scores: pd.DataFrame, cfg: config.StudySettings) -> Parts:
    """Return the component scores of a study.

    scores : score table with the components of oevae and optionally the score of classifier
        (`Run.load_scores`)
    raises : errors.InputError without oevae, and if the seeds scored different clips
    """
    own = scores[scores["system"] == "oevae"]
    if own.empty:
        raise errors.InputError(
            f"study {cfg.name} has no scores of oevae, so there is nothing to tune; add oevae to systems"
        )
    found = set(own["component"])
    trained = f"{cfg.oevae.condition.k_scale:g} (trained)"
    alphas = {trained: ("alpha", cfg.oevae.condition.k_scale)}
    alphas |= {
        f"{k:g} (refitted)": (f"alpha_k{k:g}", k)
        for k in sorted(cfg.oevae.k_scales)
        if f"alpha_k{k:g}" in found
    }
    betas = {cfg.oevae.neighbors: "beta"}
    if cfg.oevae.backend == "knn":  # a local density has no k to choose
        betas = {k: f"beta_k{k}" for k in KEPT_K if f"beta_k{k}" in found} | betas
    names = [("oevae", name) for name, _ in alphas.values()] + [("oevae", betas[k]) for k in sorted(betas)]
    classifier = ("classifier", "score") in set(zip(scores["system"], scores["component"]))
    table = fusion.aligned(scores, names + [("classifier", "score")] * classifier, cfg.fusion.normalize)
    by_section = schemas.by_section(table).assign(references=schemas.by_references(table)["machine"])
    references = dict(zip(by_section["machine"], by_section["references"]))
    machines, seeds = sorted(references), sorted(table["seed"].unique())
    train, test = (by_section[by_section["split"] == split] for split in schemas.SPLITS)
    rows = {
        name: (train[train["references"] == references[name]], test[test["machine"] == name])
        for name in machines
    }
    clips = {name: [_clips(part) for part in parts] for name, parts in rows.items()}

    def both(name: str) -> Split:
        return Split(
            *(
                _padded([_seeds(rows[machine][i], machine, name, seeds) for machine in machines])
                for i in (1, 0)
            )
        )

    domain, label = ([clips[m][1][column].to_numpy() for m in machines] for column in ("domain", "label"))
    return Parts(
        tuple(machines),
        {prior: both(f"oevae/{name}") for prior, (name, _) in alphas.items()},
        {k: both(f"oevae/{betas[k]}") for k in sorted(betas)},
        both("classifier/score") if classifier else None,
        domain,
        label,
        [clips[m][0]["domain"].to_numpy() == "target" for m in machines],
        _padded([roc.kinds(d, kind) for d, kind in zip(domain, label)]).swapaxes(0, 1),
        cfg.fusion.normalize,
        cfg.metrics,
        Choice(cfg.fusion.omega, cfg.fusion.eta, cfg.oevae.neighbors, trained),
        {prior: scale for prior, (_, scale) in alphas.items()},
        cfg.chosen_by,
    )


def _clips(rows: pd.DataFrame) -> pd.DataFrame:
    """Return clip, domain and label of each clip, sorted by clip."""
    return rows.drop_duplicates("clip").sort_values("clip")[["clip", "domain", "label"]]


def _seeds(rows: pd.DataFrame, machine: str, name: str, seeds: list[int]) -> np.ndarray:
    """Return one component as (seeds, clips), clips in the order of `_clips`."""
    wide = rows.pivot(index="clip", columns="seed", values=name).sort_index()
    if wide.isna().any(axis=None):
        raise errors.InputError(
            f"{name} of {machine}: the seeds did not score the same clips, expected each clip once per seed;"
            " finish the study"
        )
    return wide.reindex(columns=seeds).to_numpy(float).T


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """Stack arrays, padded with 0 at the end of their last axis to equal length."""
    longest = max(row.shape[-1] for row in rows)
    return np.stack([np.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, longest - row.shape[-1])]) for row in rows])


STEPS = {"gamma": 10}  # steps of ω for modes whose scale is slow to fit
FINE, ETA_STEPS, EVERY = 50, 10, 5
BAND_RESAMPLES, MISMATCH_RESAMPLES = 200, 1000
RULES = {
    "default": "fixed default",
    "training": "training clips only, least domain mismatch",
    "oracle": "test labels: oracle, not a claim",
}


class Sweep(NamedTuple):
    """Metrics of every point. P priors, K values of k, W omegas, M machines."""

    omegas: np.ndarray  # (W,), 0 to 1
    etas: np.ndarray  # (E,), 0 to 1, with the study's own; empty without a classifier
    areas: np.ndarray  # (1 + E, P, K, W, M, 3): AUC source, AUC target, pAUC
    mismatch: np.ndarray  # (1 + E, P, K, V) at omegas[::EVERY]; NaN without target training clips
    bands: np.ndarray  # (systems, P, K, V, 4, M + 1, 4), `band` at omegas[::EVERY]; ensemble at the study's η


class Rule(NamedTuple):
    """The choice of a rule and its reason; choice is None if the rule cannot be applied."""

    name: str
    choice: Choice | None
    why: str


def make(parts: Parts, seed: int) -> Sweep:
    """Evaluate all points; takes about 2 s for 7 machines × 200 clips × 3 k × 5 priors.

    seed : of the bootstrap, as for metrics.csv
    """
    omegas = np.round(np.linspace(0, 1, STEPS.get(parts.mode, FINE) + 1), 10)  # 0.3, not 0.30000000000000004
    etas = np.zeros(0)
    if parts.classifier:
        etas = np.unique(np.append(np.round(np.linspace(0, 1, ETA_STEPS + 1), 10), parts.default.eta))
    shape = (1 + len(etas), len(parts.alphas), len(parts.betas), len(omegas))
    areas, mismatch = np.empty((*shape, len(parts.machines), 3)), np.empty((*shape[:3], len(omegas[::EVERY])))
    weights, one_seed = resamples(parts, seed), next(iter(parts.betas.values())).test.shape[1] == 1
    band_shape = (len(parts.systems), *shape[1:3], len(omegas[::EVERY]), 4, len(parts.machines) + 1, 4)
    bands, usual = np.empty(band_shape), [default_replicates(parts, s, weights) for s in parts.systems]
    for p, prior in enumerate(parts.alphas):
        for j, k in enumerate(parts.betas):
            oevae = parts.oevae(prior, k, omegas[:, None, None, None])
            scaled = parts.scaled(oevae) if parts.classifier else oevae
            if one_seed:  # not rescaled again: keep only the training scores needed for the mismatch
                oevae, scaled = (Split(both.test, both.train[::EVERY]) for both in (oevae, scaled))
            for slot, eta in enumerate([None, *etas]):
                final = parts.over_seeds(oevae if eta is None else parts.ensemble(scaled, eta))
                areas[slot, p, j] = parts.areas(final.test)
                mismatch[slot, p, j] = domain_mismatch(
                    parts, final.train if one_seed else final.train[::EVERY]
                )
                if eta is None or eta == parts.default.eta:
                    system = int(eta is not None)
                    bands[system, p, j] = band(parts, final.test[::EVERY], weights, usual[system])
    return Sweep(omegas, etas, areas, mismatch, bands)


def resamples(parts: Parts, seed: int) -> list[np.ndarray]:
    """Return bootstrap weights of each machine's test clips, int16 (BAND_RESAMPLES, clips)."""
    streams = [[seed, zlib.crc32(machine.encode())] for machine in parts.machines]
    return [
        roc.bootstrap_weights(d, kind, BAND_RESAMPLES, s)
        for d, kind, s in zip(parts.domain, parts.label, streams, strict=True)
    ]


def band(parts: Parts, test: np.ndarray, weights: list[np.ndarray], usual: np.ndarray) -> np.ndarray:
    """Return intervals of all metrics and of their gain over the default on the same resamples.

    test : final scores (V, machines, n).  usual : from `default_replicates`
    returns : float64 (V, 4, machines + 1, 4); the 4 are low and high of the metrics, low and high of the gain
    """
    boots = (replicates(parts, scores, weights) for scores in test)
    return np.stack([np.concatenate([interval(parts, x), interval(parts, x - usual)]) for x in boots])


def default_replicates(parts: Parts, system: str, weights: list[np.ndarray]) -> np.ndarray:
    """Return `replicates` of a system at the default, float64 (resamples, machines + 1, 4).

    weights : per machine, bootstrap weights (resamples, clips)
    """
    return replicates(parts, parts.final(system, parts.default).test, weights)


def replicates(parts: Parts, test: np.ndarray, weights: list[np.ndarray]) -> np.ndarray:
    """Return all metrics of scores (machines, n) in every resample, float64 (resamples, machines + 1, 4)."""
    boots = [
        roc.bootstrap(s[: len(d)], d, kind, w, parts.settings.max_fpr)
        if len(d)
        else np.full((len(w), 3), np.nan)
        for s, d, kind, w in zip(test, parts.domain, parts.label, weights, strict=True)
    ]
    return parts.table(np.stack(boots, axis=1))


def interval(parts: Parts, boots: np.ndarray) -> np.ndarray:
    """Return the confidence interval of resampled values (resamples, ...), float64 (2, ...)."""
    tail = (1 - parts.settings.confidence) / 2
    return np.quantile(boots, [tail, 1 - tail], axis=0)


def counts(parts: Parts, system: str, choice: Choice) -> np.ndarray:
    """Count decisions at a point, with each machine's gamma threshold; takes about 20 ms per machine.

    returns : int (machines, 4): hits, misses, false alarms, correct rejections
    """
    final, out = parts.final(system, choice), []
    for i, label in enumerate(parts.label):
        train, limit = final.train[i, : len(parts.target[i])], np.nan
        if len(train):
            limit = thresholds.gamma_threshold(train, parts.settings.decision_quantile).value
        above, known = final.test[i, : len(label)] > limit, [label == "anomaly", label == "normal"]
        out.append([int((kind & flag).sum()) for kind in known for flag in (above, ~above)])
    return np.array(out)


def domain_mismatch(parts: Parts, train: np.ndarray) -> np.ndarray:
    """Return the mean over machines of |2·AUC − 1|, target against source training clips.

    train : (..., machines, m).  returns : (...)
    """
    found = []
    for i, target in enumerate(parts.target):
        if target.any() and not target.all():
            own = train[..., i, : len(target)]
            low, wins = own[..., ~target], 0  # pairs with the target clip above count 2, ties 1
            for column in np.flatnonzero(target):  # few; one column at a time fits the CPU cache
                high = own[..., column, None]
                wins = wins + np.count_nonzero(high > low, axis=-1) + np.count_nonzero(high >= low, axis=-1)
            found.append(np.abs(wins / (target.sum() * low.shape[-1]) - 1))
    return np.mean(found, axis=0) if found else np.full(train.shape[:-2], np.nan)


def open_sweep(folder: Path, parts: Parts, seed: int) -> Sweep:
    """Return `make(parts, seed)`, cached in the folder by scores, labels, settings and code."""
    arrays = [
        array
        for part in (*parts.alphas.values(), *parts.betas.values(), *filter(None, [parts.classifier]))
        for array in part
    ]
    inputs = (
        parts.machines,
        parts.mode,
        parts.settings,
        parts.default,
        list(parts.alphas),
        list(parts.betas),
        seed,
        io.code_digest(),
    )
    content = hashlib.sha256(repr(inputs).encode())
    for array in (*arrays, parts.kinds, *parts.target):
        content.update(np.ascontiguousarray(array).tobytes())
    path = folder / f"sweep-{content.hexdigest()[:16]}.safetensors"
    if path.is_file():
        with io.refused(path, "a sweep of the tuner"):
            return Sweep(**io.tensors(path, {}))
    sweep = make(parts, seed)
    with io.wrap_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with io.atomic_write(path) as part:
            save_file({name: np.ascontiguousarray(array) for name, array in sweep._asdict().items()}, part)
    return sweep


# ---------------------------------------------------------------- rules


def rules(parts: Parts, sweep: Sweep, seed: int) -> dict[str, Rule]:
    """Return the choice of each of RULES, for the ensemble if available, else for OEVAE.

    seed : of the bootstrap
    """
    first = 1 if parts.classifier else 0
    return {
        "default": Rule("default", parts.default, "the values in the settings"),
        "training": _training(parts, sweep, first, seed),
        "oracle": _oracle(parts, sweep, first),
    }


def rule_validity(parts: Parts, sweep: Sweep) -> float:
    """Return the rank correlation of −mismatch with Ω over all points, −1 to 1.

    Uses test labels, afterwards; nothing is chosen by it. NaN without labels or target clips.
    """
    first = 1 if parts.classifier else 0
    x, y = -sweep.mismatch[first:].ravel(), quality(parts, sweep)[first:, ..., ::EVERY].ravel()
    constant = np.isnan(x).any() or np.isnan(y).any() or np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if constant else float(stats.spearmanr(x, y).statistic)


def quality(parts: Parts, sweep: Sweep) -> np.ndarray:
    """Return Ω of every point, (slots, P, K, W); the criterion of the oracle."""
    return parts.table(sweep.areas)[..., -1, 3]


def _point(parts: Parts, sweep: Sweep, slot: int, p: int, j: int, w: int) -> Choice:
    eta = float(sweep.etas[slot - 1]) if slot else parts.default.eta
    return Choice(float(sweep.omegas[w]), eta, list(parts.betas)[j], list(parts.alphas)[p])


def _oracle(parts: Parts, sweep: Sweep, first: int) -> Rule:
    omega = quality(parts, sweep)[first:]
    if np.isnan(omega).all():
        return Rule("oracle", None, "no labeled test clip")
    best = np.unravel_index(np.nanargmax(omega), omega.shape)
    return Rule(
        "oracle",
        _point(parts, sweep, best[0] + first, *best[1:]),
        f"the best of {omega.size} points on the labels it is evaluated with",
    )


def _training(parts: Parts, sweep: Sweep, first: int, seed: int) -> Rule:
    mismatch = sweep.mismatch[first:]
    if np.isnan(mismatch).all():
        return Rule(
            "training", parts.default, "no machine has training clips of both domains: the default is kept"
        )
    best = np.unravel_index(np.nanargmin(mismatch), mismatch.shape)
    choice = _point(parts, sweep, best[0] + first, *best[1:3], best[3] * EVERY)
    boots = []
    for point in (parts.default, choice):
        train, found = parts.final(parts.systems[-1], point).train, []
        for i, target in enumerate(parts.target):
            if target.any() and not target.all():
                kind, domain = np.where(target, "anomaly", "normal"), np.full(len(target), "source")
                weights = roc.bootstrap_weights(
                    domain, kind, MISMATCH_RESAMPLES, [seed, zlib.crc32(parts.machines[i].encode()), 2]
                )
                found.append(
                    np.abs(2 * roc.bootstrap(train[i, : len(target)], domain, kind, weights)[:, 0] - 1)
                )
        boots.append(np.mean(found, axis=0))
    low, high = interval(parts, boots[0] - boots[1])
    before = float(domain_mismatch(parts, parts.final(parts.systems[-1], parts.default).train))
    reason = (
        f"domain mismatch {before:.3f} at the default, {mismatch[best]:.3f} at its minimum (difference"
        f" [{low:.3f}, {high:.3f}])"
    )
    if low > 0:
        return Rule("training", choice, reason)
    return Rule("training", parts.default, f"{reason}: not significant, so the default is kept")


def named(name: str) -> str:
    """Return the description of a rule."""
    return RULES[errors.check_choice("rule", name, list(RULES))]
