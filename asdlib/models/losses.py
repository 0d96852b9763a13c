"""Losses: sub-cluster AdaCos for the classifier, and the terms of OEVAE.

Conventions
-----------
Losses are float32 scalars at any network precision. Labels are soft: float (n, classes), rows sum to 1. VAE
terms are summed over dimensions and averaged over the samples marked by `normal` (report Eq. 3, 4; METHOD
4.3), which excludes pseudo-anomalies and mixtures with them. Symbols follow the report: h = f_FE(X), z =
(z_d, z_c) with z_d the first `domain` latent channels, prior N(k·v, 1) for each channel of z_d and N(0, 1)
for z_c.

Sources: METHOD 5.6, 5.7 (Wilkinghoff 2021, 2024), report Eq. 1-4, METHOD 3.4, 3.5, 4.1-4.3, 6.2.
Notebooks: 04_classifier, 05_oevae.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asdlib import errors

# mean KL below which a latent channel is inactive (Burda et al. 2016 use a similar threshold)
ACTIVE_NATS = 0.01


def initial_scale(classes: int, subclusters: int) -> float:
    """Fixed scale √2 · ln(C·S − 1): 10.988 for 148 classes of 16 sub-clusters.  Source: METHOD 5.7

    raises : errors.InputError for fewer than 3 centers
    """
    if classes * subclusters < 3:
        raise errors.InputError(
            f"got {classes} classes of {subclusters} sub-clusters, expected at least 3 centers; train on"
            " more machines"
        )
    return math.sqrt(2) * math.log(classes * subclusters - 1)


class SubClusterAdaCos(nn.Module):
    """Softmax over cosines to C·S centers, summed per class, against soft labels.

    p_j = Σ_k exp(s·cos θ_jk) / Σ_lm exp(s·cos θ_lm), loss = mean_i −Σ_j y_ij ln p_ij

    dim, classes, subclusters : embedding width, C, S; center j·S + k is sub-cluster k of class j
    trainable : whether the centers are parameters, or fixed at their Glorot-uniform initialization
    scale : "fixed" keeps s = √2·ln(C·S − 1); "adaptive" sets s before each training step, without gradient,
        to (m + ln B) / cos(min(π/4, θ_med)), where m + ln B is the log of the batch mean of Σ exp(s·cos θ)
        over all centers and θ_med the batch median of n_i Σ_j y_ij Σ_k θ_ijk, n_i the number of non-zero
        labels. As θ_med sums over the S sub-clusters, it exceeds π/4 for any S >= 2: then s = √2·(m + ln B),
        and the angle matters only for S = 1, plain AdaCos.  Source: METHOD 5.7
    """

    def __init__(
        self, dim: int, classes: int, subclusters: int = 16, *, trainable: bool = True, scale: str = "fixed"
    ):
        super().__init__()
        errors.check_choice("scale of sub-cluster AdaCos", scale, ("fixed", "adaptive"))
        self.classes, self.subclusters, self.adaptive = classes, subclusters, scale == "adaptive"
        centers = nn.init.xavier_uniform_(torch.empty(classes * subclusters, dim))
        if trainable:
            self.centers = nn.Parameter(centers)
        else:
            self.register_buffer("centers", centers)
        self.register_buffer("scale", torch.tensor(initial_scale(classes, subclusters)))

    def cosines(self, e: Tensor) -> Tensor:
        """Cosines between embeddings (n, dim) and centers, (n, C·S)."""
        return F.linear(F.normalize(e.float()), F.normalize(self.centers))

    def class_log_prob(self, cosines: Tensor) -> Tensor:
        """Log-probability of each class at the current scale, (n, C)."""
        return (
            F.log_softmax(self.scale * cosines, 1).unflatten(1, (self.classes, self.subclusters)).logsumexp(2)
        )

    @torch.no_grad()
    def adapted_scale(self, cosines: Tensor, y: Tensor) -> Tensor:
        """Next scale of the adaptive rule, from one batch.  Shapes as in `cosines` and `forward`."""
        log_mean = torch.logsumexp((self.scale * cosines).flatten(), 0) - math.log(len(cosines))
        angle = torch.acos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))
        per_center = y.repeat_interleave(self.subclusters, 1)  # centers are grouped by class
        median = ((y > 0).sum(1) * (per_center * angle).sum(1)).median()
        return log_mean / torch.cos(median.clamp(max=math.pi / 4)) + 1e-7

    def forward(self, e: Tensor, y: Tensor) -> Tensor:
        """Mean loss of embeddings (n, dim) with soft labels (n, C)."""
        if y.shape != (len(e), self.classes):
            expected = (len(e), self.classes)
            raise errors.InputError(
                f"labels have shape {tuple(y.shape)}, expected {expected}: one row per item, one column per"
                " class"
            )
        with torch.autocast(e.device.type, enabled=False):
            cosines = self.cosines(e)
            if self.adaptive and self.training:
                self.scale.copy_(self.adapted_scale(cosines, y))
            return -(y * self.class_log_prob(cosines)).sum(1).mean()


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Identity whose backward pass multiplies the gradient by `factor` (λ of Eq. 1 at the output of f_FE).

    x : any shape (...,).  returns : same shape
    """
    return _ScaleGradient.apply(x, factor)


def machine_loss(logit: Tensor, t: Tensor) -> Tensor:
    """Binary cross-entropy of logits (n,) and t (n,) in [0, 1], 1 = target machine, >= 0.

    Bounded form of Eq. 2 (METHOD 4.1)
    """
    return F.binary_cross_entropy_with_logits(logit.float(), t.float())


def attribute_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy per attribute class, summed over classes, mean over the batch.

    logits, y : (n, A); rows of pseudo-anomalies are all 0, mixtures soft.  Source: L_section, METHOD 6.3
    """
    return F.binary_cross_entropy_with_logits(logits.float(), y.float(), reduction="none").sum(1).mean()


def gaussian_kl(mu: Tensor, logvar: Tensor, prior_mean: Tensor | float = 0.0) -> Tensor:
    """KL(N(μ, σ²) ‖ N(m, 1)) per element, in nats, >= 0: ½(σ² + (μ − m)² − 1 − ln σ²).

    mu, logvar, prior_mean : broadcastable shapes (...,).  Source: Eq. 3, METHOD 6.2
    """
    return 0.5 * (logvar.exp() + (mu - prior_mean).square() - 1 - logvar)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of values (n,) where mask (n,) is True; 0 without gradient if the mask is empty."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


class VAEOutput(NamedTuple):
    """Mu, logvar, z : float (n, latent).  h, h_hat : float (n, dim), input and reconstruction."""

    mu: Tensor
    logvar: Tensor
    z: Tensor
    h: Tensor
    h_hat: Tensor


class VAETerms(NamedTuple):
    """Scalars: KL of z_d and of z_c (nats), squared reconstruction error."""

    kl_d: Tensor
    kl_c: Tensor
    recon: Tensor


def vae_terms(out: VAEOutput, prior: Tensor, *, domain: int, normal: Tensor, conditioned: Tensor) -> VAETerms:
    """Terms of Eq. 3 and 4, summed over dimensions and averaged over normal samples.

    prior : float (n,), k·v per sample, shared by all channels of z_d; ignored where `conditioned` is False
    domain : number of channels of z_d
    normal : bool (n,), target machine only; conditioned : bool (n,), v known. Normal samples without v enter
        KL_c and the reconstruction error, but not KL_d.
    """
    mu, logvar = out.mu.float(), out.logvar.float()
    mean = torch.where(conditioned, prior, 0).unsqueeze(1)
    kl_d = gaussian_kl(mu[:, :domain], logvar[:, :domain], mean).sum(1)
    kl_c = gaussian_kl(mu[:, domain:], logvar[:, domain:]).sum(1)
    recon = (out.h.float() - out.h_hat.float()).square().sum(1)
    return VAETerms(mean_over(kl_d, normal & conditioned), mean_over(kl_c, normal), mean_over(recon, normal))


@torch.no_grad()
def kl_per_channel(
    out: VAEOutput, prior: Tensor, *, domain: int, normal: Tensor, conditioned: Tensor
) -> Tensor:
    """Mean KL per latent channel in nats, (latent,); channels below `ACTIVE_NATS` are inactive.

    Arguments as in `vae_terms`
    """
    mean = torch.zeros_like(out.mu, dtype=torch.float32)
    mean[:, :domain] = torch.where(conditioned, prior, 0).unsqueeze(1)
    kl = gaussian_kl(out.mu.float(), out.logvar.float(), mean)
    mask = normal.unsqueeze(1).repeat(1, kl.shape[1])
    mask[:, :domain] &= conditioned.unsqueeze(1)
    return torch.where(mask, kl, 0).sum(0) / mask.sum(0).clamp(min=1)


def alpha_scores(out: VAEOutput, *, domain: int) -> dict[str, Tensor]:
    """Anomaly score α per sample in every `alpha_mode`, at z = μ (deterministic); higher is more anomalous.

    returns : mode -> float32 (n,)
        nll           −ln N(μ_c; 0, I), the report's α
        expected_nll  its mean over the posterior, ½(‖μ_c‖² + Σσ_c²) + const
        kl            KL_c
        recon         ‖h − ĥ‖², with ĥ decoded from μ
        neg_elbo      kl + recon, the objective of Eq. 3-4 without z_d, whose prior needs v

    Source: report 3.2; METHOD 6.2.  Notebook: 05_oevae
    """
    mu, logvar = out.mu[:, domain:].float(), out.logvar[:, domain:].float()
    constant = 0.5 * mu.shape[1] * math.log(2 * math.pi)
    kl = gaussian_kl(mu, logvar).sum(1)
    recon = (out.h.float() - out.h_hat.float()).square().sum(1)
    return {
        "nll": 0.5 * mu.square().sum(1) + constant,
        "expected_nll": 0.5 * (mu.square() + logvar.exp()).sum(1) + constant,
        "kl": kl,
        "recon": recon,
        "neg_elbo": kl + recon,
    }
