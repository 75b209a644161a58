"""Affine registration by mutual information, on a phantom that was moved by a known transform."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from medm2g_core.data.sources.grids import Grid
from medm2g_core.data.sources.registration import itk_image, register_affine, resample
from medm2g_core.data.volumes import FileError

VOXEL_MM = 4.0
FIXED = (40, 44, 38)


def grid(shape: tuple[int, int, int], step: tuple[float, float, float]) -> Grid:
    """Centred on the scanner's origin, axes straight."""
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = [-s for s in step]  # S, A, R run to the feet, the back, the left
    affine[[2, 1, 0], 3] = [(n - 1) / 2 * s for n, s in zip(shape, step, strict=True)]
    affine[3, 3] = 1
    return Grid(shape, affine)


TISSUES = {
    "scalp": (900, 350),
    "bone": (80, 60),
    "fluid": (150, 950),
    "grey": (500, 550),
    "white": (750, 350),
}
"""Signal in T1 and in T2."""

PARTS: list[tuple[tuple[float, ...], tuple[float, ...], str]] = [
    ((0, 0, 0), (62, 74, 66), "scalp"),
    ((0, 0, 0), (54, 66, 58), "bone"),
    ((0, 0, 0), (48, 60, 52), "fluid"),
    ((0, 0, 0), (45, 57, 49), "grey"),
    ((4, 6, 4), (34, 44, 38), "white"),
    ((-14, -8, 10), (8, 24, 14), "fluid"),
    ((16, -4, 8), (7, 20, 12), "fluid"),
]
"""Centre, half axes (mm, LPS) and tissue, painted in order; folds of grey matter and fluid are
added."""
for place in np.random.default_rng(1).normal(size=(24, 3)):
    place *= np.array((36, 46, 40)) / np.linalg.norm(place)
    PARTS.append((tuple(place), (9, 8, 10), ("fluid", "grey", "white")[len(PARTS) % 3]))


def signal(points: np.ndarray, t2: bool) -> np.ndarray:
    """A head as a function of place: points (..., 3) in LPS mm -> signal."""
    value = np.zeros(points.shape[:-1])
    for centre, axes, tissue in PARTS:
        r = np.linalg.norm((points - np.array(centre)) / np.array(axes), axis=-1)
        soft = 1 / (1 + np.exp(np.clip((r - 1) * min(axes) / 1.5, -50, 50)))
        value = value * (1 - soft) + TISSUES[tissue][t2] * soft
    return value


def points_of(g: Grid) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in g.shape), indexing="ij"), -1)
    ras = index @ g.affine[:3, :3].T + g.affine[:3, 3]
    return ras * [-1, -1, 1]


def known() -> sitk.AffineTransform:
    """7 degrees of rotation, 4% of scale and a shift of 9 mm."""
    euler = sitk.Euler3DTransform((0, 0, 0), 0.06, -0.05, 0.09, (6.0, -5.0, 4.0))
    out = sitk.AffineTransform(3)
    out.SetMatrix((np.array(euler.GetMatrix()).reshape(3, 3) @ np.diag([1.04, 0.98, 1.02])).ravel())
    out.SetTranslation(euler.GetTranslation())
    return out


@pytest.fixture(scope="module")
def pair() -> tuple[sitk.Image, sitk.Image]:
    """T1 (fixed), and a T2 of the same head on another grid, moved by `known`."""
    fixed = grid(FIXED, (VOXEL_MM, VOXEL_MM, VOXEL_MM))
    moving = grid((38, 50, 50), (5.0, VOXEL_MM, VOXEL_MM))
    back = known().GetInverse()
    matrix = np.array(back.GetMatrix()).reshape(3, 3)
    there = points_of(moving) @ matrix.T + np.array(back.GetTranslation()) + _centre_term(back)
    rng = np.random.default_rng(0)
    noisy = [
        signal(p, t2) + 10 * rng.standard_normal(p.shape[:-1])
        for p, t2 in ((points_of(fixed), False), (there, True))
    ]
    return itk_image(noisy[0], fixed), itk_image(noisy[1], moving)


def _centre_term(t: sitk.Transform) -> np.ndarray:
    centre, matrix = np.array(t.GetCenter()), np.array(t.GetMatrix()).reshape(3, 3)
    return centre - matrix @ centre


def error_mm(transform: sitk.Transform) -> float:
    """Largest distance from the known transform, over points of the head."""
    points = [(x, y, z) for x in (-45, 0, 45) for y in (-55, 0, 55) for z in (-50, 0, 50)]
    gaps = [
        np.subtract(transform.TransformPoint(p), known().TransformPoint(p))
        for p in points
        if np.linalg.norm(p) < 72
    ]
    return float(np.linalg.norm(gaps, axis=1).max())


def test_a_known_affine_is_recovered_to_under_a_voxel(pair: tuple[sitk.Image, sitk.Image]) -> None:
    found = register_affine(*pair)
    assert error_mm(found.transform) < 0.5 * VOXEL_MM
    assert (
        error_mm(sitk.AffineTransform(3)) > 2 * VOXEL_MM
    )  # the control: without it they are far apart
    assert found.information > 1.2 * found.before
    moved = resample(pair[1], pair[0], found.transform)
    assert moved.shape == FIXED and moved.dtype == np.float32
    expected = signal(points_of(grid(FIXED, (VOXEL_MM,) * 3)), True)
    assert np.corrcoef(moved.ravel(), expected.ravel())[0, 1] > 0.97
    unmoved = resample(pair[1], pair[0], sitk.AffineTransform(3))
    assert np.corrcoef(unmoved.ravel(), expected.ravel())[0, 1] < 0.9


def test_the_same_seed_gives_the_same_transform_bit_for_bit(
    pair: tuple[sitk.Image, sitk.Image],
) -> None:
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    first, again, other = (
        register_affine(*pair, seed=s, iterations=3).transform.GetParameters() for s in (3, 3, 4)
    )
    assert first == again and first != other
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == threads  # put back


def test_volumes_that_cannot_be_of_one_session_are_refused(
    pair: tuple[sitk.Image, sitk.Image],
) -> None:
    far = sitk.Image(pair[1])
    far.SetOrigin((900, 900, 900))
    with pytest.raises(FileError, match="do not overlap"):
        register_affine(pair[0], far)


def test_an_image_keeps_its_place_in_the_scanner() -> None:
    g = grid((20, 24, 28), (3.0, 2.0, 1.0))
    image = itk_image(np.zeros(g.shape), g)
    for index in ((0, 0, 0), (19, 2, 27)):
        ras = g.affine @ [*index, 1]
        assert image.TransformIndexToPhysicalPoint(index[::-1]) == pytest.approx(
            (-ras[0], -ras[1], ras[2])
        )
