"""Precision: what is set is taken, `auto` follows from what the machine has, and what it does to the scores
is less than chance does.
"""

import dataclasses

import numpy as np
import pytest
import soundfile
import torch
from sizes import SMALL, TINY, Context, detector_of

from asdlib.data import index, store
from asdlib.detectors import DETECTORS
from asdlib.detectors.base import detect
from asdlib.evaluation import roc
from asdlib.models import precision
from asdlib.scoring import fusion
from asdlib.studies import config

CPU = torch.device("cpu")
AUTO = config.StudySettings(precision="auto")


@pytest.mark.parametrize(
    "device, has, expected",
    [
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ("cpu", {"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ("cpu", {}, "float32"),  # not x86
        ("cuda", True, "bf16"),
        ("cuda", False, "float32"),
    ],
)
def test_auto_is_bf16_where_the_device_has_units_for_it(monkeypatch, device, has, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has is True or including_emulation
    )
    device = torch.device(device)
    for name in precision.NETWORKS:
        assert precision.of(name, AUTO, device) == expected
        for kind in precision.DTYPES:
            assert (
                precision.of(name, AUTO.replace(precision=kind), device, expected) == kind
            )  # what is set is taken
            assert precision.of(name, AUTO, device, kind) == kind  # and so is what another machine decided
    assert precision.of("autoencoder", AUTO, device) == "float32"


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    """Two machines whose anomalies overlap with what is normal: tones of a spread pitch, anomalies a little
    higher.
    """
    root, rng = tmp_path_factory.mktemp("hard"), np.random.default_rng(0)
    plan = [("train", "source", "normal", 16), ("train", "target", "normal", 4)]
    plan += [
        ("test", domain, label, 12) for domain in ("source", "target") for label in ("normal", "anomaly")
    ]
    for machine, base in (("pump", 400.0), ("saw", 700.0)):
        for split, domain, label, count in plan if machine == "pump" else plan[:2]:
            for i in range(count):
                hz = base * (1.15 if label == "anomaly" else 1.0) * rng.normal(1.0, 0.08)
                wave = 0.1 * np.sin(2 * np.pi * hz * np.arange(16000) / 16000) + 0.03 * rng.normal(size=16000)
                path = root / machine / split / f"section_00_{domain}_{split}_{label}_{i:04}_noAttribute.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, wave, 16000)
    cfg = config.StudySettings(oevae=TINY.replace(epochs=6, k_scales=()), classifier=SMALL.replace(epochs=3))
    return Context(
        cfg, store.open_store(*index.index([root]), tmp_path_factory.mktemp("store"), cfg.data), CPU, seed=3
    )


@pytest.mark.parametrize("name", ["oevae", "classifier"])
def test_precisions_agree_within_chance_and_each_repeats_itself(hard, name):
    tables = []
    for kind in ("bf16", "bf16", "float32"):
        context = dataclasses.replace(hard, cfg=hard.cfg.replace(precision=kind))
        machines = ["pump", "saw"] if name == "classifier" else ["pump"]
        tables.append(
            fusion.systems(
                detect(detector_of(DETECTORS[name], context), context.store, machines), context.cfg.fusion
            )
        )
    first, again, plain = tables
    np.testing.assert_array_equal(first["score"], again["score"])
    keep = (plain["component"] == "score") & (plain["split"] == "test")
    assert (first.loc[keep, "score"] != plain.loc[keep, "score"]).any()  # bf16 did compute in bf16
    domain, label = (plain.loc[keep, column].to_numpy() for column in ("domain", "label"))
    weights, scores = (
        roc.bootstrap_weights(domain, label, 1000, seed=0),
        [table.loc[keep, "score"].to_numpy() for table in (first, plain)],
    )
    values = [roc.grid(score, domain, label) for score in scores]
    tail = 0.025 / (2 * len(values[0]))  # 95 % for all of the intervals together (Bonferroni)
    for value, score in zip(values, reversed(scores)):
        low, high = np.quantile(roc.bootstrap(score, domain, label, weights), [tail, 1 - tail], axis=0)
        assert ((value >= low) & (value <= high)).all() and (high > low).all(), (value, low, high)
    assert 0.55 < values[1][0] < 0.999, values  # hard enough for the intervals to mean something
