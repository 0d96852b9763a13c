"""Pretrained encoders: frozen networks from waveforms to embeddings. Weights are not part of this package."""

from __future__ import annotations

from asdlib.models.encoders.base import Encoder
from asdlib.models.encoders.beats import BEATs
from asdlib.models.encoders.yamnet import YAMNet

ENCODERS: dict[str, type[Encoder]] = {encoder.name: encoder for encoder in (YAMNet, BEATs)}
