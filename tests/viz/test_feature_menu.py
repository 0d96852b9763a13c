"""The pair of a clip, every feature of a study's settings, and both faces of the menus."""

import numpy as np
import pandas as pd
import pytest

from asdlib.data.store import from_arrays
from asdlib.models import classifier, oevae
from asdlib.viz.widgets.feature_menu import FeatureMenu

RATE, SECONDS = 16000, 1.0
LOG_MEL = oevae.OEVAEFeatureSettings(n_fft=512, win_length=512, hop_length=256, n_mels=24)
BRANCHES = classifier.ClassifierSettings(
    branches=("fft", "mel", "stft256", "phase"), clip_seconds=1.0, n_fft=512, hop_length=256, n_mels=20
)


@pytest.fixture(scope="module")
def menu():
    rng = np.random.default_rng(0)
    rows = [("train", "source", "normal", "1"), ("train", "source", "normal", "2")]
    rows += [("train", "target", "normal", "2"), ("test", "source", "normal", "1")]
    rows += [("test", "source", "anomaly", "2"), ("test", "target", "anomaly", "2")]
    table = pd.DataFrame(rows, columns=["split", "domain", "label", "attr_speed"]).assign(machine="fan")
    table["clip"] = [f"fan/{i}" for i in range(len(table))]
    time = np.arange(round(RATE * SECONDS)) / RATE
    waves = [0.002 * rng.normal(size=len(time)) + 0.1 * np.sin(2 * np.pi * 1000 * time) for _ in rows]
    clips = from_arrays([np.clip(wave, -1, 1) for wave in waves], table)
    return FeatureMenu(clips.store, LOG_MEL, BRANCHES, pd.Series({"fan/4": 1.0, "fan/5": 3.0}))


def test_the_gravest_anomaly_comes_first_and_stands_beside_a_normal_clip_of_its_kind(menu):
    assert menu.ranked("fan").tolist()[:3] == [5, 4, 3]
    assert menu.partner(5) == 2 and menu.partner(4) == 1 and menu.partner(3) == 0
    assert "severity 3" in menu.words(5)


def test_every_feature_is_that_of_the_settings(menu):
    assert menu.names[:5] == ["log-mel", "fft", "mel", "stft256", "phase"] and len(menu.names) == 8
    shapes = {name: menu.feature(5, name).values.shape for name in menu.names}
    assert shapes["log-mel"] == (24, 63) and shapes["fft"] == (8000,) and shapes["mel"][0] == 20
    assert shapes["stft256"][0] == 129 and shapes["phase"][0] == 257
    other = FeatureMenu(menu.store, LOG_MEL.replace(n_mels=32), BRANCHES, menu.severities)
    assert other.feature(5, "log-mel").values.shape[0] == 32
    inner = FeatureMenu(menu.store, LOG_MEL, BRANCHES.replace(layers=("block2",)), menu.severities)
    np.testing.assert_array_equal(inner.feature(5, "fft").values, menu.feature(5, "fft").values)


@pytest.mark.parametrize("name", ["log-mel", "fft", "mel", "stft256"])
def test_a_tone_stands_at_its_frequency(menu, name):
    found = menu.feature(0, name)
    level = found.values if name == "fft" else found.values.mean(1)
    assert abs(found.hz[level.argmax()] - 1000) < 80


def test_both_faces_show_the_pair(menu):
    bundle, _ = menu.view()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/html"].count("<audio") == 2 and "second minus first" not in bundle["text/html"]
    assert (
        'alt="normal, target, train clip 2; anomaly, target, severity 3, test clip 5' in bundle["text/html"]
    )
    box = menu.view().widget
    machine, clip, feature = box.children[0].children
    before = box.children[1].value
    feature.value = "fft"
    assert "magnitude spectra" in box.children[1].value != before
    clip.value = 4
    assert "test clip 4" in box.children[1].value and machine.value == "fan"
