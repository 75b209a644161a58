"""Volumes of a data set on disk: their grid from the header alone, and their voxels, checked."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medm2g_core.data.files import read_volume
from medm2g_core.data.sources.base import Entry
from medm2g_core.data.sources.imaging import check_whole
from medm2g_core.data.volumes import FileError, Volume, blame, sniff

__all__ = [
    "Grid",
    "axial_entries",
    "check_placed",
    "check_same_grid",
    "itk_grid",
    "load_mask",
    "load_volume",
    "nifti_grid",
    "percentile_unit",
    "volume_grid",
]


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a volume lie, once its axes run as those of a `Volume`.

    Attributes:
        shape: (S, A, R), from head to feet, from front to back, from the patient's right to the
            left.
        affine: 4x4; ``affine @ (s, a, r, 1)`` is the place of a voxel in mm, x to the patient's
            right, y to the front, z to the head (RAS+).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        s, a, r = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(s), float(a), float(r)

    @classmethod
    def of(cls, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
        """From the shape (i, j, k) and RAS+ affine of a file."""
        ornt = io_orientation(affine)
        if np.isnan(ornt).any():
            raise FileError("the orientation matrix is degenerate: an axis has no direction")
        turn = ornt_transform(ornt, axcodes2ornt(("L", "P", "I")))
        place = {int(axis): n for (axis, _), n in zip(turn, shape, strict=True)}
        affine = (affine @ inv_ornt_aff(turn, shape))[:, [2, 1, 0, 3]]
        return cls((place[2], place[1], place[0]), affine)


def nifti_grid(path: Path) -> Grid:
    """The grid of a NIfTI file, packed or not whatever its name; only the header is read.

    Raises:
        FileError: not a NIfTI file, broken, or not one 3-D volume.
    """
    if sniff(path) != "nifti":
        raise FileError(f"{path}: not a NIfTI file")
    header = _nifti_header(path)
    with blame(path, "reading the NIfTI header"):
        shape = tuple(int(n) for n in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:  # (x, y, z, 1)
            shape = shape[:-1]
        if len(shape) != 3:
            raise FileError(f"{path}: NIfTI of shape {shape}; needed one 3-D volume")
        return Grid.of(shape, np.array(header.get_best_affine(), dtype=float))


def _nifti_header(path: Path) -> nib.Nifti1Header:
    with blame(path, "reading the NIfTI header"):
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as stream:
            first = stream.read(4)
            stream.seek(0)
            new = 540 in (int.from_bytes(first, "little"), int.from_bytes(first, "big"))
            return (nib.Nifti2Header if new else nib.Nifti1Header).from_fileobj(stream)


def itk_grid(path: Path) -> Grid:
    """The grid of a MetaImage or NRRD file; only the header is read.

    Raises:
        FileError: neither, broken, or not one 3-D volume.
    """
    import SimpleITK as sitk

    kind = sniff(path)
    if kind not in ("metaimage", "nrrd"):
        raise FileError(f"{path}: not a MetaImage (.mhd) or NRRD file")
    with blame(path, f"reading the {kind} header"):
        reader = sitk.ImageFileReader()
        reader.SetImageIO("MetaImageIO" if kind == "metaimage" else "NrrdImageIO")
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        shape = tuple(int(n) for n in reader.GetSize())
        if len(shape) != 3:
            raise FileError(f"{path}: {kind} of size {shape}; needed one 3-D volume")
        affine = np.eye(4)
        affine[:3, :3] = np.array(reader.GetDirection()).reshape(3, 3) * np.array(
            reader.GetSpacing()
        )
        affine[:3, 3] = reader.GetOrigin()
        return Grid.of(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # ITK's LPS to RAS


SAME_GRID = 0.5
"""Two files lie on one grid when no corner of one is farther from that of the other than this part
of a voxel; writers of headers round."""


def volume_grid(path: Path) -> Grid:
    """The grid of a NIfTI, MetaImage or NRRD file; only the header is read.

    Raises:
        FileError: none of these, broken, or not one 3-D volume.
    """
    return nifti_grid(path) if sniff(path) == "nifti" else itk_grid(path)


def check_same_grid(grid: Grid, path: Path, other: Grid, other_path: Path) -> None:
    """Refuse two files whose voxels of one number do not lie in one place.

    Raises:
        FileError: another shape, or a corner farther apart than `SAME_GRID` voxels.
    """
    if grid.shape != other.shape:
        raise FileError(
            f"{path}: its grid {grid.shape} is not that of {other_path.name} {other.shape}"
        )
    corners = np.array([[*corner, 1.0] for corner in product(*((0, n - 1) for n in grid.shape))]).T
    apart = np.linalg.norm(((grid.affine - other.affine) @ corners)[:3], axis=0).max()
    if apart > SAME_GRID * min(other.spacing_mm):
        raise FileError(
            f"{path}: by its header it lies up to {apart:.1f} mm beside {other_path.name}, on which"
            " it should lie voxel by voxel"
        )


def check_placed(path: Path) -> None:
    """Refuse a NIfTI file that does not say where left is: without an orientation, or with the
    identity that programs write for want of one.

    Raises:
        FileError: as said.
    """
    header = _nifti_header(path)
    affine = np.array(header.get_best_affine(), dtype=float)
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise FileError(f"{path}: no orientation in the header, so left and right are not known")
    if np.allclose(affine, np.eye(4)):
        raise FileError(
            f"{path}: the orientation in the header is the identity, which stands for none: left"
            " and right are not known"
        )


def load_volume(path: Path, stream_name: str) -> Volume:
    """A whole volume that can be cut into slices.

    Raises:
        FileError: broken, NaN or infinite values, blank or in part so, or not a volume.
    """
    volume = read_volume(path, stream_name)
    array = volume.array
    if array.ndim != 3:
        raise FileError(f"{path}: an image of shape {array.shape}; needed a 3-D volume")
    if not np.isfinite(array).all():
        raise FileError(
            f"{path}: {(~np.isfinite(array)).sum()} of {array.size} values are NaN or infinite"
        )
    if array.min() == array.max():
        raise FileError(f"{path}: the volume is blank, every value is {array.flat[0]:g}")
    check_whole(array, str(path))
    return volume


def load_mask(path: Path, image: Path, allowed: tuple[int, ...], meaning: str) -> np.ndarray:
    """A segmentation as int (S, A, R), turned by its own directions.

    Args:
        image: the file that it was drawn on.  allowed: labels that may occur.  meaning: of them,
            for the message.

    Raises:
        FileError: broken, on another grid than the image, or with other labels.
    """
    array = read_volume(path, "ct").array  # the stream is asked for in folders only
    check_same_grid(volume_grid(path), path, volume_grid(image), image)
    found = np.unique(array)
    if not np.isin(found, allowed).all():
        raise FileError(
            f"{path}: labels {', '.join(f'{v:g}' for v in found[:8])}; known are {meaning}"
        )
    return array.astype(np.int16)


def percentile_unit(array: np.ndarray, percentiles: tuple[float, float], where: str) -> np.ndarray:
    """A volume to -1..1 between two of its percentiles, float32.

    Raises:
        FileError: no contrast between them.
    """
    low, high = np.percentile(array, percentiles)
    if not high > low:
        raise FileError(
            f"{where}: no contrast, percentiles {percentiles[0]:g} and {percentiles[1]:g} are both"
            f" {low:g}"
        )
    return np.clip((array - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)


def axial_entries(entry: Entry, numbers: Iterable[int]) -> tuple[Entry, ...]:
    """One entry for each of these slices, counted from the head; the number ends the id."""
    return tuple(replace(entry, id=f"{entry.id}_s{i:03d}", index=i) for i in numbers)
