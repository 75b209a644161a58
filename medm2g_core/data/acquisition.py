"""The same patient on another scanner: random acquisition of the pictures that are *given*.

A network that has seen one synthetic scanner only takes every other look for disease. SynthSeg
showed that a network trained on synthetic heads carries over to real scans of any contrast and
resolution where the synthesis was randomised far beyond what is real; SynthSR used it for
synthesis: the *input* is a random acquisition, the *target* stays one canonical picture, so the
network learns to undo whatever the scanner did. Here too: `acquire` what a model is given, never
what it is to draw.

* Billot et al., SynthSeg: segmentation of brain MRI scans of any contrast and resolution without
  retraining, Med Image Anal 86:102789 (2023).
* Iglesias et al., Joint super-resolution and synthesis of 1 mm isotropic MP-RAGE volumes from
  clinical MRI exams with scans of different orientation, resolution and contrast, NeuroImage
  237:118206 (2021).
* Iglesias et al., SynthSR: a public AI tool to turn heterogeneous clinical brain scans into
  high-resolution T1-weighted images for 3D morphometry, Sci Adv 9:eadd3607 (2023).

Unlike there, the contrast stays that of its stream: a T2 must stay a T2, since the model is told
which stream it is given. The ranges are choices: what differs between real films and scanners, kept
so narrow that what the report says can still be seen in nearly every picture. Ranges in pixels
count for a picture of `BASE_PX` a side and grow with the size.

Everything is plain tensor arithmetic: nothing branches on a tensor's value, copies to the host or
makes a tensor from Python numbers, so it runs inside a captured CUDA graph (register the generator
with the graph).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from medm2g_core.data.blurring import blurred, slice_matrices
from medm2g_core.data.fields import BASE_PX
from medm2g_core.streams import StreamError, hu_to_unit, stream, unit_to_hu

__all__ = [
    "RANGES",
    "CTRanges",
    "FieldOfView",
    "FilmRanges",
    "MRRanges",
    "Ranges",
    "acquire",
]


@dataclass(frozen=True)
class FieldOfView:
    """How the patient lies in the picture. Small, for the flows learn to map place to place."""

    chance: float = 0.5
    """Probability that a picture gets another field of view."""
    zoom: float = 1.04
    """Largest factor, and its inverse the smallest."""
    shift: float = 0.025
    """Largest shift along each axis, in sides of the picture: 3 pixels of 128."""
    rotation_deg: float = 2.5
    """Largest rotation in degrees either way: what positioning leaves."""


@dataclass(frozen=True)
class FilmRanges:
    """Radiographs, on a scale from 0 (black) to 1 (white, bone)."""

    gamma: tuple[float, float] = (0.6, 1.6)
    """Probability, and largest exponent of the film curve (its inverse the smallest)."""
    contrast: tuple[float, float] = (0.5, 1.25)
    """Probability, and largest factor about the film's mean: width of the display window."""
    brightness: tuple[float, float] = (0.5, 0.08)
    """Probability, and largest offset: its level, and the exposure (a factor of photons is an
    offset after the logarithm)."""
    curve: tuple[float, float] = (0.5, 1.2)
    """Probability, and largest steepness k of tanh(k x) / tanh(k), or of its inverse: film and
    sigmoid tables against linear ones."""
    scatter: tuple[float, float] = (0.5, 0.35)
    """Probability, and largest share of the picture that is exchanged for its blur (scatter, no
    grid); negative: taken off (dynamic-range compression)."""
    scatter_px: float = 16.0
    """Gaussian sigma of that blur in pixels; scatter of a chest spreads some centimetres."""
    shading: tuple[float, float] = (0.5, 0.06)
    """Probability, and largest factor of a smooth additive field (deviation 0.7): heel effect, grid
    cut-off."""
    blur: tuple[float, float] = (0.3, 0.7)
    """Probability, and largest sigma in pixels: focal spot, scanned film, resizing."""
    edges: tuple[float, float] = (0.3, 0.8)
    """Probability, and largest share of detail (what a blur of `DETAIL_PX` takes away) that is
    added once more: edge enhancement."""
    noise: tuple[float, float] = (0.5, 0.022)
    """Probability, and largest deviation in white; half as much in black, where more photons
    came."""
    frame: tuple[float, float] = (0.15, 0.06)
    """Probability for *each side*, and largest width in sides of the picture, of a dark frame from
    collimation. Wider ones would cover the costophrenic angles."""
    frame_tilt: float = 0.02
    """Largest slope of a frame's edge: about one degree."""


@dataclass(frozen=True)
class CTRanges:
    """Computed tomography, in Hounsfield units."""

    offset_hu: tuple[float, float] = (0.5, 12.0)
    """Probability, and largest offset; quality control allows water 4 to 7 HU, files more."""
    scale: tuple[float, float] = (0.5, 1.03)
    """Probability, and largest factor of HU: tube voltage moves bone and contrast medium most."""
    soft_px: tuple[float, float] = (0.3, 0.9)
    """Probability, and largest sigma in pixels of a soft kernel."""
    sharp: tuple[float, float] = (0.3, 0.9)
    """Probability, and largest share of detail that is added once more: a sharp kernel. Where both
    kernels fall, the soft one goes first: an edge-enhanced soft picture."""
    thickness_px: tuple[float, float] = (0.3, 1.5)
    """Probability, and by how much more than one pixel the slices are thick and apart. Slices of a
    coronal picture are its rows: up to 7 mm at 2.8 mm a pixel, as older chest protocols have."""
    noise_hu: tuple[float, float] = (0.6, 28.0)
    """Probability, and largest deviation; thin slices at low dose have more, but a pixel here is an
    average of several of theirs."""
    noise_px: float = 0.8
    """Largest sigma in pixels of the noise's grain, which the kernel makes."""
    circle: tuple[float, float] = (0.12, 0.3)
    """Probability of padding with air outside of a circular field of view, and how far at most it
    comes in from the corners, in half sides. The circle then still reaches all four sides or
    nearly so."""
    frame: tuple[float, float] = (0.12, 0.05)
    """Probability for left and for right, and largest width in sides: that circle seen in a coronal
    picture cuts straight."""


@dataclass(frozen=True)
class MRRanges:
    """Magnetic resonance of any contrast, on a scale from 0 (no signal) to 1."""

    curve: tuple[float, float, float, float] = (0.6, 0.12, 0.05, 0.03)
    """Probability, and largest amplitudes a_k of the intensity curve u + sum a_k sin(k pi u),
    k = 1..3: TR, TE, TI and field strength shift tissues against each other. At strength 1 its
    slope stays above 0, so no two tissues change places; beyond that it can fall below, mildly."""
    gamma: tuple[float, float] = (0.5, 1.35)
    """Probability, and largest exponent: how strongly weighted the picture is."""
    gain: tuple[float, float] = (0.6, 1.2)
    """Probability, and largest factor of the bright end, which curve, exponent and bias field leave
    where it was: signal has no unit, and scaling a file by its percentiles errs by about that."""
    bias: tuple[float, float] = (0.6, 0.22)
    """Probability, and largest factor of a smooth field (deviation 0.7) whose exponential
    multiplies the signal: coils' sensitivity."""
    blur: tuple[float, float] = (0.3, 0.6)
    """Probability, and largest sigma in pixels: small matrix, filters."""
    thickness_px: tuple[float, float] = (0.35, 1.5)
    """Probability, and by how much more than one pixel voxels are long along one axis, rows or
    columns by chance: 5 mm slices of a reformatted head, at 1.8 mm a pixel."""
    noise: tuple[float, float] = (0.6, 0.04)
    """Probability, and largest deviation of each of the two channels (Rician)."""
    strip: float = 0.1
    """Probability that a *head* comes without scalp and skull, as public data sets often do."""
    strip_px: tuple[float, float] = (7.0, 10.0)
    """Least and largest depth below the head's outline that is taken off, in pixels of 1.8 mm:
    scalp and skull of an adult are 12 to 18 mm thick."""


@dataclass(frozen=True)
class Ranges:
    """How far acquisitions differ at strength 1. Pairs are (probability, largest amount)."""

    untouched: float = 0.2
    """Share of pictures that stay canonical, bit for bit: the model must not forget those."""
    view: FieldOfView = FieldOfView()
    film: FilmRanges = FilmRanges()
    ct: CTRanges = CTRanges()
    mr: MRRanges = MRRanges()


RANGES = Ranges()
"""The ranges that `acquire` uses unless told otherwise."""

DETAIL_PX = 1.2
"""Sigma in pixels of the blur that tells detail from the rest when edges are enhanced."""
FIELD_KNOTS = 3
"""Smooth fields are cubic between a grid of so many random knots along each side."""
HEAD_FROM = 0.05
"""Signal, 0..1, above which a smoothed MR picture of a head is no air: the noise floor lies near
0.02, the dark scalp of a FLAIR near 0.1."""
BRIGHT_POWER = 8
"""The bright end of a picture is its power mean of this exponent: the level of its
bright tissues, without sorting."""
SMALLEST = 1e-6
"""Keeps a divisor off 0."""


class _Draws:
    """Random numbers, one a sample, shaped (B, 1, 1, 1); amounts are 0 (nothing changes) at
    strength 0 and grow in proportion to it."""

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator, strength: float) -> None:
        self.shape, self.device = shape, generator.device
        self.generator, self.strength = generator, strength

    def share(self) -> Tensor:
        """Uniform in 0..1, whatever the strength."""
        return torch.rand(self.shape[0], 1, 1, 1, generator=self.generator, device=self.device)

    def coin(self, chance: float) -> Tensor:
        return self.share() < chance

    def amount(self, most: float) -> Tensor:
        """Uniform in 0..most."""
        return self.share() * (most * self.strength)

    def around(self, most: float) -> Tensor:
        """Uniform in -most..most."""
        return (2 * self.share() - 1) * (most * self.strength)

    def factor(self, most: float) -> Tensor:
        """Log-uniform in 1/most..most."""
        return torch.exp(self.around(math.log(most)))

    def white(self) -> Tensor:
        """Normal noise of mean 0 and deviation 1 for every pixel, (B, 1, H, W)."""
        return torch.randn(self.shape, generator=self.generator, device=self.device)

    def smooth(self) -> Tensor:
        """A smooth field (B, 1, H, W) of mean 0 and a deviation of about 0.7."""
        knots = torch.randn(
            (self.shape[0], 1, FIELD_KNOTS, FIELD_KNOTS),
            generator=self.generator,
            device=self.device,
        )
        field = functional.interpolate(
            knots, size=self.shape[-2:], mode="bicubic", align_corners=True
        )
        return field - field.mean((-2, -1), keepdim=True)


@torch.no_grad()
def acquire(
    image: Tensor,
    stream_name: str,
    generator: torch.Generator,
    strength: float = 1.0,
    *,
    geometry: bool = True,
    head: Tensor | bool = False,
    ranges: Ranges = RANGES,
) -> Tensor:
    """The same patients as another scanner, film or protocol would show them.

    Every sample has its own random parameters. What comes out for a sample depends on its own
    picture, its place in the batch and the generator, never on its neighbours' pictures. The same
    numbers are drawn at every strength above 0, so that strengths can be compared; strength 0 draws
    none.

    Args:
        image: (B, 1, H, H), -1..1.
        stream_name: image stream of all of them; decides what is varied.
        generator: on the device of ``image``.
        strength: factor of all ranges; 0 gives ``image`` itself back, 1 the ranges as they stand.
        geometry: ``True`` varies the field of view of every picture on its own; ``False`` leaves
            every structure on its pixels.
        head: which pictures are axial heads, bool (B,) or one for all: only these may lose scalp
            and skull. Nothing in a picture is asked for that.
        ranges: how far, at strength 1.

    Returns:
        (B, 1, H, H) of the dtype of ``image``, -1..1.

    Raises:
        StreamError: not an image stream, or a tensor of another shape or of integers.
        ValueError: a negative strength.
        RuntimeError: (torch) the generator is on another device.
    """
    modality = stream(stream_name).modality
    square = image.ndim == 4 and image.shape[1] == 1 and image.shape[2] == image.shape[3]
    if modality == "text" or not square:
        raise StreamError(
            f"{stream_name}, shape {tuple(image.shape)}: needed an image stream, (B, 1, H, H)"
        )
    if not image.is_floating_point():
        raise StreamError(f"{stream_name}: got {image.dtype}; needed floats, -1..1")
    if strength < 0:
        raise ValueError(f"strength {strength}: needed 0 or more")
    if strength == 0:
        return image
    with torch.autocast(image.device.type, enabled=False):  # positions need more than 8 bits
        draws = _Draws(tuple(image.shape), generator, strength)
        views = _views(draws, ranges.view)
        out = image.float()
        if geometry:
            out = _move(out, views)
        touched = ~draws.coin(ranges.untouched)
        if modality == "xray":
            out = _film(out, draws, ranges.film)
        elif modality == "ct":
            out = _ct(out, draws, ranges.ct)
        else:
            out = _mr(out, draws, ranges.mr, head)
        return torch.where(touched, out.clamp(-1, 1).to(image.dtype), image)


def _views(draws: _Draws, view: FieldOfView) -> Tensor:
    """Fields of view (B, 2, 3): affine maps from places in the new picture to places in the old
    one, both -1..1 from edge to edge."""
    changed = draws.coin(view.chance).float()
    zoom = torch.exp(changed * draws.around(math.log(view.zoom)))
    angle = changed * draws.around(math.radians(view.rotation_deg))
    shift_x, shift_y = (changed * 2 * draws.around(view.shift) for _ in range(2))
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    first, second = torch.cat([cos, -sin, shift_x], -1), torch.cat([sin, cos, shift_y], -1)
    return torch.cat([first, second], -2)[:, 0]


def _move(image: Tensor, views: Tensor) -> Tensor:
    """Pictures (B, 1, H, H), -1..1, seen in other fields of view; the outermost pixels go on
    outside."""
    grid = functional.affine_grid(views, list(image.shape), align_corners=False)
    moved = functional.grid_sample(
        image, grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    return moved.clamp(-1, 1)


def _film(image: Tensor, draws: _Draws, ranges: FilmRanges) -> Tensor:
    px = _px(image)
    x = (image + 1) / 2
    chance, most = ranges.blur
    sigma = px * draws.amount(most)
    x = torch.where(draws.coin(chance), blurred(x, sigma, sigma), x)
    chance, most = ranges.scatter
    share, wide = draws.around(most), torch.full_like(sigma, px * ranges.scatter_px)
    x = torch.where(draws.coin(chance), x + share * (blurred(x, wide, wide) - x), x)
    chance, most = ranges.shading
    x = torch.where(draws.coin(chance), x + draws.amount(most) * draws.smooth(), x)
    chance, most = ranges.noise
    deviation = draws.amount(most) * (0.5 + 0.5 * x.clamp(0, 1))
    x = torch.where(draws.coin(chance), x + deviation * draws.white(), x)
    chance, most = ranges.edges
    x = torch.where(draws.coin(chance), x + draws.amount(most) * _detail(x), x)
    chance, most = ranges.curve
    steep = draws.amount(most).clamp_min(SMALLEST**0.5)
    signed, full = 2 * x.clamp(0, 1) - 1, torch.tanh(steep)
    sigmoid = torch.tanh(steep * signed) / full
    linear = torch.atanh(full * signed) / steep
    curved = torch.where(draws.coin(0.5), sigmoid, linear)
    x = torch.where(draws.coin(chance), (curved + 1) / 2, x)
    chance, most = ranges.gamma
    x = torch.where(draws.coin(chance), x.clamp(0, 1) ** draws.factor(most), x)
    chance, most = ranges.contrast
    mean = x.mean((-2, -1), keepdim=True)
    x = torch.where(draws.coin(chance), mean + draws.factor(most) * (x - mean), x)
    chance, most = ranges.brightness
    x = torch.where(draws.coin(chance), x + draws.around(most), x)
    chance, most = ranges.frame
    rows, columns = _positions(image)
    for across, along in ((rows, columns), (-rows, columns), (columns, rows), (-columns, rows)):
        width = torch.where(draws.coin(chance), draws.amount(most), 0)
        edge = 1 - 2 * width + draws.around(ranges.frame_tilt) * (along - 1)
        open_ = (0.5 + (edge - across) * (BASE_PX / 2)).clamp(0, 1)  # soft over a pixel
        x = torch.where(width > 0, x.clamp(0, 1) * open_, x)
    return 2 * x - 1


def _ct(image: Tensor, draws: _Draws, ranges: CTRanges) -> Tensor:
    px = _px(image)
    hu = unit_to_hu(image)
    chance, most = ranges.scale
    hu = torch.where(draws.coin(chance), hu * draws.factor(most), hu)
    chance, most = ranges.offset_hu
    hu = torch.where(draws.coin(chance), hu + draws.around(most), hu)
    chance, most = ranges.soft_px
    sigma = px * draws.amount(most)
    hu = torch.where(draws.coin(chance), blurred(hu, sigma, sigma), hu)
    chance, most = ranges.noise_hu
    grain = px * draws.amount(ranges.noise_px)
    noise = blurred(draws.white(), grain, grain)
    noise = noise / noise.std((-3, -2, -1), keepdim=True)
    hu = torch.where(draws.coin(chance), hu + draws.amount(most) * noise, hu)
    chance, most = ranges.sharp  # after the noise, which a sharp kernel raises too
    hu = torch.where(draws.coin(chance), hu + draws.amount(most) * _detail(hu), hu)
    chance, most = ranges.thickness_px
    slices = slice_matrices(image.shape[-2], 1 + px * draws.amount(most), draws.share())
    hu = torch.where(draws.coin(chance), slices @ hu, hu)
    x = hu_to_unit(hu)
    rows, columns = _positions(image)
    chance, most = ranges.circle
    radius = math.sqrt(2) - draws.amount(most)
    inside = rows.square() + columns.square() < radius.square()
    x = torch.where(draws.coin(chance) & ~inside, -1, x)
    chance, most = ranges.frame
    for across in (columns, -columns):
        outside = across > 1 - 2 * draws.amount(most)
        x = torch.where(draws.coin(chance) & outside, -1, x)
    return x


def _mr(image: Tensor, draws: _Draws, ranges: MRRanges, head: Tensor | bool) -> Tensor:
    px = _px(image)
    x = (image + 1) / 2
    least, most = ranges.strip_px
    depth = px * (least + (most - least) * draws.share())
    strip = draws.coin(ranges.strip * min(1.0, draws.strength))
    if isinstance(head, Tensor):
        strip = strip & head.view(-1, 1, 1, 1)
    if head is not False:  # a Python value or a tensor's presence, not what a tensor holds
        kept = (_depth_in_head(x, math.ceil(px * most)) - depth + 0.5).clamp(0, 1)
        x = torch.where(strip, x * kept, x)
    bright = _bright_end(x)
    chance, *amplitudes = ranges.curve
    curved = x
    for k, most in enumerate(amplitudes, start=1):
        curved = curved + draws.around(most) * torch.sin(k * math.pi * x)
    x = torch.where(draws.coin(chance), curved.clamp(0, 1), x)
    chance, most = ranges.gamma
    x = torch.where(draws.coin(chance), x ** draws.factor(most), x)
    chance, most = ranges.blur
    sigma = px * draws.amount(most)
    x = torch.where(draws.coin(chance), blurred(x, sigma, sigma), x)
    chance, most = ranges.thickness_px
    long, start = 1 + px * draws.amount(most), draws.share()
    of_rows = slice_matrices(image.shape[-2], long, start) @ x
    of_columns = x @ slice_matrices(image.shape[-1], long, start).mT
    coarse = torch.where(draws.coin(0.5), of_rows, of_columns)
    x = torch.where(draws.coin(chance), coarse, x)
    chance, most = ranges.bias
    x = torch.where(draws.coin(chance), x * torch.exp(draws.amount(most) * draws.smooth()), x)
    x = x * (bright / _bright_end(x).clamp_min(SMALLEST))
    chance, most = ranges.gain
    x = torch.where(draws.coin(chance), x * draws.factor(most), x)
    chance, most = ranges.noise
    deviation = draws.amount(most)
    noisy = torch.hypot(x + deviation * draws.white(), deviation * draws.white())
    x = torch.where(draws.coin(chance), noisy, x)
    return 2 * x - 1


def _bright_end(signal: Tensor) -> Tensor:
    """How bright the bright parts of each picture are, (B, 1, 1, 1)."""
    return signal.pow(BRIGHT_POWER).mean((-2, -1), keepdim=True).pow(1 / BRIGHT_POWER)


def _px(image: Tensor) -> float:
    """Pixels of this picture along one pixel of the base picture."""
    return image.shape[-1] / BASE_PX


def _positions(image: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of rows (H, 1) and columns (1, W), -1..1 from edge to edge."""
    rows, columns = (
        (2 * torch.arange(n, device=image.device) + 1) / n - 1 for n in image.shape[-2:]
    )
    return rows[:, None], columns[None, :]


def _detail(image: Tensor) -> Tensor:
    """What a blur of `DETAIL_PX` takes away."""
    sigma = image.new_full((1, 1, 1, 1), DETAIL_PX * _px(image))
    return image - blurred(image, sigma, sigma)


def _depth_in_head(signal: Tensor, most: int) -> Tensor:
    """How many pixels, up to ``most``, each pixel lies below the outline of the head, the outline
    being the outermost signal from left, right, front and back."""
    sigma = signal.new_full((1, 1, 1, 1), _px(signal))
    above = (blurred(signal, sigma, sigma) > HEAD_FROM).float()
    inside = torch.ones_like(above)
    for axis in (-2, -1):
        before, after = above.cumsum(axis), above.flip(axis).cumsum(axis).flip(axis)
        inside = inside * (before > 0) * (after > 0)
    depth = inside
    for _ in range(most):
        ringed = functional.pad(inside, (1, 1, 1, 1))  # a head that is cut off ends at the edge
        inside = -functional.max_pool2d(-ringed, 3, stride=1)
        depth = depth + inside
    return depth
