"""The losses of the stages: ``(model, batch) -> loss, logs``.

Symbols of the paper: x^m a stream, z^m its latent, h^m = E_m(x^m) its aligned embedding, V_m its
environment encoder, eps_m its flow, c a mix of prompts, t and s noise levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.nn import functional as F

from medm2g_core.alignment.objective import (
    Contradictions,
    central_alignment_loss,
    info_nce,
    visual_invariant_loss,
)
from medm2g_core.codecs.image import image_codec_loss
from medm2g_core.codecs.text import PAD_ID, text_codec_loss
from medm2g_core.flows.guidance import Guide
from medm2g_core.model import MedM2G
from medm2g_core.streams import stream
from medm2g_core.training.batches import AlignmentBatch, ImageBatch, TextBatch
from medm2g_core.training.report_batches import ReportBatch
from medm2g_core.training.round_batches import RoundBatch

__all__ = [
    "Logs",
    "alignment_objective",
    "image_codec_objective",
    "report_objective",
    "round_objective",
    "text_codec_objective",
]

Logs = dict[str, torch.Tensor]

ENVIRONMENT_LOGIT_SCALE = 2.3
"""log(1 / tau) of the contrast between environments: tau = 0.1, fixed. A soft one: the term shall
tell patients apart, not take over what the flows need of the environments."""


def image_codec_objective(model: MedM2G, batch: ImageBatch) -> tuple[torch.Tensor, Logs]:
    """Reconstruction of pictures through a noisy latent, see `image_codec_loss`."""
    return image_codec_loss(model.image_codec, batch.image, batch.noise)


def text_codec_objective(model: MedM2G, batch: TextBatch) -> tuple[torch.Tensor, Logs]:
    """Reconstruction of reports through a noisy latent, see `text_codec_loss`.

    Word dropout and the latent's noise come from torch's own generator, as any dropout layer's do;
    the loop seeds it for every step.
    """
    return text_codec_loss(model.text_codec, batch.ids, batch.mask)


def alignment_objective(model: MedM2G, batch: AlignmentBatch) -> tuple[torch.Tensor, Logs]:
    """L = L_align + w L_inv: text against every image modality, and two views of one of them.

    Contradictions are encoded with the prompts, and are wrong answers for pictures, nothing else.
    """
    config, encoders = model.profile.alignment, model.alignment
    words = encoders("text", (batch.ids, batch.mask)).pooled.float()  # (B + H, D)
    prompts = len(words) - len(batch.contradicted)
    h = {"text": words[:prompts]}  # (B, D)
    invariant = h["text"].new_zeros(())
    for m, view in batch.views.items():  # (B_m, 1, H, W)
        h[m] = encoders.encoders[m](view, batch.contrasts[m]).pooled.float()  # (B_m, D)
        if batch.second is not None and batch.second[0] == m:
            again = encoders.encoders[m](batch.second[1], batch.contrasts[m])
            invariant = visual_invariant_loss(h[m], again.pooled.float(), config)  # ()
    wrong = Contradictions(words[prompts:], batch.contradicted)
    align = central_alignment_loss(
        h, encoders.logit_scale, config.pairs, shared=batch.shared, contradictions=wrong
    )  # ()
    logs = {"align": align, "invariant": invariant, "r@1": _first_hits(h, batch.shared)}
    return align + config.invariant_weight * invariant, logs


@torch.no_grad()
def _first_hits(
    h: Mapping[str, torch.Tensor],
    shared: Mapping[tuple[str, str], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Share of prompts whose own picture, of the first image modality, is the most similar one."""
    first = next(m for m in h if m != "text")
    text, image = shared["text", first]
    score = h["text"][text] @ h[first][image].T  # (B_m, B_m)
    return (score.argmax(1) == torch.arange(len(score), device=score.device)).float().mean()


def report_objective(model: MedM2G, batch: ReportBatch) -> tuple[torch.Tensor, Logs]:
    """Next-token cross-entropy of the report writer, and the share of reports of which it has every
    token right."""
    assert model.writer is not None
    plan = model.text_codec.norm(batch.plan)  # as `MedM2G.decode` puts a drawn latent
    logits = model.writer.logits(batch.read, plan, batch.pictures)  # (B, L - 1, V)
    target = batch.ids[:, 1:]
    ce = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD_ID)
    with torch.no_grad():
        exact = ((logits.argmax(-1) == target) | (target == PAD_ID)).all(1).float().mean()
    return ce, {"ce": ce, "teacher_exact": exact}


def round_objective(model: MedM2G, batch: RoundBatch) -> tuple[torch.Tensor, Logs]:
    """L = sum_m E |eps_m(z^m_t, t, c_m, {V_n(z^n_s, s)}) - target|^2 + w L_env over the targets m,
    each guided by the other streams n."""
    schedule, t = model.schedule, batch.level  # t: (B,)
    guides = _environments(model, batch)
    losses, logs = [], {}
    for m in batch.targets:
        z0, eps = batch.latents[m], batch.noise[m]  # (B, ...)
        zt = schedule.add_noise(z0, eps, t)  # (B, ...)
        present = batch.present[m]  # guide -> (B,)
        others = [replace(g, present=present[n]) for n, g in guides.items() if n != m]
        prediction = model.flow(m, zt, t, batch.prompts[m], others)  # (B, ...)
        error = (prediction.float() - schedule.target(z0, eps, t)).square().mean()  # ()
        losses.append(error)
        logs[f"loss_{stream(m).modality}"] = error
    loss = torch.stack(losses).sum()
    weight = model.profile.flow.env_contrast
    if weight and len(guides) > 1:
        logs["env"] = _environment_contrast(guides)
        loss = loss + weight * logs["env"]
    return loss, logs


def _environments(model: MedM2G, batch: RoundBatch) -> dict[str, Guide]:
    """V_n(z^n_s, s) of every stream that guides, at the guide's own noise level s."""
    guides = {}
    for n, s in batch.guide_levels.items():  # s: (B,)
        zs = model.schedule.add_noise(batch.guide_latents[n], batch.noise[n], s)  # (B, ...)
        guides[n] = model.environment(n, zs, s, torch.ones_like(s))
    return guides


def _environment_contrast(guides: Mapping[str, Guide]) -> torch.Tensor:
    """L_env: InfoNCE between the mean environments of the first stream and of each other (CoDi)."""
    first, *rest = (F.normalize(g.tokens.float().mean(1), dim=-1) for g in guides.values())
    scale = torch.full((), ENVIRONMENT_LOGIT_SCALE, device=first.device)
    return torch.stack([info_nce(first, other, scale) for other in rest]).mean()
