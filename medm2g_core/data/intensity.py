"""Values of real images to the streams' fixed scale -1..1: is a CT in Hounsfield units, where do MR
signal and a radiograph begin and end."""

from __future__ import annotations

import numpy as np

from medm2g_core.data.volumes import FileError

__all__ = ["check_hu", "mr_to_unit", "xray_to_unit"]

WINDOW_FILL = 0.5
"""A window that less than half of the pixels lie in was meant for other values (it would clip the
picture); one of which the pixels span less than half leaves it almost black or white."""

MR_BRIGHT = 0.8
"""Where the bright end of an MR image goes on the streams' scale -1..1."""

MR_BRIGHT_TO_MEDIAN = {"mri_t1": 1.65, "mri_t2": 2.4, "mri_pd": 1.25, "mri_flair": 1.8}
"""Brightest common tissue over median brain, from the signal equations of `medm2g_core.data.mri`:
the bright end is at most this many medians, so that fat or a vessel close to the coil cannot darken
the brain."""


def check_hu(array: np.ndarray, where: str = "", *, narrow: bool = False) -> None:
    """Refuse values of a CT that cannot be Hounsfield units.

    Args:
        where: file, for the message.  narrow: a field of view so small that it may hold no air.

    Raises:
        FileError: no soft tissue near 0, nothing near -1000, or larger values than any: a rescale
            slope or intercept was lost, or this is no CT.
    """
    sample = array[tuple(slice(None, None, max(1, n // 128)) for n in array.shape)]
    low, high = float(sample.min()), float(sample.max())
    tissue = float(((sample > -200) & (sample < 300)).mean())
    if high > 32767 or high < -200 or tissue < 0.005 or low > (-50 if narrow else -500):
        raise FileError(
            f"{where}{': ' if where else ''}no plausible HU range: values {low:.4g}..{high:.4g}"
            " (air should be near -1000, soft tissue near 0..100); check the rescale slope and"
            " intercept, or that this is a CT"
        )


def mr_to_unit(
    values: np.ndarray, reference: np.ndarray | None = None, stream_name: str = "mri_t1"
) -> np.ndarray:
    """MR signal in arbitrary units to the streams' fixed scale -1..1.

    The 0.5th percentile of all voxels (the background) becomes -1. The 99.5th percentile of the
    foreground (above Otsu's threshold of the square-rooted signal), but at most
    `MR_BRIGHT_TO_MEDIAN` times the foreground's median, becomes `MR_BRIGHT` = 0.8. Linear between,
    clipped outside.

    Args:
        values: signal, any shape.
        reference: the volume that the percentiles are taken from, so that all its slices get one
            scale.
        stream_name: the MR stream; its contrast decides how far the bright end may be from the
            median.

    Returns:
        float32 of the shape of ``values``, -1..1.

    Raises:
        FileError: no contrast at all.
    """
    from skimage.filters import threshold_otsu

    reference = values if reference is None else reference
    sample = reference[tuple(slice(None, None, max(1, n // 128)) for n in reference.shape)].astype(
        np.float64
    )
    low = float(np.quantile(sample, 0.005))
    tame = np.sqrt(
        np.clip(sample - low, 0, np.quantile(sample, 0.98) - low)
    )  # else very bright fat is all of it
    foreground = sample[sample > low + threshold_otsu(tame) ** 2] if np.ptp(tame) > 0 else sample
    high = float(np.quantile(foreground, 0.995)) if foreground.size else float(sample.max())
    if foreground.size:
        high = min(
            high, low + MR_BRIGHT_TO_MEDIAN[stream_name] * (float(np.median(foreground)) - low)
        )
    if not high > low:
        raise FileError(
            f"the MR signal has no contrast: values {sample.min():.4g}..{sample.max():.4g}"
        )
    unit = (values.astype(np.float64) - low) / (high - low) * (MR_BRIGHT + 1) - 1
    return np.clip(unit, -1, 1).astype(np.float32)


def xray_to_unit(
    values: np.ndarray, window: tuple[float, float] | None, inverted: bool, notes: list[str]
) -> np.ndarray:
    """Radiograph to -1..1 with bone bright; adds to ``notes`` what was done.

    The file's own display window is used where it holds half of the pixels and these span half of
    it (see `WINDOW_FILL`), else the 0.5th to 99.5th percentiles.

    Args:
        values: (rows, columns).
        window: (low, high) in the same unit, or ``None``.
        inverted: MONOCHROME1, large values are dark.
    """
    if window is None or not _fills(values, window):
        window = (float(np.quantile(values, 0.005)), float(np.quantile(values, 0.995)))
        if window[0] == window[1]:
            window = (float(values.min()), float(values.max()))
        notes.append(
            f"shown between the 0.5th and 99.5th percentiles, {window[0]:.4g}..{window[1]:.4g}"
        )
    low, high = window
    unit = np.clip((values.astype(np.float64) - low) / (high - low) * 2 - 1, -1, 1)
    if inverted:
        unit = -unit
        notes.append("MONOCHROME1 inverted: bone is bright")
    return unit.astype(np.float32)


def _fills(values: np.ndarray, window: tuple[float, float]) -> bool:
    """Whether a display window and the values belong together."""
    inside = float(((values >= window[0]) & (values <= window[1])).mean())
    low, high = np.quantile(np.clip(values, *window), (0.005, 0.995))
    return inside >= WINDOW_FILL and bool(high - low >= WINDOW_FILL * (window[1] - window[0]))
