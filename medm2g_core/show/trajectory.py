"""A draw as it takes shape: what the sampler holds and what it expects, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from medm2g_core.model import MedM2G

if TYPE_CHECKING:
    from medm2g_core.pipeline import MedM2GPipeline

__all__ = ["Trajectory"]

Kind = Literal["latents", "denoised"]


class Trajectory:
    """Keeps every step of a call of the pipeline, as its callback.

    >>> film = Trajectory()
    >>> pipe({"ct": ct}, ["mri_t2"], **film.options)
    >>> film.images(pipe.model, "mri_t2").shape              # (steps, B, 1, H, W)

    Attributes:
        levels: stream -> noise level in [0, 1] that each step began at.
        latents: stream -> its latents (B, ...) after each step.
        denoised: stream -> the clean latents (B, ...) that each step predicted.
    """

    def __init__(self) -> None:
        self.levels: dict[str, list[float]] = {}
        self.latents: dict[str, list[torch.Tensor]] = {}
        self.denoised: dict[str, list[torch.Tensor]] = {}

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the pipeline's call."""
        return {
            "callback_on_step_end": self,
            "callback_on_step_end_tensor_inputs": ("latents", "denoised"),
        }

    def __call__(
        self,
        pipe: MedM2GPipeline,
        step: int,
        timestep: torch.Tensor,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
    ) -> None:
        for name, z in tensors["latents"].items():
            self.levels.setdefault(name, []).append(float(timestep) / 1000)
            self.latents.setdefault(name, []).append(z.detach().clone())
            self.denoised.setdefault(name, []).append(tensors["denoised"][name].detach().clone())

    def images(self, model: MedM2G, name: str, kind: Kind = "denoised") -> torch.Tensor:
        """Decoded steps (S, B, 1, H, W) of an image stream, values -1..1.

        Args:
            kind: ``"denoised"``, the clean picture that each step predicts; ``"latents"``, what the
                sampler holds after it, noise and all.

        Raises:
            KeyError: the stream was not drawn, or is no image.
        """
        steps = getattr(self, kind)[name]
        pictures = model.decode(name, torch.cat(steps))
        if not isinstance(pictures, torch.Tensor):
            raise KeyError(f"{name} is no image stream")
        return pictures.unflatten(0, (len(steps), -1))
