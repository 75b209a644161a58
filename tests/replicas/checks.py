"""What the tests of several data sets ask of a study or of a data set."""

from __future__ import annotations

import math

import torch

from medm2g_core.data.sources.base import SourceDataset, SourceStudy
from medm2g_core.streams import check_image


def marker(image: torch.Tensor) -> str:
    """Where the brightest pixels of a picture are."""
    rows, columns = torch.nonzero(image[0] >= image.max() - 0.1, as_tuple=True)
    middle = (image.shape[-1] - 1) / 2
    up = "upper" if rows.float().mean() < middle else "lower"
    return f"{up} {'right' if columns.float().mean() > middle else 'left'}"


def well_formed(study: SourceStudy, size: int) -> None:
    for name, image in study.images.items():
        assert check_image(image, name).shape == (1, size, size) and image.dtype == torch.float32
        assert study.units[name] and math.isfinite(study.spacing_mm[0])


def named(data: SourceDataset, id: str) -> SourceStudy:
    return data[next(i for i, e in enumerate(data.entries) if e.id == id)]


def no_subject_twice(data: SourceDataset) -> None:
    groups = list(data.subjects().values())
    assert sum(map(len, groups)) == len(set().union(*map(set, groups)))
