"""A quick look at held-out studies after each stage; the full tables are the evaluation's job."""

from __future__ import annotations

import re

import torch

from medm2g_core.model import MedM2G
from medm2g_core.training.batches import can_align
from medm2g_core.training.corpus import Corpus, LatentCorpus
from medm2g_core.training.data import TrainingData
from medm2g_core.training.stages import RoundStage

__all__ = ["recall_at", "validate"]


def recall_at(a: torch.Tensor, b: torch.Tensor, k: int) -> float:
    """Fraction of rows of ``a`` (N, D) whose own row of ``b`` is among the k most similar."""
    score = a @ b.T
    rank = (score > score.diagonal()[:, None]).sum(1)
    return (rank < k).float().mean().item()


def _key(corpus: Corpus) -> str:
    """The corpus's name as part of a key."""
    return "_".join(re.findall("[a-z0-9]+", corpus.name.lower()))


@torch.no_grad()
def validate(
    model: MedM2G, stage: str, data: TrainingData, batches: int = 8, most: int = 256
) -> dict[str, float]:
    """Figures of one stage on held-out studies: PSNR (dB), exact reports, recall, or the flow
    losses.

    Args:
        data: its validation split is used, and for the text codec reports that training did not
            see.
        most: studies a corpus; more are not looked at.

    Returns:
        empty where the data has no validation studies for this stage.
    """
    model.eval()
    out: dict[str, float] = {}
    if stage == "image_codec":
        for c in data.corpora("val"):
            for name, images in c.images.items():
                x = images[:most].to(model.device, model.dtype)
                y = torch.cat([model.decode(name, model.encode(name, p)) for p in x.split(32)])  # type: ignore[misc]
                mse = (x - y).square().mean((1, 2, 3)).clamp_min(1e-10)
                out[f"psnr_{_key(c)}_{name}"] = round((10 * torch.log10(4 / mse)).mean().item(), 2)
    elif stage == "text_codec":
        texts = data.reports(256, 0, "val")
        back = [
            t
            for i in range(0, len(texts), 64)
            for t in model.decode("text", model.encode("text", texts[i : i + 64]))
        ]
        same = [a.split() == b.split() for a, b in zip(texts, back, strict=True)]
        out = {"exact": round(sum(same) / len(same), 3), "n": len(same)} if same else {}
    elif stage == "alignment":
        for c in (c for c in data.corpora("val") if can_align(c)):
            text = model.embed({"text": [p[0] for p in c.prompts[:most]]})["text"].pooled
            for name, images in c.images.items():
                image = model.embed({name: images[:most].to(model.dtype)})[name].pooled
                for k in (1, 5):
                    out[f"text_to_{_key(c)}_{name}_r@{k}"] = round(recall_at(text, image, k), 3)
            out[f"n_{_key(c)}"] = len(text)
    else:
        plan = data.round(stage, "val")
        used = {mix.corpus for mix in plan.mixes}
        latent = [
            LatentCorpus.build(model, c.first(most)) for c in data.corpora("val") if c.name in used
        ]
        if not latent:
            return out
        probe = RoundStage(model, latent, stage, plan)
        sums: dict[str, list[float]] = {}
        for i in range(batches):
            _, logs = probe(32, torch.Generator().manual_seed(i))
            for k, v in logs.items():
                sums.setdefault(k, []).append(v.item())
        out = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
    return out
