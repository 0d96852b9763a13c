"""Throughput of two local workers against one: smoke with four machines and two seeds, both from nothing but the decoded recordings."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASD = Path(sys.executable).with_name("asd")  # the command as users give it
STUDY = ("smoke", "--set", "synthetic.machines=['fan', 'gearbox', 'slider', 'valve']", "--set", "seeds=[0, 1]")


def asd(home: Path, *words: str) -> float:
    """Seconds of one command."""
    began = time.perf_counter()
    command = [str(ASD), "run", *STUDY, "--home", str(home), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def main() -> None:
    """Prints seconds, jobs and the ratio; then how long a second run of the finished study takes."""
    with tempfile.TemporaryDirectory() as top:
        home = Path(top)
        asd(home / "store", "--dry-run")
        seconds = {}
        for workers in (1, 2):
            shutil.copytree(home / "store", home / str(workers))
            seconds[workers] = asd(home / str(workers), "--workers", str(workers))
        again = asd(home / "2", "--workers", "2")
        jobs = len([path for path in (home / "2" / "runs").rglob("notebook.ipynb")])
        for workers, spent in seconds.items():
            print(f"cluster: {jobs} jobs on {workers} workers: {spent:.0f} s")
        print(f"cluster: two workers bring {seconds[1] / seconds[2]:.2f} x the throughput of one; a second run takes {again:.2f} s")
