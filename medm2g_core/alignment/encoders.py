"""Prompt encoders: text, X-ray, CT and MR into one space with text at its centre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from diffusers.models.autoencoders.vae import Encoder
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from medm2g_core.codecs.text import BOS_ID, EOS_ID, PAD_ID
from medm2g_core.profiles import AlignmentConfig, TextCodecConfig
from medm2g_core.streams import stream

__all__ = ["AlignedEncoders", "Embedding", "ImageEncoder", "TextEncoder"]

N_CONTRASTS = 4
"""MR contrasts of `STREAMS`: T1, T2, PD and FLAIR."""


@dataclass(frozen=True)
class Embedding:
    """What a prompt encoder says of a batch.

    Attributes:
        pooled: (B, D) aligned embedding, unit length.
        tokens: (B, N, D) its details: words of a report, cells of an image.
        mask: (B, N) bool, True where a token is real.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device | str) -> Embedding:
        """The same on ``device``."""
        return Embedding(self.pooled.to(device), self.tokens.to(device), self.mask.to(device))


class _Head(nn.Sequential):
    """Pooled features (B, F) to unit vectors (B, D).

    The batch normalisation (no weights of its own) is there for the start: untrained encoders put
    all patients within a few degrees of each other, and the quickest way down for InfoNCE is then
    to make them all the same. With unit variance a dimension over the batch that way is closed.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__(nn.Linear(features, dim, bias=False), nn.BatchNorm1d(dim, affine=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(super().forward(x), dim=-1)


class TextEncoder(nn.Module):
    """CLIP's text transformer at any size; pooled at the end token."""

    def __init__(self, config: AlignmentConfig, text: TextCodecConfig) -> None:
        super().__init__()
        self.model = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408 if config.image_encoder == "clip" else text.vocab_size,
                hidden_size=config.text_width,
                intermediate_size=4 * config.text_width,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=77 if config.image_encoder == "clip" else text.max_length,
                bos_token_id=BOS_ID,
                eos_token_id=EOS_ID,
                pad_token_id=PAD_ID,
            )
        )
        self.pool = _Head(config.text_width, config.embed_dim)
        self.tokens = nn.Linear(config.text_width, config.embed_dim)

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens; CLIP's own 77 in the ``paper`` profile."""
        return self.model.config.max_position_embeddings

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Embedding:
        """Token ids and mask (B, L)."""
        h = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, width)
        last = mask.sum(1) - 1  # (B,) the end token
        end = h[torch.arange(len(h), device=h.device), last]  # (B, width)
        mean = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # (B, width)
        pooled = self.pool(end + mean)  # (B, D)
        return Embedding(pooled, self.tokens(h), mask.bool())


class ImageEncoder(nn.Module):
    """``cnn``: diffusers' convolutional encoder behind a pixel-unshuffle stem; ``clip``: CLIP's
    ViT-L/14."""

    def __init__(self, config: AlignmentConfig, contrasts: int = 1) -> None:
        super().__init__()
        self.config = config
        if config.image_encoder == "clip":
            self.vit = CLIPVisionModel(
                CLIPVisionConfig(
                    hidden_size=config.clip_width,
                    intermediate_size=4 * config.clip_width,
                    num_hidden_layers=config.clip_layers,
                    num_attention_heads=config.clip_heads,
                    patch_size=config.clip_patch,
                    image_size=config.clip_resolution,
                )
            )
            width = config.clip_width
        else:
            stem = config.image_unshuffle**2
            width = config.image_channels[-1]
            self.cnn = Encoder(
                in_channels=stem,
                out_channels=width,
                down_block_types=("DownEncoderBlock2D",) * len(config.image_channels),
                block_out_channels=config.image_channels,
                layers_per_block=1,
                norm_num_groups=8,
                double_z=False,
                mid_block_add_attention=True,
            )
            self.contrast = nn.Embedding(contrasts, stem)
            nn.init.zeros_(self.contrast.weight)
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, 4)
        self.pool = _Head(4 * width, config.embed_dim)
        self.tokens = nn.Linear(width, config.embed_dim)

    def forward(self, image: torch.Tensor, contrast: torch.Tensor) -> Embedding:
        """Image (B, 1, H, W) in -1..1, contrast index (B,); tokens are the cells of the last grid,
        row by row."""
        if self.config.image_encoder == "clip":
            size = (self.config.clip_resolution,) * 2
            x = F.interpolate(image, size=size, mode="bilinear", antialias=True).expand(
                -1, 3, -1, -1
            )
            h = self.vit(pixel_values=x).last_hidden_state[:, 1:]  # (B, N, width)
        else:
            x = F.pixel_unshuffle(image, self.config.image_unshuffle)  # (B, u^2, H/u, W/u)
            x = self.cnn(x + self.contrast(contrast)[..., None, None])  # (B, width, h, w)
            h = x.flatten(2).transpose(1, 2)  # (B, h w, width)
        h = self.norm(h)
        weight = self.score(h).softmax(1)  # (B, N, 4) four looks at the image
        look = torch.einsum("bnk,bnd->bkd", weight, h).flatten(1)  # (B, 4 width)
        pooled = self.pool(look)  # (B, D)
        tokens = self.tokens(h)  # (B, N, D)
        return Embedding(pooled, tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


class AlignedEncoders(nn.Module):
    """One encoder a modality; the MR contrasts share theirs."""

    def __init__(self, config: AlignmentConfig, text: TextCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict(
            {
                "text": TextEncoder(config, text),
                "xray": ImageEncoder(config),
                "ct": ImageEncoder(config),
                "mri": ImageEncoder(config, N_CONTRASTS),
            }
        )
        self.logit_scale = nn.Parameter(torch.tensor(1 / config.temperature).log())

    @property
    def text(self) -> TextEncoder:
        return cast(TextEncoder, self.encoders["text"])

    def forward(
        self, name: str, value: torch.Tensor | tuple[torch.Tensor, torch.Tensor]
    ) -> Embedding:
        """Embed a batch of stream ``name``: an image (B, 1, H, W), or (ids, mask) for text."""
        spec = stream(name)
        if spec.modality == "text":
            ids, mask = cast(tuple[torch.Tensor, torch.Tensor], value)
            return self.encoders["text"](ids, mask)
        image = cast(torch.Tensor, value)
        contrast = torch.full((len(image),), spec.contrast, dtype=torch.long, device=image.device)
        return self.encoders[spec.modality](image, contrast)

    def embed(
        self, values: Mapping[str, torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
    ) -> dict[str, Embedding]:
        """`forward` for several streams."""
        return {name: self(name, value) for name, value in values.items()}
