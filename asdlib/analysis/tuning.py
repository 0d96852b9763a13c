"""Everything that ω, η, k and k_scale combine, laid out so that one combination of all machines is a handful of array operations.

Conventions
-----------
Arrays are (machines, seeds, clips); machines with fewer clips are filled up at the end with clips of code 0, which count nowhere. Parts are
on the scale of their training scores already (`fusion.aligned`), what is made of them is brought there again exactly where
`fusion.systems` does: OEVAE before it meets the classifier, and each seed before the seeds are averaged. So a combination at the
study's own settings is the study's score, number for number.

Several training seeds are one ensemble here: there is one ω to choose, not one per training.
Sources: METHOD 3.7, 4.11, 4.12, 4.18.  Notebook: 08_tuning
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from asdlib import errors
from asdlib.detectors.oevae import KEPT_K
from asdlib.evaluation import metrics, roc
from asdlib.scoring import fusion
from asdlib.studies import config

SYSTEMS = ("oevae", "ensemble")  # that have something to tune
COLUMNS = (*roc.THREE, "hmean")  # of a table; of "all" the last is Ω


class Choice(NamedTuple):
    """One point: ω, η, k of kNN, and the name of the prior (its k_scale, and whether the VAE was refitted for it)."""

    omega: float
    eta: float
    k: int
    prior: str


class Split(NamedTuple):
    """Scores of the test clips (..., machines, seeds, n) and of the training clips (..., machines, seeds, m)."""

    test: np.ndarray
    train: np.ndarray


@dataclass(frozen=True)
class Parts:
    """The parts of a study, from its score table; made by `from_scores`."""

    machines: tuple[str, ...]
    alphas: dict[str, Split]  # by the name of the prior
    betas: dict[int, Split]  # by k
    classifier: Split | None
    domain: list[np.ndarray]  # of each machine's test clips
    label: list[np.ndarray]
    target: list[np.ndarray]  # bool, of each machine's training clips
    code: np.ndarray  # int64 (machines, n), see roc.clip_codes
    mode: str
    settings: config.Metrics
    default: Choice
    scales: dict[str, float]  # k_scale of each prior

    @property
    def systems(self) -> tuple[str, ...]:
        """Which of SYSTEMS can be shown."""
        return SYSTEMS if self.classifier else SYSTEMS[:1]

    def scaled(self, scores: Split) -> Split:
        """Each machine and seed on the scale of its training scores."""
        test, train = np.empty_like(scores.test), np.empty_like(scores.train)
        fit = fusion.MODES[self.mode].fit
        for index in np.ndindex(scores.train.shape[:-1]):
            n = len(self.target[index[-2]])
            scale = fit(scores.train[index][:n])
            test[index], train[index] = scale(scores.test[index]), scale(scores.train[index])
        return Split(test, train)

    def oevae(self, prior: str, k: int, omega: float | np.ndarray) -> Split:
        """ω·α + (1 − ω)·β; ω may be (g, 1, 1, 1)."""
        alpha, beta = self.alphas[prior], self.betas[k]
        return Split(*(fusion.combine({"a": a, "b": b}, {"a": omega, "b": 1.0 - omega}) for a, b in zip(alpha, beta, strict=True)))

    def ensemble(self, scaled_oevae: Split, eta: float) -> Split:
        """η·OEVAE + (1 − η)·classifier."""
        both = zip(scaled_oevae, self.classifier, strict=True)
        return Split(*(fusion.combine({"o": o, "c": c}, {"o": eta, "c": 1.0 - eta}) for o, c in both))

    def over_seeds(self, scores: Split) -> Split:
        """(..., machines, clips): the seeds averaged, each on its own scale; one seed stays as it is."""
        if scores.test.shape[-2] > 1:
            scores = self.scaled(scores)
        return Split(scores.test.mean(-2), scores.train.mean(-2))

    def final(self, system: str, choice: Choice) -> Split:
        """Final scores of one point: test (machines, n), train (machines, m)."""
        scores = self.oevae(choice.prior, choice.k, choice.omega)
        if system == "ensemble":
            scores = self.ensemble(self.scaled(scores), choice.eta)
        return self.over_seeds(scores)

    def areas(self, test: np.ndarray) -> np.ndarray:
        """AUC source, AUC target, pAUC of final scores (..., machines, n): float64 (..., machines, 3)."""
        flat = test.reshape(-1, *test.shape[-2:])
        out = [roc.areas(flat[:, i], self.code[i], self.settings.max_fpr) for i in range(len(self.machines))]
        return np.stack(out, axis=1).reshape(*test.shape[:-1], 3)

    def table(self, areas: np.ndarray) -> np.ndarray:
        """(..., machines, 3) -> (..., machines + 1, 4): COLUMNS of each machine, then of all."""
        both = metrics.with_means(areas)
        return both.reshape(*areas.shape[:-2], len(self.machines) + 1, 4)

    def point(self, system: str, choice: Choice) -> np.ndarray:
        """All metrics of one point, (machines + 1, 4): a tick."""
        return self.table(roc.areas(self.final(system, choice).test, self.code, self.settings.max_fpr))


def from_scores(scores: pd.DataFrame, cfg: config.Study) -> Parts:
    """The parts of a study.

    scores : score table with the components of `oevae` and, where there is one, `score` of `classifier` (`Run.gather`)
    raises : errors.Refusal without OEVAE, and where the seeds did not score the same clips
    """
    own = scores[scores["system"] == "oevae"]
    if own.empty:
        raise errors.Refusal(f"study {cfg.name} has no scores of oevae, and there is nothing to tune without α and β; add oevae to systems")
    found = set(own["component"])
    trained = f"{cfg.oevae.condition.k_scale:g} (trained)"
    alphas = {trained: ("alpha", cfg.oevae.condition.k_scale)}
    alphas |= {f"{k:g} (refitted)": (f"alpha_k{k:g}", k) for k in sorted(cfg.oevae.k_scales) if f"alpha_k{k:g}" in found}
    betas = {k: f"beta_k{k}" for k in KEPT_K if f"beta_k{k}" in found} | {cfg.oevae.neighbours: "beta"}
    names = [("oevae", name) for name, _ in alphas.values()] + [("oevae", betas[k]) for k in sorted(betas)]
    classifier = ("classifier", "score") in set(zip(scores["system"], scores["component"]))
    table = fusion.aligned(scores, names + [("classifier", "score")] * classifier, cfg.fusion.normalise)
    judged = errors.by_section(table).assign(references=errors.by_references(table)["machine"])
    whole = dict(zip(judged["machine"], judged["references"]))
    machines, seeds = sorted(whole), sorted(table["seed"].unique())
    train, test = (judged[judged["split"] == split] for split in errors.SPLITS)
    rows = {name: (train[train["references"] == whole[name]], test[test["machine"] == name]) for name in machines}
    facts = {name: [_facts(part) for part in parts] for name, parts in rows.items()}

    def both(name: str) -> Split:
        return Split(*(_filled([_seeds(rows[machine][i], machine, name, seeds) for machine in machines]) for i in (1, 0)))

    domain, label = ([facts[m][1][column].to_numpy() for m in machines] for column in ("domain", "label"))
    return Parts(
        tuple(machines),
        {prior: both(f"oevae/{name}") for prior, (name, _) in alphas.items()},
        {k: both(f"oevae/{betas[k]}") for k in sorted(betas)},
        both("classifier/score") if classifier else None,
        domain,
        label,
        [facts[m][0]["domain"].to_numpy() == "target" for m in machines],
        _filled([roc.clip_codes(d, kind) for d, kind in zip(domain, label)]),
        cfg.fusion.normalise,
        cfg.metrics,
        Choice(cfg.fusion.omega, cfg.fusion.eta, cfg.oevae.neighbours, trained),
        {prior: scale for prior, (_, scale) in alphas.items()},
    )


def _facts(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop_duplicates("clip").sort_values("clip")[["clip", "domain", "label"]]


def _seeds(rows: pd.DataFrame, machine: str, name: str, seeds: list[int]) -> np.ndarray:
    """(seeds, clips) of one part, clips in the order of `_facts`."""
    wide = rows.pivot(index="clip", columns="seed", values=name).sort_index()
    if wide.isna().any(axis=None):
        raise errors.Refusal(f"{name} of {machine}: the seeds did not score the same clips, expected each clip once per seed; finish the study")
    return wide.reindex(columns=seeds).to_numpy(float).T


def _filled(rows: list[np.ndarray]) -> np.ndarray:
    """Arrays of different lengths as one, filled up with 0 at the end of their last axis."""
    longest = max(row.shape[-1] for row in rows)
    return np.stack([np.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, longest - row.shape[-1])]) for row in rows])
