"""The X-ray projection obeys Beer and Lambert, and its display does not depend on the patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medm2g_core.data import xray


def block(hu: float, thickness: int) -> torch.Tensor:
    volume = torch.full((16, 64, 16), -1000.0)
    volume[:, 10 : 10 + thickness] = hu
    return volume


def passed(hu: float, thickness: int, spacing: float = 2.0) -> float:
    integral = xray.line_integral(xray.attenuation(block(hu, thickness)), spacing, 1)
    return float(xray.transmission(integral)[8, 8])


def test_twice_the_thickness_squares_the_transmission():
    for hu in (0.0, -850.0, 40.0, 900.0):
        assert passed(hu, 20) == pytest.approx(passed(hu, 10) ** 2, rel=1e-4)
    assert passed(0.0, 15) != pytest.approx(passed(0.0, 10) ** 2, rel=1e-2)  # control


def test_water_attenuates_like_water():
    assert float(xray.attenuation(torch.tensor(0.0))) == pytest.approx(0.0193, rel=1e-6)
    assert passed(0.0, 30) == pytest.approx(np.exp(-0.0193 * 60), rel=1e-4)


def test_air_lets_everything_through_and_padding_is_not_negative():
    assert passed(-1000.0, 30) == pytest.approx(1.0, abs=1e-6)
    assert float(xray.attenuation(torch.tensor(-2048.0))) == 0.0


def test_denser_tissue_attenuates_more():
    mu = xray.attenuation(torch.tensor([-1000.0, -850.0, -100.0, 0.0, 50.0, 300.0, 1500.0]))
    assert (mu[1:] > mu[:-1]).all()


def test_spacing_is_taken_in_millimetres():
    assert passed(0.0, 10, spacing=4.0) == pytest.approx(passed(0.0, 20, spacing=2.0), rel=1e-4)


def test_bone_is_bright_and_values_stay_in_range():
    volume = torch.full((96, 40, 96), 0.0)
    volume[40:50, 10:20, 40:50] = 1200.0
    image = xray.film(volume, 2.8, 1, None)
    assert image.shape == (96, 96)
    assert image.min() >= -1 and image.max() <= 1
    assert image[45, 45] > image[70, 70] + 0.1


def test_the_window_is_fixed_not_fitted():
    """The same object beside a denser neighbour far away keeps its brightness; per-image scaling
    would change it."""
    plain = torch.full((300, 300), 1.0)
    other = plain.clone()
    other[:, 280:] = 6.0
    a, b = xray.display(plain, 2.8), xray.display(other, 2.8)
    assert torch.allclose(a[150, 20:120], b[150, 20:120], atol=1e-6)


def test_noise_comes_from_the_generator_alone():
    volume = block(0.0, 30)
    one, two = (xray.film(volume, 2.8, 1, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, xray.film(volume, 2.8, 1, np.random.default_rng(4)))


def test_fewer_photons_give_more_noise():
    volume = torch.full((64, 60, 64), 0.0)
    clean = xray.film(volume, 2.8, 1, None)
    spread = [
        float((xray.film(volume, 2.8, 1, np.random.default_rng(0), photons=p) - clean).std())
        for p in (1e4, 1e6)
    ]
    assert spread[0] > 5 * spread[1]
