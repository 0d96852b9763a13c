"""Throughput of two local workers against one: smoke with four machines and two seeds, both from nothing but
the decoded recordings.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ASD = Path(sys.executable).with_name("asd")  # the command as users give it
STUDY = (
    "smoke",
    "--set",
    "synthetic.machines=['fan', 'gearbox', 'slider', 'valve']",
    "--set",
    "seeds=[0, 1]",
)

ROUNDS = 3


def asd(home: Path, *words: str) -> float:
    """Seconds of one command."""
    began = time.perf_counter()
    command = [str(ASD), "run", *STUDY, "--home", str(home), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return time.perf_counter() - began


def main() -> None:
    """Prints seconds, jobs and the ratio, median of rounds that begin now with one, now with two workers;
    then how long a second run takes.
    """
    with tempfile.TemporaryDirectory() as top:
        home = Path(top)
        asd(home / "store", "--stages", "01")
        seconds = {1: [], 2: []}
        for number in range(ROUNDS):
            for workers in (1, 2) if number % 2 else (2, 1):
                shutil.rmtree(home / str(workers), ignore_errors=True)
                shutil.copytree(home / "store", home / str(workers))
                seconds[workers].append(asd(home / str(workers), "--workers", str(workers)))
        again = asd(home / "2", "--workers", "2")
        jobs = len([path for path in (home / "2" / "runs").rglob("notebook.ipynb")])
        for workers, spent in seconds.items():
            print(
                f"cluster: {jobs} jobs on {workers} workers: {statistics.median(spent):.0f} s"
                f" ({min(spent):.0f} to {max(spent):.0f})"
            )
        ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
        span = f"median of {ROUNDS} rounds, {min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"cluster: two workers bring {statistics.median(ratios):.2f} x the throughput of one ({span}); a"
            f" second run takes {again:.2f} s"
        )
