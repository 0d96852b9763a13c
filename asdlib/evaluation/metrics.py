"""Metric tables: AUC, partial AUC, omega, bootstrap intervals, decisions and controls.

Conventions
-----------
Only labeled rows of split `test` count. Values are fractions in [0, 1]. auc_source, auc_target and pauc are
defined in `asdlib.evaluation.roc`;

    hmean        harmonic mean of the three, each floored at the float epsilon
    omega        machine "all": harmonic mean over machines x 3, the official score

If a machine has several sections, each counts as a machine <machine>_<section> (`schemas.by_section`) with
its own metrics, threshold (from the training clips of `schemas.by_references`) and resamples, as in the
official evaluation of 2020 to 2022.

NaN means not available: the normals or anomalies of a metric are absent. hmean, omega and the values of "all"
are means over the available values, as in the published toolkits; `tables.reasons` lists what is missing.
Machines without labeled test clips (the evaluation set before its ground truth) have NaN rows.

Intervals are percentile bootstrap intervals, stratified by domain and label. Resamples depend only on the
machine, its clips and the bootstrap seed, not on the scores, so all systems share them, as paired comparison
requires. The intervals cover variation over test clips, not over machines or training runs.

Source: METHOD 7.3 (official evaluator), 7.5 (threshold), 7.6 (Table 1). Notebooks: 03_baseline, 08_tuning,
09_report.
"""

from __future__ import annotations

import numbers
import zlib
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from asdlib import errors, schemas
from asdlib.evaluation.roc import THREE, bootstrap, bootstrap_weights, grid, harmonic, shuffled
from asdlib.scoring import fusion, thresholds
from asdlib.scoring.thresholds import Threshold
from asdlib.settings import Settings, setting


class MetricsSettings(Settings):
    """Official metrics, intervals and decisions (METHOD 3.8)."""

    max_fpr: float = setting(0.1, "maximum false positive rate of the partial AUC (METHOD 7.3)", 0.001, 1.0)
    bootstrap: int = setting(2000, "stratified bootstrap resamples per confidence interval", 20, 1000000)
    confidence: float = setting(0.95, "confidence level of the two-sided intervals", 0.5, 0.999)
    decision_quantile: float = setting(
        0.9, "quantile of the gamma fit to training scores (METHOD 7.5)", 0.5, 0.9999
    )
    shuffles: int = setting(200, "label permutations of the control", 10, 100000)


DECISION_COLUMNS = (
    *("system", "machine", "domain", "threshold", "method", "train_clips", "train_above"),
    *("normal", "anomaly", "precision", "recall", "f1", "seed"),
)
ALARM_COLUMNS = ("system", "clips", "normals", "rate", "low", "high")
SILENCE_DB = -200.0  # finite stand-in for the level of digital silence

PAPER_SYSTEMS = ("baseline_mse", "baseline_mahala", "oevaes")
PAPER_TABLE1 = {  # percent; machine: (AUC_source, AUC_target, pAUC) of each of PAPER_SYSTEMS
    "bearing": ((65.92, 55.75, 50.42), (65.16, 55.28, 51.33), (63.80, 69.34, 60.36)),
    "fan": ((80.19, 36.18, 59.04), (87.10, 45.98, 59.33), (70.02, 33.00, 48.95)),
    "gearbox": ((60.31, 60.78, 53.22), (71.88, 70.78, 54.34), (61.12, 63.92, 50.47)),
    "slider": ((70.31, 48.77, 56.37), (84.02, 73.29, 54.72), (65.00, 61.36, 48.89)),
    "valve": ((55.35, 50.69, 51.18), (56.31, 51.40, 51.08), (50.04, 52.54, 50.94)),
    "ToyCar": ((70.10, 46.89, 52.47), (74.53, 43.42, 49.18), (47.66, 51.62, 51.21)),
    "ToyTrain": ((57.93, 57.02, 48.57), (55.98, 43.42, 48.13), (67.32, 42.24, 48.78)),
}


_Key = tuple[str, str, int]  # system, component, training seed


class _Block(NamedTuple):
    """Scored test clips of one (system, component, seed) on one machine, sorted by clip."""

    machine: str
    clip: np.ndarray
    domain: np.ndarray
    label: np.ndarray
    scores: np.ndarray


def _blocks(scores: pd.DataFrame) -> dict[_Key, list[_Block]]:
    """(system, component, seed) -> blocks per machine, from the test rows of a `schemas.by_section` table."""
    test = scores[scores["split"] == "test"]
    codes = {
        name: pd.factorize(test[name], sort=True)
        for name in ("system", "component", "seed", "machine", "clip")
    }
    order = np.lexsort([codes[name][0] for name in ("clip", "machine", "seed", "component", "system")])
    key = np.stack([codes[name][0][order] for name in ("system", "component", "seed", "machine")])
    cuts = np.flatnonzero((np.diff(key, axis=1) != 0).any(0)) + 1
    kinds = {"clip": object, "domain": "U7", "label": "U10", "score": float}
    column = {name: test[name].to_numpy(dtype=kind)[order] for name, kind in kinds.items()}
    found: dict[_Key, list[_Block]] = {}
    for rows in np.split(np.arange(len(order)), cuts) if len(order) else ():
        name = [
            codes[what][1][key[i, rows[0]]]
            for i, what in enumerate(("system", "component", "seed", "machine"))
        ]
        block = _Block(name[3], *(column[what][rows] for what in ("clip", "domain", "label", "score")))
        found.setdefault((name[0], name[1], int(name[2])), []).append(block)
    return found


class _Resamples:
    """Bootstrap weights per machine, cached for all systems that scored the same clips."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed, self.made = n, seed, {}

    def __call__(self, block: _Block) -> np.ndarray:
        key = (block.machine, block.domain.tobytes(), block.label.tobytes())
        if key not in self.made:  # crc32: different resamples for machines with equal clip counts
            self.made[key] = bootstrap_weights(
                block.domain, block.label, self.n, [self.seed, zlib.crc32(block.machine.encode())]
            )
        return self.made[key]


def _evaluate(
    blocks: list[_Block], settings: MetricsSettings, resamples: _Resamples
) -> tuple[np.ndarray, np.ndarray]:
    """Metric values (machines, 3) and resampled values (B, machines, 3)."""
    values = np.stack([grid(b.scores, b.domain, b.label, settings.max_fpr) for b in blocks])
    boots = np.stack(
        [bootstrap(b.scores, b.domain, b.label, resamples(b), settings.max_fpr) for b in blocks], axis=1
    )
    return values, boots


def _names(machines: list[str]) -> list[tuple[str, str]]:
    """(machine, metric) pairs in the order of `with_means`."""
    return [(m, name) for m in machines for name in (*THREE, "hmean")] + [
        ("all", name) for name in (*THREE, "omega")
    ]


def with_means(values: np.ndarray) -> np.ndarray:
    """Append means: (..., machines, 3) -> (..., (machines + 1) * 4), hmean per machine, then "all" with Ω.

    Notebook: 08_tuning
    """
    per_machine = np.concatenate([values, harmonic(values)[..., None]], axis=-1)
    lead = values.shape[:-2]
    over_all = np.concatenate(
        [harmonic(values, axis=-2), harmonic(values.reshape(*lead, -1))[..., None]], axis=-1
    )
    return np.concatenate([per_machine.reshape(*lead, -1), over_all], axis=-1)


def _interval(replicates: np.ndarray, confidence: float) -> np.ndarray:
    """Central `confidence` interval (2, columns) of (B, columns); NaN for columns that contain NaN."""
    tail = (1 - confidence) / 2
    return np.quantile(replicates, [tail, 1 - tail], axis=0)


def _rows(key: _Key, machines: list[str], columns: np.ndarray) -> pd.DataFrame:
    """Metric table of one (system, component, seed).

    columns : (3, n) value, low, high in the order of `_names`
    """
    rows = pd.DataFrame(_names(machines), columns=["machine", "metric"])
    value, low, high = columns
    return rows.assign(system=key[0], component=key[1], seed=key[2], value=value, low=low, high=high)[
        list(schemas.METRIC_COLUMNS)
    ]


def _stack(tables: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def table(scores: pd.DataFrame, settings: MetricsSettings, seed: int) -> pd.DataFrame:
    """Metrics with intervals per system, component and training seed, per machine and for "all".

    scores : score table;  seed : bootstrap seed
    returns : metric table (schemas.METRIC_COLUMNS); see the module docstring for NaN.  Notebook: 09_report
    """
    scores = schemas.by_section(schemas.score_table(scores))
    resamples, tables, blocks_of = _Resamples(settings.bootstrap, seed), [], _blocks(scores)
    for key, part in scores.groupby(["system", "component", "seed"]):
        machines, blocks = sorted(part["machine"].unique()), blocks_of.get((*key[:2], int(key[2])), [])
        values, boots = (
            np.full((len(machines), 3), np.nan),
            np.full((settings.bootstrap, len(machines), 3), np.nan),
        )
        if blocks:  # machines without test clips keep NaN rows
            where = [machines.index(block.machine) for block in blocks]
            values[where], boots[:, where] = _evaluate(blocks, settings, resamples)
        columns = np.vstack([with_means(values), _interval(with_means(boots), settings.confidence)])
        tables.append(_rows((key[0], key[1], int(key[2])), machines, columns))
    return _stack(tables, schemas.METRIC_COLUMNS)


def evaluate(
    scores: pd.DataFrame, *, bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Official metrics of the final scores in a score table, with bootstrap intervals.

    Parameters
    ----------
    scores : SCORE_COLUMNS, for example from `Detector.score`; only component `score` and split `test` count
    bootstrap : number of resamples
    confidence : coverage of the intervals, in (0, 1)
    seed : resampling seed

    Returns
    -------
    METRIC_COLUMNS: AUC source, AUC target, pAUC and their harmonic mean per machine (and section), and over
    all machines the official score (metric "omega"); fractions in [0, 1], NaN where normals or anomalies are
    absent

    Raises
    ------
    errors.InputError for a table without a final score, or with unknown splits, domains or labels

    Source: METHOD 7.3
    """
    settings = MetricsSettings(bootstrap=bootstrap, confidence=confidence)
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise errors.InputError(f"seed: got {seed!r}, expected an integer >= 0")
    if not isinstance(scores, pd.DataFrame):
        raise errors.InputError(
            f"scores: got {type(scores).__name__}, expected a score table; pass the result of a detector's"
            " score()"
        )
    schemas.score_table(scores)
    final = scores[scores["component"] == "score"]
    if final.empty:
        raise errors.InputError(
            "no final scores given, expected rows with component 'score'; pass the result of a detector's"
            " score()"
        )
    return table(final, settings, seed)


def paper_table1() -> pd.DataFrame:
    """Table 1 of the report (METHOD 7.6) as a metric table in fractions, without intervals."""
    tables = []
    for column, name in enumerate(PAPER_SYSTEMS):
        values = np.array([PAPER_TABLE1[machine][column] for machine in PAPER_TABLE1]) / 100
        every = with_means(values)
        absent = np.full_like(every, np.nan)
        tables.append(
            _rows((f"paper_{name}", "score", 0), list(PAPER_TABLE1), np.stack([every, absent, absent]))
        )
    return _stack(tables, schemas.METRIC_COLUMNS)


def decisions(scores: pd.DataFrame, settings: MetricsSettings) -> pd.DataFrame:
    """Threshold, precision, recall and F1 of the final score: one threshold per machine, counts per domain.

    returns : DECISION_COLUMNS with domain source | target | all (all labeled clips); train_above is the share
        of training clips above the threshold. Precision is 0 if nothing is flagged (as in the official
        evaluator); all three are NaN if a domain lacks normals or anomalies, or the machine has no training
        scores (method none). Machines without test clips have only a threshold. F1 of a domain uses only its
        clips (METHOD 7.3).
    """
    own = schemas.score_table(scores[scores["component"] == "score"])
    scores, references = schemas.by_section(own), schemas.by_references(own)
    found, whole = _blocks(scores), dict(zip(scores["machine"], references["machine"]))
    train = {
        key: part.to_numpy(float)
        for key, part in references[own["split"] == "train"].groupby(["system", "seed", "machine"])["score"]
    }
    rows, nothing = [], (np.empty(0, object), np.empty(0, "U7"), np.empty(0, "U10"), np.empty(0))
    # machines without test clips have a threshold too
    for system, seed, machine in sorted(scores.groupby(["system", "seed", "machine"]).groups):
        blocks = found.setdefault((system, "score", int(seed)), [])
        if machine not in {block.machine for block in blocks}:
            blocks.append(_Block(machine, *nothing))
    for (system, _, seed), blocks in found.items():
        for block in blocks:
            normals = train.get((system, seed, whole[block.machine]), np.empty(0))
            threshold = (
                thresholds.gamma_threshold(normals, settings.decision_quantile)
                if len(normals)
                else Threshold(np.nan, "none")
            )
            above = float(np.mean(normals > threshold.value)) if len(normals) else np.nan
            for domain in ("source", "target", "all"):
                mask = np.ones(len(block.domain), bool) if domain == "all" else block.domain == domain
                normal, anomaly = mask & (block.label == "normal"), mask & (block.label == "anomaly")
                flagged = block.scores > threshold.value
                quality = (np.nan,) * 3
                if normal.any() and anomaly.any() and len(normals):
                    hits, false = int((flagged & anomaly).sum()), int((flagged & normal).sum())
                    missed = int(anomaly.sum()) - hits
                    quality = (
                        hits / max(hits + false, 1),
                        hits / (hits + missed),
                        2 * hits / (2 * hits + false + missed),
                    )
                counts = (int(normal.sum()), int(anomaly.sum()))
                rows.append(
                    (system, block.machine, domain, *threshold, len(normals), above, *counts, *quality, seed)
                )
    return pd.DataFrame(rows, columns=list(DECISION_COLUMNS))


def false_alarms(
    scores: pd.DataFrame, unseen: pd.Series, decisions: pd.DataFrame, confidence: float = 0.95
) -> pd.DataFrame:
    """False positive rates on held-out training clips and normal test clips, over all machines.

    scores : score table
    unseen : bool, marks rows of training clips on which no network of the system was trained
    decisions : from `decisions`
    returns : ALARM_COLUMNS; clips is "held out" (training clips, leave-clip-out), "source", "target" or
        "test" (both domains); normals is the number of clips; rate is the share above their machine's
        threshold, averaged over seeds, with its Wilson interval; NaN without clips
    """
    own = schemas.by_section(scores.assign(held_out=unseen)[scores["component"] == "score"])
    own = own[(own["label"] == "normal") & (own["held_out"] | (own["split"] == "test"))]
    key = ["system", "machine", "seed"]
    own = own.join(decisions.drop_duplicates(key).set_index(key)["threshold"], on=key)
    own = own[own["threshold"].notna()]
    rows = []
    for system in fusion.in_order(scores["system"]):
        part = own[own["system"] == system]
        test = part[~part["held_out"]]
        sides = {"held out": part[part["held_out"]]}
        sides |= {domain: test[test["domain"] == domain] for domain in ("source", "target")} | {"test": test}
        for name, clips in sides.items():
            count, rate = clips["clip"].nunique(), (clips["score"] > clips["threshold"]).mean()
            ends = (np.nan, np.nan)
            if count:
                ends = stats.binomtest(round(rate * count), count).proportion_ci(confidence, "wilson")
            rows.append((system, name, count, rate, *ends))
    return pd.DataFrame(rows, columns=list(ALARM_COLUMNS))


# ---------------------------------------------------------------- controls


def controls(clips: pd.DataFrame, scores: pd.DataFrame, settings: MetricsSettings, seed: int) -> pd.DataFrame:
    """Two controls for label leakage in a dataset.

    clips : clip table with the column level_db;  scores : score table;  seed : seed of resamples and shuffles
    returns : metric table of two systems. control_level, component score: the clip's level as score, with
        bootstrap intervals. Far from 0.5 on either side, the level alone reveals the labels.
        control_shuffled, component <system>: mean and central range (settings.confidence) of each metric with
        labels shuffled within each domain. A result inside the range is chance.
    raises : errors.InputError for a clip table without level_db
    """
    if "level_db" not in schemas.clip_table(clips):
        raise errors.InputError(
            "clip table has no column level_db, needed by the controls; pass the table of the decoded clips"
            " (store.clips)"
        )
    trained = scores["seed"][scores["seed"] != fusion.ALL_SEEDS]
    first = int(trained.min()) if len(trained) else 0
    level = clips.assign(
        system="control_level", component="score", seed=first, score=np.maximum(clips["level_db"], SILENCE_DB)
    )
    tables = [table(level[list(schemas.SCORE_COLUMNS)], settings, seed)]
    own = schemas.by_section(schemas.score_table(scores[scores["component"] == "score"]))
    for (system, _, run), blocks in _blocks(own).items():
        parts = []
        for b in blocks:
            stream = [seed, zlib.crc32(b.machine.encode()), 1]  # 1: a stream other than the bootstrap's
            parts.append(shuffled(b.scores, b.domain, b.label, settings.shuffles, stream, settings.max_fpr))
        every = with_means(np.stack(parts, axis=1))
        columns = np.vstack([every.mean(0), _interval(every, settings.confidence)])
        tables.append(_rows(("control_shuffled", system, run), [b.machine for b in blocks], columns))
    return _stack(tables, schemas.METRIC_COLUMNS)
