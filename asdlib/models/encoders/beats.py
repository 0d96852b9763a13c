"""BEATs: a transformer on log-mel patches, trained on AudioSet, with weights from a user-supplied file.

Source: METHOD 3.11; Chen et al. 2023.  Used by: asdlib.detectors.pretrained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F
from torchaudio.compliance import kaldi

from asdlib.models.encoders.base import Encoder

MEAN, SCALE = 15.41663, 2 * 6.55582  # statistics of AudioSet log-mels
BANDS, PATCH = 128, 16
KIND = {  # configuration shared by the published checkpoints
    "input_patch_size": PATCH,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}


class BEATs(Encoder):
    """Waveforms to one embedding of 768 per 0.16 s, averaged over the 8 patches of that time.

    Submodules are named as in the published checkpoints.  cfg : configuration stored in a checkpoint
    """

    name, rate, dim = "beats", 16000, 768
    shortest = 400 + (PATCH - 1) * 160  # 25 ms windows every 10 ms
    license = "BEATs by Microsoft (MIT License), from the file that the settings name"
    where = (
        "github.com/microsoft/unilm/tree/master/beats links to checkpoints, such as BEATs_iter3_plus_AS2M.pt"
    )

    def __init__(self, cfg: Mapping):
        super().__init__()
        embed, groups = cfg["embed_dim"], cfg["conv_pos_groups"]
        self.patch_embedding = nn.Conv2d(1, embed, PATCH, PATCH, bias=cfg["conv_bias"])
        self.layer_norm = nn.LayerNorm(embed)
        self.post_extract_proj = nn.Linear(embed, self.dim)
        position = nn.Conv1d(self.dim, self.dim, cfg["conv_pos"], padding=cfg["conv_pos"] // 2, groups=groups)
        self.encoder = nn.ModuleDict(
            {
                "pos_conv": nn.Sequential(position),
                "layer_norm": nn.LayerNorm(self.dim),
                "layers": nn.ModuleList(Layer(self.dim, cfg) for _ in range(cfg["encoder_layers"])),
            }
        )
        self.relative_attention_bias = nn.Embedding(cfg["num_buckets"], cfg["encoder_attention_heads"])
        self.farthest = cfg["max_distance"]

    @classmethod
    def read(cls, file: Path) -> Self:
        """Network from a published checkpoint, a dict with `cfg` and `model`, without its classifier."""
        found = torch.load(file, map_location="cpu", weights_only=True)
        cfg, state = found["cfg"], dict(found["model"])
        different = [key for key, value in KIND.items() if cfg[key] != value]
        if different:
            raise ValueError(f"unsupported BEATs variant, differs in {', '.join(different)}")
        network = cls(cfg)
        network.load_state_dict(_renamed(state))
        return network

    def log_mel(self, wave: torch.Tensor) -> torch.Tensor:
        """AudioSet-normalized Kaldi log-mel.  wave : float32 (n, samples) → (n, frames, 128)"""
        size = {"num_mel_bins": BANDS, "sample_frequency": self.rate, "frame_length": 25, "frame_shift": 10}
        found = torch.stack([kaldi.fbank(one[None] * 2**15, **size) for one in wave])
        return (found - MEAN) / SCALE

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """Embeddings.  wave : float32 (n, samples) at 16 kHz, at least `shortest` → (n, times, 768)"""
        patches = self.patch_embedding(self.log_mel(wave)[:, None]).flatten(2).mT  # time-major, low to high
        x = self.post_extract_proj(self.layer_norm(patches))
        near = F.gelu(self.encoder["pos_conv"](x.mT)[..., : x.shape[1]]).mT
        x = self.encoder["layer_norm"](x + near)
        bias = self.relative_attention_bias(self._buckets(x.shape[1])).permute(2, 0, 1)
        for layer in self.encoder["layers"]:
            x = layer(x, bias)
        return x.unflatten(1, (-1, BANDS // PATCH)).mean(2)

    def _buckets(self, length: int) -> torch.Tensor:
        """Relative-position bucket for each pair of patches, int64 (length, length), separate by direction.

        Near distances have their own bucket, farther ones share logarithmic buckets.
        """
        place = torch.arange(length, device=self.relative_attention_bias.weight.device)
        away = place[None] - place[:, None]
        half = self.relative_attention_bias.num_embeddings // 2
        exact, size = half // 2, away.abs()
        far = (size.clamp_min(1) / exact).log() / math.log(self.farthest / exact) * (half - exact)
        coarse = (exact + far.long()).clamp_max(half - 1)
        return torch.where(size < exact, size, coarse) + half * (away > 0)


class Layer(nn.Module):
    """Transformer layer with post-normalization; residual inputs are scaled by `alpha`."""

    def __init__(self, dim: int, cfg: Mapping):
        super().__init__()
        self.self_attn = Attention(dim, cfg["encoder_attention_heads"])
        self.self_attn_layer_norm, self.final_layer_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, cfg["encoder_ffn_embed_dim"])
        self.fc2 = nn.Linear(cfg["encoder_ffn_embed_dim"], dim)
        self.alpha = (2 * cfg["encoder_layers"]) ** 0.25 if cfg["deep_norm"] else 1.0

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Patch embeddings, same shape.  x : (n, patches, dim).  bias : (heads, patches, patches)"""
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, bias))
        return self.final_layer_norm(self.alpha * x + self.fc2(F.gelu(self.fc1(x))))


class Attention(nn.Module):
    """Self-attention with relative position bias, scaled by two gates per query."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Linear(dim, dim))
        self.grep_linear, self.heads = nn.Linear(dim // heads, 8), heads
        self.grep_a = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Patch embeddings, same shape.  x : (n, patches, dim).  bias : (heads, patches, patches)"""
        q, k, v = (
            make(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for make in (self.q_proj, self.k_proj, self.v_proj)
        )
        one, other = self.grep_linear(q).unflatten(3, (2, 4)).sum(4).sigmoid().chunk(2, dim=3)
        gate = one * (other * self.grep_a - 1.0) + 2.0
        made = F.scaled_dot_product_attention(q, k, v, attn_mask=gate * bias)
        return self.out_proj(made.transpose(1, 2).flatten(2))


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Checkpoint tensors under this module's names.

    Checkpoints store the weight of `pos_conv` as direction and norm, and the shared position bias per layer.
    """
    direction, length = (state.pop(f"encoder.pos_conv.0.weight_{part}") for part in "vg")
    state["encoder.pos_conv.0.weight"] = direction / direction.norm(dim=(0, 1), keepdim=True) * length
    shared = "relative_attention_bias.weight"
    state[shared] = state[f"encoder.layers.0.self_attn.{shared}"]
    return {
        name: value
        for name, value in state.items()
        if not name.startswith("predictor.") and not name.endswith(f"self_attn.{shared}")
    }
