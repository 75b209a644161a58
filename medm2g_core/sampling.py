"""Sampling: any set of given streams, any set of wanted ones, together or one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch

from medm2g_core.flows.prompt import Prompt

if TYPE_CHECKING:  # the model owns the flows; the sampler only needs its joint call
    from medm2g_core.model import MedM2G

__all__ = ["ORDERS", "Order", "SampleStep", "draw_noise", "sample_latents"]

Order = Literal["joint", "cascade"]
ORDERS: tuple[str, ...] = get_args(Order)


@dataclass
class SampleStep:
    """What a callback sees after each step, and what it may change.

    Attributes:
        step: 0-based index over the whole run; in cascade order it goes on from stream to stream.
        total: number of steps of the whole run.
        timestep: the scheduler's timestep that was just left, a 0-d tensor in 0..1000.
        level: the same as a noise level in [0, 1].
        denoised: stream -> the clean latent predicted at this step.
        latents: stream -> latent after the step, of the streams that are being drawn. A callback
            may put others in their place; the sampler goes on from those.
        guidance_scale: a callback may change it for the steps to come.
        stop: a callback sets it to end the run here; the streams stay as noisy as they are.
    """

    step: int
    total: int
    timestep: torch.Tensor
    level: float
    denoised: Mapping[str, torch.Tensor]
    latents: dict[str, torch.Tensor]
    guidance_scale: float
    stop: bool = False


def draw_noise(
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Standard normal noise drawn on the CPU, then moved: a seed gives the same start on every
    device.

    A list of generators gives each sample its own, so a sample does not depend on the batch that it
    is drawn in.
    """
    if generator is None or isinstance(generator, torch.Generator):
        noise = torch.randn(tuple(shape), generator=generator)
    else:
        if len(generator) != shape[0]:
            raise ValueError(f"{len(generator)} generators for a batch of {shape[0]}")
        noise = torch.stack([torch.randn(tuple(shape[1:]), generator=g) for g in generator])
    return noise.to(like)


@torch.no_grad()
def sample_latents(
    model: MedM2G,
    given: Mapping[str, torch.Tensor],
    want: Sequence[str],
    prompt: Prompt,
    *,
    steps: int = 10,
    guidance_scale: float = 2.0,
    cross_guidance_scale: float | None = None,
    order: Order = "joint",
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    noise_scale: float = 1.0,
    latents: Mapping[str, torch.Tensor] | None = None,
    callback: Callable[[SampleStep], object] | None = None,
) -> dict[str, torch.Tensor]:
    """Draw the latents of the wanted streams.

    Args:
        given: stream -> clean standardised latent (B, ...).  want: streams to draw, none of them
            given.
        prompt: what the given streams say, mixed; see `medm2g_core.flows.prompt`.
        guidance_scale, cross_guidance_scale: see `_predict_guided`.
        order: ``"joint"`` draws all together, each step with ONE joint call; ``"cascade"`` one
            after the other in the order of ``want``, each finished one a clean guide for the next.
        generator: see `draw_noise`.
        noise_scale: deviation of the starting noise; below 1 trades diversity for likelihood.
        latents: stream -> standard normal noise (B, ...) to start from; drawn here for the wanted
            streams that it does not name.
        callback: sees every step and may change it, see `SampleStep`.

    Returns:
        stream -> latent (B, ...), in the order of ``want``. After a stop, streams that were not
        begun are still their starting noise.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; known: {', '.join(ORDERS)}")
    batch, like = len(prompt.pooled), prompt.pooled
    start = dict(latents or {})
    z = {}
    for n in want:
        if n not in start:
            start[n] = draw_noise((batch, *model.latent_shape(n)), generator, like)
        z[n] = noise_scale * start[n].to(like)

    clean = dict(given)  # noise level 0: what was given, and in cascade what is finished
    groups = [[*want]] if order == "joint" else [[n] for n in want]
    total, step = steps * len(groups), 0
    for group in groups:
        schedulers = {n: model.schedule.scheduler(steps)[0] for n in group}  # each counts its steps
        scheduler, levels = model.schedule.scheduler(steps)
        has_condition = bool(clean) or bool(prompt.present.any())
        for timestep, level in zip(scheduler.timesteps, levels, strict=True):
            noisy = {n: z[n] for n in group}
            if has_condition:
                predictions = _predict_guided(
                    model, noisy, level, clean, prompt, guidance_scale, cross_guidance_scale
                )
            else:
                predictions = _predict(model, noisy, level, clean, prompt, [(1, 1)])[0]
            denoised, after = {}, {}
            for n, prediction in predictions.items():
                t = prediction.new_full((batch,), level)
                denoised[n] = model.schedule.denoised(z[n], prediction, t)
                own = cast(Any, schedulers[n])  # its type hints want a float tensor type of old
                after[n] = own.step(prediction, timestep, z[n]).prev_sample.to(like)
            now = SampleStep(step, total, timestep, level, denoised, after, guidance_scale)
            if callback is not None:
                callback(now)
            z |= now.latents
            guidance_scale = now.guidance_scale
            step += 1
            if now.stop:
                return z
        clean |= {n: z[n] for n in group}
    return z


def _predict_guided(
    model: MedM2G,
    z: Mapping[str, torch.Tensor],
    level: float,
    clean: Mapping[str, torch.Tensor],
    prompt: Prompt,
    guidance_scale: float,
    cross_guidance_scale: float | None,
) -> dict[str, torch.Tensor]:
    """What the flows of ``z`` predict, with classifier-free guidance (Ho and Salimans 2022).

    e_0 is told nothing: neither the prompt nor the *clean* guides; the streams that are being drawn
    keep guiding each other in every prediction. e_pg is told both. With one scale w the result is
    e = e_0 + w (e_pg - e_0). With its own ``cross_guidance_scale`` w_g the clean guides get a third
    prediction e_p that is told the prompt alone, so that the two can be turned up separately:
    e = e_0 + w (e_p - e_0) + w_g (e_pg - e_p).
    """
    w, w_g = guidance_scale, cross_guidance_scale
    if w == 1 and w_g in (None, 1):
        return _predict(model, z, level, clean, prompt, [(1, 1)])[0]
    if w_g is None or not clean:
        e_pg, e_0 = _predict(model, z, level, clean, prompt, [(1, 1), (0, 0)])
        return {n: e_0[n] + w * (e_pg[n] - e_0[n]) for n in z}
    e_pg, e_p, e_0 = _predict(model, z, level, clean, prompt, [(1, 1), (1, 0), (0, 0)])
    return {n: e_0[n] + w * (e_p[n] - e_0[n]) + w_g * (e_pg[n] - e_p[n]) for n in z}


def _predict(
    model: MedM2G,
    z: Mapping[str, torch.Tensor],
    level: float,
    clean: Mapping[str, torch.Tensor],
    prompt: Prompt,
    told: Sequence[tuple[float, float]],
) -> list[dict[str, torch.Tensor]]:
    """Several predictions from ONE joint call on as many copies of the batch.

    Args:
        z: stream -> latent (B, ...) at noise level ``level``, to be predicted for.
        clean: stream -> latent (B, ...) at noise level 0, which guides.
        told: for each copy 1 or 0 for the prompt, and 1 or 0 for the clean guides.

    Returns:
        for each copy stream -> prediction (B, ...).
    """
    copies, batch = len(told), len(prompt.pooled)
    keep_prompt, keep_guides = ([float(pair[i]) for pair in told] for i in (0, 1))
    zeros = prompt.pooled.new_zeros(copies * batch)
    present = torch.tensor(keep_guides).repeat_interleave(batch).to(zeros)  # (copies B,)
    predictions = model.predict(
        {n: x.repeat(copies, *[1] * (x.ndim - 1)) for n, x in {**clean, **z}.items()},
        {n: zeros for n in clean} | {n: torch.full_like(zeros, level) for n in z},
        list(z),
        prompt.repeat(keep_prompt),
        {n: present for n in clean},
    )
    chunks = {n: e.chunk(copies) for n, e in predictions.items()}
    return [{n: e[i] for n, e in chunks.items()} for i in range(copies)]
