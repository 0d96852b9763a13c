"""Classification-based model: one branch per feature, a joint embedding, two sub-cluster AdaCos heads.

One network for all machines predicts machine, attribute values and domain of a normal clip (C classes of
training clips); anomaly scores use the embedding before the heads. Heads: `plain` over C classes on the
concatenated embedding, `featex` over (B + 1)·C classes on embeddings exchanged between clips (METHOD 5.6).
Loss = plain + weight · featex + l2 · Σ‖W‖².

Branches by name: `fft` whole-clip magnitude spectrum; `mel` mel spectrogram; `stft<n>` linear spectrogram
with n_fft n and hop n/2 (any number of them); `phase` STFT phase, through the same network as a spectrogram.
Sources: report 3.1; METHOD 3.5, 5.  Notebook: 04_classifier.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from asdlib import augment, errors, features
from asdlib.augment import SmoteSettings
from asdlib.models import branches, losses
from asdlib.settings import Many, Settings, setting


class ClassifierSettings(Settings):
    """Classification-based model with three branches (report 3.1; METHOD 3.5)."""

    branches: Many[str] = setting(
        ("fft", "mel", "phase"), "fft, mel, phase, stft<n_fft>; FeatEx leaves the first in place (report 3.1)"
    )
    clip_seconds: float = setting(12.0, "s; clips are tiled or cropped to it (METHOD 5.1)", 0.1, 600.0)
    wave_norm: Literal["clip", "machine", "none"] = setting(
        "clip",
        "mean 0, variance 1 of each clip (report 4.2; METHOD 3.2), one mean and std per machine, or none as"
        " in the cited code (METHOD 5.1)",
    )
    n_fft: int = setting(1024, "samples, of mel and phase (METHOD 5.3)", 64, 65536)
    hop_length: int = setting(512, "samples, of mel and phase; stft<n> hops n/2 (METHOD 5.3)", 16, 65536)
    n_mels: int = setting(128, "bands of the mel branch", 8, 512)
    phase_repr: Literal["angle", "cossin", "if", "gd"] = setting(
        "angle", "representation of the phase (METHOD 3.2)"
    )
    dim: int = setting(128, "width of each branch's embedding (METHOD 5.2)", 2, 4096)
    subclusters: int = setting(16, "S of sub-cluster AdaCos (METHOD 5.7)", 1, 1024)
    scale: Literal["fixed", "adaptive"] = setting("fixed", "scale of sub-cluster AdaCos (METHOD 3.5, 5.7)")
    train_centers: bool = setting(False, "train the centers of the plain head (METHOD 5.6)")
    train_featex_centers: bool = setting(True, "train the centers of the FeatEx head (METHOD 5.6)")
    mixup_prob: float = setting(0.5, "probability of waveform mixup per clip (METHOD 5.5)", 0.0, 1.0)
    mixup_beta: float = setting(1.0, "weights from Beta(beta, beta); 1 is uniform (METHOD 5.5)", 0.01, 100.0)
    featex_prob: float = setting(0.5, "probability of an exchange per clip (METHOD 5.6)", 0.0, 1.0)
    featex_weight: float = setting(
        1.0, "weight of the FeatEx loss; 0: no FeatEx head (METHOD 5.6)", 0.0, 1000.0
    )
    debias_batchnorm: bool = setting(
        True,
        "remove the initial values from BatchNorm's running statistics; false: as in torch (METHOD 5.3). No"
        " difference after a thousand steps",
    )
    l2: float = setting(1e-5, "weight of the squared kernels in the loss (METHOD 5.2)", 0.0, 1.0)
    batch: int = setting(64, "clips per step (METHOD 5.4)", 2, 65536)
    epochs: int = setting(
        10, "passes over all training clips (METHOD 5.4); 0: the initial weights, as a control", 0, 100000
    )
    lr: float = setting(1e-3, "Adamax step size (METHOD 3.5)", 0.0, 1.0)
    holdout: float = setting(
        0.1, "fraction of each class's training clips held out, for the logged accuracy only", 0.0, 0.9
    )
    ablation: int = setting(
        0, "epochs of the ablations without mixup and without FeatEx in notebook 04; 0: none", 0, 100000
    )
    crops: int = setting(
        1,
        "equally spaced crops of clip_seconds per clip whose embeddings are averaged; 1: the start only"
        " (METHOD 5.1)",
        1,
        100,
    )
    layers: Many[Literal["block2", "block3", "block4", "block5", "embedding"]] = setting(
        ("embedding",),
        "features for the back-ends: the embedding (report 3.1), or concatenated stages of the spectrogram"
        " branches (METHOD 3.10)",
    )
    pooling: Literal["mean", "mean_std", "bands"] = setting(
        "bands", "of the stages over frequency and time, as oevae.pooling (METHOD 3.10)"
    )
    kmeans: int = setting(16, "clusters of the source embeddings (METHOD 5.8)", 1, 1000)
    backend: str = setting(
        "kmeans", "back-end of the score (METHOD 5.8, scoring/backends.py); all are stored"
    )
    density_neighbors: int = setting(4, "K of local-density rescaling (METHOD 5.8)", 1, 100)
    smote: SmoteSettings = SmoteSettings()

    @field_validator("branches")
    @classmethod
    def _known_once(cls, branches: tuple[str, ...]) -> tuple[str, ...]:
        known = (*BRANCHES, "stft256", "stft1024", "stft4096")
        for name in branches:
            stft = name.startswith("stft") and name[4:].isdigit() and int(name[4:]) >= 16
            if name not in known and not stft:
                raise errors.InputError(f"unknown branch {name!r}{errors.suggest(name, known)}")
        if not branches or len(set(branches)) < len(branches):
            raise errors.InputError(
                f"classifier.branches = {list(branches)}, expected at least one branch, without duplicates"
            )
        return branches

    @model_validator(mode="after")
    def _layers_that_are_there(self) -> ClassifierSettings:
        alone = "embedding" not in self.layers or not self.inner
        if not self.layers or len(set(self.layers)) < len(self.layers) or not alone:
            raise errors.InputError(
                f"classifier.layers = {list(self.layers)}, expected only embedding, or stages without"
                " duplicates"
            )
        if self.inner and set(self.branches) == {"fft"}:
            raise errors.InputError(
                f"classifier.layers = {list(self.layers)}, but the fft branch has no stages; add a"
                " spectrogram branch, or use embedding"
            )
        return self

    @property
    def inner(self) -> bool:
        """Whether back-ends use inner stages of the branches instead of the embedding."""
        return self.layers != ("embedding",)


SMALLEST_MAP = 5  # bins and frames: smaller maps are empty after the stem's valid 3 x 3 pool


class Batch(NamedTuple):
    """features : branch name -> float32 (n, ...), from `branch_inputs`; y : float (n, C), soft labels."""

    features: dict[str, Tensor]
    y: Tensor


def _mel(wave: Tensor, s: ClassifierSettings, rate: int) -> Tensor:
    return features.spectrogram(wave, kind="mel", n_fft=s.n_fft, hop=s.hop_length, n_mels=s.n_mels, rate=rate)


def _phase(wave: Tensor, s: ClassifierSettings, rate: int) -> Tensor:
    return features.phase(wave, representation=s.phase_repr, n_fft=s.n_fft, hop=s.hop_length)


# (waveforms (n, samples), settings, rate) -> (n, 1, bins, frames), or (n, 1, bins) for `fft`
BRANCHES = {"fft": lambda wave, s, rate: features.spectrum(wave), "mel": _mel, "phase": _phase}


def branch_inputs(
    wave: Tensor, settings: ClassifierSettings, rate: int = features.SAMPLE_RATE
) -> dict[str, Tensor]:
    """Inputs of all branches from waveforms (n, samples), in the order of `settings.branches`.

    raises : errors.InputError for an unknown branch, or waveforms too short for it
    """
    return {
        name: BRANCHES[name](wave, settings, rate)
        if name in BRANCHES
        else features.spectrogram(wave, kind="stft", n_fft=int(name[4:]), hop=int(name[4:]) // 2)
        for name in settings.branches
    }


class Classifier(nn.Module):
    """Branch inputs -> embedding float32 (n, dim · branches), concatenated in the order of the settings.

    settings : branches, clip_seconds (which fixes input shapes), widths, heads
    classes : C, number of training classes
    Weights are initialized from torch's global generator: seed it first.
    """

    def __init__(self, settings: ClassifierSettings, classes: int, rate: int = features.SAMPLE_RATE):
        super().__init__()
        self.settings = settings
        probe = branch_inputs(torch.zeros(1, round(settings.clip_seconds * rate)), settings, rate)
        self.shapes = {name: tuple(x.shape[1:]) for name, x in probe.items()}
        self.branches = nn.ModuleDict()
        for name, shape in self.shapes.items():
            if name != "fft" and min(shape[1:]) < SMALLEST_MAP:
                raise errors.InputError(
                    f"branch {name}: {shape[1]} bins and {shape[2]} frames from {settings.clip_seconds:g} s,"
                    f" expected at least {SMALLEST_MAP} of each; use longer clips or another n_fft"
                )
        for name, shape in self.shapes.items():
            if name == "fft":
                self.branches[name] = branches.SpectrumBranch(shape[1], settings.dim)
            else:
                self.branches[name] = branches.SpectrogramBranch(
                    shape[0], shape[1], settings.dim, center_time=name != "phase"
                )
        for layer in self.branches.modules():
            if isinstance(layer, branches.FromTheFirstStep):
                layer.debias = settings.debias_batchnorm
        width, count = settings.dim * len(self.shapes), len(self.shapes)
        kind = {"subclusters": settings.subclusters, "scale": settings.scale}
        self.plain = losses.SubClusterAdaCos(width, classes, trainable=settings.train_centers, **kind)
        self.featex = None
        if count > 1 and settings.featex_weight > 0:  # FeatEx needs two branches
            self.featex = losses.SubClusterAdaCos(
                width, classes * (count + 1), trainable=settings.train_featex_centers, **kind
            )

    def embed_branches(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Embedding (n, dim) of each branch, float32."""
        embeddings = []
        for name, expected in self.shapes.items():
            if name not in inputs:
                raise errors.InputError(
                    f"no features given for branch {name}; compute them with the settings of the model"
                )
            found = tuple(inputs[name].shape[1:])
            if found != expected:
                raise errors.InputError(
                    f"branch {name}: features have shape {found}, expected {expected} for clips of"
                    f" {self.settings.clip_seconds:g} s; tile or crop the clips, or set"
                    " classifier.clip_seconds"
                )
            embeddings.append(self.branches[name](inputs[name]).float())
        return embeddings

    def stages(self, inputs: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Stage outputs (`branches.STAGES`) of each spectrogram or phase branch, by branch name."""
        return {name: self.branches[name].stages(inputs[name]) for name in self.shapes if name != "fft"}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Concatenated branch embeddings (n, width), from branch inputs by name."""
        return torch.cat(self.embed_branches(inputs), 1)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """`loss` and its terms; and for the log the mean largest cosine and the scale of the plain head."""
        embeddings = self.embed_branches(batch.features)
        joined = torch.cat(embeddings, 1)
        parts = {"plain": self.plain(joined, batch.y)}
        total = parts["plain"]
        if self.featex is not None:
            exchanged = augment.featex(
                embeddings, batch.y, prob=self.settings.featex_prob, generator=generator
            )
            parts["featex"] = self.featex(*exchanged)
            total = total + self.settings.featex_weight * parts["featex"]
        parts["l2"] = branches.l2_penalty(branches.regularized(self.branches))
        total = total + self.settings.l2 * parts["l2"]
        with torch.no_grad():
            parts["max_cosine"] = self.plain.cosines(joined).amax(1).mean()
            parts["scale"] = self.plain.scale.clone()
        return {"loss": total, **parts}

    def class_probabilities(self, inputs: dict[str, Tensor]) -> Tensor:
        """Class probabilities of the plain head (n, C), for held-out accuracy."""
        return self.plain.class_log_prob(self.plain.cosines(self(inputs))).exp()
