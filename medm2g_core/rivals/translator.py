"""Image translation without diffusion: a pixel-regression UNet, and the same network with a critic
(pix2pix).

One network learns all translations of one target modality at once, as the flow that it is compared
with does, with the same optimiser, for a given time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn
from torch.nn import functional as F

from medm2g_core.data.wheels import cache_dir
from medm2g_core.profiles import StageConfig
from medm2g_core.storage import CacheFile, digest
from medm2g_core.streams import IMAGE_STREAMS
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.fit import Budget, Critic, Fitted, Outcome, cosine, fit, seeded
from medm2g_core.training.loop import bf16_pays
from medm2g_core.training.optimizer import Optimizer

__all__ = [
    "Patches",
    "RegressionSettings",
    "Translation",
    "Translator",
    "train_translator",
    "translator_file",
]

VERSION = 2
"""Of the network and its training; part of the key of a kept file."""

UNSHUFFLE = 4
"""Pixels of a side that become channels before the UNet: it works on 32 x 32 places of 128 px."""

WARM_UP_STEPS = 50
"""Steps until the full learning rate."""

FLOOR = 0.05
"""Part of the learning rate that is left at the end, as in the flows' schedule."""

CRITIC_LR = 5e-4
"""A third of the network's: a critic that learns faster than it leaves it no gradient."""


@dataclass(frozen=True)
class Translation:
    """One task: which image streams of a region are given and which one is wanted."""

    region: str
    given: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class RegressionSettings:
    """How a translator is trained.

    Attributes:
        tasks: it learns all of them, in turns.
        seconds: time of training: CPU time summed over ``threads`` threads, or on a GPU that of the
            wall.
        threads: of torch.
        adversarial: with a critic (pix2pix) or without.
        steps: a number of steps instead of the seconds, if not 0.
        l1: weight of the L1 term beside the critic's (100 in Isola et al. 2017).
        batch, lr: of training; AdamW and Muon (`medm2g_core.training.optimizer`).
        channels: of the UNet's levels.
        seed: of weights and batches.
    """

    tasks: tuple[Translation, ...]
    seconds: float
    threads: int = 1
    adversarial: bool = False
    steps: int = 0
    l1: float = 100.0
    batch: int = 32
    lr: float = 1.5e-3
    channels: tuple[int, ...] = (32, 64, 96, 128)
    seed: int = 0


class Translator(nn.Module):
    """Given images to the wanted one: pixel unshuffle, diffusers' UNet, pixel shuffle.

    Every image stream has its own input slot, with a plane that says whether it is there; the
    wanted stream is the UNet's class label.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        slots = len(IMAGE_STREAMS)
        self.info: dict[str, Any] = {}
        self.unet = UNet2DModel(
            in_channels=slots * (UNSHUFFLE**2 + 1),
            out_channels=UNSHUFFLE**2,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            block_out_channels=channels,
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
            add_attention=False,
            num_class_embeds=slots,
        )

    def forward(self, given: Mapping[str, torch.Tensor], target: str) -> torch.Tensor:
        """Images (B, 1, H, W) in -1..1 of the given streams to the target's (B, 1, H, W), not
        clipped.

        Args:
            given: at least one stream; H and W multiples of 32 with four levels of channels.
        """
        like = next(iter(given.values()))
        b, _, h, w = like.shape
        planes = []
        for name in IMAGE_STREAMS:
            there = name in given
            x = given[name] if there else torch.zeros_like(like)
            planes.append(F.pixel_unshuffle(x, UNSHUFFLE))  # (B, 16, H/4, W/4)
            planes.append(x.new_full((b, 1, h // UNSHUFFLE, w // UNSHUFFLE), float(there)))
        label = torch.full((b,), IMAGE_STREAMS.index(target), device=like.device)
        out = self.unet(
            torch.cat(planes, 1), torch.zeros(b, device=like.device), class_labels=label
        ).sample
        return F.pixel_shuffle(out, UNSHUFFLE)  # (B, 1, H, W)

    @torch.no_grad()
    def translate(
        self, given: Mapping[str, torch.Tensor], target: str, batch: int = 32
    ) -> torch.Tensor:
        """`forward` for any number of studies, on the CPU and clipped to -1..1."""
        n, device = len(next(iter(given.values()))), next(self.parameters()).device
        parts = [
            self({k: x[i : i + batch].to(device) for k, x in given.items()}, target).cpu()
            for i in range(0, n, batch)
        ]
        return torch.cat(parts).clamp(-1, 1)


class Patches(nn.Module):
    """pix2pix's critic: is each patch of ``target``, given the inputs, real?

    Three strided 4 x 4 convolutions and one more see about 46 px of a 128 px picture, the share of
    the picture that the original's 70 px are of 256 (Isola et al. 2017, section 3.2.2, scaled).
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        slots = len(IMAGE_STREAMS)
        sizes = [2 * slots + 1, width, 2 * width, 4 * width]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            layers += [
                nn.Conv2d(a, b, 4, 2, 1),
                *([nn.GroupNorm(8, b)] if i else []),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(sizes[-1], 1, 4, 1, 1))

    def forward(
        self, given: Mapping[str, torch.Tensor], image: torch.Tensor, target: str
    ) -> torch.Tensor:
        """Given images and the one in question, (B, 1, H, W) in -1..1, to a score for each patch
        (B, 1, h, w): near 1 for real, near 0 for made."""
        planes = [given.get(n, torch.zeros_like(image)) for n in IMAGE_STREAMS]
        wanted = [torch.full_like(image, float(n == target)) for n in IMAGE_STREAMS]
        return self.layers(torch.cat([*planes, *wanted, image], 1))  # (B, 1, H/8 - 1, W/8 - 1)


def translator_file(
    settings: RegressionSettings,
    corpora: Mapping[str, Corpus],
    cache: Path | None = None,
    device: str = "cpu",
) -> CacheFile:
    """Where a trained translator is kept: another file for other settings, studies or devices.

    Args:
        cache: folder; by default ``baselines`` in the user's cache.
    """
    key = digest(
        version=VERSION,
        settings=asdict(settings),
        studies={r: c.fingerprint() for r, c in corpora.items()},
        device=device,
    )
    kind = "pix2pix" if settings.adversarial else "regression"
    return CacheFile((cache or cache_dir() / "baselines") / f"{kind}-{key}.safetensors", key)


def train_translator(
    settings: RegressionSettings,
    corpora: Mapping[str, Corpus],
    *,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Translator:
    """A trained translator, from the cache if it was trained before with the same settings and
    studies.

    A training that was stopped by Ctrl-C goes on where it was when it is asked for again.

    Args:
        corpora: region -> studies of the train split.
        cache: see `translator_file`. A damaged file is said and trained again.
        device: that it is trained on, and stays on.

    Returns:
        The network in evaluation mode; ``info`` has its tasks, seconds, steps, precision, threads,
        parameters, studies and the mean L1 of its last steps.

    Raises:
        ValueError: no task, or a task of a region that ``corpora`` lacks.
        StageInterrupted: stopped by Ctrl-C; the same call goes on.
    """
    if not settings.tasks or any(t.region not in corpora for t in settings.tasks):
        raise ValueError(
            f"tasks {settings.tasks} need studies of their regions; there are {sorted(corpora)}"
        )
    device = torch.device(device)
    file = translator_file(settings, corpora, cache, device.type)
    state = CacheFile(file.path.with_suffix(".state.safetensors"), file.key)
    with seeded(settings.seed, device, settings.threads):
        net = Translator(settings.channels).to(device)
        critic = Patches().to(device) if settings.adversarial else None
        kept = file.load_tensors()
        if kept is None:
            trained = _train(net, critic, settings, corpora, state, progress)
            net.info = {
                "tasks": [asdict(t) for t in settings.tasks],
                **trained.facts(device),
                "threads": settings.threads,
                "l1": round(trained.recent, 4),
                "parameters": sum(p.numel() for p in net.parameters()),
                "training studies": {r: len(c) for r, c in corpora.items()},
            }
            file.save_tensors(net.state_dict(), net.info)
            state.delete()
        else:
            tensors, net.info = kept
            net.load_state_dict(tensors)
    return net.eval()


def _train(
    net: Translator,
    critic: Patches | None,
    settings: RegressionSettings,
    corpora: Mapping[str, Corpus],
    state: CacheFile,
    progress: bool,
) -> Fitted:
    device = next(net.parameters()).device
    own = StageConfig(steps=1, lr=settings.lr, optimizer="muon")
    optimizer = Optimizer(dict(net.named_parameters()), net, own)

    def loss(batch: _Batch) -> Outcome:
        task, index = batch
        images = corpora[task.region].images
        given = {n: images[n][index].to(device).float() for n in task.given}  # (B, 1, H, W) each
        truth = images[task.target][index].to(device).float()  # (B, 1, H, W)
        out = net(given, task.target)  # (B, 1, H, W)
        l1 = (out - truth).abs().mean()
        if critic is None:
            return Outcome(l1, l1)
        doubt = (critic(given, out, task.target) - 1).square().mean()  # (B, 1, h, w) to a scalar
        return Outcome(settings.l1 * l1 + doubt, l1, (task, given, truth, out.detach()))

    def critic_loss(judged: _Judged) -> torch.Tensor:
        """Least squares (Mao et al. 2017): 1 for the true image, 0 for the network's."""
        task, given, truth, out = judged
        assert critic is not None
        real = (critic(given, truth, task.target) - 1).square().mean()
        made = critic(given, out, task.target).square().mean()
        return 0.5 * (real + made)

    def schedule(step: int, part: float) -> None:
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        optimizer.set_lr(settings.lr * warm * cosine(part, FLOOR))

    opponent = None
    if critic is not None:
        other = Optimizer(
            dict(critic.named_parameters()), critic, StageConfig(steps=1, lr=CRITIC_LR)
        )
        opponent = Critic(critic, other, critic_loss)
    return fit(
        net.train(),
        loss,
        _batches(settings, {r: len(c) for r, c in corpora.items()}),
        optimizer,
        # A number of steps stands instead of the time, so that a test does not depend on the clock.
        budget=Budget(steps=settings.steps) if settings.steps else Budget(settings.seconds),
        schedule=schedule,
        critic=opponent,
        precision="bf16" if bf16_pays(device) else "fp32",
        state=state,
        title="baseline " + ("pix2pix" if critic else "regression"),
        progress=progress,
    )


_Batch = tuple[Translation, torch.Tensor]
"""A task, and the studies (B,) that it is learnt from."""

_Judged = tuple[Translation, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]
"""A task, its given images, the true image and the network's."""


def _batches(settings: RegressionSettings, studies: Mapping[str, int]) -> Iterator[_Batch]:
    """Random tasks without end, each with random studies of its region, from the settings' seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        task = settings.tasks[int(torch.randint(len(settings.tasks), (1,), generator=generator))]
        yield task, torch.randint(studies[task.region], (settings.batch,), generator=generator)
