"""One prepared run on a GPU, within minutes: `python -m tests.bench gpu [--out FOLDER]`.

First that it computes right: the same seed twice, scores of the same weights on the CPU and on the GPU, and
`pytest -m gpu`. Then how fast: steps of each network at the size of the `paper` study, with their data, eager
and compiled, in both precisions and layouts, each beside eager float32 and beside what the device could do.
Last, one machine of `paper` in full. All on noise made on the spot. Without a GPU the same script runs on the
CPU at sizes of SIZES: that shows that it works, and its figures are those of a CPU. What does not fit into
the minutes is named, not measured.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from asdlib import features, io
from asdlib.data.store import Clips, training_clips
from asdlib.detectors import DETECTORS
from asdlib.detectors.base import detect
from asdlib.detectors.classifier import Classifier
from asdlib.models import classifier, oevae, precision, training
from asdlib.models.autoencoder import Autoencoder, AutoencoderSettings, Vectors
from asdlib.models.precision import DTYPES
from asdlib.studies import config, study
from asdlib.viz import tables
from tests import sizes
from tests.bench import measure, steps
from tests.bench.data import RATE, opened, recordings
from tests.sizes import Context, bound, detector_of

TOLERANCE = 1e-3  # of the scores' standard deviation, between devices that score with the same weights
ADAM = functools.partial(torch.optim.Adam, lr=1e-3, fused=True)
COMPILED = ("default", "reduce-overhead")  # modes of torch.compile
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BRANCHES = {3: ("fft", "mel", "phase"), 5: ("fft", "mel", "phase", "stft256", "stft4096")}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """clips : of noise for the steps;  segments, waves : of a step of OEVAE, of the classifier;  rounds : of
    steps, ten each on a GPU;  full : training clips of one machine of `paper`;  epochs : 0: the study's
    """

    clips: int
    segments: int
    waves: int
    rounds: int
    full: int
    epochs: int


SIZES = {"cuda": Sizes(500, 128, 64, 10, 1000, 0), "cpu": Sizes(20, 16, 4, 2, 10, 1)}


# ---------------------------------------------------------------- right


def correct(device: torch.device) -> list[dict[str, str]]:
    """Same seed twice, and CPU against the device, for every detector that needs no weights from elsewhere."""
    cfg = config.StudySettings(
        autoencoder=sizes.BASELINE, oevae=sizes.TINY, classifier=sizes.SMALL, precision="float32"
    )
    store, rows = opened(recordings(2, 20, 8, 2.0)), []
    for name, kind in DETECTORS.items():
        if name == "pretrained":
            continue
        machines = ["machine0", "machine1"] if name == "classifier" else ["machine0"]
        context = Context(cfg, store, device)
        first, again = (detect(detector_of(kind, context), store, machines) for _ in range(2))
        clips, others = training_clips(store, machines)
        trained = detector_of(kind, context)
        trained.train(clips, others)
        trained._prepare()
        tests = Clips(
            store, np.flatnonzero((store.clips["split"] == "test") & store.clips["machine"].isin(machines))
        )
        with tempfile.TemporaryDirectory() as folder:
            trained.save(folder)
            here = kind.load(folder, clips, device="cpu").decision_function(tests)
        there = trained.decision_function(tests)
        apart = float(np.abs(here - there).max() / there.std())
        rows.append(
            {
                "detector": name,
                "same seed twice": "equal" if first.equals(again) else "DIFFERS",
                "CPU against device": f"{apart:.1e} of a standard deviation",
                "within tolerance": "yes" if apart <= TOLERANCE else "NO",
            }
        )
    return rows


def suite() -> str:
    """The last line of `pytest -m gpu`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-n",
        "0",
        "--durations=0",
        "-p",
        "no:cacheprovider",
    ]
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    return said[-1] if said else "pytest said nothing"


# ---------------------------------------------------------------- fast


@dataclasses.dataclass(frozen=True)
class Case:
    """A network's training.  net, batches : of a generator, an epoch;  items : of a batch;  parts : what
    torch.compile is given;  optimizer : as the detector's
    """

    name: str
    unit: str
    items: int
    net: nn.Module
    parts: list[nn.Module]
    batches: Callable[[torch.Generator], Iterator]
    optimizer: Callable
    images: bool = True  # whether it has another layout and precision


def oevae_case(device: torch.device) -> Case:
    """OEVAE at full size: gather, mixup and log-mel of each batch on the device."""
    count = SIZES[device.type].segments
    detector, made = steps.exposed(context(device, oevae=oevae.OEVAESettings(batch=count)))
    net = detector._network()
    return Case("OEVAE, 224 x 126", "segments", count, net, [net.extractor], made.batches, ADAM)


def classifier_case(device: torch.device, branches: int) -> Case:
    """The classifier on clips of 12 s, with its features."""
    count = SIZES[device.type].waves
    settings = classifier.ClassifierSettings(batch=count, holdout=0.0, branches=BRANCHES[branches])
    about = context(device, classifier=settings)
    detector = detector_of(Classifier, about)
    bound(detector, about.store, np.arange(len(about.store)))._open()
    parts = list(detector.net.branches.values())
    adamax = functools.partial(torch.optim.Adamax, lr=1e-3)
    named = f"classifier, 12 s, {branches} branches"
    return Case(named, "clips", count, detector.net, parts, detector._batches, adamax)


def autoencoder_case(device: torch.device) -> Case:
    """The official autoencoder."""
    mel = features.baseline_mel(torch.randn(60, 10 * RATE, device=device))
    vectors, net = (
        Vectors(mel.reshape(-1, 128), [mel.shape[1]] * 60, 5),
        Autoencoder(AutoencoderSettings()).to(device),
    )

    def batches(draws: torch.Generator) -> Iterator:
        whole = len(vectors) // 256 * 256
        return (vectors[part] for part in training.shuffled_batches(whole, 256, draws, device))

    return Case("autoencoder", "vectors", 256, net, [net.layers], batches, ADAM, images=False)


CASES = (
    oevae_case,
    functools.partial(classifier_case, branches=3),
    functools.partial(classifier_case, branches=5),
    autoencoder_case,
)


@functools.cache
def _store(device: torch.device):
    return opened(recordings(2, SIZES[device.type].clips, 0, 10.0)).to(device)


def context(device: torch.device, **more) -> Context:
    """The paper's settings on noise."""
    return Context(config.StudySettings(**more), _store(device), device)


def runs(case: Case, dtype: torch.dtype, memory: torch.memory_format, mode: str = "") -> Callable:
    """A step of a case: batch after batch of endless epochs. mode : of torch.compile, "": eager"""
    device = next(case.net.parameters()).device
    net, draws = case.net.train(), training.generator_for(0, device=device)
    for part in case.parts:
        part._compiled_call_impl = None  # eager again
        if mode:
            part.compile(mode=mode)
    net.to(memory_format=memory)
    optimizer = case.optimizer(net.parameters())
    stream = itertools.chain.from_iterable(case.batches(draws) for _ in itertools.count())

    def ours(count: int = 10 if device.type == "cuda" else 1) -> None:
        for _ in range(count):
            training.step(net, next(stream), optimizer, draws, dtype)

    return ours


def speeds(device: torch.device, until: float) -> list[dict[str, str | float]]:
    """A row per network and way to compute it; eager ways of all come before compiled ones.  until :
    perf_counter after which nothing more is begun
    """
    cases, rows, plain = [case(device) for case in CASES], [], {}
    kinds = [kind for kind in DTYPES if kind in ("float32", precision.auto(device))]
    eager = [("eager", kind, layout) for kind in kinds for layout in LAYOUTS]
    compiled = [(mode, kind, "channels_last") for mode in COMPILED for kind in reversed(kinds)]
    todo = [(way, case) for way in eager for case in cases if case.images or way == eager[0]]
    todo += [(way, case) for way in compiled for case in cases[:2]]
    for (way, kind, layout), case in todo:
        row = {"network": case.name, "computed": way, "precision": kind, "layout": layout}
        rows.append(row)
        if time.perf_counter() > until:
            row["items/s"] = "not reached"
            continue
        ours = runs(case, DTYPES[kind], LAYOUTS[layout], "" if way == "eager" else way)
        count = case.items * (10 if device.type == "cuda" else 1)
        try:
            ours()  # compiles, and is no part of what is counted
            work = measure.flops(ours) if way == "eager" else plain[case.name][1]
            found = measure.compare(
                f"{case.name}, {way}, {kind}, {layout}",
                case.unit,
                ours,
                count,
                device=device,
                dtype=DTYPES[kind],
                operations=work,
                rounds=SIZES[device.type].rounds,
            )
        except Exception as error:  # a mode that this torch or machine cannot do is a result, too
            row["items/s"] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        plain.setdefault(case.name, (found.rate, work))
        row |= {"items/s": round(found.rate, 1), "peak MB": round(found.peak_mb)}
        row |= {"of limit": round(found.rate / found.limit, 3) if found.limit else ""}
        row |= {"times eager float32": round(found.rate / plain[case.name][0], 2)}
        if way == "eager" and device.type == "cuda":
            row["idle"] = round(idle(ours, device), 3)
    return rows


def idle(ours: Callable, device: torch.device) -> float:
    """Share of the time in which a GPU has nothing to do: the clock against the time of its kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        began = measure.clock(device)
        ours()
        wall = measure.clock(device) - began
    return 1 - sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / wall


def layouts(device: torch.device) -> list[measure.Measure]:
    """Both networks in both precisions: channels_last beside contiguous."""
    rows = []
    for make in CASES[:2]:
        for kind, dtype in DTYPES.items():
            case = make(device)
            ready = next(case.batches(training.generator_for(0, device=device)))
            nets = [copy.deepcopy(case.net).to(memory_format=LAYOUTS[name]) for name in sorted(LAYOUTS)]
            ours, plain = (
                steps.stepper(net, lambda ready=ready: ready, case.optimizer(net.parameters()), dtype)
                for net in nets
            )
            about = {"says": "contiguous", "device": device, "rounds": 3, "note": "channels_last"}
            name = f"{case.name}, {kind}"
            rows.append(measure.compare(name, case.unit, ours, case.items, plain, **about))
    return rows


@torch.inference_mode()
def encoders(device: torch.device) -> list[dict[str, str | float]]:
    """Embeddings without training: OEVAE's extractor clip after clip as a study does it, and YAMNet."""
    network, size = sizes.RandomYAMNet.load().to(device), SIZES[device.type]
    wave, done = torch.randn(size.waves, 10 * RATE, device=device), {"device": device, "rounds": size.rounds}
    found = [
        *steps.embedding(device),
        measure.compare("encoder YAMNet", "clips of 10 s", lambda: network(wave), len(wave), **done),
    ]
    return [
        {"network": one.stage, "computed": "eager", "precision": "float32", "layout": one.unit}
        | {"items/s": round(one.rate, 1), "peak MB": round(one.peak_mb)}
        for one in found
    ]


# ---------------------------------------------------------------- one machine of `paper`


def machine(device: torch.device) -> list[dict[str, str | float]]:
    """Seconds to train and score each detector of `paper` for one machine; of the classifier, for two."""
    size = SIZES[device.type]
    cfg = study.load("paper", ["data.recorded=false"])
    store, rows = opened(recordings(2, size.full, size.full // 5, 10.0)), []
    for name in ("autoencoder", "oevae", "classifier"):
        own = getattr(cfg, name)
        own = own.replace(epochs=size.epochs) if size.epochs else own
        machines = ["machine0", "machine1"] if name == "classifier" else ["machine0"]
        began = measure.clock(device)
        with measure.Peak(device) as peak:
            detect(DETECTORS[name](own, device=device, precision=cfg.precision), store, machines)
        spent = measure.clock(device) - began
        about = f"{size.full} training clips, {own.epochs} epochs, {len(machines)} machine{'s'[: len(machines) - 1]}"
        rows.append({"detector": name, "of": about, "seconds": round(spent, 1), "peak MB": round(peak.mb)})
    return rows


# ---------------------------------------------------------------- all


def main(words: list[str]) -> int:
    """Measure, print, and write gpu.md and gpu.json; 1 where something came out wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench gpu", description=__doc__)
    parser.add_argument("--out", default=".", help="folder of gpu.md and gpu.json (default: the current one)")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all of it (default: 6)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu"
    )
    given = parser.parse_args(words)
    began, device = time.perf_counter(), training.pick_device(given.device)  # repeatable, as a study computes
    if device.type == "cpu":
        torch.set_num_threads(1)
    parts, until = {}, began + 60 * given.minutes
    parts["right"] = correct(device)
    parts["suite"] = suite()
    parts["one machine of paper"] = machine(device)
    parts["fast"] = encoders(device) + speeds(device, until)
    parts["seconds"] = round(time.perf_counter() - began)
    parts["device"] = f"{measure.machine(device)}; torch {torch.__version__}"
    if device.type == "cuda":
        parts["device"] = f"{torch.cuda.get_device_name(device)}; {parts['device']}"
    text = report(parts, device)
    print(text)
    folder = Path(given.out)
    folder.mkdir(parents=True, exist_ok=True)
    io.write_text(folder / "gpu.md", text)
    io.write_text(folder / "gpu.json", json.dumps(parts, indent=1))
    return int(any("DIFFERS" in row.values() or "NO" in row.values() for row in parts["right"]))


def report(parts: dict, device: torch.device) -> str:
    """All results as Markdown."""
    shown = {
        name: tables.markdown_table(pd.DataFrame(parts[name]).fillna("").astype(str))
        for name in ("right", "one machine of paper", "fast")
    }
    fallback = (
        "" if device.type == "cuda" else "\n\n**No GPU: the script's fallback on a CPU, at small sizes.**"
    )
    return (
        f"# One run of `python -m tests.bench gpu`, {parts['seconds']} s\n\n{parts['device']}{fallback}\n\n"
        f"## Right?\n\n{shown['right']}\n\n`pytest -m gpu`: {parts['suite']}\n\n"
        f"## One machine of `paper`\n\n{shown['one machine of paper']}\n\n## Fast?\n\n{shown['fast']}\n"
    )
