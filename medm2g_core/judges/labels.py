"""The questions that a judge answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medm2g_core.data.findings import FINDINGS, findings_of
from medm2g_core.streams import Finding

__all__ = ["Label", "label_matrix", "labels_of"]


@dataclass(frozen=True)
class Label:
    """One yes-or-no question.

    Attributes:
        finding: name.
        side: ``"left"`` or ``"right"`` of the patient, or ``""`` for any.
        location: lobe, or ``""`` for any.
    """

    finding: str
    side: str = ""
    location: str = ""

    def holds(self, findings: Sequence[Finding]) -> bool:
        """Whether the answer is yes; a finding on both sides is on the left and on the right."""
        return any(
            f.name == self.finding
            and (not self.side or f.side in (self.side, "both"))
            and (not self.location or f.location == self.location)
            for f in findings
        )

    @property
    def text(self) -> str:
        """In words, as the record of a judge names it: ``"left pleural_effusion"``."""
        return " ".join(p for p in (self.side, self.finding, self.location) if p)


def labels_of(region: str) -> tuple[Label, ...]:
    """The questions of a region: first the presence of every finding (in the order of
    `findings_of`), then its sides and its locations where it has any."""
    names = findings_of(region)
    sides = [Label(n, side=s) for n in names for s in ("left", "right") if s in FINDINGS[n].sides]
    lobes = [Label(n, location=p) for n in names for p in FINDINGS[n].locations if p]
    return (*(Label(n) for n in names), *sides, *lobes)


def label_matrix(findings: Sequence[Sequence[Finding]], region: str) -> torch.Tensor:
    """Answers for the findings of N studies: float32 (N, number of `labels_of`), 1 yes, 0 no."""
    return torch.tensor([[float(label.holds(f)) for label in labels_of(region)] for f in findings])
