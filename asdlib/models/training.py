"""Training loop shared by all networks.

A model provides `loss(batch, generator)`; a function yields an epoch's batches from a generator. Randomness
of an epoch comes from a generator seeded by (seed, epoch), so a training resumed from a checkpoint reaches
the same weights as an uninterrupted one. Logged terms stay on the device until the end of the epoch.
Checkpoints are written atomically and loaded with `weights_only=True`. Sources: METHOD 3.4, 3.5, 3.6, 8.2.
Notebooks: 03_baseline, 04_classifier, 05_oevae.
"""

from __future__ import annotations

import contextlib
import functools
import html
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import threadpoolctl
import torch
from safetensors.torch import load_file, save
from torch import nn

from asdlib import errors
from asdlib.io import atomic_write

Batches = Callable[[torch.Generator], Iterator]


def pick_device(name: str) -> torch.device:
    """Device for `auto`, `cpu` or `cuda`.

    raises : errors.InputError for another name, and `cuda` without a GPU
    """
    errors.check_choice("device", name, ["auto", "cpu", "cuda"])
    if name == "cuda" and not torch.cuda.is_available():
        raise errors.InputError("device cuda requested, but torch finds no GPU; use --device auto or cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        _repeatable_gpu()
    return device


def _repeatable_gpu() -> None:
    """Make GPU results deterministic for a given seed, and disable TF32.

    Operations without a deterministic GPU version only warn; no detector uses one (tests/test_gpu.py).
    """
    # deterministic cuBLAS; read at the first matrix product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # no code here reads uninitialized memory
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def memory_in_words(
    what: str,
    advice: str = "use a smaller oevae.batch, classifier.batch or autoencoder.batch, or --device cpu",
):
    """Convert a CUDA out-of-memory error during `what` into a sentence with advice.

    raises : errors.InputError in place of torch.OutOfMemoryError
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        detail = ". ".join(str(error).split(". ")[:3])
        raise errors.InputError(f"{what}: out of GPU memory ({detail}); {advice}") from error


def generator_for(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator for one purpose: equal (seed, path) give equal streams, others independent ones."""
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, *path):
        mixed = (mixed ^ (number + 0x9E3779B9)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return torch.Generator(device).manual_seed(mixed % 2**63)


@contextlib.contextmanager
def seeded_init(seed: int, *path: int):
    """Seed weight initialization in the block by (seed, path); restores the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_for(seed, *path).initial_seed())
        yield


def cores() -> int:
    """Number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0))


@functools.cache
def _pools() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()  # cached: finding the libraries takes milliseconds


@contextlib.contextmanager
def one_thread():
    """Run the block single-threaded, so that sums have a fixed order and results are bit-identical.

    Applies to torch, numpy and scikit-learn, whatever thread counts the machine or environment sets.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _pools().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)


def shuffled_batches(
    count: int, batch: int, generator: torch.Generator, device: torch.device
) -> Iterator[torch.Tensor]:
    """Random index batches covering 0 … count − 1 once; a single last item joins the previous batch.

    yields : int64 (batch,) on the device
    """
    order = torch.randperm(count, generator=generator, device=generator.device).to(device)
    starts = list(range(0, count, batch))
    if len(starts) > 1 and count - starts[-1] < 2:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], count]):
        yield order[start:stop]


PROGRESS = "ASDLIB_PROGRESS"  # environment variable of a study's kernel: progress file, one line per epoch
CURVE = (  # loss curve, size in pixels
    '<svg viewBox="-2 -2 304 64" width="304" height="64" role="img" aria-label="loss over time"><polyline'
    ' fill="none" stroke="currentColor" points="{points}"/></svg><div>{line}</div>'
)


class Progress:
    """Training progress: a live loss curve in a notebook, a rewritten line in a terminal.

    Each epoch also appends a line to the file named by the environment variable PROGRESS.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.first, self.began = what, total, done, time.perf_counter()
        self.file, self.curve, self._handle = os.environ.get(PROGRESS), [], None
        if "ipykernel" in sys.modules:
            from IPython.display import display

            self._handle = display({"text/plain": f"{what}: starting"}, raw=True, display_id=True)

    def step(self, epoch: int, loss: torch.Tensor) -> None:
        """Show the loss of a step, at most once a second because reading it synchronizes the device."""
        spent = time.perf_counter() - self.began
        if self._handle is not None and not self.file and (not self.curve or spent > self.curve[-1][0] + 1):
            self._draw(f"{self.what}: epoch {epoch + 1} of {self.total}", float(loss))

    def update(self, done: int, loss: float) -> None:
        """Report that `done` of `total` epochs are complete."""
        spent = time.perf_counter() - self.began
        left = spent / (done - self.first) * (self.total - done)
        line = f"{self.what}: {done}/{self.total}, loss {loss:.4g}, {spent:.0f} s"
        line += f", {left:.0f} s left" if done < self.total else ""
        if self.file:
            with contextlib.suppress(OSError), open(self.file, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        if self._handle is not None and not self.file:
            self._draw(line, loss)
        elif self._handle is not None:
            self._handle.update({"text/plain": line}, raw=True)
        elif sys.stderr.isatty():
            print("\r" + line, end="\n" if done == self.total else "", file=sys.stderr, flush=True)

    def _draw(self, line: str, loss: float) -> None:
        """Draw the curve so far, on a logarithmic scale if all losses are positive."""
        self.curve.append((time.perf_counter() - self.began, loss))
        heights = [y for _, y in self.curve]
        heights = [math.log(y) for y in heights] if min(heights) > 0 else heights
        low, high, wide = min(heights), max(heights), self.curve[-1][0] or 1.0
        points = " ".join(
            f"{300 * x / wide:.1f},{60 - 60 * (y - low) / ((high - low) or 1.0):.1f}"
            for (x, _), y in zip(self.curve, heights)
        )
        both = {"text/plain": line, "text/html": CURVE.format(points=points, line=html.escape(line))}
        self._handle.update(both, raw=True)


def step(
    model: nn.Module,
    batch,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    precision: torch.dtype,
) -> dict[str, torch.Tensor]:
    """One optimizer step; returns the loss terms on the device. bfloat16 computes the loss under autocast."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(generator.device.type, precision, enabled=precision != torch.float32):
        terms = model.loss(batch, generator)
    terms["loss"].backward()
    optimizer.step()
    return terms


def fit(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    seed: int,
    what: str,
    checkpoint: Path | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    precision: torch.dtype = torch.float32,
) -> pd.DataFrame:
    """Train for a number of epochs, resuming from a checkpoint if there is one.

    model : provides `loss(batch, generator)`
    batches : yields one epoch's batches on the device, from a generator
    checkpoint : file with the last finished epoch; None disables checkpoints
    precision : torch.bfloat16 computes the loss under autocast; weights and optimizer stay float32
    evaluate : called in evaluation mode after each epoch; its results are added to the history
    returns : history, one row per epoch with the mean of every loss term, and seconds
    raises : errors.InputError if the loss becomes non-finite
    """
    history: list[dict] = []
    if checkpoint is not None and checkpoint.is_file():
        history = _resume(model, optimizer, checkpoint)
    device = next(model.parameters()).device
    progress = Progress(what, epochs, len(history))
    for epoch in range(len(history), epochs):
        began = time.perf_counter()
        generator = generator_for(seed, epoch, device=device)
        model.train()
        sums: dict[str, torch.Tensor] = {}
        steps = 0
        for batch in batches(generator):
            terms = step(model, batch, optimizer, generator, precision)
            progress.step(epoch, terms["loss"])
            steps += 1
            for name, value in terms.items():
                value = value.detach()
                sums[name] = sums[name] + value if name in sums else value
        row = {name: float(value) / steps for name, value in sums.items()}
        if not math.isfinite(row["loss"]):
            raise errors.InputError(
                f"{what}: the loss became {row['loss']} in epoch {epoch + 1}; use a smaller learning rate"
            )
        if evaluate is not None:
            model.eval()
            with torch.inference_mode():
                row |= evaluate()
        history.append({"epoch": epoch + 1, **row, "seconds": time.perf_counter() - began})
        if checkpoint is not None:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
            _save_torch(state, checkpoint)
        progress.update(epoch + 1, row["loss"])
    model.eval()
    return pd.DataFrame(history)


def _save_torch(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()  # torch.save masks the OSError of a full disk
    torch.save(state, content)
    with atomic_write(path) as part:
        part.write_bytes(content.getbuffer())


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> list[dict]:
    """Restore the last finished epoch and return its history; training restarts if unreadable."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        # keeps step counters of the optimizer on the host
        state = torch.load(path, weights_only=True, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["history"]
    except Exception as error:  # torch raises many types for damaged and foreign files
        print(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}); training restarts",
            file=sys.stderr,
        )
        model.load_state_dict(before)
        path.unlink()
        return []


def save_weights(model: nn.Module, path: Path) -> None:
    """Write weights as safetensors, atomically."""
    with atomic_write(path) as part:
        part.write_bytes(save({name: value.contiguous() for name, value in model.state_dict().items()}))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights written by `save_weights` and switch to evaluation mode.

    raises : errors.InputError for a damaged file or another model
    """
    try:
        found = load_file(path)
        model.load_state_dict(found)
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            raise ValueError("NaN or infinite weights")
    except Exception as error:
        raise errors.InputError(
            f"{path}: does not contain the weights of this model ({type(error).__name__}); run the study"
            " again"
        ) from error
    model.eval()
