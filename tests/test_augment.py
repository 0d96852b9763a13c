"""Mixup, FeatEx and SMOTE: labels and conditions move with the sound, and never where they must not."""

import numpy as np
import pytest
import torch
from imblearn.over_sampling import SMOTE

from asdlib import augment, errors


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixup_moves_the_label_with_the_sound():
    y = torch.eye(6)  # labels mixed as if they were sound
    mixed_x, mixed_y = augment.mixup(y.clone(), y, prob=1.0, generator=generator())
    torch.testing.assert_close(mixed_x, mixed_y)
    torch.testing.assert_close(mixed_y.sum(1), torch.ones(6))
    assert not torch.equal(mixed_y, y)


def test_mixup_is_the_weighted_pair_by_loops():
    x, y = torch.randn(12, 40), torch.eye(12)
    blend = augment.draw_mixup(12, prob=0.5, generator=generator(3))
    mixed, labels = blend.of(x), blend.of(y)
    for i in range(12):
        a, b, w = int(blend.first[i]), int(blend.second[i]), float(blend.weight[i])
        assert a == i
        np.testing.assert_allclose(mixed[i], w * x[a] + (1 - w) * x[b], atol=1e-6)
        assert abs(float(labels[i, i]) - (w if a != b else 1)) < 1e-6
    again = augment.mixup(x, y, prob=0.5, generator=generator(3))
    torch.testing.assert_close(again, (mixed, labels))


def test_mixup_probability_and_weights():
    blend = augment.draw_mixup(20000, prob=0.5, generator=generator())
    mixed = blend.weight < 1
    assert 0.48 < mixed.float().mean() < 0.52
    assert (
        abs(float(blend.weight[mixed].mean()) - 0.5) < 0.02
        and abs(float(blend.weight[mixed].var()) - 1 / 12) < 0.005
    )
    assert len(blend.second[mixed].unique()) == mixed.sum()  # a permutation: nobody is a partner twice
    none = augment.draw_mixup(50, prob=0.0, generator=generator())
    x = torch.randn(50, 7)
    assert torch.equal(none.of(x), x)


def test_beta_weights_have_the_moments_of_their_distribution():
    weight = augment.draw_mixup(20000, prob=1.0, beta=0.2, generator=generator()).weight
    reference = torch.distributions.Beta(0.2, 0.2)
    assert (
        abs(float(weight.mean()) - 0.5) < 0.02 and abs(float(weight.var()) - float(reference.variance)) < 0.01
    )
    assert 0 <= float(weight.min()) and float(weight.max()) <= 1


def test_reversed_partners_and_groups():
    blend = augment.draw_mixup(9, prob=1.0, partners="reversed", generator=generator())
    assert blend.second.tolist() == list(range(8, -1, -1))
    groups = torch.tensor([0, 1] * 32)
    blend = augment.draw_mixup(64, prob=1.0, groups=groups, generator=generator())
    assert torch.equal(groups[blend.second], groups)
    assert sorted(blend.second.tolist()) == list(range(64))
    assert (blend.second != blend.first).float().mean() > 0.8


def test_condition_moves_with_the_weight_and_never_across_machines():
    v = torch.tensor([1.0, 3.0, 5.0, float("nan")])
    valid = torch.tensor([True, True, True, False])
    machine = torch.tensor([0, 0, 1, 0])
    blend = augment.MixPairs(
        torch.tensor([0, 0, 0, 2, 3]), torch.tensor([1, 2, 3, 2, 3]), torch.tensor([0.25, 0.5, 0.5, 1.0, 1.0])
    )
    mixed, kept = blend.condition(v, valid, machine)
    assert kept.tolist() == [True, False, False, True, False]
    assert mixed.tolist() == [2.5, 0.0, 0.0, 5.0, 0.0]


def test_two_of_one_kind_stay_exactly_of_that_kind():
    """A mixture of two normal items has t = 1 exactly, whatever the weight: the VAE masks by equality."""
    blend = augment.draw_mixup(1000, prob=1.0, generator=generator())
    assert torch.equal(blend.of(torch.ones(1000)), torch.ones(1000))
    assert torch.equal(blend.of(torch.zeros(1000)), torch.zeros(1000))


def test_draws_repeat_by_seed():
    one, two, other = (augment.draw_mixup(64, prob=0.5, generator=generator(s)) for s in (1, 1, 2))
    assert torch.equal(one.weight, two.weight) and torch.equal(one.second, two.second)
    assert not torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_featex_by_loops(count):
    n, c = 40, 5
    branches = [
        torch.arange(n, dtype=torch.float32)[:, None] + 100 * b for b in range(count)
    ]  # an item's embedding is its number
    y = torch.rand(n, c).softmax(1)
    joined, labels = augment.featex(branches, y, prob=0.5, generator=generator(5))
    assert joined.shape == (n, count) and labels.shape == (n, (count + 1) * c)
    torch.testing.assert_close(labels.sum(1), torch.ones(n))
    assert torch.equal(joined[:, 0], branches[0][:, 0])  # the first branch stays
    exchanged = 0
    for i in range(n):
        taken = [int(joined[i, b]) - 100 * b for b in range(count)]  # whose embedding stands there
        if labels[i, :c].sum() > 0.5:
            assert taken == [i] * count
            torch.testing.assert_close(labels[i], torch.cat([y[i], torch.zeros(count * c)]))
        else:
            exchanged += 1
            torch.testing.assert_close(
                labels[i], torch.cat([torch.zeros(c), *(y[taken[b]] / count for b in range(count))])
            )
    assert 10 < exchanged < 30


def test_featex_permutations_are_whole_and_independent():
    n = 64
    branches = [torch.arange(n, dtype=torch.float32)[:, None]] * 3
    joined, _ = augment.featex(branches, torch.eye(n), prob=1.0, generator=generator())
    assert sorted(joined[:, 1].tolist()) == sorted(joined[:, 2].tolist()) == list(range(n))
    assert not torch.equal(joined[:, 1], joined[:, 2])
    kept, labels = augment.featex(branches, torch.eye(n), prob=0.0, generator=generator())
    assert torch.equal(kept, torch.cat(branches, 1)) and torch.equal(labels[:, :n], torch.eye(n))


def domains(source: int, target: int) -> np.ndarray:
    return np.array(["source"] * source + ["target"] * target)


def test_smote_with_one_item_per_clip_is_the_library_s():
    x = np.random.default_rng(0).normal(size=(60, 5))
    blend = augment.smote(x, domains(50, 10), np.arange(60), ratio=0.5, k=3, seed=7)
    library, _ = SMOTE(sampling_strategy=0.5, k_neighbors=3, random_state=7).fit_resample(x, domains(50, 10))
    np.testing.assert_allclose(blend.of(x), library[60:], atol=1e-6)


def test_smote_size_of_the_field():
    """10 target clips beside 990 at ratio 0.2: 198 target items in all (METHOD 4.13)."""
    x = np.random.default_rng(0).normal(size=(1000, 3))
    assert len(augment.smote(x, domains(990, 10), np.arange(1000), ratio=0.2, k=2, seed=0)) == 188


def test_smote_never_interpolates_within_a_clip():
    rng = np.random.default_rng(1)
    clips = np.repeat(np.arange(16), 8)
    x = rng.normal(size=(16, 1, 4)).repeat(8, 1).reshape(128, 4) + 1e-3 * rng.normal(
        size=(128, 4)
    )  # a clip's own segments are nearest
    blend = augment.smote(
        torch.from_numpy(x).reshape(128, 2, 2), domains(96, 32), clips, ratio=1.0, k=5, seed=0
    )
    parents = blend.parents(clips)
    assert len(blend) == 64 and (parents[:, 0] != parents[:, 1]).all()
    assert (parents >= 12).all()  # and stays in its class
    assert float(blend.weight.min()) >= 0.5  # the heavier parent stands first


def test_smote_neighbors_are_the_nearest_strangers():
    x = np.array([[0.0], [0.1], [1.0], [1.1], [5.0], [9.0], [9.5], [9.7]])
    blend = augment.smote(x, ["t"] * 4 + ["s"] * 4, [0, 0, 1, 2, 3, 4, 5, 6], ratio=1.0, k=1, seed=0)
    assert len(blend) == 0  # classes of equal size: nothing to do
    x = np.vstack([x, x + 100])
    blend = augment.smote(x, ["t"] * 4 + ["s"] * 12, [0, 0, 1, 2, *range(3, 15)], ratio=1.0, k=1, seed=0)
    pairs = {tuple(sorted(p)) for p in zip(blend.first.tolist(), blend.second.tolist())}
    assert pairs <= {(0, 2), (1, 2), (2, 3)}  # 0 and 1 are of one clip


def test_smote_condition_lies_between_its_parents():
    x = torch.randn(40, 6)
    v = torch.arange(40.0)
    blend = augment.smote(x, domains(30, 10), np.arange(40), ratio=1.0, k=4, seed=2)
    new, kept = blend.condition(v, torch.ones(40, dtype=torch.bool), torch.zeros(40))
    low, high = torch.minimum(v[blend.first], v[blend.second]), torch.maximum(v[blend.first], v[blend.second])
    assert kept.all() and (new >= low - 1e-4).all() and (new <= high + 1e-4).all()
    again = augment.smote(x, domains(30, 10), np.arange(40), ratio=1.0, k=4, seed=2)
    assert torch.equal(again.weight, blend.weight)


def test_nothing_to_grow_gives_nothing():
    x = np.zeros((10, 2))
    assert len(augment.smote(x, ["source"] * 10, np.arange(10), ratio=1.0, k=2, seed=0)) == 0
    assert len(augment.smote(x, domains(9, 1), np.arange(10), ratio=0.0, k=2, seed=0)) == 0


def test_refusals():
    g = generator()
    with pytest.raises(errors.InputError, match="all 8 items are from one clip, expected at least 2 clips"):
        augment.smote(np.zeros((28, 2)), domains(20, 8), [*range(20), *[20] * 8], ratio=1.0, k=2, seed=0)
    with pytest.raises(
        errors.InputError,
        match=r"SMOTE of target: got k = 5, but an item has only 3 neighbors in other clips; set smote\.k to at most 3",
    ):
        augment.smote(np.zeros((24, 2)), domains(20, 4), np.arange(24), ratio=1.0, k=5, seed=0)
    with pytest.raises(errors.InputError, match="got 3 items, 2 class labels and 3 clip names"):
        augment.smote(np.zeros((3, 2)), ["a", "b"], [0, 1, 2], ratio=1.0, k=1, seed=0)
    with pytest.raises(errors.InputError, match=r"ratio = 2 and k = 1, expected ratio in \[0, 1\]"):
        augment.smote(np.zeros((2, 2)), ["a", "b"], [0, 1], ratio=2, k=1, seed=0)
    with pytest.raises(errors.InputError, match="FeatEx needs at least 2 branches, got 1"):
        augment.featex([torch.zeros(4, 2)], torch.eye(4), prob=0.5, generator=g)
    with pytest.raises(errors.InputError, match=r"prob = 1\.5"):
        augment.draw_mixup(4, prob=1.5, generator=g)
    with pytest.raises(errors.InputError, match="did you mean reversed"):
        augment.draw_mixup(4, prob=1.0, partners="reverse", generator=g)
    with pytest.raises(errors.InputError, match="got 5 items and 4 labels"):
        augment.mixup(torch.zeros(5, 3), torch.eye(4), prob=0.5, generator=g)
    with pytest.raises(errors.InputError, match="'reversed' does not support groups"):
        augment.draw_mixup(4, prob=1.0, partners="reversed", groups=torch.zeros(4), generator=g)
