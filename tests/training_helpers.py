"""What the tests of training share: stages by name, short runs, and what a run changed."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import reports

from medm2g_core.model import MedM2G
from medm2g_core.profiles import StageConfig
from medm2g_core.training.loop import run_stage
from medm2g_core.training.stages import (
    AlignmentStage,
    ImageCodecStage,
    ReportStage,
    RoundStage,
    Stage,
    TextCodecStage,
)

SHORT = StageConfig(steps=4, batch=4, lr=1e-2, warmup=1, ema=0.5)


def fresh_reports(n: int, seed: int) -> list[str]:
    return reports(n, seed=seed)


def make(name: str, model: MedM2G, corpora, latent_corpora) -> Stage:
    if name == "image_codec":
        return ImageCodecStage(model, corpora)
    if name == "text_codec":
        return TextCodecStage(model, fresh_reports)
    if name == "alignment":
        return AlignmentStage(model, corpora)
    if name == "reports":
        stage = ReportStage(model, latent_corpora)
        stage.begin()
        return stage
    return RoundStage(model, latent_corpora, name)


def run(stage: Stage, folder: Path, config: StageConfig = SHORT, **options):
    return run_stage(stage, config, folder, precision="fp32", progress=False, **options)


def snapshot(model: MedM2G) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(model: MedM2G, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
