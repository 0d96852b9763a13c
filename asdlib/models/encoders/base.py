"""What every pretrained encoder answers to, and how the file of its weights is found and checked.

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
    """A frozen network: `forward` takes waveforms, float32 (n, samples) at `rate`, and returns their
    embeddings in the order of time, float32 (n, items, dim).
    """

    name: ClassVar[str]
    rate: ClassVar[int]  # Hz
    dim: ClassVar[int]
    shortest: ClassVar[int]  # samples of a waveform that gives one item
    license: ClassVar[str]  # of the weights, for the model card
    where: ClassVar[str]  # to get the weights, for refusals
    sha256: ClassVar[str] = ""  # of the file of the weights, where there is only one

    @classmethod
    def file(cls, path: str) -> Path:
        """The file of the weights; "": where a package has it.

        raises : errors.InputError where there is none
        """
        if not path or not Path(path).expanduser().is_file():
            raise errors.InputError(
                f"encoder {cls.name}: {path or 'no file'} came, expected a file of weights; {cls.where}"
            )
        return Path(path).expanduser()

    @classmethod
    def load(cls, path: str = "", sha256: str = "") -> Self:
        """The network with its weights.

        path : file of the weights; "": where a package has it.  sha256 : of the file; "": that of the class
        raises : errors.InputError for a missing package or file, another checksum, and a file of something
            else
        """
        file, expected = cls.file(path), (sha256 or cls.sha256).lower()
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if expected and found != expected:
            raise errors.InputError(f"{file}: has the SHA-256 {found}, expected {expected}; {cls.where}")
        try:
            network = cls.read(file)
        except Exception as error:  # torch, zipfile and onnx raise many kinds for foreign files
            kind = type(error).__name__
            raise errors.InputError(
                f"{file}: does not hold the weights of {cls.name} ({kind}); {cls.where}"
            ) from error
        return network.requires_grad_(False).eval()

    @classmethod
    @abc.abstractmethod
    def read(cls, file: Path) -> Self:
        """The network with the weights of a file; any exception for a file of something else."""
