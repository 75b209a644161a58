"""The report writer: a decoder of the text codec's kind that sees pictures beside the latent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from medm2g_core.codecs.text import TextCodec, report_decoder, write_greedily
from medm2g_core.profiles import TextCodecConfig
from medm2g_core.streams import STREAMS

__all__ = ["Picture", "ReportWriter"]

_GONE = -1e4  # as a logit: no attention, yet finite in half precision


@dataclass(frozen=True)
class Picture:
    """One image stream of a batch, as its aligned encoder sees it.

    Attributes:
        tokens: (B, 1 + N, D) the pooled embedding, then the N cells row by row.
        present: (B,) 1 where the study has this picture, else 0.
    """

    tokens: torch.Tensor
    present: torch.Tensor

    @classmethod
    def of(
        cls, pooled: torch.Tensor, cells: torch.Tensor, present: torch.Tensor | None = None
    ) -> Picture:
        """From an embedding (B, D) and its cells (B, N, D); present in all studies unless told."""
        there = torch.ones_like(pooled[:, 0]) if present is None else present
        return cls(torch.cat([pooled[:, None], cells], 1), there)


class ReportWriter(nn.Module):
    """(latent, pictures) to a report: the latent is the plan, the pictures are looked at while it
    is carried out.

    A flow that draws a whole report as a few latent tokens loses findings that the same pictures
    tell a plain autoregressive decoder, so this decoder attends to both. It begins as a copy of the
    codec's own (`start_from`), which goes on to write where there is no picture.

    Args:
        config: of the text codec, whose latents it reads and whose size it has.
        width: D of `Picture.tokens`.
        cells: N of `Picture.tokens`.
    """

    ready: torch.Tensor

    def __init__(self, config: TextCodecConfig, width: int, cells: int) -> None:
        super().__init__()
        self.config = config
        self.from_latent = nn.Linear(config.latent_dim, config.width)
        self.slots = nn.Parameter(torch.randn(config.latent_tokens, config.width) * 0.5)
        self.decoder = report_decoder(config)
        # The pooled embedding has unit length and the cells have not: normalised, both count.
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, config.width)
        self.place = nn.Parameter(torch.randn(1 + cells, config.width) * 0.1)
        self.stream = nn.ParameterDict(
            {n: torch.randn(config.width) * 0.1 for n, s in STREAMS.items() if s.is_image}
        )
        # 1 once it has begun to learn: one that never did must not write.
        self.register_buffer("ready", torch.zeros(()))

    @torch.no_grad()
    def start_from(self, codec: TextCodec) -> None:
        """Copy the codec's decoder and what brings the latent to it."""
        own = self.state_dict().keys()
        self.load_state_dict(
            {k: v for k, v in codec.state_dict().items() if k in own}, strict=False
        )
        self.ready.fill_(1)

    def memory(
        self, latent: torch.Tensor, pictures: Mapping[str, Picture]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the decoder attends to.

        Args:
            latent: (B, K, d).  pictures: image stream -> picture.

        Returns:
            the latent's tokens and those of the pictures, (B, M, width); and the bias of the
            attention to them, (B, 1, 1, M), which shuts out absent pictures.
        """
        parts = [self.from_latent(latent) + self.slots]  # (B, K, width)
        there = [parts[0].new_ones(parts[0].shape[:2])]  # (B, K)
        for name, picture in pictures.items():
            cells = self.enter(self.norm(picture.tokens)) + self.place + self.stream[name]
            parts.append(cells)  # (B, 1 + N, width)
            there.append(picture.present.to(cells)[:, None].expand(cells.shape[:2]))
        bias = (1 - torch.cat(there, 1)) * _GONE  # (B, M)
        return torch.cat(parts, 1), bias[:, None, None]

    def logits(
        self, ids: torch.Tensor, latent: torch.Tensor, pictures: Mapping[str, Picture]
    ) -> torch.Tensor:
        """Next-token logits (B, L, vocab) of the decoder that has read ``ids`` (B, L)."""
        memory, bias = self.memory(latent, pictures)
        return self.decoder(
            input_ids=ids,
            encoder_hidden_states=memory,
            encoder_attention_mask=bias,
            use_cache=False,
        ).logits

    @torch.no_grad()
    def decode(self, latent: torch.Tensor, pictures: Mapping[str, Picture]) -> torch.Tensor:
        """Greedy decoding to token ids (B, <= max_length), start token first."""
        memory, bias = self.memory(latent, pictures)
        return write_greedily(self.decoder, memory, self.config.max_length, bias)
