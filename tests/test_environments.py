"""Terminals, configuration, users and file systems as people have them: none changes a result or a page, and
none ends in a traceback.
"""

import errno
import fcntl
import io
import json
import os
import shutil
import subprocess
import sys

import matplotlib
import pytest

from asdlib import cli, errors
from asdlib import io as asd_io
from asdlib.studies import config, home
from asdlib.viz import plots


@pytest.fixture
def terminal(monkeypatch):
    """`asd` as a process, with streams in an encoding: its exit code, and what it printed."""

    def asd(encoding, *words):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)
        monkeypatch.setattr(sys, "argv", ["asd", *map(str, words)])
        code = cli.command()
        return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams.values())

    return asd


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_that_cannot_print_greek_gets_names_of_the_letters(encoding, terminal):
    code, text, told = terminal(encoding, "settings", "oevae")
    assert code == 0 and not told
    assert ("β compares" in text) == (encoding == "utf-8") != ("beta compares" in text)


def test_what_has_no_name_is_escaped(terminal, tmp_path):
    code, _, told = terminal("latin-1", "index", tmp_path / "测试Ω")
    assert code == 2 and "\\u6d4b\\u8bd5Omega: no such folder" in told


def test_a_study_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('about = "Ω"\nseeds = [3]\n', encoding="utf-8-sig")
    assert config.load(str(path)).seeds == (3,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--machine", "all"], "machine name 'all': expected letters"),
        (["--machine", "m" * 101], "at most 100 bytes"),
        (["--machine", "m", "--channel", "-1"], "--channel: got -1, expected a number from 0 to 63"),
        (["--machine", "m", "--rate", "0"], "--rate: got 0, expected a number from 1000 to 192000"),
        (["--machine", "m", "--clip-seconds", "inf"], "--clip-seconds inf: expected 1 to 2000 s"),
        (["--machine", "m", "--clip-seconds", "nan"], "--clip-seconds nan: expected 1 to 2000 s"),
        (["--machine", "m", "--clip-seconds", "-3"], "--clip-seconds -3: expected 1 to 2000 s"),
    ],
)
def test_arguments_of_an_import_are_checked_before_anything_is_read(words, said, tmp_path, capsys):
    assert cli.main(["import", str(tmp_path / "none"), "--root", str(tmp_path / "root"), *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "root").exists()


def test_a_number_of_workers_is_not_negative(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "smoke", "--workers", "-1"])
    assert "expected a whole number >= 0" in capsys.readouterr().err


def test_the_users_matplotlibrc_changes_no_figure(caplog):
    own = {"text.usetex": True, "font.sans-serif": ["No Such Font"], "axes.facecolor": "red"}

    def drawn():
        with matplotlib.rc_context(plots.STYLE):
            figure, axes = plots.panels(1, 1, 2.0, "a line")
            axes[0, 0].plot([1, 2, 3], label="q")
            axes[0, 0].legend()
        return plots.image(figure, "svg")

    before = drawn()
    with matplotlib.rc_context(own):
        assert drawn() == before
    assert not caplog.records  # such as: font family not found


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_a_file_keeps_others_out(code, tmp_path, monkeypatch, capsys):
    """As on Lustre without flock, or NFS without lockd."""

    def flock(handle, how):
        if not how & fcntl.LOCK_UN:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with asd_io.locked(tmp_path), asd_io.locked(tmp_path):
        assert (tmp_path / ".lock.exclusive").read_text().startswith(f"{os.getpid()}\n")
    assert not (tmp_path / ".lock.exclusive").exists()
    told = capsys.readouterr().err
    assert told.count("does not support flock") == 1 and os.strerror(code) in told
    (tmp_path / ".lock.exclusive").write_text("1\nanother-machine\n")
    with (
        pytest.raises(
            errors.InputError, match=r"another run .*, or delete .*\.lock\.exclusive if none is running"
        ),
        asd_io.locked(tmp_path),
    ):
        pass


def test_the_file_of_a_killed_process_keeps_nobody_out(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with asd_io.locked(tmp_path):
        mine = (tmp_path / ".lock.exclusive").read_text()
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    (tmp_path / ".lock.exclusive").write_text(mine.replace(str(os.getpid()), str(gone), 1))
    with asd_io.locked(tmp_path):
        assert (tmp_path / ".lock.exclusive").read_text() == mine


@pytest.mark.parametrize("kind", ["read-only", "nameless", "none"])
def test_libraries_get_folders_of_the_run_where_the_users_own_cannot_be_had(kind, tmp_path, monkeypatch):
    for name in (*home.CACHES, "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NUMBA_CACHE_DIR", "as the user set it")
    (tmp_path / "home").mkdir()
    if kind == "read-only":  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "home")
    if kind == "nameless":

        def getuser():
            raise KeyError("getpwuid(): uid not found: 12345")

        monkeypatch.setattr("getpass.getuser", getuser)
    home.own_caches(tmp_path / "work")
    found = {name: os.environ.get(name) for name in home.CACHES}
    assert found.pop("NUMBA_CACHE_DIR") == "as the user set it"
    if kind == "none":
        assert set(found.values()) == {None}
        return
    assert found["MPLCONFIGDIR"] == str(tmp_path / "work" / "runs" / ".cache" / "mplconfigdir")
    assert len(set(found.values())) == len(found)
    assert os.environ["TORCH_HOME"] == str(tmp_path / "home" / ".cache" / "torch")
    for name in found:
        monkeypatch.setenv(name, "")  # so that it is removed when the test ends
    monkeypatch.setenv("TORCH_HOME", "")


STRANGER = """setpriv --reuid=12345 --regid=12345 --clear-groups --inh-caps=-all,+dac_read_search
    --ambient-caps=-all,+dac_read_search --bounding-set=-all,+dac_read_search""".split()
RUN = """import json, sys
from asdlib.cli import main
code = main(sys.argv[1:])
from numba.core.caching import FunctionCache
from torch._inductor.runtime.cache_dir_utils import cache_dir
FunctionCache(json.dumps), cache_dir()
sys.exit(code)"""  # a stage, and the folders of caches that importing umap and torchvision asks for


def test_a_user_without_a_name_and_with_a_home_that_cannot_be_written_runs_a_study(tmp_path):
    """As `docker run --user 12345`: may read everything, and write the home of the run alone."""
    if os.getuid() != 0 or shutil.which("setpriv") is None or subprocess.run([*STRANGER, "true"]).returncode:
        pytest.skip("only root can become a user without a name, by setpriv")
    work, env = (
        tmp_path / "work",
        {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
    )
    (work / "tmp").mkdir(parents=True)
    for folder in (work, work / "tmp"):
        os.chown(folder, 12345, 12345)
    (tmp_path / "home").mkdir()  # of root
    env |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(work / "tmp"), "OMP_NUM_THREADS": "1"}
    few = {"machines": ["fan"], "train_source": 3, "train_target": 1, "test": 1, "seconds": 1.0}
    few = [word for name, value in few.items() for word in ("--set", f"synthetic.{name}={json.dumps(value)}")]
    words = ["run", "own", "--set", "data.recorded=false", *few, "--home", work, "--stages", "01"]
    done = subprocess.run(
        [*STRANGER, sys.executable, "-c", RUN, *map(str, words)],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((tmp_path / "home").iterdir())
    assert {"ipython", "mplconfigdir", "torchinductor_cache"} <= set(os.listdir(work / "runs" / home.CACHE))
