import numpy as np
import oracle
import pytest
from sklearn.neighbors import NearestNeighbors

from asdlib import errors
from asdlib.scoring import distances


@pytest.fixture
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(size=(37, 8)).astype(np.float32), rng.normal(size=(53, 8)).astype(np.float32)


def test_knn_equals_scikit_learn(sets, monkeypatch):
    test, train = sets
    monkeypatch.setattr(distances, "BLOCK_BYTES", 8 * 16 * 8 * 5)  # several blocks
    made = distances.knn_distances(test, train, k_max=4)
    expected, _ = (
        NearestNeighbors(n_neighbors=4, algorithm="brute")
        .fit(train.astype(float))
        .kneighbors(test.astype(float))
    )
    np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-9)
    for k in (1, 2, 4):
        np.testing.assert_allclose(distances.knn_score(made, k), expected[:, :k].mean(1))


@pytest.mark.parametrize("spare", [0, 12])
def test_copies_ties_and_a_far_origin_are_exact(spare, monkeypatch):
    """Where a float32 product cancels: references that are copies, lie on a grid of equal distances, or 1e4
    from the origin.
    """
    monkeypatch.setattr(distances, "SPARE", spare)
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(*[np.arange(5.0)] * 3), -1).reshape(-1, 3)
    near = rng.normal(size=(60, 3))
    for train in (
        np.repeat(near, 5, 0),
        grid,
        near * 1e-3 + 1e4,
        np.concatenate([near, near + 1e-6]),
        np.ones((40, 3)),
    ):
        train = train.astype(np.float32)
        test = np.concatenate([train[:7], train[:7] + np.float32(0.5)])
        made = distances.knn_distances(test, train, k_max=6)
        expected = np.sort(
            np.linalg.norm(test[:, None].astype(float) - train[None].astype(float), axis=2), 1
        )[:, :6]
        np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-11 * np.abs(train).max())


def test_the_search_is_a_float32_product_and_still_finds_the_nearest():
    rng = np.random.default_rng(3)
    train, test = (rng.normal(size=(n, 64)).astype(np.float32) for n in (700, 40))
    clip, parents = rng.integers(0, 50, 40), rng.integers(0, 50, (700, 2))
    made = distances.knn_distances(test, train, k_max=4, test_clip=clip, train_clip=parents)
    for i in range(len(test)):
        allowed = train[(parents != clip[i]).all(1)].astype(float)
        np.testing.assert_allclose(
            made[i], np.sort(np.linalg.norm(allowed - test[i].astype(float), axis=1))[:4], rtol=1e-12
        )


def test_no_test_clip_moves_another(sets):
    test, train = sets
    together = distances.knn_distances(test, train, k_max=2)
    alone = np.concatenate(
        [distances.knn_distances(test[i : i + 1], train, k_max=2) for i in range(len(test))]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-9)


def test_training_clips_do_not_see_their_own_segments(sets):
    _, train = sets
    clip = np.arange(len(train)) // 3
    made = distances.knn_distances(train, train, k_max=2, test_clip=clip, train_clip=clip)
    for i in range(len(train)):
        others = train[clip != clip[i]].astype(float)
        expected = np.sort(np.linalg.norm(others - train[i].astype(float), axis=1))[:2]
        np.testing.assert_allclose(made[i], expected, rtol=1e-8)


def test_a_reference_made_of_two_clips_is_left_out_for_both(sets):
    _, train = sets
    rng = np.random.default_rng(1)
    clip, parents = np.arange(len(train)) // 3, rng.integers(0, 18, (len(train), 2))
    made = distances.knn_distances(train, train, k_max=3, test_clip=clip, train_clip=parents)
    for i in range(len(train)):
        gaps = []
        for j in range(len(train)):
            if clip[i] not in parents[j]:
                gaps.append(np.linalg.norm(train[i].astype(float) - train[j].astype(float)))
        np.testing.assert_allclose(made[i], sorted(gaps)[:3], rtol=1e-7, atol=1e-7)
    twice = np.stack([clip, clip], axis=1)
    one = distances.knn_distances(train, train, k_max=2, test_clip=clip, train_clip=clip)
    np.testing.assert_array_equal(
        distances.knn_distances(train, train, k_max=2, test_clip=clip, train_clip=twice), one
    )


def test_mean_over_segments():
    np.testing.assert_allclose(
        distances.to_clips(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), 2), [2.0, 5.0]
    )


def test_mahalanobis_of_white_residuals_is_the_squared_length():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20000, 4))
    made = distances.mahalanobis(x[:5], distances.precision(x.T @ x, len(x)))
    np.testing.assert_allclose(made, (x[:5] ** 2).sum(1), rtol=0.05)


def test_refusals(sets):
    test, train = sets
    with pytest.raises(errors.InputError, match="got 53 training items, expected at least k = 60"):
        distances.knn_distances(test, train, k_max=60)
    with pytest.raises(errors.InputError, match="fewer than k = 1 training items from other clips"):
        distances.knn_distances(train[:2], train[:2], k_max=1, test_clip=np.zeros(2), train_clip=np.zeros(2))
    with pytest.raises(errors.InputError, match="expected \\(n, dim\\) with equal dim"):
        distances.knn_distances(test[:, :3], train, k_max=1)
    with pytest.raises(errors.InputError, match="no training embeddings given"):
        distances.knn_distances(test, train[:0], k_max=1)
    with pytest.raises(errors.InputError, match="NaN or infinite"):
        distances.knn_distances(test * np.nan, train, k_max=1)
    with pytest.raises(errors.InputError, match="covariance of 2 vectors is singular"):
        distances.precision(np.ones((4, 4)), 2)


# ---------------------------------------------------------------- standardized local density


def heavy(n, dim, seed=0):
    """Vectors of which a few lie far out, and whose dimensions have very different sizes."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, dim)) * rng.standard_t(2, size=(n, 1)) * 10.0 ** rng.uniform(-2, 2, dim)


@pytest.mark.parametrize(("k", "neighbors"), [(1, 1), (2, 2), (4, 3)])
def test_density_by_loops(k, neighbors):
    train, test = heavy(20, 6), heavy(9, 6, seed=1)
    references = distances.density_references(train, neighbors=neighbors)
    np.testing.assert_allclose(
        distances.density_scores(test, references, k=k),
        [oracle.standardized_density(x, list(train), k, neighbors) for x in test],
        rtol=1e-9,
    )


@pytest.mark.parametrize("spare", [0, 12])
def test_left_out_density_is_that_of_the_other_items(spare, monkeypatch):
    """Also where neighbors change as an outlier leaves the deviations, and block by block."""
    monkeypatch.setattr(distances, "SPARE", spare)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 8 * 60 * 4 * 7)
    for train in (heavy(60, 4), heavy(5, 3), np.repeat(heavy(20, 4), 2, 0), np.ones((30, 4))):
        made = distances.density_scores_left_out(train)
        expected = [
            distances.density_scores(
                train[i : i + 1], distances.density_references(np.delete(train, i, 0), neighbors=2)
            )[0]
            for i in range(len(train))
        ]
        np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-12)


def test_a_constant_dimension_does_not_count_and_a_unit_does_not_matter():
    train, test = heavy(30, 5), heavy(4, 5, seed=3)
    first = distances.density_scores(test, distances.density_references(train))
    scale = 10.0 ** np.arange(5)
    np.testing.assert_allclose(
        distances.density_scores(test * scale, distances.density_references(train * scale)), first, rtol=1e-9
    )
    more = [np.column_stack([x, np.full(len(x), 7.0)]) for x in (train, test)]
    np.testing.assert_allclose(
        distances.density_scores(more[1], distances.density_references(more[0])), first, rtol=1e-9
    )


def test_density_reaches_farther_from_a_sparse_domain():
    """One unit beyond a loose group is usual, one unit beyond a tight group is not."""
    rng = np.random.default_rng(0)
    tight, loose = rng.normal(0, 0.05, (40, 3)), rng.normal([90, 0, 0], 1.0, (10, 3))
    references = distances.density_references(np.concatenate([tight, loose]))
    near_tight, near_loose = distances.density_scores(np.array([[0, 1, 0], [90, 1, 0.0]]), references)
    assert near_tight > 2 * near_loose


def test_density_refuses_what_it_cannot_score():
    train = heavy(10, 3)
    with pytest.raises(errors.InputError, match="got 1 references, expected at least 2"):
        distances.density_references(train[:2])
    with pytest.raises(errors.InputError, match="got 9 references, expected at least 12"):
        distances.density_scores_left_out(train, k=12)
    with pytest.raises(errors.InputError, match="expected \\(n, dim\\) with equal dim"):
        distances.density_scores(train[:, :2], distances.density_references(train))
    with pytest.raises(errors.InputError, match="NaN or infinite"):
        distances.density_references(np.full((5, 2), np.nan))


# ---------------------------------------------------------------- Mahalanobis distance


@pytest.mark.parametrize("n", [5, 30])  # fewer items than dimensions, and more
def test_mahalanobis_by_loops_and_leave_one_out_by_refits(n):
    rng = np.random.default_rng(n)
    train, test = rng.normal(size=(n, 9)) @ rng.normal(size=(9, 9)), rng.normal(size=(4, 9))
    train[:, 3] = 2.5  # a constant dimension
    found = distances.mahalanobis_scores(test, distances.gaussian_references(train))
    np.testing.assert_allclose(found, [oracle.shrunk_mahalanobis(x, train) for x in test], rtol=1e-9)
    rest = [oracle.shrunk_mahalanobis(x, np.delete(train, i, 0)) for i, x in enumerate(train)]
    np.testing.assert_allclose(distances.mahalanobis_scores_left_out(train), rest, rtol=1e-8)


def test_mahalanobis_sees_what_breaks_a_correlation():
    """Two features that always rise together: one up and one down is far, both up by as much is near."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(200, 1))
    train = np.hstack([common, common]) + 0.1 * rng.normal(size=(200, 2))
    references = distances.gaussian_references(train, shrinkage=0.01)
    together, apart = distances.mahalanobis_scores(np.array([[1.0, 1.0], [1.0, -1.0]]), references)
    assert apart > 5 * together
    plain = distances.gaussian_references(train, shrinkage=1.0)
    np.testing.assert_allclose(
        *distances.mahalanobis_scores(np.array([[1.0, 1.0], [1.0, -1.0]]), plain), rtol=0.2
    )


def test_mahalanobis_refusals():
    with pytest.raises(errors.InputError, match="got 1 references, expected at least 2"):
        distances.gaussian_references(np.zeros((2, 3)))
    with pytest.raises(errors.InputError, match="equal dim"):
        distances.mahalanobis_scores(np.zeros((2, 3)), distances.gaussian_references(np.eye(4)))
