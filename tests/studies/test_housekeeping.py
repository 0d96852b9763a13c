"""What lies below runs/: listed, checked, tidied; nothing that is referred to goes."""

import json
import subprocess
import sys

import pytest

from asdlib import cli, errors
from asdlib.studies import artifacts, housekeeping


def artifact(home, name, **facts):
    folder = home / "runs" / "artifacts" / name
    artifacts.start(folder, name)
    (folder / "weights").write_text(name)
    artifacts.commit(folder, name, facts)
    return folder


KINDS = ("trained", "embeddings")


@pytest.fixture
def home(tmp_path):
    """A study and a variant made by hand that use two of three sets of artifacts."""
    for key in ("a", "b", "c"):
        trained, embedded = (artifact(tmp_path, f"knn-fan-0-{kind}-{key}").name for kind in KINDS)
        artifact(tmp_path, f"knn-fan-0-scores-{key}", trained=trained, embeddings=[embedded])
    study = tmp_path / "runs" / "demo"
    stage = study / "seed0" / "03_baseline" / "fan"
    artifacts.start(stage, "d")
    artifacts.commit(stage, "d", {"artifacts": {"knn": "knn-fan-0-scores-a"}})
    (study / "study.txt").write_text("demo")
    scores = tmp_path / "runs" / "artifacts" / "knn-fan-0-scores-b"
    recordings = tmp_path / "runs" / "recordings" / "mine"
    housekeeping.record_variant(study / "sweep" / "change-1", {"k": 3}, scores, recordings)
    return tmp_path


def test_what_a_study_or_a_variant_refers_to_is_never_cleaned(home, capsys):
    assert cli.main(["clean", "--home", str(home)]) == 0
    told = capsys.readouterr().out
    assert "3 artifacts that no study or variant refers to" in told and "add --yes" in told
    assert len(list(home.glob("runs/artifacts/*"))) == 9
    assert cli.main(["clean", "--yes", "--home", str(home)]) == 0
    left = sorted(path.name[-1] for path in home.glob("runs/artifacts/*"))
    assert left == ["a"] * 3 + ["b"] * 3


def test_recordings_that_nothing_refers_to_are_cleaned_too(home):
    for name in ("mine", "other"):
        store = home / "runs" / "recordings" / name / "store"
        store.mkdir(parents=True)
        (store / "DONE.json").write_text("{}")
    assert [path.name for path in housekeeping.unused(home)][-1] == "other"
    housekeeping.remove(housekeeping.unused(home))
    assert [path.name for path in (home / "runs" / "recordings").iterdir()] == ["mine"]


def test_nothing_is_cleaned_while_a_study_is_run(home):
    code = "import sys, pathlib, time; from asdlib import io\n"
    code += "with io.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(home / "runs" / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(errors.InputError, match="another run of this study is in progress"):
            housekeeping.unused(home)
        other.kill()


def test_one_that_is_being_computed_is_left(home):
    artifacts.start(home / "runs" / "artifacts" / "knn-fan-0-trained-d", "d")
    assert [path.name[-1] for path in housekeeping.unused(home)] == ["c"] * 3


def test_damage_is_found_by_content(home, capsys):
    assert cli.main(["verify", "--home", str(home)]) == 0
    path = home / "runs" / "artifacts" / "knn-fan-0-scores-a" / "weights"
    path.write_text(path.read_text()[::-1])
    assert cli.main(["verify", "--home", str(home)]) == 1
    assert "knn-fan-0-scores-a: weights is damaged" in capsys.readouterr().out


def test_studies_are_listed_with_what_they_hold(home, capsys):
    assert cli.main(["studies", "--home", str(home)]) == 0
    assert "demo" in capsys.readouterr().out
    table = housekeeping.studies(home)
    assert table["variants"].tolist() == [1] and table["finished"].tolist() == [""]


def test_networks_of_the_earlier_layout_are_recognized(home):
    assert not housekeeping.earlier_layout(home / "runs" / "demo")
    old = home / "runs" / "demo" / "seed0" / "05_oevae" / "fan" / "oevae"
    old.mkdir(parents=True)
    (old / "weights.safetensors").write_text("x")
    assert housekeeping.earlier_layout(home / "runs" / "demo")


def test_a_manifest_that_is_none_refers_to_nothing(home):
    (home / "runs" / "demo" / "manifest.json").write_text(json.dumps(["a"]))
    (home / "runs" / "demo" / "sweep" / "change-1" / "manifest.json").write_text("{")
    assert len(housekeeping.unused(home)) == 3


@pytest.mark.parametrize("words", [["opem", "demo"], ["scor", "demo"]])
def test_a_misspelt_command_is_answered_with_the_closest(words, capsys):
    assert cli.main(words) == 2
    assert f"unknown command {words[0]!r}; did you mean" in capsys.readouterr().err


def test_a_report_is_opened_wherever_the_recordings_are(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("webbrowser.open", lambda page: None)
    assert cli.main(["open", "smoke", "--home", str(tmp_path)]) == 2
    assert "index.html: no such report; run `asd run smoke` first" in capsys.readouterr().err
    page = tmp_path / "reports" / "real" / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    assert cli.main(["open", "real", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{page}\n"


def test_a_home_without_runs_is_not_called_whole(tmp_path, capsys):
    assert cli.main(["verify", "--home", str(tmp_path)]) == 2
    assert f"{tmp_path}: has no folder runs" in capsys.readouterr().err
