"""Sampling: any set of given streams, any set of wanted ones, together or one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from medm2g_core.flows.prompt import Prompt

if TYPE_CHECKING:  # the model owns the flows; the sampler only needs its joint call
    from medm2g_core.model import MedM2G

__all__ = ["Order", "SampleStep", "draw_noise", "sample_latents"]

Order = Literal["joint", "cascade"]


@dataclass(frozen=True)
class SampleStep:
    """What a callback sees after each step.

    Attributes:
        step: 0-based index.  total: number of steps.  level: noise level in [0, 1] that was just
            left.
        latents: stream -> latent after the step.  denoised: stream -> the clean latent predicted at
            this step.
    """

    step: int
    total: int
    level: float
    latents: Mapping[str, torch.Tensor]
    denoised: Mapping[str, torch.Tensor]


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
    callback: Callable[[SampleStep], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Draw the latents of the wanted streams.

    Classifier-free guidance extrapolates from a prediction without prompt and without *given*
    guides; the wanted streams keep guiding each other in both. With its own
    ``cross_guidance_scale`` the given guides get a third prediction (prompt only), so prompt and
    guides can be turned up separately: e = e_0 + w_p (e_p - e_0) + w_g (e_pg - e_p).

    Args:
        given: stream -> clean standardised latent (B, ...).  want: streams to draw, none of them
            given.
        order: ``"joint"`` draws all together, each step with ONE joint call; ``"cascade"`` one
            after the other in the order of ``want``, each finished one a clean guide for the next.
        noise_scale: deviation of the starting noise; below 1 trades diversity for likelihood.
    """
    if order == "cascade":
        done: dict[str, torch.Tensor] = {}
        for name in want:
            done |= sample_latents(
                model,
                {**given, **done},
                [name],
                prompt,
                steps=steps,
                guidance_scale=guidance_scale,
                cross_guidance_scale=cross_guidance_scale,
                generator=generator,
                noise_scale=noise_scale,
                callback=callback,
            )
        return done
    if order != "joint":
        raise ValueError(f"unknown order {order!r}; known: joint, cascade")

    batch, like = len(prompt.pooled), prompt.pooled
    z = {
        n: noise_scale * draw_noise((batch, *model.latent_shape(n)), generator, like) for n in want
    }
    schedulers = {n: model.schedule.scheduler(steps) for n in want}
    levels = next(iter(schedulers.values()))[1]

    conditional = bool(given) or bool(prompt.present.any())
    if not conditional or (guidance_scale == 1 and cross_guidance_scale in (None, 1)):
        keep_prompt, keep_guides = [1.0], [1.0]
    elif cross_guidance_scale is None or not given:
        keep_prompt, keep_guides = [1.0, 0.0], [1.0, 0.0]
    else:
        keep_prompt, keep_guides = [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]
    copies = len(keep_prompt)
    many_prompts = prompt.repeat(keep_prompt)
    present = {n: torch.tensor(keep_guides).repeat_interleave(batch).to(like) for n in given}

    def repeat(x: torch.Tensor) -> torch.Tensor:
        return x.repeat(copies, *[1] * (x.ndim - 1))

    zeros = like.new_zeros(copies * batch)
    for i, level in enumerate(levels):
        latents = {n: repeat(x) for n, x in {**given, **z}.items()}
        at = {n: zeros for n in given} | {n: torch.full_like(zeros, level) for n in z}
        predictions = model.predict(latents, at, want, many_prompts, present)  # ONE joint call
        denoised = {}
        for n in want:
            e = predictions[n].chunk(copies)
            if copies == 1:
                guided = e[0]
            elif copies == 2:
                guided = e[1] + guidance_scale * (e[0] - e[1])
            else:
                assert cross_guidance_scale is not None
                guided = (
                    e[2] + guidance_scale * (e[1] - e[2]) + cross_guidance_scale * (e[0] - e[1])
                )
            denoised[n] = model.schedule.denoised(
                z[n], guided, torch.full_like(zeros[:batch], level)
            )
            scheduler = cast(
                Any, schedulers[n][0]
            )  # its own type hints want a float tensor type of old
            z[n] = scheduler.step(guided, scheduler.timesteps[i], z[n]).prev_sample.to(like)
        if callback is not None:
            callback(SampleStep(i, len(levels), level, dict(z), denoised))
    return z
