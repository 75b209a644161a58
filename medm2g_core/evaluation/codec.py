"""The image codec against the truth: what every generated picture is measured against at best."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from medm2g_core.evaluation.bench import BATCH, SHIFT, Bench
from medm2g_core.evaluation.table import Check, Row, SectionResult, make_row
from medm2g_core.metrics.pixels import ct_mae_hu, psnr, ssim
from medm2g_core.streams import STREAMS

__all__ = ["REGION_STREAMS", "image_codec_section"]

REGION_STREAMS: Mapping[str, tuple[str, ...]] = {
    "chest": ("xray", "ct", "mri_t1", "mri_t2"),
    "brain": ("mri_t1", "mri_t2", "mri_pd", "mri_flair"),
}
"""The image streams of the embedded cohort."""

CONTROL = "control: another patient's reconstruction"

FAR_OFF_DB = 6
"""Another patient's reconstruction has at least twice the root mean square error."""

FindingScore = Callable[[str, str, torch.Tensor], Row]
"""(region, stream, images of the held-out studies in order) to a row whose value is the macro AUC
of its findings."""


@torch.no_grad()
def image_codec_section(bench: Bench, finding_auc: FindingScore | None = None) -> SectionResult:
    """Held-out reconstruction of every image stream: PSNR, SSIM, MAE in HU (CT), and what a finding
    classifier still sees.

    Rivals: the mean image of other studies, and the picture kept at as many pixels as the latent
    has numbers. The control is another patient's reconstruction.

    Args:
        finding_auc: scores images by an independent classifier; without it those rows are left out.
    """
    outcome = SectionResult(
        facts={
            "factor": bench.model.profile.image_codec.factor,
            "numbers a picture": _numbers(bench),
        }
    )
    for region, names in REGION_STREAMS.items():
        for name in names:
            truth = bench.data[region].stack(name)
            back = bench.codec(region, name)
            assert isinstance(back, torch.Tensor)
            task = f"image codec: {STREAMS[name].title} ({region})"
            mean = bench.other[region].stack(name).mean(0, keepdim=True).expand_as(truth)
            rivals = {
                "model": back,
                "baseline: mean image": mean,
                CONTROL: back.roll(-SHIFT, 0),
                "baseline: same size by shrinking": _shrunk(truth, bench),
            }
            metrics = {"PSNR, dB": psnr, "SSIM": ssim} | (
                {"MAE, HU": ct_mae_hu} if name == "ct" else {}
            )
            for metric, score in metrics.items():
                outcome.rows += [
                    make_row(
                        task,
                        metric,
                        who,
                        torch.cat([score(a, b) for a, b in _pairs(x, truth)]).tolist(),
                    )
                    for who, x in rivals.items()
                ]
            model, control = (psnr(x, truth).mean().item() for x in (back, rivals[CONTROL]))
            outcome.checks.append(
                Check(
                    f"{task}: another patient's reconstruction is far off",
                    control < model - FAR_OFF_DB,
                    f"{control:.1f} dB against {model:.1f} dB",
                )
            )
            if finding_auc is not None:
                for who, x in (("model", back), ("ceiling: real images", truth)):
                    row = finding_auc(region, name, x)
                    outcome.rows.append(
                        Row(task, row.metric, who, row.value, row.low, row.high, row.n, row.note)
                    )
    return outcome


def _numbers(bench: Bench) -> int:
    c, h, w = bench.model.latent_shape("xray")
    return c * h * w


def _pairs(x: torch.Tensor, truth: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(BATCH), truth.split(BATCH), strict=True))


def _shrunk(x: torch.Tensor, bench: Bench) -> torch.Tensor:
    """The picture kept as a smaller picture with as many numbers as the latent, and enlarged
    again."""
    side = max(1, int(_numbers(bench) ** 0.5))
    small = torch.nn.functional.interpolate(x, size=(side, side), mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(
        small, size=x.shape[-2:], mode="bicubic", align_corners=False
    ).clamp(-1, 1)
