"""Prompts: aligned embeddings of the given streams, mixed, as the context of a flow's
cross-attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.profiles import AlignmentConfig
from medm2g_core.streams import MODALITIES, stream

__all__ = ["Prompt", "PromptProjection", "mix", "null_prompt", "weighted_prompt"]

_GONE = -1e4  # as a logit: no attention, yet finite in half precision


@dataclass
class Prompt:
    """Mixed prompts of a batch.

    Attributes:
        pooled: (B, D) weighted mean of the aligned embeddings, not normalised again (as in CoDi).
        present: (B,) 1 where there is a prompt; where it is 0 the flow sees its learned null token.
        details: for every prompt stream its modality, tokens (B, N, D) and their bias (B, N), which
            is the log of the prompt's weight, or very negative for padding and for a weight of 0.
    """

    pooled: torch.Tensor
    present: torch.Tensor
    details: tuple[tuple[str, torch.Tensor, torch.Tensor], ...] = ()

    def drop(self, keep: torch.Tensor, keep_details: torch.Tensor | None = None) -> Prompt:
        """Keep the prompt only where ``keep`` (B,) is 1, its details only where ``keep_details`` is
        1 as well."""
        details_kept = keep if keep_details is None else keep * keep_details
        gone = (1 - details_kept)[:, None] * _GONE
        details = tuple(
            (m, tokens, (bias + gone).clamp(min=_GONE)) for m, tokens, bias in self.details
        )
        return Prompt(self.pooled, self.present * keep, details)

    def repeat(self, keep: list[float]) -> Prompt:
        """The batch ``len(keep)`` times over, copy i kept (1) or dropped (0)."""
        n, b = len(keep), len(self.pooled)
        many = Prompt(
            self.pooled.repeat(n, 1),
            self.present.repeat(n),
            tuple((m, t.repeat(n, 1, 1), bias.repeat(n, 1)) for m, t, bias in self.details),
        )
        return many.drop(torch.tensor(keep).repeat_interleave(b).to(self.pooled))


def mix(
    embeddings: Mapping[str, Embedding], weights: Mapping[str, float | torch.Tensor] | None = None
) -> Prompt:
    """Weighted mean of several prompts; equal weights unless told.

    Args:
        embeddings: stream -> `Embedding` of the same batch.
        weights: stream -> number or (B,) tensor, not negative; they are normalised to sum 1 a
            sample.

    Raises:
        ValueError: no prompts, a weight for a stream that is not there, negative weights, or a sum
            of 0.
    """
    if not embeddings:
        raise ValueError("no prompt to mix; use null_prompt for none")
    weights = dict(weights or {})
    unknown = set(weights) - set(embeddings)
    if unknown:
        raise ValueError(
            f"prompt weights for {sorted(unknown)}, but the prompts are {sorted(embeddings)}"
        )
    first = next(iter(embeddings.values())).pooled
    w = torch.stack(
        [torch.as_tensor(weights.get(n, 1.0)).to(first).expand(len(first)) for n in embeddings]
    )  # (S, B)
    if (w < 0).any() or (w.sum(0) <= 0).any():
        raise ValueError("prompt weights must not be negative and must not all be 0")
    return weighted_prompt(embeddings, w / w.sum(0))


def weighted_prompt(embeddings: Mapping[str, Embedding], w: torch.Tensor) -> Prompt:
    """`mix` without its checks, which wait for a GPU.

    Args:
        w: (S, B) weights of the S streams in their order, not negative, of sum 1 a sample.
    """
    pooled = sum(wi[:, None] * e.pooled for wi, e in zip(w, embeddings.values(), strict=True))
    details = tuple(
        (
            stream(n).modality,
            e.tokens,
            torch.where(e.mask, wi.clamp(min=1e-4).log()[:, None], _GONE),
        )
        for wi, (n, e) in zip(w, embeddings.items(), strict=True)
    )
    details = tuple(
        (m, t, torch.where((wi > 0)[:, None], bias, _GONE))
        for wi, (m, t, bias) in zip(w, details, strict=True)
    )
    return Prompt(torch.as_tensor(pooled), torch.ones_like(w[0]), details)


def null_prompt(batch: int, dim: int, like: torch.Tensor) -> Prompt:
    """No prompt at all."""
    return Prompt(like.new_zeros(batch, dim), like.new_zeros(batch))


class PromptProjection(nn.Module):
    """A `Prompt` as context (B, 1 + N, D) and its bias (B, 1 + N) for one flow.

    The pooled embedding lives in the aligned space, so one projection serves every modality, also
    one that this flow was never trained with. Details are each encoder's own, so each modality has
    its own projection, trained in the round in which the modality first prompts this flow.

    ``trained_with`` holds a flag for each of `MODALITIES`. A new flow has all of them set, so that
    anything can be tried on it; training keeps the record from then on.
    """

    trained_with: torch.Tensor

    def __init__(self, config: AlignmentConfig) -> None:
        super().__init__()
        d = config.embed_dim
        self.scale = d**0.5
        self.null = nn.Parameter(torch.randn(d) * 0.02)
        self.pooled = nn.Linear(d, d)
        self.details = nn.ModuleDict({m: nn.Linear(d, d) for m in MODALITIES})
        self.register_buffer("trained_with", torch.ones(len(MODALITIES)))
        self._read: tuple[tuple[int, int], tuple[bool, ...]] | None = None

    def was_trained_with(self, modality: str) -> bool:
        """Whether this flow was trained with that modality.

        Details and guides of any other would enter through untrained weights; only the pooled
        embedding, which lives in the aligned space, may cross to it.
        """
        flags = self.trained_with
        if flags.is_inference():  # such a tensor keeps no count of its changes
            return bool(flags[MODALITIES.index(modality)])
        # Read once until it changes: each reading waits for a GPU, and a graph cannot hold it.
        state = (flags.data_ptr(), flags._version)
        if self._read is None or self._read[0] != state:
            self._read = (state, tuple(bool(x) for x in flags.tolist()))
        return self._read[1][MODALITIES.index(modality)]

    def forward(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        there = prompt.present[:, None]
        first = there * self.pooled(prompt.pooled * self.scale) + (1 - there) * self.null  # (B, D)
        parts, bias = [first[:, None]], [torch.zeros_like(there)]
        for modality, tokens, token_bias in prompt.details:
            if not self.was_trained_with(modality):
                continue
            parts.append(self.details[modality](tokens))  # (B, N, D)
            bias.append(token_bias)
        return torch.cat(parts, 1), torch.cat(bias, 1)
