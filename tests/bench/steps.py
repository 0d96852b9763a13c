"""Benchmarks of training and of embedding: the networks of the `paper` study at full size, on noise."""

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile
import torch
import torchaudio
from torch import nn

from asdlib import features
from asdlib.detectors import exposure
from asdlib.detectors.classifier import Classifier
from asdlib.detectors.oevae import OEVAE
from asdlib.models import classifier, oevae, precision, training
from asdlib.models.autoencoder import Autoencoder, AutoencoderSettings, Vectors
from asdlib.models.classifier import Batch
from asdlib.models.precision import DTYPES
from asdlib.studies import config
from tests.bench.data import RATE, opened, recordings
from tests.bench.measure import Measure, compare, flops
from tests.sizes import Context, bound, detector_of

CLIPS = {
    "cpu": 16,
    "cuda": 64,
}  # of a classifier's step: a quarter of the study's on a CPU, where it takes long enough
SEGMENTS = 128  # of an OEVAE step, as in the study


def study(device: torch.device, **more) -> Context:
    """The paper's settings on a small store of noise."""
    cfg = config.StudySettings(**more)
    return Context(cfg, opened(recordings(2, 100, 0, 10.0)).to(device), device)


def stepper(
    net: nn.Module, batch: Callable, optimizer: torch.optim.Optimizer, dtype: torch.dtype
) -> Callable:
    """One training step on what `batch` gives."""
    device = next(net.parameters()).device
    draws = training.generator_for(0, device=device)
    net.train()
    return lambda: training.step(net, batch(), optimizer, draws, dtype)


def chosen(name: str, device: torch.device) -> tuple[str, torch.dtype]:
    """The precision that `auto` takes here."""
    kind = precision.of(name, config.StudySettings(), device)
    return kind, DTYPES[kind]


def exposed(context: Context) -> tuple[OEVAE, exposure.OutlierExposureBatches]:
    """An OEVAE detector and its batches, as `fit` makes them."""
    table = context.store.clips
    rows = np.flatnonzero(table["machine"] == "machine0")
    detector = detector_of(OEVAE, context)
    bound(detector, context.store, rows)._open()
    others = np.flatnonzero((table["machine"] != "machine0") & (table["split"] == "train"))
    items, settings = detector.front.items(others), context.cfg.oevae
    weights = exposure.draw_weights(
        np.repeat(table["machine"].to_numpy()[others], settings.features.segments), [], 0.0
    )
    return detector, exposure.OutlierExposureBatches(
        detector.front, settings, detector._target(rows), items, weights
    )


def oevae_step(device: torch.device) -> list[Measure]:
    """A step of OEVAE beside a plain one, its data beside a loader that reads files, and both together."""
    count = SEGMENTS
    context = study(device, oevae=oevae.OEVAESettings(batch=count))
    kind, dtype = chosen("oevae", device)
    detector, made = exposed(context)
    net = detector._network()
    draws = training.generator_for(0, device=device)
    index, blend = made.plan(draws)
    first = dataclasses.replace(
        blend, first=blend.first[:count], second=blend.second[:count], weight=blend.weight[:count]
    )

    def gather() -> oevae.Batch:
        return made.batch(index[:count], first)

    ready = gather()
    ours = stepper(net, gather, torch.optim.Adam(net.parameters(), lr=1e-3, fused=True), dtype)
    only = stepper(net, lambda: ready, torch.optim.Adam(net.parameters(), lr=1e-3, fused=True), dtype)
    bare = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    plain = stepper(bare, lambda: ready, torch.optim.Adam(bare.parameters(), lr=1e-3), torch.float32)
    work, rounds = flops(only), 3 if device.type == "cpu" else 10
    kinds = {"device": device, "dtype": dtype, "operations": work, "rounds": rounds}
    rows = [
        compare(
            "OEVAE step",
            "segments",
            only,
            count,
            plain,
            says="float32, contiguous, Adam unfused",
            note=f"{kind}, channels_last",
            **kinds,
        ),
        compare(
            "data of an OEVAE step",
            "segments",
            gather,
            count,
            _from_files(context, count),
            device=device,
            rounds=rounds,
            says="read files, standardize, mel of torchaudio, item by item",
        ),
        compare(
            "OEVAE step with its data", "segments", ours, count, note="gather, mixup, log-mel, step", **kinds
        ),
    ]
    share = f"{100 * rows[0].rate / rows[1].rate:.1f} % of a step"
    return [rows[0], dataclasses.replace(rows[1], note=share), rows[2]]


def _from_files(context: Context, count: int) -> Callable:
    """What a file-reading DataLoader does for a batch."""
    mel = torchaudio.transforms.MelSpectrogram(RATE, 1024, 1024, 256, 50.0, 7800.0, n_mels=224)
    decibel, paths, rng = (
        torchaudio.transforms.AmplitudeToDB(),
        context.store.clips["path"].tolist(),
        np.random.default_rng(0),
    )

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            wave, _ = soundfile.read(paths[i], dtype="float32")
            wave = (wave - wave.mean()) / wave.std()
            start = rng.integers(0, len(wave) - 2 * RATE)
            return decibel(mel(torch.from_numpy(wave[start : start + 2 * RATE])))[None]

    loader = torch.utils.data.DataLoader(Files(), count, shuffle=True)
    return lambda: next(iter(loader)).to(context.device)


def classifier_step(device: torch.device) -> list[Measure]:
    """A step of the three-branch classifier with its features."""
    count = CLIPS[device.type]
    context = study(device, classifier=classifier.ClassifierSettings(batch=count, holdout=0.0))
    kind, dtype = chosen("classifier", device)
    detector = detector_of(Classifier, context)
    bound(detector, context.store, np.arange(len(context.store)))._open()
    draws = training.generator_for(0, device=device)

    def gather() -> Batch:
        return next(detector._batches(draws))

    ready = gather()
    ours = stepper(detector.net, gather, torch.optim.Adamax(detector.net.parameters(), lr=1e-3), dtype)
    bare = copy.deepcopy(detector.net).to(memory_format=torch.contiguous_format)
    plain = stepper(bare, lambda: ready, torch.optim.Adamax(bare.parameters(), lr=1e-3), torch.float32)
    work = flops(
        stepper(detector.net, lambda: ready, torch.optim.Adamax(detector.net.parameters(), lr=1e-3), dtype)
    )
    kinds = {"device": device, "dtype": dtype, "operations": work, "rounds": 3}
    return [
        compare(
            "classifier step",
            "clips",
            ours,
            count,
            plain,
            says="float32, contiguous, features ready",
            **kinds,
            note=f"12 s, fft + mel + phase, {kind}, features included",
        )
    ]


def plain_network() -> nn.Sequential:
    sizes = [640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640]
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b, momentum=0.01, eps=1e-3), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


def plain_steps(vectors: torch.Tensor, count: int, threads: int) -> float:
    """Steps per second of the plain loop."""
    torch.set_num_threads(threads)
    net = plain_network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        order = torch.randperm(len(vectors))
        for step in range(count + 5):
            if step == 5:
                began = time.perf_counter()
            x = vectors[order[step * 256 : (step + 1) * 256]]
            optimizer.zero_grad()
            (net(x) - x).square().mean().backward()
            optimizer.step()
    return count / (time.perf_counter() - began)


def our_steps(vectors: Vectors, count: int, trainings: int) -> float:
    """Steps per second of all our trainings together."""

    def train(number: int) -> None:
        torch.set_num_threads(1)
        net = nets[number]
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
        order = torch.randperm(len(vectors))
        for step in range(count):
            optimizer.zero_grad()
            net.loss(vectors[order[step * 256 : (step + 1) * 256]], None)["loss"].backward()
            optimizer.step()

    nets = [Autoencoder(AutoencoderSettings()) for _ in range(trainings)]
    with ThreadPoolExecutor(trainings) as pool:
        began = time.perf_counter()
        list(pool.map(train, range(trainings)))
        return trainings * count / (time.perf_counter() - began)


def autoencoder_step(device: torch.device) -> list[Measure]:
    """60 steps of the official autoencoder on one core."""
    mel = features.baseline_mel(torch.randn(60, 10 * RATE, device=device))
    vectors = Vectors(mel.reshape(-1, 128), [mel.shape[1]] * 60, 5)
    spread, order = (
        vectors[torch.arange(len(vectors), device=device)],
        torch.randperm(len(vectors), device=device),
    )
    net, bare = Autoencoder(AutoencoderSettings()).to(device), plain_network().to(device)
    optimizer, plain_optimizer = (
        torch.optim.Adam(net.parameters(), lr=1e-3, fused=True),
        torch.optim.Adam(bare.parameters(), lr=1e-3),
    )
    draws, parts = training.generator_for(0, device=device), order[: 60 * 256].split(256)

    def ours() -> None:
        for part in parts:
            training.step(net, vectors[part], optimizer, draws, torch.float32)

    def plain() -> None:
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            for part in parts:
                x = spread[part]
                plain_optimizer.zero_grad()
                (bare(x) - x).square().mean().backward()
                plain_optimizer.step()

    work = 60 * flops(lambda: (bare(spread[:256]) - spread[:256]).square().mean().backward())
    rows = [
        compare(
            "autoencoder step",
            "vectors",
            ours,
            60 * 256,
            plain,
            device=device,
            operations=work,
            says="the official loop: vectors written out, anomaly detection on",
            note="batches of 256, one core each",
        )
    ]
    if device.type == "cpu":
        cores = training.cores()
        rows.append(
            compare(
                "autoencoder, all cores",
                "vectors",
                lambda: our_steps(vectors, 60, cores),
                60 * 256 * cores,
                lambda: plain_steps(spread, 60, cores),
                65 * 256,
                timer=time.perf_counter,
                says="the official loop with a thread per core",
                note=f"wall time, {cores} trainings at once",
            )
        )
        torch.set_num_threads(1)
    return rows


@torch.inference_mode()
def embedding(device: torch.device) -> list[Measure]:
    """Log-mel and embedding of whole clips in float32."""
    context = study(device)
    detector, _ = exposed(context)
    detector.net, clips = detector._network().eval(), 4 if device.type == "cpu" else 64
    rows = np.arange(clips)

    def ours() -> None:
        detector._passes.clear()
        detector._pass(rows)

    bare = copy.deepcopy(detector.net).to(memory_format=torch.contiguous_format)

    def plain() -> None:
        items = detector.front.items(rows)
        for i in range(len(items)):
            part = torch.tensor([i], device=items.row.device)
            bare.score(detector.front.log_mel(detector.front.waves(items[part])))[0].cpu()

    work = flops(lambda: bare(torch.zeros(8 * clips, 1, 224, 126, device=device)))
    return [
        compare(
            "embedding",
            "segments",
            ours,
            8 * clips,
            plain,
            device=device,
            operations=work,
            rounds=3,
            says="one segment at a time, contiguous",
        )
    ]
