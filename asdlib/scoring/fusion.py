"""Fusion: one scale from normal training scores, then the weights omega and eta.

Task
----
Scores of different kinds (a log-likelihood, a distance, a cosine) become comparable, then they are added with
weights:

    OEVAE  = omega * alpha + (1 - omega) * beta          omega of Eq. 6, default 0.5
    system = eta * OEVAE + (1 - eta) * classifier        default 0.5, one value for all machines

Conventions
-----------
A scale is fitted to the normal *training* scores of the same machine (and section, `schemas.by_references`)
and training seed, leave-clip-out scores, and to nothing else. It is a fixed increasing function afterwards,
so a test clip's score never depends on another test clip, and the AUC of a single part is the same before and
after. Higher is more anomalous.

`MODES` at the foot lists the scales. Each has `fit(train)` and is then called with scores of any shape.
`COMPOSED` lists the systems that are made of others: they are in a study wherever all their parts are, and
need no setting. OEVAE is brought to the scale of its own training scores again before it meets the classifier
(METHOD 4.12), for a sum of two standardized parts is not standardized. The system FUSED is made of the views
that the setting `fusion.views` names, see `fuse_views`.

Ensembles over training seeds are systems too: `oevae_seeds` is the mean over the seeds of the scaled scores
of `oevae`, seed ALL_SEEDS.

Source: METHOD 3.7, 4.11, 4.12. Notebooks: 05_oevae, 08_tuning, 09_report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import field_validator
from scipy.stats import mannwhitneyu

from asdlib import errors, schemas
from asdlib.scoring.thresholds import Gamma, ZScore
from asdlib.settings import Many, Settings, setting


class FusionSettings(Settings):
    """How scores become comparable and are combined (METHOD 3.7)."""

    normalize: Literal["zscore", "none", "rank", "gamma"] = setting(
        "zscore", "scale from normal training scores (METHOD 3.7)"
    )
    omega: float = setting(0.5, "weight of alpha in OEVAE (report Eq. 6)", 0.0, 1.0)
    eta: float = setting(0.5, "weight of OEVAE in the ensemble (METHOD 3.7)", 0.0, 1.0)
    views: Many[str] = setting(
        (),
        "systems, or <system>/<component>, that the system `fusion` is made of, for example multires and"
        " oevae/beta; none: there is no such system (METHOD 3.7)",
    )
    how: Literal["mean", "min", "max"] = setting(
        "mean", "how the z-scores of the views become one (METHOD 3.7)"
    )

    @field_validator("views")
    @classmethod
    def _several(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if len(views) == 1 or len(set(map(view_part, views))) < len(views):
            raise errors.InputError(
                f"setting fusion.views: got {list(views)}, expected none or at least two, none twice"
            )
        return views


ALL_SEEDS = -1  # the value of `seed` in rows that are means over the training seeds
SEEDS = "_seeds"  # ending of the systems that are such means
KEYS = ["machine", "section", "split", "domain", "label", "clip", "seed"]


@dataclass(frozen=True)
class Identity:
    """Scores as they are (Eq. 6 as printed)."""

    @classmethod
    def fit(cls, train: np.ndarray) -> Identity:
        """The scale of training scores (n,)."""
        return cls()

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The scores (n,) themselves, as float64."""
        return np.asarray(scores, float)


@dataclass(frozen=True)
class Rank:
    """Share of training scores below, equal ones counted half (mid-rank), in [0, 1].

    All scores above the largest training score become 1: this scale does not tell far from very far.
    """

    reference: np.ndarray

    @classmethod
    def fit(cls, train: np.ndarray) -> Rank:
        """The scale of training scores (n,)."""
        return cls(np.sort(train))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Mid-ranks (n,) of scores (n,) among the training scores."""
        below = np.searchsorted(self.reference, scores, side="left")
        up_to = np.searchsorted(self.reference, scores, side="right")
        return (below + up_to) / (2 * len(self.reference))


def fit_scale(train_scores: np.ndarray, mode: str) -> Identity | ZScore | Rank | Gamma:
    """The scale of one component on one machine.

    train_scores : (n,) leave-clip-out scores of normal training clips
    mode : a name in MODES
    returns : an increasing function of scores of any shape
    raises : errors.InputError for an unknown mode, no training score, or one that is not finite
    """
    errors.check_choice("normalize mode", mode, list(MODES))
    train = np.asarray(train_scores, float).ravel()
    if len(train) == 0:
        raise errors.InputError(
            "no training score came, expected those of the machine's normal training clips; score the train"
            " split too"
        )
    if not np.isfinite(train).all():
        raise errors.InputError(
            "training scores with NaN or infinite values came, expected finite ones; did training diverge?"
        )
    return MODES[mode].fit(train)


def combine(parts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Weighted sum of parts on one scale.

    parts : name -> scores, shapes that broadcast
    weights : name -> weight, one for each part; an array (51, 1) of omegas gives a whole grid (51, n) at once
    raises : errors.InputError for parts without weights, and the other way round
    """
    if set(parts) != set(weights) or not parts:
        raise errors.InputError(
            f"fusion of {list(parts)} with weights for {list(weights)}, expected one weight for each part"
        )
    return sum(np.asarray(weights[name]) * np.asarray(scores, float) for name, scores in parts.items())


def aligned(scores: pd.DataFrame, parts: Iterable[tuple[str, str]], mode: str) -> pd.DataFrame:
    """Components side by side on one scale, fitted per machine, section and seed to the rows of split
    `train`.

    scores : score table
    parts : (system, component) pairs
    returns : a row per clip and seed: machine, section, split, domain, label, clip, seed, then one column
        system/component for each part
    raises : errors.InputError where a part is missing, or two parts did not score the same clips
    """
    columns = {}
    for system, component in parts:
        rows = scores[(scores["system"] == system) & (scores["component"] == component)]
        if rows.empty:
            known = ", ".join(sorted(set(scores["system"] + "/" + scores["component"]))) or "none"
            raise errors.InputError(
                f"fusion needs {system}/{component}, the score table has {known}; run that system first"
            )
        columns[f"{system}/{component}"] = rows.set_index(KEYS)["score"].sort_index()
    first, *others = columns
    for name in others:
        if not columns[name].index.equals(columns[first].index):
            odd = columns[name].index.symmetric_difference(columns[first].index)
            example = odd[0][KEYS.index("clip")] if len(odd) else columns[first].index[0][KEYS.index("clip")]
            raise errors.InputError(
                f"{first} and {name} did not score the same clips (first: {example}), expected equal clips"
                " and seeds"
            )
    table = columns[first].index.to_frame(index=False)
    train, judged = (table["split"] == "train").to_numpy(), schemas.by_references(table)
    for name, column in columns.items():
        values = column.to_numpy(float).copy()
        for rows in judged.groupby(["machine", "seed"]).indices.values():
            values[rows] = fit_scale(values[rows][train[rows]], mode)(values[rows])
        table[name] = values
    return table


def fuse(
    scores: pd.DataFrame, system: str, weights: Mapping[tuple[str, str], float], mode: str
) -> pd.DataFrame:
    """Component `_score` of a system made of weighted parts; test and train rows, per seed.

    weights : {("oevae", "alpha"): omega, ("oevae", "beta"): 1 - omega}, or {("oevae", "score"): eta,
        ("classifier", "score"): 1 - eta}
    mode : a name in MODES
    returns : score table of the new system only; add it with pandas.concat.  Notebooks: 05_oevae, 08_tuning
    """
    table = aligned(scores, weights, mode)
    named = {"/".join(part): weight for part, weight in weights.items()}
    fused = combine({name: table[name].to_numpy() for name in named}, named)
    return table[KEYS].assign(system=system, component="score", score=fused)[list(schemas.SCORE_COLUMNS)]


def systems(scores: pd.DataFrame, settings: FusionSettings) -> pd.DataFrame:
    """The score table with the final `_score` of every system of COMPOSED, and of FUSED, whose parts are in
    it; earlier final scores of it are replaced.

    scores : score table with alpha and beta of `oevae`, and where there is one with `_score` of `classifier`
    returns : a new table. Nothing is trained: a changed ω or η costs no more than this call.  Notebooks:
        05_oevae, 08_tuning, 09_report
    """
    for system, (one, other, weight) in COMPOSED.items():
        found = (
            set(scores["component"][scores["system"] == one[0]]),
            set(scores["component"][scores["system"] == other[0]]),
        )
        if one[1] in found[0] and other[1] in found[1]:
            share = getattr(settings, weight)
            final = fuse(scores, system, {one: share, other: 1.0 - share}, settings.normalize)
            old = (scores["system"] == system) & (scores["component"] == "score")
            scores = pd.concat([scores[~old], final], ignore_index=True)
    if settings.views and {system for system, _ in map(view_part, settings.views)} <= set(scores["system"]):
        final = fuse_views(scores, settings.views, settings.how, FUSED)
        scores = pd.concat([scores[scores["system"] != FUSED], final], ignore_index=True)
    return scores


def average_seeds(scores: pd.DataFrame, source: str, system: str, mode: str) -> pd.DataFrame:
    """Ensemble over training seeds: the mean of the scores of system `source`, each seed on its own scale.

    returns : score table of `system` with seed ALL_SEEDS
    raises : errors.InputError where the seeds did not score the same clips
    """
    table = aligned(scores, [(source, "score")], mode)
    keys = [key for key in KEYS if key != "seed"]
    groups = table.groupby(keys, sort=True)[f"{source}/score"]
    if groups.size().nunique() > 1:
        raise errors.InputError(
            f"{source}: the seeds did not score the same clips, expected every clip once per seed; finish the"
            " study first"
        )
    mean = groups.mean().rename("score").reset_index()
    return mean.assign(system=system, component="score", seed=ALL_SEEDS)[list(schemas.SCORE_COLUMNS)]


def seed_ensembles(scores: pd.DataFrame, mode: str) -> pd.DataFrame:
    """The score table with <system>_seeds for every system that several seeds trained to different scores.

    returns : a new table; unchanged for one seed, and without a row for what no seed changes (nearest
        neighbors of features).  Notebook: 09_report
    """
    found = [scores]
    for system, part in scores[scores["component"] == "score"].groupby("system", sort=False):
        spread = part.groupby("clip")["score"].agg(np.ptp)
        if part["seed"].nunique() > 1 and (spread > 0).any():
            found.append(average_seeds(scores, system, system + SEEDS, mode))
    return pd.concat(found, ignore_index=True)


def view_part(view: str) -> tuple[str, str]:
    """(system, component) of a view, "oevae/beta"; of a system its final score."""
    system, _, component = view.partition("/")
    return system, component or "score"


def parts(system: str, views: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """(system, component) of what a system's final score is made of; none for a detector's own.  views : of
    the settings
    """
    return tuple(map(view_part, views)) if system == FUSED else COMPOSED.get(system, ())[:2]


def with_composed(systems: Iterable[str], views: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of systems, followed by those of COMPOSED, and FUSED, that can be made of them.  views : of the
    settings
    """
    names = list(dict.fromkeys(systems))
    for system, (one, other, _) in COMPOSED.items():
        if {one[0], other[0]} <= set(names) and system not in names:
            names.append(system)
    if views and {system for system, _ in parts(FUSED, views)} <= set(names):
        names.append(FUSED)
    return tuple(names)


# system: part with the weight, the other part, name of the weight; a part that is composed itself comes first
COMPOSED = {
    "oevae": (("oevae", "alpha"), ("oevae", "beta"), "omega"),
    "ensemble": (("oevae", "score"), ("classifier", "score"), "eta"),
}
FUSED = "fusion"  # the system that is made of views
MODES = {"zscore": ZScore, "none": Identity, "rank": Rank, "gamma": Gamma}
SYSTEMS = (
    "baseline_knn",
    "multires",
    "pretrained",
    "baseline_mse",
    "baseline_mahala",
    "oevae",
    "classifier",
    "ensemble",
    FUSED,
)  # in the order they are shown
ORDER = [name + ending for name in SYSTEMS for ending in ("", SEEDS)]


def in_order(names: Iterable[str]) -> list[str]:
    """Names without repetition: systems in their usual order, others after them as they came."""
    return sorted(dict.fromkeys(names), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


WAYS = ("mean", "min", "max", "weighted")
STAND_IN = "stand-in"  # split of the clips that stand in for anomalies, see `view_weights`


def fuse_views(scores: pd.DataFrame, views: Iterable[str], how: str = "mean", name: str = "") -> pd.DataFrame:
    """One system of several views: mean, minimum, maximum or weighted mean of their z-scores.

    The scale of each is that of its own leave-clip-out training scores, by machine, section and seed; no
    label and no other test clip is read.

    Parameters
    ----------
    scores : score table with all of the views, of the same clips
    views : systems, or <system>/<component>
    how : one of WAYS. The minimum calls a clip anomalous where all views do, the maximum where one does;
        `weighted` takes `view_weights`
    name : of the system that is made; "": `how` and the views

    Returns
    -------
    Score table of the new system, component `score`, of the same clips. Source: METHOD 3.7
    raises : errors.InputError for an unknown way, a view that is missing or scored other clips, and
        `weighted` without stand-ins
    """
    views = list(views)
    errors.check_choice("fusion of views", how, WAYS)
    table = aligned(scores, map(view_part, views), "zscore")
    values = table[["/".join(view_part(view)) for view in views]].to_numpy()
    if how == "weighted":
        of = pd.MultiIndex.from_frame(schemas.by_references(table)[["machine", "seed"]])
        made = (values * view_weights(scores, views).reindex(of).to_numpy()).sum(1)
    else:
        made = {"mean": np.mean, "min": np.min, "max": np.max}[how](values, axis=1)
    name = name or f"{how} of {', '.join(views)}"
    return table[KEYS].assign(system=name, component="score", score=made)[list(schemas.SCORE_COLUMNS)]


def view_weights(scores: pd.DataFrame, systems: Iterable[str]) -> pd.DataFrame:
    """Weights of views learned without labels: how well each tells stand-ins for anomalies from normal clips.

    A view's weight is 2·AUC − 1 (0 where the AUC is below one half) of stand-ins against the training clips'
    leave-clip-out scores; a view that knows nothing of the machine has about 0. Weights of a machine sum to
    1, and are equal where no view is above one half.

    Parameters
    ----------
    scores : score table with the component `score` of every system, of training clips and of stand-ins (split
        "stand-in", `detectors.base.stand_ins`); other rows are not read
    systems : the views

    Returns
    -------
    A row per machine (or <machine>_<section>) and seed, a column per system. Source: METHOD 3.7
    raises : errors.InputError where a system has no training clip or no stand-in of a machine
    """
    systems, found = list(systems), {}
    table = schemas.by_references(scores[scores["component"] == "score"])
    values = dict(iter(table.groupby(["machine", "seed", "split", "system"])["score"]))
    for machine, seed in table[["machine", "seed"]].drop_duplicates().to_numpy():
        gain = []
        for system in systems:
            normal, odd = (values.get((machine, seed, split, system)) for split in ("train", STAND_IN))
            if normal is None or odd is None:
                missing = "training clip" if normal is None else "stand-in"
                raise errors.InputError(
                    f"weights of views: {system} scored no {missing} of {machine}, seed {seed}; add those of"
                    " detectors.base.stand_ins to the score table of every view"
                )
            auc = mannwhitneyu(odd, normal).statistic / (len(odd) * len(normal))
            gain.append(max(2 * auc - 1, 0.0))
        found[machine, seed] = np.array(gain) / sum(gain) if any(gain) else np.full(len(gain), 1 / len(gain))
    index = pd.MultiIndex.from_tuples(found, names=["machine", "seed"])
    return pd.DataFrame([*found.values()], index, systems)


def leave_one_view_out(
    scores: pd.DataFrame, systems: Iterable[str], how: str = "mean", name: str = ""
) -> pd.DataFrame:
    """`fuse_views` of all views, and of all but each: what a fused result owes to every one of its views.

    returns : score table of `name` and of "<name> without <view>" for each view
    raises : errors.InputError for fewer than two views, and as `fuse_views`
    """
    systems = list(systems)
    if len(systems) < 2:
        raise errors.InputError(f"leave one view out of {systems}: expected two views or more")
    name = name or f"{how} of {', '.join(systems)}"
    parts = [fuse_views(scores, systems, how, name)]
    for left_out in systems:
        rest = [system for system in systems if system != left_out]
        parts.append(fuse_views(scores, rest, how, f"{name} without {left_out}"))
    return pd.concat(parts, ignore_index=True)
