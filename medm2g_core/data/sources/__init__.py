"""The real data sets: `open_source` gives studies in the form of the embedded cohort, from a folder
of the download."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medm2g_core.data.sources.acdc import ACDC
from medm2g_core.data.sources.base import Source, SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.brain_mri_ct import BrainMRICT, BrainMRICTInputs
from medm2g_core.data.sources.brats2020 import BraTS2020
from medm2g_core.data.sources.chestxray14 import ChestXray14
from medm2g_core.data.sources.gold_atlas import GoldAtlas
from medm2g_core.data.sources.iu_xray import IUXRay
from medm2g_core.data.sources.ixi import IXI
from medm2g_core.data.sources.medicat import MedICaT
from medm2g_core.data.sources.mimic_cxr import MimicCXR
from medm2g_core.data.sources.sliver07 import SLIVER07
from medm2g_core.data.sources.synthrad2023 import SynthRAD2023

__all__ = ["SOURCES", "SourceDataset", "SourceError", "SourceStudy", "open_source"]

_ALL: tuple[Source, ...] = (
    BraTS2020(),
    IXI(),
    ACDC(),
    SLIVER07(),
    IUXRay(),
    ChestXray14(),
    MimicCXR(),
    MedICaT(),
    SynthRAD2023(),
    GoldAtlas(),
    BrainMRICT(),
    BrainMRICTInputs(),
)
SOURCES: Mapping[str, Source] = MappingProxyType({s.name: s for s in _ALL})
"""Name -> data set."""


def open_source(name: str, root: str | Path, **options: Any) -> SourceDataset:
    """The studies of a data set, for example ``open_source("brats2020",
    "MICCAI_BraTS2020_TrainingData")``.

    Args:
        options: ``split``, ``size``, ``limit``, ``shares`` and ``seed`` of `SourceDataset`.

    Raises:
        SourceError: an unknown name, or a folder that does not hold that data set; the message
            shows what is expected.
    """
    if name not in SOURCES:
        raise SourceError(f"unknown data set {name!r}; known: {', '.join(SOURCES)}")
    return SourceDataset(SOURCES[name], root, **options)
