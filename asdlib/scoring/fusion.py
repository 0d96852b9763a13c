"""Score fusion: normalization by normal training scores, then a weighted sum.

    OEVAE  = omega * alpha + (1 - omega) * beta          omega of Eq. 6, default 0.5
    system = eta * OEVAE + (1 - eta) * classifier        default 0.5, one value for all machines

Conventions
-----------
A scale is fitted to the leave-clip-out scores of the normal *training* clips of the same machine (and
section, `schemas.by_references`) and training seed, and to nothing else. It is a fixed increasing function,
so a test clip's score never depends on another test clip and normalization leaves the AUC of a single part
unchanged. Higher is more anomalous.

`MODES` lists the scales: `fit(train)` returns a callable for scores of any shape. `COMPOSED` lists the fused
systems, which exist in a study whenever all their parts do. OEVAE is normalized again before it is combined
with the classifier (METHOD 4.12), because a sum of standardized parts is not standardized. FUSED combines the
views named in the setting `fusion.views` (`fuse_views`). Seed ensembles are systems too: `oevae_seeds` is the
mean scaled score of `oevae` over the seeds, with seed ALL_SEEDS.

Source: METHOD 3.7, 4.11, 4.12. Notebooks: 05_oevae, 08_tuning, 09_report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator
from scipy.stats import mannwhitneyu

from asdlib import errors, schemas
from asdlib.scoring.thresholds import Gamma, ZScore
from asdlib.settings import Many, Settings, setting


class FusionSettings(Settings):
    """Normalization and combination of scores (METHOD 3.7)."""

    normalize: Literal["zscore", "none", "rank", "gamma"] = setting(
        "zscore", "scale from normal training scores (METHOD 3.7)"
    )
    omega: float = setting(0.5, "weight of alpha in OEVAE (report Eq. 6)", 0.0, 1.0)
    eta: float = setting(0.5, "weight of OEVAE in the ensemble (METHOD 3.7)", 0.0, 1.0)
    views: Many[str] = setting(
        (),
        "systems, or <system>/<component>, combined by the system `fusion`, for example multires and"
        " oevae/beta; one: that view on the scale of its training scores; empty: no such system (METHOD 3.7)",
    )
    how: Literal["mean", "min", "max"] = setting("mean", "reduction of the views' z-scores (METHOD 3.7)")
    weights: Many[Annotated[float, Field(gt=0)]] = setting(
        (), "weight of each view in the mean, in the order of fusion.views; empty: equal weights (METHOD 3.7)"
    )

    @model_validator(mode="after")
    def _weights_of_views(self) -> FusionSettings:
        _check_weights(self.weights, self.views, self.how)
        return self

    @field_validator("views")
    @classmethod
    def _different(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(map(view_part, views))) < len(views):
            raise errors.InputError(f"setting fusion.views: got {list(views)}, expected each view once")
        return views


ALL_SEEDS = -1  # value of `seed` for means over the training seeds
SEEDS = "_seeds"  # name suffix of such systems
KEYS = ["machine", "section", "split", "domain", "label", "clip", "seed"]


@dataclass(frozen=True)
class Identity:
    """Unscaled scores (Eq. 6 as printed)."""

    @classmethod
    def fit(cls, train: np.ndarray) -> Identity:
        """Ignore the training scores."""
        return cls()

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Unchanged scores (n,) as float64."""
        return np.asarray(scores, float)


@dataclass(frozen=True)
class Rank:
    """Mid-rank among the training scores, in [0, 1].

    All scores above the largest training score become 1.
    """

    reference: np.ndarray

    @classmethod
    def fit(cls, train: np.ndarray) -> Rank:
        """Store training scores (n,)."""
        return cls(np.sort(train))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Mid-ranks (n,) of scores (n,)."""
        below = np.searchsorted(self.reference, scores, side="left")
        up_to = np.searchsorted(self.reference, scores, side="right")
        return (below + up_to) / (2 * len(self.reference))


def fit_scale(train_scores: np.ndarray, mode: str) -> Identity | ZScore | Rank | Gamma:
    """Fit the scale of one component on one machine.

    train_scores : (n,) leave-clip-out scores of normal training clips
    mode : a name in MODES
    returns : an increasing function of scores of any shape
    raises : errors.InputError for an unknown mode, or missing or non-finite training scores
    """
    errors.check_choice("normalize mode", mode, list(MODES))
    train = np.asarray(train_scores, float).ravel()
    if len(train) == 0:
        raise errors.InputError(
            "no training scores given, expected those of the machine's normal training clips; score the"
            " train split too"
        )
    if not np.isfinite(train).all():
        raise errors.InputError(
            "training scores contain NaN or infinite values, expected finite values; did training diverge?"
        )
    return MODES[mode].fit(train)


def combine(parts: Mapping[str, np.ndarray], weights: Mapping[str, float]) -> np.ndarray:
    """Weighted sum of normalized parts.

    parts : name -> scores, of broadcastable shapes
    weights : name -> weight, with the same keys; omegas of shape (51, 1) give a grid (51, n)
    raises : errors.InputError if the keys differ
    """
    if set(parts) != set(weights) or not parts:
        raise errors.InputError(
            f"fusion of {list(parts)}: got weights for {list(weights)}, expected one weight per part"
        )
    return sum(np.asarray(weights[name]) * np.asarray(scores, float) for name, scores in parts.items())


def aligned(scores: pd.DataFrame, parts: Iterable[tuple[str, str]], mode: str) -> pd.DataFrame:
    """Components side by side, normalized per machine, section and seed by the rows of split `train`.

    scores : score table
    parts : (system, component) pairs
    returns : a row per clip and seed: machine, section, split, domain, label, clip, seed, then one column
        system/component per part
    raises : errors.InputError for a missing part, or parts that scored different clips
    """
    columns = {}
    for system, component in parts:
        rows = scores[(scores["system"] == system) & (scores["component"] == component)]
        if rows.empty:
            known = ", ".join(sorted(set(scores["system"] + "/" + scores["component"]))) or "none"
            raise errors.InputError(
                f"fusion needs {system}/{component}, but the score table has only {known}; run that system"
                " first"
            )
        columns[f"{system}/{component}"] = rows.set_index(KEYS)["score"].sort_index()
    first, *others = columns
    for name in others:
        if not columns[name].index.equals(columns[first].index):
            diff = columns[name].index.symmetric_difference(columns[first].index)
            example = (
                diff[0][KEYS.index("clip")] if len(diff) else columns[first].index[0][KEYS.index("clip")]
            )
            raise errors.InputError(
                f"{first} and {name} scored different clips (first: {example}), expected the same clips and"
                " seeds"
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
    """Final score of a weighted system, per seed, for test and train rows.

    weights : {("oevae", "alpha"): omega, ("oevae", "beta"): 1 - omega}, or {("oevae", "score"): eta,
        ("classifier", "score"): 1 - eta}
    mode : a name in MODES
    returns : score table of the new system only.  Notebooks: 05_oevae, 08_tuning
    """
    table = aligned(scores, weights, mode)
    named = {"/".join(part): weight for part, weight in weights.items()}
    fused = combine({name: table[name].to_numpy() for name in named}, named)
    return table[KEYS].assign(system=system, component="score", score=fused)[list(schemas.SCORE_COLUMNS)]


def systems(scores: pd.DataFrame, settings: FusionSettings) -> pd.DataFrame:
    """Score table with the final score of every system of COMPOSED, and of FUSED, whose parts are present.

    Existing final scores of these systems are replaced. Nothing is trained.
    scores : score table with alpha and beta of `oevae`, and optionally the score of `classifier`
    returns : a new table.  Notebooks: 05_oevae, 08_tuning, 09_report
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
        final = fuse_views(scores, settings.views, settings.how, FUSED, settings.weights)
        scores = pd.concat([scores[scores["system"] != FUSED], final], ignore_index=True)
    return scores


def average_seeds(scores: pd.DataFrame, source: str, system: str, mode: str) -> pd.DataFrame:
    """Seed ensemble: mean score of system `source`, each seed normalized separately.

    returns : score table of `system` with seed ALL_SEEDS
    raises : errors.InputError if the seeds scored different clips
    """
    table = aligned(scores, [(source, "score")], mode)
    keys = [key for key in KEYS if key != "seed"]
    groups = table.groupby(keys, sort=True)[f"{source}/score"]
    if groups.size().nunique() > 1:
        raise errors.InputError(
            f"{source}: the seeds scored different clips, expected every clip once per seed; finish the"
            " study first"
        )
    mean = groups.mean().rename("score").reset_index()
    return mean.assign(system=system, component="score", seed=ALL_SEEDS)[list(schemas.SCORE_COLUMNS)]


def seed_ensembles(scores: pd.DataFrame, mode: str) -> pd.DataFrame:
    """Score table with <system>_seeds added for every system whose scores differ between seeds.

    returns : a new table; deterministic systems (nearest neighbors of features) get no row.  Notebook:
        09_report
    """
    found = [scores]
    for system, part in scores[scores["component"] == "score"].groupby("system", sort=False):
        spread = part.groupby("clip")["score"].agg(np.ptp)
        if part["seed"].nunique() > 1 and (spread > 0).any():
            found.append(average_seeds(scores, system, system + SEEDS, mode))
    return pd.concat(found, ignore_index=True)


def view_part(view: str) -> tuple[str, str]:
    """(system, component) of a view such as "oevae/beta"; component defaults to `score`."""
    system, _, component = view.partition("/")
    return system, component or "score"


def parts(system: str, views: Sequence[str] = ()) -> tuple[tuple[str, str], ...]:
    """(system, component) pairs that a composed system combines, else ().  views : setting `fusion.views`"""
    return tuple(map(view_part, views)) if system == FUSED else COMPOSED.get(system, ())[:2]


def with_composed(systems: Iterable[str], views: Sequence[str] = ()) -> tuple[str, ...]:
    """System names plus the composed systems they allow.  views : setting `fusion.views`"""
    names = list(dict.fromkeys(systems))
    for system, (one, other, _) in COMPOSED.items():
        if {one[0], other[0]} <= set(names) and system not in names:
            names.append(system)
    if views and {system for system, _ in parts(FUSED, views)} <= set(names):
        names.append(FUSED)
    return tuple(names)


# system: weighted part, other part, name of the weight; systems come after the composed systems they use
COMPOSED = {
    "oevae": (("oevae", "alpha"), ("oevae", "beta"), "omega"),
    "ensemble": (("oevae", "score"), ("classifier", "score"), "eta"),
}
FUSED = "fusion"  # system built from `fusion.views`
MODES = {"zscore": ZScore, "none": Identity, "rank": Rank, "gamma": Gamma}
SYSTEMS = (  # in display order
    "baseline_knn",
    "multires",
    "pretrained",
    "baseline_mse",
    "baseline_mahala",
    "oevae",
    "classifier",
    "ensemble",
    FUSED,
)
ORDER = [name + ending for name in SYSTEMS for ending in ("", SEEDS)]


def in_order(names: Iterable[str]) -> list[str]:
    """Unique system names in display order; unknown names follow in input order."""
    return sorted(dict.fromkeys(names), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


WAYS = ("mean", "min", "max", "weighted")
STAND_IN = schemas.STAND_IN  # split of pseudo-anomalies, see `view_weights`


def fuse_views(
    scores: pd.DataFrame,
    views: Iterable[str],
    how: str = "mean",
    name: str = "",
    weights: Sequence[float] = (),
) -> pd.DataFrame:
    """Fuse views into one system by the mean, minimum, maximum or weighted mean of their z-scores.

    Each view is normalized by its leave-clip-out training scores, per machine, section and seed. Uses no
    labels and no other test clip.

    Parameters
    ----------
    scores : score table that contains all views on the same clips
    views : <system> or <system>/<component>
    how : one of WAYS. The minimum flags a clip if all views do, the maximum if any does; `weighted` uses
        `view_weights`
    name : name of the new system; default: `how` and the views
    weights : one for each view of a mean, positive; default: equal

    Returns
    -------
    Score table of the new system, component `score`

    Raises
    ------
    errors.InputError for an unknown `how`, a missing view, different clips, or `weighted` without stand-ins

    Source: METHOD 3.7
    """
    views = list(views)
    errors.check_choice("fusion of views", how, WAYS)
    _check_weights(weights, views, how)
    table = aligned(scores, map(view_part, views), "zscore")
    values = table[["/".join(view_part(view)) for view in views]].to_numpy()
    if how == "weighted":
        of = pd.MultiIndex.from_frame(schemas.by_references(table)[["machine", "seed"]])
        made = (values * view_weights(scores, views).reindex(of).to_numpy()).sum(1)
    elif how == "mean":
        made = np.average(values, axis=1, weights=weights or None)
    else:
        made = {"min": np.min, "max": np.max}[how](values, axis=1)
    name = name or f"{how} of {', '.join(views)}"
    return table[KEYS].assign(system=name, component="score", score=made)[list(schemas.SCORE_COLUMNS)]


def _check_weights(weights: Sequence[float], views: Sequence[str], how: str) -> None:
    if weights and (len(weights) != len(views) or how != "mean"):
        raise errors.InputError(
            f"fusion: got weights {list(weights)} for the {how} of {len(views)} views, expected one weight"
            " per view and the mean"
        )


def view_weights(scores: pd.DataFrame, systems: Iterable[str]) -> pd.DataFrame:
    """View weights learned without labels from how well each view separates stand-ins from normal clips.

    A view's weight is max(0, 2·AUC − 1), with the AUC of stand-ins against the leave-clip-out scores of the
    training clips. Weights of a machine are normalized to sum to 1; equal if no AUC exceeds 0.5.

    Parameters
    ----------
    scores : score table with component `score` of every system for training clips and stand-ins (split
        "stand-in", `detectors.base.stand_ins`); other rows are ignored
    systems : the views

    Returns
    -------
    A row per machine (or <machine>_<section>) and seed, a column per system

    Raises
    ------
    errors.InputError if a system has no training clip or no stand-in of a machine

    Source: METHOD 3.7
    """
    systems, found = list(systems), {}
    table = schemas.by_references(scores[scores["component"] == "score"])
    values = dict(iter(table.groupby(["machine", "seed", "split", "system"])["score"]))
    for machine, seed in table[["machine", "seed"]].drop_duplicates().to_numpy():
        gain = []
        for system in systems:
            normal, stand_in = (values.get((machine, seed, split, system)) for split in ("train", STAND_IN))
            if normal is None or stand_in is None:
                missing = "training clip" if normal is None else "stand-in"
                raise errors.InputError(
                    f"weights of views: {system} has no {missing} scores for {machine}, seed {seed}; add"
                    " detectors.base.stand_ins to the score table of every view"
                )
            auc = mannwhitneyu(stand_in, normal).statistic / (len(stand_in) * len(normal))
            gain.append(max(2 * auc - 1, 0.0))
        found[machine, seed] = np.array(gain) / sum(gain) if any(gain) else np.full(len(gain), 1 / len(gain))
    index = pd.MultiIndex.from_tuples(found, names=["machine", "seed"])
    return pd.DataFrame([*found.values()], index, systems)


def leave_one_view_out(
    scores: pd.DataFrame,
    systems: Iterable[str],
    how: str = "mean",
    name: str = "",
    weights: Sequence[float] = (),
) -> pd.DataFrame:
    """`fuse_views` of all views, and of all but each: the contribution of every view.

    returns : score table of `name` and of "<name> without <view>" for each view
    raises : errors.InputError for fewer than two views, and as `fuse_views`
    """
    systems = list(systems)
    if len(systems) < 2:
        raise errors.InputError(f"leave-one-out over {systems}: expected at least two views")
    name = name or f"{how} of {', '.join(systems)}"
    parts = [fuse_views(scores, systems, how, name, weights)]
    for i, left_out in enumerate(systems):
        rest, others = ([*values[:i], *values[i + 1 :]] for values in (systems, weights))
        parts.append(fuse_views(scores, rest, how, f"{name} without {left_out}", others))
    return pd.concat(parts, ignore_index=True)
