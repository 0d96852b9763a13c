"""Recordings, or a study file, that were moved after a study was run: what was computed is found by content."""

import shutil

import pytest
from commands import asd_here

from asdlib.data import synthetic

STUDY = 'systems = ["baseline_knn"]\nmaps.umap = "none"\nmetrics.bootstrap = 20\nmetrics.shuffles = 10\n'


def test_moved_recordings_and_a_moved_study_file_are_found_again(tmp_path):
    machines = synthetic.SyntheticSettings(
        machines=("fan",), train_source=8, train_target=3, test=3, seconds=2.0, severity=(3.0,)
    )
    here, there, home = tmp_path / "here", tmp_path / "there", tmp_path / "home"
    synthetic.write_tree(here, machines)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    (tmp_path / "x" / "s.toml").write_text(STUDY)

    def asd(*words, code=0):
        done = asd_here(*words, "--home", home)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    asd("run", tmp_path / "x" / "s.toml", "--data-root", here)
    clip = next((here / "fan" / "test").glob("*anomaly*"))
    before = asd("score", tmp_path / "x" / "s.toml", clip)
    here.rename(there)
    (tmp_path / "x" / "s.toml").rename(tmp_path / "y" / "s.toml")
    clip, study = there / clip.relative_to(here), tmp_path / "y" / "s.toml"
    told = asd("submit", study, tmp_path / "out", code=2)
    assert "here: no such folder" in told and "pass its new location with --data-root" in told
    after = asd("score", study, clip, "--data-root", there)
    assert after.replace(str(there), str(here)) == before
    asd("submit", study, tmp_path / "out", "--data-root", there)
    assert "nothing to do: everything is up to date" in asd("run", study, "--data-root", there)
    assert asd("score", study, clip) == after  # the last run says where they are
    shutil.copy(study, tmp_path / "x" / "s.toml")
    assert "belongs to the study" in asd("run", tmp_path / "x" / "s.toml", "--data-root", there, code=2)
    synthetic.write_tree(tmp_path / "other", machines.replace(seed=1))
    told = asd("score", study, clip, "--data-root", tmp_path / "other", code=2)
    assert "recordings" in told and "Traceback" not in told


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
