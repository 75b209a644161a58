"""How a judge is trained: plain supervised learning on real images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.findings import findings_of
from medm2g_core.judges.files import FORMAT, load_judge
from medm2g_core.judges.judge import JUDGED, Judge
from medm2g_core.judges.labels import label_matrix
from medm2g_core.judges.network import JudgeNet
from medm2g_core.metrics.classification import auc, best_threshold
from medm2g_core.model import CheckpointError
from medm2g_core.streams import StreamError
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.fit import Budget, fit, seeded

__all__ = ["JudgeSettings", "jittered", "train_judge", "up_to_date"]

WARM_UP = 0.15
"""Part of the steps in which the one-cycle schedule rises."""

LARGEST_GRADIENT = 1.0
"""Norm to which gradients are clipped."""

MIN_CASES = 5
"""A question with fewer positives or negatives among the test studies gets no AUC."""


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is trained.

    Attributes:
        steps, batch, lr, weight_decay: AdamW with a one-cycle schedule (Smith and Topin 2018);
            ``lr`` is its peak.
        shift, scale: largest shift (fraction of the side) and zoom of `jittered`.
        gamma: deviation of the exponent's logarithm.
        noise: largest deviation of added noise (the range of an image is 2).
        train, held_out: studies of the train split, and of the val and of the test split.
        seed: of weights, order and augmentation; another than the model's.
    """

    steps: int = 1500
    batch: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.02
    shift: float = 0.04
    scale: float = 0.06
    gamma: float = 0.1
    noise: float = 0.06
    train: int = 2816
    held_out: int = 256
    seed: int = 20240

    def of(self, region: str) -> JudgeSettings:
        """Brains: half as many studies."""
        if region == "chest":
            return self
        return JudgeSettings(
            **asdict(self) | {"train": self.train // 2, "held_out": self.held_out // 2}
        )


def jittered(
    images: torch.Tensor, settings: JudgeSettings, generator: torch.Generator
) -> torch.Tensor:
    """Images (B, 1, H, W) in -1..1, each shifted, zoomed, brightened and made noisy by its own
    draw; never flipped, since left is left.

    Not `medm2g_core.alignment.objective.augmented_view`, the jitter of the model's own encoders: a
    judge shares nothing with the model, and these draws are part of how the shipped ones were made.
    """
    b = len(images)

    def uniform(width: float) -> torch.Tensor:
        return (torch.rand(b, generator=generator) * 2 - 1) * width

    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 + uniform(settings.scale), 1 + uniform(settings.scale)
    theta[:, 0, 2], theta[:, 1, 2] = uniform(2 * settings.shift), uniform(2 * settings.shift)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    power = torch.exp(settings.gamma * torch.randn(b, 1, 1, 1, generator=generator))
    bright = ((moved + 1) / 2).clamp(0, 1) ** power * 2 - 1
    level = settings.noise * torch.rand(b, 1, 1, 1, generator=generator)
    return (bright + level * torch.randn(bright.shape, generator=generator)).clamp(-1, 1)


def train_judge(
    stream: str,
    region: str,
    settings: JudgeSettings | None = None,
    *,
    resolution: int = 128,
    progress: bool = True,
) -> Judge:
    """Train the judge of one stream on real images of the train split, and test it on those of the
    test split.

    Takes three to four minutes on one core with the standard settings.

    Args:
        settings: for chests; of brains there are half as many studies (`JudgeSettings.of`).
        resolution: of the images, in pixels a side.

    Raises:
        StreamError: there is no such image stream in the studies of that region.
    """
    settings = (settings or JudgeSettings()).of(region)
    if (region, stream) not in JUDGED:
        raise StreamError(
            f"no studies of region {region!r} with {stream!r}; judges exist for {JUDGED}"
        )
    cohorts = {
        split: VirtualCohort(split, region, n, resolution=resolution)
        for split, n in (
            ("train", settings.train),
            ("val", settings.held_out),
            ("test", settings.held_out),
        )
    }
    truth = {split: label_matrix(c.findings, region) for split, c in cohorts.items()}
    images = {split: c.stack(stream) for split, c in cohorts.items()}
    began = time.process_time()
    net = _train(images["train"], truth["train"], settings, f"judge of {region} {stream}", progress)
    judge = Judge(region, stream, net, {})
    logits, features = judge.read(images["val"])
    scale = np.maximum(features.std(0), 1e-3 * features.std(0).max())
    net.feature_shift.copy_(torch.from_numpy(features.mean(0)))
    net.feature_scale.copy_(torch.from_numpy(scale))
    yes = truth["val"].numpy() > 0
    net.thresholds.copy_(
        torch.tensor([best_threshold(logits[:, i], yes[:, i]) for i in range(yes.shape[1])])
    )
    judge.info = _facts(
        judge, cohorts, images["test"], truth["test"].numpy(), settings, time.process_time() - began
    )
    return judge


def _train(
    images: torch.Tensor, truth: torch.Tensor, settings: JudgeSettings, title: str, progress: bool
) -> JudgeNet:
    """A network trained on images (N, 1, H, W) in -1..1 and answers (N, L).

    It takes few minutes, and every judge is kept when it is done: no state for an interruption.
    """
    with seeded(settings.seed, torch.device("cpu")):
        net = JudgeNet(truth.shape[1]).train()
        optimizer = torch.optim.AdamW(
            net.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.steps, pct_start=WARM_UP
        )

        def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            x, answers = batch  # (B, 1, H, W), (B, L)
            return F.binary_cross_entropy_with_logits(net(x)[0], answers)

        def schedule(step: int, part: float) -> None:
            if step:  # made with the values of the first
                cycle.step()

        fit(
            net,
            loss,
            _batches(images, truth, settings),
            optimizer,
            budget=Budget(steps=settings.steps),
            schedule=schedule,
            clip=LARGEST_GRADIENT,
            title=title,
            progress=progress,
        )
    return net.eval()


def _batches(
    images: torch.Tensor, truth: torch.Tensor, settings: JudgeSettings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Jittered images (B, 1, H, W) and their answers (B, L), in an order that has every study once
    before any comes again."""
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < settings.batch:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[: settings.batch], order[settings.batch :]
        x = jittered(images[chosen], settings, generator)
        yield x.to(memory_format=torch.channels_last), truth[chosen]


def _facts(
    judge: Judge,
    cohorts: Mapping[str, VirtualCohort],
    images: torch.Tensor,
    truth: np.ndarray,
    settings: JudgeSettings,
    seconds: float,
) -> dict[str, Any]:
    """What lies beside the weights: AUC of every question with at least five positives, and what it
    was trained on."""
    logits = judge.logits(images)
    scores = {
        label.text: round(auc(logits[:, i], truth[:, i]), 4)
        for i, label in enumerate(judge.labels)
        if MIN_CASES <= truth[:, i].sum() <= len(truth) - MIN_CASES
    }
    present = [scores[n] for n in findings_of(judge.region) if n in scores]
    return {
        "format": FORMAT,
        "settings": asdict(settings),
        "cohort": _fingerprint(cohorts["train"], judge.stream),
        "cpu_seconds": round(seconds, 1),
        "n_test": len(truth),
        "macro_auc": round(float(np.mean(present)), 4) if present else None,
        "auc": scores,
    }


def _fingerprint(cohort: VirtualCohort, stream: str) -> str:
    """Changes with an image or a report of the studies that the judge was trained on."""
    images = {stream: cohort.stack(stream).half()}
    return Corpus(cohort.region, images, [[t] for t in cohort.texts]).fingerprint()


def up_to_date(folder: Path, region: str, stream: str, settings: JudgeSettings) -> bool:
    """Whether a folder has this judge whole, trained with these settings on the images and reports
    that there are now."""
    try:
        info = load_judge(folder, region, stream).info
    except CheckpointError:
        return False
    if info.get("settings") != asdict(settings.of(region)):
        return False
    cohort = VirtualCohort("train", region, settings.of(region).train)
    return info.get("cohort") == _fingerprint(cohort, stream)
