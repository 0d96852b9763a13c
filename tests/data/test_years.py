"""Trees in the layouts of the challenge's years, from folders to decoded clips; two channels and supplemental
recordings of the last ones.
"""

import json
import re

import numpy as np
import pytest
import soundfile
import torch

from asdlib import cli, errors
from asdlib.data import decode, download, index
from asdlib.data.store import load_dcase, open_store
from asdlib.detectors import nearest
from asdlib.evaluation import metrics

BOTH = ("normal", "anomaly")
YEARS = {  # files, and (machine, section, split, domain, label, attributes) of some of them
    2020: (
        [f"ToyCar/train/normal_id_0{i}_00000000.wav" for i in (1, 2)]
        + [f"ToyCar/test/{label}_id_01_00000000.wav" for label in BOTH],
        {"ToyCar/test/anomaly_id_01_00000000.wav": ("01", "source", "anomaly", {})},
    ),
    2021: (
        ["fan/train/section_00_source_train_normal_0000_strength_1_ambient.wav"]
        + [f"fan/{d}_test/section_00_{d}_test_{label}_0000.wav" for d in ("source", "target") for label in BOTH],
        {"fan/test/section_00_target_test_anomaly_0000.wav": ("00", "target", "anomaly", {})},
    ),
    2022: (
        ["fan/train/section_02_source_train_normal_0000_m-n_W.wav"]
        + [f"fan/test/section_02_target_test_{label}_0000_m-n_X.wav" for label in BOTH],
        {
            "fan/test/section_02_target_test_anomaly_0000_m-n_X.wav": ("02", "target", "anomaly", {"m-n": "X"}),
        },
    ),
    2023: (
        [f"bearing/train/section_00_{d}_train_normal_0000_vel_6_loc_B.wav" for d in ("source", "target")]
        + [f"bandsaw/{place}" for place in ("train/section_00_source_train_normal_0000_vel_1.wav", "test/section_00_0000.wav")],
        {
            "bearing/train/section_00_target_train_normal_0000_vel_6_loc_B.wav": (
                "00", "target", "normal", {"vel": "6", "loc": "B"},
            ),
            "bandsaw/test/section_00_0000.wav": ("00", "unknown", "unlabeled", {}),
        },
    ),
    2024: (
        ["gearbox/train/section_00_source_train_normal_0000_noAttribute.wav"]
        + [f"gearbox/test/section_00_source_test_{label}_0000_noAttribute.wav" for label in BOTH]
        + ["RoboticArm/train/section_00_source_train_normal_0000_weight15_BckgF.wav", "RoboticArm/test/section_00_0000.wav"],
        {
            "RoboticArm/train/section_00_source_train_normal_0000_weight15_BckgF.wav": (
                "00", "source", "normal", {"weight": "15", "Bckg": "F"},
            ),
        },
    ),
    2025: (
        [
            "ToyPet/train/section_00_source_train_normal_0000_noAttribute.wav",
            "ToyPet/test/section_00_0000.wav",
            "ToyPet/supplemental/section_00_machine_0001.wav",
            "fan/train/section_00_source_train_normal_0000_n_A.wav",
            "fan/supplemental/section_00_noise_supplemental_normal_0000.wav",
        ],
        {"ToyPet/test/section_00_0000.wav": ("00", "unknown", "unlabeled", {})},
    ),
    2026: (
        ["bearingEmu/train/section_00_source_train_normal_0000_vel_4.wav"]
        + [f"bearingEmu/test/section_00_target_test_{label}_0000_vel_8.wav" for label in BOTH]
        + ["bearingEmu/supplemental/section_00_source_supplemental_machine_0000.wav"],
        {
            "bearingEmu/test/section_00_target_test_anomaly_0000_vel_8.wav": (
                "00", "target", "anomaly", {"vel": "8"},
            ),
        },
    ),
}  # fmt: skip


def mixture(seconds=6.0, rate=16000, seed=0):
    """A machine near by, and one far off that both microphones hear, the near one through a known room."""
    rng = np.random.default_rng(seed)
    n = round(seconds * rate)
    t = np.arange(n) / rate
    machine = 0.03 * np.sin(2 * np.pi * 440 * t) * (1 + 0.5 * np.sin(2 * np.pi * 3 * t)) + 0.01 * rng.normal(
        size=n
    )
    far = np.convolve(0.08 * rng.normal(size=n), [1, 0.6, 0.2], "same")
    room = np.r_[np.zeros(9), 1, -0.5, 0.3, 0.1 * rng.normal(size=40) * np.exp(-np.arange(40) / 12)]
    return machine, np.convolve(far, room)[:n], far


def tree(folder, year, copies=1):
    names, facts = YEARS[year]
    names = [re.sub(r"0000(?=[_.])", f"{i:04}", name) for i in range(copies) for name in names]
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        machine, heard, far = mixture(1.0, seed=place)
        if "_anomaly_" in f"_{path.name}":
            machine = machine + 0.03 * np.sin(2 * np.pi * 1500 * np.arange(16000) / 16000)
        soundfile.write(path, np.c_[machine + heard, far] if year == 2026 else machine, 16000)
    return facts


@pytest.mark.parametrize("year", YEARS)
def test_a_tree_of_each_year_is_indexed_and_decoded(year, tmp_path):
    expected = tree(tmp_path / "raw", year)
    table, problems = index.index([tmp_path / "raw"])
    assert not problems["left_out"].any()
    store = open_store(table, problems, tmp_path / "store", decode.DataSettings())
    clips = store.clips.set_index("clip")
    names = [name for name in YEARS[year][0] if "supplemental" not in name]
    assert len(store) == len(names) and (clips["seconds"] == 1.0).all()
    for clip, (section, domain, label, attributes) in expected.items():
        assert clips.loc[clip, ["section", "domain", "label"]].tolist() == [section, domain, label]
        found = {
            key[5:]: value for key, value in clips.loc[clip].items() if key.startswith("attr_") and value
        }
        assert found == attributes


@pytest.mark.parametrize("year", YEARS)
def test_a_tree_of_each_year_is_scored_from_end_to_end(year, tmp_path):
    facts = tree(tmp_path / "raw", year, copies=5)
    clips, aucs = load_dcase(tmp_path / "raw", subtract=1 if year == 2026 else -1), {}
    for machine in filter(lambda machine: len(clips.test(machine)), clips.machines):
        scores = nearest.NearestNeighbor().fit(clips.train(machine)).score(clips.test(machine))
        assert set(scores["clip"]) == set(clips.test(machine).table["clip"])
        found = metrics.table(scores, metrics.MetricsSettings(bootstrap=20), 0).set_index("metric")["value"]
        aucs[machine] = found[["auc_source", "auc_target"]].max()
    labeled = {clip.partition("/")[0] for clip, (*_, label, _) in facts.items() if label == "anomaly"}
    assert all(aucs[machine] == 1 for machine in labeled)  # a tone, on top
    assert all(np.isnan(aucs[machine]) for machine in aucs if f"{machine}/test/section_00_0000.wav" in facts)


def test_supplemental_recordings_are_listed_and_in_no_clip_table(tmp_path, capsys):
    tree(tmp_path / "raw", 2025)
    beside = index.supplemental([tmp_path / "raw"])
    assert dict(zip(beside["machine"], beside["content"])) == {"ToyPet": "machine", "fan": "noise"}
    assert not index.index([tmp_path / "raw"])[0]["clip"].str.contains("supplemental").any()
    assert decode.decode(beside["path"][0], decode.DataSettings()).samples is not None
    assert cli.main(["index", str(tmp_path / "raw")]) == 0
    assert "supplemental, neither trained on nor tested: 1 of noise" in capsys.readouterr().out
    assert cli.main(["index", str(tmp_path / "raw"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["supplemental"] == {
        "ToyPet": {"machine": 1},
        "fan": {"noise": 1},
    }


def test_near_far_and_their_difference_are_chosen_by_settings(tmp_path):
    tree(tmp_path / "raw", 2026)
    table, problems = index.index([tmp_path / "raw"])
    store = tmp_path / "store"
    near, far, both = (
        open_store(table, problems, store, decode.DataSettings(**how)).clips["level_db"].mean()
        for how in ({}, {"channel": 1}, {"subtract": 1})
    )
    assert far > near - 6 and both < near - 6  # what is left is the machine
    with pytest.raises(errors.InputError, match="both are 1, expected different channels"):
        decode.DataSettings(channel=1, subtract=1)
    refused = decode.decode(table["path"][0], decode.DataSettings(subtract=2)).refused
    assert "channels 0 to 1 only, expected channel 2; set data.subtract below 2" in refused


def test_what_the_microphones_hear_is_what_the_settings_would_decode(tmp_path):
    tree(tmp_path / "raw", 2026)
    path = index.index([tmp_path / "raw"])[0]["path"][0]
    heard = decode.microphones(path, decode.DataSettings())
    for name, how in {"near": {}, "far": {"channel": 1}, "near without far": {"subtract": 1}}.items():
        np.testing.assert_array_equal(
            heard[name], decode.decode(path, decode.DataSettings(**how)).samples / np.float32(32768)
        )
    swapped = decode.microphones(path, decode.DataSettings(channel=1))
    np.testing.assert_array_equal(swapped["far"], heard["near"])
    tree(tmp_path / "mono", 2024)
    mono = index.index([tmp_path / "mono"])[0]["path"][0]
    assert decode.microphones(mono, decode.DataSettings()) == {}
    assert decode.microphones(tmp_path / "gone.wav", decode.DataSettings()) == {}


def test_the_subtraction_removes_the_interference_and_leaves_the_machine():
    machine, heard, far = mixture()
    near, far = (torch.from_numpy(part).float() for part in (machine + heard, far))
    left = decode.subtracted(near, far).numpy() - machine

    def db(x):
        return 10 * np.log10(np.mean(np.square(x)))

    assert db(heard) - db(left) >= 15  # what is left counts both: interference, and harm to the machine
    assert abs(db(machine + left) - db(machine)) < 1


def test_the_subtraction_is_its_formula():
    machine, heard, far = mixture(0.5)
    near = machine + heard
    window, hop = np.hanning(257)[:-1], 64

    def frames(x):
        padded = np.pad(x, 128, mode="reflect")
        return np.array([np.fft.rfft(window * padded[i : i + 256]) for i in range(0, len(padded) - 255, hop)])

    c, f = frames(near), frames(far)
    out, weight = np.zeros(len(near) + 256), np.zeros(len(near) + 256)
    for k in range(c.shape[1]):
        h = sum(c[t, k] * np.conj(f[t, k]) for t in range(len(c))) / sum(
            abs(f[t, k]) ** 2 for t in range(len(c))
        )
        c[:, k] -= h * f[:, k]
    for t in range(len(c)):
        out[t * hop : t * hop + 256] += window * np.fft.irfft(c[t])
        weight[t * hop : t * hop + 256] += window**2
    expected = (out / np.maximum(weight, 1e-9))[128 : 128 + len(near)]
    both = (torch.from_numpy(part).float() for part in (near, far))
    np.testing.assert_allclose(decode.subtracted(*both, n_fft=256).numpy(), expected, atol=1e-5)


def test_a_silent_far_channel_changes_nothing():
    near = torch.from_numpy(mixture(0.2)[0]).float()
    torch.testing.assert_close(decode.subtracted(near, torch.zeros_like(near)), near, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "machine"),
    [
        ("dev_data_ToyCar.zip", "ToyCar"),
        ("eval_data_train_ToyCar.zip", "ToyCar"),
        ("eval_data_test_pump.zip", "pump"),
        ("eval_data_fan_train.zip", "fan"),
        ("dev_fan.zip", "fan"),
        ("eval_data_bandsaw_test.zip", "bandsaw"),
        ("eval_data_3DPrinter_train_r2.zip", "3DPrinter"),
        ("dev_ToyCar_r2.zip", "ToyCar"),
    ],
)
def test_archives_of_all_years_name_their_machine(name, machine):
    assert download.ARCHIVE.fullmatch(name)[1] == machine


def test_every_year_is_known_by_name():
    assert list(download.DATASETS) == [f"dcase{year}" for year in range(2020, 2027)]
    numbers = [number for parts in download.DATASETS.values() for number, _ in parts.values()]
    assert len(set(numbers)) == 21
