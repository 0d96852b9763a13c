"""The short way of a finished study: taken only while everything is as it was, and without anything heavy."""

import os
import subprocess
import sys

import pytest

from asdlib import artefacts, checks, settled

WORDS = "study smoke, and what it reaches: 0.5 \N{GREEK CAPITAL LETTER OMEGA}"


@pytest.fixture
def home(tmp_path):
    """A finished study with recordings of its own, as far as the short way looks."""
    for name in ("runs/smoke/seed0/03_baseline/DONE", "runs/smoke/.lock", "reports/smoke/index.html", "data/fan/train/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    settled.note("smoke", overrides(tmp_path), tmp_path / "runs" / "smoke", tmp_path / "reports" / "smoke", WORDS)
    return tmp_path


def overrides(home, *more):
    return [f"data.roots=['{home}/data']", *more]


def recall(home, *more):
    return settled.recall("smoke", overrides(home, *more), str(home))


def test_the_same_words_while_nothing_changed(home):
    assert recall(home) == recall(home) == WORDS
    (home / "runs" / "smoke" / ".lock").write_text("held")
    assert recall(home) == WORDS


@pytest.mark.parametrize("name", ["runs/smoke/seed0/03_baseline/DONE", "reports/smoke/index.html", "data/fan/train/a.wav"])
@pytest.mark.parametrize("how", ["changed", "touched", "gone", "new neighbour"])
def test_any_file_that_changed_is_seen(home, name, how):
    path = home / name
    if how == "changed":
        path.write_text("xx")
    elif how == "touched":
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 1))  # an older time counts as well: clocks go backwards
    elif how == "gone":
        path.unlink()
    else:
        path.with_name("new.wav").write_text("x")
    assert recall(home) is None


def test_other_settings_sweep_code_and_libraries_are_seen(home, monkeypatch):
    assert recall(home, "autoencoder.epochs=3") is None and recall(home, "sweep.autoencoder.epochs=[3]") is None
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "code_digest", lambda: "0")
        assert recall(home) is None
    with monkeypatch.context() as patch:
        patch.setattr(artefacts, "digest_of", lambda files: "0")
        assert recall(home) is None
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "3")
        assert recall(home) is None
    assert recall(home) == WORDS


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1}', "\udc80"])
def test_a_torn_note_is_no_note(home, content):
    (home / "runs" / "smoke" / settled.NAME).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert recall(home) is None
    settled.forget(home / "runs" / "smoke")
    assert recall(home) is None


def test_wrong_settings_are_refused_on_the_short_way_too(home):
    with pytest.raises(checks.Refusal, match=r"unknown setting autoencoder\.epoch"):
        recall(home, "autoencoder.epoch=3")


def test_a_finished_study_is_answered_without_torch_or_pandas(home):
    code = "import sys; from asdlib.cli import main; code = main(); "
    code += "print({'torch', 'pandas', 'scipy', 'jupyter_client'} & set(sys.modules)); sys.exit(code)"
    words = ["run", "smoke", "--data-root", str(home / "data"), "--home", str(home)]
    settled.note("smoke", [f'data.roots=["{home}/data"]'], home / "runs" / "smoke", home / "reports" / "smoke", WORDS)
    said = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [WORDS, "set()"]
