"""Back-ends: each against loops, leave-clip-out against refits without the clip, and what they are
physically.
"""

import numpy as np
import oracle
import pytest

from asdlib import errors
from asdlib.models import classifier
from asdlib.scoring import backends

SETTINGS = classifier.ClassifierSettings(kmeans=5, density_neighbors=3)
NAMES = list(backends.BACKENDS)


def machine(n=40, n_target=6, dim=7, seed=0):
    """Embeddings of one machine, target clips apart from the source, lengths of every size."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)) + 3 * rng.normal(size=dim)
    target = np.arange(n) >= n - n_target
    x[target] += rng.normal(size=dim)
    return (x * rng.uniform(0.1, 10, (n, 1))).astype(np.float32), target


@pytest.fixture
def sets():
    train, target = machine()
    return train, target, np.random.default_rng(1).normal(size=(9, 7)).astype(np.float32)


def make(name, train, target, settings=SETTINGS, seed=0):
    return backends.BACKENDS[name](train, target, settings, seed)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_of_the_clip_alone_and_where_unit_vectors_are_compared_of_its_direction(name, sets):
    train, target, test = sets
    backend = make(name, train, target)
    together = backend(test)
    assert together.shape == (9,) and together.dtype == np.float64 and (together >= 0).all()
    np.testing.assert_allclose(
        np.concatenate([backend(test[i : i + 1]) for i in range(9)]), together, rtol=1e-9
    )
    louder = (
        make(name, 1000 * train, target)(1000 * test)
        if name == "standardized_density"
        else backend(1000 * test)
    )
    np.testing.assert_allclose(louder, together, rtol=1e-6)
    np.testing.assert_array_equal(make(name, train, target)(test), together)  # same seed


@pytest.mark.parametrize("name", NAMES)
def test_a_training_clip_is_near_itself_but_not_leave_clip_out(name, sets):
    train, target, _ = sets
    backend = make(name, train, target)
    left_out, seen = backend.training(), backend(train)
    assert left_out.shape == (40,) and (left_out >= 0).all()
    assert left_out.mean() > seen.mean() and (left_out[target] > seen[target]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_far_training_clip_leaves_no_trace_of_itself(name, sets):
    """An outlier among the training clips scores as a test clip that was never there, whatever its domain."""
    train, target, _ = sets
    for place in (3, 36):  # a source clip, a target clip
        odd = train.copy()
        odd[place] = -5 * train.mean(0)
        alone = make(name, np.delete(odd, place, 0), np.delete(target, place))(odd[place : place + 1])[0]
        found = make(name, odd, target).training()[place]
        tolerance = {"kmeans": 0.05, "smote_knn": 0.05}.get(
            name, 1e-9
        )  # other draws of folds and of synthetic items
        assert found == pytest.approx(alone, rel=tolerance)


def test_nearest_and_local_density_leave_out_exactly(sets):
    train, target, _ = sets
    for name in ("knn", "local_density", "standardized_density"):
        found = make(name, train, target).training()
        for i in range(0, 40, 3):
            rest = make(name, np.delete(train, i, 0), np.delete(target, i))
            assert found[i] == pytest.approx(rest(train[i : i + 1])[0], rel=1e-6)


def test_nearest_by_loops(sets):
    train, target, test = sets
    np.testing.assert_allclose(make("knn", train, target)(test), oracle.nearest_unit(test, train), rtol=1e-6)


def test_local_density_by_loops(sets):
    train, target, test = sets
    np.testing.assert_allclose(
        make("local_density", train, target)(test), oracle.local_density(test, train, 3), rtol=1e-6
    )


def test_local_density_favors_the_sparse_group():
    """Source clips lie ten times denser than target clips: the same step away from them is ten times as
    strange.
    """
    angles = np.concatenate([np.linspace(0, 0.19, 20), 2 + np.linspace(0, 0.9, 10)])
    train = np.stack([np.cos(angles), np.sin(angles)], 1)
    test = np.array([[np.cos(a), np.sin(a)] for a in (0.19 + 0.1, 2.9 + 0.1)])
    target = np.arange(30) >= 20
    plain, rescaled = make("knn", train, target)(test), make("local_density", train, target)(test)
    assert plain[0] == pytest.approx(plain[1], rel=1e-3) and rescaled[0] > 8 * rescaled[1]


def test_kmeans_is_the_smallest_cosine_distance_to_unit_centers_and_target_clips(sets):
    train, target, test = sets
    backend = make("kmeans", train, target)
    assert backend.centers.shape == (5, 7)
    np.testing.assert_allclose(
        np.linalg.norm(backend.centers, axis=1), 1
    )  # a true cosine distance, unlike the cited code
    np.testing.assert_allclose(
        backend(test), oracle.smallest_cosine_distance(test, [*backend.centers, *train[target]]), rtol=1e-6
    )
    np.testing.assert_allclose(backend(train[target]), 0, atol=1e-6)


def test_with_a_center_per_clip_kmeans_is_the_nearest_clip(sets):
    train, target, test = sets
    many = classifier.ClassifierSettings(kmeans=100)
    np.testing.assert_allclose(
        make("kmeans", train, target, many)(test), make("knn", train, target)(test) ** 2 / 2, rtol=1e-5
    )


def test_kmeans_folds_hold_every_source_clip_out_once(sets, monkeypatch):
    train, target, _ = sets
    backend = make("kmeans", train, target)
    fitted = []
    monkeypatch.setattr(backend, "_fit", lambda chosen: fitted.append(chosen) or np.empty((0, 7)))
    backend.training()
    assert len(fitted) == backends.FOLDS and not any((chosen & target).any() for chosen in fitted)
    assert (sum(~chosen & ~target for chosen in fitted) == np.where(target, 0, 1)).all()


def test_smote_adds_target_items_on_the_sphere_between_target_clips():
    train, target = machine(n=100, n_target=5)
    backend = make("smote_knn", train, target)
    made, parents = backend.references[100:], backend.parents[100:]
    assert len(made) == int(0.2 * 95) - 5 and target[parents].all() and (parents[:, 0] != parents[:, 1]).all()
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-6)
    scores = backend.training()
    for i in np.flatnonzero(target):  # neither itself nor any child
        allowed = [r for r, p in zip(backend.references, backend.parents) if i not in p]
        assert scores[i] == pytest.approx(oracle.nearest_unit(train[i : i + 1], allowed)[0], rel=1e-6)
    assert (backend(train) <= make("knn", train, target)(train) + 1e-7).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_target", [0, 1, 2, 12])
def test_any_number_of_target_clips(name, n_target):
    train, target = machine(n=12, n_target=n_target)
    backend = make(name, train, target)
    assert np.isfinite(backend(train)).all() and np.isfinite(backend.training()).all()


@pytest.mark.parametrize("name", NAMES)
def test_copies_among_the_training_clips_stay_finite(name):
    train, target = machine(n=12, n_target=3)
    train[:9] = train[0]
    backend = make(name, train, target)
    assert np.isfinite(backend(train[5:])).all() and np.isfinite(backend.training()).all()


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name, sets):
    train, target, test = sets
    with pytest.raises(
        errors.InputError,
        match="back-end got 2 training clips with 2 domain labels, expected at least 3 clips of one machine",
    ):
        make(name, train[:2], target[:2])
    with pytest.raises(errors.InputError, match="NaN or infinite"):
        make(name, train * np.nan, target)
    with pytest.raises(errors.InputError, match="equal dim"):
        make(name, train, target)(test[:, :3])
