"""Faults at a fixed list of points: after each, the same command ends in the scores of an unbroken run,
without orphans and stray files.

A study much smaller than smoke. At every point a fork of a process that has made the imports is killed, which
does the runner's and the notebooks' part of the work; at a few of them a kernel, or a worker of Dask, of a
whole `asd run` (tests/faults/sitecustomize.py, which is on their path and nowhere in asdlib).
"""

import contextlib
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import pandas as pd
import psutil
import pytest
from commands import CODE, forked

from asdlib.studies import forks, study

HERE = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.faults
STUDY = """
systems = ["baseline_knn", "baseline_mse", "baseline_mahala"]
precision = "float32"
synthetic = {machines = ["fan"], train_source = 8, train_target = 3, test = 3, seconds = 1.0, severity = [3.0]}
baseline_knn = {n_mels = 32}
autoencoder = {n_mels = 16, n_fft = 512, hop_length = 512, hidden = 8, bottleneck = 4, epochs = 3}
metrics = {bootstrap = 20, shuffles = 10}
report = {players = 0}
"""
JOB, MADE = "03_baseline/fan/", r"artifacts/{}-fan-0-{}-[0-9a-f]{{16}}/"
AE, SCORES = MADE.format("autoencoder", "trained"), MADE.format("autoencoder", "scores")
KNN = MADE.format("baseline_knn", "scores")


@dataclasses.dataclass(frozen=True)
class Point:
    """Kill when a file is renamed to what matches `at`; start: what the home holds before (nothing | store |
    trained); who: none: a fork that does all, else who of a whole run, by so many workers of Dask.
    """

    how: str
    at: str
    start: str = "store"
    nth: int = 1
    who: str = ""
    workers: int = 0

    def __str__(self):
        return f"{self.who} {self.how} {self.at} {self.nth}{' by workers' if self.workers else ''}".strip()


POINTS = [
    Point("before", r"recordings/[0-9a-f]{16}/data$", "nothing"),  # recordings made, not yet under their name
    Point("torn", r"store/samples-", "nothing"),
    Point("before", r"store/clips\.parquet$", "nothing"),
    Point("torn", r"store/DONE\.json$", "nothing"),
    Point("after", JOB + "BEGUN$"),
    Point("torn", KNN + r"scores\.parquet$"),
    Point("after", KNN + "DONE$"),
    Point("torn", AE + r"checkpoint.*\.pt$"),
    Point("after", AE + r"checkpoint.*\.pt$", nth=2),
    Point("torn", AE + r"weights0\.safetensors$"),
    Point("torn", SCORES + r"scores\.parquet$"),
    Point("torn", AE + r"manifest\.json$"),
    Point("torn", AE + "DONE$"),
    Point("torn", SCORES + "DONE$"),
    Point("before", JOB + r"notebook\.ipynb$"),
    Point("torn", JOB + "DONE$"),
    Point("after", JOB + "DONE$"),  # between stages
    Point("torn", r"03_baseline_fan_seed0\.html$"),
    Point("torn", r"faults/scores\.parquet$", "trained"),
    Point("before", r"faults/metrics\.csv$", "trained"),
    Point("torn", r"summary\.md$", "trained"),
    Point("torn", r"report\.json$", "trained"),
    Point("torn", r"faults/index\.html$", "trained"),
    Point("after", AE + r"checkpoint.*\.pt$", nth=2, who="kernel"),
    Point("before", JOB + r"notebook\.ipynb$", who="runner"),
    Point("after", JOB + "BEGUN$", who="worker", workers=2),
    Point("torn", JOB + "DONE$", who="worker", workers=2),
    Point("after", AE + r"checkpoint.*\.pt$", who="kernel", workers=2),
]


class Home:
    """A folder with runs/ and reports/ of the study, and the processes that work on it."""

    def __init__(self, folder: Path):
        self.folder, self.runs, self.reports = folder, folder / "runs" / "faults", folder / "reports"
        folder.mkdir(parents=True, exist_ok=True)

    def words(self, *words) -> list[str]:
        return ["run", str(STUDY_FILE), "--home", str(self.folder), *map(str, words)]

    def asd(self, *words, fault=None, limit=None):
        """By a fork, which is killed at a point, or may write files of so many bytes only."""
        return forked(self.words(*words), fault, limit)

    def process(self, *words, fault=None, **more):
        """By a process of its own with kernels and workers."""
        path = [str(HERE / "faults"), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {"OMP_NUM_THREADS": "1", "FAULT": json.dumps(fault), "ASDLIB_TEST_HOME": str(self.folder)}
        return subprocess.Popen(
            [sys.executable, "-c", CODE, *self.words(*words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)} | env,
            cwd="/",
            **more,
        )

    def decode(self) -> Path:
        """Decode the recordings, as they lie in this place; the folder of the store."""
        return study.open_run(str(STUDY_FILE), (), self.folder).store.folder

    def artifacts(self, kind: str, name: str) -> list[Path]:
        """Files of a name in the autoencoder's folders of a kind."""
        return list(self.folder.glob(f"runs/artifacts/autoencoder-fan-0-{kind}-*/{name}"))

    def alive(self) -> list[str]:
        """Processes that were started for this home and are still there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if (
                    process.environ().get("ASDLIB_TEST_HOME") == str(self.folder)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(" ".join(process.cmdline())[:200])
        return found

    def files(self) -> set[str]:
        return {
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != ".lock" and ".cache" not in path.parts
        }

    def scores(self) -> dict[str, pd.DataFrame]:
        return {
            path.relative_to(self.runs.parent).as_posix(): pd.read_parquet(path)
            for path in sorted(self.runs.parent.rglob("scores.parquet"))
        }


STUDY_FILE = Path("faults.toml")


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Homes of an unbroken run, at three ages: nothing, store (recordings decoded), trained (all but the
    report), whole.
    """
    global STUDY_FILE
    with pytest.MonkeyPatch.context() as patch, forks.apart():
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE / "faults"), str(HERE), *sys.path]))
        forkserver.set_forkserver_preload(["imports"])
        forkserver.ensure_running()
    top = tmp_path_factory.mktemp("faults")
    STUDY_FILE = top / "faults.toml"
    STUDY_FILE.write_text(STUDY)
    kept = {name: Home(top / name) for name in ("nothing", "store", "trained", "whole")}
    work = Home(top / "unbroken")
    for name, words in (("store", None), ("trained", ["--stages", "01,02,03"]), ("whole", [])):
        if words is None:
            work.decode()
        else:
            done = work.asd(*words)
            assert done.returncode == 0, done.stdout + done.stderr
        shutil.rmtree(kept[name].folder)
        shutil.copytree(work.folder, kept[name].folder, symlinks=True)
    return kept


def start_from(homes, name, tmp_path) -> Home:
    shutil.copytree(homes[name].folder, tmp_path / "home", symlinks=True)
    return Home(tmp_path / "home")


def no_orphans(home):
    for _ in range(60):
        if not home.alive():
            return
        time.sleep(0.25)
    raise AssertionError(f"still at work: {home.alive()}")


def ends_as_unbroken(home, homes):
    """The same command again: the scores of the unbroken run, its files and no others."""
    again = home.asd()
    assert again.returncode == 0 and "Traceback" not in again.stderr, again.stdout + again.stderr
    same_scores(home, homes["whole"])
    assert home.files() == homes["whole"].files()
    return again


def same_scores(home, unbroken):
    found, expected = home.scores(), unbroken.scores()
    assert set(found) == set(expected)
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


def ends_as_trained(home, homes, stages="03"):
    """The same stages again: as `ends_as_unbroken`, up to the report."""
    again = home.asd("--stages", stages)
    assert again.returncode == 0 and "Traceback" not in again.stderr, again.stdout + again.stderr
    same_scores(home, homes["trained"])
    files, expected = home.files(), homes["trained"].files()
    assert files <= expected and not [name for name in expected - files if "03_baseline" in name]


CASES: dict[
    str, Callable[[dict, Path], None]
] = {}  # name: what is done, with the homes and a folder of its own


def case(*choices):
    """A function of (homes, tmp_path), or of (choice, homes, tmp_path) for each choice, stands among the
    cases.
    """

    def register(function):
        for choice in choices or [None]:
            name = function.__name__ if choice is None else f"{function.__name__}[{choice}]"
            CASES[name] = function if choice is None else functools.partial(function, choice)
        return function

    return register


@case(*POINTS)
def killed_at(point, homes, tmp_path):
    """Kill at a point, look at what was said, give the same command again, compare."""
    home = start_from(homes, point.start, tmp_path)
    fault = dataclasses.asdict(point) | {"once": str(tmp_path / "struck")}
    words = ["--stages", "03"] if point.start != "trained" else []
    if point.who:
        process = home.process(*words, *(["--workers", point.workers] if point.workers else []), fault=fault)
        out, err = process.communicate(timeout=600)
        code = process.returncode
        no_orphans(home)
    else:
        broken = home.asd(*words, fault=fault)
        code, out, err = broken.returncode, broken.stdout, broken.stderr
    assert (tmp_path / "struck").exists(), f"the point was never reached: {out}{err}"
    if point.workers:  # a lost worker or kernel costs its job, not the run
        assert code == 0, out + err
    elif point.who == "kernel":
        assert code == 2 and "its kernel was killed" in err and "Traceback" not in err
    else:
        assert code == -signal.SIGKILL
    (ends_as_unbroken if point.start == "trained" else ends_as_trained)(home, homes)


@case("killed", "interrupted", "stopped")
def a_runner_that_ends_takes_its_workers_and_kernels_along(how, homes, tmp_path):
    """Killed alone; or interrupted as by Ctrl-C, which reaches workers too; or stopped politely."""
    number, code = {
        "killed": (signal.SIGKILL, -9),
        "interrupted": (signal.SIGINT, 130),
        "stopped": (signal.SIGTERM, 130),
    }[how]
    home = start_from(homes, "store", tmp_path)
    process = home.process("--stages", "02,03", "--workers", "2", start_new_session=True)
    while process.poll() is None and not list(home.artifacts("trained", "BEGUN")):
        time.sleep(0.05)
    os.killpg(process.pid, number) if how == "interrupted" else process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == code and "Traceback" not in err, err
    no_orphans(home)
    ends_as_trained(home, homes, "02,03")


# ---------------------------------------------------------------- damage


def flip(path: Path, keep_time: bool):
    """One bit of a file is turned; a failing disk leaves its time as it was."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@case()
def a_torn_checkpoint_is_not_used(homes, tmp_path):
    home, point = start_from(homes, "store", tmp_path), Point("after", AE + r"checkpoint.*\.pt$", nth=2)
    fault = dataclasses.asdict(point) | {"once": str(tmp_path / "struck")}
    assert home.asd("--stages", "03", fault=fault).returncode == -signal.SIGKILL
    checkpoint = next(home.runs.parent.rglob("checkpoint*.pt"))
    os.truncate(checkpoint, checkpoint.stat().st_size * 2 // 3)
    ends_as_trained(home, homes)


@case(("trained", "weights0.safetensors"), ("scores", "scores.parquet"))
def a_flipped_bit_in_an_artifact_is_found_and_named(which, homes, tmp_path):
    home = start_from(homes, "whole", tmp_path)
    (path,) = home.artifacts(*which)
    flip(path, keep_time=True)
    home.decode()
    told = home.asd("--dry-run").stdout
    assert f"autoencoder: {path.name} is damaged" in told and "3 fresh" not in told.splitlines()[0]
    again = ends_as_unbroken(home, homes)
    assert "03_baseline fan" in again.stdout and "09_report" in again.stdout and "01_data" not in again.stdout


@case()
def a_flipped_bit_in_the_store_is_found_before_anything_is_computed(homes, tmp_path):
    home = start_from(homes, "trained", tmp_path)
    flip(next(home.decode().glob("samples-*.i16")), keep_time=True)
    again = ends_as_unbroken(home, homes)
    assert "are corrupted; decoding again" in again.stdout and "03_baseline" not in again.stdout


@case()
def a_clock_that_goes_backwards_changes_nothing(homes, tmp_path):
    """Everything that is there comes from the future."""
    home = start_from(homes, "trained", tmp_path)
    for path in home.folder.rglob("*"):
        os.utime(path, (time.time() + 4e7, time.time() + 4e7))
    before = {path: path.read_bytes() for path in home.runs.rglob("DONE")}
    ends_as_unbroken(home, homes)
    assert all(path.read_bytes() == content for path, content in before.items() if "store" not in path.parts)


@case()
def two_runners_at_once(homes, tmp_path):
    home = start_from(homes, "store", tmp_path)
    both = [home.process("--stages", "03") for _ in range(2)]
    ends = [(*process.communicate(timeout=1200), process.returncode) for process in both]
    codes = sorted(code for *_, code in ends)
    assert codes in ([0, 2], [0, 0]), ends  # the second may come when the first is done
    assert all("another run of this study is in progress" in err for _, err, code in ends if code == 2)
    no_orphans(home)
    same_scores(home, homes["trained"])


# ---------------------------------------------------------------- disks


@contextlib.contextmanager
def mounted(folder: Path, options: str, again: str):
    """A small file system of its own, as it is first, and after `change` as it is then; skips where mounting
    is not allowed.
    """
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs to mount, as root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", f"remount,{again}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@case("400k", "760k")
def a_full_disk_is_one_sentence_and_no_loss(room, homes, tmp_path):
    with mounted(tmp_path / "home", f"size={room}", "size=100m") as make_room:
        home = Home(tmp_path / "home")
        shutil.copytree(homes["nothing"].folder, home.folder, dirs_exist_ok=True)
        full = home.asd()
        assert full.returncode == 2 and "Traceback" not in full.stderr and full.stderr.count("asd: ") == 1, (
            full.stdout + full.stderr
        )
        assert "No space left on device" in full.stderr
        make_room()
        ends_as_unbroken(home, homes)


@case()
def a_disk_that_fills_while_training(homes, tmp_path):
    """A limit on the size of files stands in for the disk where mounting is not allowed."""
    home = start_from(homes, "store", tmp_path)
    full = home.asd("--stages", "03", limit=9_000)
    assert full.returncode == 2 and "Traceback" not in full.stderr and full.stderr.count("asd: ") == 1, (
        full.stdout + full.stderr
    )
    ends_as_trained(home, homes)


@case()
def a_read_only_folder_is_one_sentence_and_no_loss(homes, tmp_path):
    with mounted(tmp_path / "home", "size=50m", "ro") as lock:
        home = Home(tmp_path / "home")
        shutil.copytree(homes["trained"].folder, home.folder, dirs_exist_ok=True)
        lock()
        refused = home.asd()
        assert refused.returncode == 2 and "Traceback" not in refused.stderr, refused.stdout + refused.stderr
        assert "Read-only file system" in refused.stderr and "--home" in refused.stderr
        subprocess.run(["mount", "-o", "remount,rw", str(home.folder)], check=True)
        ends_as_unbroken(home, homes)


# ---------------------------------------------------------------- all of them


@pytest.fixture(scope="module")
def struck(homes, request, tmp_path_factory):
    """Every chosen case in a future: two at a time, as most of their time goes into starting processes."""
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if "struck" in getattr(item, "fixturenames", ())
    ]
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(CASES[name], homes, tmp_path_factory.mktemp("case")) for name in chosen}
    pool.shutdown(cancel_futures=True)


# Whole runs with workers of Dask, and two runners, are some ten times as long: of them one of each kind.
MORE = (
    *(f"killed_at[{point}]" for point in POINTS[-2:]),
    *(f"a_runner_that_ends_takes_its_workers_and_kernels_along[{how}]" for how in ("killed", "stopped")),
    "two_runners_at_once",
)
assert set(MORE) < set(CASES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] if name in MORE else []) for name in CASES]
)
def test_a_fault_costs_nothing_but_time(name, struck):
    struck[name].result()
