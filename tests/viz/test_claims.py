"""Claims, comparisons, the headline, warnings and counts: what they say, and what they refuse to claim."""

import numpy as np
import pandas as pd
import pytest

from asdlib.evaluation import comparison, metrics
from asdlib.scoring import fusion
from asdlib.viz import claims, tables
from tests.viz.test_tables import SETTINGS, clip_table, score_table


def compared(scores):
    return claims.verdicts(comparison.all_pairs(scores, SETTINGS, 0), SETTINGS)


def measured(clips, scores, chosen_by=""):
    """Metric table, controls, pairs and claims."""
    table, controls = metrics.table(scores, SETTINGS, 0), metrics.controls(clips, scores, SETTINGS, 0)
    pairs = comparison.all_pairs(scores, SETTINGS, 0)
    return table, controls, pairs, claims.claims(table, controls, pairs, SETTINGS, chosen_by)


def claim_of(clips, scores):
    return measured(clips, scores)[3].set_index("system")["claim"]["baseline_knn"]


@pytest.mark.parametrize(
    ("gap", "leak", "words"),
    [
        (0.0, 0.0, "not distinguishable from chance"),
        (3.0, 0.0, "above the level alone"),
        (2.0, 9.0, "no evidence that faults are detected"),
        (2.0, -9.0, "no evidence that faults are detected"),
        (-3.0, 0.0, "below chance"),
    ],
)
def test_claims_are_made_against_the_controls(gap, leak, words):
    clips = clip_table(level_leak=leak)
    assert words in claim_of(clips, score_table(clips, gap))


def test_an_interval_that_reaches_chance_carries_no_claim():
    """Above what shuffled labels reach, but other clips of the same machine could have given chance."""
    own, shuffled = (
        pd.Series({"value": 0.54, "low": 0.48, "high": 0.58}),
        pd.Series({"value": 0.49, "low": 0.45, "high": 0.53}),
    )
    low = pd.Series({"value": 0.43, "low": 0.38, "high": 0.47})
    for value, case in ((own, "chance"), (own + 0.02, "above"), (low, "below")):
        assert claims._claim(value, shuffled, np.nan)[0] == case
    low["high"] = 0.5
    assert claims._claim(low, shuffled, np.nan)[0] == "chance"
    assert claims._claim(own + 0.02, shuffled, 0.52)[0] == "within"


def test_without_target_the_claim_is_about_what_is_available():
    clips = clip_table(("source",))
    table, _, _, found = measured(clips, score_table(clips, 3.0))
    row = found.iloc[0]
    assert row["AUC target"] == "— not available"
    assert row["claim"].startswith("Ω is above chance")
    assert "Ω: the harmonic mean of the 2 of 3 values that are available" in tables.reasons(table)
    words = "fan: AUC target not available, no normal test clip of the target domain"
    assert words in tables.reasons(table) and words in tables.metrics_table(table)


def test_without_labels_nothing_is_claimed():
    clips = clip_table().assign(label=lambda t: t["label"].where(t["split"] == "train", "unlabeled"))
    assert claim_of(clips, score_table(clips, 1.0)) == "no claim: no labeled test clips"


def test_holm_by_plain_steps():
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.005])
    found = comparison.holm(p)
    np.testing.assert_allclose(
        found, [0.03, 0.06, 0.06, np.nan, 0.02]
    )  # 0.005 x 4, 0.01 x 3, 0.03 x 2, then never less than before
    assert comparison.holm(np.array([0.9, 0.8])).max() == 1.0 and len(comparison.holm(np.array([]))) == 0


def test_the_family_keeps_its_level_under_no_difference():
    """With nothing to find, one table of comparisons in 20 may hold a false one; without the correction many
    would.
    """
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(2000, 10))
    false = np.mean([(comparison.holm(row) <= 0.05).any() for row in p])
    assert 0.03 < false < 0.07 and np.mean((p <= 0.05).any(1)) > 0.35


def test_systems_compared_in_words():
    clips = clip_table()
    scores = pd.concat(
        [
            score_table(clips, 0.0),
            score_table(clips, 4.0, "baseline_mse"),
            score_table(clips, 0.0, "oevae", seed=3),
        ]
    )
    found = compared(scores)
    assert found["claim"].tolist() == [
        "baseline_mse is better",
        "no difference shown",
        "baseline_mse is better",
    ]
    assert set(found["metric"]) == {"Ω"} and (found["p (Holm)"] >= found["p"]).all()
    told = claims.family(found, SETTINGS)
    assert told.startswith("3 comparisons, Holm-corrected at level 0.05") and "2 significant" in told
    assert "autoencoder (MSE) is better than nearest neighbor and OEVAE" in told
    none = compared(score_table(clips, 0.0))
    assert len(none) == 0 and claims.family(none, SETTINGS).startswith("Nothing to compare: one system")


def against(*gaps):
    """The column of claims about the reference, by system: gaps of multires, baseline_mse, oevae."""
    clips = clip_table()
    names = ("multires", "baseline_mse", "oevae")
    scores = pd.concat([score_table(clips, gap, name, i) for i, (name, gap) in enumerate(zip(names, gaps))])
    scores["seed"] = 0
    pairs = comparison.all_pairs(scores, SETTINGS, 0)
    found = claims.claims(
        metrics.table(scores, SETTINGS, 0), metrics.controls(clips, scores, SETTINGS, 0), pairs, SETTINGS
    )
    return found.set_index("system")[claims.ABOVE], pairs


def test_every_system_stands_beside_the_reference_without_training():
    """By the same paired differences as between any two systems, with the sign of system less reference."""
    found, pairs = against(1.0, 5.0, 0.0)
    row = pairs.query("system_a == 'multires' and system_b == 'baseline_mse'").iloc[0]
    assert found["baseline_mse"] == f"yes: +{-row.value:.3f} [{-row.high:.3f}, {-row.low:.3f}]"
    assert found["oevae"].startswith("no, below: −0.") and found["multires"] == "the reference"
    assert found["control_level"] == "" and next(iter(found.index)) == "multires"
    found, _ = against(1.0, 1.0, 1.0)
    assert found["oevae"].startswith("not shown: ")


def test_the_reference_is_told_apart_after_the_correction_only():
    rows = [("a", "multires", "all", "omega", 0.1, 0.01, 0.2, 0.03)]
    pairs = pd.DataFrame(rows, columns=list(comparison.PAIRED_COLUMNS))
    one = pairs.assign(p_holm=0.03), pairs.assign(p_holm=0.3)
    assert [claims.above_reference("a", each, SETTINGS) for each in one] == [
        "yes: +0.100 [0.010, 0.200]",
        "undecided: +0.100 [0.010, 0.200]",
    ]
    assert claims.above_reference("b", one[0], SETTINGS) == ""
    missing = claims.above_reference("a", pairs.iloc[:0].assign(p_holm=[]), SETTINGS)
    assert missing == "not compared: no multires on labeled test clips"


def test_what_passes_alone_only_is_not_claimed():
    rows = [
        ("a", "b", "all", "omega", 0.1, 0.01, 0.2, 0.03),
        ("a", "c", "all", "omega", -0.1, -0.2, 0.1, 0.5),
    ]
    found = claims.verdicts(pd.DataFrame(rows, columns=list(comparison.PAIRED_COLUMNS)), SETTINGS)
    assert found["claim"].tolist() == ["undecided: a is better only before correction", "no difference shown"]
    assert "1 more only without correction, not claimed" in claims.family(
        found, SETTINGS
    ) and "0 significant" in claims.family(found, SETTINGS)


def test_there_are_enough_resamples_for_a_verdict():
    for pairs in (1, 15, 55):
        settings = comparison.enough(pairs, SETTINGS)
        assert 2 / (settings.bootstrap + 1) * pairs < 1 - settings.confidence


def test_table_one_compares_recorded_machines_of_its_names_only():
    table = metrics.table(score_table(clip_table(), 1.0), SETTINGS, 0)
    other = metrics.table(score_table(clip_table(machine="pump"), 1.0), SETTINGS, 0)
    assert tables.table1(table, synthetic=True) == tables.table1(other, synthetic=False) == ""


def test_table_one_beside_ours_for_recorded_machines_of_its_names():
    scores = pd.concat([score_table(clip_table(), 1.0), score_table(clip_table(machine="pump"), 1.0)])
    table = metrics.table(scores, SETTINGS, 0)
    shown = tables.table1(table, synthetic=False)
    assert "87.10" in shown and "48.95" in shown and "65.92" not in shown  # the fan's row, not the bearing's
    assert "pump" not in shown and "over 1 machines" in shown
    mine = table.query("machine == 'fan' and metric in ['auc_source', 'auc_target', 'pauc']")["value"]
    assert f">{100 * len(mine) / (1 / mine).sum():.2f}<" in shown  # Ω over the shared machine alone
    assert f"{300 / (1 / 0.7002 + 1 / 0.33 + 1 / 0.4895):.2f}" in shown  # the paper's, by hand


def test_omega_beside_the_paper_is_of_what_a_machine_has():
    table = metrics.table(score_table(clip_table(("source",)), 1.0), SETTINGS, 0)
    assert tables.table1(table, synthetic=False).count("—") == 1  # AUC target


# ---------------------------------------------------------------- headline, warnings, counts


def headline_of(*gaps, dead=(), chosen_by="", **clips):
    names = ("multires", "baseline_mse", "oevae")
    table = clip_table(**clips)
    scores = pd.concat([score_table(table, gap, name, i) for i, (name, gap) in enumerate(zip(names, gaps))])
    scores["seed"] = 0
    *_, pairs, found = measured(table, scores, chosen_by)
    return claims.headline(found, pairs, SETTINGS, dead, chosen_by), found


def test_the_headline_names_the_best_what_it_is_like_and_what_is_at_chance():
    said, found = headline_of(3.0, 3.1, 0.0, dead=["fan", "slider"])
    best = claims.leader(found)
    other = {"multires": "autoencoder (MSE)", "baseline_mse": "multi-resolution density"}[best]
    omega = found.set_index("system")["Ω"][best]
    assert said.startswith(
        f"{tables.system_name(best, capital=True)} has the highest official score, {omega};"
    )
    assert f"it is not distinguishable from {other}. OEVAE is at chance." in said
    assert said.endswith("The VAE of OEVAE is dead on fan and slider.")


def test_the_headline_says_when_nothing_or_the_level_alone_explains_it():
    assert headline_of(0.0, 0.0)[0].startswith("No system is distinguishable from chance; ")
    assert "the level of the clips alone does as well" in headline_of(2.0, level_leak=9.0)[0]
    assert "it is better than every other system" in headline_of(5.0, 0.5)[0]


def test_settings_chosen_on_test_labels_forbid_every_claim():
    """The stamp stands in the headline, in each claim and among the warnings, also for a good system."""
    for chosen_by, words in (("oracle", "on the test labels (oracle)"), ("hand", "with test labels visible")):
        said, found = headline_of(5.0, 0.5, chosen_by=chosen_by)
        assert said.startswith("No claim: ") and words in said
        own = found[found["case"] != "control"]["claim"]
        assert own.str.startswith("no claim: ").all() and own.str.contains(words, regex=False).all()
        assert set(found[claims.ABOVE]) == {"no claim", ""}
    for chosen_by in ("", "default", "training"):
        said, found = headline_of(5.0, 0.5, chosen_by=chosen_by)
        assert "better than every other" in said and not found["claim"].str.startswith("no claim").any()


def warned(clips, gap=3.0, **more):
    scores = score_table(clips, gap)
    scores = pd.concat([scores, score_table(clips, gap, "oevae")])
    table, controls, *_ = measured(clips, scores)
    return {one.short: one for one in claims.warnings(clips, table, controls, "baseline_knn", **more)}


def test_warnings_name_the_machines_they_are_about():
    found = warned(clip_table(("source",), level_leak=9.0), dead=["fan"], chosen_by="oracle", synthetic=True)
    serious = [short for short, one in found.items() if one.serious]
    assert serious == [
        "tuned on test labels",
        "dead VAE: fan",
        "level alone is as good: fan",
        "few training clips: fan (30)",
        "no target-domain training or test clips: fan",
    ]
    assert {"each network trained once", "synthetic recordings"} <= set(found) and list(found)[
        : len(serious)
    ] == serious
    clips = clip_table()
    few = clips[(clips["label"] == "normal") | (clips["clip"].str[-6:] < "04")]  # 4 anomalies of each domain
    assert "few test clips: fan (8)" in warned(few)


def test_a_study_without_labels_or_test_clips_is_warned_about():
    clips = clip_table()
    blind = clips.assign(label=clips["label"].where(clips["split"] == "train", "unlabeled"))
    assert "no labeled test clips: fan" in warned(blind)
    assert "no labeled test clips: fan" in warned(clips[clips["split"] == "train"])
    alone = metrics.table(score_table(clips, 1.0), SETTINGS, 0)  # the nearest neighbor trains nothing
    controls = metrics.controls(clips, score_table(clips, 1.0), SETTINGS, 0)
    assert claims.warnings(clips, alone, controls, "baseline_knn") == []
    normals = clips[clips["label"] == "normal"]
    assert "one label missing in test: fan" in warned(normals)


def test_detections_count_clips_above_the_threshold():
    clips = clip_table()
    scores = pd.concat([score_table(clips, 2.0, seed=0), score_table(clips, 2.0, seed=1)])
    decisions = metrics.decisions(scores, SETTINGS)
    row = claims.detections(claims.standardized(scores, decisions)).iloc[0]
    own = scores.merge(decisions[["seed", "threshold"]].drop_duplicates(), on="seed").query("split == 'test'")
    train = scores[scores["split"] == "train"].groupby("seed")["score"].std()
    own["sd"] = (own["score"] - own["threshold"]) / own["seed"].map(train)
    above = own.groupby(["clip", "label", "domain"])["sd"].mean() > 0
    assert row.faults == row.normals == 40
    assert row.found == above.xs("anomaly", level="label").sum() > 10
    assert row.false_alarms == above.xs("normal", level="label").sum() > 0
    assert row.false_target == above.xs(("normal", "target"), level=("label", "domain")).sum()


def test_a_rate_of_false_alarms_is_as_set_or_off_by_so_much():
    rates = {"multires": 0.125, "oevae": 0.19, "classifier": 0.03, "fusion": 0.02, "ensemble": np.nan}
    rows = [
        (system, clips, 0 if np.isnan(rate) else 200, rate, rate - 0.04, rate + 0.071)
        for system, rate in rates.items()
        for clips in ("held out", "source", "target", "test")
    ]
    found = claims.calibration(pd.DataFrame(rows, columns=metrics.ALARM_COLUMNS), 0.1).set_index("system")
    assert found["verdict"].to_dict() == {
        "multires": "as expected",
        "oevae": "0.090 too many",
        "classifier": "0.070 too few, not significant",
        "fusion": "0.080 too few",
        "ensemble": "no normal test clips",
    }
    assert found.loc["oevae", "test normals"] == "0.190 [0.150, 0.261]"
    assert found.loc["multires", "held-out normals"] == "0.125 of 200"
    assert found.loc["ensemble", "held-out normals"] == "— none"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((50, 31, 50, 4, 0, 0, 0), "31 of 50 faults found, 4 false alarms in 50 normal clips"),
        (
            (2, 2, 9, 1, 1, 0, 0),
            "2 of 2 faults found, 1 false alarm in 9 normal clips (all in the target domain)",
        ),
        (
            (2, 1, 9, 3, 1, 0, 0),
            "1 of 2 faults found, 3 false alarms in 9 normal clips (1 in the target domain)",
        ),
        ((0, 0, 9, 2, 0, 0, 0), "no faults among the test clips, 2 false alarms in 9 normal clips"),
        ((0, 0, 0, 0, 0, 40, 12), "12 of 40 unlabeled clips above the threshold"),
    ],
)
def test_counts_in_a_sentence(counts, words):
    names = ["faults", "found", "normals", "false_alarms", "false_target", "unlabeled", "flagged"]
    row = next(pd.DataFrame([counts], columns=names).itertuples())
    assert claims.in_practice(row) == words


def test_every_system_has_a_name_in_words():
    assert set(tables.SYSTEM_NAMES) == {*fusion.SYSTEMS, "control_level"}
    assert (
        tables.system_name("oevae_seeds") == "OEVAE, mean of seeds" and tables.system_name("mine") == "mine"
    )
    assert tables.system_name("classifier", capital=True) == "Classifier"
