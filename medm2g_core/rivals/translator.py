"""Image translation without diffusion: a pixel-regression UNet, and the same network with a critic
(pix2pix).

One network learns all translations of one target modality at once, as the flow that it is compared
with does, with the same optimiser, for a given time.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from medm2g_core.data.wheels import cache_dir
from medm2g_core.profiles import StageConfig
from medm2g_core.rivals.clock import stopwatch, unit
from medm2g_core.storage import atomic_write
from medm2g_core.streams import IMAGE_STREAMS
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.loop import bf16_pays
from medm2g_core.training.optimizer import Optimizer

__all__ = ["Patches", "RegressionSettings", "Translation", "Translator", "train_translator"]

UNSHUFFLE = 4


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
        steps: a number of steps instead, if not 0.
        adversarial: with a critic (pix2pix) or without.
        l1: weight of the L1 term beside the critic's (100 in Isola et al. 2017).
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
        clipped."""
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
    """pix2pix's critic: is each patch of ``target``, given the inputs, real? (B, 1, h, w) scores.

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
        planes = [given.get(n, torch.zeros_like(image)) for n in IMAGE_STREAMS]
        wanted = [torch.full_like(image, float(n == target)) for n in IMAGE_STREAMS]
        return self.layers(torch.cat([*planes, *wanted, image], 1))


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _file(
    settings: RegressionSettings, corpora: Mapping[str, Corpus], cache: Path | None, device: str
) -> Path:
    facts = [asdict(settings), {r: c.fingerprint() for r, c in sorted(corpora.items())}, 1]
    text = json.dumps(facts if device == "cpu" else [*facts, device], sort_keys=True)
    name = "pix2pix" if settings.adversarial else "regression"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return (cache or cache_dir() / "baselines") / f"{name}-{digest}.safetensors"


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

    Args:
        corpora: region -> studies of the train split.
        cache: folder of trained baselines; by default in the user's cache.
        device: that it is trained on, and stays on.

    Returns:
        the network in evaluation mode; ``info`` has its seconds, steps, parameters and the last L1.

    Raises:
        ValueError: no task, or a task of a region that ``corpora`` lacks.
    """
    if not settings.tasks or any(t.region not in corpora for t in settings.tasks):
        raise ValueError(
            f"tasks {settings.tasks} need studies of their regions; there are {sorted(corpora)}"
        )
    device = torch.device(device)
    file = _file(settings, corpora, cache, device.type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = Translator(settings.channels)
        critic = Patches()
    if file.is_file():
        try:
            net.load_state_dict(load_file(file))
            net.info = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
            return net.to(device).eval()
        except (SafetensorError, RuntimeError, OSError, json.JSONDecodeError):
            tqdm.write(f"{file.name} is damaged and is trained again")
    net, critic = net.to(device), critic.to(device)
    with _threads(settings.threads):
        info = _fit(
            net, critic if settings.adversarial else None, settings, corpora, device, progress
        )
    net.info = info
    tensors = {k: v.cpu().contiguous().clone() for k, v in net.state_dict().items()}
    atomic_write(file, lambda p: save_file(tensors, p))
    atomic_write(
        file.with_suffix(".json"), lambda p: p.write_text(json.dumps(info), encoding="utf-8")
    )
    return net.eval()


def _fit(
    net: Translator,
    critic: Patches | None,
    settings: RegressionSettings,
    corpora: Mapping[str, Corpus],
    device: torch.device,
    progress: bool,
) -> dict[str, Any]:
    config = StageConfig(steps=1, lr=settings.lr, optimizer="muon")
    mover = Optimizer(dict(net.named_parameters()), net, config)
    judge = (
        Optimizer(dict(critic.named_parameters()), critic, StageConfig(steps=1, lr=5e-4))
        if critic
        else None
    )
    half = bf16_pays(device)
    generator = torch.Generator().manual_seed(settings.seed)
    spent, steps, last = stopwatch(device), 0, 0.0
    title = "pix2pix" if critic else "regression"
    with tqdm(
        total=round(settings.seconds), desc=f"baseline {title}", unit="s", disable=not progress
    ) as bar:
        while True:
            passed = steps / settings.steps if settings.steps else spent() / settings.seconds
            if passed >= 1 and steps:
                break
            decay = 0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, passed)))
            mover.set_lr(settings.lr * min(1.0, (steps + 1) / 50) * decay)
            task = settings.tasks[
                int(torch.randint(len(settings.tasks), (1,), generator=generator))
            ]
            corpus = corpora[task.region]
            index = torch.randint(len(corpus), (settings.batch,), generator=generator)
            given = {n: corpus.images[n][index].to(device).float() for n in task.given}
            truth = corpus.images[task.target][index].to(device).float()
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                out = net(given, task.target)
                error = (out - truth).abs().mean()
                loss = (
                    error
                    if critic is None
                    else settings.l1 * error
                    + ((critic(given, out, task.target) - 1).square().mean())
                )
            loss.backward()
            mover.step()
            mover.zero_grad()
            if critic is not None and judge is not None:
                judge.zero_grad()  # the generator's step left gradients
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    real = (critic(given, truth, task.target) - 1).square().mean()
                    fake = critic(given, out.detach(), task.target).square().mean()
                    doubt = 0.5 * (real + fake)
                doubt.backward()
                judge.step()
                judge.zero_grad()
            steps, last = steps + 1, error.item()
            bar.update(min(round(passed * bar.total), bar.total) - bar.n)
    return {
        "tasks": [asdict(t) for t in settings.tasks],
        unit(device): round(spent(), 1),
        "threads": settings.threads,
        "steps": steps,
        "last l1": round(last, 4),
        "parameters": sum(p.numel() for p in net.parameters()),
        "training studies": {r: len(c) for r, c in corpora.items()},
    }
