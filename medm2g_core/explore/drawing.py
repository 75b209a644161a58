"""One question to the model: its settings, the call, and what came of it step by step."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from medm2g_core.explore.given import Given
from medm2g_core.inputs import InputWarning
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.sampling import ORDERS, Order
from medm2g_core.show.trajectory import Trajectory
from medm2g_core.streams import StreamError, stream

__all__ = ["MAX_DRAWS", "MAX_STEPS", "Drawn", "Settings", "Step", "draw", "expected", "generators"]

MAX_DRAWS = 9
"""Draws of one question: three rows of three, and some seconds each on a small machine."""

MAX_STEPS = 50
"""Five times what the shipped weights need; more only makes others wait."""

MAX_SEED = 2**32 - MAX_DRAWS
"""Seeds that a menu offers; each draw takes the next one."""

MAX_GUIDANCE = 16.0
"""Beyond it pictures are clipped to black and white."""


@dataclass(frozen=True)
class Settings:
    """How it is drawn.

    Attributes:
        want: streams to draw.
        seed: of the first draw; draw k has ``seed + k``, so that one of them can be made again.
        steps: of the sampler.
        guidance: how strongly the prompt steers; 1 is the model as trained.
        guide_guidance: how strongly the other pictures steer; ``None`` ties it to ``guidance``.
        draws: how many.
        order: ``"joint"`` or ``"cascade"``, see `medm2g_core.sampling.sample_latents`.
    """

    want: tuple[str, ...] = ("xray",)
    seed: int = 0
    steps: int = 10
    guidance: float = 2.0
    guide_guidance: float | None = None
    draws: int = 1
    order: Order = "joint"

    def __post_init__(self) -> None:
        """Raises ValueError: a setting out of its range, in a sentence for the user."""
        if not self.want:
            raise ValueError("nothing is wanted: choose at least one kind of record to draw")
        for name in self.want:
            stream(name)
        for what, value, low, high in (
            ("seed", self.seed, 0, MAX_SEED),
            ("number of steps", self.steps, 1, MAX_STEPS),
            ("number of draws", self.draws, 1, MAX_DRAWS),
            ("prompt guidance", self.guidance, 0, MAX_GUIDANCE),
            ("guide guidance", self.guide_guidance, 0, MAX_GUIDANCE),
        ):
            if value is not None and not low <= value <= high:
                raise ValueError(f"the {what} is {value}; needed {low} to {high}")
        if self.order not in ORDERS:
            raise ValueError(f"order {self.order!r}; needed one of {', '.join(ORDERS)}")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.draws)

    @property
    def total_steps(self) -> int:
        return self.steps * (len(self.want) if self.order == "cascade" else 1)

    def options(self) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, without the generator."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "cross_guidance_scale": self.guide_guidance,
            "order": self.order,
            "num_samples": self.draws,
        }


@dataclass(frozen=True)
class Step:
    """What `draw` reports after a step: its number from 1, how many there are, and the film."""

    number: int
    total: int
    film: Trajectory


@dataclass(frozen=True)
class Drawn:
    """What came of a question.

    Attributes:
        given: what the model was given.
        settings: how it was asked.
        streams: wanted stream -> pictures (draws, 1, H, W) in -1..1, or a list of reports. After a
            cancel: the pictures that the last step expected, and no reports.
        film: every step.
        notes: given stream -> what speaks against it, in words.
        steps_done: fewer than ``settings.total_steps`` after a cancel.
        seconds: of the call.
    """

    given: tuple[Given, ...]
    settings: Settings
    streams: Mapping[str, torch.Tensor | list[str]]
    film: Trajectory
    notes: Mapping[str, list[str]] = field(default_factory=dict)
    steps_done: int = 0
    seconds: float = 0.0

    @property
    def cancelled(self) -> bool:
        return self.steps_done < self.settings.total_steps

    def images(self) -> dict[str, torch.Tensor]:
        """The drawn image streams (draws, 1, H, W)."""
        return {n: v for n, v in self.streams.items() if isinstance(v, torch.Tensor)}

    def reports(self) -> list[str]:
        """The drawn reports; none if no report was wanted."""
        return cast(list[str], self.streams.get("text", []))


def generators(settings: Settings) -> list[torch.Generator]:
    """One for each draw, so that a draw does not depend on how many there are."""
    return [torch.Generator().manual_seed(seed) for seed in settings.seeds]


def expected(
    model: MedM2G, film: Trajectory, step: int = -1, draws: int | None = None
) -> dict[str, torch.Tensor]:
    """The clean pictures (draws, 1, H, W) that a step expected, of every image stream begun.

    Args:
        step: of each stream's own steps, from 0; -1 is the last. Later ones than there are give the
            last.
        draws: the first so many only; all unless told.
    """
    out = {}
    for name, steps in film.denoised.items():
        if stream(name).is_image and steps:
            index = min(step, len(steps) - 1) if step >= 0 else step
            out[name] = cast(torch.Tensor, model.decode(name, steps[index][:draws])).float().cpu()
    return out


def draw(
    pipe: MedM2GPipeline,
    given: Iterable[Given],
    settings: Settings,
    *,
    latents: Mapping[str, torch.Tensor] | None = None,
    on_step: Callable[[Step], None] | None = None,
    stop: threading.Event | None = None,
) -> Drawn:
    """Ask the model.

    Args:
        pipe: a pipeline; nothing of it is changed for later calls.
        given: streams that exist, none of them wanted.
        latents: starting noise of the pipeline's call, where two questions are to share it.
        on_step: called after each step.
        stop: set it, from any thread, and the call ends after the step that is running.

    Raises:
        StreamError, ValueError: what cannot be drawn, in a sentence.
    """
    given = tuple(given)
    film = Trajectory()
    own = MedM2GPipeline(pipe.model)  # the same weights; settings and interruption of its own
    own.set_progress_bar_config(disable=True)
    total, done = settings.total_steps, 0

    def after_step(
        pipe: MedM2GPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, Any]
    ) -> None:
        nonlocal done
        film(pipe, step, timestep, tensors)
        done = step + 1
        if on_step is not None:
            on_step(Step(done, total, film))
        if stop is not None and stop.is_set():
            pipe._interrupt = True

    values = {g.stream: g.value for g in given}
    if len(values) < len(given):
        raise StreamError("a stream is given twice; a patient has one of each")
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)  # they are in the notes
        out = own(
            values,
            settings.want,
            generator=generators(settings),
            latents=latents,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=("latents", "denoised"),
            **settings.options(),
        )
    streams: dict[str, Any] = dict(out.streams)
    if done < total:
        streams = dict(expected(pipe.model, film))
    for name, value in streams.items():
        if isinstance(value, torch.Tensor):
            streams[name] = value.float().cpu()
            if not torch.isfinite(streams[name]).all():
                raise ValueError(f"{name}: the model gave NaN; a smaller guidance may help")
    return Drawn(given, settings, streams, film, out.notes, done, time.monotonic() - began)
