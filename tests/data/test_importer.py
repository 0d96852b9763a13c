"""Recordings as people have them become a machine: what they are is read, never guessed; nothing existing is
changed.
"""

import os
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import soundfile

from asdlib import cli, errors
from asdlib.data import decode, importer, index
from asdlib.data.store import open_store


def sound(path, seconds=1.5, rate=16000, channels=1, hz=440.0, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.1 * np.sin(2 * np.pi * hz * t)[:, None] * (1 + np.arange(channels))
    soundfile.write(path, wave[:, 0] if channels == 1 else wave, rate, **how)
    return path


@pytest.fixture
def pump(tmp_path):
    """Folders as the issue names them, in three formats."""
    folder = tmp_path / "pump recordings"
    for i in range(3):
        sound(folder / "normal" / f"monday {i}.wav", hz=400 + i)
    sound(folder / "normal" / "stereo.flac", 2.0, 44100, 2)
    sound(folder / "test" / "normal" / "tuesday.ogg", 2.0, 22050)
    sound(folder / "test" / "anomaly" / "bearing.wav", 2.0, 48000, 8)
    return folder


def read(folder):
    table, problems = index.index([folder.parent])
    return table[table["machine"] == folder.name], problems


def test_plain_folders_become_a_machine_that_studies_read(pump, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in pump.rglob("*")}
    done = importer.import_machine([pump], tmp_path / "root", "pump")
    table, problems = read(done.folder)
    assert len(problems) == 0 and len(done.problems) == 0
    counts = table.groupby(["split", "label", "domain"]).size().to_dict()
    assert counts == {
        ("train", "normal", "source"): 4,
        ("test", "normal", "source"): 1,
        ("test", "anomaly", "source"): 1,
    }
    store = open_store(
        table, problems, tmp_path / "store", decode.DataSettings()
    )  # 16 kHz, one channel, without any resampling
    assert sorted(store.clips["seconds"]) == pytest.approx([1.5, 1.5, 1.5, 2.0, 2.0, 2.0], abs=0.01)
    made = done.clips.set_index("source")["made"]
    assert (made[made.index.str.contains("monday")] == "linked").all() and made[
        str(pump / "normal" / "stereo.flac")
    ] == "decoded"
    assert before == {path: path.stat().st_mtime_ns for path in pump.rglob("*")}
    told = done.text()
    assert (
        "train normal     source      4 clips of 1.5-2 s" in told
        and "3 linked" in told
        and "3 decoded" in told
    )


def test_a_converted_clip_is_the_sound_of_the_channel_asked_for(tmp_path):
    source = sound(tmp_path / "in" / "normal" / "a.wav", 2.0, 48000, 4, hz=1000.0)
    done = importer.import_machine([source.parent.parent], tmp_path / "root", "m", channel=2)
    wave, rate = soundfile.read(done.folder / done.clips["file"][0])
    spectrum = np.abs(np.fft.rfft(wave))
    assert rate == 16000 and wave.ndim == 1 and np.argmax(spectrum) / 2.0 == pytest.approx(1000.0)
    assert np.abs(wave[2000:-2000]).max() == pytest.approx(
        0.3, rel=0.02
    )  # the third channel is three times the first


def test_a_csv_says_labels_domains_and_attributes(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        sound(tmp_path / "rec" / f"{name}.wav", hz=300 + ord(name))
    rows = [
        "path;label;domain;split;speed;oil",
        "rec/a.wav;normal;source;;8;thin_1",
        "rec/b.wav;normal;target;train;12;",
        "rec/c.wav;anomaly;target;;8;thick",
        "rec/d.wav;;;;;",
        "rec/e.wav;normal;;test;8;",
    ]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    done = importer.import_machine([tmp_path / "list.csv"], tmp_path / "root", "saw")
    table, problems = read(done.folder)
    assert len(problems) == 0
    facts = {tuple(row) for row in table[["split", "label", "domain", "attr_speed", "attr_oil"]].to_numpy()}
    assert facts == {
        ("train", "normal", "source", "8", "thin_1"),
        ("train", "normal", "target", "12", ""),
        ("test", "anomaly", "target", "8", "thick"),
        ("test", "unlabeled", "unknown", "", ""),
        ("test", "normal", "source", "8", ""),
    }
    assert "attribute speed: 8, 12" in done.text()


def test_challenge_names_keep_their_facts_wherever_they_lie(tmp_path):
    machine = tmp_path / "in" / "fan"
    sound(machine / "train" / "section_00_target_train_normal_0003_vel_4_m-n_X.wav")
    sound(machine / "test" / "section_00_source_test_anomaly_0000_vel_8_m-n_X.wav")
    sound(machine / "supplemental" / "noise.wav")
    sound(tmp_path / "in" / "old_section_01_source_train_normal_0705_vel_12.wav")
    done = importer.import_machine([tmp_path / "in"], tmp_path / "root", "own")
    table, _ = read(done.folder)
    facts = {tuple(row) for row in table[["split", "label", "domain", "attr_vel", "attr_m-n"]].to_numpy()}
    expected = {
        ("train", "normal", "target", "4", "X"),
        ("test", "anomaly", "source", "8", "X"),
        ("train", "normal", "source", "12", ""),
    }
    assert facts == expected
    assert done.problems["path"].str.endswith("noise.wav").tolist() == [True]


def test_loose_recordings_are_read_by_their_words_and_the_silent_ones_are_told(tmp_path):
    for name in ("car_normal_7", "car_anomaly_8", "car_9"):
        sound(tmp_path / "loose" / f"{name}.wav", hz=100 + len(name))
    done = importer.import_machine([tmp_path / "loose"], tmp_path / "root", "car")
    said = done.clips.set_index("source")[["split", "label", "said"]].T.to_dict("list")
    assert said == {
        str(tmp_path / "loose" / name): facts
        for name, facts in {
            "car_normal_7.wav": ["train", "normal", "names"],
            "car_anomaly_8.wav": ["test", "anomaly", "names"],
            "car_9.wav": ["train", "normal", "nothing"],
        }.items()
    }
    assert "1 recordings have no label or split" in done.text() and "car_9.wav" in done.text()


def test_long_recordings_are_cut_and_no_sample_stands_twice(tmp_path):
    rng = np.random.default_rng(0)
    long = rng.normal(0, 0.1, 16000 * 11)
    (tmp_path / "normal").mkdir()
    soundfile.write(tmp_path / "normal" / "long.wav", long, 16000, subtype="PCM_16")
    sound(tmp_path / "normal" / "short.wav", 2.0)
    done = importer.import_machine([tmp_path / "normal"], tmp_path / "root", "m", clip_seconds=4.0)
    cut = done.clips[done.clips["made"] == "cut"]
    assert cut[["start_s", "seconds"]].to_numpy().tolist() == [
        [0, 4],
        [4, 4],
        [8, 3],
    ]  # a rest of three quarters is a clip
    joined = np.concatenate([soundfile.read(done.folder / name, dtype="int16")[0] for name in cut["file"]])
    np.testing.assert_array_equal(joined, soundfile.read(tmp_path / "normal" / "long.wav", dtype="int16")[0])
    again = importer.import_machine([tmp_path / "normal"], tmp_path / "root", "m2", clip_seconds=10.0)
    assert again.clips["seconds"].tolist() == [10.0, 2.0]  # a rest of a tenth is not
    assert "clips cut from the same recording are similar" in done.text()


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_long_recording_takes_no_more_memory_than_a_clip(ending, tmp_path, monkeypatch):
    reads, read = [], soundfile.SoundFile.read

    def counted(self, frames=-1, **how):
        out = read(self, frames, **how)
        reads.append(len(out))
        return out

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    x = np.random.default_rng(0).normal(0, 0.1, (48000 * 60, 2)).astype(np.float32)
    soundfile.write(tmp_path / f"long.{ending}", x, 48000)
    size, peaks = x.nbytes, []
    del x
    for seconds in (10.0, 2.0):
        tracemalloc.start()
        done = importer.import_machine([tmp_path], tmp_path / "root", f"m{seconds:g}", clip_seconds=seconds)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(done.clips) == 60 / seconds and max(reads) <= seconds * 48000
        reads.clear()
    assert max(peaks) < size / 2


def test_what_cannot_be_used_is_left_out_and_told(pump, tmp_path):
    (pump / "normal" / "torn.wav").write_bytes((pump / "normal" / "monday 0.wav").read_bytes()[:900])
    (pump / "normal" / "text.wav").write_text("no sound")
    sound(pump / "normal" / "blink.wav", 0.5)
    sound(pump / "normal" / "anomaly" / "odd.wav")
    sound(pump / "train" / "anomaly" / "odd.wav")
    soundfile.write(pump / "normal" / "mute.wav", np.zeros(32000), 16000)
    done = importer.import_machine([pump], tmp_path / "root", "pump")
    gone = {
        os.path.relpath(row.path, pump): row.reason
        for row in done.problems[done.problems["left_out"]].itertuples()
    }
    assert set(gone) == {
        os.path.join(*parts)
        for parts in (
            ("normal", "torn.wav"),
            ("normal", "text.wav"),
            ("normal", "blink.wav"),
            ("normal", "anomaly", "odd.wav"),
            ("train", "anomaly", "odd.wav"),
        )
    }
    assert (
        "truncated" in gone["normal/torn.wav"] and "0.5 s, expected at least 1 s" in gone["normal/blink.wav"]
    )
    assert (
        "matches both anomaly and normal" in gone["normal/anomaly/odd.wav"]
        and "in the training set" in gone["train/anomaly/odd.wav"]
    )
    assert done.problems[~done.problems["left_out"]]["reason"].str.startswith("silent").tolist() == [True]
    listed = pd.read_csv(done.folder / "imported.csv")
    assert listed["reason"].notna().sum() == 6 and listed["file"].notna().sum() == 7


def test_nothing_is_overwritten_and_a_failed_import_leaves_nothing(pump, tmp_path):
    root = tmp_path / "root"
    importer.import_machine([pump], root, "pump", copy=True, license="CC0")
    assert (
        not any(path.is_symlink() for path in root.rglob("*"))
        and (root / "pump" / "LICENSE.txt").read_text() == "CC0\n"
    )
    sound(root / "other" / "train" / "section_00_source_train_normal_0000.wav")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(
        errors.InputError,
        match="other already exists and is not overwritten; choose another --machine or --root",
    ):
        importer.import_machine([pump], root, "other")
    with pytest.raises(
        errors.InputError,
        match=r"no normal training recordings in .*, expected some in a folder named normal or train",
    ):
        importer.import_machine([pump / "test"], root, "test_only")
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize(
    "text, words",
    [
        ("file,label\na.wav,normal\n", "list.csv: got columns file, label, expected path and label"),
        ("path,label\na.wav,perhaps\n", "says label 'perhaps', expected normal, anomaly or nothing"),
        ("path,label\nb.wav,normal\n", "listed in list.csv, but the file does not exist"),
        ("path,label,split\na.wav,anomaly,train\n", "anomalous recording in the training set"),
        (
            "path,label,motor speed\na.wav,normal,3\n",
            "attribute 'motor speed': expected a name of letters, digits and -",
        ),
    ],
)
def test_a_wrong_list_is_refused_in_words(text, words, tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(errors.InputError, match=words):
        importer.import_machine([tmp_path / "list.csv"], tmp_path / "root", "m")
    assert not (tmp_path / "root" / "m").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["{tmp}/nowhere", "--machine", "m"], "nowhere: no such file or folder"),
        (["{pump}", "--machine", "a/b"], "machine name 'a/b': expected letters, digits, - and _"),
        (["{pump}", "--machine", "test"], "other than all and the split names"),
        (
            ["{pump}", "--machine", "m", "--clip-seconds", "0.2"],
            "--clip-seconds 0.2: expected 1 to 2000 s, or 0 not to cut",
        ),
        (["{tmp}/empty", "--machine", "m"], "no usable recordings in"),
    ],
)
def test_the_command_refuses_in_one_sentence(words, sentence, pump, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert (
        cli.main(
            [
                "import",
                *(word.format(tmp=tmp_path, pump=pump) for word in words),
                "--root",
                str(tmp_path / "root"),
            ]
        )
        == 2
    )
    assert sentence in capsys.readouterr().err


def test_the_shared_recordings_become_a_machine_in_one_command(tmp_path, capsys):
    data = os.path.join(os.path.dirname(__file__), "..", "..", "..", "shared", "data")
    if not os.path.isdir(data):
        pytest.skip("no ../shared/data here")
    assert (
        cli.main(["import", f"{data}/loose", f"{data}/real", "--root", str(tmp_path), "--machine", "own"])
        == 0
    )
    table, problems = read(tmp_path / "own")
    assert (len(table), len(problems)) == (
        104,
        0,
    ) and "next: asd run own --data-root" in capsys.readouterr().out


def test_new_days_are_added_to_a_machine(tmp_path):
    """Numbers go on, audio that is there or was taken out is known by its content, attributes of all days stand
    in one list.
    """
    for i in range(3):
        sound(tmp_path / "day1" / "normal" / f"{i}.wav", hz=400 + i)
    rows = "".join(f"normal/{i}.wav,normal,3\n" for i in range(3))
    (tmp_path / "day1" / "list.csv").write_text(f"path,label,load\n{rows}")
    first = importer.import_machine([tmp_path / "day1" / "list.csv"], tmp_path / "root", "pump")
    (first.folder / first.clips["file"][1]).unlink()
    for name, hz in {"0": 500, "1": 501, "again": 400, "out": 401}.items():
        sound(tmp_path / "day2" / "normal" / f"{name}.wav", hz=hz)
    sound(tmp_path / "day2" / "anomaly" / "0.wav", hz=900)
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.wav")}
    planned = importer.import_machine([tmp_path / "day2"], tmp_path / "root", "pump", dry_run=True)
    assert len(planned.clips) == 5 and not (first.folder / "test").exists()
    second = importer.import_machine([tmp_path / "day2"], tmp_path / "root", "pump")
    assert sorted(second.clips["file"]) == [
        "test/section_00_source_test_anomaly_0000_noAttribute.wav",
        "train/section_00_source_train_normal_0003_noAttribute.wav",
        "train/section_00_source_train_normal_0004_noAttribute.wav",
    ]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    left_out = second.problems.set_index("path")["reason"]
    assert "its audio is already in it" in left_out[str(tmp_path / "day2" / "normal" / "again.wav")]
    assert "its audio was removed from it" in left_out[str(tmp_path / "day2" / "normal" / "out.wav")]
    told = second.text()
    assert "pump: added 3 clips, 4 s, to 2 existing ones" in told
    assert "1 clips of earlier imports were deleted" in told
    table, problems = read(second.folder)
    assert len(table) == 5 and not problems["left_out"].any()
    assert sorted(table["attr_load"]) == ["", "", "", "3", "3"]
    third = importer.import_machine([tmp_path / "day1", tmp_path / "day2"], tmp_path / "root", "pump")
    assert len(third.clips) == 0 and "were deleted" not in third.text() and len(read(third.folder)[0]) == 5


@pytest.mark.parametrize("there", [False, True])
def test_an_import_beside_another_one_overwrites_nothing(there, tmp_path, monkeypatch):
    for i, day in enumerate(("first", "one", "other")):
        sound(tmp_path / day / "normal" / "a.wav", hz=300.0 + 100 * i)
    root, written = tmp_path / "root", importer._written
    if there:
        importer.import_machine([tmp_path / "first"], root, "pump")

    def meanwhile(*words):
        monkeypatch.setattr(importer, "_written", written)
        importer.import_machine([tmp_path / "other"], root, "pump")
        return written(*words)

    monkeypatch.setattr(importer, "_written", meanwhile)
    with pytest.raises(errors.InputError, match="another import changed it meanwhile; run the same"):
        importer.import_machine([tmp_path / "one"], root, "pump")
    assert len(list((root / "pump" / "train").iterdir())) == 1 + there
    assert len(importer.import_machine([tmp_path / "one"], root, "pump").every) == 2 + there


def test_a_link_whose_recording_was_moved_is_put_right(tmp_path):
    sound(tmp_path / "here" / "normal" / "a.wav")
    first = importer.import_machine([tmp_path / "here"], tmp_path / "root", "pump")
    (tmp_path / "here").rename(tmp_path / "there")
    sound(tmp_path / "there" / "normal" / "b.wav", hz=600)
    importer.import_machine([tmp_path / "there"], tmp_path / "root", "pump")
    table, problems = read(first.folder)
    assert len(table) == 2 and len(problems) == 0
    listed = pd.read_csv(first.folder / "imported.csv")
    assert listed["file"].is_unique and listed["source"].str.startswith(str(tmp_path / "there")).all()


def test_a_machine_is_added_to_at_its_rate_and_by_its_own_list(tmp_path):
    source = sound(tmp_path / "in" / "normal" / "a.wav").parents[1]
    done = importer.import_machine([source], tmp_path / "root", "pump")
    with pytest.raises(
        errors.InputError, match="pump has clips at 16000 Hz, got --rate 8000; use --rate 16000"
    ):
        importer.import_machine([source], tmp_path / "root", "pump", rate=8000)
    path = done.folder / "imported.csv"
    pd.read_csv(path).drop(columns="digest").to_csv(path, index=False)  # as earlier versions wrote it
    assert len(importer.import_machine([source], tmp_path / "root", "pump").clips) == 0
    path.write_text("file,source,start_s,seconds,made\na,b\n")
    with pytest.raises(
        errors.InputError, match=r"imported\.csv or its first clip was changed since asd import wrote it"
    ):
        importer.import_machine([source], tmp_path / "root", "pump")


def test_a_dry_run_shows_what_would_become_what(tmp_path, capsys):
    names = {  # MIMII and ToyADMOS: split, section and condition
        "-6_dB_pump/pump/id_00/normal/0.wav": "train/section_00_source_train_normal_0000_snr_-6.wav",
        "-6_dB_pump/pump/id_02/abnormal/0.wav": "test/section_02_source_test_anomaly_0000_snr_-6.wav",
        "6_dB_pump/pump/id_02/normal/0.wav": "train/section_02_source_train_normal_0000_snr_6.wav",
        "car/case1/NormalSound_IND/1.wav": "train/section_00_source_train_normal_0001_case_1.wav",
        "car/case2/AnomalousSound_IND/1.wav": "test/section_00_source_test_anomaly_0000_case_2.wav",
        "car/case1/EnvironmentalNoise_CNT/1.wav": None,
    }
    for place, name in enumerate(names):
        sound(tmp_path / "data" / name, 1.0, hz=300 + 10 * place)
    words = ["import", str(tmp_path / "data"), "--root", str(tmp_path / "root"), "--machine", "m"]
    assert cli.main([*words, "--dry-run"]) == 0 and not (tmp_path / "root").exists()
    told = capsys.readouterr().out
    assert (
        all(file in told for file in names.values() if file)
        and "EnvironmentalNoise_CNT not recognized" in told
    )
    assert "m: would become 5 clips, 5 s" in told
    done = importer.import_machine([tmp_path / "data"], tmp_path / "root", "m").clips
    found = {os.path.relpath(row.source, tmp_path / "data"): row.file for row in done.itertuples()}
    assert found == {name: file for name, file in names.items() if file}


def test_what_ffmpeg_reads_is_converted_where_it_is_installed_and_else_said(tmp_path, monkeypatch):
    source = sound(tmp_path / "in" / "normal" / "a.wav", 2.0, 48000, 2)
    source.with_name("phone.m4a").write_bytes(b"not audio for libsndfile")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = importer.import_machine([tmp_path / "in"], tmp_path / "root", "without")
    assert len(done.clips) == 1
    assert "1 .m4a skipped; .m4a not supported" in done.text() and "ffmpeg -i x.m4a x.wav" in done.text()
    ffmpeg = tmp_path / "bin" / "ffmpeg"  # in its place: what comes as the last word is written
    ffmpeg.parent.mkdir()
    ffmpeg.write_text(f"#!/bin/sh\nfor out; do :; done\n/bin/cp '{source}' \"$out\"\n")
    ffmpeg.chmod(0o755)
    done = importer.import_machine([tmp_path / "in"], tmp_path / "root", "with", clip_seconds=1)
    assert len(done.clips) == 4 and set(done.clips["made"]) == {"cut"}
    ffmpeg.write_text("#!/bin/sh\necho 'Invalid data found' >&2\nexit 1\n")
    done = importer.import_machine([tmp_path / "in"], tmp_path / "root", "torn")
    assert len(done.clips) == 1 and "ffmpeg cannot read it (Invalid data found)" in done.text()
