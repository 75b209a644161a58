"""The stages of training: for each what is drawn, with which loss, and which parameters move.

Every stage is a module whose forward draws a batch from a seeded generator and returns the loss. A
step therefore depends on nothing but the weights and (seed, step): training that was interrupted
continues as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medm2g_core.flows.guidance import CrossGuidedAttnProcessor
from medm2g_core.flows.image import ImageFlow
from medm2g_core.model import MedM2G
from medm2g_core.training.batches import (
    AlignmentBatches,
    Batches,
    ImageBatches,
    Levels,
    RoundBatches,
    TextBatches,
)
from medm2g_core.training.corpus import Corpus, LatentCorpus, random_reports
from medm2g_core.training.objectives import (
    Logs,
    alignment_objective,
    image_codec_objective,
    round_objective,
    text_codec_objective,
)
from medm2g_core.training.rounds import ROUNDS, Round

__all__ = ["AlignmentStage", "ImageCodecStage", "RoundStage", "Stage", "TextCodecStage"]


class Stage(nn.Module):
    """A loss on drawn batches.

    Args:
        name: of the stage.
        model: the whole model; only `trainable` parameters move.
        parts: weight files (`MedM2G.part`) that train as a whole.
        batches: draws what a step sees.
        objective: (model, batch) -> loss, logs.
    """

    def __init__(
        self,
        name: str,
        model: MedM2G,
        parts: Sequence[str],
        batches: Batches,
        objective: Callable[[MedM2G, Any], tuple[torch.Tensor, Logs]],
    ) -> None:
        super().__init__()
        self.name, self.model, self.parts = name, model, tuple(parts)
        self.batches, self.objective = batches, objective

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names (as in ``model.state_dict()``) and parameters that this stage trains."""
        inside = {key for part in self.parts for key in self.model.part(part)}
        return ((n, p) for n, p in self.model.named_parameters() if n in inside)

    def batch_norms(self) -> list[_BatchNorm]:
        """Layers of the trained parts whose statistics go with the weights."""
        names = {key.rpartition(".")[0] for part in self.parts for key in self.model.part(part)}
        return [
            m for n, m in self.model.named_modules() if n in names and isinstance(m, _BatchNorm)
        ]

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        """Draw a batch with ``generator`` (on the CPU) and return the loss and what to log."""
        drawn = self.batches.draw(batch, generator, self.model.device)
        return self.objective(self.model, drawn)


class ImageCodecStage(Stage):
    """The image codec, on all image streams alike."""

    def __init__(self, model: MedM2G, corpora: Sequence[Corpus]) -> None:
        batches = ImageBatches(corpora, model.latent_shape("xray"))
        super().__init__("image_codec", model, ["image_codec"], batches, image_codec_objective)


class TextCodecStage(Stage):
    """The text codec, on reports from ``source(n, seed)``."""

    def __init__(
        self, model: MedM2G, source: Callable[[int, int], list[str]] = random_reports
    ) -> None:
        batches = TextBatches(source, model.tokens)
        super().__init__("text_codec", model, ["text_codec"], batches, text_codec_objective)


class AlignmentStage(Stage):
    """Central alignment plus the visual invariant."""

    def __init__(self, model: MedM2G, corpora: Sequence[Corpus]) -> None:
        batches = AlignmentBatches(corpora, model.profile.alignment, model.tokens)
        super().__init__("alignment", model, ["alignment"], batches, alignment_objective)


class RoundStage(Stage):
    """One round: flows of a few streams, each predicting its noise with the others as guides.

    It leaves the model as it is: `medm2g_core.training.rounds.begin_round` initialises its flows
    and records what they are trained with.
    """

    def __init__(
        self,
        model: MedM2G,
        corpora: Sequence[LatentCorpus],
        name: str,
        plan: Round | None = None,
        levels: Levels | None = None,
    ) -> None:
        """``plan`` is `ROUNDS` [name], and ``levels`` those of the model's schedule and profile,
        unless others are given."""
        plan, config = plan or ROUNDS[name], model.profile.conditioning
        levels = levels or partial(model.schedule.sample_levels, config=config)
        batches = RoundBatches(corpora, plan, config, levels)
        super().__init__(name, model, plan.trained, batches, round_objective)
        self.round = plan

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from super().trainable()
        entries = {
            id(p)
            for m in self.round.frozen
            for source in self.round.trained
            for p in source_entries(self.model.flows[m], source)
        }
        yield from ((n, p) for n, p in self.model.named_parameters() if id(p) in entries)


def source_entries(flow: nn.Module, source: str) -> Iterator[nn.Parameter]:
    """The parameters by which one modality enters a flow and no other does: its gates at the
    cross-attention sites, the projection of its prompt's details, and that of its map."""
    for site in flow.modules():
        if isinstance(site, CrossGuidedAttnProcessor) and site.mode != "off":
            yield site.gate[source]
    yield from flow.prompt.details[source].parameters()  # type: ignore[union-attr, index]
    if isinstance(flow, ImageFlow) and source in flow.maps:
        yield from flow.maps[source].parameters()
