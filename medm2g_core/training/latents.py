"""The studies as the flows see them: cached latents and embeddings."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.data.acquisition import acquire
from medm2g_core.model import MedM2G
from medm2g_core.profiles import BASE_STAGES
from medm2g_core.storage import CacheFile, digest, tensor_digest
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.draws import there

__all__ = ["LatentCorpus", "weights_key"]

SHARD = 512
"""Studies that are encoded and written before the next are begun: what an interruption costs. Some
ten seconds of the ``cpu`` profile, and a multiple of the batch."""


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
        ids: (N, W, L) int32 tokens of the reports, padded; empty where there are none.
        given: ``"text"`` -> (N, P, K, d), the prompts through the codec: the latents of a text that
            is given and guides. Empty where there are no reports.
        acquired: the same studies as other scanners would show them: latents, pooled embeddings and
            tokens of the image streams, each with an axis of V acquisitions after the studies';
            empty without any.
    """

    name: str
    latents: dict[str, torch.Tensor]
    pooled: dict[str, torch.Tensor]
    tokens: dict[str, torch.Tensor]
    mask: torch.Tensor
    ids: torch.Tensor
    given: dict[str, torch.Tensor] = field(default_factory=dict)
    acquired: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.latents.values())))

    def bytes(self) -> int:
        """Memory that all tensors take together."""
        parts = (
            self.latents,
            self.pooled,
            self.tokens,
            self.given,
            {"mask": self.mask, "ids": self.ids},
            *self.acquired.values(),
        )
        return sum(x.nbytes for part in parts for x in part.values())

    def to(self, device: torch.device | str) -> LatentCorpus:
        """The same studies in the memory of ``device``: a GPU then gathers its batches itself."""

        def moved(part: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {n: x.to(device) for n, x in part.items()}

        latents, pooled, tokens = moved(self.latents), moved(self.pooled), moved(self.tokens)
        given = moved(self.given)
        acquired = {kind: moved(part) for kind, part in self.acquired.items()}
        mask, ids = self.mask.to(device), self.ids.to(device)
        return LatentCorpus(self.name, latents, pooled, tokens, mask, ids, given, acquired)

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
        index, wording = there(index, z.device), there(wording, z.device)
        return (z[index, wording] if name == "text" else z[index]).float()

    def given_latent(self, name: str, index: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Latents (B, ...) of a stream of ``given``; ``prompt`` (B,) picks the prompt."""
        z = self.given[name]
        return z[there(index, z.device), there(prompt, z.device)].float()

    def embedding(self, name: str, index: torch.Tensor, prompt: torch.Tensor) -> Embedding:
        """Embeddings of studies ``index`` (B,); of text those of a prompt, which ``prompt`` (B,)
        picks. Its tokens are padded to the longest of the corpus: shapes do not depend on the
        draw."""
        index, prompt = (there(i, self.mask.device) for i in (index, prompt))
        if name == "text":
            return Embedding(
                self.pooled[name][index, prompt].float(),
                self.tokens[name][index, prompt].float(),
                self.mask[index, prompt],
            )
        tokens = self.tokens[name][index].float()
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Embedding(self.pooled[name][index].float(), tokens, mask)

    def other_acquisition(
        self, name: str, index: torch.Tensor, which: torch.Tensor
    ) -> tuple[torch.Tensor, Embedding] | None:
        """Latents and embeddings of studies ``index`` (B,) in acquisition ``which`` (B,) of an
        image stream; ``None`` where there is none."""
        if name not in self.acquired.get("z", {}):
            return None
        z, pooled, tokens = (self.acquired[kind][name] for kind in ("z", "pooled", "tokens"))
        index = there(index, z.device)
        which = there(which, z.device) % z.shape[1]
        cells = tokens[index, which].float()
        mask = torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)
        return z[index, which].float(), Embedding(pooled[index, which].float(), cells, mask)

    @classmethod
    def build(
        cls,
        model: MedM2G,
        corpus: Corpus,
        cache: Path | None = None,
        batch: int = 64,
        acquisitions: int = 0,
    ) -> LatentCorpus:
        """Encode everything once.

        With ``cache`` the result lies there in plain files, in a folder of its own for these
        weights and these studies, and is mapped into memory: it may be larger than that. It is
        written in shards of `SHARD` studies as they are made; several processes share them, and
        after an interruption only those that are not finished are made.

        Args:
            batch: pictures or reports encoded together.
            acquisitions: how many others of each picture are encoded too.
        """
        if cache is None:
            flat = {
                k: torch.zeros(f.shape, dtype=f.dtype)
                for k, f in _fields(model, corpus, acquisitions).items()
            }
            for shard in _shards(len(corpus)):
                _encode(model, corpus, shard, flat, batch)
            return cls._from_flat(corpus.name, flat, len(corpus))
        key = digest(
            corpus=corpus.fingerprint(),
            weights=weights_key(model),
            acquisitions=acquisitions,
            layout=4,
        )
        prefix = f"latents_{re.sub('[^A-Za-z0-9]+', '_', corpus.name)}-"
        folder, processes = cache / (prefix + key), PartialState()
        layout = CacheFile(folder / "layout.json", key)
        if processes.is_main_process and layout.load_json() is None:
            for stale in cache.glob(f"{prefix}*"):
                shutil.rmtree(stale, ignore_errors=True)
            folder.mkdir(parents=True)
            fields = _fields(model, corpus, acquisitions)
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
        ids = flat.get("ids", torch.zeros(studies, 1, 0, dtype=torch.int32))
        others = {k: group(f"other.{k}.") for k in ("z", "pooled", "tokens")}
        acquired = others if others["z"] else {}
        return cls(
            name,
            group("z."),
            group("pooled."),
            group("tokens."),
            mask,
            ids,
            group("given."),
            acquired,
        )


def weights_key(model: MedM2G, parts: Sequence[str] = BASE_STAGES) -> str:
    """Changes when a weight of these parts does."""
    return tensor_digest({k: v for part in parts for k, v in model.part(part).items()})


# ---- encoding

_NUMPY = {torch.float16: np.float16, torch.bool: np.bool_, torch.int32: np.int32}
"""Types of the files."""


@dataclass(frozen=True)
class _Field:
    """One tensor of a `LatentCorpus` as a plain file: studies first."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def plain(self) -> list[Any]:
        return [np.dtype(_NUMPY[self.dtype]).name, list(self.shape)]

    @classmethod
    def of(cls, plain: Sequence[Any]) -> _Field:
        (dtype,) = (t for t, kind in _NUMPY.items() if np.dtype(kind).name == plain[0])
        return cls(dtype, tuple(plain[1]))

    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self, file: Path, mode: Literal["r+", "c"]) -> np.memmap:
        return np.memmap(file, _NUMPY[self.dtype], mode, shape=self.shape)


def _shards(n: int) -> Iterator[range]:
    return (range(i, min(i + SHARD, n)) for i in range(0, n, SHARD))


@torch.no_grad()
def _fields(model: MedM2G, corpus: Corpus, acquisitions: int) -> dict[str, _Field]:
    """What is kept of a corpus, and in which shape."""
    n, width = len(corpus), model.profile.alignment.embed_dim
    out: dict[str, _Field] = {}
    for name, images in corpus.images.items():
        cells = model.embed({name: images[:1].float()})[name].tokens.shape[1]
        out[f"z.{name}"] = _Field(torch.float16, (n, *model.latent_shape(name)))
        out[f"pooled.{name}"] = _Field(torch.float16, (n, width))
        out[f"tokens.{name}"] = _Field(torch.float16, (n, cells, width))
        for kind in ("z", "pooled", "tokens") if acquisitions else ():
            first, *rest = out[f"{kind}.{name}"].shape
            out[f"other.{kind}.{name}"] = _Field(torch.float16, (first, acquisitions, *rest))
    if corpus.has_text:
        w, p, shape = len(corpus.reports[0]), len(corpus.prompts[0]), model.latent_shape("text")
        longest = max(int(model.tokens(prompts)[1].sum(1).max()) for prompts in corpus.prompts)
        out["z.text"] = _Field(torch.float16, (n, w, *shape))
        out["given.text"] = _Field(torch.float16, (n, p, *shape))
        out["pooled.text"] = _Field(torch.float16, (n, p, width))
        out["tokens.text"] = _Field(torch.float16, (n, p, longest, width))
        out["mask"] = _Field(torch.bool, (n, p, longest))
        written = max(int(model.tokens(reports)[1].sum(1).max()) for reports in corpus.reports)
        out["ids"] = _Field(torch.int32, (n, w, written))
    return out


@torch.no_grad()
def _encode(
    model: MedM2G, corpus: Corpus, studies: range, out: Mapping[str, torch.Tensor], batch: int
) -> None:
    """Fill the rows of ``studies`` in all tensors of ``out`` (see `_fields`)."""
    for name, images in corpus.images.items():
        for i in range(studies.start, studies.stop, batch):
            rows = slice(i, min(i + batch, studies.stop))
            x = images[rows].to(model.device).float()  # (b, 1, H, W)
            e = model.embed({name: x})[name]
            out[f"z.{name}"][rows] = model.encode(name, x).half().cpu()
            out[f"pooled.{name}"][rows] = e.pooled.half().cpu()
            out[f"tokens.{name}"][rows] = e.tokens.half().cpu()
            others = out.get(f"other.z.{name}")
            for v in range(0 if others is None else others.shape[1]):
                # Of these studies alone: the same whatever the other shards hold.
                seed = int(digest(corpus=corpus.name, stream=name, first=i, version=v)[:8], 16)
                draw = torch.Generator(x.device).manual_seed(seed)
                # Nothing moves: the flows learn to map place to place.
                y = acquire(x, name, draw, geometry=False, head=corpus.region == "brain")
                e = model.embed({name: y})[name]
                out[f"other.z.{name}"][rows, v] = model.encode(name, y).half().cpu()
                out[f"other.pooled.{name}"][rows, v] = e.pooled.half().cpu()
                out[f"other.tokens.{name}"][rows, v] = e.tokens.half().cpu()
    if not corpus.has_text:
        return

    def texts(field: str) -> torch.Tensor:
        """The studies' part of a field with a text a row: (n, W, ...) as (n W, ...), which shares
        the memory."""
        return out[field][studies.start : studies.stop].flatten(0, 1)

    reports = [text for i in studies for text in corpus.reports[i]]
    for i in range(0, len(reports), batch):
        some = reports[i : i + batch]
        own = slice(i, i + len(some))
        texts("z.text")[own] = model.encode("text", some).half().cpu()
        ids = model.tokens(some)[0]  # padded to the longest of the batch
        texts("ids")[own, : ids.shape[1]] = ids.int().cpu()
    prompts = [text for i in studies for text in corpus.prompts[i]]
    for i in range(0, len(prompts), batch):
        some = prompts[i : i + batch]
        own = slice(i, i + len(some))
        e = model.embed({"text": some})["text"]  # padded to the longest of the batch
        texts("given.text")[own] = model.encode("text", some).half().cpu()
        texts("pooled.text")[own] = e.pooled.half().cpu()
        texts("tokens.text")[own, : e.tokens.shape[1]] = e.tokens.half().cpu()
        texts("mask")[own, : e.mask.shape[1]] = e.mask.cpu()
