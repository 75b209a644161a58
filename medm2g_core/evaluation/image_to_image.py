"""Image to image: MR contrasts of a brain, MR and CT of a chest, CT and X-ray; and whether guidance
is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, TensorDataset

from medm2g_core.evaluation.bench import BATCH, SHIFT, Bench
from medm2g_core.evaluation.fidelity import CODEC, REAL, judged_rows
from medm2g_core.evaluation.table import Check, Row, SectionResult, choose_setting, make_row
from medm2g_core.judges.judge import Judges
from medm2g_core.metrics.classification import auc
from medm2g_core.metrics.lesions import LESIONS, dice, lesion_mask
from medm2g_core.metrics.pixels import ct_mae_hu, psnr, ssim
from medm2g_core.model import MedM2G
from medm2g_core.rivals.reports import embed_images
from medm2g_core.rivals.translator import (
    RegressionSettings,
    Translation,
    Translator,
    train_translator,
)
from medm2g_core.streams import STREAMS
from medm2g_core.training.corpus import Corpus

__all__ = [
    "CONTROL",
    "GROUPS",
    "PIX2PIX_ROW",
    "REGRESSION_ROW",
    "TASKS",
    "guidance_used",
    "nearest_target",
    "own_input",
    "pixel_rows",
    "translation",
]

TASKS: tuple[Translation, ...] = (
    Translation("brain", ("mri_t1", "mri_t2"), "mri_flair"),
    Translation("brain", ("mri_t1", "mri_flair"), "mri_t2"),
    Translation("brain", ("mri_t2", "mri_flair"), "mri_t1"),
    Translation("brain", ("mri_t1", "mri_t2"), "mri_pd"),
    Translation("chest", ("ct",), "mri_t1"),
    Translation("chest", ("ct",), "mri_t2"),
    Translation("chest", ("mri_t1", "mri_t2"), "ct"),
    Translation("chest", ("xray",), "ct"),
    Translation("chest", ("ct",), "xray"),
)
GROUPS: Mapping[str, tuple[Translation, ...]] = {
    m: tuple(t for t in TASKS if STREAMS[t.target].modality == m) for m in ("mri", "ct", "xray")
}
"""Target modality -> its tasks: one baseline network learns a group, as one flow does."""

CONTROL = "control: another patient's input"
REGRESSION_ROW, PIX2PIX_ROW = "baseline: regression", "baseline: pix2pix"


def nearest_target(
    model: MedM2G, given: Mapping[str, torch.Tensor], corpora: Sequence[Corpus], target: str
) -> torch.Tensor:
    """The target of the training study whose given streams are nearest by aligned embedding.

    Args:
        given: stream -> images (N, 1, H, W).  corpora: training studies that have all these streams
            and the target.
    """
    query = torch.cat([embed_images(model, n, x) for n, x in given.items()], 1)
    gallery = torch.cat(
        [torch.cat([embed_images(model, n, c.images[n]) for n in given], 1) for c in corpora]
    )
    pool: ConcatDataset[Any] = ConcatDataset(
        [TensorDataset(c.images[target]) for c in corpora]
    )  # no copy of them all
    return torch.stack([pool[i][0] for i in (query @ gallery.T).argmax(1).tolist()]).float()


@torch.no_grad()
def translation(
    bench: Bench,
    judges: Judges,
    corpora: Mapping[str, Corpus],
    *,
    seconds: Mapping[str, float],
    pix2pix_seconds: Mapping[str, float] | None = None,
    threads: int = 1,
    means: int = 8,
    tasks: Sequence[Translation] = TASKS,
    pix2pix: bool = True,
) -> SectionResult:
    """PSNR, SSIM, MAE in HU, lesion Dice, and what an independent judge sees, for every
    translation.

    One draw or the mean of several: by their PSNR on validation studies.

    A drawn image is one possible truth; the mean of several draws estimates the conditional mean,
    which is what a regression network predicts and what PSNR rewards. The judges' Fréchet distance
    rewards the opposite.

    Args:
        corpora: region -> train studies of the trained baselines (`RegressionSettings`).
        seconds: target modality -> time (`RegressionSettings`) for training its regression network:
            that of the flow that it faces, or a share of it.
        pix2pix_seconds: the same for its pix2pix network; ``seconds`` unless told.
        threads: of torch, for that training.
        means: draws of the mean.
    """
    outcome = SectionResult(
        facts={"guidance": bench.translation_guidance, "steps": bench.steps, "baselines": {}}
    )
    nets = _Rivals(
        bench,
        corpora,
        tasks,
        seconds,
        pix2pix_seconds or seconds,
        threads,
        outcome.facts["baselines"],
    )
    for task in tasks:
        data, target = bench.data[task.region], task.target
        title = _title(task)
        truth, given = data.stack(target), {n: data.stack(n) for n in task.given}
        draws = bench.draws(task.region, task.given, target, means)
        codec = bench.codec(task.region, target)
        assert isinstance(codec, torch.Tensor)
        rivals = {
            "model": draws[0],
            f"model, mean of {means}": draws.mean(0),
            "baseline: mean image": (
                corpora[task.region].images[target].float().mean(0, keepdim=True).expand_as(truth)
            ),
            "baseline: nearest training study": nearest_target(
                bench.model, given, [corpora[task.region]], target
            ),
        }
        for who in (REGRESSION_ROW, PIX2PIX_ROW) if pix2pix else (REGRESSION_ROW,):
            rivals[who] = nets.net(target, who).translate(given, target)
        rivals[CONTROL] = bench.draw(task.region, task.given, [target], shift=SHIFT)[target]
        rivals[CODEC] = codec

        outcome.rows += _scores(bench, judges, task, rivals, truth, outcome)
        gap, check = own_input(title, rivals, truth)
        outcome.rows.append(gap)
        outcome.checks.append(check)
        _choose_mean(bench, task, means, outcome)
    return outcome


def _choose_mean(bench: Bench, task: Translation, means: int, outcome: SectionResult) -> None:
    """One draw or the mean of several, by PSNR on validation studies."""
    data = bench.studies(task.region, "val")
    draws = bench.draws(task.region, task.given, task.target, means, split="val")
    images = {"model": draws[0], f"model, mean of {means}": draws.mean(0)}
    truth = data.stack(task.target)
    scores = {who: psnr(x, truth).mean().item() for who, x in images.items()}
    choose_setting(outcome, [_title(task)], scores, by="PSNR, dB", n=len(data))


class _Rivals:
    """Translators of a group of tasks each, trained when they are first asked for; ``facts`` gets
    how."""

    def __init__(
        self,
        bench: Bench,
        corpora: Mapping[str, Corpus],
        tasks: Sequence[Translation],
        seconds: Mapping[str, float],
        pix2pix_seconds: Mapping[str, float],
        threads: int,
        facts: dict[str, Any],
    ) -> None:
        self.device, self.corpora, self.tasks, self.threads, self.facts = (
            bench.model.device,
            corpora,
            tasks,
            threads,
            facts,
        )
        self.seconds = {REGRESSION_ROW: seconds, PIX2PIX_ROW: pix2pix_seconds}
        self.known: dict[tuple[str, str], Translator] = {}

    def net(self, target: str, who: str) -> Translator:
        modality = STREAMS[target].modality
        if (modality, who) not in self.known:
            group = tuple(t for t in self.tasks if STREAMS[t.target].modality == modality)
            settings = RegressionSettings(
                group,
                round(self.seconds[who][modality], 1),
                self.threads,
                adversarial=who == PIX2PIX_ROW,
            )
            with torch.enable_grad():
                net = train_translator(settings, self.corpora, device=self.device)
            self.known[modality, who] = net
            self.facts[f"{who.removeprefix('baseline: ')}, {modality}"] = net.info
        return self.known[modality, who]


def _title(task: Translation) -> str:
    given = " + ".join(STREAMS[g].title for g in task.given)
    return f"{given} → {STREAMS[task.target].title} ({task.region})"


def _scores(
    bench: Bench,
    judges: Judges,
    task: Translation,
    rivals: Mapping[str, torch.Tensor],
    truth: torch.Tensor,
    outcome: SectionResult,
) -> list[Row]:
    """Rows of pixels, lesions and what a judge sees, of the images (N, 1, H, W) of each rival."""
    title, target, findings = _title(task), task.target, bench.data[task.region].findings
    rows = pixel_rows(title, rivals, truth, target)
    if (task.region, target) == ("brain", "mri_flair"):
        rows += _lesions(outcome, title, rivals, truth, findings)
    if (task.region, target) in judges:
        judge = judges[task.region, target]
        reference = judge.features(bench.other[task.region].stack(target)[: len(truth)])
        judged, _ = judged_rows(title, judge, {**rivals, REAL: truth}, findings, reference)
        rows += [
            r for r in judged if "mean image" not in r.who
        ]  # one image for all has no distribution
    return rows


def pixel_rows(
    title: str, rivals: Mapping[str, torch.Tensor], truth: torch.Tensor, target: str
) -> list[Row]:
    """PSNR, SSIM and (CT) MAE in HU of images (N, 1, H, W) of each rival against the one true image
    of each study."""
    metrics = {"PSNR, dB": psnr, "SSIM": ssim} | ({"MAE, HU": ct_mae_hu} if target == "ct" else {})
    rows = []
    for metric, score in metrics.items():
        for who, x in rivals.items():
            pairs = zip(x.split(BATCH), truth.split(BATCH), strict=True)
            rows.append(
                make_row(title, metric, who, torch.cat([score(a, b) for a, b in pairs]).tolist())
            )
    return rows


def own_input(
    title: str, rivals: Mapping[str, torch.Tensor], truth: torch.Tensor
) -> tuple[Row, Check]:
    """How much better the model is than with another patient's input (`CONTROL`), and whether it
    is."""
    own, moved = (psnr(rivals[who], truth) for who in ("model", CONTROL))
    gap = make_row(
        title, "PSNR of its own input less another patient's, dB", "model", (own - moved).tolist()
    )
    detail = f"{gap.value:.2f} dB [{gap.low:.2f}, {gap.high:.2f}]"
    return gap, Check(f"{title}: another patient's input is worse", gap.low > 0, detail)


def _lesions(
    outcome: SectionResult,
    title: str,
    rivals: Mapping[str, torch.Tensor],
    truth: torch.Tensor,
    findings: Sequence[Any],
) -> list[Row]:
    """Dice of bright lesions on FLAIR, in the studies whose true image shows any, and how good the
    threshold is."""
    masks = lesion_mask(truth)
    has = np.array([any(f.name in LESIONS for f in fs) for fs in findings])
    area = masks.sum((1, 2, 3)).numpy()
    if 0 < has.sum() < len(has):
        outcome.facts["threshold finds lesions on true FLAIR, AUC"] = round(auc(area, has), 3)
    shown = np.flatnonzero(area > 0)
    if len(shown) < 2:
        return []
    return [
        make_row(
            title,
            "lesion Dice (threshold)",
            who,
            dice(lesion_mask(x[shown].clamp(-1, 1)), masks[shown]).tolist(),
        )
        for who, x in rivals.items()
    ]


GUIDED: tuple[Translation, ...] = (
    Translation("chest", ("ct",), "mri_t2"),
    Translation("chest", ("mri_t1", "mri_t2"), "ct"),
    Translation("brain", ("mri_t1", "mri_t2"), "mri_flair"),
)


def guidance_used(bench: Bench, tasks: Sequence[Translation] = GUIDED) -> SectionResult:
    """Is cross-guidance what makes a translation right? The prompt is the report throughout, only
    the guide differs.

    Right guide, no guide, another patient's guide (against the right patient and against that other
    one).
    """
    outcome = SectionResult()
    for task in tasks:
        data = bench.data[task.region]
        truth = data.stack(task.target)
        wrong_truth = truth.roll(-SHIFT, 0)
        given = ["text", *task.given]
        guides = " + ".join(STREAMS[g].title for g in task.given)
        title = f"guide {guides} → {STREAMS[task.target].title} ({task.region})"
        silent = {n: 0.0 for n in task.given}  # guides only: the report is the prompt
        options: dict[str, Any] = {"guidance": bench.translation_guidance, "prompt_weights": silent}
        right = bench.draw(task.region, given, [task.target], **options)[task.target]
        wrong = bench.draw(
            task.region, given, [task.target], shift=SHIFT, given_from=task.given, **options
        )[task.target]
        none = bench.draw(
            task.region, ["text"], [task.target], guidance=bench.translation_guidance
        )[task.target]
        scores = {
            "model": psnr(right, truth),
            "control: no guide": psnr(none, truth),
            "control: another patient's guide": psnr(wrong, truth),
            "control: another patient's guide, against that patient": psnr(wrong, wrong_truth),
        }
        outcome.rows += [make_row(title, "PSNR, dB", who, x.tolist()) for who, x in scores.items()]
        gain = scores["model"] - scores["control: no guide"]
        follows = make_row(
            title,
            "drawn with a wrong guide: nearer to that patient, dB",
            "model",
            (psnr(wrong, wrong_truth) - psnr(wrong, truth)).tolist(),
        )
        outcome.rows += [
            make_row(title, "right guide less none, dB", "model", gain.tolist()),
            follows,
        ]
        outcome.checks.append(
            Check(
                f"{title}: a wrong guide is visibly wrong",
                follows.low > 0,
                f"{follows.value:.2f} dB nearer to it [{follows.low:.2f}, {follows.high:.2f}]",
            )
        )
    return outcome
