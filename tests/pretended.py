"""A GPU that is not there: tensors that say they are on it, and refuse what a GPU refuses, while a CPU
computes their values.

What is made with `device=cuda`, moved there, or computed from such tensors is of class `OnGPU`. Its
operations refuse tensors of the host, and it refuses to become an array, in torch's words. Generators say
they are the GPU's. What is not pretended: speed, memory, the GPU's own rounding, autocast (on the host it
leaves a GPU's operations alone).
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

GPU, HOST = torch.device("cuda", 0), torch.Generator
ACROSS = {torch.Tensor.copy_, torch._has_compatible_shallow_copy_type}  # may see both


FLAGS = [
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),
]


class Draws(torch.Generator):
    """A generator of the host that says it is the GPU's; it draws as one of the host does."""

    device = GPU


class Generator(torch.Generator):
    """torch.Generator(device) where there is such a GPU."""

    def __new__(cls, device="cpu"):
        return Draws() if torch.device(device).type == "cuda" else HOST(device)


class OnGPU(torch.Tensor):
    """A tensor of the pretended GPU."""

    def __reduce_ex__(self, protocol):
        """As a tensor of the host: where there is no GPU, a file that says it is to lie on one cannot be
        read.
        """
        with torch._C.DisableTorchFunctionSubclass():
            return (
                self.detach()
                .as_subclass(torch.Tensor)
                .requires_grad_(self.requires_grad)
                .__reduce_ex__(protocol)
            )

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return GPU
        if func == torch.Tensor.is_cuda.__get__:
            return True
        if func is torch.Tensor.cpu:
            return _to(args[0], torch.device("cpu"))
        if func is torch.Tensor.to:
            return _moved(args, kwargs)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to"
                " host memory first."
            )
        if func == torch.Tensor.grad.__get__:
            grad = super().__torch_function__(func, types, args, kwargs)
            return grad if grad is None else grad.as_subclass(OnGPU)
        _refuse_mixtures(func, args, kwargs)
        return super().__torch_function__(func, types, args, kwargs)


def _refuse_mixtures(func, args, kwargs) -> None:
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    host = [x for x in tensors if not isinstance(x, OnGPU) and x.ndim]
    indexing = func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(
        args[0], OnGPU
    )  # a GPU takes indices of the host
    if host and len(host) < len(tensors) and func not in ACROSS and not indexing:
        name = getattr(func, "__name__", func)
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but found at least two devices, cuda:0"
            " and cpu"
        )


def _to(x: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """The tensor said to be on a device, in memory of its own if that is another."""
    if device is None or (device.type == "cuda") == isinstance(x, OnGPU):
        return x
    with torch._C.DisableTorchFunctionSubclass():
        return x.clone().as_subclass(OnGPU if device.type == "cuda" else torch.Tensor)


def _moved(args, kwargs) -> torch.Tensor:
    """`Tensor.to` in any of its forms."""
    device, rest, named = None, [], dict(kwargs)
    for value in [*args[1:], *(named.pop(name, None) for name in ("device", "dtype", "other"))]:
        if isinstance(value, torch.Tensor):
            device, value = value.device, value.dtype
        if isinstance(value, (torch.device, str)):
            device = torch.device(value)
        elif isinstance(value, torch.dtype):
            rest.append(value)  # and not whether to wait for the copy
    x = _to(args[0], device)
    with torch._C.DisableTorchFunctionSubclass():
        kind = type(x)
        return x.to(*rest, **named).as_subclass(kind) if rest or named else x


class _Factories(TorchFunctionMode):
    """`device=cuda` in a call, or `.to` of a host tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.to:
            return _moved(args, kwargs)
        if func is torch.as_tensor and isinstance(args[0], torch.Tensor):
            return _moved(args[:1], kwargs)
        device = kwargs.get("device")
        on_gpu = device is not None and torch.device(device).type == "cuda"
        if (draws := kwargs.get("generator")) is not None and isinstance(draws, Draws) != on_gpu:
            raise RuntimeError(
                f"Expected a '{'cuda' if on_gpu else 'cpu'}' device type for generator but found"
                f" '{draws.device.type}'"
            )
        if on_gpu:
            return func(*args, **{**kwargs, "device": "cpu"}).as_subclass(OnGPU)
        return func(*args, **kwargs)


@contextlib.contextmanager
def as_before():
    """What is set for the whole process where a GPU is picked is put back."""
    flags = [getattr(*flag) for flag in FLAGS]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
        patch.delenv("CUBLAS_WORKSPACE_CONFIG")
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
            for flag, value in zip(FLAGS, flags):
                setattr(*flag, value)


@contextlib.contextmanager
def gpu(free: float = 1e12):
    """Inside, torch has a GPU with `free` bytes left."""
    answers = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda *_: None,
        "get_device_name": lambda *_: "pretended",
        "mem_get_info": lambda *_: (free, free),
        "is_current_stream_capturing": lambda: False,
        "memory_reserved": lambda *_: 0,
        "memory_allocated": lambda *_: 0,
    }
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(
        True
    )  # parameters take the class of what they are moved to
    try:
        with pytest.MonkeyPatch.context() as patch, as_before(), _Factories():
            for name, answer in answers.items():
                patch.setattr(torch.cuda, name, answer)
            patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
            patch.setattr(torch, "Generator", Generator)
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
