"""Cross-guidance: the attention by which one flow looks at the environment of another.

It sits in the cross-attention sub-layers of each flow, next to the attention to the prompt, as an
attention processor of diffusers. Stable Diffusion's UNet therefore needs no change, and its weights
still fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn
from torch.nn import functional as F

from medm2g_core.profiles import FlowConfig
from medm2g_core.streams import MODALITIES

__all__ = [
    "CrossGuidedAttnProcessor",
    "GuidanceInput",
    "Guide",
    "SelfAttnProcessor",
    "grid_positions",
    "guided_layers",
    "install",
    "level_grid",
]

N_FREQUENCIES = 8
FREQUENCIES = (0.25, 4.0)
"""Lowest and highest, in cycles an axis: from a quarter of the picture to twice a 4x4 grid."""

POSITION_DIM = 4 * N_FREQUENCIES
"""Sine and cosine of every frequency on both axes."""

_PLACES = {"down_blocks": "down", "mid_block": "middle", "up_blocks": "up"}
_DEPTH = ("down", "middle", "up")

POSITION_SCALE = 3.0
"""Of the position projections at the start: attention then has most of its mass within one cell of
the own place, before any training."""


@dataclass
class Guide:
    """The environment of one stream, as another flow sees it.

    Attributes:
        modality: whose it is; picks the gate.
        tokens: (B, N, E) output of that modality's environment encoder.
        grid: (rows, columns) if the N tokens are cells of an image, else ``None`` (text).
        present: (B,) 1 where the guide is there, 0 where it is dropped; a dropped guide contributes
            exactly 0.
        map: (B, W, h, w) of an image at the resolution of its latent, or ``None``.
        stream: whose it is, among those of its modality; picks the entry of the map.
    """

    modality: str
    tokens: torch.Tensor
    grid: tuple[int, int] | None
    present: torch.Tensor
    map: torch.Tensor | None = None
    stream: str = ""


@dataclass
class GuidanceInput:
    """What travels to every cross-attention site in one call of a flow.

    Attributes:
        context_bias: (B, N) added to the logits of the attention to the prompt: 0, a log weight, or
            -inf.
        guides: the other streams.
        latent_size: (rows, columns) of the latent of an image flow; ``None`` for the text flow.
    """

    context_bias: torch.Tensor
    guides: Sequence[Guide] = field(default_factory=tuple)
    latent_size: tuple[int, int] | None = None


@lru_cache(maxsize=64)
def grid_positions(grid: tuple[int, int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Sines and cosines of cell centres in [0, 1]^2, 8 frequencies of 0.25..4 cycles an axis: (rows
    cols, 32).

    All grids share this frame whatever their resolution, so a 4x4 query map and an 8x8 key map
    agree on where "left lower lung" is. Kept from call to call: do not write into it.
    """
    low, high = (math.log2(f) for f in FREQUENCIES)
    # Made outside of inference mode even if first asked for there: training must be able to use it.
    with torch.inference_mode(False):
        cycles = torch.logspace(low, high, N_FREQUENCIES, base=2.0, device=device)  # (F,)
        axes = [(torch.arange(n, device=device) + 0.5) / n for n in grid]
        y, x = torch.meshgrid(*axes, indexing="ij")
        place = torch.stack([y.flatten(), x.flatten()], -1)  # (N, 2)
        phase = 2 * math.pi * place[..., None] * cycles  # (N, 2, F)
        return torch.cat([phase.sin(), phase.cos()], -1).flatten(1)  # (N, 4F)


def _heads(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)  # (B, N, C) -> (B, n, N, C/n)


class SelfAttnProcessor(AttnProcessor2_0):
    """Self-attention as always; diffusers hands it ``guidance`` too, and it does not look."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        guidance: GuidanceInput | None = None,
    ) -> torch.Tensor:
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


class CrossGuidedAttnProcessor(nn.Module):
    """Attention to the prompt, plus for every guide n a gated attention to its environment tokens.

    out = Attn(h, c) + sum_n present_n * g_n * W_o softmax(q k_n^T / sqrt(d)) v_n,
    q = W_q h + P_q pos,  k_n = W_k e_n + P_k pos,  v_n = W_v e_n.

    g_n is the adaptive cross-guidance parameter, one a layer and an ordered pair of modalities.
    With ``tied`` positions P_k starts as a copy of P_q and both are scaled by 3, so attention looks
    at the right place from the first step. ``adapter`` replaces attention by a zero-initialised
    projection of the guide's map at the same place.
    """

    def __init__(self, width: int, config: FlowConfig, is_grid: bool) -> None:
        super().__init__()
        self.mode, self.n_heads = config.guidance, config.guidance_heads
        env = config.env_width
        if self.mode == "adapter":
            self.adapt = nn.Linear(env, width)
            nn.init.zeros_(self.adapt.weight)
            nn.init.zeros_(self.adapt.bias)
        elif self.mode != "off":
            self.to_q = nn.Linear(width, width, bias=False)
            self.to_k = nn.Linear(env, width, bias=False)
            self.to_v = nn.Linear(env, width, bias=False)
            self.to_out = nn.Linear(width, width)
            if is_grid and config.positions != "none" and self.mode == "tokens":
                self.q_position = nn.Linear(POSITION_DIM, width, bias=False)
                self.k_position = nn.Linear(POSITION_DIM, width, bias=False)
                with torch.no_grad():
                    if config.positions == "tied":
                        self.q_position.weight.mul_(POSITION_SCALE)
                        self.k_position.weight.copy_(self.q_position.weight)
        if self.mode != "off":
            self.gate = nn.ParameterDict(
                {m: nn.Parameter(torch.tensor(config.gate_start)) for m in MODALITIES}
            )

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        guidance: GuidanceInput | None = None,
    ) -> torch.Tensor:
        """hidden_states (B, N, C), encoder_hidden_states (B, M, D): returns (B, N, C)."""
        if guidance is None or encoder_hidden_states is None:
            raise ValueError(
                "a cross-guided flow needs encoder_hidden_states and"
                " cross_attention_kwargs['guidance']"
            )
        q = _heads(attn.to_q(hidden_states), attn.heads)  # (B, n, N, C/n)
        k = _heads(attn.to_k(encoder_hidden_states), attn.heads)  # (B, n, M, C/n)
        v = _heads(attn.to_v(encoder_hidden_states), attn.heads)  # (B, n, M, C/n)
        bias = guidance.context_bias[:, None, None, :].to(q.dtype)  # (B, 1, 1, M)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, n, N, C/n)
        out = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))  # (B, N, C)
        if self.mode == "off":
            return out
        for guide in guidance.guides:
            gate = self.gate[guide.modality] * guide.present  # (B,)
            out = out + gate[:, None, None].to(out.dtype) * self._look(
                hidden_states, guide, guidance
            )
        return out

    def _look(self, h: torch.Tensor, guide: Guide, guidance: GuidanceInput) -> torch.Tensor:
        """What (B, N, C) the guide says to each of the N places of ``h``."""
        query_grid = level_grid(h.shape[1], guidance.latent_size)
        if self.mode == "adapter":
            if guide.grid is None or query_grid is None:
                return self.adapt(guide.tokens.mean(1, keepdim=True)).expand(-1, h.shape[1], -1)
            cells = guide.tokens.transpose(1, 2).unflatten(-1, guide.grid)  # (B, E, r, c)
            cells = F.interpolate(cells, size=query_grid, mode="bilinear", align_corners=False)
            return self.adapt(cells.flatten(2).transpose(1, 2))  # (B, N, C)
        q, k, v = self.query_key_value(h, guide, query_grid)
        out = F.scaled_dot_product_attention(q, k, v)  # (B, n, N, C/n)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, N, C)

    def query_key_value(
        self, h: torch.Tensor, guide: Guide, query_grid: tuple[int, int] | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (B, n, N, C/n) of the places of ``h`` (B, N, C), keys and values (B, n, M, C/n)
        of the guide, for n heads; not of an ``adapter``, which has none."""
        q, k = self.to_q(h), self.to_k(guide.tokens)  # (B, N, C), (B, M, C)
        if hasattr(self, "q_position") and guide.grid is not None and query_grid is not None:
            q = q + self.q_position(grid_positions(query_grid, h.device).to(h.dtype))
            k = k + self.k_position(grid_positions(guide.grid, h.device).to(h.dtype))
        q, k, v = (_heads(x, self.n_heads) for x in (q, k, self.to_v(guide.tokens)))
        return q, k, v


def level_grid(n: int, latent_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """The (rows, columns) of a level of the UNet that has ``n`` places; ``None`` for text.

    Raises:
        ValueError: no level of a latent of that size has ``n`` places.
    """
    if latent_size is None:
        return None
    rows, columns = latent_size
    while rows * columns > n:
        rows, columns = -(-rows // 2), -(-columns // 2)
    if rows * columns != n:
        raise ValueError(f"{n} places are no level of a latent of {latent_size}")
    return rows, columns


def install(module: nn.Module, config: FlowConfig, is_grid: bool) -> None:
    """Give every attention of ``module`` its processor: cross-guided for cross-attention, plain for
    the rest."""
    for attention in [m for m in module.modules() if isinstance(m, Attention)]:
        if attention.is_cross_attention:
            processor: nn.Module | SelfAttnProcessor = CrossGuidedAttnProcessor(
                attention.query_dim, config, is_grid
            )
        else:
            processor = SelfAttnProcessor()
        attention.set_processor(
            cast(AttnProcessor, processor)
        )  # diffusers names a few classes, but takes any callable


def guided_layers(flow: nn.Module) -> dict[str, CrossGuidedAttnProcessor]:
    """Short name -> cross-guided layer of a flow, in the order of computation: ``down``,
    ``middle``, ``up`` for pictures, ``block`` for text, numbered from 1 where there are several."""
    found = [
        (name.split("."), module)
        for name, module in flow.named_modules()
        if isinstance(module, CrossGuidedAttnProcessor)
    ]
    named = [(next((_PLACES[p] for p in path if p in _PLACES), "block"), m) for path, m in found]
    named.sort(key=lambda pair: _DEPTH.index(pair[0]) if pair[0] in _DEPTH else 0)
    kinds = [kind for kind, _ in named]
    out: dict[str, CrossGuidedAttnProcessor] = {}
    for i, (kind, module) in enumerate(named):
        count = kinds[: i + 1].count(kind)
        out[kind if kinds.count(kind) == 1 else f"{kind} {count}"] = module
    return out
