"""What training reads: the pictures and reports of a cohort, and their cached latents and
embeddings."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.data.phrasing import contradicting, phrase, phrase_pair
from medm2g_core.data.reports import write_report
from medm2g_core.model import MedM2G
from medm2g_core.profiles import BASE_STAGES
from medm2g_core.storage import CacheFile, digest, tensor_digest
from medm2g_core.streams import STREAMS, Finding

__all__ = [
    "Corpus",
    "LatentCorpus",
    "descriptions",
    "random_prompts",
    "random_reports",
    "weights_key",
    "wordings",
]

N_WORDINGS = 4
"""Reports written for each training patient, and prompts: the model must not take one wording for
the truth."""

SHARD = 512
"""Studies that are encoded and written before the next are begun: what an interruption costs. Some
ten seconds of the ``cpu`` profile, and a multiple of the batch."""


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


def _of_random_patients(write: Callable[..., str], n: int, seed: int) -> list[str]:
    from medm2g_core.data.brain.pathology import sample_findings as brain_findings
    from medm2g_core.data.chest.pathology import sample_findings as chest_findings

    out = []
    for rng in np.random.default_rng(seed).spawn(n):
        region = "chest" if rng.random() < 0.75 else "brain"
        findings = chest_findings(rng) if region == "chest" else brain_findings(rng)
        sex = "female" if rng.random() < 0.5 else "male"
        out.append(write(findings, region, int(rng.integers(18, 95)), sex, rng))
    return out


@dataclass
class LatentCorpus:
    """A corpus after the codecs and the prompt encoders: what the flows train on.

    Attributes:
        name: of the corpus.
        latents: image stream -> (N, C, h, w); ``"text"`` -> (N, W, K, d), the W reports of each
            study: what is drawn.
        pooled, tokens: stream -> the fields of `Embedding`; for text with an axis for the P prompts
            of each study, tokens padded to the longest prompt of the corpus.
        mask: of text; empty where there are no reports.
        given: ``"text"`` -> (N, P, K, d), the prompts through the codec: the latents of a text that
            is given and guides. Empty where there are no reports.
    """

    name: str
    latents: dict[str, torch.Tensor]
    pooled: dict[str, torch.Tensor]
    tokens: dict[str, torch.Tensor]
    mask: torch.Tensor
    given: dict[str, torch.Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    def bytes(self) -> int:
        """Memory that all tensors take together."""
        parts = (self.latents, self.pooled, self.tokens, self.given, {"mask": self.mask})
        return sum(x.nbytes for part in parts for x in part.values())

    def to(self, device: torch.device | str) -> LatentCorpus:
        """The same studies in the memory of ``device``: a GPU then gathers its batches itself."""
        latents, pooled, tokens, given = (
            {n: x.to(device) for n, x in part.items()}
            for part in (self.latents, self.pooled, self.tokens, self.given)
        )
        return LatentCorpus(self.name, latents, pooled, tokens, self.mask.to(device), given)

    @property
    def wordings(self) -> int:
        """Wordings of each report; 1 where there are no reports."""
        return self.latents["text"].shape[1] if "text" in self.latents else 1

    @property
    def prompts(self) -> int:
        """Prompts of each study; 1 where there are none."""
        return self.mask.shape[1] if "text" in self.latents else 1

    def latent(self, name: str, index: torch.Tensor, wording: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) of studies ``index`` (B,); ``wording`` (B,) picks the report's wording.

        ``index`` and ``wording`` may lie on the CPU wherever the studies do; the result lies with
        the studies.
        """
        z = self.latents[name]
        index, wording = index.to(z.device), wording.to(z.device)
        return (z[index, wording] if name == "text" else z[index]).float()

    def given_latent(self, name: str, index: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) of streams that are *given*: of text those of a prompt, which ``prompt``
        (B,) picks; of pictures the same as `latent`."""
        if name not in self.given:
            return self.latent(name, index, prompt)
        z = self.given[name]
        return z[index.to(z.device), prompt.to(z.device)].float()

    def embedding(self, name: str, index: torch.Tensor, prompt: torch.Tensor) -> Embedding:
        """Embeddings of studies ``index`` (B,); of text those of a prompt, which ``prompt`` (B,)
        picks. Its tokens are padded to the longest of the corpus: shapes do not depend on the
        draw."""
        index, prompt = index.to(self.mask.device), prompt.to(self.mask.device)
        if name == "text":
            return Embedding(
                self.pooled[name][index, prompt].float(),
                self.tokens[name][index, prompt].float(),
                self.mask[index, prompt],
            )
        tokens = self.tokens[name][index].float()
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Embedding(self.pooled[name][index].float(), tokens, mask)

    @classmethod
    def build(
        cls, model: MedM2G, corpus: Corpus, cache: Path | None = None, batch: int = 64
    ) -> LatentCorpus:
        """Encode everything once.

        With ``cache`` the result lies there in plain files, in a folder of its own for these
        weights and these studies, and is mapped into memory: it may be larger than that. It is
        written in shards of `SHARD` studies as they are made; several processes share them, and
        after an interruption only those that are not finished are made.

        Args:
            batch: pictures or reports encoded together.
        """
        if cache is None:
            flat = {
                k: torch.zeros(f.shape, dtype=f.dtype) for k, f in _fields(model, corpus).items()
            }
            for shard in _shards(len(corpus)):
                _encode(model, corpus, shard, flat, batch)
            return cls._from_flat(corpus.name, flat, len(corpus))
        key = digest(corpus=corpus.fingerprint(), weights=weights_key(model), layout=2)
        prefix = f"latents_{re.sub('[^A-Za-z0-9]+', '_', corpus.name)}-"
        folder, processes = cache / (prefix + key), PartialState()
        layout = CacheFile(folder / "layout.json", key)
        if processes.is_main_process and layout.load_json() is None:
            for stale in cache.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
            folder.mkdir(parents=True)
            fields = _fields(model, corpus)
            for name, field in fields.items():
                with (folder / name).open("wb") as f:
                    f.truncate(field.bytes())
            layout.save_json({name: field.plain() for name, field in fields.items()})
        processes.wait_for_everyone()
        fields = {name: _Field.of(plain) for name, plain in (layout.load_json() or {}).items()}
        shards = list(enumerate(_shards(len(corpus))))[
            processes.process_index :: processes.num_processes
        ]
        for i, shard in tqdm(
            shards, desc=f"encode {corpus.name}", disable=not processes.is_main_process
        ):
            finished = CacheFile(folder / f"shard_{i:05d}.json", key)
            if finished.load_json() is None:
                files = {name: field.map(folder / name, "r+") for name, field in fields.items()}
                writable = {name: torch.from_numpy(x) for name, x in files.items()}
                _encode(model, corpus, shard, writable, batch)
                for x in files.values():
                    x.flush()
                finished.save_json({"studies": [shard.start, shard.stop]})
        processes.wait_for_everyone()
        # Copy on write: torch wants memory that it may write, and the files stay as they are.
        mapped = {name: torch.from_numpy(f.map(folder / name, "c")) for name, f in fields.items()}
        return cls._from_flat(corpus.name, mapped, len(corpus))

    @classmethod
    def _from_flat(cls, name: str, flat: Mapping[str, torch.Tensor], studies: int) -> LatentCorpus:
        def group(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}

        mask = flat.get("mask", torch.zeros(studies, 0, dtype=torch.bool))
        return cls(
            name, group("z."), group("pooled."), group("tokens."), mask, given=group("given.")
        )


def weights_key(model: MedM2G, parts: Sequence[str] = BASE_STAGES) -> str:
    """Changes when a weight of these parts does."""
    return tensor_digest({k: v for part in parts for k, v in model.part(part).items()})


# ---- encoding


@dataclass(frozen=True)
class _Field:
    """One tensor of a `LatentCorpus` as a plain file: studies first."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def plain(self) -> list[Any]:
        return [self.dtype == torch.bool, list(self.shape)]

    @classmethod
    def of(cls, plain: Sequence[Any]) -> _Field:
        return cls(torch.bool if plain[0] else torch.float16, tuple(plain[1]))

    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, file: Path, mode: Literal["r+", "c"]) -> np.memmap:
        kind = np.bool_ if self.dtype == torch.bool else np.float16
        return np.memmap(file, kind, mode, shape=self.shape)


def _shards(n: int) -> Iterator[range]:
    return (range(i, min(i + SHARD, n)) for i in range(0, n, SHARD))


@torch.no_grad()
def _fields(model: MedM2G, corpus: Corpus) -> dict[str, _Field]:
    """What is kept of a corpus, and in which shape."""
    n, width = len(corpus), model.profile.alignment.embed_dim
    out: dict[str, _Field] = {}
    for name, images in corpus.images.items():
        cells = model.embed({name: images[:1].float()})[name].tokens.shape[1]
        out[f"z.{name}"] = _Field(torch.float16, (n, *model.latent_shape(name)))
        out[f"pooled.{name}"] = _Field(torch.float16, (n, width))
        out[f"tokens.{name}"] = _Field(torch.float16, (n, cells, width))
    if corpus.has_text:
        w, p, shape = len(corpus.reports[0]), len(corpus.prompts[0]), model.latent_shape("text")
        longest = max(int(model.tokens(prompts)[1].sum(1).max()) for prompts in corpus.prompts)
        out["z.text"] = _Field(torch.float16, (n, w, *shape))
        out["given.text"] = _Field(torch.float16, (n, p, *shape))
        out["pooled.text"] = _Field(torch.float16, (n, p, width))
        out["tokens.text"] = _Field(torch.float16, (n, p, longest, width))
        out["mask"] = _Field(torch.bool, (n, p, longest))
    return out


@torch.no_grad()
def _encode(
    model: MedM2G, corpus: Corpus, studies: range, out: Mapping[str, torch.Tensor], batch: int
) -> None:
    """Fill the rows of ``studies`` in all tensors of ``out`` (see `_fields`)."""
    for name, images in corpus.images.items():
        for i in range(studies.start, studies.stop, batch):
            rows = slice(i, min(i + batch, studies.stop))
            x = images[rows].float()  # (b, 1, H, W)
            e = model.embed({name: x})[name]
            out[f"z.{name}"][rows] = model.encode(name, x).half().cpu()
            out[f"pooled.{name}"][rows] = e.pooled.half().cpu()
            out[f"tokens.{name}"][rows] = e.tokens.half().cpu()
    if not corpus.has_text:
        return

    def texts(field: str) -> torch.Tensor:
        """The studies' part of a field with a text a row: (n, W, ...) as (n W, ...), which shares
        the memory."""
        return out[field][studies.start : studies.stop].flatten(0, 1)

    reports = [text for i in studies for text in corpus.reports[i]]
    for i in range(0, len(reports), batch):
        some = reports[i : i + batch]
        texts("z.text")[i : i + len(some)] = model.encode("text", some).half().cpu()
    prompts = [text for i in studies for text in corpus.prompts[i]]
    for i in range(0, len(prompts), batch):
        some = prompts[i : i + batch]
        own = slice(i, i + len(some))
        e = model.embed({"text": some})["text"]  # padded to the longest of the batch
        texts("given.text")[own] = model.encode("text", some).half().cpu()
        texts("pooled.text")[own] = e.pooled.half().cpu()
        texts("tokens.text")[own, : e.tokens.shape[1]] = e.tokens.half().cpu()
        texts("mask")[own, : e.mask.shape[1]] = e.mask.cpu()
