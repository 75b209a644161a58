"""What the report writer learns from: a report, a plan of it that may be wrong, and pictures of the
same study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medm2g_core.alignment.objective import normal
from medm2g_core.codecs.text import PAD_ID
from medm2g_core.codecs.writer import Picture
from medm2g_core.profiles import ReportConfig, TextCodecConfig
from medm2g_core.training.draws import some_of
from medm2g_core.training.latents import LatentCorpus

__all__ = ["ReportBatch", "ReportBatches"]


@dataclass
class ReportBatch:
    """Reports of one corpus.

    Attributes:
        ids: (B, L) tokens of the reports, padded on the right; L is that of the whole corpus.
        read: (B, L - 1) what the decoder has read before each next token: ``ids`` with words
            dropped.
        plan: (B, K, d) latents, noisy, another report's or nothing (`ReportConfig`).
        pictures: image stream -> picture; every study has at least one.
    """

    ids: torch.Tensor
    read: torch.Tensor
    plan: torch.Tensor
    pictures: dict[str, Picture]


class ReportBatches:
    """Studies of one corpus a batch, each corpus as often as it has studies.

    Args:
        codec, config: how noisy plan and words are.

    Raises:
        ValueError: no corpus has reports and pictures.
    """

    def __init__(
        self, corpora: Sequence[LatentCorpus], codec: TextCodecConfig, config: ReportConfig
    ) -> None:
        self.corpora = [c for c in corpora if "text" in c.latents and len(c.latents) > 1]
        self.codec, self.config = codec, config
        if not self.corpora:
            raise ValueError("the report writer needs studies with a report and a picture")

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> ReportBatch:
        sizes = torch.tensor([float(len(c)) for c in self.corpora])
        corpus = self.corpora[int(torch.multinomial(sizes, 1, generator=generator))]
        index = torch.randint(len(corpus), (n,), generator=generator)
        wording = torch.randint(corpus.wordings, (n,), generator=generator)
        there = corpus.ids.device
        ids = corpus.ids[index.to(there), wording.to(there)].long().to(device)  # (B, L)
        streams = [s for s in corpus.latents if s != "text"]
        pictures = {}
        # How many pictures are given, from one to all, then which.
        count = 1 + torch.randint(len(streams), (n,), generator=generator)
        given = some_of(len(streams), count, generator).float()  # (streams, B)
        for s, row in zip(streams, given, strict=True):
            e = corpus.embedding(s, index, wording).to(device)
            pictures[s] = Picture.of(e.pooled, e.tokens, row.to(device))
        plan = corpus.latent("text", index, wording).to(device)  # (B, K, d)
        return ReportBatch(
            ids, self._drop_words(ids[:, :-1], generator), self._unsure(plan, generator), pictures
        )

    def _drop_words(self, ids: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Each report at a rate of its own, as `text_codec_loss` does; the start token stays."""
        rate = 2 * self.codec.word_dropout * torch.rand(len(ids), 1, generator=generator)
        drop = torch.rand(ids.shape, generator=generator) < rate
        drop[:, 0] = False
        return ids.masked_fill(drop.to(ids.device), PAD_ID)

    def _unsure(self, plan: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Plans (B, K, d) as sure as what a flow draws."""
        config, b = self.config, len(plan)
        kind = torch.rand(b, generator=generator)
        another = kind < config.another
        noisier = ~another & (kind < config.another + config.noisier)
        nothing = kind > 1 - config.nothing
        more = torch.rand(b, generator=generator) * (config.most_noise - self.codec.latent_noise)
        level = self.codec.latent_noise + torch.where(noisier, more, 0.0)
        level = torch.where(nothing, 1.0, level)  # alone, any level is the same once normalised
        another, nothing, level = (
            x.to(plan.device)[:, None, None] for x in (another, nothing, level)
        )
        # The studies of a batch are drawn at random, so the next one is any other.
        plan = torch.where(another, plan.roll(1, 0), plan).masked_fill(nothing, 0.0)
        return plan + level * normal(plan.shape, generator, plan.device)
