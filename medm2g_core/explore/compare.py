"""Questions that need more than one drawing: one thing changed, two settings against each other,
and a walk between two prompts.

Drawings that share their seeds and their wanted streams start from the same noise, so that what
differs between them comes from what was changed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from medm2g_core.explore.drawing import Drawn, Settings, draw, generators
from medm2g_core.explore.given import Given
from medm2g_core.explore.line import StoppedError
from medm2g_core.flows.prompt import Prompt, mix
from medm2g_core.inputs import check_batch
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.sampling import sample_latents
from medm2g_core.streams import StreamError, stream

__all__ = ["Pair", "counterfactual", "sweep", "walk"]


@dataclass(frozen=True)
class Pair:
    """The same question with one thing changed."""

    before: Drawn
    after: Drawn

    def difference(self, name: str) -> torch.Tensor:
        """After minus before of an image stream, (draws, 1, H, W), in units of the stream."""
        return self.after.images()[name] - self.before.images()[name]


def _whole(
    pipe: MedM2GPipeline, given: Sequence[Given], settings: Settings, stop: threading.Event | None
) -> Drawn:
    drawn = draw(pipe, given, settings, stop=stop)
    if drawn.cancelled:
        raise StoppedError("cancelled; half of a comparison compares nothing")
    return drawn


def counterfactual(
    pipe: MedM2GPipeline,
    given: Sequence[Given],
    changed: Sequence[Given],
    settings: Settings,
    *,
    stop: threading.Event | None = None,
) -> Pair:
    """Draw twice from the same noise.

    Args:
        given: of the first question.  changed: of the second, for example other words.
        settings: of both.
        stop: set it to end within one step.

    Raises:
        StoppedError: ``stop`` was set.
    """
    before, after = (_whole(pipe, each, settings, stop) for each in (given, changed))
    return Pair(before, after)


def sweep(
    pipe: MedM2GPipeline,
    given: Sequence[Given],
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    **values: Sequence[Any],
) -> dict[tuple[Any, ...], Drawn]:
    """A grid over any settings, all else and the noise being equal.

    Args:
        settings: of what is not varied.
        stop: set it to end within one step.
        values: name of a field of `Settings` -> its values, for example ``guidance=(1, 4)``.

    Returns:
        (value, ...) in the order of the keywords -> what was drawn.

    Raises:
        TypeError: no such setting.
        ValueError: a value out of its range; nothing is drawn then.
        StoppedError: ``stop`` was set.
    """
    points: list[dict[str, Any]] = [{}]
    for name, choices in values.items():
        points = [point | {name: value} for point in points for value in choices]
    asked = [(tuple(point.values()), replace(settings, **point)) for point in points]
    return {key: _whole(pipe, given, one, stop) for key, one in asked}


def _prompt(pipe: MedM2GPipeline, given: Sequence[Given], draws: int) -> Prompt:
    raw = check_batch({g.stream: g.value for g in given}, draws)
    return mix(pipe.model.embed(raw))


def _between(a: Prompt, b: Prompt, part: float) -> Prompt:
    """A prompt that says 1 - ``part`` of ``a`` and ``part`` of ``b``."""

    def weighted(p: Prompt, weight: float) -> tuple[tuple[str, torch.Tensor, torch.Tensor], ...]:
        if not weight:
            return ()
        log = torch.tensor(weight).log().to(p.pooled)
        return tuple((m, tokens, bias + log) for m, tokens, bias in p.details)

    pooled = torch.lerp(a.pooled, b.pooled, part)
    return Prompt(pooled, a.present, weighted(a, 1 - part) + weighted(b, part))


@torch.no_grad()
def walk(
    pipe: MedM2GPipeline,
    start: Sequence[Given],
    end: Sequence[Given],
    settings: Settings,
    parts: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    stop: threading.Event | None = None,
) -> dict[str, torch.Tensor]:
    """From one prompt to another, all else and the noise being equal.

    Only the prompt goes from one to the other. Nothing guides: half of one body and half of another
    is no body.

    Args:
        start, end: words, or records of a study.
        settings: of the drawing; image streams are wanted.
        parts: of the way, 0..1.
        stop: set it to end after the part that is being drawn.

    Returns:
        image stream -> (parts, draws, 1, H, W).

    Raises:
        StreamError: an end without any given stream, a wanted report, or a stream that is both.
        StoppedError: ``stop`` was set.
    """
    names = {g.stream for g in (*start, *end)}
    if not start or not end:
        raise StreamError("both ends of a walk need something given")
    wrong = [n for n in settings.want if n in names or not stream(n).is_image]
    if wrong:
        raise StreamError(f"{wrong[0]}: a walk draws image streams that neither end gives")
    a, b = (_prompt(pipe, given, settings.draws) for given in (start, end))
    steps: dict[str, list[torch.Tensor]] = {n: [] for n in settings.want}
    for part in parts:
        if stop is not None and stop.is_set():
            raise StoppedError("cancelled; half of a walk leads nowhere")
        latents = sample_latents(
            pipe.model,
            {},
            list(settings.want),
            _between(a, b, part),
            steps=settings.steps,
            guidance_scale=settings.guidance,
            order=settings.order,
            generator=generators(settings),
        )
        for name, z in latents.items():
            steps[name].append(cast(torch.Tensor, pipe.model.decode(name, z)).float().cpu())
    return {name: torch.stack(pictures) for name, pictures in steps.items()}
