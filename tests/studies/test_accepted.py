"""Accepted recordings are references of which nothing is learned; the effect is shown before it is kept; no
label of a test clip is read, and an accepted test clip counts in no metric.
"""

import dataclasses
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from commands import asd_here
from test_export import run_of, scored_alike
from test_scorer import ready

from asdlib import cli, detectors, errors
from asdlib.data.store import Clips, in_memory
from asdlib.detectors import base
from asdlib.scoring.thresholds import gamma_threshold
from asdlib.studies import accepted, export

WITH_REFERENCES = ["baseline_knn", "multires", "pretrained", "oevae", "classifier"]


@pytest.fixture()
def run(context, trained, tmp_path):
    return run_of(context, trained[0], tmp_path)


def odd_clips(context, count=1):
    """Paths of test clips that are far from all training clips: tones one and a half times as high."""
    table = context.store.clips
    rows = table[(table["machine"] == "pump") & table["clip"].str.contains("test_anomaly")]
    return rows["path"].tolist()[:count]


@pytest.mark.parametrize("system", WITH_REFERENCES)
def test_an_accepted_clip_is_a_reference_and_its_neighbors_come_closer(context, trained, run, system):
    one = ready(context, trained, system)
    paths = odd_clips(context, 4)
    told, table, samples = accepted.preview(run, one, paths[:1])
    after = one.accepting(table, samples)
    part = (system, "beta" if system == "oevae" else "score")
    before, now = (np.array(found.scores(found.decoded(paths)[0])[part]) for found in (one, after))
    assert (now < before).all() and now[0] == min(now)
    assert re.search(r"_0000_noAttribute.wav: \S+ \(anomaly\) -> \S+ \((normal|anomaly)\)", told)
    # its own score, without itself, joins those of the training clips, which keep theirs
    own = after.train[(after.train["system"] == system) & (after.train["component"] == "score")]
    own, old = own.set_index("clip")["score"], trained[1].query("system == @system and component == 'score'")
    kept = own[~own.index.str.startswith("accepted/")]
    if system != "oevae":  # whose two parts are brought to scales that count the accepted clip
        np.testing.assert_array_equal(kept, old.set_index("clip")["score"][kept.index])
        assert own[f"accepted/{table['digest'][0]}"] == one.scores(one.store(table, samples))[part][0]
    assert len(own) == len(kept) + 1 and after.threshold == gamma_threshold(own, 0.9)
    assert "13 training clips and 1 accepted (key " in after.about() and one.accepted.empty


def test_a_back_end_that_compares_inner_layers_accepts_them(context):
    settings = context.cfg.classifier.replace(layers=("block2", "block3"), backend="knn", epochs=1)
    detector = detectors.Classifier(settings, device="cpu", precision="float32")
    detector.fit(*base.training_clips(context.store, ["pump", "saw"])[:1])
    row = np.array([context.store.clips["path"].tolist().index(odd_clips(context)[0])])
    table = context.store.clips.iloc[row].assign(label="normal")  # the user says so
    alone = in_memory(table, [context.store.int16(int(row[0]))], 16000)
    clips = Clips(alone, np.arange(1))
    before, after = (
        one.components(clips)["classifier", "score"] for one in (detector, detector.accept(clips))
    )
    assert after[0] < 1e-3 < before[0]


def test_two_alike_are_normal_to_each_other(context, trained, run):
    """The second of two accepted clips that sound alike lies close to the first: leave-clip-out, not alone."""
    one = ready(context, trained, "multires")
    paths = odd_clips(context, 2)
    (_, alone, sound), (_, both, sounds) = (accepted.preview(run, one, paths[:n]) for n in (1, 2))
    own = one.accepting(both, sounds).train.query("component == 'score'").set_index("clip")["score"]
    assert own[f"accepted/{both['digest'][0]}"] < one.scores(one.store(alone, sound))["multires", "score"][0]


def test_a_detector_without_references_counts_scores_alone(context, trained, run):
    one = ready(context, trained, "baseline_mse")
    _, table, samples = accepted.preview(run, one, odd_clips(context))
    after = one.accepting(table, samples)
    paths = context.store.clips["path"][base.machine_rows(context.store.clips, "pump", "test")].tolist()
    np.testing.assert_array_equal(after(paths)["score"], one(paths)["score"])
    assert after.threshold.value > one.threshold.value
    with pytest.raises(errors.InputError, match="already accepted clips; accept all of them at once"):
        after.detectors["autoencoder"].accept(Clips(context.store, np.arange(1)))


def test_no_label_of_a_test_clip_is_read(context, trained, run):
    """With every test label turned round, and with none, accepting says and does the same to the bit."""
    labels, test = context.store.clips["label"], context.store.clips["split"] == "test"
    turned = labels.map({"normal": "anomaly", "anomaly": "normal"})
    told = []
    for other in (labels, turned, pd.Series("unlabeled", labels.index)):
        clips = context.store.clips.assign(label=labels.where(~test, other))
        run.clips, run.store = clips, dataclasses.replace(context.store, clips=clips)
        one = ready(dataclasses.replace(context, store=run.store), trained, "ensemble")
        words, table, samples = accepted.preview(run, one, odd_clips(context))
        after = one.accepting(table, samples)
        told.append(
            (words, after.threshold, after.train["score"].tolist(), after.train["label"].unique().tolist())
        )
    assert told[0] == told[1] == told[2] and told[0][-1] == ["normal"]
    assert "decisions on test clips of the study change" in told[0][0]


def test_what_is_kept_is_listed_scored_exported_and_revoked(context, trained, run, tmp_path):
    one, folder = ready(context, trained, "baseline_knn"), run.study_folder
    paths = odd_clips(context, 2)
    _, table, samples = accepted.preview(run, one, paths)
    accepted.keep(folder, table, samples, 16000)
    kept, sounds = accepted.of(folder, "pump", "")
    assert set(kept["file"]) == set(paths) and re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", kept["when"][0]
    )
    after = one.accepting(kept, sounds)
    export.write(run, after, tmp_path / "out")
    scored_alike(context, after, tmp_path / "out")
    assert accepted.among(folder, context.store.clips).sum() == 2
    assert "_0002_" in accepted.preview(run, after.with_quantile(0.8), odd_clips(context, 3)[2:])[0]
    with pytest.raises(errors.InputError, match="is already accepted"):
        accepted.preview(run, after, paths[:1])
    gone = accepted.revoke(folder, [paths[0]])
    assert gone["file"].tolist() == [paths[0]] and len(accepted.listed(folder)) == 1
    with pytest.raises(errors.InputError, match=r"'nothing.wav' is not accepted"):
        accepted.revoke(folder, ["nothing.wav"])
    left = accepted.listed(folder)["digest"][0]
    assert len(list(folder.glob("accepted/*.wav"))) == 1
    (folder / "accepted" / f"{left}.wav").write_bytes((folder / "accepted" / f"{left}.wav").read_bytes()[:-2])
    with pytest.raises(errors.InputError, match="is not the accepted recording; revoke it"):
        accepted.of(folder, "pump", "")
    accepted.revoke(folder, [left[:6]])
    assert accepted.listed(folder).empty and not list(folder.glob("accepted/*.wav"))


def test_a_clip_of_the_study_is_shown_kept_and_taken_back(context, trained, run):
    run.scorer = lambda machine, system: ready(context, trained, system)
    review, [path] = accepted.Review(run), odd_clips(context)
    row = context.store.clips["path"].tolist().index(path)
    with pytest.raises(errors.InputError, match="no clip to keep"):
        review.keep()
    told = review.preview(row, "multires")
    one = ready(context, trained, "multires")
    assert told == f"{one.about()}\n{accepted.preview(run, one, [path])[0]}" and review.listed().empty
    assert review.keep().startswith("kept; ")
    [digest] = review.listed()["digest"]
    with pytest.raises(errors.InputError, match="no clip to keep"):  # it is kept once
        review.keep()
    train = base.machine_rows(context.store.clips, "pump", "train")[0]
    with pytest.raises(errors.InputError, match="is a training clip of this machine"):
        review.preview(int(train), "multires")
    assert review.revoke(digest) == f"revoked: {path}" and review.listed().empty


def test_what_cannot_be_accepted_is_one_sentence(context, trained, run, tmp_path):
    one = ready(context, trained, "baseline_knn")
    train = context.store.clips["path"][base.machine_rows(context.store.clips, "pump", "train")[0]]
    with pytest.raises(errors.InputError, match="is a training clip of this machine"):
        accepted.preview(run, one, [train])
    with pytest.raises(errors.InputError, match=r"gone.wav: unreadable \(No such file"):
        accepted.preview(run, one, [tmp_path / "gone.wav"])
    with pytest.raises(errors.InputError, match="was given twice"):
        accepted.preview(run, one, odd_clips(context) * 2)
    soundfile.write(tmp_path / "dead.wav", np.zeros(16000), 16000)
    with pytest.raises(
        errors.InputError, match=r"dead.wav: silent .*; expected the sound of a normal machine"
    ):
        accepted.preview(run, one, [tmp_path / "dead.wav"])


def test_a_false_alarm_of_a_study_is_accepted_withdrawn_and_revoked(smoke, tmp_path):
    """From the command line: shown, kept, scored, withdrawn from the metrics by the next run, taken back."""
    home = tmp_path / "home"
    shutil.copytree(smoke, home)
    scores = pd.read_parquet(home / "runs" / "smoke" / "scores.parquet")
    own = scores.query("machine == 'gearbox' and system == 'multires' and component == 'score'")
    own = own[(own["split"] == "test") & (own["label"] == "normal")].sort_values("score")
    path = next(home.glob(f"runs/recordings/*/data/{own['clip'].iloc[-1]}"))
    words = ["score", "smoke", "--home", home, "--machine", "gearbox", "--system", "multires"]
    strict = [
        *words,
        "--threshold-quantile",
        "0.5",
        path,
    ]  # at which the highest normal clip is a false alarm
    assert ",anomaly," in asd_here(*strict).stdout
    shown = asd_here(*strict, "--accept")
    assert (
        shown.returncode == 0
        and "(anomaly) -> " in shown.stdout
        and "nothing was kept; add --yes" in shown.stdout
    )
    assert ",anomaly," in asd_here(*strict).stdout
    kept = asd_here(*strict, "--accept", "--yes").stdout
    assert "kept; list or revoke them with `asd accepted smoke`" in kept and "test clips among them" in kept
    assert ",normal," in asd_here(*strict).stdout
    assert path.name in asd_here("accepted", "smoke", "--home", home).stdout
    plan = asd_here("run", "smoke", "--home", home, "--dry-run").stdout
    assert "the clips accepted as normal changed" in plan
    done = asd_here("run", "smoke", "--home", home)
    assert done.returncode == 0, done.stderr
    after = pd.read_parquet(home / "runs" / "smoke" / "scores.parquet")
    assert set(after.loc[after["clip"] == own["clip"].iloc[-1], "label"]) == {"unlabeled"}
    pd.testing.assert_frame_equal(after.drop(columns="label"), scores.drop(columns="label"))
    facts = json.loads((home / "reports" / "smoke" / "report.json").read_text())
    assert ["1 accepted clip withdrawn", True] in facts["warnings"]
    assert "revoked" in asd_here("accepted", "smoke", "--home", home, "--revoke", path).stdout
    assert ",anomaly," in asd_here(*strict).stdout


@pytest.mark.parametrize(
    "words, said",
    [
        (["--yes"], "--yes given without --accept; add --accept"),
        (["--accept", "--explain", "why"], "--accept given with --explain; leave one of them out"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said, capsys):
    assert cli.main(["score", "smoke", "a.wav", *words]) == 2
    assert said in capsys.readouterr().err
