"""Areas under ROC curves against scikit-learn and against plain loops, on scores with and without ties."""

import numpy as np
import oracle
import pytest
from sklearn.metrics import roc_auc_score

from asdlib import errors
from asdlib.evaluation import roc


def draw(rng, n=None):
    """One machine: scores (with many ties, few, or none), domains and labels of every kind."""
    n = n or int(rng.integers(4, 90))
    smooth = rng.normal(size=n)
    scores = (smooth, rng.integers(0, 4, n).astype(float), np.round(smooth, 1), 1e9 + smooth)[
        int(rng.integers(0, 4))
    ]
    domain = rng.choice(["source", "target", "unknown"], n, p=[0.5, 0.4, 0.1])
    label = rng.choice(["normal", "anomaly", "unlabeled"], n, p=[0.5, 0.4, 0.1])
    return scores, domain, label


def two_samples(normal, anomaly, max_fpr=0.1, metric=0):
    """AUC (pAUC: metric 2) of anomalies against normals."""
    label = np.repeat(["normal", "anomaly"], [len(normal), len(anomaly)])
    return roc.grid(np.r_[normal, anomaly], np.full(len(label), "source"), label, max_fpr)[metric]


@pytest.mark.parametrize("seed", range(150))
def test_grid_is_the_official_definition(seed):
    rng = np.random.default_rng(seed)
    scores, domain, label = draw(rng)
    max_fpr = float(rng.choice([0.1, 0.1, 0.03, 0.37, 1.0]))
    np.testing.assert_allclose(
        roc.grid(scores, domain, label, max_fpr),
        oracle.official_metrics(scores, domain, label, max_fpr),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("seed", range(40))
def test_auc_and_pauc_are_pair_counting_and_the_trapezoid(seed):
    rng = np.random.default_rng(seed)
    normal, anomaly = (
        rng.integers(0, 9, rng.integers(1, 30)).astype(float),
        rng.integers(1, 12, rng.integers(1, 30)).astype(float),
    )
    max_fpr = float(rng.uniform(0.02, 1.0))
    assert two_samples(normal, anomaly) == pytest.approx(oracle.pair_auc(normal, anomaly), abs=1e-12)
    assert two_samples(normal, anomaly, max_fpr, 2) == pytest.approx(
        oracle.trapezoid_pauc(normal, anomaly, max_fpr), abs=1e-12
    )
    truth = np.repeat([0, 1], [len(normal), len(anomaly)])
    assert two_samples(normal, anomaly, metric=2) == pytest.approx(
        roc_auc_score(truth, np.r_[normal, anomaly], max_fpr=0.1), abs=1e-12
    )


def test_a_grid_equals_its_vectors_one_by_one():
    rng = np.random.default_rng(5)
    _, domain, label = draw(rng, 60)
    scores = np.round(rng.normal(size=(3, 160, 60)), 1)  # more than one block, tied rows
    scores[1] = rng.normal(size=(160, 60))  # and a block of rows without ties
    whole = roc.grid(scores, domain, label)
    assert whole.shape == (3, 160, 3)
    for i in range(3):
        for j in range(0, 160, 5):
            np.testing.assert_array_equal(whole[i, j], roc.grid(scores[i, j], domain, label))


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e-310, 1e300])
def test_scores_that_differ_in_their_last_bits_are_told_apart(scale):
    """Neighboring floats, both zeros, the smallest and the largest numbers."""
    rng = np.random.default_rng(3)
    for _ in range(40):
        _, domain, label = draw(rng, 50)
        steps = rng.integers(0, 40, 50)  # units in the last place; some are equal
        near = (np.array([scale]).view(np.int64) + steps).view(float)
        scores = np.where(rng.random(50) < 0.2, rng.choice([0.0, -0.0], 50), near)
        for found in (roc.grid(scores, domain, label), roc.grid(scores[None].repeat(2, 0), domain, label)[1]):
            np.testing.assert_allclose(
                found, oracle.official_metrics(scores, domain, label), rtol=0, atol=1e-12
            )


def test_equal_scores_are_chance_and_separated_scores_are_perfect():
    domain, label = np.repeat(["source", "target"], 20), np.tile(np.repeat(["normal", "anomaly"], 10), 2)
    np.testing.assert_allclose(roc.grid(np.zeros(40), domain, label), 0.5, atol=1e-15)
    np.testing.assert_allclose(roc.grid((label == "anomaly").astype(float), domain, label), 1.0, atol=1e-15)
    worst = roc.grid((label == "normal").astype(float), domain, label)
    np.testing.assert_allclose(worst, [0.0, 0.0, 0.5 * (1 - 0.005 / 0.095)], atol=1e-15)


def test_equal_sets_give_one_half():
    same = np.random.default_rng(0).normal(size=33)
    assert two_samples(same, same) == 0.5


def test_increasing_maps_change_nothing_and_minus_turns_the_auc():
    _, domain, label = draw(np.random.default_rng(3), 80)
    scores = np.random.default_rng(4).integers(-20, 20, 80) / 8.0
    plain = roc.grid(scores, domain, label)
    np.testing.assert_array_equal(plain, roc.grid(np.exp(scores / 2) * 3 - 7, domain, label))
    np.testing.assert_allclose(plain[:2] + roc.grid(-scores, domain, label)[:2], 1.0, atol=1e-12)


def test_source_normals_meet_the_anomalies_of_both_domains():
    scores = np.array([0.0, 1.0, 2.0, -1.0])
    found = roc.grid(
        scores,
        np.array(["source", "target", "source", "target"]),
        np.array(["normal", "normal", "anomaly", "anomaly"]),
    )
    np.testing.assert_allclose(
        found[:2], [0.5, 0.5]
    )  # one anomaly above, one below, although only one is of the same domain


def test_what_is_absent_is_nan():
    scores, domain = np.arange(6.0), np.repeat("source", 6)
    label = np.array(["normal", "anomaly"] * 3)
    assert np.isnan(roc.grid(scores, domain, label)).tolist() == [False, True, False]
    assert np.isnan(roc.grid(scores, np.repeat("unknown", 6), label)).tolist() == [True, True, False]
    assert np.isnan(roc.grid(scores, domain, np.repeat("unlabeled", 6))).all()
    assert np.isnan(roc.grid(scores, domain, np.repeat("normal", 6))).all()
    weights = roc.bootstrap_weights(domain, label, 5, 0)
    assert np.isnan(roc.bootstrap(scores, domain, label, weights)).all(0).tolist() == [False, True, False]
    assert np.isnan(roc.shuffled(scores, domain, np.repeat("anomaly", 6), 5, 0)).all()


def test_harmonic_is_the_plain_one_with_a_floor():
    values = np.random.default_rng(0).uniform(0, 1, 21)
    assert roc.harmonic(values) == pytest.approx(oracle.harmonic_mean(values), abs=1e-14)
    assert roc.harmonic([0.0, 0.5]) == pytest.approx(2 / (1 / np.finfo(float).eps + 2), rel=1e-12)
    assert roc.harmonic([0.5, np.nan]) == 0.5 and np.isnan(
        roc.harmonic([np.nan, np.nan])
    )  # what is missing does not count


# ---------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("seed", range(40))
def test_bootstrap_equals_metrics_of_the_written_out_resample(seed):
    rng = np.random.default_rng(1000 + seed)
    scores, domain, label = draw(rng, int(rng.integers(8, 60)))
    weights = roc.bootstrap_weights(domain, label, 6, seed)
    fast = roc.bootstrap(scores, domain, label, weights)
    for row, counts in zip(fast, weights, strict=True):
        np.testing.assert_allclose(
            row, oracle.resampled_metrics(scores, domain, label, counts), rtol=0, atol=1e-12
        )


def test_weights_of_one_give_the_point_value():
    for seed in range(20):
        scores, domain, label = draw(np.random.default_rng(seed))
        ones = np.ones((1, len(scores)), np.int16)
        np.testing.assert_allclose(
            roc.bootstrap(scores, domain, label, ones)[0], roc.grid(scores, domain, label), rtol=0, atol=1e-12
        )


def test_resamples_keep_every_stratum_and_repeat_by_seed():
    _, domain, label = draw(np.random.default_rng(2), 80)
    weights = roc.bootstrap_weights(domain, label, 300, 7)
    for name in set(domain):
        for kind in ("normal", "anomaly"):
            members = (domain == name) & (label == kind)
            assert (weights[:, members].sum(1) == members.sum()).all()
    assert not weights[:, label == "unlabeled"].any()
    np.testing.assert_array_equal(weights, roc.bootstrap_weights(domain, label, 300, 7))
    assert (weights != roc.bootstrap_weights(domain, label, 300, 8)).any()


def test_resample_counts_are_multinomial():
    weights = roc.bootstrap_weights(np.repeat("source", 40), np.repeat(["normal", "anomaly"], 20), 20000, 0)
    assert weights.mean(0) == pytest.approx(np.ones(40), abs=0.04)
    assert weights.var() == pytest.approx(1 - 1 / 20, abs=0.01)
    assert np.cov(weights[:, 0], weights[:, 1])[0, 1] == pytest.approx(-1 / 20, abs=0.03)


def test_intervals_cover_the_true_auc_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    domain, label = np.repeat("source", 100), np.repeat(["normal", "anomaly"], 50)
    truth = 0.7602499389065233  # Phi(1 / sqrt 2): normals N(0, 1), anomalies N(1, 1)
    hits = 0
    for trial in range(400):
        scores = rng.normal(size=100) + (label == "anomaly")
        weights = roc.bootstrap_weights(domain, label, 400, trial)
        low, high = np.quantile(roc.bootstrap(scores, domain, label, weights)[:, 0], [0.025, 0.975])
        hits += low <= truth <= high
    assert (
        0.90 <= hits / 400 <= 0.985
    )  # 0.95 within 3 standard errors of the 400 trials, and the percentile method's slight shortness


def test_shuffled_labels_are_chance_and_stay_within_their_domain():
    rng = np.random.default_rng(4)
    domain, label = np.repeat(["source", "target"], 60), np.tile(np.repeat(["normal", "anomaly"], 30), 2)
    scores = rng.normal(size=120) + 3 * (label == "anomaly")
    by_chance = roc.shuffled(scores, domain, label, 3000, 1)
    between = oracle.pair_auc(
        scores[domain == "source"], scores[domain == "target"]
    )  # half of the pairs are of different domains
    assert by_chance.mean(0) == pytest.approx([0.25 + between / 2, 0.75 - between / 2, 0.5], abs=0.005)
    np.testing.assert_array_equal(by_chance[:10], roc.shuffled(scores, domain, label, 3000, 1)[:10])
    shifted = scores + 100 * (
        domain == "target"
    )  # a domain apart: target normals stay above half of all anomalies whatever the shuffle
    assert roc.shuffled(shifted, domain, label, 200, 1)[:, :2].mean(0) == pytest.approx(
        [0.75, 0.25], abs=0.02
    )


@pytest.mark.parametrize("seed", range(10))
def test_shuffles_equal_the_official_metrics_of_some_labeling(seed):
    """With two clips per domain the labelings can be listed: every shuffle gives one of them."""
    rng = np.random.default_rng(seed)
    scores, domain = rng.integers(0, 3, 4).astype(float), np.array(["source", "source", "target", "target"])
    listed = [
        oracle.official_metrics(scores, domain, [*a, *b])
        for a in (["normal", "anomaly"], ["anomaly", "normal"])
        for b in (["normal", "anomaly"], ["anomaly", "normal"])
    ]
    found = roc.shuffled(scores, domain, np.array(["normal", "anomaly"] * 2), 60, seed)
    for row in found:
        assert min(np.abs(np.array(one) - row).max() for one in listed) < 1e-12
    for one in listed:
        assert min(np.abs(found - np.array(one)).max(1)) < 1e-12


# ---------------------------------------------------------------- refusals


def test_refusals():
    domain, label = np.repeat("source", 3), np.array(["normal", "anomaly", "normal"])
    with pytest.raises(
        errors.InputError, match="NaN or infinite values, expected finite values; did training diverge"
    ):
        roc.grid([0.0, np.nan, 1.0], domain, label)
    with pytest.raises(
        errors.InputError, match=r"shapes \(4,\), \(3,\) and \(3,\), expected one value each per clip"
    ):
        roc.grid(np.zeros(4), domain, label)


def test_a_large_machine_is_exact():
    n = 32767
    rng = np.random.default_rng(0)
    label = np.repeat(["normal", "anomaly"], [n // 2, n - n // 2])
    scores = rng.normal(size=n) + (label == "anomaly")
    truth = (label == "anomaly").astype(int)
    found = roc.grid(scores, np.repeat("target", n), label)
    assert found[1] == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found[2] == pytest.approx(roc_auc_score(truth, scores, max_fpr=0.1), abs=1e-12)
