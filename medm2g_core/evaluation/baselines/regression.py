"""Image-to-image baseline: a UNet that regresses the wanted picture's pixels, trained for a given CPU time.

It answers with (nearly) the conditional median of each pixel, which no single draw of a generative model can match in
PSNR; a mean of draws can. One network serves a *task set*: every given stream has its own channels, a mask says which
are there, and the wanted stream is a class label. The loop below also trains the adversarial variant
(`medm2g_core.evaluation.baselines.pix2pix`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.wheels import cache_dir
from medm2g_core.evaluation.bench import BATCH
from medm2g_core.model import atomic_write
from medm2g_core.profiles import StageConfig
from medm2g_core.streams import IMAGE_STREAMS, STREAMS, StreamError, stream
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.loop import bf16_pays
from medm2g_core.training.optimizer import Optimizer

__all__ = [
    "TASKS", "TASK_SETS", "Batch", "ImageTask", "Learner", "RegressionSettings", "RegressionUNet", "Regressor",
    "baseline_file", "channels_near", "fit", "image_corpus", "train_regression", "trained",
]  # fmt: skip

VERSION = 1
"""Of the network and its training; part of the name of a kept file."""

SAVE_SECONDS = 60.0
"""CPU seconds between two saves of a training under way."""

_WARM = 0.03  # part of the training until the full learning rate


# ------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class ImageTask:
    """Some image streams of a study given, another one wanted.

    Attributes:
        region: ``"chest"`` or ``"brain"``.  given: image streams.  target: image stream.
    """

    region: str
    given: tuple[str, ...]
    target: str

    def __post_init__(self) -> None:
        wrong = [n for n in (*self.given, self.target) if not stream(n).is_image]
        if wrong or not self.given or self.target in self.given:
            raise StreamError(
                f"{self.region}: {', '.join(self.given) or 'nothing'} to {self.target}; needed one or more image "
                "streams given, and another one wanted"
            )

    @property
    def title(self) -> str:
        """For people, as in the other tables."""
        return f"{' + '.join(STREAMS[g].title for g in self.given)} → {STREAMS[self.target].title} ({self.region})"


TASK_SETS: Mapping[str, tuple[ImageTask, ...]] = MappingProxyType(
    {
        "brain MR": (
            ImageTask("brain", ("mri_t1", "mri_t2"), "mri_flair"),
            ImageTask("brain", ("mri_t1", "mri_flair"), "mri_t2"),
            ImageTask("brain", ("mri_t2", "mri_flair"), "mri_t1"),
            ImageTask("brain", ("mri_t1", "mri_t2"), "mri_pd"),
        ),
        "CT to MR": (ImageTask("chest", ("ct",), "mri_t1"), ImageTask("chest", ("ct",), "mri_t2")),
        "MR to CT": (ImageTask("chest", ("mri_t1", "mri_t2"), "ct"),),
        "CT to X-ray": (ImageTask("chest", ("ct",), "xray"),),
        "X-ray to CT": (ImageTask("chest", ("xray",), "ct"),),
    }
)
"""The image-to-image tasks that are scored; each set has one network of each trained baseline."""

TASKS: tuple[ImageTask, ...] = tuple(t for tasks in TASK_SETS.values() for t in tasks)


def image_corpus(cohort: VirtualCohort) -> Corpus:
    """All image streams of a cohort of one region, with its reports."""
    if cohort.region == "both":
        raise StreamError("a cohort of both regions has no stream that all of its studies share; make one of each")
    names = [n for n in IMAGE_STREAMS if len(cohort.indices_with(n)) == len(cohort)]
    return Corpus(cohort.region, {n: cohort.stack(n).half() for n in names}, [[t] for t in cohort.texts])


# ----------------------------------------------------------------------------------------------------- network


@dataclass(frozen=True, kw_only=True)
class RegressionSettings:
    """How a pixel baseline is built and trained.

    Attributes:
        channels, layers: of diffusers' `UNet2DModel`, a width a level.  unshuffle: pixels of a side that the stem turns
            into channels.  groups: of its group norms.
        batch, lr, optimizer, weight_decay: of training; the rate warms up and falls along a cosine to zero.
        loss: ``"l1"`` (as pix2pix) or ``"l2"``.
        steps: stop after so many steps even if time is left; 0 for no limit.
        precision: ``"auto"`` times bf16 autocast and takes what is faster.
    """

    channels: tuple[int, ...] = (64, 128, 128)
    layers: int = 1
    unshuffle: int = 4
    groups: int = 8
    batch: int = 16
    lr: float = 2e-3
    optimizer: Literal["adamw", "muon"] = "muon"
    weight_decay: float = 0.01
    loss: Literal["l1", "l2"] = "l1"
    steps: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"


@dataclass
class Batch:
    """Training pairs: given (B, S, H, W) with a slot a stream, present (B, S), label (B,), target (B, 1, H, W)."""

    given: torch.Tensor
    present: torch.Tensor
    label: torch.Tensor
    target: torch.Tensor


class RegressionUNet(nn.Module):
    """Given streams in, one wanted stream out.

    Args:
        tasks: what it can do; their given streams become its slots, their wanted ones its labels.
        settings: sizes.

    Attributes:
        info: how it was trained: steps, CPU seconds, last loss.
    """

    def __init__(self, tasks: Sequence[ImageTask], settings: RegressionSettings | None = None) -> None:
        super().__init__()
        s = settings or RegressionSettings()
        self.tasks, self.settings = tuple(tasks), s
        self.slots = tuple(n for n in IMAGE_STREAMS if any(n in t.given for t in tasks))
        self.labels = tuple(dict.fromkeys((t.region, t.target) for t in tasks))
        self.info: dict[str, Any] = {}
        self.unet = UNet2DModel(
            in_channels=len(self.slots) * (s.unshuffle**2 + 1),
            out_channels=s.unshuffle**2,
            down_block_types=("DownBlock2D",) * len(s.channels),
            up_block_types=("UpBlock2D",) * len(s.channels),
            block_out_channels=s.channels,
            layers_per_block=s.layers,
            norm_num_groups=s.groups,
            num_class_embeds=len(self.labels),
        )

    def forward(self, given: torch.Tensor, present: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        """Predict the wanted stream, unclipped.

        Args:
            given: (B, S, H, W) in -1..1, a slot a stream of `slots`; what a slot holds whose stream is absent does not
                matter.  present: (B, S) 1 or 0.  label: (B,) index into `labels`.

        Returns:
            (B, 1, H, W).
        """
        k = self.settings.unshuffle
        x = given.masked_fill(present[..., None, None] == 0, 0.0)
        x = F.pixel_unshuffle(x, k)                                            # (B, S k², H/k, W/k)
        mask = present[..., None, None].expand(-1, -1, *x.shape[-2:])          # (B, S, H/k, W/k)
        # There is no noise level: the embedding of time is a constant beside the label's.
        out = self.unet(torch.cat([x, mask.to(x)], 1), 0, class_labels=label).sample
        return F.pixel_shuffle(out, k)                                         # (B, 1, H, W)

    def pack(
        self, task: ImageTask, images: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three arguments of `forward` from stream -> (B, 1, H, W).

        Raises:
            StreamError: a task that this network was not made for, a stream that is missing, or a wrong size.
        """
        if task not in self.tasks:
            raise StreamError(f"this network does not do {task.title}; it does: {'; '.join(t.title for t in self.tasks)}")
        lacking = [g for g in task.given if g not in images]
        if lacking:
            raise StreamError(f"{task.title}: {', '.join(lacking)} is missing; got {', '.join(images) or 'nothing'}")
        first = images[task.given[0]]
        multiple = self.settings.unshuffle * 2 ** (len(self.settings.channels) - 1)
        if first.ndim != 4 or first.shape[1] != 1 or first.shape[-1] % multiple or first.shape[-2] % multiple:
            raise StreamError(f"{task.title}: got {tuple(first.shape)}; needed (B, 1, H, W), sides of {multiple} k")
        blank = torch.zeros_like(first)
        given = torch.cat([images[n] if n in task.given else blank for n in self.slots], 1)
        present = torch.tensor([float(n in task.given) for n in self.slots]).expand(len(first), -1)
        label = torch.full((len(first),), self.labels.index((task.region, task.target)))
        return given, present, label

    @torch.no_grad()
    def translate(self, task: ImageTask, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Stream -> images (N, 1, H, W) in -1..1 to the wanted stream (N, 1, H, W), clipped; errors as `pack`."""
        given, present, label = self.pack(task, {n: x.float() for n, x in images.items()})
        self.eval()
        parts = zip(given.split(BATCH), present.split(BATCH), label.split(BATCH), strict=True)
        return torch.cat([self(*p).float() for p in parts]).clamp(-1, 1)


def channels_near(parameters: int, settings: RegressionSettings | None = None) -> tuple[int, ...]:
    """Widths (w, 2w, 2w) whose network has about so many parameters, w a multiple of the norm's groups.

    For a baseline as large as the flow that it faces:
    ``channels_near(sum(p.numel() for p in model.flows["mri"].parameters()))``.
    """
    s = settings or RegressionSettings()
    best, off = s.channels, float("inf")
    for w in range(s.groups, 64 * s.groups, s.groups):
        widths = (w, 2 * w, 2 * w)
        with torch.device("meta"):
            net = RegressionUNet(TASK_SETS["brain MR"], RegressionSettings(**asdict(s) | {"channels": widths}))
        miss = sum(p.numel() for p in net.parameters()) - parameters
        if abs(miss) < off:
            best, off = widths, abs(miss)
        if miss > 0:
            break
    return best


# ---------------------------------------------------------------------------------------------------- training


class Stepper(Protocol):
    """What the loop needs of an optimiser; `medm2g_core.training.optimizer.Optimizer` is one."""

    def set_lr(self, lr: float) -> None: ...
    def step(self) -> None: ...
    def zero_grad(self) -> None: ...
    def state_tensors(self) -> dict[str, torch.Tensor]: ...
    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None: ...


class Learner:
    """Networks under training, each with its optimiser; a subclass says what one step is.

    Attributes:
        net: the translator, which is what is kept.
        parts: name -> (network, optimiser, its full learning rate).
    """

    def __init__(self, net: RegressionUNet) -> None:
        s = net.settings
        config = StageConfig(
            steps=1, batch=s.batch, lr=s.lr, weight_decay=s.weight_decay, optimizer=s.optimizer
        )
        own: Stepper = Optimizer(dict(net.named_parameters()), net, config)
        self.net = net
        self.parts: dict[str, tuple[nn.Module, Stepper, float]] = {"net": (net, own, s.lr)}

    def step(self, batch: Batch, rate: float, fast: bool) -> dict[str, float]:
        """Learn from a batch.

        Args:
            rate: fraction of the full learning rate.  fast: use bf16 autocast.

        Returns:
            the losses, by name.
        """
        raise NotImplementedError

    def error(self, drawn: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The pixel loss of the settings."""
        pixel = F.l1_loss if self.net.settings.loss == "l1" else F.mse_loss
        return pixel(drawn.float(), target)

    def advance(self, name: str, loss: torch.Tensor, rate: float) -> None:
        """One step of one part's optimiser down a loss."""
        net, optimizer, full = self.parts[name]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.set_lr(full * rate)
        optimizer.step()

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments of all parts."""
        out = {}
        for name, (net, optimizer, _) in self.parts.items():
            tensors = net.state_dict() | {f"optimizer/{k}": v for k, v in optimizer.state_tensors().items()}
            out |= {f"{name}/{k}": v.detach() for k, v in tensors.items()}
        return out

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state_tensors`; ``KeyError`` or ``RuntimeError`` if they do not fit."""
        for name, (net, optimizer, _) in self.parts.items():
            own = {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}
            net.load_state_dict({k: own[k] for k in net.state_dict()})
            moments = {k.removeprefix("optimizer/"): v for k, v in own.items() if k.startswith("optimizer/")}
            optimizer.load_state_tensors(moments)


class Regressor(Learner):
    """Plain regression: the pixel loss and nothing else."""

    def step(self, batch: Batch, rate: float, fast: bool) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = self.error(self.net(batch.given, batch.present, batch.label), batch.target)
        self.advance("net", loss, rate)
        return {self.net.settings.loss: loss.item()}


def draw_batch(net: RegressionUNet, corpora: Mapping[str, Corpus], size: int, generator: torch.Generator) -> Batch:
    """Random pairs of the network's tasks; every task is as likely as the others."""
    chosen = torch.randint(len(net.tasks), (size,), generator=generator)
    parts: list[tuple[torch.Tensor, ...]] = []
    for k, task in enumerate(net.tasks):
        images = corpora[task.region].images
        index = torch.randint(len(corpora[task.region]), (int((chosen == k).sum()),), generator=generator)
        if len(index):
            packed = net.pack(task, {g: images[g][index].float() for g in task.given})
            parts.append((*packed, images[task.target][index].float()))
    return Batch(*(torch.cat(p) for p in zip(*parts, strict=True)))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit(
    learner: Learner,
    corpora: Mapping[str, Corpus],
    *,
    seconds: float,
    seed: int = 0,
    threads: int = 1,
    state: Path | None = None,
    title: str = "baseline",
    progress: bool = True,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train for so many CPU seconds (summed over threads), or for ``settings.steps`` if they come first.

    Args:
        corpora: region -> training studies.
        state: where a training under way is kept, every `SAVE_SECONDS`; one that is found there goes on, one that is
            damaged or of other networks starts again. Deleted at the end.
        on_step: called after each step with its number; may raise to stop.

    Returns:
        steps, CPU seconds, threads, precision, running means of the losses, and on what it trained.
    """
    net, s = learner.net, learner.net.settings
    done, spent, fast, recent = 0, 0.0, s.precision == "bf16", {}
    found = _load_state(state, learner)
    with _threads(threads):
        if found is not None:
            done, spent, fast, recent = found["steps"], found["spent"], found["fast"], found["recent"]
        elif s.precision == "auto":
            fast = bf16_pays(torch.device("cpu"))
        begin, before, saved = time.process_time(), spent, spent
        for part, _, _ in learner.parts.values():
            part.train()
        with tqdm(total=round(seconds), initial=round(spent), desc=title, unit="s", disable=not progress) as bar:
            while spent < seconds and not (s.steps and done >= s.steps):
                gone = max(spent / seconds, done / s.steps if s.steps else 0.0)
                rate = min(1.0, (gone + 0.1 * _WARM) / _WARM) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * gone)).item())
                generator = torch.Generator().manual_seed(_step_seed(seed, done))
                losses = learner.step(draw_batch(net, corpora, s.batch, generator), rate, fast)
                keep = min(0.98, done / (done + 1))
                recent = {k: keep * recent.get(k, v) + (1 - keep) * v for k, v in losses.items()}
                done += 1
                spent = before + time.process_time() - begin
                bar.update(min(bar.total, int(spent)) - bar.n)
                bar.set_postfix(step=done, **{k: f"{v:.4f}" for k, v in recent.items()}, refresh=False)
                if state is not None and spent - saved >= SAVE_SECONDS:
                    plain = {"steps": done, "spent": spent, "fast": fast, "recent": recent}
                    _save(state, learner.state_tensors(), {"state": json.dumps(plain)})
                    saved = spent
                if on_step is not None:
                    on_step(done)
    for part, _, _ in learner.parts.values():
        part.eval()
    if state is not None:
        state.unlink(missing_ok=True)
    return {
        "steps": done, "CPU seconds": round(spent, 1), "threads": threads, "precision": "bf16" if fast else "fp32",
        **{k: round(v, 5) for k, v in recent.items()}, "parameters": sum(p.numel() for p in net.parameters()),
        "training studies": {r: len(c) for r, c in corpora.items()}, "tasks": [t.title for t in net.tasks],
    }  # fmt: skip


def _step_seed(seed: int, step: int) -> int:
    """A seed of its own for every step, hashed because torch's CPU generator keeps 32 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:4], "big")


# ----------------------------------------------------------------------------------------------------- on disk


def _save(file: Path, tensors: Mapping[str, torch.Tensor], meta: dict[str, str]) -> None:
    own = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    atomic_write(file, lambda p: save_file(own, p, meta))


def _load(file: Path | None) -> tuple[dict[str, torch.Tensor], dict[str, str]] | None:
    """Tensors and metadata; ``None`` where there is no file, or a damaged one."""
    if file is None or not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as f:
            meta = f.metadata() or {}
        return load_file(file), meta
    except (OSError, SafetensorError):
        return None


def _load_state(file: Path | None, learner: Learner) -> dict[str, Any] | None:
    found = _load(file)
    if found is None:
        return None
    fresh = {k: v.clone() for k, v in learner.state_tensors().items()}
    try:
        learner.load_state_tensors(found[0])
        return json.loads(found[1]["state"])
    except (KeyError, RuntimeError, ValueError):  # of another program: back to where it was
        learner.load_state_tensors(fresh)
        return None


def baseline_file(
    name: str,
    tasks: Sequence[ImageTask],
    corpora: Mapping[str, Corpus],
    depends: Any,
    folder: Path | None = None,
) -> Path:
    """Where the weights of a trained baseline are kept: another file for other studies, tasks or settings.

    Args:
        depends: plain values (settings, seconds, seed).
        folder: by default ``baselines`` in the user's cache.
    """
    studies = {r: corpora[r].fingerprint() for r in sorted({t.region for t in tasks})}
    plain = json.dumps([VERSION, [asdict(t) for t in tasks], studies, depends], sort_keys=True)
    digest = hashlib.sha256(plain.encode()).hexdigest()[:12]
    targets = "-".join(dict.fromkeys(t.target for t in tasks))
    return (folder or cache_dir() / "baselines") / f"{name}_{tasks[0].region}_{targets}_{digest}.safetensors"


def trained(
    make: Callable[[RegressionUNet], Learner],
    name: str,
    tasks: Sequence[ImageTask],
    corpora: Sequence[Corpus],
    settings: RegressionSettings,
    *,
    seconds: float,
    seed: int,
    threads: int,
    folder: Path | None,
    keep: bool,
    progress: bool,
    depends: Any = None,
) -> RegressionUNet:
    """The kept network of a baseline, or a newly trained one; see `train_regression`.

    Args:
        make: the network's learner.  name: of the baseline; begins its file.  depends: further plain settings.
    """
    known = {c.region: c for c in corpora}
    lacking = {(t.region, n) for t in tasks for n in (*t.given, t.target)
               if t.region not in known or n not in known[t.region].images}  # fmt: skip
    if lacking:
        raise StreamError(f"the training studies lack {', '.join(f'{n} of the {r}' for r, n in sorted(lacking))}")
    file = baseline_file(name, tasks, known, [asdict(settings), seconds, seed, depends], folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RegressionUNet(tasks, settings)
        learner = make(net)
    found = _load(file) if keep else None
    if found is not None:
        own = net.state_dict()
        tensors, meta = found
        fits = own.keys() == tensors.keys() and all(own[k].shape == v.shape for k, v in tensors.items())
        if fits and "info" in meta:
            net.load_state_dict(tensors)
            net.info = json.loads(meta["info"])
            return net.eval()
    used = {r: c for r, c in known.items() if any(t.region == r for t in tasks)}
    net.info = fit(
        learner, used, seconds=seconds, seed=seed, threads=threads, title=f"{name}: {tasks[0].title}",
        state=file.with_suffix(".state") if keep else None, progress=progress,
    )  # fmt: skip
    if keep:
        _save(file, net.state_dict(), {"info": json.dumps(net.info)})
    return net.eval()


def train_regression(
    tasks: Sequence[ImageTask],
    corpora: Sequence[Corpus],
    *,
    seconds: float,
    seed: int = 0,
    threads: int = 1,
    settings: RegressionSettings | None = None,
    folder: Path | None = None,
    keep: bool = True,
    progress: bool = True,
) -> RegressionUNet:
    """A pixel-regression UNet trained on the train split for ``seconds`` of CPU time, or the kept one.

    Args:
        tasks: one of `TASK_SETS`.
        corpora: training studies, one corpus a region (`image_corpus`).
        seconds: CPU time, summed over threads; the time of the flow that it faces.
        threads: of torch.
        settings: sizes and optimiser; `channels_near` finds the widths of a given number of parameters.
        folder: of the kept weights, by default ``baselines`` in the user's cache.  keep: read and write them. An
            interrupted training goes on there; a damaged file is trained again.

    Returns:
        The network on the CPU, in evaluation mode. How many steps fit into the time depends on the machine: ``info``
        says how many there were.

    Raises:
        StreamError: the corpora lack a region or a stream.
    """
    return trained(
        Regressor, "regression", tasks, corpora, settings or RegressionSettings(), seconds=seconds, seed=seed,
        threads=threads, folder=folder, keep=keep, progress=progress,
    )  # fmt: skip
