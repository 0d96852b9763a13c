"""The official autoencoder: our training against a plain float32 loop over materialised vectors, and peak
memory at real size.

The plain loop is what the official code does, bare: every 640-value vector in memory, torch's own layers,
Adam, and `set_detect_anomaly(True)`, with torch's own number of threads. Ours trains several networks at
once, one thread each.
"""

import itertools
import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from asdlib import features
from asdlib.models import autoencoder, training
from asdlib.models.autoencoder import Autoencoder, Vectors

STEPS, ROUNDS = 60, 7


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

    nets = [Autoencoder(autoencoder.AutoencoderSettings()) for _ in range(trainings)]
    with ThreadPoolExecutor(trainings) as pool:
        began = time.perf_counter()
        list(pool.map(train, range(trainings)))
        return trainings * count / (time.perf_counter() - began)


def main() -> None:
    cores = training.cores()
    mel = features.baseline_mel(torch.randn(100, 160000, generator=torch.Generator().manual_seed(0)))
    frames = mel.shape[1]
    gathered = Vectors(mel.reshape(-1, 128), [frames] * len(mel), 5)
    materialised = gathered[torch.arange(len(gathered))]
    rounds = []
    for _ in range(ROUNDS):
        ours = our_steps(gathered, STEPS, 1), our_steps(gathered, STEPS, cores)
        rounds.append((*ours, plain_steps(materialised, STEPS, cores), plain_steps(materialised, STEPS, 1)))
    one, many, plain, plain_one = (statistics.median(column) for column in zip(*rounds))
    print(f"autoencoder, batch 256 of 640, median of {ROUNDS} rounds, {cores} cores, steps per second")
    print(f"  plain loop, {cores} threads {plain:7.0f}    1 thread {plain_one:7.0f}")
    print(f"  ours, {cores} trainings at once {many:7.0f}    1 training {one:7.0f}")
    ratios = [row[1] / row[2] for row in rounds]
    on_one = statistics.median(row[0] / row[3] for row in rounds)
    print(
        f"  ratio on all cores {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); on"
        f" one core {on_one:.2f}"
    )
    print(f"  peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
