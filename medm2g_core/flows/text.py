"""Text flow: a small diffusion transformer over the latent tokens of a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.normalization import AdaLayerNormSingle
from torch import nn

from medm2g_core.flows.guidance import GuidanceInput, Guide, install
from medm2g_core.flows.prompt import Prompt, PromptProjection
from medm2g_core.profiles import AlignmentConfig, FlowConfig, TextCodecConfig

__all__ = ["TextFlow"]


class TextFlow(nn.Module):
    """eps_text (or the velocity): z (B, K, d) at noise level t (B,) to the same shape.

    A latent of one vector can be split into ``text_pseudo_tokens`` tokens, as CoDi does with its
    768 numbers.
    """

    def __init__(
        self, codec: TextCodecConfig, alignment: AlignmentConfig, config: FlowConfig
    ) -> None:
        super().__init__()
        width = config.text_width
        tokens, dim = codec.latent_tokens, codec.latent_dim
        self.split = config.text_pseudo_tokens or tokens
        if (tokens * dim) % self.split:
            raise ValueError(
                f"a latent of {tokens} x {dim} does not split into {self.split} tokens"
            )
        inner = tokens * dim // self.split
        self.enter = nn.Linear(inner, width)
        self.place = nn.Parameter(torch.randn(self.split, width) * 0.02)
        self.time = AdaLayerNormSingle(width)
        self.blocks = nn.ModuleList(
            BasicTransformerBlock(
                dim=width,
                num_attention_heads=config.text_heads,
                attention_head_dim=width // config.text_heads,
                cross_attention_dim=alignment.embed_dim,
                norm_type="ada_norm_single",
                activation_fn="gelu-approximate",
                attention_bias=True,
            )
            for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.leave = nn.Linear(width, inner)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        install(self, config, is_grid=False)
        self.prompt = PromptProjection(alignment)

    def forward(
        self,
        z: torch.Tensor,
        t: torch.Tensor,
        prompt: Prompt,
        guides: Sequence[Guide],
        contrast: torch.Tensor,
    ) -> torch.Tensor:
        context, bias = self.prompt(prompt)  # (B, N, D), (B, N)
        guidance = GuidanceInput(bias, guides)
        h = z.reshape(len(z), self.split, -1)  # (B, S, K d / S)
        h = self.enter(h) + self.place  # (B, S, width)
        modulation, embedded = self.time(
            t.float() * 1000, hidden_dtype=h.dtype
        )  # (B, 6 width), (B, width)
        for block in self.blocks:
            h = block(
                h,
                encoder_hidden_states=context,
                timestep=modulation,
                cross_attention_kwargs={"guidance": guidance},
            )  # (B, S, width)
        shift, scale = (self.modulate[None] + embedded[:, None]).chunk(2, 1)  # (B, 1, width) each
        h = self.norm(h) * (1 + scale) + shift
        return self.leave(h).reshape(z.shape)  # (B, K, d)
