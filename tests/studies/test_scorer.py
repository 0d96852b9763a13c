"""A recording has the score that its study gave it, to the bit, whatever it is scored with; bad files are
told, others scored.
"""

import dataclasses
import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from sizes import detector_of

from asdlib import cli, detectors, errors
from asdlib.data.folders import IMPORTED_HEADER
from asdlib.data.store import Clips
from asdlib.detectors import base
from asdlib.models import training
from asdlib.scoring import fusion
from asdlib.scoring.thresholds import gamma_threshold
from asdlib.studies import scorer, study
from asdlib.studies import study as studies

VIEWS = ("multires", "classifier", "oevae/beta")


def ready(context, trained, system):
    """A scorer of pump from what lies in the folders."""
    found = {}
    for name in scorer.detectors_of(system, views=context.cfg.fusion.views):
        machines = ["pump", "saw"] if name == "classifier" else ["pump"]
        clips, _ = base.training_clips(context.store, machines)
        found[name] = detector_of(detectors.DETECTORS[name], context).restore(trained[0][name], clips)
    return scorer.Scorer(context.cfg, found, trained[1], "pump", system, 0)


@pytest.mark.parametrize(
    "system, mode",
    [
        *((system, "zscore") for system in fusion.with_composed(detectors.SYSTEMS, VIEWS)),
        ("ensemble", "gamma"),
        pytest.param("oevae", "gamma", marks=pytest.mark.exhaustive),
    ],
)
def test_scores_equal_those_of_the_study_to_the_bit(context, trained, system, mode):
    changed = context.cfg.fusion.replace(normalize=mode, views=VIEWS)
    context = dataclasses.replace(context, cfg=context.cfg.replace(fusion=changed))
    folders, scores = trained
    scores = fusion.systems(scores, context.cfg.fusion)
    one = ready(context, (folders, scores), system)
    test = context.store.clips[
        (context.store.clips["machine"] == "pump") & (context.store.clips["split"] == "test")
    ]
    own = (
        scores[(scores["system"] == system) & (scores["component"] == "score")]
        .set_index("clip")["score"][test["clip"]]
        .to_numpy()
    )
    paths = test["path"].tolist()
    together = one(paths)
    np.testing.assert_array_equal(together["score"], own)
    assert (together["problem"] == "").all() and together["file"].tolist() == paths
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for order in (
            [5],
            [3, 3, 1],
            list(range(len(paths)))[::-1],
        ):  # alone, twice, among others, with more threads
            np.testing.assert_array_equal(one([paths[i] for i in order])["score"], own[order])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    above = own > one.threshold.value
    assert together["decision"].tolist() == ["anomaly" if high else "normal" for high in above]
    assert (together["threshold"] == one.threshold.value).all()
    for column, part in scorer.PARTS.items():
        values = (
            scores[(scores["system"] == part[0]) & (scores["component"] == part[1])]
            .set_index("clip")["score"]
            .reindex(test["clip"])
            .to_numpy()
        )
        if part in scorer.parts_of(system, VIEWS):
            np.testing.assert_array_equal(together[column], values)
        else:
            assert together[column].isna().all()


def test_the_threshold_can_be_that_of_another_quantile(context, trained):
    """Scores stay; the threshold is the quantile of the same training scores, and few clips are called few."""
    one = ready(context, trained, "baseline_knn")
    paths = context.store.clips["path"][base.machine_rows(context.store.clips, "pump", "test")].tolist()
    strict, own = one.with_quantile(0.999), trained[1].query("system == 'baseline_knn' and split == 'train'")
    assert strict.threshold == gamma_threshold(own["score"], 0.999) and strict.threshold > one.threshold
    np.testing.assert_array_equal(strict(paths)["score"], one(paths)["score"])
    flagged = [
        (found(paths)["decision"] == "anomaly").sum() for found in (one.with_quantile(0.5), one, strict)
    ]
    assert flagged == sorted(flagged, reverse=True) and flagged[0] > flagged[2]
    assert "quantile 0.999 of 13 training clips, by" in strict.about() and "so few clips" in strict.about()
    assert "so few clips" not in one.about()
    with pytest.raises(errors.InputError, match=r"decision_quantile: got 1\.5, expected a number from 0\.5"):
        one.with_quantile(1.5)


def test_a_scorer_leaves_its_detectors_as_they_were(context, trained):
    one = ready(context, trained, "oevae")
    rows = base.machine_rows(context.store.clips, "pump", "test")[:3]
    before = one.detectors["oevae"].components(Clips(context.store, rows))
    one([context.store.clips["path"][rows[0]]])
    for key, values in one.detectors["oevae"].components(Clips(context.store, rows)).items():
        np.testing.assert_array_equal(values, before[key])


def test_any_rate_and_channels_are_scored_and_bad_files_are_told(context, trained, tmp_path):
    row = base.machine_rows(context.store.clips, "pump", "test")[0]
    path = context.store.clips["path"][row]
    wave, _ = soundfile.read(path)
    there = np.interp(np.arange(round(len(wave) * 44100 / 16000)) * 16000 / 44100, np.arange(len(wave)), wave)
    soundfile.write(tmp_path / "stereo.flac", np.stack([there, np.zeros_like(there)], axis=1), 44100)
    soundfile.write(tmp_path / "eight.wav", np.tile(wave[:, None], 8), 16000)
    (tmp_path / "text.wav").write_text("no sound")
    paths = [
        tmp_path / "stereo.flac",
        tmp_path / "missing.wav",
        tmp_path / "eight.wav",
        tmp_path / "text.wav",
        path,
    ]
    table = ready(context, trained, "baseline_mse")(paths)
    assert table["problem"].astype(bool).tolist() == [False, True, False, True, False]
    assert (
        table["score"].isna().tolist() == [False, True, False, True, False]
        and table["decision"].isna().tolist() == table["score"].isna().tolist()
    )
    assert table["score"][2] == table["score"][4]  # the first of eight channels is the clip itself
    assert table["score"][0] == pytest.approx(
        table["score"][4], rel=0.25
    )  # there and back through another rate
    assert "No such file" in table["problem"][1] and "unreadable" in table["problem"][3]
    assert list(table.columns) == [*scorer.COLUMNS, "problem"]


def test_scoring_says_of_a_recording_what_indexing_says(context, trained, tmp_path):
    row = base.machine_rows(context.store.clips, "pump", "test")[0]
    wave, _ = soundfile.read(context.store.clips["path"][row])
    waves = {
        "whole": wave,
        "mute": np.zeros(16000),
        "loud": np.clip(50 * wave, -1, 1),
        "dead": np.stack([0 * wave, wave], axis=1),
    }
    for name, sound in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000)
    soundfile.write(tmp_path / "fast.wav", wave, 44100)
    soundfile.write(tmp_path / "slow.wav", wave, 8000)
    raw = bytearray((tmp_path / "whole.wav").read_bytes())
    raw[40:44] = bytes(4)  # the size of its audio
    (tmp_path / "open.wav").write_bytes(raw)
    names = [*waves, "fast", "slow", "open", "missing"]
    table = ready(context, trained, "baseline_knn")([tmp_path / f"{name}.wav" for name in names])
    told = dict(zip(names, table["remark"], strict=True))
    assert told["whole"] == told["missing"] == "" and told["mute"] == "silent (-120 dB re full scale)"
    assert told["loud"].startswith("clipped (") and told["dead"].startswith(
        "channel 0 is silent (-120 dB re full scale), channel 1 is not"
    )
    assert told["fast"] == "44100 Hz, resampled to 16000 Hz"
    assert told["slow"] == "8000 Hz, resampled to 16000 Hz: no sound above 4000 Hz"
    assert (
        told["open"].startswith("the header does not state the length")
        and table["score"][0] == table["score"][6]
    )


def test_names_that_are_not_utf_8_are_escaped_and_scored(context, trained, tmp_path):
    row = base.machine_rows(context.store.clips, "pump", "test")[0]
    odd = tmp_path / os.fsdecode(b"Pr\xfcfstand.wav")
    shutil.copyfile(context.store.clips["path"][row], odd)
    paths = [odd, context.store.clips["path"][row], tmp_path / os.fsdecode(b"gone \xff.wav")]
    table = ready(context, trained, "baseline_knn")(paths)
    assert table["file"].tolist() == [f"{tmp_path}/Pr\\xfcfstand.wav", paths[1], f"{tmp_path}/gone \\xff.wav"]
    assert table["score"][0] == table["score"][1] and table["problem"].astype(bool).tolist() == [
        False,
        False,
        True,
    ]
    table.to_csv().encode()


def test_what_is_printed(context, trained, tmp_path, monkeypatch, capsys):
    """Rows of what was scored, with remarks, on stdout; what was not, and that there are remarks, on stderr.
    Paths come as bytes on stdin.
    """
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    soundfile.write(os.fsencode(tmp_path) + b"/\xfc.wav", 0.1 * np.sin(np.arange(16000)), 16000)
    one = ready(context, trained, "baseline_knn")
    monkeypatch.setattr(studies, "open", lambda *_: SimpleNamespace(scorer=lambda *_: one))
    listed = b"%s/a.wav\n%s/\xfc.wav\n%s/gone.wav\n" % (3 * (os.fsencode(tmp_path),))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed), encoding="utf-8"))
    assert cli.main(["score", "smoke", "-"]) == 1
    out, err = capsys.readouterr()
    table = pd.read_csv(io.StringIO(out))
    assert list(table.columns) == list(scorer.COLUMNS) and table["file"].tolist() == [
        f"{tmp_path}/a.wav",
        f"{tmp_path}/\\xfc.wav",
    ]
    assert table["remark"][0] == "silent (-120 dB re full scale)" and table["remark"].isna().tolist() == [
        False,
        True,
    ]
    assert (
        f"asd: {tmp_path}/gone.wav: unreadable (No such file" in err
        and "asd: 1 of 3 files could not be scored" in err
    )
    assert (
        f"asd: 1 of 3 files have a remark (last column), first: {tmp_path}/a.wav: silent (-120 dB"
        " re full scale)" in err
    )


def test_folders_are_searched_and_empty_ones_refused(tmp_path):
    for name in ("b.wav", "deep/a.FLAC", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert scorer.recordings([tmp_path / "in", "x.wav"]) == [
        tmp_path / "in" / "b.wav",
        tmp_path / "in" / "deep" / "a.FLAC",
        Path("x.wav"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.InputError, match="empty: no recordings in this folder, expected audio files"):
        scorer.recordings([tmp_path / "empty"])
    (tmp_path / "empty" / "a.m4a").touch()
    with pytest.raises(
        errors.InputError, match=r"no recordings in this folder.*; 1 .m4a skipped; .m4a not supported"
    ):
        scorer.recordings([tmp_path / "empty"])


def test_folders_are_searched_as_import_and_index_do(tmp_path):
    for name in (
        "n/a.wav",
        "n/._a.wav",
        ".Trash-0/b.wav",
        "@eaDir/c.wav",
        "n/memo.m4a",
        "n/note.txt",
        "old/machine/train/d.wav",
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "old" / "machine" / "imported.csv").write_text(IMPORTED_HEADER + "\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "e.wav").touch()
    for name, target in (
        ("a", "."),
        ("b", "."),
        ("more", "../store"),
        ("same", "../store"),
        ("n/gone.wav", "lost.wav"),
    ):
        (tmp_path / "in" / name).symlink_to(target)
    problems = []
    found = scorer.recordings([tmp_path / "in"], problems)
    assert found == [tmp_path / "in" / "more" / "e.wav", tmp_path / "in" / "n" / "a.wav"]
    told = {os.path.relpath(path, tmp_path / "in"): (words, left_out) for path, words, left_out in problems}
    assert told.keys() == {"n/gone.wav", "old/machine", "."}
    assert told["n/gone.wav"] == (
        "dangling link: lost.wav does not exist; restore it or remove the link",
        True,
    )
    assert (
        told["."][0].startswith("3 hidden or system files, 1 .m4a, 1 .txt skipped; .m4a not supported")
        and not told["."][1]
    )


def test_the_system_that_stands_for_a_study():
    assert scorer.final_system(["baseline_mse", "baseline_mahala", "baseline_knn"]) == "baseline_knn"
    assert scorer.final_system(["oevae", "baseline_mse"]) == "oevae"
    assert scorer.final_system(["oevae", "classifier", "baseline_mse"]) == "ensemble"
    assert scorer.final_system(["oevae", "classifier", "multires"], VIEWS) == "fusion"
    assert scorer.final_system(["oevae", "classifier"], VIEWS) == "ensemble"
    assert scorer.detectors_of("fusion", views=["ensemble", "multires"]) == [
        "oevae",
        "classifier",
        "multires",
    ]
    assert scorer.systems_behind("fusion", ["ensemble", "baseline_mse"]) == [
        *("fusion", "ensemble", "oevae", "classifier", "baseline_mse")
    ]


def test_one_thread_is_one_thread():
    with training.one_thread():
        assert torch.get_num_threads() == 1 and all(
            pool["num_threads"] == 1 for pool in training._pools().info()
        )


def test_a_study_that_was_not_run_is_refused(tmp_path):
    with pytest.raises(
        errors.InputError, match=r"study smoke is not finished in .*; run `asd run smoke` first"
    ):
        study.open("smoke", tmp_path)
    with pytest.raises(errors.InputError, match="unknown study 'smok'; did you mean smoke"):
        study.open("smok", tmp_path)
