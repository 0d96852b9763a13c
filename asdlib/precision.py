"""In which precision the large networks are trained: as set, or whichever was faster in a short trial on this machine.

Conventions
-----------
`float32` and `bf16` (bfloat16 autocast; weights, optimiser and all scores stay float32) are both computed channels_last, which is
the faster layout for both on every device measured (`python -m tests.bench layouts`). Networks without an entry in PROBES are
trained in float32.

`auto` times a few steps of the study's own network on random input, interleaved, after a first round that is not counted, and takes
bf16 if it saves a tenth. On a CPU the time is that of the thread, which other processes do not stretch, of a step of a few items; on a
GPU it is waited for, in a step of the study's own batch. A GPU without bf16 units is not asked.
Who trains first settles this for a study, per network and kind of device, and the answer is kept beside its artefacts (`settled`), so
that all machines, every resumed run and every worker compute alike; it is part of the digest of what was trained with it, and who only
plans does not measure (`known`). Delete the file to have it measured again, or set `precision`.

Source: DESIGN 3. Notebooks: 04_classifier, 05_oevae.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from asdlib import artefacts, config, training
from asdlib.models import classifier, oevae

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CLASSES = 32  # of a trial of the classifier
ITEMS = {"oevae": 16, "classifier": 8}  # of a trial step on a CPU
UNSETTLED = "unsettled"
ROUNDS = 3
WORTH = 0.9  # bf16 must take at most this part of float32's time


def _oevae(cfg: config.Study, size: int) -> tuple[nn.Module, oevae.Batch]:
    """The study's network and a batch of random segments."""
    f, rate = cfg.oevae.features, cfg.data.sample_rate
    x = torch.randn(size, 1, f.n_mels, 1 + round(f.segment_s * rate) // f.hop_length)
    t = (torch.arange(size) % 2).float()
    return oevae.OEVAE(cfg.oevae), oevae.Batch(x, t, torch.zeros(size), torch.zeros(size, dtype=torch.bool))


def _classifier(cfg: config.Study, size: int) -> tuple[nn.Module, classifier.Batch]:
    """The study's network and a batch of features of noise."""
    s, rate = cfg.classifier, cfg.data.sample_rate
    inputs = classifier.branch_inputs(torch.randn(size, round(s.clip_seconds * rate)), s, rate)
    return classifier.Classifier(s, CLASSES, rate), classifier.Batch(inputs, torch.eye(CLASSES)[torch.arange(size) % CLASSES])


PROBES: dict[str, Callable] = {"oevae": _oevae, "classifier": _classifier}


def _to(batch, device: torch.device):
    """Every tensor of a batch on the device."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: value.to(device) for name, value in batch.items()}
    return type(batch)(*(_to(value, device) for value in batch)) if isinstance(batch, tuple) else batch


def trial(name: str, cfg: config.Study, device: torch.device) -> dict[str, float]:
    """Median seconds of a training step of network `name` in each precision, on one thread of a CPU; infinite where a GPU has no memory for it.

    raises : torch.OutOfMemoryError where it has for none
    """
    steps, size = {}, ITEMS[name] if device.type == "cpu" else getattr(cfg, name).batch
    for kind, dtype in DTYPES.items():
        with training.seeded_init(0):
            net, batch = PROBES[name](cfg, size)
        net = net.to(device, memory_format=torch.channels_last).train()
        optimiser, batch = torch.optim.Adam(net.parameters(), fused=True), _to(batch, device)
        draws = training.generator_for(0, device=device)
        steps[kind] = lambda net=net, batch=batch, optimiser=optimiser, dtype=dtype, draws=draws: training.step(net, batch, optimiser, draws, dtype)
    took: dict[str, list[float]] = {kind: [] for kind in steps}
    with _one_thread():
        for _ in range(ROUNDS + 1):
            for kind, step in list(steps.items()):
                began = _clock(device)
                try:
                    step()
                except torch.OutOfMemoryError:
                    del steps[kind]
                    if not steps:
                        raise
                took[kind].append(_clock(device) - began if kind in steps else math.inf)
    return {kind: statistics.median(values[1:] or values) for kind, values in took.items()}


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.thread_time()


@contextlib.contextmanager
def _one_thread():
    """As notebooks compute (`study.arrive`)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster(seconds: dict[str, float]) -> str:
    """The precision that a trial speaks for."""
    return "bf16" if seconds["bf16"] <= WORTH * seconds["float32"] else "float32"


def known(name: str, cfg: config.Study, device: torch.device, folder: Path | None = None) -> str:
    """`float32` or `bf16` as it is set, or as it was settled for a study; UNSETTLED before its first training. Measures nothing.

    folder : of the study
    """
    if name not in PROBES:
        return "float32"
    return cfg.precision if cfg.precision != "auto" else _read(_kept(folder, name, device)) or UNSETTLED


def settled(name: str, cfg: config.Study, device: torch.device, folder: Path | None = None) -> str:
    """`float32` or `bf16` for the training of detector `name`.

    folder : of the study, where the outcome of a trial is kept and found; None measures without keeping
    Of several processes that ask at once all get the answer of the first to write.  Notebooks: 04_classifier, 05_oevae
    """
    if (found := known(name, cfg, device, folder)) != UNSETTLED:
        return found
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        seconds, found, words = {}, "float32", f"{device_name(device)} has no bf16 units"
    else:
        seconds = trial(name, cfg, device)
        found = faster(seconds)
        took = [f"{kind} {f'{value:.3g} s' if value < math.inf else 'more memory than there is'}" for kind, value in seconds.items()]
        words = f"a trial step takes {', '.join(took)} on {device_name(device)}"
    facts = {"precision": found, "seconds_per_step": {kind: value if value < math.inf else None for kind, value in seconds.items()}}
    facts |= {"device": device_name(device), "torch": torch.__version__}
    kept = _kept(folder, name, device)
    if kept and not _write_first(kept, json.dumps(facts, indent=1)):
        return _read(kept) or found
    print(f"{name}: {words}; trained in {found}" + (f" ({kept.name})" if kept else ""))
    return found


def _kept(folder: Path | None, name: str, device: torch.device) -> Path | None:
    return folder / f"precision_{name}_{device.type}.json" if folder else None


def _read(path: Path | None) -> str | None:
    """The precision in a record; None where there is none, or a torn one."""
    try:
        kind = json.loads(path.read_text(encoding="utf-8"))["precision"] if path else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind if kind in DTYPES else None


def _write_first(path: Path, text: str) -> bool:
    """Write a file unless a whole one is there; whether this process was the one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with artefacts.guarded(path.parent):
        try:
            beside.write_text(text, encoding="utf-8")
            if path.is_file() and _read(path) is None:
                path.unlink(missing_ok=True)
            os.link(beside, path)
            return True
        except FileExistsError:
            return False
        finally:
            beside.unlink(missing_ok=True)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        return "CPU"
