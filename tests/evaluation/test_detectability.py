"""Severity curves: oracle AUCs, crossings on known curves, censored intervals, refusals."""

import numpy as np
import pandas as pd
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from asdlib import errors
from asdlib.evaluation import detectability, metrics
from asdlib.viz import report_plots, tables

SETTINGS = metrics.MetricsSettings(bootstrap=100, shuffles=10)


def score_table(
    machines=("fan", "valve"),
    severities=(0.5, 1.0, 2.0),
    systems=("oevae", "baseline_knn"),
    gain=1.5,
    seeds=(0,),
):
    """Scores that rise by gain x severity; normals of the target lie higher."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for system in systems:
            for machine in machines:
                for domain in ("source", "target"):
                    for label, n in (("normal", 20), ("anomaly", 24)):
                        for i in range(n):
                            severity = severities[i % len(severities)] if label == "anomaly" else np.nan
                            score = rng.normal() + 0.5 * (domain == "target") + gain * np.nan_to_num(severity)
                            rows.append(
                                (
                                    system,
                                    machine,
                                    domain,
                                    label,
                                    f"{machine}/{domain}_{label}_{i}",
                                    score,
                                    seed,
                                    severity,
                                )
                            )
    table = pd.DataFrame(
        rows, columns=["system", "machine", "domain", "label", "clip", "score", "seed", "severity"]
    )
    return table.assign(component="score", section="00", split="test")


def test_values_are_those_of_scikit_learn_with_ties():
    scores = score_table()
    scores["score"] = scores["score"].round(1)  # ties
    curves, _ = detectability.curves(scores, SETTINGS, 0)
    for row in curves[curves["machine"] != "all"].itertuples():
        part = scores[(scores["system"] == row.system) & (scores["machine"] == row.machine)]
        part = part[(part["label"] == "normal") | (part["severity"] == row.severity)]
        assert row.value == pytest.approx(roc_auc_score(part["label"] == "anomaly", part["score"]), abs=1e-12)
        assert row.low <= row.value <= row.high and row.anomalies == 16
    fan, valve, every = (
        curves[(curves["machine"] == m) & (curves["system"] == "oevae")]["value"].to_numpy()
        for m in ("fan", "valve", "all")
    )
    np.testing.assert_allclose(every, 2 / (1 / fan + 1 / valve))


def test_seeds_are_averaged_and_systems_share_their_resamples():
    one = score_table(seeds=(0, 1))
    curves, _ = detectability.curves(one, SETTINGS, 0)
    parts = [detectability.curves(one[one["seed"] == seed], SETTINGS, 0)[0]["value"] for seed in (0, 1)]
    np.testing.assert_allclose(curves["value"], np.mean(parts, axis=0))
    twin = pd.concat(
        [score_table(systems=("oevae",)), score_table(systems=("oevae",)).assign(system="other")]
    )
    found = detectability.curves(twin, SETTINGS, 0)[0].set_index(["system", "machine", "severity"])[
        ["value", "low", "high"]
    ]
    pd.testing.assert_frame_equal(found.loc["oevae"], found.loc["other"])


def test_an_ensemble_over_seeds_stands_beside_the_trained_systems():
    scores = pd.concat(
        [score_table(seeds=(0, 1)), score_table(systems=("oevae",)).assign(system="oevae_seeds", seed=-1)]
    )
    curves, reached = detectability.curves(scores, SETTINGS, 0)
    assert set(reached["system"]) == set(curves["system"]) == {"oevae", "baseline_knn", "oevae_seeds"}


@pytest.mark.parametrize(
    "auc, severity",
    [
        ((0.6, 0.7, 0.8), 1.5),  # halfway between 1 and 2
        ((0.8, 0.9, 1.0), 0.5 * 0.25 / 0.3),  # on the way from severity 0, AUC 0.5
        ((0.5, 0.6, 0.7), np.inf),
        (
            (0.75, 0.6, 0.9),
            1 + (0.75 - 0.675) / (0.9 - 0.675),
        ),  # a dip counts with its neighbor: 0.675 twice, then up
        ((np.nan, 0.6, 0.7), np.nan),
    ],
)
def test_the_severity_that_reaches_a_level(auc, severity):
    found = detectability.reach(np.array([0.5, 1.0, 2.0]), np.array([auc]), np.array([8, 8, 8]))
    np.testing.assert_allclose(found, [severity])


def test_rising_curves_are_isotonic_regressions():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5):
        values, weights = rng.uniform(size=(20, n)), rng.integers(1, 30, n).astype(float)
        slow = [
            IsotonicRegression().fit_transform(np.arange(n), row, sample_weight=weights) for row in values
        ]
        np.testing.assert_allclose(detectability.rising(values, weights), slow, atol=1e-12)


def test_what_is_beyond_the_tested_severities_is_no_number():
    _, reached = detectability.curves(score_table(gain=0.0), SETTINGS, 0)
    assert np.isinf(reached["severity"]).all() and np.isinf(reached["high"]).all()
    shown = tables.reach_in_words(reached)
    assert (
        list(shown.columns) == ["machine", "baseline_knn", "oevae"]
        and shown["oevae"].str.startswith("not reached").all()
    )
    _, reached = detectability.curves(score_table(gain=0.9), SETTINGS, 0)
    row = reached.set_index(["system", "machine"]).loc[("oevae", "all")]
    assert row["low"] <= row["severity"] <= row["high"] and 0.3 < row["severity"] < 2


def test_machines_with_other_severities_meet_where_both_have_them():
    scores = pd.concat([score_table(("fan",), (0.5, 1.0)), score_table(("valve",), (1.0, 2.0))])
    curves, _ = detectability.curves(scores, SETTINGS, 0)
    assert curves[curves["machine"] == "all"]["severity"].unique().tolist() == [1.0]
    assert curves[curves["machine"] == "valve"]["severity"].unique().tolist() == [1.0, 2.0]


def test_without_severities_there_is_nothing_and_no_error():
    curves, reached = detectability.curves(score_table().assign(severity=np.nan), SETTINGS, 0)
    assert len(curves) == len(reached) == 0
    with pytest.raises(errors.InputError, match="score table has no column severity"):
        detectability.curves(score_table().drop(columns="severity"), SETTINGS, 0)


def test_severities_are_read_beside_the_recordings(tmp_path):
    folder = tmp_path / "fan"
    folder.mkdir()
    clips = pd.DataFrame(
        {"clip": ["a", "b"], "path": [str(folder / "test" / "x.wav"), str(folder / "test" / "y.wav")]}
    )
    assert detectability.severities(clips).isna().all()
    (folder / "severity.csv").write_text("file_name,severity\nfan/test/y.wav,0.5\n")
    found = detectability.severities(clips)
    assert np.isnan(found["a"]) and found["b"] == 0.5
    for text, words in (
        ("name\n1\n", "cannot be read"),
        ("file_name,severity\ny,loud\n", "cannot be read"),
        ("file_name,severity\ny,-1\n", "not a number"),
    ):
        (folder / "severity.csv").write_text(text)
        with pytest.raises(errors.InputError, match=words):
            detectability.severities(clips)


def test_the_figure_draws_every_machine_and_system():
    curves, _ = detectability.curves(score_table(("fan", "gearbox", "valve")), SETTINGS, 0)
    *figures, legend = report_plots.detectability_curves(curves)
    assert [figure.axes[0].get_title() for figure in figures] == ["fan", "gearbox", "valve", "all machines"]
    assert {text.get_text() for text in legend.axes[0].get_legend().get_texts()} >= {
        "OEVAE",
        "nearest neighbor",
        "AUC 0.75",
    }
    with pytest.raises(errors.InputError, match="curves: empty table"):
        report_plots.detectability_curves(curves.iloc[:0])
