"""decoding: sample formats, rates, channels, every kind of problem, levels, duplicates, the recorded fans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from asdlib.data import decode, index
from asdlib.data.decode import DataSettings

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RATE = 16000


def noise(seconds: float = 0.5, seed: int = 0, rms: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, rms, int(seconds * RATE)).clip(-0.9, 0.9)


def write(path: Path, wave: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, subtype=subtype)
    return path


FORMATS = [("a.wav", kind) for kind in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")] + [
    ("a.flac", "PCM_16"),
    ("a.flac", "PCM_24"),
]


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_every_format_gives_the_same_samples(tmp_path, name, subtype):
    wave = noise()
    found = decode.decode(write(tmp_path / name, wave, subtype=subtype), DataSettings())
    assert found.refused == "" and found.remarks == () and found.samples.dtype == np.int16
    assert np.abs(found.samples - np.rint(wave * 32768)).max() <= 1
    assert found.level_db == pytest.approx(10 * np.log10(np.mean(wave**2)), abs=0.01)
    assert found.digest == decode.sample_digest(found.samples)


def test_level_of_known_signals(tmp_path):
    square = np.where(np.arange(RATE) % 2, 0.5, -0.5)
    assert decode.decode(write(tmp_path / "s.wav", square), DataSettings()).level_db == pytest.approx(
        -6.0206, abs=1e-4
    )
    sine = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert decode.decode(write(tmp_path / "t.wav", sine), DataSettings()).level_db == pytest.approx(
        -9.031, abs=1e-2
    )


def test_a_tone_survives_resampling(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44100) / 44100)
    path = write(tmp_path / "a.wav", tone, 44100)
    assert (
        decode.decode(path, DataSettings()).refused
        == "44100 Hz, expected 16000 Hz; set data.resample = true to resample on load"
    )
    samples = decode.decode(path, DataSettings(resample=True)).samples
    assert len(samples) == RATE
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(samples[400:-400] / 32768, expected[400:-400], atol=2e-3)


def test_a_channel_is_chosen(tmp_path):
    eight = np.stack([np.rint(noise(seed=i) * 32768).astype(np.int16) for i in range(8)], axis=1)
    path = write(tmp_path / "a.wav", eight)
    for channel in (0, 3, 7):
        np.testing.assert_array_equal(
            decode.decode(path, DataSettings(channel=channel)).samples, eight[:, channel]
        )
    refused = decode.decode(path, DataSettings(channel=8)).refused
    assert refused == "channels 0 to 7 only, expected channel 8; set data.channel below 8"


def broken(folder: Path) -> dict[str, Path]:
    """One file of each kind that must be left out, named by words its problem must say."""
    files = {
        "empty file": folder / "zero.wav",
        "empty, no audio sample": write(folder / "none.wav", np.zeros(0)),
    }
    files["empty file"].write_bytes(b"")
    files["too short: 0.1 s, expected at least 0.15 s"] = write(folder / "short.wav", np.ones(1600))
    whole = write(folder / "whole.wav", noise()).read_bytes()
    for words, raw, name in (
        ("truncated", whole[:-500], "cut.wav"),
        ("unreadable", b"this is text, not sound" * 10, "text.wav"),
        ("unreadable (Error", whole[:20], "head.wav"),
        ("unreadable (No such file", None, "gone.wav"),
    ):
        files[words] = folder / name
        if raw is not None:
            files[words].write_bytes(raw)
    packed = write(folder / "whole.flac", noise()).read_bytes()
    files["flac"] = folder / "cut.flac"
    files["flac"].write_bytes(packed[: len(packed) // 2])
    bad = noise()
    bad[7] = np.nan
    files["1 samples are NaN or infinite"] = write(folder / "nan.wav", bad, subtype="FLOAT")
    bad[8] = np.inf
    files["2 samples are NaN or infinite"] = write(folder / "inf.wav", bad, subtype="DOUBLE")
    files["8000 Hz, expected 16000 Hz"] = write(folder / "slow.wav", noise(), 8000)
    return files


def test_broken_files_are_worded_and_never_raise(tmp_path):
    for words, path in broken(tmp_path).items():
        found = decode.decode(path, DataSettings())
        assert found.samples is None
        if words == "flac":
            assert "truncated" in found.refused or "unreadable" in found.refused
        else:
            assert words in found.refused
        assert ";" in found.refused and "\n" not in found.refused and str(tmp_path) not in found.refused


def test_remarks(tmp_path):
    one_peak = noise()
    one_peak[100] = 1.0
    assert decode.decode(write(tmp_path / "a.wav", one_peak), DataSettings()).remarks == ()
    tops = noise()
    tops[100:104], tops[300:303], tops[500:502] = 1.0, -1.0, 1.0
    assert decode.decode(write(tmp_path / "b.wav", tops), DataSettings()).remarks == (
        "clipped (7 samples at full scale, in runs of 3 or more)",
    )
    loud = decode.decode(
        write(tmp_path / "c.wav", 3 * np.sin(np.arange(RATE) / 20), subtype="FLOAT"), DataSettings()
    )
    assert loud.remarks[0].startswith("clipped") and loud.samples.max() == 32767
    zero = decode.decode(write(tmp_path / "d.wav", np.zeros(RATE)), DataSettings())
    assert zero.remarks == ("silent (-120 dB re full scale)",) and zero.level_db == -120
    last_bit = np.where(np.arange(RATE) % 2, 1 / 32768, 0)
    assert (
        decode.decode(write(tmp_path / "e.wav", last_bit), DataSettings())
        .remarks[0]
        .startswith("silent (-93")
    )


def test_a_channel_without_sound_is_told_and_another_named(tmp_path):
    live, quiet = noise(), noise(rms=0.001)
    for dead, words in (
        (np.zeros(8000), "silent (-120 dB re full scale)"),
        (np.full(8000, 0.25), "constant (-12 dB re full scale, no sound)"),
    ):
        path = write(tmp_path / "a.wav", np.stack([dead, quiet, live], axis=1))
        told = (
            f"channel 0 is {words}, channel 2 is not (-20 dB): select it with data.channel = 2 (asd import:"
            " --channel 2)"
        )
        assert decode.decode(path, DataSettings()).remarks == (told,)
        assert (
            decode.decode(path, DataSettings(channel=1)).remarks
            == ()
            == decode.decode(path, DataSettings(channel=2)).remarks
        )
        for every in (dead, np.stack([dead, dead], axis=1)):  # no channel is better
            assert decode.decode(
                write(tmp_path / "b.wav", every, subtype="FLOAT"), DataSettings()
            ).remarks == (words,)
            assert decode.decode(
                write(tmp_path / "c.wav", every, 44100), DataSettings(resample=True)
            ).remarks == (words,)
    broken_other = np.stack([np.zeros(8000), np.full(8000, np.nan), live], axis=1)
    assert (
        "channel 2 is not"
        in decode.decode(write(tmp_path / "d.wav", broken_other, subtype="FLOAT"), DataSettings()).remarks[0]
    )
    offset = decode.decode(write(tmp_path / "e.wav", 0.3 + live / 2), DataSettings())
    assert offset.remarks == () and offset.rate == RATE  # an offset under sound is no fault


def tree(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Four good clips of one machine, two of them equal across train and test, two silent ones, and three
    broken ones.
    """
    train, test = (
        root / "fan/train/section_00_source_train_normal_{:04d}.wav",
        root / "fan/test/section_00_source_test_normal_{:04d}.wav",
    )
    for i in range(3):
        write(Path(str(train).format(i)), noise(seed=i, rms=0.01 * (i + 1)))
    write(Path(str(test).format(0)), noise(seed=1, rms=0.02))
    for i in (1, 2):
        write(Path(str(test).format(i)), np.zeros(RATE))
    write(Path(str(test).format(3)), noise(), 8000)
    Path(str(test).format(4)).write_bytes(b"")
    Path(str(train).format(9)).write_bytes(b"RIFF")
    return index.index([root])


@pytest.mark.parametrize("threads", [1, 3])
def test_inspect(tmp_path, threads):
    table, problems = tree(tmp_path)
    kept = []
    decoded, found = decode.inspect(table, problems, DataSettings(), threads, keep=kept.append)
    assert len(table) == 9 and len(decoded) == len(kept) == 6
    assert decoded["samples"].tolist() == [len(samples) for samples in kept]
    assert decoded["digest"].tolist() == [decode.sample_digest(samples) for samples in kept]
    assert decoded["seconds"].tolist() == [0.5, 1.0, 1.0, 0.5, 0.5, 0.5]
    assert found["left_out"].sum() == 3
    silent = found[found["reason"].str.startswith("silent")]
    assert len(silent) == 2 and not silent["left_out"].any()
    same = found[found["reason"].str.startswith("same audio")]
    other = "fan/test/section_00_source_test_normal_0000.wav"
    assert same["reason"].tolist() == [
        f"same audio as {other} (one in train, one in test); both are used, remove one"
    ]
    assert same["path"].tolist()[0].endswith("train_normal_0001.wav")
    again, _ = decode.inspect(
        decoded, problems, DataSettings(), threads
    )  # a decoded table may be inspected again
    pd.testing.assert_frame_equal(again, decoded)


def test_recorded_clips():
    if not SHARED.is_dir():
        pytest.skip("the recordings in ../shared/data are not there")
    decoded, found = decode.inspect(*index.index([SHARED / "real"]), DataSettings())
    assert len(decoded) == 94 and set(decoded["seconds"]) == {10.0} and not found["left_out"].any()
    valve = decode.decode(SHARED / "loose" / "mimii_8ch_valve_id06_n_00000048.wav", DataSettings(channel=5))
    truth, _ = soundfile.read(SHARED / "loose" / "mimii_8ch_valve_id06_n_00000048.wav", dtype="int16")
    np.testing.assert_array_equal(valve.samples, truth[:, 5])
