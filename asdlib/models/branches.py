"""Branches of the classifier: whole-clip spectrum, and spectrogram or phase, each mapped to an embedding.

Layers as in METHOD 5.2 and 5.3 (Wilkinghoff 2024), with PReLU for every ReLU (report 3.1). Adopted from the
cited Keras code: asymmetric `same` padding (extra cell last), BatchNorm with momentum 0.99 (0.01 in torch,
initial values divided out) and eps 1e-3, Glorot-uniform kernels, no biases. Not adopted: Keras' PReLU with
one slope per element starting at 0; here one slope per channel starting at 0.25, also in squeeze-excitation
(METHOD 5.10).

Notebook: 04_classifier.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BN_MOMENTUM, BN_EPS = 0.01, 1e-3
SE_RATIO = 16
STAGES = ("block2", "block3", "block4", "block5")  # stages of a spectrogram branch (METHOD 5.3)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding (before, after) for output length ceil(size / stride), for example (2, 3) for 7/2 on 374."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pad_same(x: Tensor, kernel: int, stride: int) -> tuple[Tensor, list[int]]:
    """Pad x where `same` is asymmetric; also return the symmetric padding left to the convolution."""
    before_after = [same_padding(size, kernel, stride) for size in x.shape[2:]]
    if all(before == after for before, after in before_after):
        return x, [before for before, _ in before_after]
    return F.pad(x, [cells for pair in reversed(before_after) for cells in pair]), [0] * len(before_after)


class SameConv1d(nn.Conv1d):
    """Convolution without bias, output length ceil(length / stride)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1):
        super().__init__(n_in, n_out, kernel, stride, bias=False)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, length) to (n, n_out, ceil(length / stride))."""
        x, padding = _pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv1d(x, self.weight, None, self.stride, padding)


class SameConv2d(nn.Conv2d):
    """Square convolution without bias, output size ceil(size / stride) on both axes."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1):
        super().__init__(n_in, n_out, kernel, stride, bias=False)
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, h, w) to (n, n_out, ceil(h / stride), ceil(w / stride))."""
        x, padding = _pad_same(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, self.weight, None, self.stride, padding)


def dense(n_in: int, n_out: int) -> nn.Linear:
    """Linear layer without bias, Glorot-uniform."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class FromTheFirstStep:
    """BatchNorm whose running statistics exclude their initial mean 0 and variance 1.

    At momentum 0.01 the initial values still weigh 0.99^t after t steps (37 % after 100), which distorts
    evaluation after a short training. Dividing by 1 − 0.99^t removes them, like Adam's bias correction; after
    the thousands of steps of the cited trainings the difference vanishes.

    debias : whether to correct; False is torch's behavior
    """

    debias = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x, same shape: by batch statistics in training, else by running statistics."""
        if self.training or not self.debias:
            return super().forward(x)
        start = torch.pow(1 - self.momentum, self.num_batches_tracked.float())
        share = torch.where(start < 1, 1 - start, 1)
        mean, var = (
            self.running_mean / share,
            torch.where(start < 1, (self.running_var - start) / share, self.running_var).clamp(min=0),
        )
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)


class BatchNorm1d(FromTheFirstStep, nn.BatchNorm1d):
    """For (n, channels)."""


class BatchNorm2d(FromTheFirstStep, nn.BatchNorm2d):
    """For (n, channels, height, width)."""


def _norm(channels: int) -> nn.BatchNorm2d:
    return BatchNorm2d(channels, BN_EPS, BN_MOMENTUM)


class SqueezeExcite(nn.Module):
    """Channel gating by channel means, same shape (n, channels, ...)."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(channels // SE_RATIO, 1)
        self.gate = nn.Sequential(
            dense(channels, inner), nn.PReLU(inner), dense(inner, channels), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel of (n, channels, ...) by its gate in (0, 1)."""
        gate = self.gate(x.flatten(2).mean(2))
        return x * gate.view(*gate.shape, *[1] * (x.ndim - 2))


class SpectrumBranch(nn.Module):
    """Whole-clip spectrum (n, 1, bins) to embedding (n, dim): three strided convolutions, five dense layers.

    bins : half the samples of a clip; fixed by the dense layers.  Source: METHOD 5.2
    """

    def __init__(self, bins: int, dim: int = 128):
        super().__init__()
        self.convolutions = nn.Sequential(
            SameConv1d(1, 128, 256, 64),
            nn.PReLU(128),
            SqueezeExcite(128),
            SameConv1d(128, 128, 64, 32),
            nn.PReLU(128),
            SqueezeExcite(128),
            SameConv1d(128, 128, 16, 4),
            nn.PReLU(128),
            SqueezeExcite(128),
        )
        length = bins
        for stride in (64, 32, 4):
            length = -(-length // stride)
        layers, width = [], 128 * length
        for _ in range(4):
            layers += [dense(width, 128), BatchNorm1d(128, BN_EPS, BN_MOMENTUM), nn.PReLU(128)]
            width = 128
        self.head = nn.Sequential(*layers, dense(128, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (n, dim) of spectra (n, 1, bins)."""
        return self.head(self.convolutions(x).flatten(1))


class Stem(nn.Module):
    """Block 1: 7 x 7 convolution with stride 2, BatchNorm, PReLU, valid 3 x 3 max pool with stride 2."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.convolution, self.norm = SameConv2d(n_in, n_out, 7, 2), _norm(n_out)
        self.activation, self.pool = nn.PReLU(n_out), nn.MaxPool2d(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, h, w) to (n, n_out, rows, columns), about a quarter of h and w."""
        return self.pool(self.activation(self.norm(self.convolution(x))))


class FirstBlock(nn.Module):
    """Blocks 2a and 2b: x + residual at 16 channels.

    Only 2b normalizes x first and applies its activation before BatchNorm.
    """

    def __init__(self, channels: int, *, second: bool):
        super().__init__()
        middle = [nn.PReLU(channels), _norm(channels)] if second else [_norm(channels), nn.PReLU(channels)]
        self.norm = _norm(channels) if second else nn.Identity()
        self.residual = nn.Sequential(
            nn.PReLU(channels),
            SameConv2d(channels, channels, 3),
            *middle,
            SameConv2d(channels, channels, 3),
            SqueezeExcite(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, channels, h, w) to the same shape."""
        x = self.norm(x)
        return x + self.residual(x)


class Block(nn.Module):
    """Blocks 3a to 5b: x ← BN(x), then skip + residual.

    With stride 2 the skip is max-pooled and projected to n_out channels.
    """

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.norm = _norm(n_in)
        self.residual = nn.Sequential(
            nn.PReLU(n_in),
            SameConv2d(n_in, n_out, 3, stride),
            _norm(n_out),
            nn.PReLU(n_out),
            SameConv2d(n_out, n_out, 3),
            SqueezeExcite(n_out),
        )
        # ceil_mode is Keras' `same` for a 2 x 2 pool: an odd last row forms its own window
        self.skip = (
            nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), SameConv2d(n_in, n_out, 1))
            if stride == 2
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in, h, w) to (n, n_out, ceil(h / stride), ceil(w / stride))."""
        x = self.norm(x)
        return self.skip(x) + self.residual(x)


class SpectrogramBranch(nn.Module):
    """Residual network of METHOD 5.3: spectrogram or phase (n, channels, bins, frames) to embedding (n, dim).

    center_time : subtract each bin's mean over time (magnitudes); False for phase, where a mean of wrapped
        angles is meaningless (METHOD 6.1)
    The last map is max-pooled over all time: equal to the published MaxPool(18, 1) up to 18 s.
    """

    def __init__(self, channels: int, bins: int, dim: int = 128, *, center_time: bool):
        super().__init__()
        self.center_time = center_time
        self.bin_norm = BatchNorm1d(channels * bins, BN_EPS, BN_MOMENTUM)
        self.stem = Stem(channels, 16)
        blocks, width = [FirstBlock(16, second=False), FirstBlock(16, second=True)], 16
        for n_out in (32, 64, 128):
            blocks += [Block(width, n_out, 2), Block(n_out, n_out, 1)]
            width = n_out
        self.blocks = nn.Sequential(*blocks)
        rows = (-(-bins // 2) - 3) // 2 + 1  # after the stem: `same` stride 2, then a valid 3/2 pool
        for _ in range(3):
            rows = -(-rows // 2)
        self.head = nn.Sequential(BatchNorm1d(128 * rows, BN_EPS, BN_MOMENTUM), dense(128 * rows, dim))

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs of blocks 2 to 5, (n, channels, rows, columns) with 16 to 128 channels."""
        if self.center_time:
            x = x - x.mean(3, keepdim=True)
        x = self.bin_norm(x.flatten(1, 2)).unflatten(1, x.shape[1:3])
        x, maps = self.stem(x), {}
        for name, first in zip(STAGES, range(0, len(self.blocks), 2)):
            x = maps[name] = self.blocks[first : first + 2](x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (n, dim) of spectrograms or phases (n, channels, bins, frames)."""
        return self.head(self.stages(x)[STAGES[-1]].amax(3).flatten(1))


def regularized(module: nn.Module) -> list[nn.Parameter]:
    """L2-penalized kernels: convolutions and dense layers outside squeeze-excitation (METHOD 5.2, 5.9)."""
    if isinstance(module, SqueezeExcite):
        return []
    own = [module.weight] if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)) else []
    return own + [weight for child in module.children() for weight in regularized(child)]


def l2_penalty(kernels: list[nn.Parameter]) -> Tensor:
    """Σ‖W‖² over kernels, a scalar (0-dimensional)."""
    return torch.stack([kernel.square().sum() for kernel in kernels]).sum()
