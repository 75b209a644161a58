"""Words that are typed: examples, findings as sentences, and what a labeller reads in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from transformers import PreTrainedTokenizerFast

from medm2g_core.data.findings import FINDINGS
from medm2g_core.data.labeller import guess_region, label_report
from medm2g_core.data.reports import write_report
from medm2g_core.inputs import notes_on_report
from medm2g_core.show.report import finding_words
from medm2g_core.streams import Finding

__all__ = ["EXAMPLES", "Reading", "read_words", "words_of"]

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {
        "large left effusion": (
            "Findings: There is a large left pleural effusion."
            " Impression: Large left pleural effusion."
        ),
        "enlarged heart": (
            "Findings: The heart is severely enlarged. Impression: Severe cardiomegaly."
        ),
        "collapsed right lung": (
            "Findings: There is a large right pneumothorax. Impression: Large right pneumothorax."
        ),
        "normal chest": "Findings: The lungs are clear. Impression: Normal chest.",
        "wide ventricles": (
            "Findings: The ventricles are markedly enlarged. Impression: Marked ventriculomegaly."
        ),
    }
)
"""Title -> sentence."""


@dataclass(frozen=True)
class Reading:
    """What was read in typed words.

    Attributes:
        region: ``"chest"`` or ``"brain"``, whichever they speak of.
        findings: that they assert.
        denied: names of findings that they deny.
        notes: what the user should know, such as that no finding was read.
    """

    region: str
    findings: tuple[Finding, ...]
    denied: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        said = ", ".join(map(finding_words, self.findings)) or "no finding"
        denied = ", ".join(FINDINGS[name].title for name in self.denied)
        return f"{self.region}: {said}" + (f"; denied: {denied}" if denied else "")


def read_words(words: str, tokenizer: PreTrainedTokenizerFast) -> Reading:
    """What the labeller reads, and whether the model knows such words.

    Args:
        tokenizer: of the model.
    """
    region = guess_region(words)
    labels = label_report(words, region)
    denied = tuple(name for name in FINDINGS if name in labels.negated)
    return Reading(region, labels.findings, denied, tuple(notes_on_report(tokenizer, words)))


def words_of(finding: Finding | None, region: str, seed: int = 0) -> str:
    """A short report of one finding, or of none.

    Args:
        seed: chooses among the wordings.
    """
    findings = () if finding is None else (finding,)
    return write_report(findings, region, None, "", np.random.default_rng(seed))
