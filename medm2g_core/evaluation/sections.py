"""The sections of the evaluation: title, what each reads of a model, and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.evaluation.alignment import alignment_section
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.codec import image_codec_section
from medm2g_core.evaluation.fidelity import auc_scorer
from medm2g_core.evaluation.image_to_image import guidance_used, translation
from medm2g_core.evaluation.phrasing import phrasing
from medm2g_core.evaluation.report_generation import report_generation
from medm2g_core.evaluation.table import SectionResult
from medm2g_core.evaluation.text_codec import text_codec_section
from medm2g_core.evaluation.text_to_image import text_to_image
from medm2g_core.evaluation.unified import unified
from medm2g_core.judges.files import load_judges
from medm2g_core.judges.judge import Judges
from medm2g_core.rivals.shares import PIX2PIX
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.data import load_corpora

__all__ = ["READS_CODECS", "SECTIONS", "Section", "Setup", "titles"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What sections are measured with. Judges and training studies are loaded when first needed.

    Attributes:
        bench: the model and its held-out studies.
        source: folder of the model.
        train_studies: chest and brain studies of the trained baselines.
        seconds: modality -> time for training a baseline that writes it.
        pix2pix_seconds: the same for those with a critic.
        judges_folder: of the judges' weights.
        seed: of baselines.
    """

    bench: Bench
    source: Path
    train_studies: tuple[int, int]
    seconds: Mapping[str, float]
    pix2pix_seconds: Mapping[str, float]
    judges_folder: Path
    seed: int

    @cached_property
    def judges(self) -> Judges:
        return load_judges(self.judges_folder)

    @cached_property
    def cohorts(self) -> dict[str, VirtualCohort]:
        """Region -> studies of the train split."""
        profile = self.bench.model.profile
        return {
            region: VirtualCohort(
                "train", region, n, resolution=profile.resolution, seed=profile.data.seed
            )
            for region, n in zip(("chest", "brain"), self.train_studies, strict=True)
        }

    @cached_property
    def corpora(self) -> dict[str, Corpus]:
        """Region -> the same studies as tensors."""
        chest, brain = self.train_studies
        profile = self.bench.model.profile.replace(
            data={"chest_train": chest, "brain_train": brain}
        )
        return {c.region: c for c in load_corpora(profile)}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section of the results.

    Attributes:
        title: heading.
        version: raised when the section measures something else than before.
        measure: gives its rows.
        reads: what the names of the weights that it reads begin with; every weight if not told. A
            flow that was trained further so leaves the scores valid that it has no part in (a test
            puts NaN into all others).
        trained: kinds (`medm2g_core.rivals.shares.KINDS`) of its trained baselines.
    """

    title: str
    version: int
    measure: Callable[[Setup], SectionResult]
    reads: tuple[str, ...] = ("",)
    trained: tuple[str, ...] = ()


def titles(sections: Mapping[str, Section]) -> dict[str, str]:
    """Section -> its title."""
    return {name: section.title for name, section in sections.items()}


def _reports(setup: Setup, given: Literal["xray", "ct"]) -> SectionResult:
    return report_generation(
        setup.bench,
        given,
        decoder_seconds=setup.seconds["text"],
        train=setup.cohorts["chest"],
        threads=torch.get_num_threads(),
        seed=setup.seed,
    )


def _translation(setup: Setup) -> SectionResult:
    return translation(
        setup.bench,
        setup.judges,
        setup.corpora,
        seconds=setup.seconds,
        pix2pix_seconds=setup.pix2pix_seconds,
        threads=torch.get_num_threads(),
    )


READS_CODECS = ("image_codec.", "latent_", "text_codec.")
_READS_REPORTS = (*READS_CODECS, "alignment.", "writer.", "flows.text.")

SECTIONS: Mapping[str, Section] = {
    "image_codec": Section(
        title="Image codec",
        version=2,
        measure=lambda s: image_codec_section(s.bench, auc_scorer(s.bench, s.judges)),
        reads=("image_codec.", "latent_"),
    ),
    "text_codec": Section(
        title="Text codec",
        version=2,
        measure=lambda s: text_codec_section(s.bench),
        reads=("text_codec.",),
    ),
    "alignment": Section(
        title="Alignment",
        version=2,
        measure=lambda s: alignment_section(s.bench),
        reads=("alignment.",),
    ),
    "text_to_image": Section(
        title="Text to image",
        version=3,
        measure=lambda s: text_to_image(s.bench, s.judges, s.cohorts),
    ),
    "phrasing": Section(
        title="Negation, and phrasings that training never saw",
        version=1,
        measure=lambda s: phrasing(s.bench, s.judges),
    ),
    "report_xray": Section(
        title="Report generation from an X-ray",
        version=6,
        measure=partial(_reports, given="xray"),
        reads=(*_READS_REPORTS, "environments.xray."),
        trained=("text",),
    ),
    "report_ct": Section(
        title="Report generation from a CT",
        version=6,
        measure=partial(_reports, given="ct"),
        reads=(*_READS_REPORTS, "environments.ct."),
        trained=("text",),
    ),
    "translation": Section(
        title="Image to image",
        version=2,
        measure=_translation,
        trained=("mri", "ct", "xray", PIX2PIX),
    ),
    "guidance": Section(
        title="Is the guidance used?",
        version=2,
        measure=lambda s: guidance_used(s.bench),
    ),
    "unified": Section(
        title="Several streams at once, and pairs that never trained together",
        version=2,
        measure=lambda s: unified(s.bench, s.judges),
    ),
}
"""Name -> section, in the order of the tables. Of the model's own training, so no section of
`medm2g_core.experiments` is among them."""
