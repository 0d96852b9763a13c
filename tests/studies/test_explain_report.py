"""Why a recording was scored so: the page says what the score was made of, and names the training clips that
lie nearest.
"""

import os
import re

import numpy as np
import pandas as pd
import pytest
import soundfile
from sizes import detector_of

from asdlib import detectors, errors
from asdlib.analysis import explain
from asdlib.data.store import in_memory, training_rows
from asdlib.detectors import base
from asdlib.scoring import fusion
from asdlib.studies import explain_report, scorer


class Study:
    """What `explain_report.write` asks of a run, without the notebooks."""

    def __init__(self, context, found):
        self.cfg, self.store, self.local_device, self.found = (
            context.cfg,
            context.store,
            context.device,
            found,
        )
        self.clips, self.seed = context.store.clips, 0

    def detector(self, name, machine):
        return self.found[name]


@pytest.fixture(scope="module")
def trained(context):
    """Every detector trained, and a scorer of pump."""
    found, tables = {}, []
    for name, kind in detectors.DETECTORS.items():
        found[name] = detector_of(kind, context)
        tables.append(
            base.detect(found[name], context.store, ["pump", "saw"] if name == "classifier" else ["pump"])
        )
    scores = fusion.systems(
        pd.concat(tables, ignore_index=True).query("machine == 'pump'"), context.cfg.fusion
    )
    return Study(context, found), scorer.Scorer(
        context.cfg, {"oevae": found["oevae"]}, scores, "pump", "oevae", 0
    )


@pytest.mark.parametrize("name", list(explain_report.DISTANCES))
def test_a_training_clip_given_as_a_recording_lies_nearest_to_itself(context, trained, name):
    run, ready = trained
    row = training_rows(context.store.clips, "pump")[4]
    store, _ = ready.decoded([context.store.clips["path"][row]])
    near = explain_report.nearest(name, run.found[name], store, 0, "pump")
    assert near["clip"][0] == context.store.clips["clip"][row] and near["distance"][0] == pytest.approx(
        0.0, abs=2e-3
    )
    assert (
        near["distance"].is_monotonic_increasing
        and near["rank"].tolist() == [1, 2, 3, 4, 5]
        and (near["distance"][1:] > 2e-3).all()
    )


def test_segments_of_a_recording_explain_its_score(context, trained):
    """On the store of a recording row 0 is no training clip, though the study's row 0 may be one."""
    run, ready = trained
    rows = base.machine_rows(context.store.clips, "pump", "test")[:2]
    paths = context.store.clips["path"][rows].tolist()
    store, _ = ready.decoded(paths)
    table, moved = (
        ready(paths),
        {name: run.found[name].at(store) for name in ("autoencoder", "oevae", "classifier")},
    )
    for row in (0, 1):
        why = explain.why(store, row, context.cfg.oevae.features, **moved)
        home = explain.why(
            context.store, rows[row], context.cfg.oevae.features, **{name: run.found[name] for name in moved}
        )
        for name in ("alpha", "beta"):
            assert why.segments[name].mean() == pytest.approx(table[name][row], rel=1e-6)
        np.testing.assert_allclose(why.raised.values, home.raised.values, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(why.residual.values, home.residual.values, rtol=1e-5)
        assert why.branches == pytest.approx(home.branches, rel=1e-4)


def test_a_page_is_whole_by_itself(context, trained, tmp_path):
    run, ready = trained
    rows = base.machine_rows(context.store.clips, "pump", "test")[:1]
    paths = [tmp_path / "missing <b>.wav", context.store.clips["path"][rows[0]]]
    table = ready(paths)
    pages = explain_report.write(run, ready, paths, table, tmp_path / "why", first=7)
    assert [page.name[:4] for page in pages] == ["0008"]  # nothing to explain of the missing one
    page = pages[0].read_text()
    assert re.search(r'class="change">[^<]+normal training clips', page) and page.count('class="strip"') == 2
    assert f"score {table['score'][1]:.4g}" in page and table["decision"][1] in page and "<script" not in page
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", page) and page.count("<audio") >= 6
    near = pd.read_csv(tmp_path / "why" / "nearest.csv")
    asked = set(explain_report.DISTANCES) & set(scorer.detectors_of(*run.cfg.systems))
    assert set(near["detector"]) == asked and (near["file"] == str(paths[1])).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_clip_of_the_study_is_told_like_a_recording(context, trained, split):
    run, ready = trained
    row = int(base.machine_rows(context.store.clips, "pump", split)[1])
    told = explain_report.OfStudy(run, ready.train)
    shown, change = told(row, "oevae"), told.change(row)
    assert context.store.clips["split"][change.like] == "train" and change.like != row
    assert change.words in shown and shown.count('class="strip"') == 2 and shown.count("<audio") == 2
    assert "louder than in the most similar normal clips" in shown and context.store.clips["clip"][
        change.like
    ] in shown.replace("<wbr>", "")
    if split == "test":
        store, _ = ready.decoded([context.store.clips["path"][row]])
        scored = explain_report.along(ready, store, 0)
        np.testing.assert_allclose(explain_report.along(ready, context.store, row), scored, atol=1e-4)


def test_the_score_along_a_recording_is_that_of_its_sections(context, trained, monkeypatch):
    """By a slow loop: each section cut out and scored separately."""
    monkeypatch.setattr(explain_report, "SECTION_S", 0.5)
    _, ready = trained
    row = base.machine_rows(context.store.clips, "pump", "test")[1]
    store, _ = ready.decoded([context.store.clips["path"][row]])
    scored, wave, alone = explain_report.along(ready, store, 0), store.int16(0), []
    for start in (0, 4000, 8000):  # of 16000 samples
        part = in_memory(store.clips.iloc[:1], [wave[start : start + 8000]], store.rate)
        alone.append(ready.scores(part)["oevae", "score"][0])
    train = ready.train.query("system == 'oevae' and component == 'score'")["score"]
    np.testing.assert_allclose(scored, (np.array(alone) - np.mean(alone)) / train.std(), atol=1e-4)


def test_a_page_says_the_remark_and_escapes_a_name_that_is_not_utf_8(trained, tmp_path):
    run, ready = trained
    odd = tmp_path / os.fsdecode(b"\xfc.wav")
    soundfile.write(os.fsencode(odd), np.zeros(16000), 16000)
    (page,) = explain_report.write(run, ready, [odd], ready([odd]), tmp_path / "why")
    text = page.read_text(encoding="utf-8")
    assert "<title>\\xfc.wav</title>" in text and "Remark: silent (-120 dB re full scale)." in text
    assert pd.read_csv(tmp_path / "why" / "nearest.csv")["file"].unique().tolist() == [
        f"{tmp_path}/\\xfc.wav"
    ]


def test_a_detector_without_embeddings_of_clips_is_refused(context, trained):
    run, ready = trained
    store, _ = ready.decoded([context.store.clips["path"][0]])
    with pytest.raises(errors.InputError, match="unknown detector with embeddings of clips 'autoencoder'"):
        explain_report.nearest("autoencoder", run.found["autoencoder"], store, 0, "pump")
