"""The official autoencoder baseline: 640 → 4 × 128 → 8 → 4 × 128 → 640, BatchNorm and ReLU after every layer but the last.

Input vectors are 5 consecutive log-mel frames of 128 bands, frame-major. They are never materialised: in a spectrogram
stored frames first, the 5 x 128 values that start at a frame lie in a row, so a batch is one strided gather.
Sources: SYSTEM 6, FACTS F5. Notebook: 03_baseline.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from asdlib import checks, config

BN_MOMENTUM, BN_EPS = 0.01, 1e-3  # as the official code sets them (Keras' defaults)


class Vectors:
    """All input vectors of a set of clips, as a view of their log-mels; clips may differ in length.

    mel : float32 (frames of all clips, bands), contiguous
    lengths : frames of each clip, in the order of `mel`
    frames : consecutive frames per vector
    """

    def __init__(self, mel: torch.Tensor, lengths: list[int], frames: int):
        if min(lengths) < frames:
            raise checks.Refusal(f"a clip of {min(lengths)} frames came, expected at least {frames}; use longer clips or fewer autoencoder.frames")
        bands = mel.shape[1]
        self._rows = mel.view(-1).as_strided((len(mel) - frames + 1, frames * bands), (bands, 1))
        size = torch.tensor(lengths, device=mel.device)
        counts = size - frames + 1
        self.clip = torch.repeat_interleave(torch.arange(len(lengths), device=mel.device), counts)
        first = torch.cumsum(size, 0) - size - (torch.cumsum(counts, 0) - counts)
        self._start = torch.arange(len(self.clip), device=mel.device) + first[self.clip]

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """Vectors (n, frames · bands) by number; vector i belongs to clip `clip[i]`."""
        return self._rows[self._start[index]]


class Autoencoder(nn.Module):
    """The official network (FACTS F5): 267,928 parameters at the defaults, kept in one flat tensor.

    One tensor means one optimiser update and gradients written in place: at this size the bookkeeping of 38 small
    tensors costs as much as the matrix products. `layers` are its views; initial values are those of nn.Linear.

    forward : float32 (n, frames · bands) → reconstruction of the same shape
    """

    def __init__(self, settings: config.Autoencoder):
        super().__init__()
        width, hidden = settings.frames * settings.n_mels, settings.hidden
        sizes = [width, *[hidden] * 4, settings.bottleneck, *[hidden] * 4, width]
        pieces = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(n_in, n_out)
            pieces += [linear.weight.detach(), linear.bias.detach()]
            if i < len(sizes) - 2:
                pieces += [torch.ones(n_out), torch.zeros(n_out)]  # BatchNorm: scale, shift
        self._shapes = [piece.shape for piece in pieces]
        self.flat = nn.Parameter(torch.cat([piece.reshape(-1) for piece in pieces]))
        self.hidden = len(sizes) - 2
        for i, size in enumerate(sizes[1:-1]):
            self.register_buffer(f"mean{i}", torch.zeros(size))
            self.register_buffer(f"var{i}", torch.ones(size))

    def views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Weight, bias, scale, shift of each hidden layer in turn, then weight and bias of the last, as views of `flat`."""
        parts = flat.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes)]

    def statistics(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Running mean and variance of hidden layer i, updated in place during training."""
        return getattr(self, f"mean{i}"), getattr(self, f"var{i}")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = self.views(self.flat)
        for i in range(self.hidden):
            weight, bias, scale, shift = values[4 * i : 4 * i + 4]
            x = nn.functional.linear(x, weight, bias)
            x = torch.relu(nn.functional.batch_norm(x, *self.statistics(i), scale, shift, self.training, BN_MOMENTUM, BN_EPS))
        return nn.functional.linear(x, *values[-2:])

    def loss(self, batch: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Mean squared error of a batch of vectors (n, frames · bands), for training; draws nothing from the generator."""
        return {"loss": _Reconstruction.apply(self.flat, batch, self)}


class _Reconstruction(torch.autograd.Function):
    """Mean squared error of the network in training mode with its gradient, written out layer by layer.

    The same arithmetic as autograd over `Autoencoder.forward` (a test holds them equal), without its bookkeeping.
    """

    @staticmethod
    def forward(ctx, flat: torch.Tensor, x: torch.Tensor, net: Autoencoder) -> torch.Tensor:
        values, kept, h = net.views(flat), [], x
        for i in range(net.hidden):
            weight, bias, scale, shift = values[4 * i : 4 * i + 4]
            pre = torch.addmm(bias, h, weight.t())
            out, mean, invstd = torch.native_batch_norm(pre, scale, shift, *net.statistics(i), True, BN_MOMENTUM, BN_EPS)
            kept.append((h, pre, mean, invstd))
            h = out.relu_()
        error = torch.addmm(values[-1], h, values[-2].t()).sub_(x)
        loss = torch.dot(error.view(-1), error.view(-1)) / error.numel()
        back = error.mul_(2.0 / error.numel())

        grad = torch.empty_like(flat)
        grads = net.views(grad)
        torch.mm(back.t(), h, out=grads[-2])
        torch.sum(back, 0, out=grads[-1])
        back = back @ values[-2]
        for i in reversed(range(net.hidden)):
            weight, _, scale, _ = values[4 * i : 4 * i + 4]
            below, pre, mean, invstd = kept[i]
            back = torch.ops.aten.threshold_backward(back, h, 0.0)
            back, g_scale, g_shift = torch.ops.aten.native_batch_norm_backward(
                back, pre, scale, *net.statistics(i), mean, invstd, True, BN_EPS, [True, True, True]
            )
            torch.mm(back.t(), below, out=grads[4 * i])
            torch.sum(back, 0, out=grads[4 * i + 1])
            grads[4 * i + 2].copy_(g_scale)
            grads[4 * i + 3].copy_(g_shift)
            h = below
            if i:
                back = back @ weight
        ctx.grad = grad
        return loss

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor):
        return ctx.grad.mul_(grad_output), None, None
