"""Results of a study in words: claims against controls, comparisons, headline, warnings, counts.

Conventions
-----------
A claim compares a system with the controls (shuffled labels, and the level of the clips alone) and with the
training-free reference. Nothing is claimed without labeled test clips, or if settings were chosen on test
labels (`TEST_TUNED`).

Differences are a − b of two systems on the same resampled test clips, averaged over seeds first
(`comparison.Pairs`). A study compares many pairs, so their p-values are corrected together (Holm 1979: the
probability of any false "better" in the table is below 1 − confidence). A pair that is significant only
without the correction is reported as undecided.

Sources: METHOD 3.8, 7.3. Notebook: 09_report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from asdlib import schemas
from asdlib.evaluation import comparison, metrics, roc
from asdlib.scoring import fusion
from asdlib.viz.tables import METRIC_NAMES, number, own_scores, signed, system_name

OVER_ALL = ("omega", *roc.THREE)  # metrics of machine "all"; the first one available is used for the claim
ABOVE = f"above the training-free reference ({comparison.REFERENCE})"  # column of `claims`
DIFFERENCES = ("system_a", "system_b", "metric", "a − b", "p", "p (Holm)", "claim")
TEST_TUNED = {  # values of the setting chosen_by that rest on test labels
    "oracle": "ω, η and k were chosen on the test labels (oracle)",
    "hand": "ω, η and k were chosen by hand with test labels visible",
}
FEW_TRAINING, FEW_TEST = 50, 20  # numbers of clips of a machine below which a warning is given
UNTRAINED = ("baseline_knn", "multires", "pretrained")  # systems without training
NEAR = 0.06  # tolerance of a false alarm rate around the nominal one
AGAINST_CHANCE = ("below", "chance")  # cases of a claim that are not above chance


# ---------------------------------------------------------------- claims


def claims(
    table: pd.DataFrame,
    controls: pd.DataFrame,
    pairs: pd.DataFrame | None = None,
    settings: metrics.MetricsSettings | None = None,
    chosen_by: str = "",
) -> pd.DataFrame:
    """Return the results of each system over all machines, and its claim against the controls.

    table : METRIC_COLUMNS.  controls : from `metrics.controls`.  pairs : from `comparison.all_pairs` with
        `settings` (None: the defaults).  chosen_by : the study's setting; one of TEST_TUNED prevents claims
    returns : columns of text: system, claim, ABOVE (only with `pairs`), Ω, AUC source, AUC target, pAUC,
        labels shuffled (range of the first metric available), case (below | chance | level | within | above |
        none | control)
    """
    settings = metrics.MetricsSettings() if settings is None else settings
    both = pd.concat([own_scores(table), own_scores(controls)])
    both = both[both["machine"] == "all"].set_index(["system", "metric"])
    chance = controls[(controls["machine"] == "all") & (controls["component"] != "score")]
    chance = chance.groupby(["component", "metric"])[["value", "low", "high"]].mean()
    rows = []
    for system in fusion.in_order(both.index.get_level_values(0)):
        found = {metric: both.loc[(system, metric), ["value", "low", "high"]] for metric in OVER_ALL}
        first = next((metric for metric, row in found.items() if not math.isnan(row["value"])), None)
        shuffled = chance.loc[(system, first)] if first and (system, first) in chance.index else None
        row = {"system": system, "claim": "", "case": "none"}
        if system == "control_level":
            row |= {"claim": "control: the level of each clip used as its score", "case": "control"}
        elif shuffled is None:
            row["claim"] = "no claim: no labeled test clips"
        else:
            level = both["value"].get(("control_level", first), math.nan)
            case, words = _claim(both.loc[(system, first)], shuffled, level)
            row |= {"claim": f"{METRIC_NAMES[first]} {words}", "case": case}
            if chosen_by in TEST_TUNED:
                row["claim"] = f"no claim: {TEST_TUNED[chosen_by]}"
        if pairs is not None:
            row[ABOVE] = "" if system == "control_level" else above_reference(system, pairs, settings)
            row[ABOVE] = "no claim" if chosen_by in TEST_TUNED and row[ABOVE] else row[ABOVE]
        row |= {METRIC_NAMES[metric]: number(*values) for metric, values in found.items()}
        row["labels shuffled"] = (
            "" if shuffled is None else f"[{shuffled['low']:.3f}, {shuffled['high']:.3f}]"
        )
        rows.append(row)
    return pd.DataFrame(rows)


def _claim(own: pd.Series, shuffled: pd.Series, level: float) -> tuple[str, str]:
    """Return the case of a value with its interval, and its description."""
    chance = shuffled["value"]  # mean for shuffled labels: for Ω, a little below 0.5
    if own["value"] < shuffled["low"] and own["high"] < chance:
        return "below", "is below chance: normal clips score higher than anomalies"
    if own["value"] <= shuffled["high"] or own["low"] <= chance:  # chance in labels, or in the test clips
        return "chance", "is not distinguishable from chance"
    if math.isnan(level):
        return "above", "is above chance"
    level_auc = level_reach(level)
    rival = f"the level alone ({level:.3f})"
    if level_auc >= own["value"]:
        return "level", f"is above chance, but {rival} does as well: no evidence that faults are detected"
    if level_auc > own["low"]:
        return "within", f"is above chance; its lead over {rival} is within the interval"
    return "above", f"is above chance and above {rival}"


def level_reach(level: float) -> float:
    """Return the AUC of the level in its better direction: anomalies may be louder or softer."""
    return max(level, 1 - level)


# ---------------------------------------------------------------- comparisons


def verdicts(
    found: pd.DataFrame, settings: metrics.MetricsSettings, chosen_by: Sequence[str] = ()
) -> pd.DataFrame:
    """Describe comparisons, with p-values corrected for all of them.

    found : PAIRED_COLUMNS, for example from `comparison.all_pairs`.  chosen_by : this setting of each study;
        one of TEST_TUNED prevents claims.  returns : DIFFERENCES
    """
    corrected, rows = comparison.holm(found["p"]), []
    for row, p in zip(found.itertuples(), corrected, strict=True):
        better = row.system_a if row.value > 0 else row.system_b
        claim = {
            "holds": f"{better} is better",
            "alone": f"undecided: {better} is better only before correction",
            "no": "no difference shown",
        }[_verdict(row.p, p, settings)]
        claim = "no claim" if TEST_TUNED.keys() & set(chosen_by) else claim
        shown = signed(number(row.value, row.low, row.high))
        rows.append((row.system_a, row.system_b, METRIC_NAMES[row.metric], shown, row.p, p, claim))
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def _verdict(p: float, corrected: float, settings: metrics.MetricsSettings) -> str:
    """Return `holds` (significant after correction), `alone` (only before correction) or `no`."""
    level = 1 - settings.confidence
    return "holds" if corrected <= level else "alone" if p <= level else "no"


def above_reference(system: str, pairs: pd.DataFrame, settings: metrics.MetricsSettings) -> str:
    """Describe whether a system is above the training-free reference, with the paired difference.

    pairs : from `comparison.all_pairs`; the correction is for all of them, as in the table of differences
    returns : for example "yes: +0.042 [0.010, 0.074]"
    """
    reference = comparison.REFERENCE
    if system == reference:
        return "the reference"
    if reference not in {*pairs["system_a"], *pairs["system_b"]}:
        return f"not compared: no {reference} on labeled test clips"
    both = pairs[pairs["system_a"].isin([system, reference]) & pairs["system_b"].isin([system, reference])]
    if both.empty:
        return ""
    row = both.iloc[0]
    value, low, high = row[["value", "low", "high"]]
    if row["system_a"] == reference:
        value, low, high = -value, -high, -low
    answers = {"holds": "yes" if value > 0 else "no, below", "alone": "undecided", "no": "not shown"}
    verdict = answers[_verdict(row["p"], row["p_holm"], settings)]
    return signed(f"{verdict}: {value:+.3f} [{low:.3f}, {high:.3f}]")


def family(found: pd.DataFrame, settings: metrics.MetricsSettings) -> str:
    """Summarize comparisons in a sentence.  found : DIFFERENCES"""
    if found.empty:
        return "Nothing to compare: one system, or no labeled test clips."
    level = f"{1 - settings.confidence:.2g}"
    uncorrected = sum(claim.startswith("undecided") for claim in found["claim"])
    won: dict[str, list[str]] = {}
    for r in found[found["claim"].str.endswith("is better")].itertuples():
        first = r.claim.startswith(f"{r.system_a} ")
        better, worse = (r.system_a, r.system_b) if first else (r.system_b, r.system_a)
        won.setdefault(better, []).append(system_name(worse))
    holds = [f"{system_name(better)} is better than {listed(worse)}" for better, worse in won.items()]
    lowest = f"smallest p {found['p'].min():.2g}, corrected {found['p (Holm)'].min():.2g}"
    count = f"{len(found)} comparison{'s' * (len(found) > 1)}"
    words = f"{count}, Holm-corrected at level {level} ({lowest}): {sum(map(len, won.values()))} significant"
    words += f" ({'; '.join(holds)})" if holds else ""
    return words + (f"; {uncorrected} more only without correction, not claimed." if uncorrected else ".")


# ---------------------------------------------------------------- headline, warnings, counts


def leader(found: pd.DataFrame) -> str:
    """Return the system with the highest Ω, by which a report is illustrated.

    Without labeled test clips: the training-free reference, or else the first system.

    found : from `claims`
    """
    own = found[found["case"] != "control"]
    measured = own[own["case"] != "none"]
    if measured.empty:
        names = own["system"].tolist()
        return comparison.REFERENCE if comparison.REFERENCE in names else names[0]
    values = pd.to_numeric(measured["Ω"].str.split().str[0], errors="coerce")
    return measured["system"].iloc[int(np.nanargmax(values.fillna(-1)))]


def headline(
    found: pd.DataFrame,
    pairs: pd.DataFrame,
    settings: metrics.MetricsSettings,
    dead: Sequence[str] = (),
    chosen_by: str = "",
) -> str:
    """Summarize the study in one to three sentences.

    found : from `claims`.  pairs : from `comparison.all_pairs`.  dead : machines whose VAE is dead
    chosen_by : the study's setting
    """
    best = leader(found)
    row = found.set_index("system").loc[best]
    if row["case"] == "none":
        count = int((found["case"] != "control").sum())
        return (
            f"No labeled test clips: {count} system{'s' * (count > 1)} with scores and thresholds, whose"
            " quality cannot be measured."
        )
    name, reached = system_name(best, capital=True), f"official score, {row['Ω']}"
    if chosen_by in TEST_TUNED:
        return (
            f"No claim: {TEST_TUNED[chosen_by]}. {name} reaches the highest {reached}; after this tuning,"
            " expect lower scores on new recordings."
        )
    if row["case"] in AGAINST_CHANCE:
        words = f"No system is distinguishable from chance; {name} has the highest {reached}."
        return f"{words}{_dead(dead, ' The')}"
    words = f"{name} has the highest {reached}"
    if row["case"] == "level":
        words += ", but the level of the clips alone does as well: no evidence that faults are detected"
    elif row["case"] == "within":
        words += "; its lead over the level of the clips alone is within the interval"
    worse, undecided = [], []
    for pair in pairs[(pairs["system_a"] == best) | (pairs["system_b"] == best)].itertuples():
        other = pair.system_b if pair.system_a == best else pair.system_a
        (worse if _verdict(pair.p, pair.p_holm, settings) == "holds" else undecided).append(other)
    chance = [name for name in found.loc[found["case"].isin(AGAINST_CHANCE), "system"] if name != best]
    if undecided:
        words += f"; it is not distinguishable from {listed(map(system_name, undecided))}"
    elif worse:
        words += "; it is better than every other system"
    words += "."
    if chance:
        words += (
            f" {listed(system_name(name) for name in chance)} {'are' if len(chance) > 1 else 'is'} at chance."
        )
        words = words.replace(f". {system_name(chance[0])}", f". {system_name(chance[0], capital=True)}")
    return f"{words}{_dead(dead, ' The')}"


def _dead(machines: Sequence[str], start: str) -> str:
    return f"{start} VAE of OEVAE is dead on {listed(machines)}." if machines else ""


def listed(names) -> str:
    """Join names as in a sentence: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


class Warning(NamedTuple):
    """A warning about the results: whether it is serious, a short text for a badge, and a sentence."""

    serious: bool
    short: str
    sentence: str


def warnings(
    clips: pd.DataFrame,
    table: pd.DataFrame,
    controls: pd.DataFrame,
    system: str,
    dead: Sequence[str] = (),
    chosen_by: str = "",
    synthetic: bool = False,
) -> list[Warning]:
    """Return warnings about the reliability of the results, serious ones first.

    clips : clip table.  table, controls : metric tables.  system : from `leader`
    dead : machines whose VAE is dead.  chosen_by : the study's setting
    synthetic : whether the recordings are synthetic
    """
    out = []

    def warn(names: Sequence[str], short: str, sentence: str) -> None:
        if len(names):
            out.append(Warning(True, f"{short}: {', '.join(names)}", sentence.format(listed(names))))

    if chosen_by in TEST_TUNED:
        short = "tuned on test labels" if chosen_by == "oracle" else "tuned with test labels visible"
        out.append(Warning(True, short, f"{TEST_TUNED[chosen_by]}: the results support no claim."))
    machines = sorted(clips["machine"].unique())

    def count(machine: str, **where: str) -> int:
        rows = clips[clips["machine"] == machine]
        for column, value in where.items():
            rows = rows[rows[column] == value]
        return len(rows)

    labeled = {m: [count(m, split="test", label=kind) for kind in ("normal", "anomaly")] for m in machines}
    unlabeled = [m for m in machines if not any(labeled[m])]
    warn(
        unlabeled,
        "no labeled test clips",
        "No labeled test clips of {}: the quality of scores and thresholds cannot be measured.",
    )
    warn(
        dead,
        "dead VAE",
        "The VAE of OEVAE learned nothing on {}: α is nearly constant, and OEVAE detects only by β.",
    )
    both = pd.concat([own_scores(table), own_scores(controls)]).query("metric == 'hmean'")
    values = both.pivot(index="machine", columns="system", values="value")
    if {"control_level", system} <= set(values):
        leaks = values.index[values["control_level"].map(level_reach) >= values[system]]
        warn(
            list(leaks),
            "level alone is as good",
            f"On {{}} the level of the clips alone does at least as well as {system_name(system)}: no"
            " evidence that faults are detected.",
        )
    warn(
        [m for m in machines if m not in unlabeled and not all(labeled[m])],
        "one label missing in test",
        "The test clips of {} are all normal or all anomalous: the AUC is undefined.",
    )
    warn(
        [f"{m} ({min(labeled[m])})" for m in machines if 0 < min(labeled[m]) < FEW_TEST],
        "few test clips",
        "Few normal or few anomalous test clips of {}: intervals are wide, and each clip matters.",
    )
    train = {m: count(m, split="train", label="normal") for m in machines}
    warn(
        [f"{m} ({train[m]})" for m in machines if train[m] < FEW_TRAINING],
        "few training clips",
        "Few training clips of {}: thresholds are based on few scores.",
    )
    for domain in ("source", "target"):
        machines_missing: dict[str, list[str]] = {}
        for m in machines:
            missing = [
                words
                for split, words in (("train", "training"), ("test", "test"))
                if count(m, split=split)
                and not count(m, split=split, domain=domain) + count(m, split=split, domain="unknown")
            ]
            if missing:
                machines_missing.setdefault(" or ".join(missing), []).append(m)
        for words, names in machines_missing.items():
            warn(
                names,
                f"no {domain}-domain {words} clips",
                f"No {words} clips of the {domain} domain of {{}}: the effect of a domain shift on scores and"
                " thresholds is unknown there.",
            )
    trained = table[~table["system"].isin(UNTRAINED) & (table["seed"] != fusion.ALL_SEEDS)]
    if trained["seed"].nunique() == 1:
        out.append(
            Warning(
                False,
                "each network trained once",
                "Each network was trained once: the variation between trainings is unknown.",
            )
        )
    if synthetic:
        out.append(
            Warning(
                False,
                "synthetic recordings",
                "The recordings are synthetic: the results are no evidence about real machines.",
            )
        )
    return sorted(out, key=lambda one: not one.serious)


def standardized(scores: pd.DataFrame, decisions: pd.DataFrame) -> pd.DataFrame:
    """Return scores of test clips in standard deviations of normal training scores, averaged over seeds.

    scores : SCORE_COLUMNS.  decisions : system, machine, seed, threshold
    returns : system, machine, domain, label, clip, above_normal (from the training mean), above_threshold;
        NaN without training scores
    """
    own = scores[scores["component"] == "score"]
    own = schemas.by_section(own).assign(references=schemas.by_references(own)["machine"])
    key, of_train = ["system", "machine", "seed"], ["system", "references", "seed"]
    train = own[own["split"] == "train"].groupby(of_train)["score"].agg(["mean", "std"])
    limits = decisions.drop_duplicates(key).set_index(key)["threshold"]
    test = own[own["split"] == "test"].join(train, on=of_train).join(limits, on=key)
    test["above_normal"] = (test["score"] - test["mean"]) / test["std"]
    test["above_threshold"] = (test["score"] - test["threshold"]) / test["std"]
    columns = ["above_normal", "above_threshold"]
    return (
        test.groupby(["system", "machine", "domain", "label", "clip"], sort=False)[columns]
        .mean()
        .reset_index()
    )


def detections(places: pd.DataFrame) -> pd.DataFrame:
    """Count detected faults and false alarms at the threshold, per machine and system.

    places : from `standardized`
    returns : machine, system, faults, found, normals, false_alarms, false_target (those of the target
        domain), unlabeled, flagged (of the unlabeled)
    """
    rows = []
    for (machine, system), part in places.groupby(["machine", "system"], sort=False):
        above = part["above_threshold"] > 0
        kind = {name: part["label"] == name for name in ("anomaly", "normal", "unlabeled")}
        false = above & kind["normal"]
        rows.append(
            {
                "machine": machine,
                "system": system,
                "faults": kind["anomaly"].sum(),
                "found": (above & kind["anomaly"]).sum(),
                "normals": kind["normal"].sum(),
                "false_alarms": false.sum(),
                "false_target": (false & (part["domain"] == "target")).sum(),
                "unlabeled": kind["unlabeled"].sum(),
                "flagged": (above & kind["unlabeled"]).sum(),
            }
        )
    names = ["machine", "system", "faults", "found", "normals", "false_alarms", "false_target", "unlabeled"]
    return pd.DataFrame(rows, columns=[*names, "flagged"])


def calibration(alarms: pd.DataFrame, nominal: float) -> pd.DataFrame:
    """Compare false alarm rates on normal clips that were not used for training with the nominal rate.

    alarms : from `metrics.false_alarms`.  nominal : the rate set by the threshold quantile
    returns : columns system, nominal, rates on held-out training normals and on test normals of source,
        target and both, the last with its interval, and verdict: whether the last is within NEAR of the
        nominal rate, or else the difference
    """
    rows = []
    for system, part in alarms.groupby("system", sort=False):
        found = part.set_index("clips")
        cells = {name: f"{number(row['rate'])} of {row['normals']}" for name, row in found.iterrows()}
        cells = {name: cell if found["normals"][name] else "— none" for name, cell in cells.items()}
        rate, low, high = found.loc["test", ["rate", "low", "high"]]
        excess = rate - nominal
        verdict = f"{abs(excess):.3f} too {'many' if excess > 0 else 'few'}"
        verdict += ", not significant" if low <= nominal <= high else ""
        verdict = (
            "no normal test clips" if math.isnan(rate) else "as expected" if abs(excess) <= NEAR else verdict
        )
        rows.append(
            {
                "system": system,
                "nominal": f"{nominal:.3f}",
                "held-out normals": cells["held out"],
                "test normals, source": cells["source"],
                "test normals, target": cells["target"],
                "test normals": number(rate, low, high),
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)


def in_practice(row) -> str:
    """Describe the counts of one machine in a sentence.  row : from `detections`"""
    parts = []
    if row.faults or row.normals:
        hits = f"{row.found} of {row.faults} faults found" if row.faults else "no faults among the test clips"
        alarms = (
            f"{row.false_alarms} false alarm{'s' * (row.false_alarms != 1)} in {row.normals} normal clips"
            if row.normals
            else "no normal clips among the test clips"
        )
        parts.append(f"{hits}, {alarms}")
        if row.false_alarms and 0 < row.false_target:
            every = "all" if row.false_target == row.false_alarms else str(row.false_target)
            parts[-1] += f" ({every} in the target domain)"
    if row.unlabeled:
        parts.append(f"{row.flagged} of {row.unlabeled} unlabeled clips above the threshold")
    return "; ".join(parts)
