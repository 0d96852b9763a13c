"""Density of pretrained embeddings relative to the training clips. Training-free. Notebook: 03_baseline"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torchaudio
from pydantic import model_validator
from safetensors.numpy import save
from sklearn.base import clone

from asdlib import errors, io
from asdlib.data.store import standardize
from asdlib.detectors.base import Detector, Scores, clip_by_clip
from asdlib.models import training
from asdlib.models.encoders import ENCODERS, Encoder
from asdlib.scoring import estimators
from asdlib.settings import Settings, setting


class PretrainedSettings(Settings):
    """Local density of the embeddings of a published network (METHOD 3.11)."""

    encoder: Literal["yamnet", "beats"] = setting(
        "yamnet", "network: yamnet, installed with the extra `encoders`, or beats, loaded from a file"
    )
    weights: str = setting(
        "", "weights file of the network; empty: the one installed with the extra `encoders`"
    )
    sha256: str = setting("", "SHA-256 of that file; empty: that of the installed file")
    neighbors: int = setting(
        4, "neighbors per reference whose mean distance rescales the distance to it (METHOD 3.11)", 1, 100
    )

    @model_validator(mode="after")
    def _file_is_known(self) -> Self:
        known = ENCODERS[self.encoder].sha256
        if not known and not (self.weights and self.sha256):
            raise errors.InputError(
                f"settings pretrained.weights and sha256: got {self.weights!r} and {self.sha256!r}, expected"
                f" the weights file of {self.encoder} and its SHA-256 (sha256sum);"
                f" {ENCODERS[self.encoder].where}"
            )
        return self


class Pretrained(Detector):
    """Local density of a clip's pretrained embedding among those of the training clips. Training-free.

    A standardized clip is encoded; mean and standard deviation of its embeddings over time, jointly
    normalized to unit length, are compared with those of the training clips: smallest distance to a
    reference, divided by that reference's mean distance to its nearest neighbors (`scoring.LocalDensity`). A
    training clip is excluded from references and their neighbors when scored. Embeddings are cached by the
    digest of the clip's samples and saved with the scores.

    Source: METHOD 3.11.  Notebook: 03_baseline
    """

    name, Settings, systems = "pretrained", PretrainedSettings, ("pretrained",)

    training_module = "asdlib.models.encoders"
    scoring_settings = ("neighbors",)

    @classmethod
    def check(cls, settings: PretrainedSettings) -> None:
        """Check that the encoder's weights are available.

        raises : errors.InputError for missing weights
        """
        ENCODERS[settings.encoder].file(settings.weights)

    @functools.cached_property
    def network(self) -> Encoder:
        """Encoder, loaded on first use."""
        s = self.settings
        return ENCODERS[s.encoder].load(s.weights, s.sha256).to(self.device)

    @functools.cached_property
    def known(self) -> dict[str, np.ndarray]:
        """Embeddings (2 · dim,) by digest of a clip's samples."""
        return {}

    def _prepare(self) -> None:
        """Compute the training embeddings and references."""
        self.train_vectors, _ = self._embed(self.train_rows)
        self._accept()

    def _accept(self) -> None:
        density, self.references = estimators.LocalDensity(self.settings.neighbors), {}
        for group in np.unique(self.group):
            train = self.train_vectors[self.group == group]
            train = np.concatenate([train, self.accepted.get(group, train[:0])])
            self.references[group] = clone(density).fit(train)

    def embedding_inputs(self) -> dict:
        """Code that turns the encoder's output into an embedding."""
        return {"code": io.code(type(self).__module__)}

    def embedded(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`embedding` float32 (clips, 2 · dim)."""
        return {"embedding": self._embed(rows)[0]}

    def take_embedded(self, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Set embeddings from `embedded`."""
        self.known.update(zip(self.store.clips["digest"].to_numpy()[rows], arrays["embedding"]))

    def _embed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over time, float32 (clips, 2 · dim); one item per clip."""
        digests = self.store.clips["digest"].to_numpy()[rows]
        for row, digest in zip(rows, digests):
            if digest not in self.known:
                self.known[digest] = self._clip(row)
        return np.stack([self.known[digest] for digest in digests]), np.arange(len(rows))

    @training.one_thread()
    def _clip(self, row: int) -> np.ndarray:
        """Embedding of one clip, (2 · dim,); short clips are repeated."""
        rate, encoder = self.store.rate, self.network
        least = -(-encoder.shortest * rate // encoder.rate)
        length = max(int(self.store.clips["samples"].iloc[row]), least)
        wave = standardize(self.store.audio([row], device=self.device, length=length))
        items = encoder(torchaudio.functional.resample(wave, rate, encoder.rate))[0]
        return torch.cat([items.mean(0), items.std(0, correction=0)]).cpu().numpy()

    @clip_by_clip
    def _scores(self, rows: np.ndarray) -> Scores:
        """Scores of new clips."""
        [group] = self.group_of(self.store.clips.iloc[rows])  # one clip at a time
        return {("pretrained", "score"): self.references[group].decision_function(self._embed(rows)[0])}

    def _training_scores(self) -> Scores:
        """Leave-clip-out scores of the training clips."""
        scores = np.empty(len(self.train_rows))
        for group, references in self.references.items():
            scores[self.group == group] = references.decision_scores_
        return {("pretrained", "score"): scores}

    def _save(self, folder: Path) -> None:
        """Save the cached embeddings as safetensors."""
        digests = np.array([list(bytes.fromhex(digest)) for digest in self.known], np.uint8)
        tensors = {"digest": digests, "embedding": np.stack(list(self.known.values()))}
        (folder / "embeddings.safetensors").write_bytes(save(tensors))

    def _load(self, folder: Path) -> None:
        """Load what `_save` wrote."""
        found = io.tensors(folder / "embeddings.safetensors", {"digest": 2, "embedding": 2})
        self.known.update(zip([bytes(row).hex() for row in found["digest"]], found["embedding"]))
        self._prepare()
