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

from medm2g_core.flows.guidance import CrossGuidedAttnProcessor, guided_layers
from medm2g_core.flows.image import ImageFlow
from medm2g_core.model import MedM2G
from medm2g_core.profiles import REPORT_STAGE
from medm2g_core.streams import MODALITIES
from medm2g_core.training.batches import (
    AlignmentBatches,
    Batches,
    ImageBatches,
    TextBatches,
    TextPool,
)
from medm2g_core.training.corpus import Corpus, random_reports
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.objectives import (
    Logs,
    alignment_objective,
    image_codec_objective,
    report_objective,
    round_objective,
    text_codec_objective,
)
from medm2g_core.training.report_batches import ReportBatches
from medm2g_core.training.round_batches import Levels, RoundBatches
from medm2g_core.training.rounds import ROUNDS, Round

__all__ = [
    "AlignmentStage",
    "ImageCodecStage",
    "ReportStage",
    "RoundStage",
    "Stage",
    "TextCodecStage",
]


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

    def gates(self) -> dict[str, list[float]]:
        """``"flow<-guide"`` -> gates of the flows that take part, of the weights that move (not of
        their average), layer by layer as in `guided_layers`; empty where a stage has none."""
        return {}

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        """Draw a batch with ``generator`` (on the CPU) and return the loss and what to log."""
        drawn = self.batches.draw(batch, generator, self.model.device)
        return self.objective(self.model, drawn)


def _acquired(model: MedM2G) -> float:
    """Share of the encoders' pictures that another scanner took."""
    on = model.profile.data.acquisitions > 0
    return model.profile.conditioning.acquired if on else 0.0


class ImageCodecStage(Stage):
    """The image codec, on all image streams alike."""

    def __init__(self, model: MedM2G, corpora: Sequence[Corpus]) -> None:
        acquired = _acquired(model)
        batches = ImageBatches(corpora, model.latent_shape("xray"), acquired)
        super().__init__("image_codec", model, ["image_codec"], batches, image_codec_objective)


class TextCodecStage(Stage):
    """The text codec, on reports from ``source(n, seed)``.

    Args:
        pool: write so many once and draw from them, instead of writing for every batch.
    """

    def __init__(
        self,
        model: MedM2G,
        source: Callable[[int, int], list[str]] = random_reports,
        pool: int = 0,
    ) -> None:
        batches: Batches = TextBatches(source, model.tokens)
        if pool:
            batches = TextPool(source, model.tokens, pool, 0, model.device)
        super().__init__("text_codec", model, ["text_codec"], batches, text_codec_objective)


class AlignmentStage(Stage):
    """Central alignment plus the visual invariant."""

    def __init__(self, model: MedM2G, corpora: Sequence[Corpus]) -> None:
        config = model.profile.alignment
        batches = AlignmentBatches(corpora, config, model.tokens, _acquired(model))
        super().__init__("alignment", model, ["alignment"], batches, alignment_objective)


class ReportStage(Stage):
    """The report writer, on latents and embeddings as the codec and the aligned encoders give them.

    It leaves the model as it is until `begin`.

    Raises:
        ValueError: the model has no writer, or no corpus has reports and pictures.
    """

    def __init__(self, model: MedM2G, corpora: Sequence[LatentCorpus]) -> None:
        profile = model.profile
        if model.writer is None:
            raise ValueError(f"profile {profile.name!r}: its reports are written without pictures")
        batches = ReportBatches(corpora, profile.text_codec, profile.reports)
        super().__init__(REPORT_STAGE, model, ["writer"], batches, report_objective)
        self.writer = model.writer

    def begin(self, *, continued: bool = False) -> None:
        """What the stage does to the model once, before its first step: the writer becomes a copy
        of the codec's decoder.

        Args:
            continued: a writer that has learnt already goes on from its own weights.
        """
        if not (continued and bool(self.writer.ready)):
            self.writer.start_from(self.model.text_codec)


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

    def gates(self) -> dict[str, list[float]]:
        out = {}
        for flow in (*self.round.trained, *self.round.frozen):
            layers = guided_layers(self.model.flows[flow]).values()
            knows = self.model.prompt_projection(flow).was_trained_with
            for guide in filter(knows, MODALITIES):
                gates = [layer.gate[guide].detach() for layer in layers if layer.mode != "off"]
                if gates:
                    out[f"{flow}<-{guide}"] = torch.stack(gates).tolist()
        return out


def source_entries(flow: nn.Module, source: str) -> Iterator[nn.Parameter]:
    """The parameters by which one modality enters a flow and no other does: its gates at the
    cross-attention sites, the projection of its prompt's details, and that of its map."""
    for site in flow.modules():
        if isinstance(site, CrossGuidedAttnProcessor) and site.mode != "off":
            yield site.gate[source]
    yield from flow.prompt.details[source].parameters()  # type: ignore[union-attr, index]
    if isinstance(flow, ImageFlow):
        for entry in flow.entries(source):
            yield from entry.parameters()
