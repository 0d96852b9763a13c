"""Claims: the correction for many comparisons, Table 1 in one form, decisions and latents in short."""

import numpy as np
import pandas as pd

from asdlib.evaluation import comparison, metrics
from asdlib.viz import tables
from tests.viz.test_tables import SETTINGS, clip_table, compared, score_table


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
    told = tables.family(found, SETTINGS)
    assert told.startswith("3 comparisons, corrected together after Holm at level 0.05") and "2 hold" in told
    assert "baseline_mse is better than baseline_knn" in told and "baseline_mse is better than oevae" in told
    none = compared(score_table(clips, 0.0))
    assert len(none) == 0 and tables.family(none, SETTINGS) == "One system: nothing to compare."


def against(*gaps):
    """The column of claims about the reference, by system: gaps of multires, baseline_mse, oevae."""
    clips = clip_table()
    names = ("multires", "baseline_mse", "oevae")
    scores = pd.concat([score_table(clips, gap, name, i) for i, (name, gap) in enumerate(zip(names, gaps))])
    scores["seed"] = 0
    pairs = comparison.all_pairs(scores, SETTINGS, 0)
    found = tables.claims(
        metrics.table(scores, SETTINGS, 0), metrics.controls(clips, scores, SETTINGS, 0), pairs, SETTINGS
    )
    return found.set_index("system")[tables.ABOVE], pairs


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
    assert [tables.above_reference("a", each, SETTINGS) for each in one] == [
        "yes: +0.100 [0.010, 0.200]",
        "undecided: +0.100 [0.010, 0.200]",
    ]
    assert tables.above_reference("b", one[0], SETTINGS) == ""
    missing = tables.above_reference("a", pairs.iloc[:0].assign(p_holm=[]), SETTINGS)
    assert missing == "not compared: no multires on labeled test clips"


def test_what_passes_alone_only_is_not_claimed():
    rows = [
        ("a", "b", "all", "omega", 0.1, 0.01, 0.2, 0.03),
        ("a", "c", "all", "omega", -0.1, -0.2, 0.1, 0.5),
    ]
    found = tables.verdicts(pd.DataFrame(rows, columns=list(comparison.PAIRED_COLUMNS)), SETTINGS)
    assert found["claim"].tolist() == ["undecided: a ahead, not after correction", "no difference shown"]
    assert "1 more would pass alone and are not claimed" in tables.family(
        found, SETTINGS
    ) and "0 hold" in tables.family(found, SETTINGS)


def test_there_are_enough_resamples_for_a_verdict():
    for pairs in (1, 15, 55):
        settings = comparison.enough(pairs, SETTINGS)
        assert 2 / (settings.bootstrap + 1) * pairs < 1 - settings.confidence


def test_table_one_alone_for_synthetic_and_unknown_machines():
    table = metrics.table(score_table(clip_table(), 1.0), SETTINGS, 0)
    shown = tables.table1(table, synthetic=True)
    assert (
        "the machines of this study are synthetic" in shown
        and "87.10" not in shown
        and "AUC (source)" in shown
    )
    other = metrics.table(score_table(clip_table(machine="pump"), 1.0), SETTINGS, 0)
    shown = tables.table1(other, synthetic=False)
    assert "no machine of this study is in the paper" in shown and "OEVAES" not in shown
    omega = other[(other["metric"] == "omega")]["value"].iloc[0]
    assert f">{100 * omega:.2f}<" in shown


def test_table_one_beside_ours_for_recorded_machines_of_its_names():
    scores = pd.concat([score_table(clip_table(), 1.0), score_table(clip_table(machine="pump"), 1.0)])
    table = metrics.table(scores, SETTINGS, 0)
    shown = tables.table1(table, synthetic=False)
    assert "87.10" in shown and "48.95" in shown and "65.92" not in shown  # the fan's row, not the bearing's
    assert "Not in the paper&#x27;s table: pump" in shown and "over 1 machines" in shown
    mine = table.query("machine == 'fan' and metric in ['auc_source', 'auc_target', 'pauc']")["value"]
    assert f">{100 * len(mine) / (1 / mine).sum():.2f}<" in shown  # Ω over the shared machine alone
    assert f"{300 / (1 / 0.7002 + 1 / 0.33 + 1 / 0.4895):.2f}" in shown  # the paper's, by hand


def test_omega_is_of_what_a_machine_has():
    table = metrics.table(score_table(clip_table(("source",)), 1.0), SETTINGS, 0)
    assert tables.table1(table, synthetic=True).count("—") == 1  # AUC target


def test_decisions_and_latents_in_short():
    clips = clip_table()
    scores = pd.concat(
        [score_table(clips, 3.0), score_table(clips, 3.0, "oevae", 0), score_table(clips, 3.0, "oevae", 1)]
    )
    decided = metrics.decisions(scores, SETTINGS)
    shown = tables.decisions(decided)
    mine = decided.query("system == 'oevae' and domain == 'all'")[["f1", "precision", "recall"]].mean()
    assert list(shown.columns) == ["machine", "baseline_knn", "oevae"]
    assert shown["oevae"].iloc[0] == f"{mine['f1']:.2f} ({mine['precision']:.2f}, {mine['recall']:.2f})"
    asked = [
        ("z_d", "v", "R²", 0.9, 0.0),
        ("z_c", "v", "R²", 0.1, 0.0),
        ("z_c", "domain", "balanced accuracy", 0.5, 0.5),
        ("embedding", "domain", "balanced accuracy", 0.8, 0.5),
    ]
    measures = pd.DataFrame(asked, columns=["space", "of", "measure", "value", "chance"]).assign(
        machine="fan", seed=0
    )
    row = tables.latents(measures).iloc[0]
    assert (row["v from z_d (R²)"], row["domain from z_c"], row["chance"]) == (0.9, 0.5, 0.5)
