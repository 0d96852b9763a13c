"""Metric tables, paired comparison, decisions and controls, against the plain definitions in oracle.py."""

import statistics
from pathlib import Path

import numpy as np
import oracle
import pandas as pd
import pytest
from scipy import stats

from asdlib import errors, schemas
from asdlib.evaluation import comparison, metrics, roc
from asdlib.scoring import thresholds
from asdlib.viz import tables

SETTINGS = metrics.MetricsSettings(bootstrap=200, shuffles=100)
TABLE1 = Path(__file__).resolve().parents[3] / "shared" / "spec" / "table1.csv"


def scored(
    machines=("fan", "valve"),
    systems=("a",),
    seeds=(0,),
    per_stratum=12,
    train=30,
    gain=1.0,
    shift=0.0,
    rng_seed=0,
    components=("score",),
):
    """A score table: normals N(0, 1), anomalies N(gain, 1), the target domain shifted; train rows N(0, 1)."""
    rng, rows = np.random.default_rng(rng_seed), []
    clips = [
        (machine, split, domain, label, f"{machine}/{split}/{domain}_{label}_{i:03d}.wav")
        for machine in machines
        for split, label, n in (
            ("train", "normal", train),
            ("test", "normal", per_stratum),
            ("test", "anomaly", per_stratum),
        )
        for domain in ("source", "target")
        for i in range(n)
    ]
    for system in systems:
        for component in components:
            for seed in seeds:
                for machine, split, domain, label, clip in clips:
                    score = rng.normal() + gain * (label == "anomaly") + shift * (domain == "target")
                    rows.append((system, component, machine, "00", split, domain, label, clip, score, seed))
    return pd.DataFrame(rows, columns=list(schemas.SCORE_COLUMNS))


def value(table, metric, column="value", **where):
    for name, wanted in {"metric": metric, **where}.items():
        table = table[table[name] == wanted]
    assert len(table) == 1
    return float(table[column].iloc[0])


# ---------------------------------------------------------------- the table


def test_table_equals_the_official_definitions():
    scores = scored(
        machines=("fan", "gearbox", "valve"),
        systems=("a", "b"),
        seeds=(0, 3),
        components=("score", "alpha"),
        shift=0.5,
    )
    scores["score"] = scores["score"].round(1)  # ties
    table = metrics.table(scores, SETTINGS, seed=0)
    assert tuple(table.columns) == schemas.METRIC_COLUMNS
    assert len(table) == 2 * 2 * 2 * (3 * 4 + 4)
    for (system, component, seed), part in scores[scores["split"] == "test"].groupby(
        ["system", "component", "seed"]
    ):
        mine = table[
            (table["system"] == system) & (table["component"] == component) & (table["seed"] == seed)
        ]
        expected = {}
        for machine, rows in part.groupby("machine"):
            expected[machine] = oracle.official_metrics(
                rows["score"].tolist(), rows["domain"].tolist(), rows["label"].tolist()
            )
            for name, number in zip(roc.THREE, expected[machine], strict=True):
                assert value(mine, name, machine=machine) == pytest.approx(number, abs=1e-12)
            assert value(mine, "hmean", machine=machine) == pytest.approx(
                oracle.harmonic_mean(expected[machine]), abs=1e-12
            )
        assert value(mine, "omega", machine="all") == pytest.approx(
            oracle.harmonic_mean(np.ravel(list(expected.values()))), abs=1e-12
        )
        for i, name in enumerate(roc.THREE):
            assert value(mine, name, machine="all") == pytest.approx(
                oracle.harmonic_mean([m[i] for m in expected.values()]), abs=1e-12
            )


def test_intervals_hold_the_value_and_narrow_with_more_clips():
    narrow, wide = (metrics.table(scored(per_stratum=n), SETTINGS, 0) for n in (200, 10))
    assert ((narrow["low"] < narrow["value"]) & (narrow["value"] < narrow["high"])).all()
    width = (wide["high"] - wide["low"]).mean() / (narrow["high"] - narrow["low"]).mean()
    assert 3 < width < 7  # sqrt(200 / 10) = 4.5


def test_interval_of_omega_is_that_of_the_resampled_omegas():
    scores = scored(per_stratum=6)
    table = metrics.table(scores, SETTINGS.replace(bootstrap=20), seed=3)
    resamples, omegas = metrics._Resamples(20, 3), []
    blocks = next(iter(metrics._blocks(scores).values()))
    for b in range(20):
        parts = [oracle.resampled_metrics(m.scores, m.domain, m.label, resamples(m)[b]) for m in blocks]
        omegas.append(oracle.harmonic_mean(np.ravel(parts)))
    assert value(table, "omega", "low") == pytest.approx(np.quantile(omegas, 0.025), abs=1e-12)
    assert value(table, "omega", "high") == pytest.approx(np.quantile(omegas, 0.975), abs=1e-12)


def test_the_order_of_rows_changes_nothing_and_the_seed_repeats():
    scores = scored(systems=("a", "b"))
    table = metrics.table(scores, SETTINGS, 1)
    pd.testing.assert_frame_equal(table, metrics.table(scores.sample(frac=1, random_state=0), SETTINGS, 1))
    assert (table["low"] != metrics.table(scores, SETTINGS, 2)["low"]).any()


def test_machines_do_not_share_their_resamples():
    scores = scored()
    resamples = metrics._Resamples(50, 0)
    fan, valve = (resamples(block) for block in next(iter(metrics._blocks(scores).values())))
    assert fan.shape == valve.shape and (fan != valve).any()


def test_no_target_clips_no_target_number():
    scores = scored()
    scores = scores[(scores["machine"] != "fan") | (scores["domain"] == "source")]
    table = metrics.table(scores, SETTINGS, 0)
    absent = table[table[["value", "low", "high"]].isna().all(axis=1)]
    named = set(zip(absent["machine"], absent["metric"], strict=True))
    assert named == {("fan", "auc_target")}
    value = table.set_index(["machine", "metric"])["value"]  # the machine takes part with what it has
    there = [
        value[machine, name]
        for machine in ("fan", "valve")
        for name in roc.THREE
        if (machine, name) != ("fan", "auc_target")
    ]
    assert value["all", "omega"] == pytest.approx(oracle.harmonic_mean(there), abs=1e-12)
    assert value["fan", "hmean"] == pytest.approx(
        oracle.harmonic_mean([value["fan", "auc_source"], value["fan", "pauc"]]), abs=1e-12
    )
    assert value["all", "auc_target"] == pytest.approx(value["valve", "auc_target"], abs=1e-12)
    assert tables.reasons(table)[-1] == "Ω: the harmonic mean of the 5 of 6 values that are available"


def test_machines_without_labels_have_no_number_and_do_not_count():
    scores = scored()
    plain = metrics.table(scores[scores["machine"] == "valve"], SETTINGS, 0)
    scores.loc[(scores["machine"] == "fan") & (scores["split"] == "test"), ["domain", "label"]] = [
        "unknown",
        "unlabeled",
    ]
    table = metrics.table(scores, SETTINGS, 0)
    assert table.loc[table["machine"] == "fan", ["value", "low", "high"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(table[table["machine"] != "fan"].reset_index(drop=True), plain)
    only = metrics.table(scores[scores["machine"] == "fan"], SETTINGS, 0)
    assert only["value"].isna().all() and len(only) == 8


def test_a_machine_without_test_clips_keeps_its_rows_and_does_not_count():
    scores = scored()
    bare = scores[(scores["machine"] != "fan") | (scores["split"] == "train")]
    table = metrics.table(bare, SETTINGS, 0)
    assert (
        table.loc[table["machine"] == "fan", "value"].isna().all() and (table["machine"] == "fan").sum() == 4
    )
    rest = metrics.table(scores[scores["machine"] == "valve"], SETTINGS, 0)
    pd.testing.assert_frame_equal(table[table["machine"] != "fan"].reset_index(drop=True), rest)
    nothing = metrics.table(bare[bare["machine"] == "fan"], SETTINGS, 0)
    assert len(nothing) == 8 and nothing["value"].isna().all()


def test_nothing_scored_gives_an_empty_table_with_columns():
    empty = scored().iloc[:0]
    assert tuple(metrics.table(empty, SETTINGS, 0).columns) == schemas.METRIC_COLUMNS
    assert tuple(metrics.decisions(empty, SETTINGS).columns) == metrics.DECISION_COLUMNS


def test_a_score_that_is_not_finite_is_refused():
    scores = scored()
    scores.loc[5, "score"] = np.nan
    with pytest.raises(errors.InputError, match="expected a finite number"):
        metrics.table(scores, SETTINGS, 0)


# ---------------------------------------------------------------- the paper's Table 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "abnormal"}, r"column label contains \['abnormal'\], expected normal, anomaly, unlabeled"),
        ({"domain": "Source"}, r"column domain contains \['Source'\], expected source, target, unknown"),
        ({"split": "Test"}, r"column split contains \['Test'\], expected train, test"),
        ({"machine": "all"}, "a machine is named 'all', which means all machines"),
    ],
)
def test_clips_with_unknown_values_are_not_left_out_but_refused(change, words):
    scores = scored()
    [(column, value)] = change.items()
    few = (scores["split"] == "test") & (np.arange(len(scores)) % 7 == 0)
    with pytest.raises(errors.InputError, match=words):
        metrics.evaluate(scores.assign(**{column: scores[column].where(~few, value)}), bootstrap=20)


@pytest.mark.parametrize("scores", [None, [1, 2], scored().drop(columns="component"), pd.DataFrame()])
def test_what_is_no_score_table_is_refused(scores):
    with pytest.raises(errors.InputError, match=r"expected a score table|score table: missing columns"):
        metrics.evaluate(scores)


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(errors.InputError, match=r"seed: got .*, expected an integer >= 0"):
        metrics.evaluate(scored(), bootstrap=20, seed=seed)


def test_table1_gives_the_official_scores_that_follow_from_it():
    paper = metrics.paper_table1()
    omega = paper[paper["metric"] == "omega"].set_index("system")["value"]
    assert (omega * 100).round(2).to_dict() == {
        "paper_baseline_mse": 55.02,
        "paper_baseline_mahala": 56.99,
        "paper_oevaes": 53.41,
    }
    assert round(100 * value(paper, "hmean", system="paper_oevaes", machine="bearing"), 2) == 64.29
    assert round(100 * value(paper, "auc_target", system="paper_oevaes", machine="all"), 2) == 50.45
    assert set(paper["machine"]) == {
        "bearing",
        "fan",
        "gearbox",
        "slider",
        "valve",
        "ToyCar",
        "ToyTrain",
        "all",
    }


@pytest.mark.skipif(not TABLE1.is_file(), reason="the specification's table1.csv is not beside this checkout")
def test_table1_is_the_specifications():
    table = pd.read_csv(TABLE1).set_index(["machine", "metric"])
    assert len(table) * 3 == 63
    for machine, columns in metrics.PAPER_TABLE1.items():
        for system, three in zip(metrics.PAPER_SYSTEMS, columns, strict=True):
            assert [table.loc[(machine, metric), system] for metric in roc.THREE] == list(three)


# ---------------------------------------------------------------- paired comparison


def test_a_system_does_not_differ_from_its_copy():
    one = scored(systems=("a",))
    both = pd.concat([one, one.assign(system="b")])
    found = comparison.paired(both, "a", "b", SETTINGS, 0)
    assert tuple(found.columns) == comparison.PAIRED_COLUMNS
    assert (found[["value", "low", "high"]] == 0).all(axis=None) and (found["p"] == 1).all()


def test_a_small_but_steady_difference_is_seen_only_because_it_is_paired():
    one = scored(per_stratum=40, gain=1.0)
    better = one.assign(system="b", score=one["score"] + 0.3 * (one["label"] == "anomaly"))
    both = pd.concat([one, better])
    found = comparison.paired(both, "b", "a", SETTINGS, 0)
    table = metrics.table(both, SETTINGS, 0)
    difference = value(table, "omega", system="b") - value(table, "omega", system="a")
    assert value(found, "omega") == pytest.approx(difference, abs=1e-12)
    assert value(found, "omega", "low") > 0
    assert value(found, "omega", "p") == pytest.approx(2 / 201)
    assert value(table, "omega", "low", system="b") < value(
        table, "omega", "high", system="a"
    )  # the two intervals overlap
    mirrored = comparison.paired(both, "a", "b", SETTINGS, 0)
    np.testing.assert_allclose(mirrored["value"], -found["value"])
    np.testing.assert_allclose(mirrored["low"], -found["high"], atol=1e-12)
    np.testing.assert_allclose(mirrored["p"], found["p"])


def test_unrelated_equal_systems_rarely_seem_to_differ():
    settings = SETTINGS.replace(bootstrap=100)
    small = 0
    for i in range(60):
        scores = scored(machines=("fan",), systems=("a", "b"), per_stratum=25, train=0, rng_seed=i)
        small += value(comparison.paired(scores, "a", "b", settings, i), "omega", "p") < 0.1
    assert small <= 15  # 6 expected, standard deviation 2.3


def test_seeds_are_averaged_before_they_are_compared():
    scores = scored(systems=("a",), seeds=(0, 1, 2))
    scores = pd.concat([scores, scores[scores["seed"] == 0].assign(system="b")])
    table = metrics.table(scores, SETTINGS, 0)
    found = comparison.paired(scores, "a", "b", SETTINGS, 0)
    mean = table[(table["system"] == "a") & (table["metric"] == "omega")]["value"].mean()
    assert value(found, "omega") == pytest.approx(mean - value(table, "omega", system="b"), abs=1e-12)


def test_systems_that_cannot_be_compared_are_refused():
    scores = scored(systems=("baseline_mse", "baseline_knn"))
    with pytest.raises(errors.InputError, match="unknown system 'baseline_mes'; did you mean baseline_mse"):
        comparison.paired(scores, "baseline_mes", "baseline_knn", SETTINGS, 0)
    fewer = scores.drop(scores[(scores["system"] == "baseline_knn") & (scores["split"] == "test")].index[0])
    with pytest.raises(errors.InputError, match="baseline_mse and baseline_knn scored different test clips"):
        comparison.paired(fewer, "baseline_mse", "baseline_knn", SETTINGS, 0)


# ---------------------------------------------------------------- decisions


def test_threshold_is_the_quantile_of_the_gamma_that_made_the_scores():
    train = stats.gamma.rvs(3.0, loc=-2.0, scale=0.5, size=4000, random_state=0)
    threshold = thresholds.gamma_threshold(train, 0.9)
    assert threshold.method == "gamma"
    assert threshold.value == pytest.approx(stats.gamma.ppf(0.9, 3.0, loc=-2.0, scale=0.5), abs=0.04)
    small = thresholds.gamma_threshold(train * 1e-6 - 5, 0.9)
    assert small.value == pytest.approx(
        threshold.value * 1e-6 - 5, abs=1e-10
    )  # the unit of a score does not matter


@pytest.mark.parametrize("seed", range(8))
def test_about_a_tenth_of_fresh_normal_clips_is_flagged(seed):
    rng = np.random.default_rng(seed)
    draw = (rng.normal, rng.exponential, rng.lognormal, lambda size: -rng.gamma(2, size=size))[seed % 4]
    threshold = thresholds.gamma_threshold(draw(size=1000), 0.9)
    assert 0.06 < np.mean(draw(size=20000) > threshold.value) < 0.14


@pytest.mark.parametrize(
    "train",
    [
        np.zeros(50),
        np.full(1000, 0.1),
        np.arange(9.0),
        np.array([3.0]),
        np.r_[np.zeros(99), 1e6],
        np.repeat([0.0, 1.0, 2.0], 60),
    ],
)
def test_scores_without_a_shape_fall_back_to_their_quantile(train):
    threshold = thresholds.gamma_threshold(train, 0.9)
    assert threshold == (float(np.quantile(train, 0.9)), "empirical")


def test_scores_of_seen_clips_are_raised_to_those_of_unseen_ones_by_loops():
    rng = np.random.default_rng(0)
    unseen, domain = np.arange(60) % 5 == 0, np.where(np.arange(60) % 3, "source", "target")
    scores = rng.normal(size=60) - 4.0 * ~unseen + (domain == "target")
    gap, variance = [], []
    for name in ("source", "target"):
        new = [s for s, u, d in zip(scores, unseen, domain) if u and d == name]
        seen = [s for s, u, d in zip(scores, unseen, domain) if not u and d == name]
        gap.append(len(new) / unseen.sum() * (sum(new) / len(new) - sum(seen) / len(seen)))
        error = statistics.variance(seen) * (1 / len(new) + 1 / len(seen))
        variance.append((len(new) / unseen.sum()) ** 2 * error)
    raised = thresholds.as_unseen(scores, unseen, domain)
    np.testing.assert_array_equal(raised[unseen], scores[unseen])
    expected = sum(gap) * (1 - sum(variance) / sum(gap) ** 2)
    np.testing.assert_allclose(raised[~unseen] - scores[~unseen], expected, rtol=1e-12)
    for same in (-scores, np.zeros(60)):  # seen clips above unseen ones, or equal: nothing moves
        np.testing.assert_array_equal(thresholds.as_unseen(same, unseen, domain), same)
    for whole in (np.ones(60, bool), np.zeros(60, bool)):
        np.testing.assert_array_equal(thresholds.as_unseen(scores, whole, domain), scores)


@pytest.mark.parametrize("gap", [0.0, 0.5, 2.0])
def test_a_network_that_knows_its_training_clips_does_not_lower_its_threshold(gap):
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        unseen = np.arange(200) < 20
        scores = rng.gamma(6, size=200) - gap * 6**0.5 * ~unseen
        raised = thresholds.as_unseen(scores, unseen, np.full(200, "source"))
        limits = [thresholds.gamma_threshold(values, 0.9).value for values in (scores, raised)]
        found.append(stats.gamma.sf(limits, 6))
    before, after = np.mean(found, axis=0)
    assert after == pytest.approx(0.1, abs=0.03) and (before > 0.16 or gap == 0)


def test_false_alarms_equal_counting_clip_by_clip():
    scores = scored(seeds=(0, 1), systems=("multires", "oevae"), shift=1.0)
    own = scores["component"] == "score"
    seen = (scores["system"] == "oevae") & ~scores["clip"].str.contains("00[0-3].wav")
    unseen = (scores["split"] == "train") & ~seen
    decisions = metrics.decisions(scores, SETTINGS)
    found = metrics.false_alarms(scores, unseen, decisions).set_index(["system", "clips"])
    for system in ("multires", "oevae"):
        limit = decisions[decisions["system"] == system].set_index(["machine", "seed"])["threshold"]
        limit = limit[~limit.index.duplicated()]
        for clips in ("held out", "source", "target", "test"):
            names, alarms = set(), []
            for i, row in scores[own & (scores["system"] == system)].iterrows():
                test = row.split == "test" and clips in ("test", row.domain)
                if row.label == "normal" and (unseen[i] if clips == "held out" else test):
                    names.add(row["clip"])
                    alarms.append(row.score > limit[row.machine, row.seed])
            row = found.loc[(system, clips)]
            assert row["normals"] == len(names) and row["rate"] == pytest.approx(np.mean(alarms))
            assert row["low"] < row["rate"] < row["high"] or row["rate"] in (0, 1)
    rates = found["rate"].unstack()
    assert (rates["target"] > rates["source"]).all()
    none = metrics.false_alarms(scores, unseen & False, decisions).query("clips == 'held out'")
    assert (none["normals"] == 0).all() and none["rate"].isna().all()


def test_no_training_scores_are_refused():
    with pytest.raises(
        errors.InputError, match="threshold: got 0 training scores, expected at least one and all finite"
    ):
        thresholds.gamma_threshold([], 0.9)
    with pytest.raises(errors.InputError, match="threshold: got 2 training scores"):
        thresholds.gamma_threshold([0.0, np.nan], 0.9)


def test_decisions_equal_counting_clip_by_clip():
    scores = scored(gain=1.5, shift=0.7, components=("score", "alpha"))
    found = metrics.decisions(scores, SETTINGS)
    assert len(found) == 2 * 3
    for row in found.itertuples():
        part = scores[(scores["machine"] == row.machine) & (scores["component"] == "score")]
        train = part.loc[part["split"] == "train", "score"]
        assert row.threshold == thresholds.gamma_threshold(train, 0.9).value
        assert row.train_above == np.mean(train > row.threshold) and row.train_clips == 60
        test = part[(part["split"] == "test") & ((part["domain"] == row.domain) | (row.domain == "all"))]
        expected = oracle.decision_quality(test["score"] > row.threshold, test["label"] == "anomaly")
        assert (row.precision, row.recall, row.f1) == pytest.approx(expected, abs=1e-12)
        assert (row.normal, row.anomaly) == (
            (test["label"] == "normal").sum(),
            (test["label"] == "anomaly").sum(),
        )


def test_decisions_without_a_basis_are_nan():
    scores = scored()
    scores = scores[~((scores["machine"] == "fan") & (scores["split"] == "train"))]
    scores = scores[~((scores["machine"] == "valve") & (scores["domain"] == "target"))]
    scores.loc[(scores["machine"] == "valve") & (scores["split"] == "test"), "score"] = -100.0
    found = metrics.decisions(scores, SETTINGS).set_index(["machine", "domain"])
    assert (found.loc["fan", "method"] == "none").all()
    assert found.loc["fan", ["threshold", "precision", "recall", "f1", "train_above"]].isna().all(axis=None)
    assert found.loc[("valve", "target"), ["precision", "recall", "f1"]].isna().all()
    assert found.loc[("valve", "source"), ["precision", "recall", "f1"]].tolist() == [
        0,
        0,
        0,
    ]  # nothing flagged


def test_a_score_equal_to_the_threshold_is_not_flagged():
    scores = scored(machines=("fan",))
    scores["score"] = (scores["label"] == "anomaly").astype(
        float
    )  # all training and normal scores are 0, and so is the threshold
    found = metrics.decisions(scores, SETTINGS)
    assert (
        (found["method"] == "empirical").all()
        and (found["threshold"] == 0).all()
        and (found["train_above"] == 0).all()
    )
    assert (found[["precision", "recall", "f1"]] == 1).all(axis=None)


# ---------------------------------------------------------------- controls


def clip_rows(scores, level):
    clips = scores.drop_duplicates("clip")[["clip", "machine", "section", "split", "domain", "label"]].assign(
        path="x.wav"
    )
    return clips[list(schemas.CLIP_COLUMNS)].assign(level_db=level(clips))


def test_a_level_that_tells_the_label_is_shown():
    scores = scored(systems=("a",))
    clips = clip_rows(
        scores, lambda c: np.where(c["label"] == "anomaly", -20.0, -np.inf)
    )  # normals are digital silence
    found = metrics.controls(clips, scores, SETTINGS, 0)
    assert tuple(found.columns) == schemas.METRIC_COLUMNS
    level = found[found["system"] == "control_level"]
    assert level["value"].to_numpy() == pytest.approx(np.ones(len(level)))
    assert len(level) == 2 * 4 + 4


def test_shuffled_labels_stand_for_chance():
    scores = scored(systems=("a", "b"), gain=2.0, per_stratum=30, components=("score", "alpha"))
    clips = clip_rows(scores, lambda c: np.zeros(len(c)))
    found = metrics.controls(clips, scores, SETTINGS, 0)
    shuffled = found[found["system"] == "control_shuffled"]
    assert set(shuffled["component"]) == {"a", "b"}
    assert shuffled["value"].between(0.42, 0.58).all()
    assert ((shuffled["low"] < shuffled["value"]) & (shuffled["value"] < shuffled["high"])).all()
    ours = metrics.table(scores, SETTINGS, 0)
    assert value(ours, "omega", system="a", component="score") > value(
        shuffled, "omega", "high", component="a"
    )
    level = found[found["system"] == "control_level"]
    assert (level["value"] == 0.5).all()


def test_controls_without_a_level_are_refused():
    scores = scored()
    clips = clip_rows(scores, lambda c: np.zeros(len(c))).drop(columns="level_db")
    with pytest.raises(errors.InputError, match="clip table has no column level_db, needed by the controls"):
        metrics.controls(clips, scores, SETTINGS, 0)
