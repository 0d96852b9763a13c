"""Pretrained encoder as a detector: against a slow second derivation, without test clips that see each other,
and what is computed once. The encoder has random weights of the real shape (`sizes.RandomYAMNet`).
"""

import numpy as np
import pandas as pd
import pytest
from sizes import RandomYAMNet, detector_of, rows_of

import asdlib as asd
from asdlib import errors
from asdlib.analysis import projection
from asdlib.data.store import Clips
from asdlib.detectors.pretrained import Pretrained, PretrainedSettings
from asdlib.models import encoders
from asdlib.studies import model_card, study

RATE = 16000


@pytest.fixture(scope="module")
def fitted(context):
    return detector_of(Pretrained, context).fit(Clips(context.store, rows_of(context, "pump", "train")))


def test_scores_equal_a_slow_second_derivation(context, fitted):
    train, test = (
        fitted.embed(Clips(context.store, rows_of(context, "pump", split)))[0].astype(float)
        for split in ("train", "test")
    )
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))

    def score(one, references):
        divided = []
        for i, reference in enumerate(references):
            others = sorted(np.linalg.norm(reference - x) for j, x in enumerate(references) if j != i)
            divided.append(np.linalg.norm(one - reference) / np.mean(others[:4]))
        return min(divided)

    new = fitted.components(Clips(context.store, rows_of(context, "pump", "test")))["pretrained", "score"]
    np.testing.assert_allclose(new, [score(one, train) for one in test], rtol=1e-4)
    own = [score(train[i], np.delete(train, i, axis=0)) for i in range(len(train))]
    np.testing.assert_allclose(fitted.training_components()["pretrained", "score"], own, rtol=1e-4)


def test_other_tones_lie_farther_away(context, fitted):
    test = Clips(context.store, rows_of(context, "pump", "test"))
    scores, label = fitted.decision_function(test), test.table["label"].to_numpy()
    assert scores[label == "anomaly"].min() > scores[label == "normal"].max()


def test_loudness_says_nothing(context, fitted):
    row = rows_of(context, "pump", "test")[:1]
    loud = (context.store.int16(int(row[0])).astype(int) * 4).clip(-32768, 32767).astype(np.int16)
    again = asd.from_arrays([loud], pd.DataFrame({"machine": ["pump"], "split": ["test"]}))
    one, other = (fitted.embed(clips)[0] for clips in (Clips(context.store, row), again))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_sound_is_embedded_once_and_kept_with_the_scores(context, fitted, tmp_path, monkeypatch):
    test = Clips(context.store, rows_of(context, "pump", "test"))
    scores = fitted.components(test)["pretrained", "score"]
    fitted.save(tmp_path)
    seen = []
    forward = RandomYAMNet.forward
    monkeypatch.setattr(RandomYAMNet, "forward", lambda self, wave: seen.append(1) or forward(self, wave))
    again = Pretrained.load(tmp_path, Clips(context.store, rows_of(context, "pump", "train")), device="cpu")
    np.testing.assert_array_equal(again.components(test)["pretrained", "score"], scores)
    assert not seen
    other = [context.store.int16(row) for row in test.rows[:2]] + [np.roll(context.store.int16(0), 99)]
    facts = pd.DataFrame({"machine": ["pump"] * 3, "split": ["test"] * 3})
    found = again.components(asd.from_arrays(other, facts))["pretrained", "score"]
    assert len(seen) == 1  # two sounds are known, wherever they stand
    np.testing.assert_array_equal(found[:2], scores[:2])


@pytest.mark.parametrize(("rate", "seconds"), [(8000, 0.3), (44100, 1.5)])
def test_short_clips_and_other_rates_are_scored(rate, seconds):
    rng, t = np.random.default_rng(0), np.arange(int(rate * seconds)) / rate
    waves = [
        0.1 * np.sin(2 * np.pi * (800 + 1200 * (i > 7)) * t) + 0.02 * rng.normal(size=len(t))
        for i in range(10)
    ]
    clips = asd.from_arrays(waves, pd.DataFrame({"split": ["train"] * 6 + ["test"] * 4}), sample_rate=rate)
    found = Pretrained(device="cpu").fit(clips.train()).decision_function(clips.test())
    assert np.isfinite(found).all() and found[2:].min() > found[:2].max()


def test_equal_and_silent_training_clips_give_finite_scores():
    wave = np.random.default_rng(0).normal(size=RATE) * 0.1
    for train in ([wave] * 4, [np.zeros(RATE)] * 4):
        facts = pd.DataFrame({"split": ["train"] * 4 + ["test"] * 2})
        clips = asd.from_arrays([*train, wave, np.zeros(RATE)], facts)
        detector = Pretrained(device="cpu").fit(clips.train())
        assert np.isfinite(detector.decision_scores_).all()
        assert np.isfinite(detector.decision_function(clips.test())).all()


def test_too_few_training_clips_are_refused(context):
    with pytest.raises(errors.InputError, match="back-end got 2 training clips with 2 domain labels"):
        detector_of(Pretrained, context).fit(Clips(context.store, rows_of(context, "pump", "train")[:2]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": "yamet"}, "setting encoder: got 'yamet', expected one of 'yamnet', 'beats'"),
        ({"encoder": "beats"}, "expected the weights file of beats and its SHA-256 \\(sha256sum\\); github"),
        ({"encoder": "beats", "weights": "BEATs.pt"}, "got 'BEATs.pt' and '', expected the weights file"),
        ({"neighbors": 0}, "setting neighbors: got 0, expected a number from 1 to 100"),
    ],
)
def test_impossible_settings_are_refused(change, words):
    with pytest.raises(errors.InputError, match=words):
        PretrainedSettings(**change)


def test_a_missing_extra_stops_the_studies_that_need_it_and_no_others(monkeypatch, tmp_path):
    monkeypatch.setattr(encoders.YAMNet, "file", classmethod(missing))
    monkeypatch.setitem(encoders.ENCODERS, "yamnet", encoders.YAMNet)
    with pytest.raises(errors.InputError, match="the extra is not here"):
        study.load("smoke", ["systems=['baseline_knn', 'pretrained']"])
    with pytest.raises(errors.InputError, match="the extra is not here"):
        Pretrained()
    assert study.load("smoke", []).pretrained == PretrainedSettings()


def missing(cls, path):
    raise errors.InputError("the extra is not here")


def test_the_model_card_states_the_license(context):
    from studies.test_model_card import study as run_of

    run, *tables = run_of(context, context.store.clips)
    run.cfg = run.cfg.model_copy(update={"systems": ("baseline_mse", "pretrained")})
    assert "License of the pretrained encoder: YAMNet by Google (Apache" in model_card.text(run, *tables)


def test_a_map_has_a_place_for_every_clip(context, fitted):
    space = projection.detector_space(fitted, "pump")
    assert space.name == "pretrained pump" and space.embedding.shape == (29, 2048)
    assert (context.store.clips["machine"].iloc[space.rows] == "pump").all() and not space.segmented
