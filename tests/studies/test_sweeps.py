"""Sweeps: which variants there are, where their jobs lie, and what is said of seeds and settings."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import asd, asd_here

from asdlib import errors, schemas
from asdlib.evaluation import metrics
from asdlib.studies import jobs, stages, study, sweeps

TREE = """
seeds = [0, 1]
systems = ["baseline_knn", "baseline_mse"]
[sweep]
"autoencoder.epochs" = [2, 4]
fusion.normalize = ["zscore", "rank"]
[synthetic]
machines = ["fan", "gearbox"]
train_source = 4
train_target = 2
test = 2
seconds = 1.0
[autoencoder]
epochs = 2
"""


@pytest.fixture
def toml(tmp_path):
    (tmp_path / "swept.toml").write_text(TREE)
    return str(tmp_path / "swept.toml")


def test_all_combinations_but_the_study_itself(toml):
    assert sweeps.axes(toml) == {"autoencoder.epochs": [2, 4], "fusion.normalize": ["zscore", "rank"]}
    found = sweeps.variants(toml, ["seeds=[3]"])
    assert list(found) == ["epochs=2,normalize=rank", "epochs=4,normalize=zscore", "epochs=4,normalize=rank"]
    assert found["epochs=4,normalize=rank"] == [
        "seeds=[3]",
        "autoencoder.epochs=4",
        'fusion.normalize="rank"',
    ]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("sweep.autoencoder.epoch=[1]", "unknown setting autoencoder.epoch; did you mean autoencoder.epochs"),
        ("sweep.autoencoder.epochs=[1.5]", "setting autoencoder.epochs: got 1.5"),
        ("sweep.autoencoder.epochs=[0]", "expected a number from 1"),
        ("sweep.autoencoder.epochs=3", "sweep autoencoder.epochs: got 3, expected a list of values"),
        ("sweep.autoencoder.epochs=[]", r"got \[\], expected a list of values"),
        ("sweep.autoencoder.epochs=[3, 3]", "expected no duplicates"),
        ("sweep.autoencoder=[{epochs = 3}]", "got the table"),
        ("sweep.seeds=[1, 2]", "sweep seeds: cannot be swept"),
        ("sweep=3", "sweep: got 3, expected a table of settings"),
        (f"sweep.autoencoder.epochs={list(range(1, 202))}", "variants, expected at most 200"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said(text, sentence):
    with pytest.raises(errors.InputError, match=sentence):
        sweeps.axes("smoke", [text])


def test_variants_of_one_short_name_are_told_apart():
    found = sweeps.variants("smoke", ["sweep.autoencoder.batch=[4, 8]", "sweep.oevae.batch=[4, 8]"])
    assert "autoencoder.batch=4,oevae.batch=8" in found and len(found) == 4


def test_a_job_lies_where_its_settings_put_it(toml, tmp_path):
    """The study's own where a variant does not touch it, and one folder for variants that agree."""
    opened = sweeps.of(study.open_run(toml, [], tmp_path))
    three = stages.stage_of("03")
    place = {
        name: run.stage_folder(three, 1, "fan").relative_to(run.study_folder).as_posix()
        for name, run in opened.items()
    }
    assert place[""] == place["epochs=2,normalize=rank"] == "seed1/03_baseline/fan"
    assert place["epochs=4,normalize=zscore"] == place["epochs=4,normalize=rank"]
    assert place["epochs=4,normalize=rank"].startswith("sweep/jobs/") and place[
        "epochs=4,normalize=rank"
    ].endswith("/seed1/03_baseline/fan")
    planned = jobs.plan(opened)
    assert [job.stage.notebook[:2] for job in planned] == ["01", "02", *["03"] * 8, "09"]
    assert len({job.folder for job in planned}) == len(planned) and not planned[-1].run.variant
    training = [job.key for job in planned if job.stage is three]
    assert set(training) < set(planned[-1].needs), "the report waits for the variants"
    runs = {run.folder for run in opened.values()}
    assert len(runs) == 4 and all((run.store is opened[""].store) for run in opened.values())


def test_a_notebook_opens_the_variant_that_the_runner_means(toml, tmp_path):
    given = sweeps.variants(toml)["epochs=4,normalize=rank"]
    run = study.open_run(toml, given, tmp_path, seed=1)
    assert (run.cfg.autoencoder.epochs, run.cfg.fusion.normalize) == (4, "rank")
    meant = sweeps.of(study.open_run(toml, [], tmp_path))["epochs=4,normalize=rank"]
    three = stages.stage_of("03")
    assert run.digest(three, 1, "fan") == meant.digest(three, 1, "fan") and meant.overrides == given
    assert run.scores_of(three, 1, "fan") == meant.scores_of(three, 1, "fan")


def test_another_sweep_makes_the_report_stale_and_no_training(toml, tmp_path):
    one, other = (study.open_run(toml, given, tmp_path) for given in ([], ["sweep.oevae.epochs=[3]"]))
    *before, report = stages.STAGES
    assert one.digest(report, 0) != other.digest(report, 0)
    assert [one.digest(stage, 0) for stage in before] == [other.digest(stage, 0) for stage in before]


def test_variants_of_other_recordings_have_a_store_of_their_own(tmp_path):
    base, other = sweeps.of(study.open_run("smoke", ["sweep.synthetic.seed=[0, 1]"], tmp_path)).values()
    assert base.data_folder != other.data_folder and other.roots != base.roots
    assert base.data_folder.parent == other.data_folder.parent == tmp_path / "runs" / "recordings"


def table_of(shift, seeds=(0, 1), systems=("a", "b"), noise=0.0):
    """Scores of 40 test clips; anomalies lie `shift` above normals."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for system in systems:
            for number in range(40):
                label, domain = ("anomaly", "normal")[number % 2], ("source", "target")[number // 2 % 2]
                score = rng.normal() + noise * seed + (shift if label == "anomaly" else 0)
                rows.append(
                    (system, "score", "fan", "00", "test", domain, label, f"fan/{number}", score, seed)
                )
    return pd.DataFrame(rows, columns=list(schemas.SCORE_COLUMNS))


SETTINGS = metrics.MetricsSettings(bootstrap=100)


def test_mean_sd_and_paired_difference():
    scores = {"": table_of(1.0), "k=2": table_of(2.5)}
    table = sweeps.compare(scores, SETTINGS, 0)
    assert list(table["variant"]) == [sweeps.REFERENCE] * 2 + ["k=2"] * 2 and (table["seeds"] == 2).all()
    for row in table.itertuples():
        assert row.mean == pytest.approx(np.mean(row.values)) and row.sd == pytest.approx(
            np.std(row.values, ddof=1)
        )
        assert row.low <= row.mean <= row.high
    reference, varied = table[table["variant"] == sweeps.REFERENCE], table[table["variant"] == "k=2"]
    assert reference["difference"].isna().all()
    np.testing.assert_allclose(varied["difference"], varied["mean"].to_numpy() - reference["mean"].to_numpy())
    assert (varied["difference_low"] > 0).all() and (
        sweeps.shown(table)["claim"][2:] == "better than the study's setting"
    ).all()


def test_equal_scores_are_said_to_be_equal_and_other_recordings_are_not_paired():
    table = sweeps.compare(
        {"": table_of(1.0), "same": table_of(1.0), "other": table_of(1.0)}, SETTINGS, 0, ["other"]
    )
    claims = sweeps.shown(table).set_index("settings")["claim"]
    assert set(claims["same"]) == {"identical scores: the setting does not affect this system"} and set(
        claims["other"]
    ) == {""}


def test_equal_metrics_of_other_scores_are_not_called_the_same():
    """Far above chance two systems reach 1.000 each with different scores."""
    table = sweeps.compare({"": table_of(50.0), "more": table_of(60.0)}, SETTINGS, 0)
    assert set(table["mean"]) == {1.0} and not table["same"].any()
    assert set(sweeps.shown(table)["claim"]) == {"", "no difference shown"}


def test_one_seed_has_no_deviation():
    found = sweeps.over_seeds(sweeps.metrics.table(table_of(1.0, seeds=(3,)), SETTINGS, 0))
    assert found["sd"].isna().all() and (found["seeds"] == 1).all() and (found["metric"] == "omega").all()


def test_the_figure_shows_every_seed_and_says_what_it_is():
    figure = sweeps.dots(sweeps.compare({"": table_of(1.0), "k=2": table_of(2.5)}, SETTINGS, 0))
    assert len(figure.axes) == 2 and "at each setting" in figure.alt
    rings = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(rings) == 2 and all(len(line.get_xdata()) == 2 for line in rings)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_two_seeds_and_a_sweep_end_in_a_page(tmp_path, workers):
    """Shared trainings are made once, others at their own settings; the page tells means, deviations and
    paired differences.
    """
    (tmp_path / "swept.toml").write_text(
        TREE.replace('fusion.normalize = ["zscore", "rank"]\n', "")
        + "n_mels = 16\nhidden = 8\nbottleneck = 4\n"
        + "[metrics]\nbootstrap = 20\nshuffles = 10\n[report]\nplayers = 0\n"
    )
    words = ["run", tmp_path / "swept.toml", "--home", tmp_path, "--machines", "fan"]
    said = asd(*words, "--workers", workers) if workers else asd_here(*words)
    assert said.returncode == 0, said.stdout + said.stderr
    assert ("7 jobs on 2 workers" if workers else "[7/7]") in said.stdout
    runs = tmp_path / "runs" / "swept"
    (own,), (other,) = (
        list(runs.glob("seed0/03_baseline/fan")),
        list(runs.glob("sweep/jobs/*/seed0/03_baseline/fan")),
    )
    used = [json.loads((folder / "manifest.json").read_text())["artifacts"] for folder in (own, other)]
    assert used[0]["baseline_knn"] == used[1]["baseline_knn"], "the nearest neighbor was made twice"
    epochs, made = [], tmp_path / "runs" / "artifacts"
    for names in used:
        trained = json.loads((made / names["autoencoder"] / "manifest.json").read_text())["trained"]
        epochs.append(len(pd.read_parquet(made / trained / "history.parquet")))
    assert epochs == [2, 4]
    table = pd.read_csv(runs / "09_report" / "variants.csv")
    assert (
        list(table.columns) == list(sweeps.COLUMNS)
        and set(table["variant"]) == {sweeps.REFERENCE, "epochs=4"}
        and (table["seeds"] == 2).all()
    )
    same = table[(table["variant"] == "epochs=4") & (table["system"] == "baseline_knn")]
    assert (same[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    assert same["same"].all() and not table[table["system"] == "baseline_mse"]["same"].any()
    again = asd_here(*words)
    assert "nothing to do: everything is up to date" in again.stdout
    toml = tmp_path / "swept.toml"
    toml.write_text(toml.read_text().replace("[2, 4]", "[2]"))  # the same trainings, another report
    fewer = asd_here(*words)
    assert fewer.returncode == 0 and "[5/5] 09_report" in fewer.stdout, fewer.stdout + fewer.stderr
    assert "03_baseline" not in fewer.stdout
    assert set(pd.read_csv(runs / "09_report" / "variants.csv")["variant"]) == {sweeps.REFERENCE}
