"""Magnetic resonance signal: tissue parameters at 1.5 T, pulse sequences, and slices made from
tissue fractions.

The chain is: tissue fractions -> signal of every tissue from the sequence's equation ->
partial-volume mixture -> coil shading -> Rician noise -> a scale that is fixed for the contrast.
Because the scale is never fitted to the image, the brightness of a tissue means the same thing in
every study.

Sources of the tissue values (1.5 T, body temperature):

* Stanisz et al., Magn Reson Med 54:507 (2005): muscle, liver, blood, heart, T2 of grey and white
  matter.
* de Bazelaire et al., Radiology 230:652 (2004): subcutaneous fat, vertebral marrow.
* Rooney et al., Magn Reson Med 57:308 (2007): T1 of grey matter, white matter and cerebrospinal
  fluid in vivo.
* Whittall et al., Magn Reson Med 37:34 (1997): water content of grey and white matter.

"Choice" marks a value taken inside a plausible range because the sources above do not give it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from medm2g_core.data.fields import white_noise

__all__ = [
    "FULL_SCALE",
    "SEQUENCES",
    "TISSUES",
    "Sequence",
    "Tissue",
    "bias_field",
    "finish",
    "render",
    "signal",
]


@dataclass(frozen=True)
class Tissue:
    """Relaxation times in ms and proton density relative to free water (1.0)."""

    name: str
    t1_ms: float
    t2_ms: float
    pd: float


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence (times in ms): spin echo, or inversion recovery with spin-echo readout if
    ``ti_ms`` is set."""

    name: str
    tr_ms: float
    te_ms: float
    ti_ms: float | None = None


_CSF_T1_MS = 4300.0  # Rooney 2007: about 4.3 s, nearly independent of field strength

TISSUES: Mapping[str, Tissue] = MappingProxyType(
    {
        t.name: t
        for t in (
            Tissue("air", 1.0, 1.0, 0.0),
            Tissue("fat", 343.0, 58.0, 0.90),  # T1, T2: de Bazelaire 2004, subcutaneous; PD: choice
            Tissue(
                "muscle", 1008.0, 44.0, 0.80
            ),  # T1, T2: Stanisz 2005; PD: choice, about its water content
            Tissue("myocardium", 1030.0, 40.0, 0.80),  # T1, T2: Stanisz 2005, heart; PD: choice
            # Free water. T1: Rooney 2007 for cerebrospinal fluid; T2: choice (published 1.5-2.5 s);
            # PD: definition.
            Tissue("fluid", _CSF_T1_MS, 2000.0, 1.0),
            Tissue("csf", _CSF_T1_MS, 2000.0, 1.0),
            Tissue("blood", 1441.0, 290.0, 0.85),  # T1, T2: Stanisz 2005, not moving; PD: choice
            # Spin echo loses spins that leave the slice between its two pulses; the low PD stands
            # for that (choice).
            Tissue("flowing_blood", 1441.0, 290.0, 0.12),
            # Inflated lung is about four fifths air. T1 and T2: choice (about 1.1-1.2 s and 40 ms
            # by spin echo).
            Tissue("lung", 1150.0, 41.0, 0.20),
            Tissue(
                "bone", 300.0, 0.5, 0.15
            ),  # compact bone: sub-millisecond T2, no signal at these echo times; choice
            Tissue("marrow", 549.0, 49.0, 0.75),  # T1, T2: de Bazelaire 2004, vertebral; PD: choice
            Tissue("soft_tissue", 576.0, 46.0, 0.75),  # T1, T2: Stanisz 2005, liver; PD: choice
            Tissue(
                "gm", 1188.0, 95.0, 0.83
            ),  # T1: Rooney 2007; T2: Stanisz 2005; PD: Whittall 1997
            Tissue("wm", 656.0, 72.0, 0.70),  # T1: Rooney 2007; T2: Stanisz 2005; PD: Whittall 1997
            # Lesions vary widely between patients; all three numbers are choices inside the
            # published spread.
            Tissue("tumor", 1500.0, 150.0, 0.88),
            Tissue("necrosis", 3000.0, 400.0, 0.97),
            Tissue("edema", 1350.0, 150.0, 0.86),
            Tissue("wm_lesion", 1250.0, 150.0, 0.85),
            # An opaque lung: water-rich tissue in place of air (choice).
            Tissue("consolidation", 1250.0, 85.0, 0.80),
            Tissue(
                "scalp", 420.0, 54.0, 0.80
            ),  # mostly fat with muscle and skin: choice between those
            Tissue("skin", 950.0, 40.0, 0.70),  # choice
        )
    }
)


def _null_ti(t1_ms: float, tr_ms: float) -> float:
    """Inversion time in ms at which a tissue of that T1 gives no signal: root of ``1 - 2 e^(-TI/T1)
    + e^(-TR/T1)``."""
    return float(t1_ms * np.log(2.0 / (1.0 + np.exp(-tr_ms / t1_ms))))


SEQUENCES: Mapping[str, Sequence] = MappingProxyType(
    {
        s.name: s
        for s in (
            Sequence("t1", tr_ms=500.0, te_ms=15.0),
            Sequence("t2", tr_ms=4000.0, te_ms=100.0),
            Sequence("pd", tr_ms=3000.0, te_ms=20.0),
            Sequence("flair", tr_ms=9000.0, te_ms=120.0, ti_ms=_null_ti(_CSF_T1_MS, 9000.0)),
        )
    }
)

FULL_SCALE: Mapping[str, float] = MappingProxyType(
    {"t1": 0.50, "t2": 0.60, "pd": 0.78, "flair": 0.30}
)
"""Signal (in units of the magnetisation of free water) that is stored as +1; no signal is stored as
-1."""


def _sequence(contrast: str) -> Sequence:
    try:
        return SEQUENCES[contrast]
    except KeyError:
        raise ValueError(
            f"unknown MR contrast {contrast!r}; known: {', '.join(SEQUENCES)}"
        ) from None


def signal(
    t1_ms: Tensor | float,
    t2_ms: Tensor | float,
    pd: Tensor | float,
    contrast: str | Sequence,
) -> Tensor:
    """Magnitude of the transverse magnetisation at the echo.

    Spin echo::

        S = PD (1 - e^(-TR/T1)) e^(-TE/T2)

    Inversion recovery with a spin-echo readout::

        S = PD |1 - 2 e^(-TI/T1) + e^(-TR/T1)| e^(-TE/T2)

    both with perfect pulses and TE much shorter than TR.

    Args:
        t1_ms: longitudinal relaxation time in ms, above 0.
        t2_ms: transverse relaxation time in ms, above 0.
        pd: proton density, 1.0 is free water. The three broadcast against each other.
        contrast: a key of `SEQUENCES`, or a sequence.

    Returns:
        float32 tensor of the broadcast shape, 0..PD.

    Raises:
        ValueError: the contrast is unknown.
    """
    seq = contrast if isinstance(contrast, Sequence) else _sequence(contrast)
    t1, t2, density = (torch.as_tensor(v, dtype=torch.float32) for v in (t1_ms, t2_ms, pd))
    recovered = 1.0 - torch.exp(-seq.tr_ms / t1)
    if seq.ti_ms is not None:
        recovered = (1.0 - 2.0 * torch.exp(-seq.ti_ms / t1) + torch.exp(-seq.tr_ms / t1)).abs()
    return density * recovered * torch.exp(-seq.te_ms / t2)


def _positions(n: int, scale: int) -> np.ndarray:
    """Pixel centres along one side, -1..1 between the centres of the base picture's outermost
    pixels."""
    if scale == 1:
        return np.linspace(-1.0, 1.0, n)
    base = (np.arange(n) + 0.5) / scale - 0.5
    return 2.0 * base / (n // scale - 1) - 1.0


def bias_field(
    shape: tuple[int, int], rng: np.random.Generator, strength: float = 0.06, scale: int = 1
) -> Tensor:
    """Smooth positive coil shading (H, W) around 1, from three low waves of rms amplitude
    ``strength`` each; ``scale`` as in `finish`."""
    rows = _positions(shape[0], scale)[:, None]
    cols = _positions(shape[1], scale)[None, :]
    a, b, c = rng.normal(0.0, strength, 3)
    log = a * np.sin(rows * np.pi / 2) + b * np.sin(cols * np.pi / 2)
    log = log + c * (np.cos(rows * 2.2) * np.cos(cols * 2.2) - 0.5)
    return torch.from_numpy(np.exp(log).astype(np.float32))


def finish(
    clean: Tensor,
    contrast: str,
    rng: np.random.Generator,
    noise: float = 0.012,
    bias: float = 0.06,
    scale: int = 1,
) -> Tensor:
    """Shading, Rician noise and the fixed scale for a noise-free signal map.

    Args:
        clean: (H, W) signal, 0..1.
        contrast: a key of `SEQUENCES`.
        rng: source of the shading and the noise.
        noise: standard deviation of each of the two noise channels, as a fraction of the contrast's
            `FULL_SCALE`.
        bias: strength of the coil shading; 0 for none.
        scale: how many times finer than the base picture the map is; the noise of a pixel is as
            strong at every scale (see `medm2g_core.data.fields`).

    Returns:
        (H, W) float32, -1..1. Where there is no signal the mean is ``-1 + 2 noise sqrt(pi/2)``, the
        Rician floor.

    Raises:
        ValueError: the contrast is unknown, or ``clean`` is not (H, W).
    """
    _sequence(contrast)
    if clean.ndim != 2:
        raise ValueError(f"signal map has shape {tuple(clean.shape)}; needed one slice (H, W)")
    shape = (clean.shape[0], clean.shape[1])
    level = clean.float() / FULL_SCALE[contrast]
    if bias > 0:
        level = level * bias_field(shape, rng, bias, scale)
    if noise > 0:
        base = (2, shape[0] // scale, shape[1] // scale)
        normal = noise * white_noise(base, rng, scale)
        real, imaginary = torch.from_numpy(normal.astype(np.float32))
        level = torch.hypot(level + real, imaginary)
    return (level * 2.0 - 1.0).clamp(-1.0, 1.0)


def render(
    weights: Mapping[str, Tensor],
    contrast: str,
    rng: np.random.Generator,
    noise: float = 0.012,
    *,
    bias: float = 0.06,
    tissues: Mapping[str, Tissue] = TISSUES,
    scale: int = 1,
) -> Tensor:
    """One MR slice from tissue fractions.

    The signal of a voxel is the fraction-weighted sum of its tissues' signals (partial volume).
    Fractions that sum to less than 1 leave the rest to air.

    Args:
        weights: tissue name -> (H, W) fraction, 0..1; all of one shape.
        contrast: ``"t1"``, ``"t2"``, ``"pd"`` or ``"flair"``.
        rng: source of the shading and the noise.
        noise: see `finish`.
        bias: see `finish`.
        tissues: the table that the names are looked up in; pass a changed copy for one patient's
            own values.
        scale: see `finish`.

    Returns:
        (H, W) float32, -1..1, background near -1.

    Raises:
        ValueError: no weights, an unknown tissue or contrast, or shapes that differ.
    """
    if not weights:
        raise ValueError(
            "no tissue fractions given; needed at least one tissue name -> (H, W) tensor"
        )
    unknown = [n for n in weights if n not in tissues]
    if unknown:
        raise ValueError(f"unknown tissue {', '.join(unknown)}; known: {', '.join(tissues)}")
    shapes = {tuple(w.shape) for w in weights.values()}
    if len(shapes) != 1:
        raise ValueError(
            f"tissue fractions differ in shape: {sorted(shapes)}; needed one (H, W) for all"
        )
    clean = torch.zeros(next(iter(shapes)))
    for name, fraction in weights.items():
        tissue = tissues[name]
        clean = clean + fraction.float() * signal(tissue.t1_ms, tissue.t2_ms, tissue.pd, contrast)
    return finish(clean, contrast, rng, noise, bias, scale)
