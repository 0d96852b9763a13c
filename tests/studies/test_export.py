"""An exported detector scores as its study to the bit, alone in a folder; what is wrong with a folder is refused."""

import dataclasses
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import asd_here
from test_scorer import VIEWS, ready

from asdlib import detectors, errors
from asdlib.detectors import base
from asdlib.scoring import fusion
from asdlib.studies import export

BY_MACHINE = {"oevae": {"features": {"wave_norm": "machine"}}, "classifier": {"wave_norm": "machine"}}


def run_of(context, folders, tmp_path):
    """What `export.write` reads of a study, where the files of every detector lie in one folder."""
    return SimpleNamespace(
        clips=context.store.clips,
        store=context.store,
        cfg=context.cfg.replace(data={"roots": (str(tmp_path),)}),
        device=torch.device("cpu"),
        local_device=torch.device("cpu"),
        reports=tmp_path,
        study_folder=tmp_path / "study",
        detector_path=lambda name, machine: (folders[name], ""),
        trained_with=lambda folder: folder,
        precision_of=lambda name: "float32",
    )


def scored_alike(context, one, path, machine="pump"):
    """Whether a folder scores test recordings as the scorer it was made of, to the bit."""
    test = base.machine_rows(context.store.clips, machine, "test")
    paths = context.store.clips["path"].iloc[test].tolist()
    pd.testing.assert_frame_equal(export.load_detector(path, "cpu")(paths), one(paths), check_exact=True)


@pytest.mark.parametrize("system", fusion.with_composed(detectors.SYSTEMS, VIEWS))
def test_an_exported_detector_scores_as_its_study_to_the_bit(context, trained, system, tmp_path):
    cfg = context.cfg.replace(fusion=context.cfg.fusion.replace(views=VIEWS))
    context = dataclasses.replace(context, cfg=cfg)
    one = ready(context, (trained[0], fusion.systems(trained[1], cfg.fusion)), system)
    (tmp_path / "model_card.md").write_text("# Model card: of the study\n")
    told = export.write(run_of(context, trained[0], tmp_path), one, tmp_path / "out")
    assert (
        "MB, written in" in told and "scores a clip of 1 s in" in told and "identically to its study" in told
    )
    scored_alike(context, one, tmp_path / "out")
    card = (tmp_path / "out" / "model_card.md").read_text()
    assert f"{one.threshold.value:.6g}" in card and card.endswith("# Model card: of the study\n")
    facts = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in facts and json.loads(facts)["system"] == system
    kept = pd.read_parquet(tmp_path / "out" / "clips.parquet")
    test = kept[kept["split"] == "test"]
    assert set(test["label"]) == {"unlabeled"} and set(test["clip"]) == {""} and "path" not in kept
    assert (
        not list((tmp_path / "out").rglob("*.wav"))
        and not (tmp_path / "out/oevae/embeddings.safetensors").exists()
    )


def test_recordings_are_standardized_by_the_machine_they_were_trained_on(context, tmp_path):
    """With wave_norm = machine the training clips' sound enters scoring; of it only mean and deviation are kept."""
    context = dataclasses.replace(context, cfg=context.cfg.replace(**BY_MACHINE))
    folders, tables = {}, []
    for name in BY_MACHINE:
        detector = detectors.DETECTORS[name](getattr(context.cfg, name), device="cpu", precision="float32")
        tables.append(
            base.detect(detector, context.store, ["pump", "saw"] if name == "classifier" else ["saw"])
        )
        folders[name] = tmp_path / name
        detector.save(folders[name])
    scores = fusion.systems(pd.concat(tables).query("machine == 'saw'"), context.cfg.fusion)
    one = export.Scorer(
        context.cfg,
        {
            name: detectors.DETECTORS[name](
                getattr(context.cfg, name), device="cpu", precision="float32"
            ).restore(folders[name], base.training_clips(context.store, machines)[0])
            for name, machines in (("oevae", ["saw"]), ("classifier", ["pump", "saw"]))
        },
        scores,
        "saw",
        "ensemble",
        0,
    )
    export.write(run_of(context, folders, tmp_path), one, tmp_path / "out")
    scored_alike(context, one, tmp_path / "out", "saw")


def test_what_is_wrong_with_a_folder_is_one_sentence(context, trained, tmp_path):
    one, run = ready(context, trained, "baseline_mse"), run_of(context, trained[0], tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(errors.InputError, match="full: exists and is not empty, expected a new folder"):
        export.write(run, one, tmp_path / "full")
    with pytest.raises(
        errors.InputError, match=r"full: no manifest of an exported detector .*; copy or export"
    ):
        export.load_detector(tmp_path / "full")
    out = tmp_path / "out"
    export.write(run, one, out)

    def altered(name, change):
        shutil.rmtree(tmp_path / "altered", ignore_errors=True)
        shutil.copytree(out, tmp_path / "altered")
        change(tmp_path / "altered" / name)
        with pytest.raises(errors.InputError) as refusal:
            export.load_detector(tmp_path / "altered")
        return str(refusal.value)

    def flip(path):
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)

    def later(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"layout": export.LAYOUT + 1}))

    weights = "autoencoder/weights0.safetensors"
    assert f"altered: {weights} is damaged; copy or export it again" in altered(weights, flip)
    assert f"{weights} is missing" in altered(weights, lambda path: path.unlink())
    assert "DONE is not readable" in altered("DONE", lambda path: path.unlink())
    assert "has layout 2, this asdlib reads up to 1; install a newer asdlib" in altered(
        "manifest.json", later
    )


def test_a_folder_made_by_other_code_says_so(context, trained, tmp_path, monkeypatch, capsys):
    export.write(
        run_of(context, trained[0], tmp_path), ready(context, trained, "baseline_knn"), tmp_path / "out"
    )
    export.load_detector(tmp_path / "out", "cpu")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(export.io, "code", lambda *_: {})
    export.load_detector(tmp_path / "out", "cpu")
    assert (
        "baseline_knn was computed by other code; last digits of scores may differ" in capsys.readouterr().err
    )


def test_a_folder_scores_from_the_command_line_where_the_study_is_not(smoke, tmp_path):
    paths = sorted(smoke.glob("runs/recordings/*/data/gearbox/test/*.wav"))[:4]
    words = ["--home", smoke, "--machine", "gearbox"]
    told = asd_here("export", "smoke", *words, tmp_path / "out")
    assert told.returncode == 0 and "ensemble of gearbox, seed 0; threshold" in told.stdout
    assert "detectors: oevae, classifier" in told.stdout
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    alone = asd_here("score", moved, *paths, "--home", tmp_path)
    assert alone.returncode == 0 and alone.stdout == asd_here("score", "smoke", *words, *paths).stdout
    assert np.isfinite(pd.read_csv(io.StringIO(alone.stdout))["score"]).all()
    assert (
        "is an exported detector, with one machine"
        in asd_here("score", moved, "--seed", "1", paths[0]).stderr
    )
    again = asd_here("export", "smoke", *words[:2], "--machine", "gearbax", tmp_path / "new").stderr
    assert "unknown machine 'gearbax'; did you mean gearbox?" in again and not (tmp_path / "new").exists()
