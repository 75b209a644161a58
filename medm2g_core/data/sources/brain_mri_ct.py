"""The Kaggle brain MR and CT arrays (chenghanpu): three pairs of ``.npy`` files, an array of slices
each.

Two sets go by nearly the same name. The other one (folders Healthy and Tumor of JPEG files) shows
different people in its MR and its CT pictures and is refused here, since nothing in it is paired.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from medm2g_core.data.intensity import check_hu, mr_to_unit
from medm2g_core.data.sources.base import (
    SPLITS,
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceError,
    SourceStudy,
)
from medm2g_core.data.sources.imaging import (
    check_shows_something,
    ct_to_unit,
    paired_slices,
)
from medm2g_core.data.sources.trees import files_below, folders_below
from medm2g_core.data.volumes import FileError, blame, sniff

__all__ = ["BrainMRICT", "BrainMRICTInputs"]

_ARRAY = re.compile(r"(train|val|test)_(input|output)\.npy", re.IGNORECASE)
_LOOK_ALIKE = re.compile(r"brain tumor (ct scan|mri) images", re.IGNORECASE)
_PUBLISHED = {"train": 570, "val": 90, "test": 150}
MIN_STD = 0.01
"""An image that varies less is empty on any scale that the arrays could have (0..1, 0..255 or
HU)."""
MIN_FILLED = 0.01
"""Nor is it an image if fewer of its pixels differ from its median by a hundredth of the array's
range."""
SAME_PICTURE = 0.999
"""Correlation of a target with its input; an MR and a CT of one head have far less."""
SAMPLED = 16
"""So many images of an array are looked at before anything is read; each is checked again when it
is."""


class BrainMRICT(Source):
    """MR (input) and CT (output) slices that the publisher paired, as ``mri_t1`` and ``ct``."""

    name = "brain_mri_ct"
    region = "brain"
    streams: ClassVar[tuple[str, ...]] = ("ct", "mri_t1")
    inputs_only = False
    card = DataCard(
        title="Brain MRI and CT (Kaggle, chenghanpu)",
        homepage="https://www.kaggle.com/datasets/chenghanpu/brain-tumor-mri-and-ct-scan",
        licence="not stated clearly by the publisher: look at the page before any use",
        access="free download with a Kaggle account",
        paper_use="named for it by secondary sources; for which task is not known [S]",
        lost=(
            "spacing and orientation, which the arrays do not carry: pictures are shown as stored",
            "signal scale of the MR; HU outside -1000..600",
        ),
        faults=(
            (
                "targets are reported nearly empty: their spread is checked, and an empty array is"
                " an error"
            ),
            (
                "no patient ids: slices of one head may be in two splits, and leakage cannot be"
                " audited"
            ),
            "targets that are their inputs again, or noise, are an error",
            "CT that is not in HU is brought to -1..1 by the range of its array, and says so",
            (
                "the look-alike of Healthy and Tumor folders is told by its folders, and refused as"
                " not paired"
            ),
        ),
        layout=(
            "  data(processed)/{train,val,test}_input.npy    MR, (570 | 90 | 150, 256, 256)"
            " float64\n  data(processed)/{train,val,test}_output.npy   CT, the same shapes\n "
            " Dicom/                                        not read"
        ),
        recalled=(
            "input is MR and output is CT",
            "the MR is T1-weighted",
            "scale of the values",
            "homepage",
        ),
    )

    def scan(self, root: Path) -> Found:
        arrays: dict[tuple[str, str], Path] = {}
        twice: list[Skip] = []
        for path in files_below(root, "*.npy"):
            match = _ARRAY.fullmatch(path.name)
            if match:
                first = arrays.setdefault((match[1].lower(), match[2].lower()), path)
                if first != path:
                    why = f"{first} has the same name and is used"
                    twice.append(Skip("second copy", str(path), why))
        if not arrays:
            raise self.not_here(root, _look_alike(root) or "no array such as train_input.npy")
        entries: list[Entry] = []
        skips: list[Skip] = twice
        table: list[Expectation] = []
        for split in SPLITS:
            found = {}
            for role, name in (("input", "mri_t1"), ("output", "ct")):
                file = arrays.get((split, role))
                if file is None or (role == "output" and self.inputs_only):
                    continue
                try:
                    found[name] = file, len(_array(file))
                except FileError as error:
                    skips.append(Skip("unreadable array", file.name, str(error)))
            if len({n for _, n in found.values()}) > 1:
                counts = " and ".join(f"{n} in {p.name}" for p, n in found.values())
                raise SourceError(
                    f"{root}: {counts}: images that do not pair one to one cannot be used"
                )
            for array, _ in found.values():
                self._check_filled(array)
            if len(found) == 2:
                _check_pair(found["mri_t1"][0], found["ct"][0])
            files = {name: path for name, (path, _) in found.items()}
            count = next((n for _, n in found.values()), 0)
            entries += [
                Entry(f"{split}_{k:04d}", f"{split}_{k:04d}", split, files, index=k)
                for k in range(count)
            ]
            whole = len(files) == len(self.streams)
            table.append(
                Expectation.count(f"{split} images", _PUBLISHED[split], count if whole else 0)
            )
        table.append(
            Expectation(
                "patients", "", "unknown", "surprising", "no patient ids: leakage cannot be audited"
            )
        )
        return Found(tuple(entries), tuple(skips), tuple(table))

    def _check_filled(self, path: Path) -> None:
        """Refuse an array of nearly empty images.

        Raises:
            SourceError: more than half of `SAMPLED` images of it are empty.
        """
        array = _array(path)
        sample = np.asarray(array[np.unique(np.linspace(0, len(array) - 1, SAMPLED).astype(int))])
        finite = sample[np.isfinite(sample)]
        span, spread = (
            (float(np.ptp(finite)), float(finite.std())) if finite.size else (0.0, float("nan"))
        )
        empty = sum(_empty(image, span) for image in sample)
        if 2 * empty > len(sample):
            raise SourceError(
                f"{path}: {empty} of {len(sample)} images looked at are nearly empty (standard"
                f" deviation of all {spread:.3g}), so there is nothing to learn from. This is a"
                " known fault of the published targets: make them anew from Dicom/, or take the"
                f" data set {BrainMRICTInputs.name!r}, which holds the inputs alone"
            )

    def read(self, entry: Entry, size: int) -> SourceStudy:
        index = entry.slice_index
        units, notes = {}, ["no spacing, orientation or patient in the arrays: shown as stored"]
        meaning = {}
        for name, path in entry.files.items():
            image = np.asarray(_array(path)[index], dtype=np.float32)
            if not np.isfinite(image).all():
                raise FileError(f"{path}: image {index} holds NaN or infinite values")
            if _empty(image, float(np.ptp(image))):
                raise FileError(
                    f"{path}: image {index} is blank (standard deviation {float(image.std()):.3g})"
                )
            check_shows_something(_stretched(image), f"{path}, image {index}")
            meaning[name] = "signal"
            if name == "ct":
                unit, meaning[name] = _ct(image, path)
                if meaning[name] != "HU":
                    notes.append("the CT is not in HU: the range of its array is brought to -1..1")
            else:
                unit = mr_to_unit(image, stream_name=name)
            units[name] = unit[None]
        return self.study(
            entry,
            paired_slices(units, 0, (1.0, 1.0), size)[0],
            units=meaning,
            orientation="as stored",
            notes=notes,
        )


class BrainMRICTInputs(BrainMRICT):
    """The MR slices alone, for copies whose targets are empty."""

    name = "brain_mri_ct_inputs"
    streams = ("mri_t1",)
    inputs_only = True


def _array(path: Path) -> np.ndarray:
    """(images, rows, columns), mapped and not read.

    Raises:
        FileError: no ``.npy`` file, pickled objects, cut off, or another shape.
    """
    with blame(path, "reading the array"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise FileError(f"{path}: not one plain array of real numbers")
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3 or 0 in array.shape:
        raise FileError(f"{path}: shape {array.shape}; needed (images, rows, columns)")
    return array


def _empty(image: np.ndarray, span: float) -> bool:
    """Whether an image (rows, columns) of an array with that range of values shows nothing."""
    if not np.isfinite(image).all() or float(image.std()) < MIN_STD:
        return True
    return float((np.abs(image - np.median(image)) > span / 100).mean()) < MIN_FILLED


def _stretched(image: np.ndarray) -> np.ndarray:
    """An image to -1..1 by its own range, to look at and not to keep."""
    return (image - image.min()) / np.ptp(image) * 2 - 1


def _sample(array: np.ndarray) -> np.ndarray:
    """`SAMPLED` images from the whole length of an array, float32."""
    picked = np.unique(np.linspace(0, len(array) - 1, SAMPLED).astype(int))
    return np.asarray(array[picked], dtype=np.float32)


def _check_pair(inputs: Path, outputs: Path) -> None:
    """Refuse targets that are no pictures of their own.

    Raises:
        SourceError: more than half of `SAMPLED` targets are their input again (as it is, scaled or
            inverted), are noise, or are all one picture.
    """
    mr, ct = _sample(_array(inputs)), _sample(_array(outputs))
    copies = noise = 0
    for a, b in zip(mr, ct, strict=True):
        if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
            continue
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            copies += abs(float(np.corrcoef(a.ravel(), b.ravel())[0, 1])) > SAME_PICTURE
            try:
                check_shows_something(_stretched(b))
            except FileError:
                noise += 1
    repeated = len(ct) > 2 and bool((ct == ct[:1]).all())
    for wrong, what in (
        (2 * copies > len(ct), f"{copies} of {len(ct)} images looked at are copies of their input"),
        (2 * noise > len(ct), f"{noise} of {len(ct)} images looked at are noise"),
        (repeated, f"all {len(ct)} images looked at are the same picture"),
    ):
        if wrong:
            raise SourceError(
                f"{outputs}: {what}, so there is nothing to learn from. Make the targets anew from"
                f" Dicom/, or take the data set {BrainMRICTInputs.name!r}, which holds the inputs"
                " alone"
            )


@lru_cache(maxsize=8)
def _range(path: Path) -> tuple[float, float]:
    """Lowest and highest finite value of an array, so that all its images get one scale."""
    array = _array(path)
    values = [np.asarray(image)[np.isfinite(image)] for image in array]
    return min(float(v.min()) for v in values if v.size), max(
        float(v.max()) for v in values if v.size
    )


def _ct(image: np.ndarray, path: Path) -> tuple[np.ndarray, str]:
    """A CT slice in -1..1 and what its values meant, both as the whole array has it: a slice
    without air, or one that was clipped, has no scale of its own."""
    low, high = _range(path)
    if low < -500:
        check_hu(image, str(path), narrow=True)
        return ct_to_unit(image), "HU"
    return (image - low) / (high - low) * 2 - 1, "display intensity"


def _look_alike(root: Path) -> str:
    """What the other set of nearly the same name is called, with its exact duplicates; nothing if
    it is not there."""
    folders = list(folders_below(root))
    named = [p for p in folders if _LOOK_ALIKE.fullmatch(p.name)]
    pair = [p for p in folders if (p / "Healthy").is_dir() and (p / "Tumor").is_dir()]
    pictures = sorted({p for folder in (*named, *pair) for p in files_below(folder, "*")})
    digests: Counter[str] = Counter()
    for path in pictures:
        try:
            if sniff(path) in ("png", "jpeg"):
                digests[hashlib.sha256(path.read_bytes()).hexdigest()] += 1
        except FileError:
            continue  # an empty or unreadable file is no picture
    if not digests:
        return ""
    twice = sum(n - 1 for n in digests.values())
    return (
        f"this is the other set, of Healthy and Tumor folders ({digests.total()} pictures, {twice}"
        " exact duplicates); its MR and CT are of different people and not paired, so it cannot"
        " stand in"
    )
