"""Claims that a reviewer may test: is one system better than another, how do we stand beside the paper, what do the latents know.

Conventions
-----------
Differences are a − b of two systems on the same resampled test clips, seeds averaged first (`metrics.Pairs`). A study compares many pairs, so
their p-values are corrected together (Holm 1979: the probability of a single false "better" in the whole table stays below 1 − confidence); a
pair that is told apart only without the correction is said to be so. The number of resamples rises with the number of pairs, else the
correction could reach no verdict at all.
Beside the paper: percent, its Table 1 as printed. What is synthetic compares with nothing and is shown alone.

Sources: METHOD 3.8; report, Table 1; METHOD 7.6. Notebook: 09_report.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd

from asdlib.evaluation import metrics, roc
from asdlib.studies import config
from asdlib.viz import tables

DIFFERENCES = ("system_a", "system_b", "metric", "a − b", "p", "p (Holm)", "claim")
PAPER_NAMES = {"baseline_mse": "Baseline (MSE)", "baseline_mahala": "Baseline (MAHALA)", "oevaes": "OEVAES"}
PAPER_METRICS = {"auc_source": "AUC (source)", "auc_target": "AUC (target)", "pauc": "pAUC"}


def holm(p: np.ndarray) -> np.ndarray:
    """p-values of one family, corrected after Holm (1979): reject where the result is below the level for the whole family.

    p : (m,), NaN where there is none, which do not count.  returns : (m,), in [p, 1]
    """
    p = np.asarray(p, float)
    order = np.argsort(p)  # NaN last
    m = int(np.isfinite(p).sum())
    out = np.full(len(p), np.nan)
    out[order[:m]] = np.minimum(np.maximum.accumulate(p[order[:m]] * np.arange(m, 0, -1)), 1.0)
    return out


def enough(pairs: int, settings: config.Metrics) -> config.Metrics:
    """Settings with as many resamples as the correction for so many pairs needs: the smallest p is then half of what it must be."""
    return dataclasses.replace(settings, bootstrap=max(settings.bootstrap, math.ceil(4 * pairs / (1 - settings.confidence))))


def differences(scores: pd.DataFrame, settings: config.Metrics, seed: int) -> pd.DataFrame:
    """Every two systems compared over all machines, by Ω.

    scores : SCORE_COLUMNS.  seed : of the resamples.  returns : DIFFERENCES, text and p.  Notebook: 09_report
    """
    tested = scores[scores["split"] == "test"]
    pairs = list(itertools.combinations(tables.in_order(tested["system"]), 2))  # without test clips there is nothing to compare
    settings = enough(len(pairs), settings)
    compared = metrics.Pairs(scores, settings, seed)
    rows = [over_all(compared(a, b)) for a, b in pairs]
    return judged(pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(metrics.PAIRED_COLUMNS)), settings)


def over_all(pair: pd.DataFrame) -> pd.DataFrame:
    """Of a table of `metrics.Pairs` the row that a claim is made on: Ω over all machines; no row where it is not available."""
    return pair[(pair["machine"] == "all") & (pair["metric"] == "omega") & pair["value"].notna()]


def judged(found: pd.DataFrame, settings: config.Metrics) -> pd.DataFrame:
    """A family of comparisons with corrected p-values, in words.  found : PAIRED_COLUMNS.  returns : DIFFERENCES"""
    corrected, level, rows = holm(found["p"]), 1 - settings.confidence, []
    for row, p in zip(found.itertuples(), corrected, strict=True):
        better = row.system_a if row.value > 0 else row.system_b
        claim = f"{better} is better" if p <= level else "no difference shown"
        if p > level >= row.p:
            claim = f"undecided: {better} ahead, not after correction"
        shown = tables.number(row.value, row.low, row.high).replace("-", "−")
        rows.append((row.system_a, row.system_b, tables.METRIC_NAMES[row.metric], shown, row.p, p, claim))
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def family(found: pd.DataFrame, settings: config.Metrics) -> str:
    """The comparisons in one sentence: how many there were, what the correction is, and what holds.  found : DIFFERENCES"""
    if found.empty:
        return "One system: nothing to compare."
    level = f"{1 - settings.confidence:.2g}"
    alone = sum(claim.startswith("undecided") for claim in found["claim"])
    holds = [f"{r.claim} than {_other(r)}" for r in found.itertuples() if r.claim.endswith("is better")]
    least = f"smallest p {found['p'].min():.2g}, corrected {found['p (Holm)'].min():.2g}"
    words = f"{len(found)} comparisons, corrected together after Holm at level {level} ({least}): "
    words += f"{len(holds)} hold" + (f" ({'; '.join(holds)})" if holds else "")
    return words + (f"; {alone} more would pass alone and are not claimed." if alone else ".")


def _other(row) -> str:
    return row.system_b if row.claim.startswith(f"{row.system_a} ") else row.system_a


def table1(table: pd.DataFrame, synthetic: bool) -> tables.Html:
    """The paper's Table 1 and ours in one form, in percent; ours alone where the machines are not the paper's, and said so.

    table : METRIC_COLUMNS.  The last row is Ω over the machines that both have, or over ours where there are none.  Notebook: 09_report
    """
    own, paper = tables.own_scores(table), tables.own_scores(metrics.paper_table1())
    machines = [name for name in dict.fromkeys(own["machine"]) if name != "all"]
    shared = [] if synthetic else [name for name in machines if name in metrics.PAPER_TABLE1]
    alone = [name for name in machines if name not in shared]
    ours, counted = tables.in_order(own["system"]), shared or machines
    columns = {("paper", title): f"paper_{name}" for name, title in PAPER_NAMES.items()} if shared else {}
    columns |= {("this study", name): name for name in ours}
    values = pd.concat([own, paper]).set_index(["system", "machine", "metric"])["value"]
    rows = []
    for machine in [*shared, *alone]:
        for place, (metric, title) in enumerate(PAPER_METRICS.items()):
            rows.append(("" if place else machine, title, *(values.get((name, machine, metric), math.nan) for name in columns.values())))
    per_seed = pd.concat([table[table["component"] == "score"], metrics.paper_table1()])
    omegas = [_omega(per_seed[per_seed["system"] == name], counted) for name in columns.values()]
    rows.append(("Ω", f"over {len(counted)} machines", *omegas))
    shown = pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples([("", "machine"), ("", "metric"), *columns]))
    shown = shown.map(lambda value: value if isinstance(value, str) else "—" if math.isnan(value) else f"{100 * value:.2f}")
    note = f"In percent, without intervals as in the paper. {_beside(shared, alone, synthetic)}"
    return tables.styled(shown if shared else shown.droplevel(0, axis=1), note)


def _omega(rows: pd.DataFrame, machines: list[str]) -> float:
    """Ω over some machines, mean over seeds; rows : METRIC_COLUMNS of one system."""
    rows = rows[rows["machine"].isin(machines) & rows["metric"].isin(roc.THREE)]
    found = [roc.harmonic(part["value"].to_numpy()) if len(part) == 3 * len(machines) else math.nan for _, part in rows.groupby("seed")]
    return float(np.mean(found)) if found else math.nan


def _beside(shared: list[str], alone: list[str], synthetic: bool) -> str:
    if synthetic:
        return "Ours alone: the machines of this study are synthetic, and the paper's numbers belong to recordings."
    if not shared:
        return "Ours alone: no machine of this study is in the paper's table."
    words = "The paper's numbers belong to the DCASE 2024 development recordings; they compare only with ours on the same ones."
    return words + (f" Not in the paper's table: {', '.join(alone)}." if alone else "")


def latents(measures: pd.DataFrame) -> pd.DataFrame:
    """What z_d and z_c know, one row per machine and seed: R² of v from z_d, accuracy of v and of the domain from z_c, beside chance.

    measures : of stage 07, with the column seed.  returns : text and numbers.  Notebook: 09_report
    """
    asked = {
        "v from z_d (R²)": ("z_d", "v", "R²"), "v from z_c (R²)": ("z_c", "v", "R²"),
        "domain from z_c": ("z_c", "domain", "balanced accuracy"), "domain from embedding": ("embedding", "domain", "balanced accuracy"),
    }  # fmt: skip
    rows = []
    for (machine, seed), part in measures.groupby(["machine", "seed"], sort=False):
        found = part.set_index(["space", "of", "measure"])
        chance = float(found.loc[("z_c", "domain", "balanced accuracy"), "chance"])
        values = {name: float(found.loc[key, "value"]) for name, key in asked.items()}
        rows.append({"machine": machine, "seed": int(seed)} | values | {"chance": chance})
    return pd.DataFrame(rows)


def decisions(table: pd.DataFrame) -> pd.DataFrame:
    """F1, precision and recall over both domains, seeds averaged: one row per machine, one column per system; text.

    table : metrics.DECISION_COLUMNS.  Notebook: 09_report
    """
    both = table[table["domain"] == "all"].groupby(["machine", "system"])[["f1", "precision", "recall"]].mean()
    texts = [f"{f1:.2f} ({precision:.2f}, {recall:.2f})" if f1 == f1 else "—" for f1, precision, recall in both.itertuples(index=False)]
    wide = pd.Series(texts, index=both.index, dtype=object).unstack("system").fillna("—")
    return wide[tables.in_order(wide.columns)].reset_index()
