"""Environment encoders: a stream's latent, at whatever noise it has, as tokens for the other
flows."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from torch.nn import functional as F

from medm2g_core.profiles import FlowConfig

__all__ = ["ImageEnvironment", "NoiseLevel", "TextEnvironment", "map_width"]


def map_width(config: FlowConfig) -> int:
    """Channels of the map that an `ImageEnvironment` gives."""
    return max(config.env_width // 2, config.norm_groups)


class NoiseLevel(nn.Module):
    """Noise level t in [0, 1] (B,) and MR contrast (B,) to an embedding (B, width)."""

    def __init__(self, width: int, contrasts: int = 1) -> None:
        super().__init__()
        self.wave = Timesteps(128, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.mlp = TimestepEmbedding(128, width)
        self.contrast = nn.Embedding(contrasts, width)
        nn.init.normal_(self.contrast.weight, std=0.02)

    def forward(self, level: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
        wave = self.wave(level.float() * 1000).to(self.contrast.weight.dtype)
        return self.mlp(wave) + self.contrast(contrast)


class ImageEnvironment(nn.Module):
    """V_m of an image modality: latent (B, C, h, w) at noise level s (B,) to grid tokens (B, g^2,
    E) and a map.

    It is told s: a noisy guide taken for a clean one misleads the other flow badly. ``pooled``
    averages to one token, as the public ancestors do; attention over one key is a constant, so it
    carries no places. The map (B, `map_width`, h, w) keeps the latent's resolution for flows that
    draw the same places; ``None`` without ``aligned_map``.
    """

    def __init__(
        self, latent_channels: int, latent_size: int, config: FlowConfig, contrasts: int = 1
    ) -> None:
        super().__init__()
        width = config.env_width
        self.pooled = config.guidance == "pooled"
        self.grid = min(config.env_grid, latent_size)
        self.level = NoiseLevel(width, contrasts)
        half = map_width(config)
        self.has_map = config.aligned_map
        groups = config.norm_groups if half % config.norm_groups == 0 else 1
        block: dict[str, Any] = {"temb_channels": width, "groups": groups, "eps": 1e-5}
        self.enter = nn.Conv2d(latent_channels, half, 3, padding=1)
        self.fine = ResnetBlock2D(in_channels=half, out_channels=half, **block)
        # Cells of the latent move into channels, so nothing is lost on the way to the coarser grid.
        self.fold = latent_size // self.grid
        self.merge = nn.Conv2d(half * self.fold**2, width, 1)
        groups = config.norm_groups if width % config.norm_groups == 0 else 1
        self.coarse = ResnetBlock2D(
            in_channels=width, out_channels=width, **(block | {"groups": groups})
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, z: torch.Tensor, level: torch.Tensor, contrast: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        temb = self.level(level, contrast)  # (B, E)
        fine = self.fine(self.enter(z), temb)  # (B, E/2, h, w)
        h = F.pixel_unshuffle(fine, self.fold)  # (B, E/2 f^2, g, g)
        h = self.coarse(self.merge(h), temb)  # (B, E, g, g)
        tokens = self.norm(h.flatten(2).transpose(1, 2))  # (B, g^2, E)
        return tokens.mean(1, keepdim=True) if self.pooled else tokens, (
            fine if self.has_map else None
        )

    @property
    def token_grid(self) -> tuple[int, int] | None:
        return None if self.pooled else (self.grid, self.grid)


class TextEnvironment(nn.Module):
    """V_text: latent tokens (B, K, d) at noise level s (B,) to tokens (B, K, E); words have no
    map."""

    token_grid: tuple[int, int] | None = None

    def __init__(self, latent_tokens: int, latent_dim: int, config: FlowConfig) -> None:
        super().__init__()
        width = config.env_width
        self.pooled = config.guidance == "pooled"
        self.level = NoiseLevel(width)
        self.enter = nn.Linear(latent_dim, width)
        self.place = nn.Parameter(torch.randn(latent_tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width,
            config.guidance_heads,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.mix = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, z: torch.Tensor, level: torch.Tensor, contrast: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        h = self.enter(z) + self.place + self.level(level, contrast)[:, None]  # (B, K, E)
        tokens = self.norm(self.mix(h))  # (B, K, E)
        return tokens.mean(1, keepdim=True) if self.pooled else tokens, None
