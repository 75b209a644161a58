"""X-ray projection by the Beer-Lambert law.

    I = I0 exp(-integral of mu ds),    -log(I / I0) = integral of mu ds

Linear attenuation comes from Hounsfield units by their definition, mu = mu_water (1 + HU / 1000),
at one effective energy of 70 keV, where mu_water = 0.0193 / mm (NIST XCOM). Calcium absorbs more at
a film's energy than at CT's, so above `BONE_FROM_HU` the excess counts `BONE_GAIN` times (a choice;
it only sharpens the ribs).

Rays are parallel and run along the patient's front-back axis: at the usual 1.8 m between tube and
detector the magnification across a chest changes by less than 15 %, and no cone is modelled.
Neither is scatter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medm2g_core.data.fields import white_noise

__all__ = ["MU_WATER", "attenuation", "display", "film", "line_integral", "transmission"]

MU_WATER = 0.0193
"""Linear attenuation of water at 70 keV, 1/mm."""
BONE_FROM_HU = 150.0
BONE_GAIN = 1.25
WINDOW = (0.75, 2.4)
"""Centre and width of the sigmoid look-up table, in units of the line integral, for every patient
alike."""
UNSHARP = 0.6
UNSHARP_MM = 45.0
EDGE = 0.9
EDGE_MM = 4.5
"""Edge enhancement: `EDGE` times what a blur of `EDGE_MM` takes away is added, as film processing
does for ribs."""


def attenuation(hu: Tensor) -> Tensor:
    """Linear attenuation coefficient, 1/mm, of Hounsfield units of any shape; never negative."""
    hu = hu.float()
    return (
        MU_WATER * (1 + (hu + (BONE_GAIN - 1) * (hu - BONE_FROM_HU).clamp_min(0)) / 1000)
    ).clamp_min(0)


def line_integral(mu: Tensor, spacing_mm: float, dim: int) -> Tensor:
    """Integral of mu (1/mm) along one axis of parallel rays; dimensionless, the axis is gone."""
    return mu.sum(dim) * spacing_mm


def transmission(integral: Tensor) -> Tensor:
    """Share of the photons that come through, I / I0, 0..1."""
    return torch.exp(-integral)


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (H, W) with replicated edges; sigma in pixels."""
    radius = int(3 * sigma)
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = functional.pad(image[None, None], (radius,) * 4, mode="replicate")
    out = functional.conv2d(
        functional.conv2d(out, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)
    )
    return out[0, 0]


def display(integral: Tensor, spacing_mm: float) -> Tensor:
    """Line integral (H, W) to display intensity -1..1, bone bright.

    `UNSHARP` times a blur of `UNSHARP_MM` is taken off, as the dynamic-range compression of digital
    radiography does, or lungs and mediastinum do not fit one window. The window is fixed, never
    fitted to the image. The curve is DICOM's sigmoid look-up table (PS3.3 C.11.2.1.3.1), y = 2 / (1
    + exp(-4 (x - centre) / width)) - 1.
    """
    flat = integral - UNSHARP * _blur(integral, UNSHARP_MM / spacing_mm)
    flat = flat + EDGE * (integral - _blur(integral, EDGE_MM / spacing_mm))
    centre, width = WINDOW
    return torch.tanh(2 * (flat - centre) / width)


def film(
    hu: Tensor,
    spacing_mm: float,
    dim: int,
    rng: np.random.Generator | None,
    photons: float = 1.5e5,
    scale: int = 1,
) -> Tensor:
    """A digital radiograph of a volume.

    Args:
        hu: 3-D, Hounsfield units.
        spacing_mm: voxel size along the rays; across them it is ``spacing_mm / scale``.
        dim: the axis of the rays.
        rng: source of the photon noise; ``None`` for none.
        photons: that leave the tube for one pixel, whatever its size (see
            `medm2g_core.data.fields`).
        scale: how many times finer than the base picture the film is.

    Returns:
        2-D float32, -1..1.
    """
    passed = transmission(line_integral(attenuation(hu), spacing_mm, dim))
    if rng is not None:
        base = [n // scale for n in passed.shape]
        normal = torch.from_numpy(white_noise(base, rng, scale).astype(np.float32))
        passed = (
            passed + normal * (passed / photons).sqrt()
        )  # Poisson's variance, Gaussian at these counts
    return display(-torch.log(passed.clamp_min(1e-5)), spacing_mm / scale)
