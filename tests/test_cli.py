"""The whole line, by the command line, on the smoke study: what it leaves behind, what a second run does, and
what breaks it.
"""

import fcntl
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import soundfile
from commands import CODE, ENV, asd_here

from asdlib import cli, schemas
from asdlib.data import synthetic


def said(result):
    """The one sentence of a refusal; a traceback or a zero exit fails the test."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr and result.stderr.count("asd: ") == 1
    return result.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Synthetic recordings of two machines with three bad clips among them."""
    root = tmp_path_factory.mktemp("recordings") / "raw"
    settings = synthetic.SyntheticSettings(
        machines=("fan", "gearbox"), train_source=10, train_target=3, test=4, seconds=2.0, severity=(3.0,)
    )
    synthetic.write_tree(root, settings)
    train = sorted((root / "fan" / "train").glob("*source*.wav"))
    train[0].write_bytes(train[0].read_bytes()[:1000])
    soundfile.write(train[1], np.full(32000, np.nan), 16000, subtype="FLOAT")
    soundfile.write(train[2], np.zeros(88200), 44100)
    return root


@pytest.fixture
def altered(smoke, tmp_path):
    """A copy of the finished study, to be altered."""
    shutil.copytree(smoke, tmp_path / "smoke", symlinks=True)
    return tmp_path / "smoke"


def test_a_study_ends_in_scores_metrics_and_a_report(smoke):
    runs, reports, told = (
        smoke / "runs" / "smoke",
        smoke / "reports" / "smoke",
        (smoke / "said.txt").read_text(),
    )
    scores = schemas.score_table(pd.read_parquet(runs / "scores.parquet"))
    assert list(scores.columns) == list(schemas.SCORE_COLUMNS)
    systems = "baseline_knn multires baseline_mse baseline_mahala oevae classifier ensemble"
    assert set(scores["system"]) == set(systems.split())
    final = scores[scores["component"] == "score"]
    counts = final.groupby(["system", "machine", "split"]).size().unstack()
    assert len(counts) == 14 and (counts == [20, 16]).all(axis=None)
    metrics = pd.read_csv(runs / "metrics.csv")
    assert list(metrics.columns) == list(schemas.METRIC_COLUMNS)
    assert {"auc_source", "auc_target", "pauc", "hmean"} <= set(metrics["metric"])
    omega = metrics[
        (metrics["machine"] == "all") & (metrics["metric"] == "omega") & (metrics["component"] == "score")
    ]
    assert len(omega) == 7 and omega["value"].between(0, 1).all() and (omega["low"] <= omega["value"]).all()
    page = (reports / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page), (
        "a page that asks the network for something"
    )
    assert (reports / "summary.md").is_file() and (reports / "report.json").is_file()
    assert "report " + str(reports / "index.html") in told and "baseline_mahala" in told


def test_everything_finished_says_of_what_it_was_made(smoke):
    done = list((smoke / "runs").rglob("DONE"))
    assert (
        len(done) == 6 + 2 * (2 + 2 * 4) + 1 + 2 + 3
    )  # 01, 02, 06, 07, 08, 09; per machine two notebooks and four detectors, each trained and scored; 04; the
    # embeddings of each network
    for path in done:
        manifest = json.loads((path.parent / "manifest.json").read_text())
        assert (
            manifest["versions"]["torch"]
            and manifest["versions"]["source"]
            and manifest["device"] == "cpu"
            and manifest["data"]
        )
    assert not [
        path
        for path in (smoke / "runs").rglob("*")
        if path.name.startswith(".") and path.name not in (".lock", ".cache")
    ]
    assert not list((smoke / "runs").rglob("checkpoint*")) and not list(
        (smoke / "runs").rglob("failed.ipynb")
    )


def test_a_second_run_does_nothing_but_say_so(smoke):
    def ages():
        return {path: path.stat().st_mtime_ns for path in smoke.rglob("[!.]*") if path.is_file()}

    before, result = ages(), asd_here("run", "smoke", "--home", smoke)
    assert (
        result.returncode == 0
        and "nothing to do: everything is up to date" in result.stdout
        and "baseline_mse" in result.stdout
    )
    assert before == ages()


def test_an_interrupted_run_goes_on_to_the_same_scores(smoke, tmp_path):
    words = ["run", "smoke", "--home", str(tmp_path), "--stages", "03"]
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    made = tmp_path / "runs" / "artifacts"
    while process.poll() is None and not list(made.glob("autoencoder-fan-*/checkpoint*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == 130 and "run the same command again to resume" in err and "Traceback" not in err
    )
    again = asd_here(*words)
    assert again.returncode == 0, again.stderr
    for machine in ("fan", "gearbox"):
        for name in ("baseline_knn", "autoencoder"):
            which = f"runs/artifacts/{name}-{machine}-0-scores-*/scores.parquet"
            (one,), (other,) = tmp_path.glob(which), smoke.glob(which)
            assert one.parent.name == other.parent.name
            pd.testing.assert_frame_equal(pd.read_parquet(one), pd.read_parquet(other), check_exact=True)


def test_a_report_without_scores_says_what_is_missing(tree, tmp_path):
    result = asd_here(
        "run", "smoke", "--data-root", tree, "--home", tmp_path, "--stages", "09", "--machines", "gearbox"
    )
    told, missing = (
        said(result),
        (
            "03_baseline of gearbox (seed 0), 04_classifier of all machines (seed 0), 05_oevae of gearbox"
            " (seed 0)"
        ),
    )
    assert f"missing scores: {missing}; run `asd run smoke` with these settings first" in told


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["run", "smok"], "unknown study 'smok'; did you mean smoke?"),
        (
            ["run", "smoke", "--set", "autoencoder.epoch=1"],
            "unknown setting autoencoder.epoch; did you mean autoencoder.epochs?",
        ),
        (
            ["run", "smoke", "--data-root", "{tree}", "--machines", "fann"],
            "unknown machine 'fann'; did you mean fan?",
        ),
        (["run", "smoke", "--data-root", "{tmp}/nowhere"], "nowhere"),
        (["run", "smoke", "--data-root", "{tmp}"], "expected <machine>/train"),
        (["run", "smoke", "--data-root", "{tree}", "--stages", "33"], "unknown stage '33'; known: 01_data"),
        (["index", "{tmp}/nowhere"], "nowhere"),
        (["synth", "{tmp}/out", "--machines", "fann"], "did you mean fan?"),
        (["synth", "{tree}"], "raw"),
        (["settings", "autoencodr.epochs"], "did you mean autoencoder.epochs?"),
        (
            ["run", "smoke", "--set", "seeds=[]"],
            "setting seeds: got [], expected one or more values, no duplicates",
        ),
        (
            ["run", "smoke", "--set", "systems=['baseline_mses']"],
            "unknown system 'baseline_mses'; did you mean baseline_mse?",
        ),
        (["run", "smoke", "--set", "data.roots=['tree']"], "setting data.roots: 'tree' is a relative path"),
    ],
)
def test_what_is_wrong_is_one_sentence(words, sentence, tree, tmp_path, capsys):
    words = [word.format(tree=tree, tmp=tmp_path / "t") for word in words] + (
        ["--home", str(tmp_path / "h")] if words[0] == "run" else []
    )
    (tmp_path / "t").mkdir()
    assert cli.main(words) == 2
    assert sentence in capsys.readouterr().err


def test_a_machine_without_training_clips_is_refused_before_anything_runs(tree, tmp_path):
    bare = tmp_path / "raw"
    shutil.copytree(tree, bare)
    shutil.rmtree(bare / "gearbox" / "train")
    result = asd_here("run", "smoke", "--data-root", bare, "--home", tmp_path / "h")
    assert "machine gearbox has no usable training clip" in said(result) and "[1/" not in result.stdout


def test_one_machine_alone_is_refused_before_anything_runs(tree, tmp_path):
    result = asd_here("run", "smoke", "--data-root", tree, "--machines", "fan", "--home", tmp_path)
    assert (
        "fan is the only machine with training clips, expected others as pseudo-anomalies" in said(result)
        and "[1/" not in result.stdout
    )


def test_a_full_disk_is_one_sentence(tree, tmp_path):
    """A file size limit stands in for a full disk: every write beyond it fails as a full disk's would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        result = asd_here("run", "smoke", "--data-root", tree, "--home", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "free" in said(result)
    assert not list((tmp_path / "runs").rglob("DONE*"))


def test_a_folder_without_write_permission_is_one_sentence(tree, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    result = asd_here("run", "smoke", "--data-root", tree, "--home", tmp_path / "file")
    assert "file" in said(result)


def test_two_runs_of_one_study_do_not_meet(tree, tmp_path):
    folder = tmp_path / "runs" / "smoke"
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert "another run of this study is in progress" in said(
            asd_here("run", "smoke", "--data-root", tree, "--home", tmp_path)
        )


def test_index_prints_the_agreed_json(tree, capsys):
    assert cli.main(["index", str(tree), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"machines", "classes", "problems", "supplemental"} and set(
        content["machines"]
    ) == {"fan", "gearbox"}
    fan = content["machines"]["fan"]
    assert fan["train"] == {"source": 7, "target": 3}
    assert fan["test"] == {
        "source_normal": 4,
        "source_anomaly": 4,
        "target_normal": 4,
        "target_anomaly": 4,
        "unlabeled": 0,
    }
    assert fan["seconds"] == [2.0, 2.0] and fan["attributes"] == {} and len(content["problems"]) >= 3
    assert all(set(problem) == {"path", "reason"} for problem in content["problems"])


def test_recordings_without_labels_or_without_test_clips_end_in_a_report(tree, tmp_path):
    """Bad clips, an evaluation machine, a machine with training clips only, a silent clip: what is left out or
    not available is said, nothing stops.
    """
    odd = tmp_path / "raw"
    shutil.copytree(tree, odd)
    shutil.rmtree(odd / "fan" / "test")
    for number, path in enumerate(sorted((odd / "gearbox" / "test").glob("*.wav"))):
        path.rename(path.with_name(f"section_00_{number:04}.wav"))
    soundfile.write(sorted((odd / "fan" / "train").glob("*source*.wav"))[3], np.zeros(32000), 16000)
    result = asd_here("run", "smoke", "--data-root", odd, "--home", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = pd.read_csv(tmp_path / "runs" / "smoke" / "metrics.csv")
    assert set(metrics["machine"]) == {"fan", "gearbox", "all"} and metrics["value"].isna().all()
    summary = (tmp_path / "reports" / "smoke" / "summary.md").read_text(encoding="utf-8")
    assert "not available" in result.stdout and "Clips left out: 3" in summary
    assert result.stdout.count("left out: ") == 3 and "44100 Hz" in result.stdout
    shutil.rmtree(
        odd / "gearbox" / "test"
    )  # additional training sets alone: embeddings for others, nothing to score
    result = asd_here("run", "smoke", "--data-root", odd, "--home", tmp_path / "bare", "--stages", "04")
    assert result.returncode == 0, result.stdout + result.stderr


def test_lost_outputs_are_restored_without_training_again(altered):
    (weights,) = altered.glob("runs/artifacts/autoencoder-fan-0-trained-*/weights0.safetensors")
    before = weights.stat().st_mtime_ns
    shutil.rmtree(altered / "reports" / "smoke")
    (altered / "runs" / "smoke" / "scores.parquet").unlink()
    result = asd_here("run", "smoke", "--home", altered)
    assert result.returncode == 0 and "03_baseline" not in result.stdout, result.stdout + result.stderr
    assert (altered / "runs" / "smoke" / "scores.parquet").is_file()
    for page in ("index.html", "03_baseline_fan_seed0.html"):
        assert (altered / "reports" / "smoke" / page).is_file()
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["real", "paper"])
def test_studies_of_recordings_do_not_make_up_any(name, tmp_path, capsys):
    assert cli.main(["run", name, "--home", str(tmp_path)]) == 2
    assert (
        f"study {name} needs recordings, but no folder was given; add --data-root DIR"
        in capsys.readouterr().err
    )


def test_two_study_files_of_one_name_do_not_share_a_folder(smoke, tree, tmp_path):
    (tmp_path / "smoke.toml").write_text("about = 'another study'")
    given = smoke / "runs" / "smoke" / "overrides.json"
    before = given.read_bytes()
    assert "set another name in the study file" in said(
        asd_here("run", tmp_path / "smoke.toml", "--data-root", tree, "--home", smoke)
    )
    assert given.read_bytes() == before


def test_files_have_the_scores_that_the_study_gave_them(smoke, tmp_path):
    """In another process than the study's, in another order, beside a file that is none: bit for bit, by the
    system that stands for the study and by another.
    """
    scores = pd.read_parquet(smoke / "runs" / "smoke" / "scores.parquet")
    paths = sorted(smoke.glob("runs/recordings/*/data/gearbox/test/*.wav"))[::-1]
    for words, system in (([], "ensemble"), (["--system", "baseline_mahala"], "baseline_mahala")):
        given = ["score", "smoke", "--home", smoke, "--machine", "gearbox", *words]
        result = asd_here(*given, *paths[:3], tmp_path / "nothing.wav", *paths[3:])
        assert (
            result.returncode == 1
            and "nothing.wav: unreadable" in result.stderr
            and "1 of 21 files could not be scored" in result.stderr
        )
        table = pd.read_csv(io.StringIO(result.stdout), dtype=str)
        own = scores[(scores["system"] == system) & (scores["component"] == "score")].set_index("clip")[
            "score"
        ]
        assert table["file"].tolist() == list(map(str, paths))
        np.testing.assert_array_equal(
            table["score"].map(float), own[[f"gearbox/test/{path.name}" for path in paths]]
        )
        assert table["decision"].isin(["normal", "anomaly"]).all() and table["alpha"].notna().all() == (
            system == "ensemble"
        )
    assert "study smoke has the machines fan, gearbox; choose one with --machine" in said(
        asd_here("score", "smoke", "--home", smoke, paths[0])
    )
    assert "unknown seed 7; study smoke has 0" in said(
        asd_here("score", "smoke", "--home", smoke, "--seed", "7", "--machine", "fan", paths[0])
    )


def test_a_finished_study_leaves_a_model_card_and_can_be_submitted(smoke, tmp_path):
    card = (smoke / "reports" / "smoke" / "model_card.md").read_text(encoding="utf-8")
    for heading in (
        "Data",
        "Intended use and limits",
        "Results, with intervals",
        "Controls",
        "Thresholds and their meaning",
        "Hardware and time",
    ):
        assert f"## {heading}" in card
    assert "| gearbox |" in card and "Few training clips of" in card
    result = asd_here("submit", "smoke", tmp_path / "sub", "--home", smoke)
    assert result.returncode == 0 and "system ensemble" in result.stdout, result.stderr
    assert len(list((tmp_path / "sub").glob("*_section_00_test.csv"))) == 4


def test_scores_of_other_settings_are_not_taken(smoke):
    """And what is there stays as it is."""
    kept = {
        path: path.read_bytes()
        for path in (smoke / "runs" / "smoke" / "09_report").iterdir()
        if path.is_file()
    }
    result = asd_here("run", "smoke", "--home", smoke, "--stages", "09", "--set", "autoencoder.epochs=3")
    assert "missing scores: 03_baseline of fan (seed 0)" in said(result)
    assert "DONE" in {path.name for path in kept} and all(
        path.read_bytes() == content for path, content in kept.items()
    )
