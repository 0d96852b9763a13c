"""Where every second of a study goes: `python -m tests.bench study`, on a sampling profiler (py-spy).

A study is run from nothing, in a folder of its own, by the command that users give. All its processes are
looked at: their CPU seconds, and RATE times a second the stacks of their threads that are at work, by which
the seconds of each process are divided into SHARES. A thread that waits for a core takes none of them, so that
a busy machine changes little but the seconds of the clock, which stand beside. Memory is that of all processes
together, each page counted once (PSS).
"""

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import psutil

from asdlib import errors
from asdlib.models import training
from asdlib.studies.home import CLONE
from asdlib.viz import tables

RATE = 20  # looks a second; of the study's time they cost a few hundredths
ASD = Path(sys.executable).with_name("asd")  # the command as users give it
RUNNER = "the runner"
SHARES = (  # a stack belongs to the first that one of its frames matches, looked at from the innermost frame out
    ("imports", r"importlib\._bootstrap|<frozen importlib"),
    ("page", r"nbconvert/|studies/report\.py|viz/pages\.py|viz/audio\.py"),
    ("figures", r"matplotlib/|asdlib/viz/|projection\.py"),
    ("features", r"asdlib/features\.py"),
    ("recordings", r"asdlib/data/"),
    ("bootstrap", r"asdlib/evaluation/|analysis/tuning\.py"),
    ("training", r"^(step|fit) \(asdlib/models/training\.py"),
    ("embedding", r"\.(_pass|_embed|_clip|_scores|_residuals|_prepare) \(asdlib/"),
    ("scoring", r"asdlib/(scoring|detectors)/"),
    ("analysis", r"asdlib/analysis/"),
)
REST = "the rest"  # notebooks' own lines, the runner, papermill
PAPER = (
    "--set",
    "synthetic.train_source=990",
    "--set",
    "data.recorded=false",
)  # 1,000 clips of 10 s to train on


def share(frames: list[str]) -> str:
    """What a stack, outermost frame first, is at work on: a name of SHARES, or REST."""
    for frame in reversed(frames):
        for name, pattern in SHARES:
            if re.search(pattern, frame):
                return name
    return REST


class Watch(threading.Thread):
    """Of a process's descendants: largest memory of all together, and of each its CPU seconds and folder."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.top, self.over, self.peak_mb = psutil.Process(pid), threading.Event(), 0.0
        self.cpu_s, self.folder = {}, {}

    def run(self) -> None:
        """Look once a second until it is over."""
        while not self.over.wait(1.0):
            total = 0
            with contextlib.suppress(psutil.Error):
                for process in self.top.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_full_info().pss
                        self.cpu_s[process.pid] = sum(process.cpu_times()[:2])
                        self.folder[process.pid] = Path(process.cwd())
            self.peak_mb = max(self.peak_mb, total / 1e6)


def profiled(words: list[str], home: Path) -> tuple[pd.DataFrame, float, float]:
    """Run `asd run` with these words and look at it meanwhile.

    returns : CPU seconds by job (the folder below runs/<study>, or RUNNER) and share; seconds of the clock;
        peak memory of all processes, MB
    raises : errors.InputError without py-spy, or where the study fails
    """
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if spy is None:
        raise errors.InputError("this needs py-spy; install it: pip install py-spy")
    raw, began = home / "stacks.txt", time.perf_counter()
    command = [spy, "record", "--subprocesses", "--nonblocking", "--rate", str(RATE), "--format", "raw"]
    command += ["--output", str(raw), "--", str(ASD), "run", *words, "--home", str(home)]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    code = os.environ | {"PYTHONPATH": str(CLONE)}  # of this clone, whichever is installed
    with subprocess.Popen(command, env=code, **pipes) as process:
        watch = Watch(process.pid)
        watch.start()
        told = process.communicate()[1]
        watch.over.set()
        watch.join()
    spent = time.perf_counter() - began
    if process.returncode or not raw.is_file():
        raise errors.InputError(f"{' '.join(command)} failed: {told[-400:]}")
    return works(raw.read_text(encoding="utf-8"), watch, home / "runs"), spent, watch.peak_mb


def works(stacks: str, watch: Watch, runs: Path) -> pd.DataFrame:
    """CPU seconds by job and share: what each process took, divided as its stacks are.

    stacks : of py-spy's format raw: "process PID:...;frame;frame;... count" a line, a process after the one
        that started it
    """
    looks: dict[int, collections.Counter] = collections.defaultdict(collections.Counter)
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        [*_, pid] = re.findall(r"process (\d+):", stack)
        looks[int(pid)][share(frames)] += int(count)
    rows = []
    for pid, seconds in watch.cpu_s.items():
        folder, own = watch.folder[pid], looks.get(pid, {REST: 1})
        job = "/".join(folder.relative_to(runs).parts[1:]) if folder.is_relative_to(runs) else RUNNER
        rows += [(job, what, seconds * count / sum(own.values())) for what, count in own.items()]
    return pd.DataFrame(rows, columns=["job", "share", "seconds"])


def table(work: pd.DataFrame, home: Path, spent: float) -> pd.DataFrame:
    """A row per job, in the order in which they ended, and one of all: seconds of the clock, CPU seconds,
    and those of each share.
    """
    clock = {}
    for path in sorted(home.glob("runs/*/**/notebook.ipynb"), key=os.path.getmtime):
        manifest = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))
        clock["/".join(path.parent.relative_to(home / "runs").parts[1:])] = manifest["seconds"]
    wide = work.pivot_table(index="job", columns="share", values="seconds", aggfunc="sum", fill_value=0.0)
    wide = wide[[name for name, _ in (*SHARES, (REST, "")) if name in wide]]
    wide.insert(0, "CPU", wide.sum(1))
    wide.insert(0, "clock", pd.Series(clock))
    wide = wide.reindex([RUNNER, *clock], fill_value=0.0)
    wide.loc["all"] = wide.sum()
    wide.loc["all", "clock"] = spent
    shown = wide.map(lambda value: "" if pd.isna(value) else f"{value:.1f}")
    return shown.reset_index(names="job")


def main(words: list[str]) -> int:
    """Print the profile of a study on each number of workers.  words : arguments after `study`"""
    parser = argparse.ArgumentParser(prog="python -m tests.bench study", description=__doc__)
    parser.add_argument("--study", default="demo", help="name or path (default: demo)")
    parser.add_argument(
        "--machine",
        help="in its place `paper` at full size on this modeled machine and one other, with 1,000 training clips"
        " of 10 s each; hours on a CPU, so add --set oevae.epochs=1 and the like",
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="of Dask; 0: the default, none")
    given, more = parser.parse_known_args(words)  # what else came is for asd run
    asked = [given.study, *more]
    if given.machine:
        other = "valve" if given.machine != "valve" else "fan"
        asked = ["paper", *PAPER, "--set", f"synthetic.machines={json.dumps([given.machine, other])}", *more]
    for workers in given.workers:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            work, spent, peak = profiled([*asked, "--workers", str(workers)], Path(folder))
            shown = table(work, Path(folder), spent)
            busy = work["seconds"].sum()
        cores, how = training.cores(), f"{workers} workers of Dask" if workers else "without Dask"
        print(f"## {' '.join(asked)}, {how}\n")
        print(f"{spent:.0f} s, {busy:.0f} CPU s, {busy / spent / cores:.0%} of the {cores} cores;", end=" ")
        print(f"load average {os.getloadavg()[0]:.1f}; at most {peak:,.0f} MB in all processes together\n")
        print(f"{tables.markdown_table(shown)}\n", flush=True)
    return 0
