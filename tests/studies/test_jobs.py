"""The graph of a study: what each job waits for, and why it is not fresh."""

import json

import pytest

from asdlib.settings import digest
from asdlib.studies import artifacts, stages, study, sweeps
from asdlib.studies import jobs as graph

SMALL = [
    "synthetic.machines=['fan', 'gearbox']",
    "synthetic.train_source=4",
    "synthetic.train_target=2",
    "synthetic.test=2",
    "synthetic.seconds=1.0",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Every job of a small study sealed by hand, as if it had been computed."""
    home = tmp_path_factory.mktemp("graph")
    for job in graph.plan(sweeps.of(study.open_run("smoke", SMALL, home))):
        run, folder, of = job.run, job.folder, (job.stage, job.seed, job.machine)
        for path in run.outputs(job.stage):
            path.write_text("x")
        for path in [run.reports / name for name in ("summary.md", "report.json", "model_card.md")]:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        for name, scored in run.scores_of(*of).items():
            inputs = run.trained_by(name, job.seed, job.machine)
            trained = run.artifact("trained", name, job.seed, job.machine, digest(name, inputs))
            facts = {
                "shaped_by": run.detector_shaped_by(name, job.seed, job.machine),
                "trained": trained.name,
            }
            for made in (trained, scored):
                artifacts.start(made, made.name)
                (made / "weights").write_text("w" * 100)
                artifacts.commit(made, made.name, facts)
        artifacts.start(folder, "")
        used = {name: scored.name for name, scored in run.scores_of(*of).items()}
        facts = {"shaped_by": run.shaped_by(*of), "artifacts": used}
        artifacts.commit(folder, run.digest(*of), facts, run.outputs(job.stage))
    return home


def plan(home, *more):
    return {job.label: job for job in graph.plan(sweeps.of(study.open_run("smoke", [*SMALL, *more], home)))}


def test_everything_is_fresh_until_something_changes(home):
    assert {job.state for job in plan(home).values()} == {"fresh"}
    assert graph.text(list(plan(home).values())).endswith(
        f"{len(plan(home))} jobs: {len(plan(home))} fresh, 0 stale, 0 missing"
    )


def test_training_waits_for_nothing_readers_for_what_they_read_and_the_last_for_all(home):
    jobs = plan(home, "seeds=[0, 1]")
    by_key = {job.key: job for job in jobs.values()}
    for job in jobs.values():
        needs = {by_key[key].stage.notebook[:2] for key in job.needs}
        if job.stage.detectors or job.stage.notebook < "03":
            assert not needs
        elif job.stage is stages.STAGES[-1]:
            assert set(job.needs) == set(by_key) - {job.key}
        else:  # 08 and 06 show the scores of other systems too
            expected = {"06": {"03", "04", "05"}, "07": {"05"}, "08": {"04", "05"}}[job.stage.notebook[:2]]
            seeds = [job.seed] if job.stage.per_seed else [0, 1]
            trained = [
                other
                for other in jobs.values()
                if other.stage.notebook[:2] in expected and other.seed in seeds
            ]
            assert needs == expected and set(job.needs) == {other.key for other in trained}
    order = list(by_key)
    assert all(order.index(key) < order.index(job.key) for job in jobs.values() for key in job.needs)


def test_the_setting_that_changed_is_named(home):
    jobs = plan(home, "autoencoder.epochs=7")
    assert jobs["03_baseline fan"].state == "stale" and jobs["03_baseline fan"].why == (
        "autoencoder trained again: autoencoder.epochs was 2, is now 7",
    )
    assert jobs["05_oevae fan"].state == jobs["02_preprocessing"].state == "fresh"
    assert jobs["09_report"].state == "stale"
    text = graph.text(list(jobs.values()))
    assert "stale    03_baseline fan" in text and "autoencoder.epochs was 2, is now 7" in text


@pytest.mark.parametrize(
    "what, value, words",
    [
        ("code", "other", "asdlib's code changed"),
        ("recordings", "other", "recordings changed"),
        ("notebook", "other", "the notebook changed"),
        ("device", "cuda", "device was cuda, is now cpu"),
    ],
)
def test_code_recordings_notebook_and_device_are_named(home, what, value, words):
    job = plan(home)["01_data"]
    path = job.folder / "manifest.json"
    before = path.read_text()
    facts = json.loads(before)
    facts["shaped_by"][what] = value
    path.write_text(json.dumps(facts))
    try:
        assert artifacts.changes(job.folder, job.run.shaped_by(job.stage, job.seed)) == [words]
    finally:
        path.write_text(before)


def test_other_code_is_stale_and_not_reused(home, monkeypatch):
    monkeypatch.setattr(artifacts, "code_digest", lambda: "0" * 16)
    jobs = plan(home)
    assert {job.state for job in jobs.values()} == {"stale"} and all(
        "asdlib's code changed" in job.why for job in jobs.values()
    )


def test_a_damaged_file_makes_its_job_and_the_last_one_stale(home):
    (weights,) = home.glob("runs/artifacts/oevae-gearbox-0-scores-*/weights")
    weights.write_text("w" * 99)
    try:
        jobs = plan(home)
        assert jobs["05_oevae gearbox"].why == ("oevae: weights is truncated (99 bytes, expected 100)",)
        assert jobs["09_report"].why == ("depends on recomputed 05_oevae gearbox",)
        assert {
            job.state for label, job in jobs.items() if label not in ("05_oevae gearbox", "09_report")
        } == {"fresh"}
        with pytest.raises(ValueError, match=r"oevae of gearbox \(seed 0\) is damaged: weights is truncated"):
            jobs["09_report"].run.detector_folder("oevae", "gearbox", 0)
    finally:
        weights.write_text("w" * 100)


def test_a_lost_table_and_a_job_that_was_begun(home):
    job = plan(home)["09_report"]
    (job.run.folder / "metrics.csv").write_text("xx")
    assert plan(home)["09_report"].why == ("../metrics.csv is truncated (2 bytes, expected 1)",)
    (job.run.folder / "metrics.csv").write_text("x")
    artifacts.start(job.folder / "probe", job.run.digest(job.stage, 0))
    (job.folder / "probe" / "BEGUN").rename(job.folder / "BEGUN")
    done = (job.folder / "DONE").read_text()
    (job.folder / "DONE").unlink()
    assert (plan(home)["09_report"].state, plan(home)["09_report"].why) == (
        "missing",
        ("interrupted, will resume",),
    )
    (job.folder / "BEGUN").unlink()
    assert plan(home)["09_report"].why == ("not computed yet",)
    (job.folder / "DONE").write_text(done)


def test_a_sweep_adds_its_trainings_only(home):
    jobs = plan(home, "sweep.oevae.condition.k_scale=[5.0, 10.0]")
    assert sorted(label for label, job in jobs.items() if job.state == "missing") == [
        "05_oevae fan k_scale=10.0",
        "05_oevae gearbox k_scale=10.0",
    ]
