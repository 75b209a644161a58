"""What training reads: pictures, reports and prompts of a cohort, and endless texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from joblib import Parallel, delayed

from medm2g_core.data.phrasing import contradicting, phrase, phrase_pair
from medm2g_core.data.reports import write_report
from medm2g_core.streams import STREAMS, Finding

__all__ = [
    "Corpus",
    "descriptions",
    "random_prompts",
    "random_reports",
    "wordings",
]

N_WORDINGS = 4
"""Reports written for each training patient, and prompts: the model must not take one wording for
the truth."""


@dataclass
class Corpus:
    """Studies of one region that all have the same streams.

    A study has two kinds of text. Its ``reports`` are what the model learns to *write*, in one tidy
    register. Its ``prompts`` are what it may be *described* with, in any register: what a prompt
    encoder reads in training, and what stands for text that was given.

    Attributes:
        region: ``"chest"`` or ``"brain"``; real data sets add more.
        images: stream -> (N, 1, H, W) float16 in -1..1, in memory or mapped from a file.
        reports: N lists of wordings of the same findings; all have the same length, 0 where there
            are no reports.
        name: tells corpora apart that train together; the region unless told.
        weight: share of this corpus in a batch that mixes corpora, relative to the others'.
        prompts: N lists of texts that say the same of each study, all of the same length; the
            reports unless told.
        contradictions: N lists of texts that say something else of each study in nearly the same
            words, entry j for prompt j; empty where there are none.

    Raises:
        ValueError: texts of another number of studies, or of some studies only.
    """

    region: str
    images: Mapping[str, torch.Tensor]
    reports: list[list[str]]
    name: str = ""
    weight: int = 1
    prompts: list[list[str]] = field(default_factory=list)
    contradictions: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = self.name or self.region
        self.prompts = self.prompts or self.reports
        for kind in ("reports", "prompts", "contradictions"):
            texts = getattr(self, kind)
            if len({len(own) for own in texts}) > 1 or len(texts) not in (0, len(self.reports)):
                raise ValueError(
                    f"{self.name}: {kind} of {len(texts)} studies, reports of {len(self.reports)};"
                    " every study needs equally many texts of a kind"
                )

    def __len__(self) -> int:
        return len(self.reports)

    @property
    def has_text(self) -> bool:
        return bool(self.reports and self.reports[0])

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that every study has, in the order of `STREAMS`."""
        return tuple(n for n in STREAMS if n in self.images or (n == "text" and self.has_text))

    def bytes(self) -> int:
        """Memory that all pictures take together."""
        return sum(x.nbytes for x in self.images.values())

    def to(self, device: torch.device | str) -> Corpus:
        """The same studies with their pictures in the memory of ``device``."""
        return replace(self, images={n: x.to(device) for n, x in self.images.items()})

    def fingerprint(self) -> str:
        """Changes when a picture, a report or a prompt does."""
        texts = [
            self.region,
            self.reports,
            *([self.prompts] if self.prompts != self.reports else []),
        ]
        h = hashlib.sha256(json.dumps(texts).encode())
        for name in sorted(self.images):
            h.update(name.encode())
            for part in self.images[name].split(1024):  # the pictures may be more than memory holds
                h.update(part.float().mean((1, 2, 3)).numpy().tobytes())
        return h.hexdigest()[:16]

    def first(self, n: int) -> Corpus:
        """The first ``n`` studies."""
        return replace(
            self,
            images={k: x[:n] for k, x in self.images.items()},
            reports=self.reports[:n],
            prompts=self.prompts[:n],
            contradictions=self.contradictions[:n],
        )


def wordings(
    findings: tuple[Finding, ...],
    region: str,
    age: int | None,
    sex: str,
    seed: int,
    n: int = N_WORDINGS,
) -> list[str]:
    """``n`` reports of one patient, each worded afresh."""
    rngs = np.random.default_rng(seed).spawn(n)
    return [write_report(findings, region, age, sex, rng) for rng in rngs]


def descriptions(
    report: str,
    findings: tuple[Finding, ...],
    region: str,
    age: int | None,
    sex: str,
    seed: int,
    n: int = N_WORDINGS,
) -> tuple[list[str], list[str]]:
    """``n`` prompts of one patient and as many contradictions.

    The first prompt is the report itself, its contradiction a report of other findings. The others
    are of the wide grammar of input text, see `phrase_pair`.
    """
    own, *others = np.random.default_rng(seed).spawn(n)
    prompts = [report]
    wrong = [write_report(contradicting(findings, region, own), region, age, sex, own)]
    for rng in others:
        right, opposite = phrase_pair(findings, region, age, sex, rng)
        prompts.append(right)
        wrong.append(opposite)
    return prompts, wrong


def random_reports(n: int, seed: int) -> list[str]:
    """Reports of ``n`` patients that exist in no cohort, three quarters chest: endless text for the
    text codec."""
    return _of_random_patients(write_report, n, seed)


def random_prompts(n: int, seed: int) -> list[str]:
    """As `random_reports`, in any register: endless text for readers."""
    return _of_random_patients(phrase, n, seed)


MANY_TEXTS = 4096
"""From here on several processes write: one alone needs more than a second."""


def _of_random_patients(write: Callable[..., str], n: int, seed: int) -> list[str]:
    rngs = np.random.default_rng(seed).spawn(n)
    if n < MANY_TEXTS:
        return _texts(write, rngs)
    parts = [rngs[i : i + MANY_TEXTS // 4] for i in range(0, n, MANY_TEXTS // 4)]
    written = Parallel(n_jobs=-1)(delayed(_texts)(write, part) for part in parts)
    return [text for part in written for text in part]


def _texts(write: Callable[..., str], rngs: Sequence[np.random.Generator]) -> list[str]:
    """A text of a patient of each generator."""
    from medm2g_core.data.brain.pathology import sample_findings as brain_findings
    from medm2g_core.data.chest.pathology import sample_findings as chest_findings

    out = []
    for rng in rngs:
        region = "chest" if rng.random() < 0.75 else "brain"
        findings = chest_findings(rng) if region == "chest" else brain_findings(rng)
        sex = "female" if rng.random() < 0.5 else "male"
        out.append(write(findings, region, int(rng.integers(18, 95)), sex, rng))
    return out
