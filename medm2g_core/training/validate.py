"""A quick look at held-out studies after each stage; the full tables are the evaluation's job."""

from __future__ import annotations

import re

import torch

from medm2g_core.alignment.objective import normal
from medm2g_core.codecs.writer import Picture
from medm2g_core.data.labeller import label_report
from medm2g_core.metrics.findings import finding_counts, finding_f1
from medm2g_core.model import MedM2G
from medm2g_core.profiles import REPORT_STAGE
from medm2g_core.training.batches import can_align
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.data import TrainingData
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.report_batches import ReportBatch
from medm2g_core.training.stages import ReportStage, RoundStage

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
    elif stage == REPORT_STAGE:
        held_out = [c for c in data.corpora("val") if c.has_text and c.images]
        for corpus in (c.first(most) for c in held_out):
            found = _written(model, corpus)
            out |= {f"{_key(corpus)}_{name}": round(v, 4) for name, v in found.items()}
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


def _written(model: MedM2G, corpus: Corpus) -> dict[str, float]:
    """How the report writer does with all pictures of a study and the plan of its report, and with
    the pictures alone (the plan is noise).

    Returns:
        cross-entropy and share of exact reports with the right words before each token; and of
        reports written from the pictures alone the strict F1 of the findings that the labeller
        reads, against those that it reads from the true report.
    """
    latent = LatentCorpus.build(model, corpus)
    stage = ReportStage(model, [latent])
    index = torch.arange(len(latent))
    first = torch.zeros_like(index)
    ids = latent.ids[:, 0].long().to(model.device)  # (N, L)
    plan = latent.latent("text", index, first).to(model.device)  # (N, K, d)
    noise = normal(plan.shape, torch.Generator().manual_seed(0), plan.device)
    seen = {}
    for name in (n for n in latent.latents if n != "text"):
        e = latent.embedding(name, index, first).to(model.device)
        seen[name] = Picture.of(e.pooled, e.tokens)
    out: dict[str, float] = {}
    for what, told in (("both", plan), ("pictures", noise)):
        _, logs = stage.objective(model, ReportBatch(ids, ids[:, :-1], told, seen))
        out |= {f"{k}_{what}": v.item() for k, v in logs.items()}
    written = stage.writer.decode(model.text_codec.norm(noise), seen)
    texts = model.tokenizer.batch_decode(written, skip_special_tokens=True)
    counts = [
        finding_counts(label_report(a).findings, label_report(b[0]).findings, strict=True)
        for a, b in zip(texts, corpus.reports, strict=True)
    ]
    return {**out, "f1_pictures": finding_f1(counts)}
