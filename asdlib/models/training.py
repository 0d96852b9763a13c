"""Training: one loop for every network.

The loop knows a model with `loss(batch, generator)`, and a function that yields an epoch's batches from a
generator. Everything random in an epoch comes from a generator seeded by (seed, epoch), so an interrupted
training goes on from the last checkpoint to the same weights as an unbroken one. Logged terms stay on the
device until an epoch ends. Checkpoints are written beside and renamed, and read with `weights_only=True`.
Torch's training ends in this module. Sources: METHOD 3.4, 3.5, 3.6, 8.2. Notebooks: 03_baseline,
04_classifier, 05_oevae.
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
    """The device of a setting `auto`, `cpu` or `cuda`; a GPU that is asked for and missing is refused."""
    if name == "cuda" and not torch.cuda.is_available():
        raise errors.InputError("device cuda was asked for, but torch sees no GPU; use --device auto or cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        _repeatable_gpu()
    return device


def _repeatable_gpu() -> None:
    """The same seed gives the same numbers on a GPU, and float32 means float32.

    Operations that have no such form on a GPU warn; none of a detector's has (tests/test_gpu.py).
    """
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # sums of matrix products in one order; read when the first one begins
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what was not written
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextlib.contextmanager
def memory_in_words(
    what: str,
    advice: str = "use a smaller oevae.batch, classifier.batch or autoencoder.batch, or --device cpu",
):
    """A GPU that is too small for `what` is a refusal (errors.InputError) that says what to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = ". ".join(str(error).split(". ")[:3])
        raise errors.InputError(f"{what}: the GPU has too little memory ({said}); {advice}") from error


def generator_for(seed: int, *path: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: equal (seed, path) give equal draws, different ones unrelated draws."""
    mixed = 0x9E3779B97F4A7C15
    for number in (seed, *path):
        mixed = (mixed ^ (number + 0x9E3779B9)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return torch.Generator(device).manual_seed(mixed % 2**63)


@contextlib.contextmanager
def seeded_init(seed: int, *path: int):
    """Weights that torch draws inside this block come from (seed, path) and leave the global generator as it
    was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_for(seed, *path).initial_seed())
        yield


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


@functools.cache
def _pools() -> threadpoolctl.ThreadpoolController:
    return threadpoolctl.ThreadpoolController()  # finding the libraries takes milliseconds, so once


@contextlib.contextmanager
def one_thread():
    """Arithmetic of this block runs on one thread: sums are then added in one order, and results are equal
    bit for bit, however many threads the machine, a notebook or an environment variable would give to torch,
    numpy or scikit-learn.
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
    """Index batches that visit 0 … count − 1 once in random order; a last batch of one item joins the batch
    before it.

    yields : int64 (batch,) on the device
    """
    order = torch.randperm(count, generator=generator, device=generator.device).to(device)
    starts = list(range(0, count, batch))
    if len(starts) > 1 and count - starts[-1] < 2:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], count]):
        yield order[start:stop]


PROGRESS = "ASDLIB_PROGRESS"  # environment of a study's kernel: the file that gets a line for each epoch
CURVE = (  # of the loss over time: width, height in pixels
    '<svg viewBox="-2 -2 304 64" width="304" height="64" role="img" aria-label="loss over time"><polyline'
    ' fill="none" stroke="currentColor" points="{points}"/></svg><div>{line}</div>'
)


class Progress:
    """How far a training is: a loss curve that grows in a notebook, one line that is rewritten in a terminal,
    a line for each epoch in the file that the environment variable PROGRESS names.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.first, self.began = what, total, done, time.perf_counter()
        self.file, self.curve, self._handle = os.environ.get(PROGRESS), [], None
        if "ipykernel" in sys.modules:
            from IPython.display import display

            self._handle = display({"text/plain": f"{what}: starting"}, raw=True, display_id=True)

    def step(self, epoch: int, loss: torch.Tensor) -> None:
        """Show the loss of a step, at most once a second: reading it waits for the device."""
        spent = time.perf_counter() - self.began
        if self._handle is not None and not self.file and (not self.curve or spent > self.curve[-1][0] + 1):
            self._draw(f"{self.what}: epoch {epoch + 1} of {self.total}", float(loss))

    def update(self, done: int, loss: float) -> None:
        """Say that `done` epochs of `total` are done."""
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
        """The curve so far, on a logarithmic scale where all losses are positive."""
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
    """One update of the weights; the terms that `loss` names, on the device. With bfloat16 the loss is
    computed under autocast.
    """
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
    """Train for a number of epochs, or go on from a checkpoint.

    model : answers to `loss(batch, generator)`
    batches : from a generator, one epoch's batches, on the device
    checkpoint : file that holds the last finished epoch; None trains without one
    precision : torch.bfloat16 computes the losses under autocast; weights and optimizer stay float32
    evaluate : called in evaluation mode after each epoch; what it measures joins the history
    returns : history, one row per epoch with the mean of every term that `loss` names, and seconds
    raises : errors.InputError when the loss stops being finite
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
    content = io.BytesIO()  # torch words a full disk as an internal error; a plain write does not
    torch.save(state, content)
    with atomic_write(path) as part:
        part.write_bytes(content.getbuffer())


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> list[dict]:
    """State of the last finished epoch. A file torn by a crash of the machine means training from the start,
    and is said.
    """
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        state = torch.load(
            path, weights_only=True, map_location="cpu"
        )  # an optimizer that counts its steps on the host goes on doing so
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["history"]
    except Exception as error:  # torch raises many kinds for torn and foreign files
        print(
            f"{path}: not readable as a checkpoint ({type(error).__name__}); training starts again",
            file=sys.stderr,
        )
        model.load_state_dict(before)
        path.unlink()
        return []


def save_weights(model: nn.Module, path: Path) -> None:
    """Weights as safetensors, written beside and renamed."""
    with atomic_write(path) as part:
        part.write_bytes(save({name: value.contiguous() for name, value in model.state_dict().items()}))


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights of `save_weights` back into a model of the same shape; a torn or foreign file is refused."""
    try:
        found = load_file(path)
        model.load_state_dict(found)
        if not all(bool(torch.isfinite(value).all()) for value in found.values()):
            raise ValueError("NaN or infinite weights")
    except Exception as error:
        raise errors.InputError(
            f"{path}: does not hold the weights of this model ({type(error).__name__}); run the study again"
        ) from error
    model.eval()
