"""Report baseline: a plain autoregressive decoder that attends to the image, trained for a given
CPU time.

A GPT-2 of the width and depth of the text flow, with cross-attention to the cells and the pooled
embedding of an image encoder. ``frozen`` reads what the flow's prompt reads (the aligned encoder as
it is), ``tuned`` goes on training that encoder, ``fresh`` trains one of the same shape from
nothing. Apart they show whether the features or the generator limit a report.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from medm2g_core.alignment.encoders import N_CONTRASTS, Embedding, ImageEncoder
from medm2g_core.alignment.objective import augmented_view
from medm2g_core.codecs.text import BOS_ID, EOS_ID, PAD_ID
from medm2g_core.data.wheels import cache_dir
from medm2g_core.model import MedM2G
from medm2g_core.profiles import StageConfig
from medm2g_core.storage import CacheFile, digest, tensor_digest
from medm2g_core.streams import StreamError, stream
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.fit import Budget, Fitted, cosine, fit, seeded
from medm2g_core.training.loop import cuda_devices
from medm2g_core.training.optimizer import Optimizer

__all__ = ["DecoderSettings", "Encoder", "ReportDecoder", "decoder_file", "train_decoder"]

Encoder = Literal["frozen", "tuned", "fresh"]
VERSION = 2
"""Of the decoder and its training; part of the key of a kept file."""

READ_BATCH = 32
"""Images that are read at once where nothing is trained."""

WARM_UP = 0.05
"""Part of the budget until the full learning rate."""

START = 0.1
"""Where the warm-up begins, in parts of itself: a tenth of the learning rate, not nothing."""

IGNORED = -100
"""Target of padding, which transformers and torch leave out of a loss."""

POOL = 8
"""Batches that are drawn together and sorted by length, to waste little on padding."""


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """How a decoder is trained.

    Attributes:
        stream: image stream that it reads.
        seconds: time of training: CPU time summed over threads, or on a GPU that of the wall;
            encoding the images once (``frozen``) is not counted, as it is not counted for the flow.
        steps: a number of steps after which training ends even so, if not 0.
        encoder: see the module.
        width, layers, heads: of GPT-2; 0 for those of the model's text flow.
        seed: of weights, batches and dropout.
        batch, lr, dropout, weight_decay, optimizer: of training.
    """

    stream: str
    seconds: float
    steps: int = 0
    encoder: Encoder = "frozen"
    width: int = 0
    layers: int = 0
    heads: int = 0
    seed: int = 0
    batch: int = 32
    lr: float = 2e-3
    dropout: float = 0.1
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "muon"] = "adamw"


class ReportDecoder(nn.Module):
    """Image (B, 1, H, W) in -1..1 to report.

    Attributes:
        info: how it was trained: steps, seconds, precision, the mean loss of its last steps.
    """

    def __init__(self, model: MedM2G, settings: DecoderSettings) -> None:
        super().__init__()
        profile, spec = model.profile, stream(settings.stream)
        if not spec.is_image:
            raise StreamError(f"{settings.stream}: the report decoder reads an image stream")
        self.settings, self.tokenizer, self.contrast = settings, model.tokenizer, spec.contrast
        self.info: dict[str, Any] = {}
        if settings.encoder == "fresh":
            self.encoder = ImageEncoder(
                profile.alignment, N_CONTRASTS if spec.modality == "mri" else 1
            )
        else:
            self.encoder = copy.deepcopy(
                cast(ImageEncoder, model.alignment.encoders[spec.modality])
            ).cpu()
        self.encoder.requires_grad_(settings.encoder != "frozen")
        width, dim = settings.width or profile.flow.text_width, profile.alignment.embed_dim
        self.norm = nn.LayerNorm(dim)
        self.enter = nn.Linear(dim, width)
        with torch.no_grad():
            blank = torch.zeros(1, 1, profile.resolution, profile.resolution)
            cells = self.encoder.eval()(blank, torch.zeros(1, dtype=torch.long)).tokens.shape[1]
        self.place = nn.Parameter(torch.randn(1 + cells, width) * 0.1)
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=profile.text_codec.vocab_size,
                n_positions=profile.text_codec.max_length,
                n_embd=width,
                n_layer=settings.layers or profile.flow.text_layers,
                n_head=settings.heads or profile.flow.text_heads,
                add_cross_attention=True,
                bos_token_id=BOS_ID,
                eos_token_id=EOS_ID,
                pad_token_id=PAD_ID,
                resid_pdrop=settings.dropout,
                embd_pdrop=settings.dropout,
                attn_pdrop=0.0,
                activation_function="gelu_pytorch_tanh",  # GPT-2's own, with a fused kernel
            )
        )
        # In bf16 on a CPU three times as fast as the fused kernel.
        self.decoder.set_attn_implementation("eager")

    def encode(self, images: torch.Tensor) -> Embedding:
        """Embedding of images (B, 1, H, W) in -1..1, on any device."""
        images = images.to(self.place.device)
        contrast = torch.full((len(images),), self.contrast, device=images.device)  # (B,)
        return self.encoder(images, contrast)

    def memory(self, pooled: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Pooled embedding (B, D) and cells (B, N, D) to what the decoder attends to (B, 1 + N,
        width)."""
        # The pooled embedding has unit length, so its numbers are tiny before they are normalised.
        return self.enter(self.norm(torch.cat([pooled[:, None], tokens], 1))) + self.place

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy a token of reports, padding left out.

        Args:
            ids, mask: (B, L), padded on the right; mask is 1 on tokens.
            memory: (B, 1 + N, width).
        """
        out = self.decoder(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            encoder_hidden_states=memory,
            use_cache=False,
        )
        target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)  # (B, L - 1)
        return F.cross_entropy(
            out.logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED
        )

    def write(self, images: torch.Tensor, *, sample: bool = False, seed: int = 0) -> list[str]:
        """Reports of images (N, 1, H, W) in -1..1: greedy, or sampled at temperature 1 with
        ``seed``."""
        return self._write(images, 1, sample, seed)[0]

    def write_samples(self, images: torch.Tensor, n: int, *, seed: int = 0) -> list[list[str]]:
        """``n`` sampled reports of every image (N, 1, H, W) in -1..1, which is encoded once.

        Returns:
            ``n`` lists of N reports, as
            `medm2g_core.evaluation.report_generation.minimum_risk` takes them. The first of ``n``
            are those of any smaller ``n`` with the same seed, and the very first is
            ``write(images, sample=True, seed=seed)``.

        Raises:
            ValueError: ``n`` below 1.
        """
        if n < 1:
            raise ValueError(f"{n} samples of each report: needed at least 1")
        return self._write(images, n, True, seed)

    @torch.no_grad()
    def _write(self, images: torch.Tensor, n: int, sample: bool, seed: int) -> list[list[str]]:
        self.eval()
        memories = []
        for x in images.float().split(READ_BATCH):
            seen = self.encode(x)
            memories.append(self.memory(seen.pooled, seen.tokens))  # (B, 1 + cells, width)
        with torch.random.fork_rng(devices=cuda_devices(self.place.device)):
            torch.manual_seed(seed)  # `generate` knows no generator of its own
            return [[t for m in memories for t in self._generate(m, sample)] for _ in range(n)]

    def _generate(self, memory: torch.Tensor, sample: bool) -> list[str]:
        """One report for each memory (B, 1 + cells, width), with cached keys and values."""
        start = torch.full((len(memory), 1), BOS_ID, dtype=torch.long, device=memory.device)
        ids = self.decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=memory,
            max_length=self.decoder.config.n_positions,
            do_sample=sample,
            num_beams=1,
            use_cache=True,
            pad_token_id=PAD_ID,
            **({"top_k": 0, "top_p": 1.0, "temperature": 1.0} if sample else {}),
        )  # (B, up to n_positions)
        return [t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def kept(self) -> dict[str, torch.Tensor]:
        """The tensors that a file holds: all that training moves (the tied output layer once)."""
        gone = ("decoder.lm_head.",) + (("encoder.",) if self.settings.encoder == "frozen" else ())
        return {k: v for k, v in self.state_dict().items() if not k.startswith(gone)}


def decoder_file(
    model: MedM2G,
    corpus: Corpus,
    settings: DecoderSettings,
    cache: Path | None = None,
    device: str = "cpu",
) -> CacheFile:
    """Where the weights of a decoder are kept: another file for other encoder weights, studies,
    settings or devices.

    Args:
        cache: folder; by default ``baselines`` in the user's cache.
    """
    spec = stream(settings.stream)
    key = digest(
        version=VERSION,
        settings=asdict(settings),
        studies=corpus.fingerprint(),
        flow=model.profile.to_dict()["flow"],
        # Its words, not its whole state: padding, which every use sets, is part of that.
        words=model.tokenizer.get_vocab(),
        encoder=tensor_digest(model.alignment.encoders[spec.modality].state_dict()),
        device=device,
    )
    name = f"report_decoder_{settings.stream}_{settings.encoder}_{key}.safetensors"
    return CacheFile((cache or cache_dir() / "baselines") / name, key)


def train_decoder(
    model: MedM2G,
    corpus: Corpus,
    settings: DecoderSettings,
    *,
    threads: int = 1,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    keep: bool = True,
    progress: bool = True,
) -> ReportDecoder:
    """A decoder trained on a corpus for ``settings.seconds``, or the kept one.

    A training that was stopped by Ctrl-C goes on where it was when it is asked for again.

    Args:
        corpus: training studies with the stream
            (`medm2g_core.rivals.reports.report_corpus`).
        threads: of torch; the CPU time is the sum over them.
        cache: see `decoder_file`.
        device: that it is trained on, and stays on.
        keep: read and write that file. A damaged file is said and trained again.

    Returns:
        The decoder in evaluation mode. How many steps fit into the time depends on the machine, so
        two machines train two decoders; ``info`` says how many there were.

    Raises:
        StreamError: no image stream.
        StageInterrupted: stopped by Ctrl-C; the same call goes on.
    """
    device = torch.device(device)
    if not stream(settings.stream).is_image:
        raise StreamError(f"{settings.stream}: the report decoder reads an image stream")
    file = decoder_file(model, corpus, settings, cache, device.type) if keep else None
    state = CacheFile(file.path.with_suffix(".state.safetensors"), file.key) if file else None
    with seeded(settings.seed, device, threads):
        decoder = ReportDecoder(model, settings).to(device)
        kept = file.load_tensors() if file else None
        if file and kept:
            tensors, decoder.info = kept
            if wrong := sorted(tensors.keys() ^ decoder.kept().keys()):
                raise ValueError(f"{file.path} does not fit: {wrong[0]}; delete it to train again")
            decoder.load_state_dict(tensors, strict=False)  # the frozen encoder is not in the file
            return decoder.eval()
        trained = _train(decoder, model, corpus, settings, state, progress)
        decoder.info = {
            "encoder": settings.encoder,
            **trained.facts(device),
            "threads": threads,
            "loss": round(trained.recent, 4),
            "training studies": len(corpus),
            "wordings": len(corpus.reports[0]),
            "parameters": sum(p.numel() for p in decoder.parameters() if p.requires_grad),
        }
    if file and state:
        file.save_tensors(decoder.kept(), decoder.info)
        state.delete()
    return decoder.eval()


def _train(
    decoder: ReportDecoder,
    model: MedM2G,
    corpus: Corpus,
    settings: DecoderSettings,
    state: CacheFile | None,
    progress: bool,
) -> Fitted:
    n, w, device = len(corpus), len(corpus.reports[0]), decoder.place.device
    ids, mask = (  # (N, W, L) each
        t.cpu().unflatten(0, (n, w)) for t in model.tokens([t for r in corpus.reports for t in r])
    )
    images = corpus.images[settings.stream]
    seen = _features(decoder, images) if settings.encoder == "frozen" else None
    config = StageConfig(
        steps=1,
        batch=settings.batch,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
    )
    named = {k: p for k, p in decoder.named_parameters() if p.requires_grad}
    optimizer = Optimizer(named, decoder, config)

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        index, wording = batch  # (B,) each
        longest = int(mask[index, wording].sum(1).max())
        if seen is not None:
            pooled, tokens = (x[index].to(device).float() for x in seen)
        else:
            # The views draw from the global generator, which a resumed training puts back.
            views = augmented_view(images[index].to(device).float(), torch.default_generator)
            found = decoder.encode(views)
            pooled, tokens = found.pooled, found.tokens  # (B, D), (B, cells, D)
        own_ids = ids[index, wording, :longest].to(device)  # (B, longest)
        own_mask = mask[index, wording, :longest].to(device)
        return decoder.loss(own_ids, own_mask, decoder.memory(pooled, tokens))

    def schedule(step: int, part: float) -> None:
        warm = min(1.0, START + part / WARM_UP)
        optimizer.set_lr(settings.lr * warm * cosine(part))

    decoder.train()
    if settings.encoder == "frozen":
        decoder.encoder.eval()
    generator = torch.Generator().manual_seed(settings.seed)
    return fit(
        decoder,
        loss,
        _batches(mask.sum(2), settings.batch, generator),
        optimizer,
        budget=Budget(settings.seconds, settings.steps),
        schedule=schedule,
        clip=1.0,
        precision="trial",
        state=state,
        title=f"report decoder ({settings.encoder})",
        progress=progress,
    )


def _batches(
    lengths: torch.Tensor, batch: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random (study, wording) pairs without end; those of a batch are of similar length, to waste
    little on padding.

    Args:
        lengths: (N, W) tokens of every wording.
    """
    n, w = lengths.shape
    while True:
        index = torch.randint(n, (POOL * batch,), generator=generator)
        wording = torch.randint(w, (POOL * batch,), generator=generator)
        by_length = lengths[index, wording].argsort().split(batch)
        for k in torch.randperm(POOL, generator=generator).tolist():
            yield index[by_length[k]], wording[by_length[k]]


@torch.no_grad()
def _features(decoder: ReportDecoder, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled embeddings (N, D) and cells (N, cells, D) of the frozen encoder, half precision."""
    decoder.encoder.eval()
    seen = [decoder.encode(x.float()) for x in images.split(READ_BATCH)]
    return torch.cat([s.pooled.half().cpu() for s in seen]), torch.cat(
        [s.tokens.half().cpu() for s in seen]
    )
