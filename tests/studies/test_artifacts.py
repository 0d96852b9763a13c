"""Folders that are whole or not there: what DONE vouches for, what is swept away, who may write."""

import fcntl
import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from asdlib import errors, io
from asdlib.studies import artifacts


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "job"
    artifacts.start(folder, "d1")
    io.write_text(folder / "a.txt", "some words")
    io.write_table(folder / "t.parquet", pd.DataFrame({"x": range(100)}))
    io.write_text(tmp_path / "outside.csv", "x\n1\n")
    artifacts.commit(folder, "d1", {"made": "here"}, [tmp_path / "outside.csv"])
    return folder


def test_a_sealed_folder_is_finished_for_its_digest_only(sealed):
    assert (
        artifacts.finished(sealed, "d1")
        and not artifacts.finished(sealed, "d2")
        and artifacts.corrupt_files(sealed) == []
    )
    assert artifacts.sealed_for(sealed) == "d1" and artifacts.sealed_for(sealed.parent) == ""
    assert set(json.loads((sealed / "DONE").read_text())["files"]) == {
        "a.txt",
        "t.parquet",
        "manifest.json",
        "../outside.csv",
    }


def test_what_happened_to_a_file_is_said(sealed):
    stat = (sealed / "t.parquet").stat()
    content = bytearray((sealed / "t.parquet").read_bytes())
    content[50] ^= 1
    (sealed / "t.parquet").write_bytes(content)
    os.utime(sealed / "t.parquet", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    (sealed / "a.txt").write_text("some")
    (sealed.parent / "outside.csv").unlink()
    assert artifacts.corrupt_files(sealed) == [
        "a.txt is truncated (4 bytes, expected 10)",
        "t.parquet is damaged",
        "../outside.csv is missing",
    ]
    assert not artifacts.finished(sealed, "d1")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"digest": "d1", "files": {"a.txt": 10}}', '{"digest": "d1", "files": 3}'],
)
def test_an_unreadable_done_is_no_done(sealed, content):
    (sealed / "DONE").write_text(content)
    assert artifacts.corrupt_files(sealed) == ["DONE is not readable"] and not artifacts.finished(
        sealed, "d1"
    )


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    stray = [
        ".scores.parquet.4711.part",
        "a/.DONE.1.part",
        ".0123.part99/fan/x.wav",
        "store/.decoding-ab/samples",
    ]
    kept = [".lock", "a/.ipynb_checkpoints/x.ipynb", "a/scores.parquet", ".notes"]
    for name in stray + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    artifacts.remove_temp(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(
        kept
    )
    assert not (tmp_path / ".0123.part99").exists() and not (tmp_path / "store" / ".decoding-ab").exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    io.write_text(tmp_path / "f", "old")
    with pytest.raises(UnicodeEncodeError):
        io.write_text(tmp_path / "f", "new \udc80")
    assert (tmp_path / "f").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["f"]


def test_two_processes_do_not_compute_the_same_artifact(tmp_path):
    """Who comes second waits, and finds it finished."""
    folder = tmp_path / "made"
    with artifacts.only_one(folder):
        other = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from asdlib.studies import artifacts\n"
                "folder = Path(sys.argv[1]); print('up', flush=True)\n"
                "with artifacts.only_one(folder): print(artifacts.is_whole(folder))",
                str(folder),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout.readline() == "up\n"
        artifacts.start(folder, folder.name)
        artifacts.commit(folder, folder.name, {})
    assert other.communicate(timeout=60)[0] == "True\n"


def test_reasons_name_settings_clips_and_modules(tmp_path):
    before = {
        "settings": {"a": {"b": 1}},
        "recordings": "x",
        "code": {"asdlib.augment": "1", "asdlib.features": "2"},
    }
    artifacts.start(tmp_path, "d")
    artifacts.commit(tmp_path, "d", {"shaped_by": before})
    now = {
        "settings": {"a": {"b": 2}},
        "recordings": "y",
        "code": {"asdlib.augment": "1", "asdlib.features": "3"},
    }
    found = artifacts.changes(tmp_path, now)
    assert found == ["a.b was 1, is now 2", "recordings changed", "code of asdlib.features changed"]
    assert artifacts.only_code(found[2:]) and not artifacts.only_code(found)


def test_one_process_at_a_time_writes_a_job(tmp_path):
    artifacts.lock_dir(tmp_path / "job")
    code = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    other = [sys.executable, "-c", code, str(tmp_path / "job")]
    assert b"BlockingIOError" in subprocess.run(other, capture_output=True).stderr
    artifacts.unlock_dir(tmp_path / "job")
    assert subprocess.run(other, capture_output=True).returncode == 0


def test_a_study_belongs_to_one_process_and_its_kernels(tmp_path, monkeypatch):
    other = "import sys, pathlib; from asdlib import io; io.locked(pathlib.Path(sys.argv[1])).__enter__()"
    command = [sys.executable, "-c", other, str(tmp_path)]
    with io.locked(tmp_path), io.locked(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True).stderr
    assert "another run of this study is in progress" in refused
    assert subprocess.run(command, capture_output=True).returncode == 0
    with open(tmp_path / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with (
            pytest.raises(
                errors.InputError, match="another run of this study is in progress; wait for it or stop it"
            ),
            io.locked(tmp_path),
        ):
            pass
        monkeypatch.setenv(io.HOLDS, str(tmp_path))
        with io.locked(tmp_path):
            pass
