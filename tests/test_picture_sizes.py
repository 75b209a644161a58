"""A larger picture shows the same patient, with more detail, and averaged down it is the small
one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medm2g_core.data.brain.render import render_brain
from medm2g_core.data.chest.render import render_chest
from medm2g_core.data.fields import block_mean, refine, scale_of, white_noise
from medm2g_core.streams import Finding

CHESTS: tuple[tuple[Finding, ...], ...] = (
    (Finding("pulmonary_edema", size="moderate"), Finding("cardiomegaly", size="small")),
    (
        Finding("consolidation", "right", "upper"),
        Finding("pleural_effusion", "left", "", "moderate"),
    ),
    (
        Finding("mass", "left", "lower", "moderate", 40),
        Finding("pneumothorax", "right", "", "moderate"),
    ),
)
BRAINS: tuple[tuple[Finding, ...], ...] = (
    (
        Finding("tumor", "left", "frontal", "moderate", 30),
        Finding("vasogenic_edema", "left", "frontal", "large"),
    ),
    (
        Finding("white_matter_lesions", size="large"),
        Finding("ventriculomegaly", size="moderate"),
    ),
)
# Peak signal-to-noise ratio over the range of 2, dB, below which a mean over pixels may not fall.
# Measured over twelve chests and eight brains at 256 and 512: X-ray 37 to 45, CT 35 to 39, chest T2
# 31 to 37, chest T1 26 to 31, brain 41 to 44. The chest's MR assigns tissues to HU by thresholds,
# and at 1.4 mm the skin and the fat around organs have pixels of their own.
LEAST_DB = {"xray": 35.0, "ct": 33.0, "mri_t1": 24.0, "mri_t2": 29.0}
LEAST_BRAIN_DB = 39.0


def psnr(a: Tensor, b: Tensor) -> float:
    return float(20 * torch.log10(2 / (a - b).square().mean().sqrt()))


def same_patient(small: dict[str, Any], large: dict[str, Any], scale: int) -> None:
    for fact in ("findings", "person", "age", "sex"):
        assert small[fact] == large[fact]
    assert large["spacing_mm"] == tuple(mm / scale for mm in small["spacing_mm"])
    for name, image in large["images"].items():
        assert image.shape == (1, 128 * scale, 128 * scale) and image.dtype == torch.float32
        assert -1 <= float(image.min()) < float(image.max()) <= 1, name


def fine_detail(image: Tensor) -> float:
    """Variance that averaging 2 x 2 pixels takes away."""
    smooth = functional.avg_pool2d(image, 2)
    return float(image.var() - functional.interpolate(smooth[None], scale_factor=2)[0].var())


@pytest.mark.parametrize("number", range(len(CHESTS)))
def test_a_chest_of_256_pixels_averaged_down_is_the_one_of_128(number: int) -> None:
    small = render_chest(20 + number, findings=CHESTS[number])
    large = render_chest(20 + number, findings=CHESTS[number], size=256)
    same_patient(small, large, 2)
    other = render_chest(40 + number, person=small["person"], findings=CHESTS[number])
    for name, image in large["images"].items():
        mean = functional.avg_pool2d(image, 2)
        assert psnr(mean, small["images"][name]) > LEAST_DB[name], name
        assert psnr(mean, other["images"][name]) < LEAST_DB[name] - 3, "control: another patient"


@pytest.mark.parametrize("number", range(len(BRAINS)))
def test_a_brain_of_256_or_512_pixels_averaged_down_is_the_one_of_128(number: int) -> None:
    small = render_brain(20 + number, findings=BRAINS[number])
    other = render_brain(40 + number, findings=BRAINS[number])
    for scale in (2, 4):
        large = render_brain(20 + number, findings=BRAINS[number], size=128 * scale)
        same_patient(small, large, scale)
        for name, image in large["images"].items():
            mean = functional.avg_pool2d(image, scale)
            assert psnr(mean, small["images"][name]) > LEAST_BRAIN_DB, (name, scale)
            assert psnr(mean, other["images"][name]) < 30, "control: another patient"


def test_a_chest_of_512_pixels_is_the_same_patient_too() -> None:
    small, large = (render_chest(21, findings=CHESTS[1], size=size) for size in (128, 512))
    same_patient(small, large, 4)
    for name, image in large["images"].items():
        assert psnr(functional.avg_pool2d(image, 4), small["images"][name]) > LEAST_DB[name], name


def test_a_larger_picture_has_more_detail_than_a_small_one_drawn_larger() -> None:
    small, large = (render_chest(22, findings=(), size=size)["images"] for size in (128, 256))
    for name in ("xray", "ct"):
        stretched = functional.interpolate(
            small[name][None], scale_factor=2, mode="bilinear", align_corners=False
        )[0]
        assert fine_detail(large[name]) > 1.5 * fine_detail(stretched), name


@pytest.mark.parametrize("size", [0, 64, 100, 192, 384])
def test_other_sizes_are_refused(size: int) -> None:
    for render in (render_chest, render_brain):
        with pytest.raises(ValueError, match="power of two"):
            render(0, size=size)


# --- the fields behind it


def test_noise_is_white_at_every_scale_and_its_block_means_are_the_coarser_noise() -> None:
    base, two, four = (
        torch.from_numpy(white_noise((64, 64), np.random.default_rng(0), k)) for k in (1, 2, 4)
    )
    for field, scale in ((two, 2), (four, 4)):
        torch.testing.assert_close(scale * block_mean(field, scale), base)
        assert abs(float(field.std()) - 1) < 0.02 and abs(float(field.mean())) < 0.02
        for shift in (1, 2, 3):
            neighbours = (field[:, shift:] * field[:, :-shift]).mean()
            assert abs(float(neighbours)) < 0.03, "no pixel knows its neighbour"
    torch.testing.assert_close(2 * block_mean(four, 2), two)


def test_noise_takes_as_much_from_its_source_at_every_scale() -> None:
    after = []
    for scale in (1, 2, 4):
        rng = np.random.default_rng(1)
        white_noise((8, 6, 8), rng, scale, (0, 2))
        after.append(rng.random())
    assert len(set(after)) == 1


def test_refining_keeps_a_slope() -> None:
    slope = torch.arange(8.0)[:, None].expand(8, 8)
    fine = refine(slope, 2)
    assert fine.shape == (16, 16)
    torch.testing.assert_close(block_mean(fine, 2)[1:-1], slope[1:-1])
    volume = torch.rand(4, 3, 4)
    assert refine(volume, 2).shape == (8, 3, 8) and refine(volume, 1) is volume


def test_scales_are_counted_from_128_pixels() -> None:
    assert [scale_of(size) for size in (128, 256, 512, 1024)] == [1, 2, 4, 8]
