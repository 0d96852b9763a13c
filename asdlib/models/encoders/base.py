"""Interface of pretrained encoders, and loading and checking of their weights.

Source: METHOD 3.11.  Used by: asdlib.detectors.pretrained
"""

from __future__ import annotations

import abc
import hashlib
from pathlib import Path
from typing import ClassVar, Self

import torch

from asdlib import errors


class Encoder(torch.nn.Module, abc.ABC):
    """Frozen network: waveforms float32 (n, samples) at `rate` to embeddings float32 (n, items, dim)."""

    name: ClassVar[str]
    rate: ClassVar[int]  # Hz
    dim: ClassVar[int]
    shortest: ClassVar[int]  # number of samples that yields one item
    license: ClassVar[str]  # license of the weights, for the model card
    where: ClassVar[str]  # where to get the weights, for error messages
    sha256: ClassVar[str] = ""  # of the weight file, if there is a single known one

    @classmethod
    def file(cls, path: str) -> Path:
        """Path of the weight file; "": from an installed package.

        raises : errors.InputError for a missing file
        """
        if not path or not Path(path).expanduser().is_file():
            raise errors.InputError(
                f"encoder {cls.name}: got {path or 'no file'}, expected a weights file; {cls.where}"
            )
        return Path(path).expanduser()

    @classmethod
    def load(cls, path: str = "", sha256: str = "") -> Self:
        """Network with its weights, frozen and in evaluation mode.

        path : weight file; "": from an installed package.  sha256 : expected checksum; "": that of the class
        raises : errors.InputError for a missing package or file, a wrong checksum, or a foreign file
        """
        file, expected = cls.file(path), (sha256 or cls.sha256).lower()
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if expected and found != expected:
            raise errors.InputError(f"{file}: SHA-256 is {found}, expected {expected}; {cls.where}")
        try:
            network = cls.read(file)
        except Exception as error:  # torch, zipfile and onnx raise many types for foreign files
            kind = type(error).__name__
            raise errors.InputError(
                f"{file}: does not contain the weights of {cls.name} ({kind}); {cls.where}"
            ) from error
        return network.requires_grad_(False).eval()

    @classmethod
    @abc.abstractmethod
    def read(cls, file: Path) -> Self:
        """Network with the weights of a file; raises any exception for a foreign file."""
