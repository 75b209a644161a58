"""A quick look at held-out studies after each stage; the full tables are the evaluation's job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from medm2g_core.model import MedM2G
from medm2g_core.training.corpus import Corpus, LatentCorpus, random_reports
from medm2g_core.training.stages import RoundStage

__all__ = ["recall_at", "validate"]


def recall_at(a: torch.Tensor, b: torch.Tensor, k: int) -> float:
    """Fraction of rows of ``a`` (N, D) whose own row of ``b`` is among the k most similar."""
    score = a @ b.T
    rank = (score > score.diagonal()[:, None]).sum(1)
    return (rank < k).float().mean().item()


@torch.no_grad()
def validate(
    model: MedM2G, stage: str, held_out: Callable[[], Sequence[Corpus]], batches: int = 8
) -> dict[str, float]:
    """Figures of one stage on held-out studies: PSNR (dB), exact reports, recall, or the flow losses.

    Args:
        held_out: gives the held-out studies; not called for the text codec, which is tried on new random reports.
    """
    model.eval()
    out: dict[str, float] = {}
    if stage == "image_codec":
        for c in held_out():
            for name, images in c.images.items():
                x = images.to(model.device, model.dtype)
                y = torch.cat([model.decode(name, model.encode(name, p)) for p in x.split(32)])  # type: ignore[misc]
                mse = (x - y).square().mean((1, 2, 3)).clamp_min(1e-10)
                out[f"psnr_{c.region}_{name}"] = round((10 * torch.log10(4 / mse)).mean().item(), 2)
    elif stage == "text_codec":
        texts = random_reports(256, seed=2**31)
        back = [t for i in range(0, len(texts), 64)
                for t in model.decode("text", model.encode("text", texts[i : i + 64]))]  # fmt: skip
        same = [a.split() == b.split() for a, b in zip(texts, back, strict=True)]
        out = {"exact": round(sum(same) / len(same), 3), "n": len(same)}
    elif stage == "alignment":
        for c in held_out():
            text = model.embed({"text": [r[0] for r in c.reports]})["text"].pooled
            for name, images in c.images.items():
                image = model.embed({name: images.to(model.dtype)})[name].pooled
                for k in (1, 5):
                    out[f"text_to_{c.region}_{name}_r@{k}"] = round(recall_at(text, image, k), 3)
            out[f"n_{c.region}"] = len(c)
    else:
        latent = [LatentCorpus.build(model, c) for c in held_out()]
        met = {m: model.prompt_projection(m).met.clone() for m in model.flows}
        probe = RoundStage(model, latent, stage)
        sums: dict[str, list[float]] = {}
        for i in range(batches):
            _, logs = probe(32, torch.Generator().manual_seed(i))
            for k, v in logs.items():
                sums.setdefault(k, []).append(v.item())
        for m, before in met.items():
            model.prompt_projection(m).met.copy_(before)
        out = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
    return out
