"""Scores of pairs of images: against libraries, and on cases that can be worked out."""

from __future__ import annotations

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from medm2g_core.metrics.pixels import ct_mae_hu, psnr, ssim
from medm2g_core.streams import hu_to_unit
from tests.conftest import pictures


def _noisy(images: torch.Tensor, size: float = 0.2) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return (images + size * noise).clamp(-1, 1)


def test_psnr_of_a_tenth_of_the_range_is_20_db() -> None:
    a = torch.zeros(2, 1, 8, 8)
    assert psnr(a, a + 0.2).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_psnr_is_that_of_scikit_image_and_of_equal_images_a_number() -> None:
    a = pictures(3)
    b = _noisy(a)
    reference = [
        peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=2)
        for x, y in zip(a, b, strict=True)
    ]
    assert psnr(a, b).tolist() == pytest.approx(reference, abs=1e-4)
    assert psnr(a, a).tolist() == pytest.approx([106.02] * 3, abs=0.01)


def test_ssim_is_one_for_equal_images_and_low_for_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 3, 1, 32, 32, generator=generator) * 2 - 1
    assert ssim(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert ssim(a, b).max() < 0.3


def test_ssim_is_that_of_scikit_image_on_0_to_1() -> None:
    """With a black border, as our pictures have: the libraries reflect an edge differently."""
    a = pictures(4)
    a, b = (F.pad(x, (12, 12, 12, 12), value=-1.0) for x in (a, _noisy(a) * 0.8 - 0.1))
    reference = [
        structural_similarity(
            (x[0].double().numpy() + 1) / 2,
            (y[0].double().numpy() + 1) / 2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1].mean()  # of the map, margin included
        for x, y in zip(a, b, strict=True)
    ]
    assert ssim(a, b).tolist() == pytest.approx(reference, abs=1e-5)
    assert ssim(a[:1], b[:1]).tolist() == pytest.approx(reference[:1], abs=1e-5)


def test_ssim_does_not_take_mid_grey_for_black() -> None:
    """The same small difference of brightness, near black and at mid-grey. On -1..1 the luminance
    term sees two signs at mid-grey and calls nearly equal pictures opposites."""

    def on_the_raw_range(a: torch.Tensor, b: torch.Tensor) -> float:
        out = structural_similarity_index_measure(a, b, data_range=2.0)
        assert isinstance(out, torch.Tensor)
        return out.item()

    texture = 0.02 * pictures(1)
    darker, brighter = texture - texture.mean() - 0.05, texture - texture.mean() + 0.05
    assert ssim(darker, brighter).item() > 0.98
    assert on_the_raw_range(darker, brighter) < 0
    near_white = [(x + 0.9) for x in (darker, brighter)]
    assert on_the_raw_range(*near_white) > 0.98
    assert ssim(*near_white).item() > 0.98


def test_ct_error_is_in_hounsfield_units() -> None:
    a, b = hu_to_unit(torch.full((1, 1, 4, 4), 40.0)), hu_to_unit(torch.full((1, 1, 4, 4), -60.0))
    assert ct_mae_hu(a, b).item() == pytest.approx(100.0, abs=1e-2)


@pytest.mark.parametrize("score", [psnr, ssim, ct_mae_hu])
def test_one_image_is_not_silently_compared_with_all_of_a_batch(score) -> None:
    a = pictures(3)
    with pytest.raises(ValueError, match="one shape"):
        score(a, a[:1])
