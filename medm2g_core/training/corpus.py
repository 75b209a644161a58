"""What training reads: the pictures and reports of a cohort, and their cached latents and
embeddings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.data.reports import write_report
from medm2g_core.model import MedM2G
from medm2g_core.profiles import BASE_STAGES
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS, Finding

__all__ = ["Corpus", "LatentCorpus", "random_reports", "weights_key", "wordings"]

N_WORDINGS = 4
"""Reports written for each training patient: the model must not take one wording for the truth."""


@dataclass
class Corpus:
    """Studies of one region that all have the same streams.

    Attributes:
        region: ``"chest"`` or ``"brain"``; real data sets add more.
        images: stream -> (N, 1, H, W) float16 in -1..1, in memory or mapped from a file.
        reports: N lists of wordings of the same findings; all have the same length, 0 where there
            are no reports.
        name: tells corpora apart that train together; the region unless told.
        weight: share of this corpus in a batch that mixes corpora, relative to the others'.
    """

    region: str
    images: Mapping[str, torch.Tensor]
    reports: list[list[str]]
    name: str = ""
    weight: int = 1

    def __post_init__(self) -> None:
        self.name = self.name or self.region

    def __len__(self) -> int:
        return len(self.reports)

    @property
    def has_text(self) -> bool:
        return bool(self.reports and self.reports[0])

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that every study has, in the order of `STREAMS`."""
        return tuple(n for n in STREAMS if n in self.images or (n == "text" and self.has_text))

    def fingerprint(self) -> str:
        """Changes when a picture or a report does."""
        h = hashlib.sha256(json.dumps([self.region, self.reports]).encode())
        for name in sorted(self.images):
            h.update(name.encode())
            for part in self.images[name].split(1024):  # the pictures may be more than memory holds
                h.update(part.float().mean((1, 2, 3)).numpy().tobytes())
        return h.hexdigest()[:16]


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


def random_reports(n: int, seed: int) -> list[str]:
    """Reports of ``n`` patients that exist in no cohort, three quarters chest: endless text for the
    text codec."""
    from medm2g_core.data.brain.pathology import sample_findings as brain_findings
    from medm2g_core.data.chest.pathology import sample_findings as chest_findings

    out = []
    for rng in np.random.default_rng(seed).spawn(n):
        region = "chest" if rng.random() < 0.75 else "brain"
        findings = chest_findings(rng) if region == "chest" else brain_findings(rng)
        sex = "female" if rng.random() < 0.5 else "male"
        out.append(write_report(findings, region, int(rng.integers(18, 95)), sex, rng))
    return out


@dataclass
class LatentCorpus:
    """A corpus after the codecs and the prompt encoders: what the flows train on.

    Attributes:
        name: of the corpus.
        latents: image stream -> (N, C, h, w); ``"text"`` -> (N, W, K, d) for W wordings.
        pooled, tokens: stream -> the fields of `Embedding`, with the W axis for text.
        mask: of text; empty where there are no reports.
    """

    name: str
    latents: dict[str, torch.Tensor]
    pooled: dict[str, torch.Tensor]
    tokens: dict[str, torch.Tensor]
    mask: torch.Tensor

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    def bytes(self) -> int:
        """Memory that all tensors take together."""
        parts = (self.latents, self.pooled, self.tokens, {"mask": self.mask})
        return sum(x.nbytes for part in parts for x in part.values())

    def to(self, device: torch.device | str) -> LatentCorpus:
        """The same studies in the memory of ``device``: a GPU then gathers its batches itself."""
        latents, pooled, tokens = (
            {n: x.to(device) for n, x in part.items()}
            for part in (self.latents, self.pooled, self.tokens)
        )
        return LatentCorpus(self.name, latents, pooled, tokens, self.mask.to(device))

    @property
    def wordings(self) -> int:
        """Wordings of each report; 1 where there are no reports."""
        return self.latents["text"].shape[1] if "text" in self.latents else 1

    def latent(self, name: str, index: torch.Tensor, wording: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) of studies ``index`` (B,); ``wording`` (B,) picks the report's wording.

        ``index`` and ``wording`` may lie on the CPU wherever the studies do; the result lies with
        the studies.
        """
        z = self.latents[name]
        index, wording = index.to(z.device), wording.to(z.device)
        return (z[index, wording] if name == "text" else z[index]).float()

    def embedding(self, name: str, index: torch.Tensor, wording: torch.Tensor) -> Embedding:
        """Embeddings of studies ``index`` (B,), see `latent`."""
        index, wording = index.to(self.mask.device), wording.to(self.mask.device)
        if name == "text":
            mask = self.mask[index, wording]
            longest = int(mask.sum(1).max())
            return Embedding(
                self.pooled[name][index, wording].float(),
                self.tokens[name][index, wording, :longest].float(),
                mask[:, :longest],
            )
        tokens = self.tokens[name][index].float()
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Embedding(self.pooled[name][index].float(), tokens, mask)

    @classmethod
    def build(
        cls, model: MedM2G, corpus: Corpus, cache: Path | None = None, batch: int = 64
    ) -> LatentCorpus:
        """Encode everything once; with ``cache`` the result is kept on disk, keyed by weights and
        data."""
        key = corpus.fingerprint() + weights_key(model)
        file = (
            None
            if cache is None
            else cache / f"latents_{re.sub('[^A-Za-z0-9]+', '_', corpus.name)}.safetensors"
        )
        if file is not None and file.is_file():
            with safe_open(file, "pt") as f:
                fresh = (f.metadata() or {}).get("key") == key
            if fresh:
                return cls._from_flat(corpus.name, load_file(file))
        flat = {k: v for k, v in _encode(model, corpus, batch)}
        if file is not None:
            atomic_write(file, lambda p: save_file(flat, p, {"key": key}))
        return cls._from_flat(corpus.name, flat)

    @classmethod
    def _from_flat(cls, name: str, flat: Mapping[str, torch.Tensor]) -> LatentCorpus:
        def group(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}

        return cls(name, group("z."), group("pooled."), group("tokens."), flat["mask"].bool())


def weights_key(model: MedM2G, parts: Sequence[str] = BASE_STAGES) -> str:
    """Changes when a weight of these parts does."""
    h = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(model.part(part).items()):
            h.update(name.encode())
            h.update(tensor.detach().float().cpu().numpy().tobytes())
    return h.hexdigest()[:16]


@torch.no_grad()
def _encode(model: MedM2G, corpus: Corpus, batch: int) -> Iterator[tuple[str, torch.Tensor]]:
    n = len(corpus)
    for name, images in tqdm(corpus.images.items(), desc=f"encode {corpus.name} images"):
        z: list[torch.Tensor] = []
        pooled: list[torch.Tensor] = []
        cells: list[torch.Tensor] = []
        for i in range(0, n, batch):
            x = images[i : i + batch].float()
            z.append(model.encode(name, x).half().cpu())
            e = model.embed({name: x})[name]
            pooled.append(e.pooled.half().cpu())
            cells.append(e.tokens.half().cpu())
        yield f"z.{name}", torch.cat(z)
        yield f"pooled.{name}", torch.cat(pooled)
        yield f"tokens.{name}", torch.cat(cells)
    if not corpus.has_text:
        yield "mask", torch.zeros(n, 0, dtype=torch.uint8)
        return
    w, flat = len(corpus.reports[0]), [text for reports in corpus.reports for text in reports]
    length = int(model.tokens(flat)[1].sum(1).max())
    z, pooled = [], []
    tokens = torch.zeros(len(flat), length, model.profile.alignment.embed_dim, dtype=torch.float16)
    mask = torch.zeros(len(flat), length, dtype=torch.uint8)
    for i in tqdm(range(0, len(flat), batch), desc=f"encode {corpus.name} reports"):
        texts = flat[i : i + batch]
        z.append(model.encode("text", texts).half().cpu())
        e = model.embed({"text": texts})["text"]
        pooled.append(e.pooled.half().cpu())
        tokens[i : i + batch, : e.tokens.shape[1]] = e.tokens.half().cpu()
        mask[i : i + batch, : e.mask.shape[1]] = e.mask.cpu()
    yield "z.text", torch.cat(z).unflatten(0, (n, w))
    yield "pooled.text", torch.cat(pooled).unflatten(0, (n, w))
    yield "tokens.text", tokens.unflatten(0, (n, w))
    yield "mask", mask.unflatten(0, (n, w))
