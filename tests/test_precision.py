"""Precision: what is set is taken, what is measured is kept, and what it does to the scores is less than chance does."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from sizes import SMALL, TINY, Context, detector_of

from asdlib import audio, clips, config, fusion, precision, roc
from asdlib.detectors import DETECTORS, detect

CPU = torch.device("cpu")
AUTO = config.Study(precision="auto")


@pytest.fixture
def timed(monkeypatch):
    """A trial that says what it is told, and counts how often it was asked."""
    seconds, asked = {"float32": 1.0, "bf16": 0.5}, []
    monkeypatch.setattr(precision, "trial", lambda *words: asked.append(words) or seconds)
    return seconds, asked


def test_bf16_must_save_a_tenth():
    assert precision.faster({"float32": 1.0, "bf16": 0.89}) == "bf16"
    assert precision.faster({"float32": 1.0, "bf16": 0.95}) == "float32"  # a draw would fall with the noise


def test_what_is_set_is_taken_without_a_trial(timed, tmp_path):
    for kind in ("float32", "bf16"):
        assert precision.settled("oevae", dataclasses.replace(AUTO, precision=kind), CPU, tmp_path) == kind
    assert precision.settled("autoencoder", AUTO, CPU, tmp_path) == "float32"  # has no large network
    assert not timed[1] and not list(tmp_path.iterdir())


def test_the_first_answer_stands(timed, tmp_path, capsys):
    seconds, asked = timed
    assert precision.settled("oevae", AUTO, CPU, tmp_path) == "bf16"
    assert "float32 1 s, bf16 0.5 s on" in capsys.readouterr().out
    seconds["bf16"] = 2.0  # another machine, or a busy one
    assert precision.settled("oevae", AUTO, CPU, tmp_path) == "bf16" and len(asked) == 1
    assert precision.settled("classifier", AUTO, CPU, tmp_path) == "float32" and len(asked) == 2
    kept = tmp_path / "precision_oevae_cpu.json"
    facts = json.loads(kept.read_text())
    assert facts["seconds_per_step"] == {"float32": 1.0, "bf16": 0.5} and facts["torch"] == torch.__version__
    kept.write_text(kept.read_text()[:20])
    assert precision.settled("oevae", AUTO, CPU, tmp_path) == "float32" and json.loads(kept.read_text())["precision"] == "float32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precision_classifier_cpu.json", "precision_oevae_cpu.json"]


def test_of_two_that_measure_at_once_the_first_to_write_is_followed(tmp_path, monkeypatch):
    def slow(*words):
        (tmp_path / "precision_oevae_cpu.json").write_text(json.dumps({"precision": "float32"}))  # by the other one, meanwhile
        return {"float32": 1.0, "bf16": 0.5}

    monkeypatch.setattr(precision, "trial", slow)
    assert precision.settled("oevae", AUTO, CPU, tmp_path) == "float32"


@pytest.mark.parametrize("name", list(precision.PROBES))
def test_a_trial_runs_the_networks_of_the_study(name, context):
    threads = torch.get_num_threads()
    seconds = precision.trial(name, context.cfg, CPU)
    assert set(seconds) == set(precision.DTYPES) and min(seconds.values()) > 0 and torch.get_num_threads() == threads


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    """Two machines whose anomalies overlap with what is normal: tones of a spread pitch, anomalies a little higher."""
    root, rng = tmp_path_factory.mktemp("hard"), np.random.default_rng(0)
    plan = [("train", "source", "normal", 16), ("train", "target", "normal", 4)]
    plan += [("test", domain, label, 12) for domain in ("source", "target") for label in ("normal", "anomaly")]
    for machine, base in (("pump", 400.0), ("saw", 700.0)):
        for split, domain, label, count in plan if machine == "pump" else plan[:2]:
            for i in range(count):
                hz = base * (1.15 if label == "anomaly" else 1.0) * rng.normal(1.0, 0.08)
                wave = 0.1 * np.sin(2 * np.pi * hz * np.arange(16000) / 16000) + 0.03 * rng.normal(size=16000)
                path = root / machine / split / f"section_00_{domain}_{split}_{label}_{i:04}_noAttribute.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, 16000)
    cfg = config.Study(oevae=dataclasses.replace(TINY, epochs=6, k_scales=()), classifier=dataclasses.replace(SMALL, epochs=3))
    return Context(cfg, audio.open_store(*clips.index([root]), tmp_path_factory.mktemp("store"), cfg.data), CPU, seed=3)


@pytest.mark.parametrize("name", ["oevae", "classifier"])
def test_precisions_agree_within_chance_and_each_repeats_itself(hard, name):
    tables = []
    for kind in ("bf16", "bf16", "float32"):
        context = dataclasses.replace(hard, cfg=dataclasses.replace(hard.cfg, precision=kind))
        machines = ["pump", "saw"] if name == "classifier" else ["pump"]
        tables.append(fusion.systems(detect(detector_of(DETECTORS[name], context), context.store, machines), context.cfg.fusion))
    first, again, plain = tables
    np.testing.assert_array_equal(first["score"], again["score"])
    keep = (plain["component"] == "score") & (plain["split"] == "test")
    assert (first.loc[keep, "score"] != plain.loc[keep, "score"]).any()  # bf16 did compute in bf16
    domain, label = (plain.loc[keep, column].to_numpy() for column in ("domain", "label"))
    weights, scores = roc.bootstrap_weights(domain, label, 1000, seed=0), [table.loc[keep, "score"].to_numpy() for table in (first, plain)]
    values = [roc.grid(score, domain, label) for score in scores]
    for value, score in zip(values, reversed(scores)):
        low, high = np.quantile(roc.bootstrap(score, domain, label, weights), [0.025, 0.975], axis=0)
        assert ((value >= low) & (value <= high)).all() and (high > low).all(), (value, low, high)
    assert 0.55 < values[1][0] < 0.999, values  # hard enough for the intervals to mean something
