"""Multi-resolution density: against a slow second derivation, without test clips that see each other, and what
physics says of each view.
"""

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from sizes import detector_of, rows_of

import asdlib as asd
from asdlib import errors
from asdlib.data.store import Clips
from asdlib.detectors.multires import MultiResolution, MultiResolutionSettings

RATE = 16000


@pytest.fixture(scope="module")
def fitted(context):
    return detector_of(MultiResolution, context).fit(Clips(context.store, rows_of(context, "pump", "train")))


def test_scores_equal_a_slow_second_derivation(context):
    """Clips of two lengths, scored from their samples by loops in numpy alone."""
    train, test = rows_of(context, "pump", "train")[:8], rows_of(context, "pump", "test")[1:7]
    waves = [[context.store.int16(row) / 32768 for row in rows] for rows in (train, test)]
    assert [len({len(wave) for wave in part}) for part in waves] == [2, 2]
    new, own = oracle.multi_resolution(*waves)
    fitted = detector_of(MultiResolution, context).fit(Clips(context.store, train))
    made = fitted.components(Clips(context.store, test))["multires", "score"]
    np.testing.assert_allclose(made, new, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fitted.training_components()["multires", "score"], own, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fitted.decision_scores_, own, rtol=0, atol=1e-6)


def test_a_training_clip_is_scored_as_if_it_had_never_been_seen(context, fitted):
    train = rows_of(context, "pump", "train")
    own = fitted.training_components()
    for i in (0, 2, 12):
        without = detector_of(MultiResolution, context).fit(Clips(context.store, np.delete(train, i)))
        found = without.components(Clips(context.store, train[i : i + 1]))
        for view in fitted.settings.views:
            np.testing.assert_allclose(found["multires", view], own["multires", view][i], rtol=1e-9)


@pytest.mark.parametrize("backend", ["mahalanobis", "both"])
def test_another_backend_scores_the_same_features(context, fitted, backend):
    clips = Clips(context.store, rows_of(context, "pump", "test"))
    other = MultiResolution(backend=backend, device="cpu").fit(Clips(context.store, fitted.train_rows))
    np.testing.assert_array_equal(other.train, fitted.train)
    found, own = other.components(clips), other.training_components()
    z = []
    for i, view in enumerate(other.settings.views):
        name = ("multires", f"{view}_mahalanobis")
        train, test = (fitted.split(fitted._features(rows))[i] for rows in (fitted.train_rows, clips.rows))
        slow = [oracle.shrunk_mahalanobis(x, train) for x in test[:3]]
        np.testing.assert_allclose(found[name][:3], slow, rtol=1e-6)
        z.append((found[name] - own[name].mean()) / own[name].std())
        if backend == "both":
            density = fitted.components(clips)["multires", view]
            np.testing.assert_array_equal(found["multires", view], density)
            left_out = fitted.training_components()["multires", view]
            z.append((density - left_out.mean()) / left_out.std())
    np.testing.assert_allclose(found["multires", "score"], np.mean(z, axis=0), rtol=1e-9)


def test_loudness_says_nothing(context, fitted):
    row = rows_of(context, "pump", "test")[:1]
    loud = (context.store.int16(int(row[0])).astype(int) * 4).clip(-32768, 32767).astype(np.int16)
    again = asd.from_arrays([loud], pd.DataFrame({"machine": ["pump"], "split": ["test"]}))
    one, other = (
        fitted.components(clips)["multires", "score"] for clips in (Clips(context.store, row), again)
    )
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_a_pulse_of_another_speed_is_found_by_the_modulation_view():
    """Noise that swells 4 times per second against 7: the spectra are alike, the speed is not."""
    rng, t = np.random.default_rng(0), np.arange(3 * RATE) / RATE
    waves = [
        0.05 * rng.normal(size=len(t)) * (1.2 + np.sin(2 * np.pi * hz * t + rng.uniform(0, 6)))
        for hz in [4.0] * 24 + [7.0] * 8
    ]
    facts = pd.DataFrame({"split": ["train"] * 16 + ["test"] * 16})
    clips = asd.from_arrays(waves, facts)
    found = MultiResolution(device="cpu").fit(clips.train()).components(clips.test())
    usual, fast = found["multires", "modulation"][:8], found["multires", "modulation"][8:]
    assert fast.min() > 1.5 * usual.max()
    for view in ("mel256", "mel1024", "mel4096"):
        assert (
            fast.min() / usual.max() > found["multires", view][8:].min() / found["multires", view][:8].max()
        )
    assert found["multires", "score"][8:].min() > found["multires", "score"][:8].max()


@pytest.mark.parametrize(("rate", "seconds"), [(1000, 0.15), (8000, 0.2), (44100, 0.5)])
def test_short_clips_and_other_rates_are_scored(rate, seconds):
    """Clips shorter than the longest window are repeated; bands end at half the rate."""
    rng = np.random.default_rng(0)
    n = int(rate * seconds) + 1
    tones = [np.sin(2 * np.pi * 0.11 * (1 + (i > 9)) * np.arange(n)) for i in range(12)]
    waves = [0.1 * tone + 0.02 * rng.normal(size=n) for tone in tones]
    clips = asd.from_arrays(waves, pd.DataFrame({"split": ["train"] * 8 + ["test"] * 4}), sample_rate=rate)
    windows = {"n_fft": (1024, 2048, 4096), "n_mels": (16, 16, 16)} if rate > RATE else {}
    if rate < 8000:
        windows = {"n_fft": (64, 256, 1024), "n_mels": (8, 16, 32)}
    found = MultiResolution(device="cpu", **windows).fit(clips.train()).decision_function(clips.test())
    assert np.isfinite(found).all() and found[2:].min() > found[:2].max()


def test_equal_and_silent_training_clips_give_finite_scores():
    wave = np.random.default_rng(0).normal(size=RATE) * 0.1
    for train in ([wave] * 5, [np.zeros(RATE)] * 5, [wave] * 3 + [np.zeros(RATE)] * 2):
        clips = asd.from_arrays(
            [*train, wave, wave[::-1]], pd.DataFrame({"split": ["train"] * 5 + ["test"] * 2})
        )
        detector = MultiResolution(device="cpu").fit(clips.train())
        assert np.isfinite(detector.decision_scores_).all()
        assert np.isfinite(detector.decision_function(clips.test())).all()


def test_views_can_be_chosen(context):
    one = MultiResolution(n_fft=512, n_mels=20, modulation_groups=0, device="cpu")
    one.fit(Clips(context.store, rows_of(context, "saw", "train")))
    found = one.components(Clips(context.store, rows_of(context, "saw", "test")))
    assert set(found) == {("multires", "mel512"), ("multires", "score")}
    assert one.embed(Clips(context.store, rows_of(context, "saw", "test")))[0].shape == (16, 40)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_fft": (256, 1024)}, r"got \[256, 1024\] and \[32, 64, 128\], expected different windows"),
        ({"n_fft": (256, 256, 4096)}, "expected different windows and a number of bands for each"),
        ({"modulation_groups": 40}, "modulation_groups: got 40, expected at most the 32 bands"),
        ({"n_fft": (2, 1024, 4096)}, "setting n_fft: got 2, expected"),
        ({"neighbor": 2}, "unknown setting neighbor; did you mean neighbors"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(errors.InputError, match=words):
        MultiResolutionSettings(**change)


def test_too_few_training_clips_are_refused(context):
    train = rows_of(context, "pump", "train")
    with pytest.raises(errors.InputError, match="got 2 training clips, expected at least 3 and more than"):
        detector_of(MultiResolution, context).fit(Clips(context.store, train[:2]))
    with pytest.raises(errors.InputError, match=r"more than multires\.k = 20"):
        MultiResolution(k=20, device="cpu").fit(Clips(context.store, train))
    assert np.isfinite(
        MultiResolution(device="cpu").fit(Clips(context.store, train[:3])).decision_scores_
    ).all()


def test_windows_too_long_to_see_modulations_are_refused(context):
    slow = MultiResolution(n_fft=65536, n_mels=8, modulation_groups=4, device=torch.device("cpu"))
    with pytest.raises(errors.InputError, match="Hz, expected more than 1 Hz to resolve"):
        slow.fit(Clips(context.store, rows_of(context, "pump", "train")))
