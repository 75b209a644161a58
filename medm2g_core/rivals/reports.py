"""Report baselines without training: a constant, a random report, and the report of the nearest
training study.

Retrieval shows how far a model gets that only recognises which training patient a new one resembles
(Endo et al. 2021 generate reports in this way); a generator that stays below it has learned less
from an image than its encoder knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.reports import write_report
from medm2g_core.model import MedM2G
from medm2g_core.streams import StreamError
from medm2g_core.training.corpus import Corpus, wordings

__all__ = [
    "constant_reports",
    "embed_images",
    "embed_reports",
    "image_retrieval",
    "pixel_retrieval",
    "report_corpus",
    "report_retrieval",
    "reports_of_random_studies",
]

PIXEL_SIDE = 32
"""Pixels of a side that the pixel neighbour compares."""

BATCH = 32
"""Studies that are embedded at once."""


def report_corpus(cohort: VirtualCohort, stream: str) -> Corpus:
    """The reports (four wordings each, those that the flow trains on) and one image stream of a
    training cohort."""
    if cohort.region == "both":
        raise StreamError(
            "a cohort of both regions has no stream that all of its studies share; make one of each"
        )
    reports = []
    for i in range(len(cohort)):
        s = cohort[i]
        assert s.findings is not None and s.text is not None
        reports.append([s.text, *wordings(s.findings, s.region, s.age, s.sex, seed=i)[1:]])
    return Corpus(cohort.region, {stream: cohort.stack(stream).half()}, reports)


def constant_reports(region: str, n: int, seed: int = 0) -> list[str]:
    """``n`` times the same normal report."""
    return [write_report((), region, 60, "female", np.random.default_rng(seed))] * n


def reports_of_random_studies(corpus: Corpus, n: int, seed: int = 0) -> list[str]:
    """The reports of ``n`` training studies drawn at random, none twice while there are enough."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(corpus), n, replace=n > len(corpus))
    return [corpus.reports[int(i)][0] for i in chosen]


def pixel_retrieval(images: torch.Tensor, corpus: Corpus, stream: str) -> list[str]:
    """For every image (N, 1, H, W) in -1..1 the report of the training image with the least squared
    difference.

    Compared at `PIXEL_SIDE` px, each image against its own mean and deviation, so that a brighter
    picture of the same patient stays near.
    """
    query, gallery = (
        _small(images),
        torch.cat([_small(x.float()) for x in corpus.images[stream].split(256)]),
    )
    best = torch.cdist(query, gallery).argmin(1)
    return [corpus.reports[i][0] for i in best.tolist()]


def _small(images: torch.Tensor) -> torch.Tensor:
    side = min(PIXEL_SIDE, images.shape[-1])
    x = F.interpolate(images, size=(side, side), mode="area").flatten(1)
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-3)


def image_retrieval(query: torch.Tensor, gallery: torch.Tensor, corpus: Corpus) -> list[str]:
    """The report of the training study whose *image* embedding is most similar.

    Args:
        query: (N, D) aligned embeddings of images.  gallery: (M, D) those of the corpus' images
            (`embed_images`).
    """
    return [corpus.reports[i][0] for i in (query @ gallery.T).argmax(1).tolist()]


def report_retrieval(query: torch.Tensor, gallery: torch.Tensor, corpus: Corpus) -> list[str]:
    """The training report, in any of its wordings, whose *text* embedding is most similar.

    Args:
        query: (N, D) aligned embeddings of images.  gallery: (M W, D) those of the corpus' reports
            (`embed_reports`).
    """
    flat = [text for reports in corpus.reports for text in reports]
    return [flat[i] for i in (query @ gallery.T).argmax(1).tolist()]


@torch.no_grad()
def embed_images(model: MedM2G, stream: str, images: torch.Tensor) -> torch.Tensor:
    """Aligned embeddings (N, D) of images (N, 1, H, W), unit length, on the CPU."""
    parts = [
        model.embed({stream: x.float()})[stream].pooled.float().cpu() for x in images.split(BATCH)
    ]
    return torch.cat(parts)


@torch.no_grad()
def embed_reports(model: MedM2G, texts: Sequence[str]) -> torch.Tensor:
    """Aligned embeddings (N, D) of reports, unit length, on the CPU."""
    parts = [
        model.embed({"text": texts[i : i + BATCH]})["text"].pooled
        for i in range(0, len(texts), BATCH)
    ]
    return torch.cat([p.float().cpu() for p in parts])
