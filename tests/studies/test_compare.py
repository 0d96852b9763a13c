"""Two studies side by side: what differs, what may be paired, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest

from asdlib import cli, errors, settings
from asdlib.evaluation import metrics
from asdlib.studies import compare, config
from tests.viz.test_tables import SETTINGS, clip_table, score_table


def study(home, name, gain, epochs=5, digests="a", machine="fan", chosen_by=""):
    """What `asd run` leaves, as far as a comparison reads it."""
    folder = home / "runs" / name
    (folder / "09_report").mkdir(parents=True)
    clips = clip_table(machine=machine)
    scores = pd.concat([score_table(clips, gain), score_table(clips, 0.0, f"only_{name}")])
    cfg = config.StudySettings(
        name=name,
        autoencoder={"epochs": epochs},
        metrics={"bootstrap": 50, "shuffles": 50},
        chosen_by=chosen_by,
    )
    clips.assign(digest=digests + clips["clip"]).to_parquet(folder / "clips.parquet")
    scores.to_parquet(folder / "scores.parquet")
    metrics.table(scores, SETTINGS, 0).to_csv(folder / "metrics.csv", index=False)
    manifest = {
        "settings": settings.to_tree(cfg),
        "versions": {"source": name},
        "data": digests,
        "device": "cpu",
    }
    (folder / "09_report" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "09_report" / "DONE").write_text("{}")
    (folder / "study.txt").write_text(name)
    return folder


def test_settings_results_and_a_paired_test(tmp_path, capsys):
    study(tmp_path, "one", 0.0)
    study(tmp_path, "two", 4.0, epochs=9)
    page = tmp_path / "page.html"
    assert cli.main(["compare", "one", "two", "--home", str(tmp_path), "--html", str(page)]) == 0
    told = capsys.readouterr().out
    assert "autoencoder.epochs" in told and "metrics.bootstrap" not in told and "Paired on fan." in told
    assert "baseline_knn of two is better than baseline_knn of one" in told and "1 comparison," in told
    a, b = (compare.load(name, tmp_path) for name in ("one", "two"))
    results = compare.results(a, b)
    assert (
        list(results.columns) == ["machine", "metric", "system", "one", "two"]
        and results["metric"].iloc[0] == "Ω"
    )
    alone = results[(results["system"] == "only_one") & (results["metric"] == "Ω")].iloc[0]
    assert alone["two"] == "—" and alone["one"] != "—"
    shown = page.read_text()
    assert (
        "<script" not in shown
        and "default-src 'none'" in shown
        and "one against two" in shown
        and "autoencoder.epochs" in shown
    )


def test_a_study_tuned_on_test_labels_is_not_called_better(tmp_path):
    study(tmp_path, "one", 0.0)
    study(tmp_path, "two", 4.0, chosen_by="oracle")
    told = compare.text(*(compare.load(name, tmp_path) for name in ("one", "two")))
    assert "No claim, as of two ω, η and k were chosen on the test labels (oracle)." in told
    assert "is better" not in told and "0 significant" in told and "chosen_by" in told


def test_the_difference_is_that_of_metrics_paired(tmp_path):
    a, b = (
        compare.load(study(tmp_path, name, gain).name, tmp_path)
        for name, gain in (("one", 0.0), ("two", 1.0))
    )
    row = compare.tested(a, b, ["fan"], SETTINGS).iloc[0]
    both = [
        metrics.table(side.scores, SETTINGS, 0)
        .query("metric == 'omega' and system == 'baseline_knn'")["value"]
        .iloc[0]
        for side in (a, b)
    ]
    assert float(row["a − b"].split(" ")[0].replace("−", "-")) == pytest.approx(both[0] - both[1], abs=5e-4)


@pytest.mark.parametrize(
    "digests, machine, words",
    [
        ("b", "fan", "Not paired because of different test clips: fan"),
        ("a", "pump", "In one study only: fan, pump"),
    ],
)
def test_other_clips_are_not_paired(tmp_path, capsys, digests, machine, words):
    study(tmp_path, "one", 0.0)
    study(tmp_path, "two", 4.0, digests=digests, machine=machine)
    assert cli.main(["compare", "one", "two", "--home", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "No paired test" in told and words in told and "is better" not in told


def test_a_study_against_its_copy(tmp_path):
    folder = study(tmp_path, "one", 1.0)
    copy = study(tmp_path / "other", "one", 1.0)
    told = compare.text(compare.load(str(folder), tmp_path), compare.load(str(copy), tmp_path))
    assert "one (1) against one (2)" in told and "0 significant" in told and "0.000 [0.000, 0.000]" in told


def test_refusals(tmp_path, capsys):
    folder = study(tmp_path, "one", 0.0)
    for words, sentence in (
        (["one", "onne"], "no study 'onne'"),
        (["one", "one", "--html", str(tmp_path / "no" / "page.html")], "the folder"),
    ):
        assert cli.main(["compare", *words, "--home", str(tmp_path)]) == 2
        assert sentence in capsys.readouterr().err
    (folder / "scores.parquet").write_text("torn")
    with pytest.raises(errors.InputError, match="the results of study one are not readable"):
        compare.load("one", tmp_path)
    (folder / "09_report" / "DONE").unlink()
    with pytest.raises(errors.InputError, match=r"study one has no results: .* run `asd run one` first"):
        compare.load("one", tmp_path)


def test_nan_metrics_are_written_in_words(tmp_path):
    folder = study(tmp_path, "one", 0.0)
    table = pd.read_csv(folder / "metrics.csv")
    table.assign(value=np.nan, low=np.nan, high=np.nan).to_csv(folder / "metrics.csv", index=False)
    side = compare.load("one", tmp_path)
    assert (compare.results(side, side)["one (1)"] == "— not available").all()
