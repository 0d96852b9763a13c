"""What a benchmark measures and how: throughput beside a plain reference, interleaved, and beside what the
hardware could do.

Conventions
-----------
`compare` runs ours and the plain way in turns and takes medians over the rounds; the ratio is the median of
the rounds' own ratios, with the smallest and the largest beside it, so that a load that comes and goes
stretches both. On a CPU a round's time is CPU time of this process (all its threads) on one thread of every
library; on a GPU it is wall time, waited for. Nothing here asserts a time.

The limit of the hardware is the larger of two times: floating point operations (matrix products and
convolutions as torch counts them, and what a bench adds for its Fourier transforms) over the rate of a large
matrix product of that precision on this machine, and bytes that cannot but be moved over the rate of a large
copy. `of limit` is that time over ours: 1 means nothing is left.
"""

from __future__ import annotations

import ctypes
import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from asdlib.models import precision

ROUNDS = 5
CPU = torch.device("cpu")
MATRIX, COPY = 2048, 2**27  # elements of a side; bytes


@dataclass(frozen=True)
class Measure:
    """One line of the table; rates are items per second. limit : 0 where no limit is known"""

    stage: str
    unit: str
    rate: float
    peak_mb: float
    limit: float
    plain: str
    ratio: float
    low: float
    high: float
    note: str = ""

    def row(self) -> dict[str, str]:
        """In words, for the table."""
        ratio = f"{number(self.ratio)} ({number(self.low)} to {number(self.high)})" if self.plain else ""
        return {
            "stage": self.stage,
            "rate": f"{number(self.rate)} {self.unit}/s",
            "peak MB": f"{self.peak_mb:.0f}",
            "limit": f"{number(self.limit)} {self.unit}/s" if self.limit else "",
            "of limit": f"{self.rate / self.limit:.2f}" if self.limit else "",
            "times the plain way": ratio,
            "the plain way": self.plain,
            "note": self.note,
        }


def number(value: float) -> str:
    """Three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def clock(device: torch.device) -> float:
    """CPU seconds of this process, or on a GPU seconds after all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


class Peak:
    """Largest memory inside a `with` block beyond what was there before, MB: resident on a CPU, allocated on
    a GPU.
    """

    def __init__(self, device: torch.device):
        self.device, self.mb = device, 0.0

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that using it again shows
            Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the largest so far
            self.before = _status("VmRSS")
        return self

    def __exit__(self, *_) -> None:
        most = (
            torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
        )
        self.mb = (most - self.before) / 1e6


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


@functools.cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product: the best of several."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device).to(dtype) for _ in range(2))
    return 2 * MATRIX**3 / _best(device, lambda: a @ b)


@functools.cache
def copy_rate(device: torch.device) -> float:
    """Bytes per second read and written by a large copy."""
    a, b = (torch.zeros(COPY, dtype=torch.int8, device=device) for _ in range(2))
    return 2 * COPY / _best(device, lambda: b.copy_(a))


def _best(device: torch.device, work: Callable) -> float:
    seconds = []
    for _ in range(4):
        began = clock(device)
        for _ in range(4 if device.type == "cpu" else 50):
            work()
        seconds.append((clock(device) - began) / (4 if device.type == "cpu" else 50))
    return min(seconds)


def flops(work: Callable) -> int:
    """Operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def fourier(transforms: float, length: int) -> float:
    """Operations of real Fourier transforms: 2.5 n log2 n each."""
    return transforms * 2.5 * length * torch.tensor(float(length)).log2().item()


def compare(
    stage: str,
    unit: str,
    ours: Callable,
    items: float,
    plain: Callable | None = None,
    plain_items: float | None = None,
    *,
    says: str = "",
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    operations: float = 0,
    moved: float = 0,
    rounds: int = ROUNDS,
    note: str = "",
    timer: Callable[[], float] | None = None,
) -> Measure:
    """Ours and the plain way in turns.

    items, plain_items : that one call handles.  says : what the plain way is, in a few words
    operations, moved : floating point operations of dtype and bytes that one call of ours needs at the least
    timer : in place of `clock`, for work that other processes do
    """
    timer, took = timer or (lambda: clock(device)), []

    def timed(work: Callable) -> float:
        began = timer()
        work()
        return max(timer() - began, 1e-9)

    with Peak(device) as peak:
        ours()  # the first call allocates and compiles
    if plain is not None:
        plain()
    for _ in range(rounds):
        took.append((timed(ours) / items, timed(plain) / (plain_items or items) if plain else 0.0))
    mine, ratios = statistics.median(row[0] for row in took), [row[1] / row[0] for row in took]
    least = max(
        operations / matrix_rate(device, dtype) if operations else 0,
        moved / copy_rate(device) if moved else 0,
    )
    print(f"  {stage}: {number(1 / mine)} {unit}/s", file=sys.stderr, flush=True)
    return Measure(
        stage,
        unit,
        1 / mine,
        peak.mb,
        items / least if least else 0.0,
        says,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        note,
    )


def table(measures: list[Measure]) -> pd.DataFrame:
    """All lines."""
    return pd.DataFrame([measure.row() for measure in measures])


def machine(device: torch.device) -> str:
    """What it was measured on, in a line."""
    kinds = ["float32", *["bf16"] * (precision.auto(device) == "bf16")]  # without units for it: a minute
    rates = [f"{kind} {matrix_rate(device, precision.DTYPES[kind]) / 1e9:,.0f} GFLOP/s" for kind in kinds]
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    rates.append(f"copy {copy_rate(device) / 1e9:.1f} GB/s")
    return f"matrix products {', '.join(rates)}; {cores} cores, load average {load:.1f}"
