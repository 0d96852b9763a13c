"""The classifier at full size (12 s clips, 148 classes, batch 64): what a training step costs per clip, and its peak memory.

A step is waveform mixup, features, both passes, L2 and Adamax. One thread on a CPU, where CPU time stands beside wall time because other
processes stretch both; the yardstick for fft and stft1024 in float32 is the nearest peer's 0.11 s per clip on one core. With a GPU,
clips per second and memory there as well.
"""

import os
import resource
import time

import torch

from asdlib import augment, config
from asdlib.models import classifier

CLASSES, BATCH, SECONDS, STEPS = 148, 64, 12.0, 2
BRANCHES = (("fft", "stft1024"), ("fft", "mel", "phase"))
MEMORY = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def step_cost(branches: tuple[str, ...], device: str, precision: torch.dtype, memory: torch.memory_format) -> tuple[float, float]:
    """(wall s, CPU s) per clip, the first step left out."""
    settings = config.Classifier(branches=branches, clip_seconds=SECONDS, batch=BATCH)
    torch.manual_seed(0)
    net = classifier.Classifier(settings, CLASSES).to(device, memory_format=memory)
    optimiser = torch.optim.Adamax(net.parameters(), lr=settings.lr)
    generator = torch.Generator(device).manual_seed(0)
    wave = 0.02 * torch.randn(BATCH, round(SECONDS * 16000), device=device)
    labels = torch.nn.functional.one_hot(torch.arange(BATCH, device=device) % CLASSES, CLASSES).float()

    def step() -> None:
        x, y = augment.mixup(wave, labels, prob=0.5, generator=generator)
        inputs = classifier.Batch(classifier.branch_inputs(x, settings), y)
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            loss = net.loss(inputs, generator)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    finish()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        step()
    finish()
    return (time.perf_counter() - wall) / STEPS / BATCH, (time.process_time() - cpu) / STEPS / BATCH


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, torch {torch.__version__}, {SECONDS:g} s clips, batch {BATCH}")
    print(f"{'branches':16} {'device':7} {'precision':10} {'memory':14} {'wall s/clip':>12} {'CPU s/clip':>11} {'peak GB':>8}")
    for device in ["cpu", *["cuda"] * torch.cuda.is_available()]:
        for branches in BRANCHES:
            for precision in (torch.float32, torch.bfloat16):
                for name, memory in MEMORY.items():
                    if device == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                    wall, cpu = step_cost(branches, device, precision, memory)
                    here = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                    words = f"{','.join(branches):16} {device:7} {str(precision)[6:]:10} {name:14}"
                    print(f"{words} {wall:12.4f} {cpu:11.4f} {here / 1e9:8.2f}", flush=True)
