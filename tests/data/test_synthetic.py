"""Synthetic machines: mechanisms obey their physics, faults vanish at severity 0, trees are whole, levels
tell nothing.
"""

import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy import signal
from sklearn.metrics import roc_auc_score

from asdlib import errors
from asdlib.data import synthetic
from asdlib.data.machines import FAN_STEPS, MACHINES, PATTERNS, Take, constants, rms, stream, stroke

RATE = 16000


def take(kind, attributes, *, domain="source", fault="", depth=0.0, seconds=10.0, clip=0):
    streams = (stream(kind, "make"), stream(kind, clip), stream(kind, clip, "fault"))
    return Take(
        int(seconds * RATE), RATE, domain, attributes, constants(kind, kind, 0), *streams, fault, depth
    )


def condition(kind, domain="source"):
    return {key: values[-1] for key, values in MACHINES[kind].attributes.get(domain, {}).items()}


def line_above_neighbors_db(x, hz, width_hz=6.0):
    """Strongest bin near a frequency over the median of the spectrum around it, in dB."""
    f, power = signal.welch(x, RATE, nperseg=1 << 14)
    near, around = abs(f - hz) <= width_hz, (abs(f - hz) > 2 * width_hz) & (abs(f - hz) < 8 * width_hz)
    return 10 * np.log10(power[near].max() / np.median(power[around]))


def render(
    kind, severity, index=0, *, label="anomaly", fault=None, domain="source", seed=0, seconds=2.0, name=None
):
    where = ("test", domain, label, index)
    return synthetic.render(
        kind,
        name or kind,
        seed=seed,
        where=where,
        domain=domain,
        attributes=condition(kind, domain),
        severity=severity,
        samples=int(seconds * RATE),
        rate=RATE,
        fault=fault,
    )


MADE = ("fan", "valve", "ToyCar:gearbox")
SMALL = synthetic.SyntheticSettings(
    machines=MADE, train_source=7, train_target=2, test=3, seconds=1.0, severity=(0.0, 2.0)
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "deep" / "tree"
    synthetic.write_tree(out, SMALL)
    return out


# ---- physics ----
def test_fan_has_a_line_at_its_blade_pass_frequency():
    c = constants("fan", "fan", 0)
    x, _ = MACHINES["fan"].sound(take("fan", {}))
    lines = [line_above_neighbors_db(x, step * c["speed_hz"] * c["blades"]) for step in FAN_STEPS["source"]]
    assert max(lines) > 10


@pytest.mark.parametrize("spd", ["20", "35"])
def test_mesh_frequency_of_the_gearbox_follows_speed_and_slips_under_load(spd):
    teeth = constants("gearbox", "gearbox", 0)["teeth"]
    x, _ = MACHINES["gearbox"].sound(take("gearbox", {"spd": spd, "load": "80"}))
    f, power = signal.welch(x, RATE, nperseg=1 << 14)
    mesh_hz = teeth * float(spd) * 0.992
    near = abs(f - mesh_hz) < 0.4 * float(spd)
    assert f[near][power[near].argmax()] == pytest.approx(mesh_hz, rel=0.004)
    assert line_above_neighbors_db(x, mesh_hz) > 10


def test_sidebands_of_the_mesh_are_one_revolution_apart_and_an_eccentric_wheel_raises_its_own():
    c, attributes = constants("gearbox", "gearbox", 0), {"spd": "30", "load": "20"}
    healthy, added = MACHINES["gearbox"].sound(take("gearbox", attributes, fault="eccentric", depth=1.0))
    shaft_hz = 30 * 0.998
    assert line_above_neighbors_db(healthy, (c["teeth"] + 1) * shaft_hz, 3.0) > 5
    wheel_hz = shaft_hz * c["teeth"] / c["wheel_teeth"]
    mesh_hz = c["teeth"] * shaft_hz
    assert line_above_neighbors_db(added, mesh_hz - wheel_hz, 3.0) > line_above_neighbors_db(
        added, mesh_hz, 3.0
    )


@pytest.mark.parametrize("pat", sorted(PATTERNS))
def test_valve_clicks_as_often_as_its_pattern_says(pat):
    x, _ = MACHINES["valve"].sound(take("valve", {"pat": pat}))
    onset = signal.lfilter([1], [1, -0.996], np.abs(np.diff(x, prepend=0.0)))
    peaks, _ = signal.find_peaks(
        onset, height=0.15 * onset.max(), distance=int(0.07 * RATE), prominence=0.1 * onset.max()
    )
    expected = 10.0 / constants("valve", "valve", 0)["cycle_s"] * len(PATTERNS[pat])
    assert len(peaks) == pytest.approx(expected, abs=len(PATTERNS[pat]))


def test_missing_clicks_take_away_what_was_there():
    healthy, added = MACHINES["valve"].sound(take("valve", {"pat": "01"}, fault="missing click", depth=1.0))
    assert rms(
        signal.sosfilt(signal.butter(4, 2500, "high", fs=RATE, output="sos"), healthy + added)
    ) < 0.1 * rms(healthy)


@pytest.mark.parametrize(("vel", "ac"), [("300", "0.30"), ("900", "0.10")])
def test_slider_repeats_with_its_stroke(vel, ac):
    c = constants("slider", "slider", 0)
    x, _ = MACHINES["slider"].sound(take("slider", {"vel": vel, "ac": ac}))
    power = signal.decimate(np.square(x).reshape(-1, 160).mean(1), 2)  # 50 Hz
    spectrum, f = np.abs(np.fft.rfft(power - power.mean(), 1 << 13)), np.fft.rfftfreq(1 << 13, 1 / 50)
    period = stroke(float(vel), float(ac), c["rail_mm"])[1] + c["rest_s"]
    at = lambda hz: spectrum[abs(f - hz) < 0.05].max()  # noqa: E731
    assert at(1 / period) > 3 * at(0.5 / period) and at(1 / period) > 3 * at(0.73 / period)


def test_a_stroke_covers_the_rail():
    for vel, ac in [(300, 0.3), (900, 0.1), (380, 0.2)]:
        top, lasts = stroke(vel, ac, 300.0)
        t = np.linspace(0, lasts, 100001)
        speed = np.minimum(np.minimum(t, lasts - t) * ac * 9810, top)
        assert np.trapezoid(speed, t) == pytest.approx(300.0, rel=1e-4) and top <= vel


def test_bearing_fault_strikes_at_its_order():
    c = constants("bearing", "bearing", 0)
    _, added = MACHINES["bearing"].sound(
        take("bearing", {"vel": "12", "loc": "A"}, fault="outer race", depth=1.0)
    )
    envelope = np.abs(signal.hilbert(added))
    assert line_above_neighbors_db(envelope - envelope.mean(), 0.4 * c["balls"] * 12, 2.0) > 6


def test_target_has_conditions_never_heard_in_source():
    for kind, model in MACHINES.items():
        for key, values in model.attributes.get("source", {}).items():
            assert not set(values) & set(model.attributes["target"][key]), (kind, key)
    assert not set(FAN_STEPS["source"]) & set(FAN_STEPS["target"])


# ---- faults ----
FAULTS = [(kind, fault) for kind, model in MACHINES.items() for fault in model.faults]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_fault_is_nothing_at_severity_0_and_grows(kind, fault):
    healthy = render(kind, None)
    np.testing.assert_array_equal(render(kind, 0.0, fault=fault), healthy)
    steps = [
        rms(
            render(kind, severity, fault=fault) / rms(render(kind, severity, fault=fault))
            - healthy / rms(healthy)
        )
        for severity in (1.0, 3.0)
    ]
    assert 0.0 < steps[0] < steps[1]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_fault_never_moves_the_healthy_sound(kind, fault):
    without, nothing = MACHINES[kind].sound(take(kind, condition(kind), seconds=1.0))
    with_fault, added = MACHINES[kind].sound(take(kind, condition(kind), fault=fault, depth=0.7, seconds=1.0))
    np.testing.assert_array_equal(with_fault, without)
    assert not nothing.any() and added.any() and np.isfinite(added).all()


def test_level_and_peaks_tell_nothing():
    normal = [render("gearbox", None, i, label="normal", seconds=0.5) for i in range(120)]
    broken = [render("gearbox", 3.0, i, seconds=0.5) for i in range(120)]
    labels = np.repeat([0, 1], 120)
    assert 0.35 < roc_auc_score(labels, [rms(x) for x in normal + broken]) < 0.65
    assert max(np.abs(x).max() for x in normal + broken) < 0.99


@pytest.mark.parametrize("kind", sorted(MACHINES))
def test_clips_stay_in_range_at_blatant_severity(kind):
    for fault in MACHINES[kind].faults:
        x = render(kind, 3.0, fault=fault)
        low, high = synthetic.LEVEL_DB
        assert (
            low - 0.01 <= 20 * np.log10(rms(x)) <= high + 0.01
            and np.abs(x).max() <= 0.99
            and np.isfinite(x).all()
        )


# ---- machines and seeds ----
def test_a_name_and_a_seed_make_an_individual():
    one, other = constants("gearbox", "gearbox", 0), constants("gearbox", "ToyCar", 0)
    assert (
        one["body_hz"].tolist()
        != other["body_hz"].tolist()
        != constants("gearbox", "ToyCar", 1)["body_hz"].tolist()
    )
    for kind, model in MACHINES.items():
        for key, span in model.constants.items():
            pairs = np.atleast_2d(np.array(span, float))
            drawn = np.atleast_1d(constants(kind, "someone", 3)[key])
            assert (pairs[:, 0] <= drawn).all() and (drawn <= pairs[:, 1]).all(), (kind, key)


def test_a_clip_does_not_depend_on_how_many_others_are_made(tree, tmp_path):
    fewer = synthetic.SyntheticSettings(
        machines=("ToyCar:gearbox",), train_source=5, train_target=0, test=2, seconds=1.0, severity=(0.0, 2.0)
    )
    synthetic.write_tree(tmp_path / "fewer", fewer)
    made = sorted(path.relative_to(tmp_path / "fewer") for path in (tmp_path / "fewer").rglob("*.wav"))
    assert len(made) == 5 + 4 * 2
    assert all((tree / name).read_bytes() == (tmp_path / "fewer" / name).read_bytes() for name in made)


def test_another_seed_makes_other_clips():
    assert not np.array_equal(render("fan", None), render("fan", None, seed=1))
    assert not np.array_equal(render("fan", None), render("fan", None, 1))


# ---- the tree ----
def test_layout_names_and_format(tree):
    assert sorted(path.name for path in tree.iterdir()) == ["ToyCar", "fan", "valve"]
    assert [path.name for path in tree.parent.iterdir()] == ["tree"]
    for machine in ("ToyCar", "fan", "valve"):
        assert (
            len(list((tree / machine / "train").iterdir())) == 9
            and len(list((tree / machine / "test").iterdir())) == 12
        )
        assert sorted(path.name for path in (tree / machine).iterdir()) == [
            "attributes_00.csv",
            "severity.csv",
            "test",
            "train",
        ]
    assert (tree / "fan/test/section_00_target_test_anomaly_0002_noAttribute.wav").is_file()
    assert [path.name[:38] for path in sorted((tree / "valve/train").glob("*target*"))] == [
        f"section_00_target_train_normal_{i:04d}_pa" for i in (0, 1)
    ]
    info = soundfile.info(tree / "fan/train/section_00_source_train_normal_0000_noAttribute.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (RATE, 1, RATE, "PCM_16")


def test_attribute_files_have_the_challenge_form(tree):
    text = (tree / "fan/attributes_00.csv").read_bytes().decode()
    assert text.startswith(
        "file_name,d1p,d1v\nfan/train/section_00_source_train_normal_0000_noAttribute.wav,noAttribute,\n"
    )
    table = pd.read_csv(tree / "ToyCar/attributes_00.csv", dtype=str)
    assert list(table) == ["file_name", "d1p", "d1v", "d2p", "d2v"] and len(table) == 21
    for row in table.itertuples():
        assert (tree / row.file_name).is_file()
        assert row.file_name.endswith(f"_{row.d1p}_{row.d1v}_{row.d2p}_{row.d2v}.wav") and (
            row.d1p,
            row.d2p,
        ) == ("spd", "load")
        assert (
            row.d1v
            in MACHINES["gearbox"].attributes["source" if "_source_" in row.file_name else "target"]["spd"]
        )


def test_severities_are_spread_over_the_anomalies(tree):
    table = pd.read_csv(tree / "valve/severity.csv")
    assert list(table) == ["file_name", "severity"]
    assert sorted(table["file_name"]) == sorted(
        f"valve/test/{path.name}" for path in (tree / "valve/test").glob("*anomaly*")
    )
    assert table.groupby(table["file_name"].str.contains("source"))["severity"].value_counts().tolist() == [
        2,
        1,
        2,
        1,
    ]


def test_conditions_come_in_even_shares():
    plan = list(
        synthetic._plan("gearbox", "gearbox", synthetic.SyntheticSettings(train_source=80, train_target=10))
    )
    shares = pd.Series(
        [str(attributes) for _, where, attributes, _ in plan if where[:2] == ("train", "source")]
    ).value_counts()
    assert shares.tolist() == [10] * 8


# ---- refusals ----
def wanted(*machines, **changes):
    return synthetic.SyntheticSettings(
        machines=machines, train_source=1, train_target=0, test=0, seconds=1.0, **changes
    )


@pytest.mark.parametrize(
    ("machines", "match"),
    [
        (("gearbx",), "unknown kind of synthetic machine 'gearbx'; did you mean gearbox"),
        (("ToyCar:fann",), "unknown kind of synthetic machine 'fann'; did you mean fan"),
        (("../fan:fan",), "machine name '../fan': expected letters and digits only"),
        (("fan", "fan:gearbox"), "duplicate machine name 'fan'"),
        ((), "no machines given, expected some of fan, gearbox"),
    ],
)
def test_machines_that_cannot_be_made_are_refused(tmp_path, machines, match):
    with pytest.raises(errors.InputError, match=match):
        synthetic.write_tree(tmp_path / "out", wanted(*machines))
    assert not list(tmp_path.iterdir())


def test_no_severity_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="no values given, expected at least one"):
        synthetic.write_tree(tmp_path / "out", wanted("fan", severity=()))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(errors.InputError, match="already exists and is not an empty folder"):
        synthetic.write_tree(tmp_path, wanted("fan"))
    with pytest.raises(errors.InputError, match="already exists and is not an empty folder"):
        synthetic.write_tree(tmp_path / "mine.txt", wanted("fan"))
    (tmp_path / "empty").mkdir()
    synthetic.write_tree(tmp_path / "empty", wanted("fan"))
    assert (tmp_path / "empty/fan/attributes_00.csv").is_file() and (
        tmp_path / "mine.txt"
    ).read_text() == "precious"


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        errors.InputError, match=r"out: cannot be written \(No space left on device\); free up"
    ):
        synthetic.write_tree(tmp_path / "out", wanted("fan"))
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="cannot be written"):
        synthetic.write_tree(tmp_path / "file" / "out", wanted("fan"))
