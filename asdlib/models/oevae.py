"""OEVAE: an extractor that tells the target machine from others, and a VAE on its output, trained together.

f_FE is torchvision's ResNet-18 with one input channel, g_machine one linear layer, the VAE 512 → 256 → (μ, ln σ²) of 64
channels → 256 → 512 with z_d the first 8 of them (Eq. 1-4). The VAE sees normal samples of the target machine only. With
`vae_grad = "split"` λ scales the gradient that passes from the VAE into f_FE and the VAE's own parameters get the whole of it;
with "literal" λ scales the VAE's loss, as Eq. 1 is printed (METHOD 4.2: Adam then hardly moves the VAE).

Sources: report 3.2 and 4.2; METHOD 3.4, 4, 6.2, 6.3.  Notebooks: 05_oevae, 07_latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from asdlib import errors
from asdlib.models import losses
from asdlib.studies import config

LOGVAR_LIMIT = 20.0  # beyond any useful posterior; keeps exp finite for pseudo-anomalies, which the VAE never learns from


class Batch(NamedTuple):
    """x : float32 (n, 1, mels, frames), log-mel of segments
    t : float (n,), 1 target machine, 0 pseudo-anomaly, between for a mixture of the two
    prior : float (n,), k·v; conditioned : bool (n,), whether the sample has a v
    attributes : float (n, A) soft labels of the attribute head, rows of pseudo-anomalies 0; None without such a head
    kl_weight : weight of the KL terms, below 1 during warm-up; a scalar tensor keeps it on the device
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
    """h : float32 (n, dim); logit : (n,), > 0 for the target machine; attributes : (n, A) logits or None; vae : one pass."""

    h: Tensor
    logit: Tensor
    attributes: Tensor | None
    vae: losses.VAEOutput


def resnet18(width: int = 64) -> nn.Module:
    """torchvision's ResNet-18 for one input channel, pooled features (n, 8 · width) as output.

    width : channels of the first stage. 64 is the network as published; otherwise its stages are replaced by narrower
        or wider ones of the same blocks.
    """
    from torchvision.models import resnet  # here: it takes a second, which a run that trains nothing need not pay

    net = resnet.resnet18()
    net.conv1 = _initialised(nn.Conv2d(1, width, 7, 2, 3, bias=False))
    net.fc = nn.Identity()
    if width != 64:
        net.bn1 = nn.BatchNorm2d(width)
        n_in = width
        for i in range(4):
            n_out = width * 2**i
            setattr(net, f"layer{i + 1}", _initialised(_stage(resnet.BasicBlock, n_in, n_out, 1 if i == 0 else 2)))
            n_in = n_out
    return net


def _stage(block: type[nn.Module], n_in: int, n_out: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or n_in != n_out:
        shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
    return nn.Sequential(block(n_in, n_out, stride, shortcut), block(n_out, n_out))


def _initialised(module: nn.Module) -> nn.Module:
    """Convolutions drawn as torchvision draws a ResNet's."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return module


def load_pretrained(net: nn.Module, file: str = "") -> None:
    """ImageNet weights from disk into `resnet18(64)`; the first layer's three colour kernels are summed.

    file : path of the weights; empty: torch.hub's folder. Nothing is ever downloaded here.
    raises : errors.Refusal for a file that is missing or holds something else
    """
    from torchvision.models import resnet

    url = resnet.ResNet18_Weights.IMAGENET1K_V1.url
    path = Path(file) if file else Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.is_file():
        raise errors.Refusal(
            f"oevae.pretrained: no {path}; fetch {url} to it, name the file in oevae.pretrained_file, or set pretrained = false"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["conv1.weight"] = state["conv1.weight"].sum(1, keepdim=True)
        kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
        net.load_state_dict(kept)
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        kind = type(error).__name__
        raise errors.Refusal(f"oevae.pretrained: {path} does not hold torchvision's resnet18 ({kind}); fetch {url}") from error


class VAE(nn.Module):
    """dim → hidden → (μ, ln σ²) of `latent` channels → hidden → dim, the first `domain` channels are z_d.

    forward : h (n, dim) -> losses.VAEOutput; with a generator z is drawn, without one z = μ
    """

    def __init__(self, dim: int, hidden: int, latent: int, domain: int):
        super().__init__()
        if not 0 < domain < latent:
            raise errors.Refusal(f"oevae.domain_latent is {domain} of {latent} latent channels, expected at least 1 in each of z_d and z_c")
        self.domain = domain
        self.encoder = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, dim))

    def forward(self, h: Tensor, generator: torch.Generator | None = None) -> losses.VAEOutput:
        mu, logvar = self.encoder(h).chunk(2, 1)
        logvar = logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT)
        z = mu
        if generator is not None:
            noise = torch.randn(mu.shape, generator=generator, device=generator.device).to(mu)
            z = mu + torch.exp(0.5 * logvar) * noise
        return losses.VAEOutput(mu, logvar, z, h, self.decoder(z))

    def terms(self, out: losses.VAEOutput, batch: Batch | VAEBatch, normal: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_vae1 + L_vae2 over the normal samples, and its parts with the number of active channels for the log."""
        mask = {"domain": self.domain, "normal": normal, "conditioned": batch.conditioned}
        terms = losses.vae_terms(out, batch.prior, **mask)
        active = (losses.kl_per_channel(out, batch.prior, **mask) > losses.ACTIVE_NATS).sum().float()
        return batch.kl_weight * (terms.kl_d + terms.kl_c) + terms.recon, {**terms._asdict(), "active": active}

    def loss(self, batch: VAEBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The VAE alone on embeddings that stay as they are, to refit it for another k within seconds."""
        total, parts = self.terms(self(batch.h, generator), batch, torch.ones(len(batch.h), dtype=torch.bool, device=batch.h.device))
        return {"loss": total, **parts}


class OEVAE(nn.Module):
    """The joint network of one target machine.

    settings : width, VAE sizes, λ, vae_grad, pretrained
    attributes : classes of the attribute head; it exists where this and settings.attribute_weight are above 0
    Initial values come from torch's global generator: seed it first.
    """

    def __init__(self, settings: config.OEVAE, attributes: int = 0):
        super().__init__()
        self.settings = settings
        self.extractor = resnet18(settings.width)
        if settings.pretrained:
            if settings.width != 64:
                raise errors.Refusal(f"oevae.pretrained came with width {settings.width}, expected 64: the published weights fit no other")
            load_pretrained(self.extractor, settings.pretrained_file)
        self.dim = 8 * settings.width
        self.machine = nn.Linear(self.dim, 1)
        self.attribute = nn.Linear(self.dim, attributes) if attributes and settings.attribute_weight > 0 else None
        self.vae = VAE(self.dim, settings.hidden, settings.latent, settings.domain_latent)
        self.register_buffer("steps", torch.zeros(()))  # of training so far; part of the state, so that a resumed warm-up goes on

    def embed(self, x: Tensor) -> Tensor:
        """f_FE(X): log-mel (n, 1, mels, frames) to float32 (n, dim)."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise errors.Refusal(f"log-mel segments came as {tuple(x.shape)}, expected (n, 1, mels, frames)")
        return self.extractor(x).float()

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Output:
        h = self.embed(x)
        with torch.autocast(x.device.type, enabled=False):  # the heads are small and their gradients span 1e-7
            split = self.settings.vae_grad == "split"
            vae = self.vae(losses.scale_gradient(h, self.settings.lambda_vae) if split else h, generator)
            return Output(h, self.machine(h).squeeze(1), None if self.attribute is None else self.attribute(h), vae)

    def loss(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Eq. 1 as `loss`, and for the log its parts, the separation accuracy and the number of active latent channels."""
        out = self(batch.x, generator)
        if self.training:
            self.steps += 1
        parts = {"machine": losses.machine_loss(out.logit, batch.t)}
        vae, more = self.vae.terms(out.vae, batch, batch.t == 1)  # a mixture with a pseudo-anomaly has t < 1
        total = parts["machine"] + (vae if self.settings.vae_grad == "split" else self.settings.lambda_vae * vae)
        if self.attribute is not None:
            if batch.attributes is None:
                raise errors.Refusal("the batch has no labels for the attribute head; pass them or set oevae.attribute_weight = 0")
            parts["attribute"] = losses.attribute_loss(out.attributes, batch.attributes)
            total = total + self.settings.attribute_weight * parts["attribute"]
        accuracy = ((out.logit > 0) == (batch.t > 0.5)).float().mean()
        return {"loss": total, **parts, **more, "accuracy": accuracy}

    @torch.no_grad()
    def score(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (n, dim) for β and, at z = μ, every α of `losses.alpha_scores`, each (n,)."""
        out = self(x)
        return out.h, losses.alpha_scores(out.vae, domain=self.vae.domain)
