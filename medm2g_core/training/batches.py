"""What a step of training sees: drawn from a seeded generator, data only, no network runs.

``draw(n, generator, device)`` of each class here returns a plain dataclass of tensors,
and everything random that the objective needs is in it. So a step depends on nothing but the
weights and the generator's seed, and a batch could as well be drawn ahead, by a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from medm2g_core.alignment.objective import augmented_view, normal, shared_studies
from medm2g_core.codecs.text import PAD_ID
from medm2g_core.data.acquisition import acquire
from medm2g_core.profiles import AlignmentConfig
from medm2g_core.streams import stream
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.draws import integer, integers, there

__all__ = [
    "TOKEN_MULTIPLE",
    "AlignmentBatch",
    "AlignmentBatches",
    "Batches",
    "ImageBatch",
    "ImageBatches",
    "TextBatch",
    "TextBatches",
    "TextPool",
    "Tokens",
    "can_align",
]


class Batches(Protocol):
    """Draws the batches of a stage."""

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Any:
        """A batch of about ``n`` studies on ``device``; ``generator`` lies on the CPU."""
        ...


def _other_scanner(
    image: torch.Tensor, name: str, share: float, generator: torch.Generator
) -> torch.Tensor:
    """A share of the pictures (B, 1, H, W) of a stream as other scanners would show them."""
    k = int((torch.rand(len(image), generator=generator) < share).sum())
    if not k:
        return image
    draw = torch.Generator(image.device).manual_seed(integer(2**31, generator))
    return torch.cat([acquire(image[:k], name, draw), image[k:]])


# ---- codecs


@dataclass
class ImageBatch:
    """``image`` (B, 1, H, W) in -1..1; ``noise`` (B, C, h, w) in the shape of their latents."""

    image: torch.Tensor
    noise: torch.Tensor


class ImageBatches:
    """Pictures of all image streams alike, whatever their number.

    Args:
        latent_shape: (C, h, w) of one latent.
        acquired: share of pictures that are shown as another scanner would show them.
    """

    def __init__(
        self, corpora: Sequence[Corpus], latent_shape: Sequence[int], acquired: float = 0.0
    ) -> None:
        self.pools = [item for c in corpora for item in c.images.items()]
        self.latent_shape, self.acquired = tuple(latent_shape), acquired

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> ImageBatch:
        # As many of each stream as of the others; where that does not divide, chance decides.
        share = torch.full((len(self.pools),), n // len(self.pools))
        share[torch.randperm(len(self.pools), generator=generator)[: n % len(self.pools)]] += 1
        images = []
        for (name, pool), k in zip(self.pools, share.tolist(), strict=True):
            index = there(integers(len(pool), k, generator), pool.device)
            image = pool[index].to(device).float()  # (k, 1, H, W)
            images.append(_other_scanner(image, name, self.acquired, generator))
        noise = normal((n, *self.latent_shape), generator, device)  # (B, C, h, w)
        return ImageBatch(torch.cat(images), noise)


Tokens = Callable[[Sequence[str], int], tuple[torch.Tensor, torch.Tensor]]
"""(B texts, multiple) -> ids and mask (B, L), L padded to that multiple, as `MedM2G.tokens`."""

TOKEN_MULTIPLE = 16
"""Texts are padded to a multiple of so many tokens: a handful of shapes for all batches, and few
places that hold nothing."""


@dataclass
class TextBatch:
    """B texts as tokens: ``ids`` (B, L) and ``mask`` (B, L), 1 where a token is; L a multiple of
    `TOKEN_MULTIPLE`, or the longest text that the model reads."""

    ids: torch.Tensor
    mask: torch.Tensor


class TextBatches:
    """Texts from ``source(n, seed)``: written anew for every batch, or drawn from a data set.

    Args:
        tokens: makes tokens of them.
    """

    def __init__(self, source: Callable[[int, int], list[str]], tokens: Tokens) -> None:
        self.source, self.tokens = source, tokens

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> TextBatch:
        texts = self.source(n, integer(2**31, generator))
        ids, mask = self.tokens(texts, TOKEN_MULTIPLE)
        return TextBatch(ids.to(device), mask.to(device))


class TextPool:
    """Texts of a pool that is written and tokenised once, and lies on the device.

    A GPU is done with a batch before a processor has written the next.

    Args:
        source: of `TextBatches`.
        size: texts in the pool.
        seed: of the pool.
    """

    def __init__(
        self,
        source: Callable[[int, int], list[str]],
        tokens: Tokens,
        size: int,
        seed: int,
        device: torch.device | str,
    ) -> None:
        ids, mask = tokens(source(size, seed), TOKEN_MULTIPLE)
        self.ids, self.mask = ids.to(device), mask.to(device)  # (size, L) each

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> TextBatch:
        index = there(integers(len(self.ids), n, generator), self.ids.device)
        return TextBatch(self.ids[index].to(device), self.mask[index].to(device))


# ---- alignment


@dataclass
class AlignmentBatch:
    """Prompts and augmented pictures of the same patients, and contradictions.

    Attributes:
        ids, mask: (B + H, L) tokens of B prompts, those of one corpus after those of the other, and
            of H contradictions behind them.
        contradicted: (H,) whose prompt each contradicts.
        shared: (modality, modality) -> the rows of each that belong to the same studies, (B_ab,)
            and (B_ab,), as `shared_studies` gives them; text first.
        views: image modality -> (B_m, 1, H, W) in -1..1.
        contrasts: image modality -> (B_m,) index of the MR contrast.
        second: a modality and another view of its pictures, for the visual invariant; or ``None``.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    contradicted: torch.Tensor
    shared: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
    views: dict[str, torch.Tensor]
    contrasts: dict[str, torch.Tensor]
    second: tuple[str, torch.Tensor] | None


def can_align(corpus: Corpus) -> bool:
    """Whether the corpus has reports, images, and a second study to tell each study from."""
    return corpus.has_text and bool(corpus.images) and len(corpus) > 1


class _TokenTable:
    """Tokens of some texts of every study.

    Attributes:
        ids: (N, P, L), padded; int32, as there may be many. Without texts (0, 0, 0).
    """

    def __init__(self, texts: Sequence[Sequence[str]], tokens: Tokens) -> None:
        self.ids = torch.zeros(0, 0, 0, dtype=torch.int32)
        if texts:
            flat = [text for own in texts for text in own]
            ids, _ = tokens(flat, TOKEN_MULTIPLE)
            self.ids = ids.cpu().to(torch.int32).unflatten(0, (len(texts), -1))

    def rows(self, index: torch.Tensor, which: torch.Tensor, length: int) -> torch.Tensor:
        """Text ``which`` (B,) of studies ``index`` (B,): ids (B, ``length``), int64."""
        ids = self.ids[index, which].long()
        return F.pad(ids, (0, length - ids.shape[1]), value=PAD_ID)


class AlignmentBatches:
    """Every batch mixes the corpora that have reports, by their weight.

    All texts become tokens once, padded alike: the shapes of a batch do not depend on the draw.

    Args:
        config: whether the visual invariant is trained, and how many studies get a contradiction.
        tokens: makes tokens of texts.
        acquired: share of pictures that are shown as another scanner would show them.

    Raises:
        ValueError: no corpus can be aligned.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        config: AlignmentConfig,
        tokens: Tokens,
        acquired: float = 0.0,
    ) -> None:
        self.corpora, self.acquired = [c for c in corpora if can_align(c)], acquired
        self.second_view = config.invariant != "off"
        self.contradicted = config.contradicted
        if not self.corpora:
            raise ValueError(
                "alignment needs two studies with a report and the same image streams; there are"
                " none"
            )
        self.prompts = [_TokenTable(c.prompts, tokens) for c in self.corpora]
        self.contradictions = [_TokenTable(c.contradictions, tokens) for c in self.corpora]
        tables = (*self.prompts, *self.contradictions)
        self.length = max(t.ids.shape[-1] for t in tables)

    def _studies(self, n: int, generator: torch.Generator) -> list[tuple[Corpus, torch.Tensor]]:
        """Which studies of which corpus make the batch."""
        whole = sum(c.weight for c in self.corpora)
        out = []
        for corpus in self.corpora:
            own = min(max(2, n * corpus.weight // whole), len(corpus))
            out.append((corpus, torch.randperm(len(corpus), generator=generator)[:own]))
        return out

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> AlignmentBatch:
        prompts: list[torch.Tensor] = []
        wrong: list[torch.Tensor] = []
        contradicted: list[torch.Tensor] = []
        first = 0
        images: dict[str, list[torch.Tensor]] = {}
        contrasts: dict[str, list[torch.Tensor]] = {}
        rows: dict[str, list[torch.Tensor]] = {}
        for k, (corpus, index) in enumerate(self._studies(n, generator)):
            which = integers(len(corpus.prompts[0]), len(index), generator)
            prompts.append(self.prompts[k].rows(index, which, self.length))
            if corpus.contradictions:  # of the first studies: their order is random
                h = round(self.contradicted * len(index))
                wrong.append(self.contradictions[k].rows(index[:h], which[:h], self.length))
                contradicted.append(torch.arange(first, first + h))
            # One MR contrast of each region a step keeps the cost down; over the steps all come.
            mr = [s for s in corpus.images if stream(s).modality == "mri"]
            chosen = [s for s in corpus.images if s not in mr]
            chosen += [mr[integer(len(mr), generator)]] if mr else []
            for s in chosen:
                m = stream(s).modality
                image = corpus.images[s][index].to(device).float()
                images.setdefault(m, []).append(_other_scanner(image, s, self.acquired, generator))
                contrasts.setdefault(m, []).append(torch.full((len(index),), stream(s).contrast))
                rows.setdefault(m, []).append(torch.arange(first, first + len(index)))
            first += len(index)
        modalities = list(images)
        looked = modalities[integer(len(modalities), generator)] if self.second_view else None
        views, second = {}, None
        for m in modalities:
            image = torch.cat(images[m])  # (B_m, 1, H, W)
            views[m] = augmented_view(image, generator)
            if m == looked:
                second = (m, augmented_view(image, generator))
        ids = torch.cat([*prompts, *wrong])  # (B + H, L)
        shared = shared_studies(
            {"text": torch.arange(first)} | {m: torch.cat(x) for m, x in rows.items()}
        )
        return AlignmentBatch(
            ids.to(device),
            (ids != PAD_ID).long().to(device),
            torch.cat([*contradicted, torch.zeros(0, dtype=torch.long)]).to(device),
            {pair: (a.to(device), b.to(device)) for pair, (a, b) in shared.items()},
            views,
            {m: torch.cat(x).to(device) for m, x in contrasts.items()},
            second,
        )
