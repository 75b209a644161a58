"""Judges: small finding classifiers, one for each image stream, that never saw a generated image.

Whether a generated X-ray shows the left effusion of its report is decided by a network that shares
neither weights nor architecture with the model under test: a plain convolutional classifier,
trained on the *real*
    images of the train
split. For every finding it answers: is it there, is it on the patient's left, on the right, in this
lobe? Its pooled activations serve as the feature space of the Fréchet and kernel distances
(`medm2g_core.evaluation.fidelity`), in the place of an Inception network: those distances are
comparable within this repository only.

    python -m medm2g_core.evaluation.judges            # trains what is missing in
    checkpoints/judges
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from tqdm.auto import tqdm

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.findings import FINDINGS, findings_of
from medm2g_core.model import CheckpointError
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS, Finding, StreamError, check_image
from medm2g_core.training.corpus import Corpus

__all__ = [
    "JUDGED",
    "SHIPPED_JUDGES",
    "Judge",
    "JudgeSettings",
    "Judges",
    "Label",
    "auc",
    "best_threshold",
    "label_matrix",
    "labels_of",
    "load_judges",
    "main",
    "train_judge",
]

SHIPPED_JUDGES = Path(__file__).resolve().parents[2] / "checkpoints" / "judges"
"""The judges in this repository (present in a clone; not part of an installed wheel)."""

JUDGED: tuple[tuple[str, str], ...] = (
    *(("chest", s) for s in ("xray", "ct", "mri_t1", "mri_t2")),
    *(("brain", s) for s in ("mri_flair", "mri_t1", "mri_t2", "mri_pd")),
)
"""(region, stream) of every judge: a network of its own for each contrast."""

FORMAT = 1


@dataclass(frozen=True)
class Label:
    """One yes-or-no question.

    Attributes:
        finding: name.  side: ``"left"``, ``"right"`` of the patient, or ``""`` for any.  location:
            lobe, or ``""``.
    """

    finding: str
    side: str = ""
    location: str = ""

    def holds(self, findings: Sequence[Finding]) -> bool:
        """Whether the answer is yes; a finding on both sides is on the left and on the right."""
        return any(
            f.name == self.finding
            and (not self.side or f.side in (self.side, "both"))
            and (not self.location or f.location == self.location)
            for f in findings
        )

    @property
    def text(self) -> str:
        return " ".join(p for p in (self.side, self.finding, self.location) if p)


def labels_of(region: str) -> tuple[Label, ...]:
    """The questions of a region: first the presence of every finding (in the order of
    `findings_of`), then its sides and its locations where it has any."""
    names = findings_of(region)
    sides = [Label(n, side=s) for n in names for s in ("left", "right") if s in FINDINGS[n].sides]
    lobes = [Label(n, location=p) for n in names for p in FINDINGS[n].locations if p]
    return (*(Label(n) for n in names), *sides, *lobes)


def label_matrix(findings: Sequence[Sequence[Finding]], region: str) -> torch.Tensor:
    """Float32 (N, number of `labels_of`): 1 yes, 0 no."""
    return torch.tensor([[float(label.holds(f)) for label in labels_of(region)] for f in findings])


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of scores (N,) for positives (N,): the chance that a positive scores
    above a negative.

    By ranks (Mann and Whitney 1947), ties count half; NaN without a positive or without a negative.
    The same value as torchmetrics' ``binary_auroc``, in a hundredth of its time, for thousands of
    bootstrap draws.
    """
    positive = np.asarray(positive, dtype=bool)
    score = np.asarray(score, dtype=float)
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return float("nan")
    ordered = np.sort(score[~positive])
    below = np.searchsorted(ordered, score[positive], "left")
    not_above = np.searchsorted(ordered, score[positive], "right")
    return float((below + not_above).sum() / 2 / (p * n))


def best_threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """Threshold of the highest balanced accuracy, half way between two scores; 0 without positives
    or negatives."""
    positive = np.asarray(positive, dtype=bool)
    if positive.all() or not positive.any():
        return 0.0
    order = np.argsort(score)
    ranked, hit = np.asarray(score, dtype=float)[order], positive[order]
    sensitivity = 1 - np.concatenate([[0], np.cumsum(hit)]) / hit.sum()
    specificity = np.concatenate([[0], np.cumsum(~hit)]) / (~hit).sum()
    edges = np.concatenate([[ranked[0] - 1], (ranked[1:] + ranked[:-1]) / 2, [ranked[-1] + 1]])
    return float(edges[np.argmax(sensitivity + specificity)])


# ---- the network


class JudgeNet(nn.Module):
    """Images (B, 1, H, W) to logits (B, L) and features (B, `FEATURES`).

    Seven 3x3 convolutions after a pixel unshuffle (cheap on a CPU). Two channels of coordinates
    tell it where left is and where a lobe lies; the maximum keeps a small nodule that an average
    would drown.
    """

    FEATURES = 64

    feature_shift: torch.Tensor
    feature_scale: torch.Tensor
    thresholds: torch.Tensor

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        a, b, c = 16, 32, self.FEATURES
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), *_conv(4, a, 1))
        self.fine = nn.Sequential(*_conv(a + 2, a, 1), *_conv(a, b, 2), *_conv(b, b, 1))
        self.coarse = nn.Sequential(*_conv(b + 2, c, 2), *_conv(c, c, 1))
        self.last = nn.Sequential(*_conv(c + 2, c, 2))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(2 * c, n_labels))
        # Features are standardised, so that no channel rules the distances; fitted on real images
        # of the val split.
        self.register_buffer("feature_shift", torch.zeros(self.FEATURES))
        self.register_buffer("feature_scale", torch.ones(self.FEATURES))
        self.register_buffer("thresholds", torch.zeros(n_labels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its hints lack the argument

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.coarse(_with_place(self.fine(_with_place(self.stem(images)))))
        top = self.last(_with_place(h))
        logits = self.head(torch.cat([top.mean((2, 3)), top.amax((2, 3))], 1))
        return logits, (h.mean((2, 3)) - self.feature_shift) / self.feature_scale


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _with_place(h: torch.Tensor) -> torch.Tensor:
    """Two more channels: row and column, -1..1."""
    rows = torch.linspace(-1, 1, h.shape[2], device=h.device, dtype=h.dtype)[:, None].expand(
        h.shape[2:]
    )
    columns = torch.linspace(-1, 1, h.shape[3], device=h.device, dtype=h.dtype)[None].expand(
        h.shape[2:]
    )
    return torch.cat([h, torch.stack([rows, columns]).expand(len(h), -1, -1, -1)], 1)


# ---- the judge


@dataclass
class Judge:
    """A trained classifier of one stream.

    Attributes:
        region, stream: what it judges.
        net: the network, in evaluation mode.
        info: how it was trained, and its AUCs on held-out real images.
    """

    region: str
    stream: str
    net: JudgeNet
    info: Mapping[str, Any]

    @property
    def labels(self) -> tuple[Label, ...]:
        """The questions, in the order of the columns of `logits`."""
        return labels_of(self.region)

    def column(self, finding: str, side: str = "", location: str = "") -> int:
        """Column of one question."""
        return self.labels.index(Label(finding, side, location))

    @torch.no_grad()
    def read(self, images: torch.Tensor, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 1, H, W) in -1..1 to logits (N, L) and features (N, D), float64."""
        if images.ndim != 4 or not len(images) or images.shape[-1] % 16 or images.shape[-2] % 16:
            raise StreamError(
                f"judge of {self.stream}: got {tuple(images.shape)}; needed (N, 1, H, W), N from 1,"
                " sides of 16 k"
            )
        check_image(images, self.stream)
        device = self.net.thresholds.device
        parts = [
            self.net(x.to(device, torch.float32, memory_format=torch.channels_last))
            for x in images.split(batch)
        ]
        logits, features = (torch.cat(p).double().cpu().numpy() for p in zip(*parts, strict=True))
        return logits, features

    def logits(self, images: torch.Tensor) -> np.ndarray:
        """(N, L); the answer is yes above ``net.thresholds``, which are logits too."""
        return self.read(images)[0]

    def probabilities(self, images: torch.Tensor) -> np.ndarray:
        """(N, L) in 0..1."""
        return 1 / (1 + np.exp(-self.logits(images)))

    def features(self, images: torch.Tensor) -> np.ndarray:
        """(N, 64): mean activations at an eighth of the resolution, standardised on real images.

        Taken before the last layers: those keep the findings and drop how sharp an image is.
        """
        return self.read(images)[1]


Judges = Mapping[tuple[str, str], Judge]
"""(region, stream) -> judge."""


# ---- training


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is trained.

    Attributes:
        steps, batch, lr, weight_decay: AdamW with a one-cycle schedule.
        shift, scale: largest shift (fraction of the side) and zoom of the augmentation.  gamma:
            deviation of the exponent's logarithm.  noise: largest deviation of added noise (the
            range of an image is 2).
            There are no flips: left is left.
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


def shifted_and_turned(
    images: torch.Tensor, settings: JudgeSettings, generator: torch.Generator
) -> torch.Tensor:
    """Shift, zoom, gamma and noise of images (B, 1, H, W) in -1..1, each image by its own draw;
    never a flip."""
    b = len(images)

    def uniform(width: float) -> torch.Tensor:
        return (torch.rand(b, generator=generator) * 2 - 1) * width

    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 + uniform(settings.scale), 1 + uniform(settings.scale)
    theta[:, 0, 2], theta[:, 1, 2] = uniform(2 * settings.shift), uniform(2 * settings.shift)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
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
    net = _fit(images["train"], truth["train"], settings, f"judge of {region} {stream}", progress)
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


def _fit(
    x: torch.Tensor, y: torch.Tensor, settings: JudgeSettings, title: str, progress: bool
) -> JudgeNet:
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        net = JudgeNet(y.shape[1]).train()
        optimizer = torch.optim.AdamW(
            net.parameters(), settings.lr, weight_decay=settings.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.steps, pct_start=0.15
        )
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.empty(0, dtype=torch.long)
        bar = tqdm(range(settings.steps), desc=title, unit="step", disable=not progress)
        for step in bar:
            if len(order) < settings.batch:
                order = torch.cat([order, torch.randperm(len(x), generator=generator)])
            chosen, order = order[: settings.batch], order[settings.batch :]
            batch = shifted_and_turned(x[chosen], settings, generator).to(
                memory_format=torch.channels_last
            )
            loss = functional.binary_cross_entropy_with_logits(net(batch)[0], y[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval()


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
        if 5 <= truth[:, i].sum() <= len(truth) - 5
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


# ---- on disk


def _files(folder: Path, region: str, stream: str) -> tuple[Path, Path]:
    return folder / f"{region}_{stream}.safetensors", folder / f"{region}_{stream}.json"


def save_judge(judge: Judge, folder: Path) -> list[Path]:
    """Write ``<region>_<stream>.safetensors`` (float16) and ``.json`` (AUCs, cohort, settings),
    each atomically."""
    weights, facts = _files(folder, judge.region, judge.stream)
    tensors = {
        k: (v.half() if v.is_floating_point() and v.ndim > 1 else v).detach().cpu().contiguous()
        for k, v in judge.net.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    meta = {
        "format": str(FORMAT),
        "region": judge.region,
        "stream": judge.stream,
        "labels": json.dumps([label.text for label in judge.labels]),
    }
    atomic_write(weights, lambda p: save_file(tensors, p, meta))
    atomic_write(
        facts, lambda p: p.write_text(json.dumps(judge.info, indent=1) + "\n", encoding="utf-8")
    )
    return [weights, facts]


def load_judge(folder: Path, region: str, stream: str) -> Judge:
    """One judge; `CheckpointError` says what is missing, damaged or of another version."""
    weights, facts = _files(folder, region, stream)
    again = "train it again: python -m medm2g_core.evaluation.judges"
    for file in (weights, facts):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; {again}")
    try:
        info = json.loads(facts.read_text(encoding="utf-8"))
        with safe_open(weights, "pt") as f:
            meta = f.metadata() or {}
        tensors = load_file(weights)
    except Exception as error:  # safetensors raises its own Rust error type
        raise CheckpointError(
            f"{weights} or its .json is damaged ({error}); copy both again, or {again}"
        ) from error
    expected = {
        "format": str(FORMAT),
        "region": region,
        "stream": stream,
        "labels": json.dumps([label.text for label in labels_of(region)]),
    }
    if meta != expected:
        raise CheckpointError(
            f"{weights} is a judge of another version or stream ({meta}); {again}"
        )
    net = JudgeNet(len(labels_of(region)))
    own = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = sorted(
        k
        for k in own.keys() | tensors.keys()
        if k not in own or k not in tensors or own[k].shape != tensors[k].shape
    )
    if wrong:
        raise CheckpointError(
            f"{weights} does not fit this network: {len(wrong)} tensors, first {wrong[0]}; {again}"
        )
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()}, strict=False)
    return Judge(region, stream, net.eval(), info)


def load_judges(
    folder: str | Path | None = None, wanted: Sequence[tuple[str, str]] = JUDGED
) -> dict[tuple[str, str], Judge]:
    """(region, stream) -> judge from a folder; without one, from the folder shipped in the
    repository.

    Raises:
        CheckpointError: a judge is missing, damaged, or of another version.
    """
    folder = SHIPPED_JUDGES if folder is None else Path(folder)
    return {(r, s): load_judge(folder, r, s) for r, s in wanted}


def _up_to_date(folder: Path, region: str, stream: str, settings: JudgeSettings) -> bool:
    try:
        info = load_judge(folder, region, stream).info
    except CheckpointError:
        return False
    if info.get("settings") != asdict(settings.of(region)):
        return False
    cohort = VirtualCohort("train", region, settings.of(region).train)
    return info.get("cohort") == _fingerprint(cohort, stream)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the judges that are missing, damaged, or trained on other images or with other
    settings."""
    parser = argparse.ArgumentParser(
        prog="python -m medm2g_core.evaluation.judges", description=main.__doc__
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=SHIPPED_JUDGES,
        help="folder of the judges (default: %(default)s)",
    )
    names = [f"{r}/{s}" for r, s in JUDGED]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        metavar="REGION/STREAM",
        help="which ones",
    )
    parser.add_argument("--again", action="store_true", help="train also those that are up to date")
    parser.add_argument(
        "--steps",
        type=int,
        default=JudgeSettings.steps,
        help="steps of each (default: %(default)s)",
    )
    parser.add_argument(
        "--train", type=int, default=JudgeSettings.train, help="chests to train on (%(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=JudgeSettings.held_out,
        help="chests to test on (%(default)s)",
    )
    args = parser.parse_args(arguments)
    settings = JudgeSettings(steps=args.steps, train=args.train, held_out=args.held_out)
    for region, stream in JUDGED:
        if f"{region}/{stream}" not in args.only:
            continue
        if args.again or not _up_to_date(args.out, region, stream, settings):
            save_judge(train_judge(stream, region, settings), args.out)
        info = load_judge(args.out, region, stream).info
        print(
            f"{STREAMS[stream].title} ({region}): macro AUC {info['macro_auc']} on {info['n_test']}"
            " real test images"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
