"""Sections of the results that train models of their own: for most of an hour, so they are measured
only when they are named."""

from __future__ import annotations

from collections.abc import Mapping

from medm2g_core.data.wheels import cache_dir
from medm2g_core.evaluation.results import weights_digest
from medm2g_core.evaluation.sections import READS_CODECS, SECTIONS, Section, Setup
from medm2g_core.evaluation.table import SectionResult
from medm2g_core.experiments.unseen import unseen_person

__all__ = ["ALL_SECTIONS", "EXTRA_SECTIONS"]


def _unseen(setup: Setup) -> SectionResult:
    folder = cache_dir() / "unseen" / weights_digest(setup.source, READS_CODECS)
    return unseen_person(setup.source, folder, setup.judges, seed=setup.seed)


EXTRA_SECTIONS: Mapping[str, Section] = {
    "unseen": Section(
        title="A person whom training never saw (short trainings, leave one out)",
        version=1,
        measure=_unseen,
        reads=READS_CODECS,
    ),
}
ALL_SECTIONS: Mapping[str, Section] = {**SECTIONS, **EXTRA_SECTIONS}
"""Every section, those of the shipped model first."""
