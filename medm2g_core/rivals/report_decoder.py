"""Report baseline: a plain autoregressive decoder that attends to the image, trained for a given
CPU time.

A GPT-2 of the width and depth of the text flow, with cross-attention to the cells and the pooled
embedding of an image encoder. ``frozen`` reads what the flow's prompt reads (the aligned encoder as
it is), ``tuned`` goes on training that encoder, ``fresh`` trains one of the same shape from
nothing. Apart they show whether the features or the generator limit a report.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from medm2g_core.alignment.encoders import N_CONTRASTS, Embedding, ImageEncoder
from medm2g_core.alignment.objective import augmented_view
from medm2g_core.codecs.text import BOS_ID, EOS_ID, PAD_ID
from medm2g_core.data.wheels import cache_dir
from medm2g_core.model import MedM2G
from medm2g_core.profiles import StageConfig
from medm2g_core.storage import atomic_write
from medm2g_core.streams import StreamError, stream
from medm2g_core.training.clock import stopwatch, unit
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.loop import cuda_devices
from medm2g_core.training.optimizer import Optimizer

__all__ = ["DecoderSettings", "Encoder", "ReportDecoder", "decoder_file", "train_decoder"]

Encoder = Literal["frozen", "tuned", "fresh"]
VERSION = 1
"""Of the decoder and its training; part of the name of a kept file."""

# steps that bf16 and single precision take turns in; the faster one goes on (two pools of batches)
_TRIED = 18
_READ = 32  # images that are read at once where nothing is trained
_WARM = 0.05  # part of the time until the full learning rate


@dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """How a decoder is trained.

    Attributes:
        stream: image stream that it reads.
        seconds: time for training: CPU time summed over threads, or on a GPU that of the wall;
            encoding the images once (``frozen``) is not counted, as it is not counted for the flow.
        steps: a number of steps after which training ends, if not 0.
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
        info: how it was trained: steps, CPU seconds, last loss.
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
        self.decoder.set_attn_implementation(
            "eager"
        )  # in bf16 on a CPU three times as fast as the fused kernel

    def look(self, images: torch.Tensor) -> Embedding:
        """What the encoder says of images (B, 1, H, W)."""
        images = images.to(self.place.device)
        return self.encoder(
            images,
            torch.full((len(images),), self.contrast, dtype=torch.long, device=images.device),
        )

    def memory(self, pooled: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Pooled embedding (B, D) and cells (B, N, D) to what the decoder attends to (B, 1 + N,
        width)."""
        # The pooled embedding has unit length, so all but no variance a number before it is
        # normalised.
        return self.enter(self.norm(torch.cat([pooled[:, None], tokens], 1))) + self.place

    def loss(self, ids: torch.Tensor, mask: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Cross-entropy a token of reports: ids and mask (B, L), padded on the right."""
        out = self.decoder(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            encoder_hidden_states=memory,
            use_cache=False,
        )
        target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        return F.cross_entropy(
            out.logits.float().flatten(0, 1), target.flatten(), ignore_index=-100
        )

    @torch.no_grad()
    def write(self, images: torch.Tensor, *, sample: bool = False, seed: int = 0) -> list[str]:
        """Reports of images (N, 1, H, W): greedy, or sampled at temperature 1 with ``seed``; cached
        keys and values."""
        self.eval()
        out: list[str] = []
        with torch.random.fork_rng(devices=cuda_devices(self.place.device)):
            torch.manual_seed(seed)  # `generate` knows no generator of its own
            for x in images.float().split(_READ):
                seen = self.look(x)
                start = torch.full((len(x), 1), BOS_ID, dtype=torch.long, device=self.place.device)
                ids = self.decoder.generate(
                    input_ids=start,
                    attention_mask=torch.ones_like(start),
                    encoder_hidden_states=self.memory(seen.pooled, seen.tokens),
                    max_length=self.decoder.config.n_positions,
                    do_sample=sample,
                    num_beams=1,
                    use_cache=True,
                    pad_token_id=PAD_ID,
                    **({"top_k": 0, "top_p": 1.0, "temperature": 1.0} if sample else {}),
                )
                out += [
                    t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)
                ]
        return out

    # ---- on disk

    def kept(self) -> dict[str, torch.Tensor]:
        """The tensors that a file holds: all that training moves (the tied output layer once)."""
        gone = ("decoder.lm_head.",) + (("encoder.",) if self.settings.encoder == "frozen" else ())
        return {k: v for k, v in self.state_dict().items() if not k.startswith(gone)}

    def save(self, file: Path) -> None:
        tensors = {k: v.detach().cpu().contiguous().clone() for k, v in self.kept().items()}
        atomic_write(file, lambda p: save_file(tensors, p, {"info": json.dumps(self.info)}))

    def load(self, file: Path) -> bool:
        """Fill in the weights of a file; ``False`` (and nothing changed) if there is none, or it is
        damaged."""
        try:
            tensors = load_file(file)
            with safe_open(file, "pt") as f:
                info = json.loads((f.metadata() or {})["info"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        own = self.kept()
        if own.keys() != tensors.keys() or any(own[k].shape != v.shape for k, v in tensors.items()):
            return False
        self.load_state_dict(tensors, strict=False)
        self.info = info
        return True


def decoder_file(
    model: MedM2G,
    corpus: Corpus,
    settings: DecoderSettings,
    cache: Path | None = None,
    device: str = "cpu",
) -> Path:
    """Where the weights of a decoder are kept: another file for other encoder weights, studies,
    settings or devices.

    Args:
        cache: folder; by default ``baselines`` in the user's cache.
    """
    digest = hashlib.sha256(json.dumps([VERSION, asdict(settings), corpus.fingerprint()]).encode())
    digest.update(json.dumps(model.profile.to_dict()["flow"], sort_keys=True).encode())
    # Its words, not its whole state: padding, which every use sets, is part of that.
    digest.update(json.dumps(sorted(model.tokenizer.get_vocab().items())).encode())
    for name, tensor in sorted(
        model.alignment.encoders[stream(settings.stream).modality].state_dict().items()
    ):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    folder = cache_dir() / "baselines" if cache is None else cache
    if device != "cpu":
        digest.update(device.encode())
    name = f"report_decoder_{settings.stream}_{settings.encoder}_{digest.hexdigest()[:12]}"
    return folder / f"{name}.safetensors"


@contextmanager
def _quiet_threads(threads: int, seed: int, device: torch.device) -> Iterator[None]:
    """So many torch threads and a seeded global generator (dropout draws from it), both put back
    afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=cuda_devices(device)):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


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

    Args:
        corpus: training studies with the stream
            (`medm2g_core.rivals.reports.report_corpus`).
        threads: of torch; the CPU time is the sum over them.
        device: that it is trained on, and stays on.
        cache: see `decoder_file`.  keep: read and write that file. A damaged file is trained again.

    Returns:
        The decoder in evaluation mode. How many steps fit into the time depends on the machine, so
        two machines train two decoders; ``info`` says how many there were.
    """
    device = torch.device(device)
    file = decoder_file(model, corpus, settings, cache, device.type)
    with _quiet_threads(threads, settings.seed, device):
        decoder = ReportDecoder(model, settings).to(device)
        if keep and decoder.load(file):
            return decoder.eval()
        _train(decoder, model, corpus, settings, threads, progress)
    if keep:
        decoder.save(file)
    return decoder.eval()


def _train(
    decoder: ReportDecoder,
    model: MedM2G,
    corpus: Corpus,
    settings: DecoderSettings,
    threads: int,
    progress: bool,
) -> None:
    n, w, device = len(corpus), len(corpus.reports[0]), decoder.place.device
    ids, mask = (
        t.cpu().unflatten(0, (n, w)) for t in model.tokens([t for r in corpus.reports for t in r])
    )
    images = corpus.images[settings.stream]
    frozen = settings.encoder == "frozen"
    seen = _features(decoder, images) if frozen else None
    generator = torch.Generator().manual_seed(settings.seed)
    named = {k: p for k, p in decoder.named_parameters() if p.requires_grad}
    config = StageConfig(
        steps=1,
        batch=settings.batch,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        optimizer=settings.optimizer,
    )
    optimizer = Optimizer(named, decoder, config)
    spent = {True: 0.0, False: 0.0}  # seconds of some steps in bf16 and in single precision
    batches = _batches(mask.sum(2), settings.batch, generator)
    decoder.train()
    if frozen:
        decoder.encoder.eval()
    steps, fast, recent, used, watch = 0, False, float("nan"), 0.0, stopwatch(device)
    with tqdm(
        total=round(settings.seconds),
        desc=f"report decoder ({settings.encoder})",
        unit="s",
        disable=not progress,
    ) as bar:
        while (
            part := max(used / settings.seconds, steps / settings.steps if settings.steps else 0.0)
        ) < 1:
            cosine = 0.5 * (1 + torch.cos(torch.tensor(part * torch.pi)).item())
            optimizer.set_lr(settings.lr * min(1.0, (part + 0.1 * _WARM) / _WARM) * cosine)
            fast = steps % 2 == 0 if steps < _TRIED else spent[True] < spent[False]
            index, wording = next(batches)
            longest = int(mask[index, wording].sum(1).max())
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                if seen is not None:
                    pooled, tokens = (x[index].to(device).float() for x in seen)
                else:
                    found = decoder.look(
                        augmented_view(images[index].to(device).float(), generator)
                    )
                    pooled, tokens = found.pooled, found.tokens
                own = (
                    ids[index, wording, :longest].to(device),
                    mask[index, wording, :longest].to(device),
                )
                loss = decoder.loss(*own, decoder.memory(pooled, tokens))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(named.values(), 1.0)
            optimizer.step()
            steps += 1
            recent = loss.item() if steps == 1 else 0.98 * recent + 0.02 * loss.item()
            before, used = used, watch()
            if 2 < steps <= _TRIED:  # the first of each kind sets up
                spent[fast] += used - before
            bar.update(min(bar.total, int(used)) - bar.n)
            bar.set_postfix(step=steps, loss=f"{recent:.3f}", refresh=False)
    decoder.info = {
        "encoder": settings.encoder,
        "steps": steps,
        unit(device): round(used, 1),
        "threads": threads,
        "precision": "bf16" if fast else "fp32",
        "loss": round(recent, 4),
        "training studies": n,
        "wordings": w,
        "parameters": sum(p.numel() for p in named.values()),
    }


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
        index = torch.randint(n, (8 * batch,), generator=generator)
        wording = torch.randint(w, (8 * batch,), generator=generator)
        by_length = lengths[index, wording].argsort().split(batch)
        for k in torch.randperm(8, generator=generator).tolist():
            yield index[by_length[k]], wording[by_length[k]]


@torch.no_grad()
def _features(decoder: ReportDecoder, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled embeddings (N, D) and cells (N, cells, D) of the frozen encoder, half precision."""
    decoder.encoder.eval()
    seen = [decoder.look(x.float()) for x in images.split(_READ)]
    return torch.cat([s.pooled.half().cpu() for s in seen]), torch.cat(
        [s.tokens.half().cpu() for s in seen]
    )
