"""Benchmarks of the data: decoding and storing, opening again, features."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio

from asdlib import features
from asdlib.data import index, store
from asdlib.data.decode import DataSettings
from asdlib.models import classifier
from tests.bench.measure import Measure, compare, fourier

RATE = 16000


@functools.cache
def recordings(machines: int, train: int, test: int, seconds: float) -> Path:
    """A DCASE tree of noise; removed when the process ends."""
    keep = tempfile.TemporaryDirectory(prefix="bench-")
    _keep.append(keep)
    rng = np.random.default_rng(0)
    for machine in range(machines):
        for split, label, count in (("train", "normal", train), ("test", "normal", test)):
            folder = Path(keep.name) / "raw" / f"machine{machine}" / split
            folder.mkdir(parents=True)
            for i in range(count):
                domain = "target" if i % 10 == 9 else "source"
                wave = rng.integers(-3000, 3000, round(seconds * RATE), dtype=np.int16)
                soundfile.write(
                    folder / f"section_00_{domain}_{split}_{label}_{i:04d}_speed_{i % 5}.wav", wave, RATE
                )
    return Path(keep.name)


_keep: list = []


def opened(folder: Path, name: str = "store") -> store.Store:
    """The store of such a tree."""
    return store.open_store(*index.index([folder / "raw"]), folder / name, DataSettings())


def decode(device: torch.device) -> list[Measure]:
    """200 clips of 10 s into a new store; 1000 clips opened again."""
    folder, count = recordings(2, 100, 0, 10.0), iter(range(1000))
    table, problems = index.index([folder / "raw"])
    size = 2 * 200 * 10 * RATE

    def plain() -> np.ndarray:
        return np.stack([soundfile.read(path, dtype="float32")[0] for path in table["path"]])

    made = compare(
        "decode and store",
        "clips",
        lambda: store.open_store(table, problems, folder / f"new{next(count)}", DataSettings()),
        200,
        plain,
        says="read each file as float32 into one array; nothing checked, nothing kept",
        moved=4 * size,
        rounds=3,
        note="10 s clips; ours also digests, checks and writes each",
    )
    many = recordings(1, 1000, 0, 1.0)
    opened(many)

    def headers() -> list:
        return [soundfile.info(path).frames for path in sorted((many / "raw").rglob("*.wav"))]

    again = compare(
        "open again", "clips", lambda: opened(many), 1000, headers, says="read every file's header"
    )
    return [
        made,
        dataclasses.replace(
            again, note=f"1000 clips in {1000 / again.rate:.2f} s: index, stat, compare with the digest"
        ),
    ]


def feature(device: torch.device) -> list[Measure]:
    """Features of whole clips, in seconds of sound per second on one core."""
    wave = torch.randn(16, 10 * RATE, device=device)
    mel = torchaudio.transforms.MelSpectrogram(RATE, 1024, 1024, 256, 50.0, 7800.0, n_mels=224).to(device)
    decibel = torchaudio.transforms.AmplitudeToDB()
    bands = 16 * 626 * (fourier(1, 1024) + 2 * 513 * 224)
    rows = [
        compare(
            "log-mel, 224 bands",
            "s of sound",
            lambda: features.log_mel(wave),
            160,
            lambda: [decibel(mel(one)) for one in wave],
            says="torchaudio, one clip at a time",
            device=device,
            operations=bands,
            moved=4 * (wave.numel() + 16 * 224 * 626),
        )
    ]
    settings, long = classifier.ClassifierSettings(), torch.randn(8, 12 * RATE, device=device)

    def one_by_one() -> list:
        window, out = torch.hann_window(1024, device=device), []
        mels = torchaudio.transforms.MelSpectrogram(
            RATE, 1024, None, 512, n_mels=128, power=1.0, center=False
        ).to(device)
        for clip in long:
            spec = torch.stft(clip, 1024, 512, window=window, center=False, return_complex=True)
            out.append((torch.fft.rfft(clip).abs(), mels(clip), spec.angle()))
        return out

    three = 8 * (fourier(1, 12 * RATE) + 374 * (2 * fourier(1, 1024) + 2 * 513 * 128))
    rows.append(
        compare(
            "three branches",
            "s of sound",
            lambda: classifier.branch_inputs(long, settings),
            96,
            one_by_one,
            says="torch and torchaudio, one clip at a time",
            device=device,
            operations=three,
        )
    )
    return rows
