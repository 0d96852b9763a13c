"""The classification-based model: one branch per feature, one embedding, two sub-cluster AdaCos heads.

One network for all machines learns which machine, attribute values and domain a normal clip has (C classes of training
clips); the embedding before the heads is what is scored. Heads: `plain` over C classes on the joined embedding, `featex` over
(B + 1)·C classes on the same embeddings exchanged between clips (METHOD 5.6). Loss = plain + weight · featex + l2 · Σ‖W‖².

Branches by name: `fft` whole-clip magnitude spectrum; `mel` mel spectrogram; `stft<n>` linear spectrogram with n_fft n and
hop n/2 (any number of them, each its own branch); `phase` STFT phase through the same network as a spectrogram.
Sources: report 3.1; METHOD 3.5, 5.  Notebook: 04_classifier.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from asdlib import augment, errors, features
from asdlib.models import branches, losses
from asdlib.studies import config

SMALLEST_MAP = 5  # bins and frames: less leaves nothing after the stem's valid 3 x 3 pool


class Batch(NamedTuple):
    """features : branch name -> float32 (n, ...), as `branch_inputs` makes them; y : float (n, C), soft labels."""

    features: dict[str, Tensor]
    y: Tensor


def branch_inputs(wave: Tensor, settings: config.Classifier, rate: int = features.SAMPLE_RATE) -> dict[str, Tensor]:
    """Every branch's input from waveforms (n, samples), on their device, in the order of `settings.branches`.

    raises : errors.Refusal for a branch of another name, or waveforms too short for it
    """
    known = ("fft", "mel", "phase", "stft256", "stft1024", "stft4096")
    inputs = {}
    for name in settings.branches:
        if name == "fft":
            inputs[name] = features.spectrum(wave)
        elif name == "mel":
            inputs[name] = features.spectrogram(
                wave, kind="mel", n_fft=settings.n_fft, hop=settings.hop_length, n_mels=settings.n_mels, rate=rate
            )
        elif name == "phase":
            inputs[name] = features.phase(wave, representation=settings.phase_repr, n_fft=settings.n_fft, hop=settings.hop_length)
        elif name.startswith("stft") and name[4:].isdigit() and int(name[4:]) >= 16:
            inputs[name] = features.spectrogram(wave, kind="stft", n_fft=int(name[4:]), hop=int(name[4:]) // 2)
        else:
            raise errors.Refusal(f"unknown branch {name!r}{errors.did_you_mean(name, known)}")
    if not inputs or len(inputs) < len(settings.branches):
        raise errors.Refusal(f"classifier.branches = {list(settings.branches)}, expected at least one branch and each of them once")
    return inputs


class Classifier(nn.Module):
    """forward : branch inputs -> embedding float32 (n, dim · branches), branch by branch in the order of the settings.

    settings : branches, clip_seconds (which fixes every input's shape), widths, heads
    classes : C, number of training classes
    Initial values come from torch's global generator: seed it first.
    """

    def __init__(self, settings: config.Classifier, classes: int, rate: int = features.SAMPLE_RATE):
        super().__init__()
        self.settings = settings
        probe = branch_inputs(torch.zeros(1, round(settings.clip_seconds * rate)), settings, rate)
        self.shapes = {name: tuple(x.shape[1:]) for name, x in probe.items()}
        self.branches = nn.ModuleDict()
        for name, shape in self.shapes.items():
            if name != "fft" and min(shape[1:]) < SMALLEST_MAP:
                raise errors.Refusal(
                    f"branch {name}: {shape[1]} bins and {shape[2]} frames from {settings.clip_seconds:g} s, expected at least "
                    f"{SMALLEST_MAP} of each; use longer clips or another n_fft"
                )
        for name, shape in self.shapes.items():
            if name == "fft":
                self.branches[name] = branches.SpectrumBranch(shape[1], settings.dim)
            else:
                self.branches[name] = branches.SpectrogramBranch(shape[0], shape[1], settings.dim, centre_time=name != "phase")
        width, count = settings.dim * len(self.shapes), len(self.shapes)
        kind = {"subclusters": settings.subclusters, "scale": settings.scale}
        self.plain = losses.SubClusterAdaCos(width, classes, trainable=settings.train_centres, **kind)
        self.featex = None
        if count > 1 and settings.featex_weight > 0:  # one branch has nothing to exchange
            self.featex = losses.SubClusterAdaCos(width, classes * (count + 1), trainable=settings.train_featex_centres, **kind)

    def embed_branches(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """One embedding (n, dim) per branch, float32."""
        embeddings = []
        for name, expected in self.shapes.items():
            if name not in inputs:
                raise errors.Refusal(f"no features for branch {name} came; make them with the settings that the model was built with")
            came = tuple(inputs[name].shape[1:])
            if came != expected:
                raise errors.Refusal(
                    f"branch {name}: features of shape {came} came, expected {expected} for clips of {self.settings.clip_seconds:g} s; "
                    "tile or crop the clips, or set classifier.clip_seconds"
                )
            embeddings.append(self.branches[name](inputs[name]).float())
        return embeddings

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return torch.cat(self.embed_branches(inputs), 1)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """`loss` and its parts, and for the log the mean largest cosine and the scale of the plain head."""
        embeddings = self.embed_branches(batch.features)
        joined = torch.cat(embeddings, 1)
        parts = {"plain": self.plain(joined, batch.y)}
        total = parts["plain"]
        if self.featex is not None:
            exchanged = augment.featex(embeddings, batch.y, prob=self.settings.featex_prob, generator=generator)
            parts["featex"] = self.featex(*exchanged)
            total = total + self.settings.featex_weight * parts["featex"]
        parts["l2"] = branches.l2_penalty(branches.regularised(self.branches))
        total = total + self.settings.l2 * parts["l2"]
        with torch.no_grad():
            parts["max_cosine"] = self.plain.cosines(joined).amax(1).mean()
            parts["scale"] = self.plain.scale.clone()
        return {"loss": total, **parts}

    def class_probabilities(self, inputs: dict[str, Tensor]) -> Tensor:
        """(n, C) probabilities of the plain head, for the accuracy on held-out clips."""
        return self.plain.class_log_prob(self.plain.cosines(self(inputs))).exp()
