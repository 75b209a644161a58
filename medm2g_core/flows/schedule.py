"""Noise: how it is added, what a flow must predict, and diffusers' scheduler that takes it away."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.training_utils import compute_density_for_timestep_sampling

from medm2g_core.profiles import ConditioningConfig, Objective

__all__ = ["TRAIN_STEPS", "NoiseSchedule"]

TRAIN_STEPS = 1000
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The public ancestors' schedule (CoDi, Stable Diffusion)."""


class NoiseSchedule:
    """One noise level t in [0, 1] for every objective: 0 is clean, 1 is pure noise.

    flow:          z_t = (1 - t) z_0 + t eps,  target eps - z_0  (rectified flow, Liu et al. 2023)
    epsilon:       z_t = a_t z_0 + s_t eps,    target eps        (Ho et al. 2020)
    v_prediction:  z_t = a_t z_0 + s_t eps,    target a_t eps - s_t z_0  (Salimans and Ho 2022)
    """

    def __init__(self, objective: Objective = "flow") -> None:
        if objective not in ("flow", "epsilon", "v_prediction"):
            raise ValueError(f"unknown objective {objective!r}; known: flow, epsilon, v_prediction")
        self.objective = objective
        self._alphas = DDIMScheduler(**BETAS, num_train_timesteps=TRAIN_STEPS).alphas_cumprod

    def coefficients(
        self, t: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(a, s) of z_t = a z_0 + s eps for levels t (B,), shaped to broadcast with ``like`` (B,
        ...)."""
        if self.objective == "flow":
            a, s = 1 - t, t
        else:
            index = (t * TRAIN_STEPS).round().long() - 1  # -1 is "no noise"
            bar = torch.cat([self._alphas, self._alphas.new_ones(1)]).to(t.device)[index]
            a, s = bar.sqrt(), (1 - bar).sqrt()
        shape = (-1,) + (1,) * (like.ndim - 1)
        return a.to(like.dtype).reshape(shape), s.to(like.dtype).reshape(shape)

    def add_noise(self, z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """z_t; exactly z_0 where t is 0."""
        a, s = self.coefficients(t, z0)
        return a * z0 + s * eps

    def target(self, z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """What the flow must predict."""
        if self.objective == "flow":
            return eps - z0
        if self.objective == "epsilon":
            return eps
        a, s = self.coefficients(t, z0)
        return a * eps - s * z0

    def denoised(self, zt: torch.Tensor, prediction: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The clean latent that a prediction implies."""
        a, s = self.coefficients(t, zt)
        if self.objective == "flow":
            return zt - s * prediction
        if self.objective == "epsilon":
            return (zt - s * prediction) / a.clamp(min=1e-4)
        return a * zt - s * prediction

    def precondition(
        self, t: torch.Tensor, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(c_in, c_skip, c_out): the prediction is c_skip z_t + c_out F(c_in z_t) for a network F.

        As in Karras et al. 2022, for latents of unit variance: input and target of F have unit
        variance at every level, and c_skip z_t is the best linear guess. For ``flow``, with d = (1
        - t)^2 + t^2, F's target is ((1 - t) eps - t z_0) / sqrt(d). So where there is nothing but
        noise F draws z_0 from what it is told; without this it would have to hand the noise
        through, place by place, first. The other objectives are used as they are.
        """
        if self.objective != "flow":
            one = torch.ones_like(t)
            c_in, c_skip, c_out = one, torch.zeros_like(t), one
        else:
            d = (1 - t) ** 2 + t**2
            c_in, c_skip, c_out = d.rsqrt(), (2 * t - 1) / d, d.rsqrt()
        shape = (-1,) + (1,) * (like.ndim - 1)
        return tuple(c.to(like.dtype).reshape(shape) for c in (c_in, c_skip, c_out))  # type: ignore[return-value]

    def sample_levels(
        self, n: int, generator: torch.Generator, config: ConditioningConfig | None = None
    ) -> torch.Tensor:
        """Training levels (n,) on the CPU: uniform; for flow logit-normal (Esser et al. 2024) with
        ``level_mean`` and ``level_std`` of the config."""
        if self.objective == "flow":
            config = config or ConditioningConfig()
            return compute_density_for_timestep_sampling(
                "logit_normal",
                n,
                logit_mean=config.level_mean,
                logit_std=config.level_std,
                generator=generator,
            )
        return (torch.randint(TRAIN_STEPS, (n,), generator=generator) + 1) / TRAIN_STEPS

    def scheduler(
        self, steps: int
    ) -> tuple[FlowMatchEulerDiscreteScheduler | DDIMScheduler, list[float]]:
        """A fresh diffusers scheduler set to ``steps``, and the noise level in [0, 1] at each of
        its timesteps."""
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        if self.objective == "flow":
            euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS)
            euler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
            return euler, [float(t) / TRAIN_STEPS for t in euler.timesteps]
        ddim = DDIMScheduler(
            **BETAS,
            num_train_timesteps=TRAIN_STEPS,
            prediction_type=self.objective,
            clip_sample=False,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        )
        ddim.set_timesteps(steps)
        return ddim, [(float(t) + 1) / TRAIN_STEPS for t in ddim.timesteps]
