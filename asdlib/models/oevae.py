"""OEVAE: an extractor that separates the target machine from others, and a VAE on its output.

Both are trained jointly. f_FE is torchvision's ResNet-18 with one input channel, g_machine a linear layer,
the VAE 512 → 256 → (μ, ln σ²) of 64 channels → 256 → 512, whose first 8 channels are z_d (Eq. 1-4). The VAE
sees normal samples of the target machine only. With `vae_grad = "split"` λ scales the gradient from the VAE
into f_FE, while the VAE's own parameters receive the full gradient; with "literal" λ scales the VAE's loss,
as Eq. 1 is printed (METHOD 4.2: Adam then hardly moves the VAE).

Sources: report 3.2 and 4.2; METHOD 3.4, 4, 6.2, 6.3.  Notebooks: 05_oevae, 07_latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from asdlib import errors
from asdlib.augment import SmoteSettings
from asdlib.data.condition import ConditionSettings
from asdlib.models import losses
from asdlib.settings import Many, Settings, setting


class OEVAEFeatureSettings(Settings):
    """OEVAE's segments and log-mel features (report 4.2)."""

    segments: int = setting(8, "equally spaced segments per clip (report 4.2)", 1, 1000)
    segment_s: float = setting(2.0, "s (report 4.2)", 0.05, 60.0)
    wave_norm: Literal["clip", "machine"] = setting(
        "clip", "mean 0, variance 1 of each clip (report 4.2), or one mean and std per machine"
    )
    n_fft: int = setting(1024, "samples; 2048 makes the mel bank full rank (METHOD 4.10)", 64, 65536)
    win_length: int = setting(1024, "samples, 64 ms (report 4.2)", 64, 65536)
    hop_length: int = setting(256, "samples, 16 ms (report 4.2)", 16, 65536)
    n_mels: int = setting(224, "mel bands (report 4.2)", 8, 512)
    low_hz: float = setting(50.0, "Hz (report 4.2)", 0.0, 96000.0)
    high_hz: float = setting(7800.0, "Hz (report 4.2)", 1.0, 96000.0)


class OEVAEMixupSettings(Settings):
    """Waveform mixup of segments (report 2.1)."""

    prob: float = setting(0.5, "probability per segment (METHOD 5.5)", 0.0, 1.0)
    beta: float = setting(
        1.0,
        "weights from Beta(beta, beta); 1 is uniform (METHOD 5.5), 0.2 stays near one parent (METHOD 6.3)",
        0.01,
        100.0,
    )
    outliers: bool = setting(
        False,
        ("also mix target with pseudo-anomalous segments; t and attributes become soft labels (METHOD 3.9)"),
    )


class OEVAESettings(Settings):
    """Outlier-exposed extractor with a domain-invariant VAE (report 3.2; METHOD 3.4)."""

    features: OEVAEFeatureSettings = OEVAEFeatureSettings()
    condition: ConditionSettings = ConditionSettings()
    mixup: OEVAEMixupSettings = OEVAEMixupSettings()
    smote: SmoteSettings = SmoteSettings()
    width: int = setting(
        64,
        "channels of the first stage; 64: ResNet-18 (report 4.2), fewer: a narrower network for demos",
        4,
        256,
    )
    pretrained: bool = setting(
        False, "initialize with ImageNet weights from disk; nothing is downloaded (METHOD 4.19)"
    )
    pretrained_file: str = setting("", "file of these weights; empty: the torch.hub cache")
    hidden: int = setting(256, "units of the VAE's hidden layers (METHOD 4.14)", 2, 8192)
    latent: int = setting(64, "latent channels (report 4.2)", 2, 4096)
    domain_latent: int = setting(8, "latent channels of z_d (report 4.2)", 1, 4095)
    lambda_vae: float = setting(1e-7, "λ of Eq. 1 (report 4.2)", 0.0, 1000.0)
    vae_grad: Literal["split", "literal"] = setting(
        "split", "λ scales the gradient from VAE to extractor (METHOD 3.4), or the VAE's loss (report Eq. 1)"
    )
    kl_warmup: float = setting(
        0.0, "epochs over which the weight of the KL terms rises from 0 to 1 (METHOD 3.9)", 0.0, 10000.0
    )
    attribute_weight: float = setting(
        0.0,
        "weight of the attribute head's loss; 10 as L_section (METHOD 6.3); 0: no such head (report)",
        0.0,
        1000.0,
    )
    near: float = setting(
        0.0,
        "fraction of pseudo-anomalies drawn from the machines nearest to the target; 0: uniform (METHOD 3.4)",
        0.0,
        1.0,
    )
    batch: int = setting(128, "segments per step, half target, half pseudo-anomalous (report 4.2)", 2, 65536)
    epochs: int = setting(
        20, "passes over all target segments (report 4.2); 0: the initial weights, as a control", 0, 100000
    )
    lr: float = setting(1e-3, "Adam step size (report 4.2)", 0.0, 1.0)
    holdout: float = setting(
        0.1,
        "fraction of each domain's training clips held out of training, to measure separation (METHOD 6.3)",
        0.0,
        0.9,
    )
    k_scales: Many[Annotated[float, Field(ge=0.0, le=1000.0)]] = setting(
        (1.0, 2.5, 5.0, 10.0), "k_scale of VAEs refitted on the finished embeddings, for 08"
    )
    refit_epochs: int = setting(50, "passes over the training embeddings for each of them", 1, 100000)
    ablation: int = setting(
        0, "epochs of each row of the ablation in 05_oevae, on the first machine; 0: no ablation", 0, 1000
    )
    alpha_mode: Literal["nll", "expected_nll", "kl", "recon", "neg_elbo"] = setting(
        "nll", "α of the score (report 3.2; METHOD 3.4); all are stored"
    )
    alpha_vae: Literal["joint", "vectors"] = setting(
        "joint",
        "input of the VAE that gives α: the output of f_FE, trained jointly (report 3.2), or the"
        " standardized vectors of β, fitted afterwards (METHOD 3.10)",
    )
    drop_alpha: bool = setting(
        True,
        "set α to 0, which removes it from the fusion, if on held-out clips no channel of z_c is active or"
        " α follows the norm of the embedding; no effect without held-out clips (METHOD 3.10)",
    )
    layers: Many[Literal["layer1", "layer2", "layer3", "layer4"]] = setting(
        ("layer4",), "stages of f_FE whose outputs β compares; layer4 is the last (METHOD 4.14)"
    )
    pooling: Literal["mean", "mean_std", "bands"] = setting(
        "mean",
        "of a stage's output: global mean (report 4.2), mean with std over time and over frequency, or mean"
        " and std over time of 8 frequency bands (METHOD 3.10)",
    )
    backend: Literal["knn", "local_density"] = setting(
        "knn",
        "β: kNN distance of segments (report 3.2), or standardized local density of clips (METHOD 3.10)",
    )
    neighbors: int = setting(1, "k of the kNN score β; 1, 2 and 4 are all stored (report 4.2)", 1, 100)
    neighbor_domains: Literal["pooled", "min"] = setting(
        "pooled", "source and target together (METHOD 4.18), or the nearer of the two"
    )

    @model_validator(mode="after")
    def _together(self) -> OEVAESettings:
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise errors.InputError(
                f"oevae.layers = {list(self.layers)}, expected at least one layer, without duplicates"
            )
        if self.domain_latent >= self.latent:
            raise errors.InputError(
                f"oevae.domain_latent is {self.domain_latent} of {self.latent} latent channels, expected at"
                " least 1 in each of z_d and z_c"
            )
        if self.pretrained and self.width != 64:
            raise errors.InputError(
                f"oevae.pretrained: got width {self.width}, expected 64, the width of the published weights"
            )
        return self


LAYERS = ("layer1", "layer2", "layer3", "layer4")  # stages of the extractor, from input to output

# beyond any useful posterior; keeps exp finite for pseudo-anomalies, on which the VAE is not trained
LOGVAR_LIMIT = 20.0


class Batch(NamedTuple):
    """x : float32 (n, 1, mels, frames), log-mel of segments
    t : float (n,), 1 target machine, 0 pseudo-anomaly, in between for a mixture of the two
    prior : float (n,), k·v; conditioned : bool (n,), whether v is known
    attributes : float (n, A) soft labels of the attribute head, 0 for pseudo-anomalies; None without the head
    kl_weight : weight of the KL terms, below 1 during warm-up; a scalar tensor avoids a device
        synchronization
    """

    x: Tensor
    t: Tensor
    prior: Tensor
    conditioned: Tensor
    attributes: Tensor | None = None
    kl_weight: float | Tensor = 1.0


class VAEBatch(NamedTuple):
    """h : float32 (n, dim), embeddings of normal samples; prior, conditioned, kl_weight as in `Batch`."""

    h: Tensor
    prior: Tensor
    conditioned: Tensor
    kl_weight: float = 1.0


class Output(NamedTuple):
    """h : float32 (n, dim); logit : (n,), > 0 for the target machine; attributes : (n, A) logits or None."""

    h: Tensor
    logit: Tensor
    attributes: Tensor | None
    vae: losses.VAEOutput


def resnet18(width: int = 64) -> nn.Module:
    """ResNet-18 of torchvision with one input channel and pooled features (n, 8 · width) as output.

    width : channels of the first stage; 64 is the published network, other values keep its blocks
    """
    from torchvision.models import resnet  # imported here because it takes a second

    net = resnet.resnet18()
    net.conv1 = _initialized(nn.Conv2d(1, width, 7, 2, 3, bias=False))
    net.fc = nn.Identity()
    if width != 64:
        net.bn1 = nn.BatchNorm2d(width)
        n_in = width
        for i in range(4):
            n_out = width * 2**i
            setattr(
                net, f"layer{i + 1}", _initialized(_stage(resnet.BasicBlock, n_in, n_out, 1 if i == 0 else 2))
            )
            n_in = n_out
    return net


def _stage(block: type[nn.Module], n_in: int, n_out: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or n_in != n_out:
        shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
    return nn.Sequential(block(n_in, n_out, stride, shortcut), block(n_out, n_out))


def _initialized(module: nn.Module) -> nn.Module:
    """Initialize convolutions as torchvision's ResNet does."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def load_pretrained(net: nn.Module, file: str = "") -> None:
    """Load ImageNet weights from disk into `resnet18(64)`, summing the color kernels of the first layer.

    file : path of the weights; empty: torch.hub's folder. Nothing is downloaded
    raises : errors.InputError for a missing or unsuitable file
    """
    from torchvision.models import resnet

    url = resnet.ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(file) if file else Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise errors.InputError(
            f"oevae.pretrained: {path} not found; download {url} there, set oevae.pretrained_file, or set"
            " pretrained = false"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
        kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
        net.load_state_dict(kept)
    except Exception as error:  # torch raises many types for foreign files
        kind = type(error).__name__
        raise errors.InputError(
            f"oevae.pretrained: {path} does not contain torchvision's resnet18 ({kind}); download {url}"
        ) from error


class VAE(nn.Module):
    """dim → hidden → (μ, ln σ²) of `latent` channels → hidden → dim; the first `domain` channels are z_d.

    forward : h (n, dim) -> losses.VAEOutput; z is sampled if a generator is given, else z = μ
    """

    def __init__(self, dim: int, hidden: int, latent: int, domain: int):
        super().__init__()
        self.domain = domain
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, h: Tensor, generator: torch.Generator | None = None) -> losses.VAEOutput:
        """Encode and decode embeddings h (n, dim); z is sampled with the generator, else z = μ."""
        mu, logvar = self.encoder(h).chunk(2, 1)
        logvar = logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)
        z = mu
        if generator is not None:
            noise = torch.randn(mu.shape, generator=generator, device=generator.device).to(mu)
            z = mu + torch.exp(0.5 * logvar) * noise
        return losses.VAEOutput(mu, logvar, z, h, self.decoder(z))

    def terms(
        self, out: losses.VAEOutput, batch: Batch | VAEBatch, normal: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_vae1 + L_vae2 over the normal samples, and its terms and active channel count for the log."""
        mask = {"domain": self.domain, "normal": normal, "conditioned": batch.conditioned}
        terms = losses.vae_terms(out, batch.prior, **mask)
        active = (losses.kl_per_channel(out, batch.prior, **mask) > losses.ACTIVE_NATS).sum().float()
        return batch.kl_weight * (terms.kl_d + terms.kl_c) + terms.recon, {
            **terms._asdict(),
            "active": active,
        }

    def loss(self, batch: VAEBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss of the VAE alone on fixed embeddings, to refit it for another k."""
        total, parts = self.terms(
            self(batch.h, generator), batch, torch.ones(len(batch.h), dtype=torch.bool, device=batch.h.device)
        )
        return {"loss": total, **parts}


class StandardizedVAE(VAE):
    """VAE with standardized inputs; h and ĥ of its output are standardized too.

    mean, deviation : (dim,) buffers, set by `fit_scale`
    """

    def __init__(self, dim: int, hidden: int, latent: int, domain: int):
        super().__init__(dim, hidden, latent, domain)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("deviation", torch.ones(dim))

    def fit_scale(self, h: Tensor, smallest: float = 1e-3) -> None:
        """Set mean and population standard deviation (at least `smallest`) from h (n, dim)."""
        deviation, mean = torch.std_mean(h, 0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp(min=smallest))

    def forward(self, h: Tensor, generator: torch.Generator | None = None) -> losses.VAEOutput:
        """`VAE.forward` for unscaled h (n, dim)."""
        return super().forward((h - self.mean) / self.deviation, generator)


class OEVAE(nn.Module):
    """Joint network of one target machine.

    settings : width, VAE sizes, λ, vae_grad, pretrained
    attributes : number of classes of the attribute head; no head if this or settings.attribute_weight is 0
    Weights are initialized from torch's global generator: seed it first.
    """

    def __init__(self, settings: OEVAESettings, attributes: int = 0):
        super().__init__()
        self.settings = settings
        self.extractor = resnet18(settings.width)
        if settings.pretrained:
            load_pretrained(self.extractor, settings.pretrained_file)
        self.dim = 8 * settings.width
        self.machine = nn.Linear(self.dim, 1)
        self.attribute = (
            nn.Linear(self.dim, attributes) if attributes and settings.attribute_weight > 0 else None
        )
        self.vae = VAE(self.dim, settings.hidden, settings.latent, settings.domain_latent)
        # training steps so far; a buffer, so that warm-up resumes from a checkpoint
        self.register_buffer("steps", torch.zeros(()))

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings f_FE(X): log-mel (n, 1, mels, frames) to float32 (n, dim)."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise errors.InputError(
                f"log-mel segments have shape {tuple(x.shape)}, expected (n, 1, mels, frames)"
            )
        return self.extractor(x).float()

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs of the extractor stages by name in LAYERS, float32 (n, channels, frequency, time).

        x : float32 (n, 1, mels, frames). The first stage has `width` channels at a quarter of the resolution;
            each further stage doubles channels and halves resolution. The mean of the last equals `embed`.
        """
        net, out = self.extractor, {}
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for name in LAYERS:
            x = getattr(net, name)(x)
            out[name] = x.float()
        return out

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Output:
        """Embedding, logits of both heads and VAE output for log-mel segments (n, 1, mels, frames)."""
        h = self.embed(x)
        # the heads are small, and λ scales gradients by about 1e-7
        with torch.autocast(x.device.type, enabled=False):
            split = self.settings.vae_grad == "split"
            vae = self.vae(losses.scale_gradient(h, self.settings.lambda_vae) if split else h, generator)
            return Output(
                h, self.machine(h).squeeze(1), None if self.attribute is None else self.attribute(h), vae
            )

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Eq. 1 as `loss`; also its terms, separation accuracy and active latent channels for the log."""
        out = self(batch.x, generator)
        if self.training:
            self.steps += 1
        parts = {"machine": losses.machine_loss(out.logit, batch.t)}
        vae, more = self.vae.terms(out.vae, batch, batch.t == 1)  # excludes mixtures with pseudo-anomalies
        total = parts["machine"] + (
            vae if self.settings.vae_grad == "split" else self.settings.lambda_vae * vae
        )
        if self.attribute is not None:
            if batch.attributes is None:
                raise errors.InputError(
                    "the batch has no labels for the attribute head; pass them or set"
                    " oevae.attribute_weight = 0"
                )
            parts["attribute"] = losses.attribute_loss(out.attributes, batch.attributes)
            total = total + self.settings.attribute_weight * parts["attribute"]
        accuracy = ((out.logit > 0) == (batch.t > 0.5)).float().mean()
        return {"loss": total, **parts, **more, "accuracy": accuracy}

    @torch.no_grad()
    def score(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (n, dim) for β, and every α of `losses.alpha_scores` at z = μ, each (n,)."""
        out = self(x)
        return out.h, losses.alpha_scores(out.vae, domain=self.vae.domain)
