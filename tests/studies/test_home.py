"""Where home is, and what `asd init` leaves there."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asdlib import cli, errors, io
from asdlib.studies import artifacts, compare, config, home, stages, study

ROOT = Path(__file__).resolve().parents[2]
SERIES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.ipynb", "*.md", "studies/*.toml")
    for path in (ROOT / "notebooks").glob(pattern)
)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package as if it lay in site-packages, which holds no notebooks, and the current folder is empty."""
    monkeypatch.setattr(home, "CLONE", tmp_path / "site-packages")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


@pytest.fixture
def work(tmp_path):
    """A working folder with a study of its own."""
    folder = tmp_path / "work"
    home.init(folder)
    (folder / "notebooks" / "studies" / "mine.toml").write_text('about = "mine"\ninclude = ["smoke.toml"]\n')
    return folder


def test_init_copies_the_series(work):
    (work / "notebooks" / "studies" / "mine.toml").unlink()
    assert sorted(str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()) == SERIES
    assert all((work / name).read_bytes() == (ROOT / name).read_bytes() for name in SERIES)


@pytest.mark.parametrize("name", ["notebooks/METHOD.md", "notebooks/studies/demo.toml"])
def test_init_overwrites_nothing_and_then_writes_nothing(name, tmp_path, capsys):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).symlink_to("nowhere")
    assert cli.main(["init", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"asd: {tmp_path / name} exists and is never overwritten; choose another folder\n"
    )
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == [tmp_path / name]


@pytest.mark.parametrize("name", ["file", "file/below", "a\0b"])
def test_a_place_that_cannot_be_filled_is_one_sentence(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.InputError, match="choose a writable folder"):
        home.init(tmp_path / name)


def test_home_is_what_is_given_else_the_nearest_parent_else_the_clone(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert home.home_folder() == ROOT and home.notebooks() == ROOT / "notebooks"
    monkeypatch.chdir(work / "notebooks" / "studies")
    assert home.home_folder() == work and home.notebooks() == work / "notebooks"
    assert home.home_folder("..") == work / "notebooks"
    assert home.home_folder(tmp_path / "out") == tmp_path / "out"
    assert home.notebooks(tmp_path / "out") == work / "notebooks"
    assert home.notebooks(ROOT) == ROOT / "notebooks"


def test_studies_are_those_of_home(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in (study.open_run("mine", home=work), study.open_run("mine", [], str(work), 0)):
        assert (run.home, run.cfg.about, run.cfg.seeds) == (work, "mine", config.load("smoke").seeds)
        assert run.notebook(stages.STAGES[0]) == work / "notebooks" / "01_data.ipynb"
    with pytest.raises(errors.InputError, match="unknown study 'mine'"):
        study.open_run("mine")
    with pytest.raises(errors.InputError, match=f"mine is not finished in {work}"):
        study.open("mine", work)
    with pytest.raises(errors.InputError, match=f"no study 'mine' in {work}/runs"):
        compare.load("mine", work)


def test_a_job_takes_studies_from_beside_its_notebook(work, tmp_path, monkeypatch, installed):
    with pytest.raises(errors.InputError, match="no working folder"):
        study.open_run("mine", home=tmp_path / "out")
    monkeypatch.setenv(home.SERIES, str(work / "notebooks"))
    assert study.open_run("mine", home=tmp_path / "out").cfg.about == "mine"


def test_a_notebook_opened_by_hand_finds_its_studies(work, monkeypatch, installed):
    monkeypatch.chdir(work / "notebooks")
    given = ['data.roots=["/nowhere"]', "data.recorded=true"]
    with pytest.raises(errors.InputError, match="/nowhere"):
        study.open_notebook("01_data", study="mine", overrides=given, home="")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "smoke", "--dry-run"],
        ["score", "smoke", "a.wav"],
        ["submit", "smoke", "o"],
        ["compare", "a", "b"],
    ],
)
def test_without_a_working_folder_every_command_says_how_to_make_one(words, installed, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err == "asd: no working folder here; create one with `asd init DIR`\n"


def test_a_deleted_current_folder_and_a_package_without_notebooks(installed, tmp_path, monkeypatch):
    (tmp_path / "empty").rmdir()
    with pytest.raises(errors.InputError, match="no working folder"):
        home.home_folder()
    monkeypatch.setattr(io, "PACKAGE", tmp_path)
    with pytest.raises(errors.InputError, match="has no notebooks in"):
        home.init(tmp_path / "work")


def test_the_commit_is_that_of_the_clone_only(tmp_path, monkeypatch):
    """Not that of a repository of the user, in which site-packages lies."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(artifacts, "CLONE", tmp_path / "site-packages")
    (tmp_path / "site-packages").mkdir()
    assert artifacts.versions.__wrapped__()["commit"] == "unknown"


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_clone(tmp_path):
    """Built from a copy, installed by itself, run in a folder of its own; the libraries are this suite's."""
    copy = tmp_path / "copy"
    copy.mkdir()
    names = ("asdlib", "notebooks", "pyproject.toml", "README.md", "LICENSE")
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(copy)], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    here = int(importlib.metadata.version("setuptools").split(".")[0]) > 70  # as the extra dev has it
    for words in (
        [
            "wheel",
            "-q",
            "--no-deps",
            *(["--no-build-isolation"] if here else []),
            "-w",
            str(tmp_path),
            str(copy),
        ],
        [
            "install",
            "-q",
            "--no-deps",
            "--target",
            str(tmp_path / "site"),
            "asdlib",
            "--no-index",
            "-f",
            tmp_path,
        ],
    ):
        done = subprocess.run([*pip, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    site = tmp_path / "site"
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "asdlib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = package | {f"asdlib/{name}" for name in SERIES}
    assert expected == {
        str(path.relative_to(site))
        for path in (site / "asdlib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    def asd(folder, *words):
        env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "asdlib.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, timeout=300)

    own = tmp_path / "own"
    own.mkdir()
    assert asd(own, "init", "work").returncode == 0
    assert "11 jobs to run" in asd(own / "work", "run", "smoke", "--dry-run").stdout
    done = asd(own / "work" / "notebooks", "run", "smoke", "--stages", "01")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert {path.name for path in (own / "work").iterdir()} == {"notebooks", "runs", "reports"}
    assert (own / "work" / "reports" / "smoke" / "01_data.html").is_file()
    facts = json.loads((own / "work" / "runs" / "smoke" / "01_data" / "manifest.json").read_text())
    assert facts["versions"]["source"] == io.code_digest()


def test_a_file_is_no_home(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["run", "smoke", "--dry-run", "--home", str(tmp_path / "file")]) == 2
    assert "is a file, expected a folder for runs/ and reports/" in capsys.readouterr().err
