"""What a study found, in words: claims against controls, comparisons, the headline, warnings, counts.

Conventions
-----------
A claim is made only against the controls (what shuffled labels and the level of the clips alone would reach),
and beside it stands whether a system is above the reference that needs no training. Nothing is claimed
without labeled test clips, nor where settings were chosen on test labels (`TEST_TUNED`).

Differences are a − b of two systems on the same resampled test clips, seeds averaged first
(`comparison.Pairs`). A study compares many pairs, so their p-values are corrected together (Holm 1979: the
probability of a single false "better" in the whole table stays below 1 − confidence); a pair that is told
apart only without the correction is said to be so.

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

OVER_ALL = (
    "omega",
    *roc.THREE,
)  # of machine "all", in the order in which a claim is made on the first there is
ABOVE = f"above the training-free reference ({comparison.REFERENCE})"  # column of `claims`
DIFFERENCES = ("system_a", "system_b", "metric", "a − b", "p", "p (Holm)", "claim")
TEST_TUNED = {  # values of the setting chosen_by that rest on test labels
    "oracle": "ω, η and k were chosen on the test labels (oracle)",
    "hand": "ω, η and k were chosen by hand, in sight of test labels",
}
FEW_TRAINING, FEW_TEST = 50, 20  # clips of a machine below which a warning is due
UNTRAINED = ("baseline_knn", "multires", "pretrained")  # systems for which no study trains a network
NEAR = 0.06  # of a share of false alarms to the nominal one
AGAINST_CHANCE = ("below", "chance")  # cases of a claim in which nothing was detected


# ---------------------------------------------------------------- claims


def claims(
    table: pd.DataFrame,
    controls: pd.DataFrame,
    pairs: pd.DataFrame | None = None,
    settings: metrics.MetricsSettings | None = None,
    chosen_by: str = "",
) -> pd.DataFrame:
    """What each system reaches over all machines, beside the controls, with the claim in words.

    table : METRIC_COLUMNS.  controls : of `metrics.controls`.  pairs : of `comparison.all_pairs`, by
        `settings` (None: the defaults).  chosen_by : the study's setting; one of TEST_TUNED forbids claims
    returns : system, claim, ABOVE (only with `pairs`), Ω, AUC source, AUC target, pAUC, labels shuffled
        (range of the first that is available), case (below | chance | level | within | above | none |
        control); text
    """
    settings = metrics.MetricsSettings() if settings is None else settings
    both = pd.concat([own_scores(table), own_scores(controls)])
    both = both[both["machine"] == "all"].set_index(["system", "metric"])
    chance = controls[(controls["machine"] == "all") & (controls["component"] != "score")]
    chance = chance.groupby(["component", "metric"])[["value", "low", "high"]].mean()
    rows = []
    for system in fusion.in_order(both.index.get_level_values(0)):
        found = {metric: both.loc[(system, metric), ["value", "low", "high"]] for metric in OVER_ALL}
        told = next((metric for metric, row in found.items() if not math.isnan(row["value"])), None)
        shuffled = chance.loc[(system, told)] if told and (system, told) in chance.index else None
        row = {"system": system, "claim": "", "case": "none"}
        if system == "control_level":
            row |= {"claim": "control: what the level of the clips alone would score", "case": "control"}
        elif shuffled is None:
            row["claim"] = "no claim: no labeled test clips"
        else:
            level = both["value"].get(("control_level", told), math.nan)
            case, words = _claim(both.loc[(system, told)], shuffled, level)
            row |= {"claim": f"{METRIC_NAMES[told]} {words}", "case": case}
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
    """The case of one value with its interval, and the words for it."""
    chance = shuffled["value"]  # what shuffled labels reach on average: of Ω, a little below 0.5
    if own["value"] < shuffled["low"] and own["high"] < chance:
        return "below", "is below chance: normal clips score higher than anomalies"
    if own["value"] <= shuffled["high"] or own["low"] <= chance:  # luck of the labels, or of the clips drawn
        return "chance", "is not distinguishable from chance"
    if math.isnan(level):
        return "above", "is above chance"
    reach = level_reach(level)
    alone = f"the level alone ({level:.3f})"
    if reach >= own["value"]:
        return "level", f"is above chance, but {alone} does as well: no evidence that faults are detected"
    if reach > own["low"]:
        return "within", f"is above chance; its lead over {alone} lies within the interval"
    return "above", f"is above chance and above what {alone} reaches"


def level_reach(level: float) -> float:
    """What the level alone tells: one that is lower in anomalies tells them just as well."""
    return max(level, 1 - level)


# ---------------------------------------------------------------- comparisons


def verdicts(
    found: pd.DataFrame, settings: metrics.MetricsSettings, chosen_by: Sequence[str] = ()
) -> pd.DataFrame:
    """A family of comparisons with corrected p-values, in words.

    found : PAIRED_COLUMNS, for example of `comparison.all_pairs`.  chosen_by : that setting of each study;
        one of TEST_TUNED forbids claims.  returns : DIFFERENCES
    """
    corrected, rows = comparison.holm(found["p"]), []
    for row, p in zip(found.itertuples(), corrected, strict=True):
        better = row.system_a if row.value > 0 else row.system_b
        claim = {
            "holds": f"{better} is better",
            "alone": f"undecided: {better} ahead, not after correction",
            "no": "no difference shown",
        }[_verdict(row.p, p, settings)]
        claim = "no claim" if TEST_TUNED.keys() & set(chosen_by) else claim
        shown = signed(number(row.value, row.low, row.high))
        rows.append((row.system_a, row.system_b, METRIC_NAMES[row.metric], shown, row.p, p, claim))
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def _verdict(p: float, corrected: float, settings: metrics.MetricsSettings) -> str:
    """A difference `holds` after the correction, passes `alone` without it, or `no`."""
    level = 1 - settings.confidence
    return "holds" if corrected <= level else "alone" if p <= level else "no"


def above_reference(system: str, pairs: pd.DataFrame, settings: metrics.MetricsSettings) -> str:
    """Whether a system is above the training-free reference, in words, with the paired difference to it.

    pairs : of `comparison.all_pairs`; the correction is for all of them, as in the table of differences
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
    said = {"holds": "yes" if value > 0 else "no, below", "alone": "undecided", "no": "not shown"}
    verdict = said[_verdict(row["p"], row["p_holm"], settings)]
    return signed(f"{verdict}: {value:+.3f} [{low:.3f}, {high:.3f}]")


def family(found: pd.DataFrame, settings: metrics.MetricsSettings) -> str:
    """The comparisons in one sentence: how many there were, what the correction is, and what holds.  found :
    DIFFERENCES
    """
    if found.empty:
        return "Nothing to compare: one system, or no labeled test clips."
    level = f"{1 - settings.confidence:.2g}"
    alone = sum(claim.startswith("undecided") for claim in found["claim"])
    won: dict[str, list[str]] = {}
    for r in found[found["claim"].str.endswith("is better")].itertuples():
        first = r.claim.startswith(f"{r.system_a} ")
        better, worse = (r.system_a, r.system_b) if first else (r.system_b, r.system_a)
        won.setdefault(better, []).append(system_name(worse))
    holds = [f"{system_name(better)} is better than {listed(worse)}" for better, worse in won.items()]
    least = f"smallest p {found['p'].min():.2g}, corrected {found['p (Holm)'].min():.2g}"
    count = f"{len(found)} comparison{'s' * (len(found) > 1)}"
    words = f"{count}, corrected together after Holm at level {level} ({least}): "
    words += f"{sum(map(len, won.values()))} hold" + (f" ({'; '.join(holds)})" if holds else "")
    return words + (f"; {alone} more would pass alone and are not claimed." if alone else ".")


# ---------------------------------------------------------------- headline, warnings, counts


def leader(found: pd.DataFrame) -> str:
    """The system that the report is about: the one of the highest Ω, or without labeled test clips the
    training-free reference, else the first.  found : of `claims`
    """
    own = found[found["case"] != "control"]
    told = own[own["case"] != "none"]
    if told.empty:
        names = own["system"].tolist()
        return comparison.REFERENCE if comparison.REFERENCE in names else names[0]
    values = pd.to_numeric(told["Ω"].str.split().str[0], errors="coerce")
    return told["system"].iloc[int(np.nanargmax(values.fillna(-1)))]


def headline(
    found: pd.DataFrame,
    pairs: pd.DataFrame,
    settings: metrics.MetricsSettings,
    dead: Sequence[str] = (),
    chosen_by: str = "",
) -> str:
    """What the study found, in one to three sentences made from its numbers.

    found : of `claims`.  pairs : of `comparison.all_pairs`.  dead : machines whose VAE is dead.  chosen_by :
        the study's setting
    """
    best = leader(found)
    row = found.set_index("system").loc[best]
    if row["case"] == "none":
        count = int((found["case"] != "control").sum())
        return (
            f"No labeled test clips: {count} system{'s' * (count > 1)} with scores and thresholds, and no"
            " measure of how good they are."
        )
    name, reached = system_name(best, capital=True), f"official score, {row['Ω']}"
    if chosen_by in TEST_TUNED:
        return (
            f"No claim: {TEST_TUNED[chosen_by]}. {name} reaches the highest {reached}, which is what tuning"
            " on the answers gives, not what new recordings will."
        )
    if row["case"] in AGAINST_CHANCE:
        words = f"No system is distinguishable from chance; {name} has the highest {reached}."
        return f"{words}{_dead(dead, ' The')}"
    words = f"{name} has the highest {reached}"
    if row["case"] == "level":
        words += ", but the level of the clips alone does as well: no evidence that faults are detected"
    elif row["case"] == "within":
        words += ", a lead over the level of the clips alone that lies within the interval"
    worse, alike = [], []
    for pair in pairs[(pairs["system_a"] == best) | (pairs["system_b"] == best)].itertuples():
        other = pair.system_b if pair.system_a == best else pair.system_a
        (worse if _verdict(pair.p, pair.p_holm, settings) == "holds" else alike).append(other)
    chance = [name for name in found.loc[found["case"].isin(AGAINST_CHANCE), "system"] if name != best]
    if alike:
        words += f"; it is not distinguishable from {listed(map(system_name, alike))}"
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
    """Names as in a sentence: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


class Warning(NamedTuple):
    """A doubt about the numbers: grave or not, in short for a badge, and as a sentence."""

    grave: bool
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
    """What a reader must know before believing the numbers, the gravest first.

    clips : clip table.  table, controls : metric tables.  system : whose numbers are judged, of `leader`.
        dead : machines whose VAE is dead.  chosen_by : the study's setting.  synthetic : whether the
        recordings are
    """
    out = []

    def warn(names: Sequence[str], short: str, sentence: str) -> None:
        if len(names):
            out.append(Warning(True, f"{short}: {', '.join(names)}", sentence.format(listed(names))))

    if chosen_by in TEST_TUNED:
        short = "tuned on test labels" if chosen_by == "oracle" else "tuned in sight of test labels"
        out.append(Warning(True, short, f"{TEST_TUNED[chosen_by]}: the results are no claim."))
    machines = sorted(clips["machine"].unique())

    def count(machine: str, **where: str) -> int:
        rows = clips[clips["machine"] == machine]
        for column, value in where.items():
            rows = rows[rows[column] == value]
        return len(rows)

    labeled = {m: [count(m, split="test", label=kind) for kind in ("normal", "anomaly")] for m in machines}
    blind = [m for m in machines if not any(labeled[m])]
    warn(
        blind,
        "no labeled test clips",
        "No labeled test clips of {}: scores and thresholds, but no measure of how good they are.",
    )
    warn(
        dead,
        "dead VAE",
        "The VAE of OEVAE learned nothing on {}: α is nearly constant, and OEVAE scores by distances alone.",
    )
    both = pd.concat([own_scores(table), own_scores(controls)]).query("metric == 'hmean'")
    values = both.pivot(index="machine", columns="system", values="value")
    if {"control_level", system} <= set(values):
        leaks = values.index[values["control_level"].map(level_reach) >= values[system]]
        warn(
            list(leaks),
            "level alone is as good",
            f"On {{}} the level of the clips alone does as well as {system_name(system)}: no evidence that"
            " faults are detected.",
        )
    warn(
        [m for m in machines if m not in blind and not all(labeled[m])],
        "one label missing in test",
        "The test clips of {} are all normal or all anomalous: no AUC.",
    )
    warn(
        [f"{m} ({min(labeled[m])})" for m in machines if 0 < min(labeled[m]) < FEW_TEST],
        "few test clips",
        "Few labeled test clips of one kind of {}: intervals are wide, and a single clip moves the numbers.",
    )
    train = {m: count(m, split="train", label="normal") for m in machines}
    warn(
        [f"{m} ({train[m]})" for m in machines if train[m] < FEW_TRAINING],
        "few training clips",
        "Few training clips of {}: thresholds rest on a handful of scores.",
    )
    for domain in ("source", "target"):
        lacking: dict[str, list[str]] = {}
        for m in machines:
            gone = [
                words
                for split, words in (("train", "training"), ("test", "test"))
                if count(m, split=split)
                and not count(m, split=split, domain=domain) + count(m, split=split, domain="unknown")
            ]
            if gone:
                lacking.setdefault(" or ".join(gone), []).append(m)
        for words, names in lacking.items():
            warn(
                names,
                f"no {domain}-domain {words} clips",
                f"No {words} clips of the {domain} domain of {{}}: what a change of conditions does to scores"
                " and thresholds is not known there.",
            )
    trained = table[~table["system"].isin(UNTRAINED) & (table["seed"] != fusion.ALL_SEEDS)]
    if trained["seed"].nunique() == 1:
        out.append(
            Warning(
                False,
                "one training each",
                "Every network was trained once: how far another training would differ is not known.",
            )
        )
    if synthetic:
        out.append(
            Warning(
                False,
                "synthetic recordings",
                "The recordings are synthetic: nothing here is evidence about a real machine.",
            )
        )
    return sorted(out, key=lambda one: not one.grave)


def standing(scores: pd.DataFrame, decisions: pd.DataFrame) -> pd.DataFrame:
    """Each test clip in standard deviations of its machine's normal training scores, averaged over seeds.

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
    """Faults found and false alarms at the threshold: counts per machine and system.

    places : of `standing`
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
    """False alarms on normal clips that no training saw, beside what the thresholds promise.

    alarms : of `metrics.false_alarms`.  nominal : the promised share
    returns : system, nominal, rates on held-out training normals and on test normals of source, target and
        both, the last with its interval, and verdict: whether that lies within NEAR of the nominal share,
        else by how much not
    """
    rows = []
    for system, part in alarms.groupby("system", sort=False):
        found = part.set_index("clips")
        cells = {name: f"{number(row['rate'])} of {row['normals']}" for name, row in found.iterrows()}
        cells = {name: cell if found["normals"][name] else "— none" for name, cell in cells.items()}
        rate, low, high = found.loc["test", ["rate", "low", "high"]]
        off = rate - nominal
        verdict = f"{abs(off):.3f} too {'many' if off > 0 else 'few'}"
        verdict += ", not beyond chance" if low <= nominal <= high else ""
        verdict = "no normal test clips" if math.isnan(rate) else "as set" if abs(off) <= NEAR else verdict
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
    """The counts of one machine in a sentence for whoever maintains it.  row : of `detections`"""
    parts = []
    if row.faults or row.normals:
        hits = f"of {row.faults} faults {row.found} found" if row.faults else "no faults among the test clips"
        alarms = (
            f"{row.false_alarms} false alarm{'s' * (row.false_alarms != 1)} in {row.normals} normals"
            if row.normals
            else "no normal clips to give a false alarm"
        )
        parts.append(f"{hits} at {alarms}" if row.faults and row.normals else f"{hits}; {alarms}")
        if row.false_alarms and 0 < row.false_target:
            every = "all" if row.false_target == row.false_alarms else str(row.false_target)
            parts[-1] += f" ({every} in the target domain)"
    if row.unlabeled:
        parts.append(f"{row.flagged} of {row.unlabeled} unlabeled clips above the threshold")
    return "; ".join(parts)
