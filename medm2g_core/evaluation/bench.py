"""The bench: one model, the held-out studies, and what the model draws for them (each draw is made
once)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from tqdm.auto import tqdm

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.sampling import Order

__all__ = [
    "BATCH",
    "DRAW_STRIDE",
    "SHIFT",
    "VALIDATION",
    "Bench",
    "Split",
    "StudySource",
    "draw_studies",
]

Split = Literal["test", "val"]
"""Scores are of ``"test"``; settings are chosen on ``"val"``."""

BATCH = 32
"""Studies that are drawn at once."""

DRAW_STRIDE = 1_000_003
"""Between the seeds of two draws: a prime that no number of studies reaches, so that no two draws
share noise."""

VALIDATION = 64
"""Validation studies that settings are chosen on, at most: drawing them costs half of the test
studies' time, and more of them would seldom change a choice."""

SHIFT = 7
"""A control gets the input of the study so many places further on: another patient."""


class StudySource(Protocol):
    """Held-out studies that something can be drawn for."""

    @property
    def texts(self) -> Sequence[str]: ...

    def stack(self, name: str, index: Sequence[int], /) -> torch.Tensor: ...


def draw_studies(
    pipe: MedM2GPipeline,
    data: StudySource,
    index: Sequence[int],
    given: Sequence[str],
    want: Sequence[str],
    *,
    other: Callable[[str, int], int] = lambda _, i: i,
    seed: int = 0,
    after_batch: Callable[[], object] = lambda: None,
    **options: Any,
) -> dict[str, Any]:
    """Draw ``want`` for the studies ``index`` of ``data``, in batches of `BATCH`, and switch the
    pipeline's own progress bar off.

    Args:
        other: (given stream, study) -> the study that this stream is taken from; its own unless
            told (controls).
        seed: study i starts from the noise of ``seed + i``, whatever batch it is in.
        options: of `MedM2GPipeline`.

    Returns:
        stream -> images (N, 1, H, W) in -1..1 on the CPU, or a list of N reports.
    """
    pipe.set_progress_bar_config(disable=True)
    parts: dict[str, list[Any]] = {w: [] for w in want}
    for first in range(0, len(index), BATCH):
        own = list(index[first : first + BATCH])
        raw: dict[str, Any] = {}
        for g in given:
            source = [other(g, i) for i in own]
            raw[g] = [data.texts[i] for i in source] if g == "text" else data.stack(g, source)
        generators = [torch.Generator().manual_seed(seed + i) for i in own]
        out = pipe(raw, want, generator=generators, num_samples=1 if raw else len(own), **options)
        for w in want:
            parts[w] += [out[w].cpu()] if isinstance(out[w], torch.Tensor) else out[w]
        after_batch()
    return {w: torch.cat(p) if isinstance(p[0], torch.Tensor) else p for w, p in parts.items()}


class Bench:
    """What all sections of the evaluation share.

    Args:
        pipe: the model under test, on the device that it shall run on.
        n_chest, n_brain: held-out studies (test split).
        reference: studies of the validation split, for mean images, random reports and floors;
            settings are chosen on the first `VALIDATION` of them.
        steps, guidance: of the sampler; ``guidance`` for draws from text, ``translation_guidance``
            for draws from images (a scale of 1 is closest to the truth there, a larger one is
            sharper and further away).
        seed: of the sampler.
        persons: restrict the chests to these people's anatomy (leave-one-person-out).
    """

    def __init__(
        self,
        pipe: MedM2GPipeline,
        *,
        n_chest: int = 192,
        n_brain: int = 96,
        reference: int = 128,
        steps: int = 10,
        guidance: float = 2.0,
        translation_guidance: float = 1.0,
        seed: int = 0,
        persons: Sequence[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.pipe, self.model = pipe, pipe.model
        self.steps, self.guidance, self.translation_guidance, self.seed = (
            steps,
            guidance,
            translation_guidance,
            seed,
        )
        size = self.model.profile.resolution
        chosen = {"chest": persons, "brain": None}
        self.data = {
            r: VirtualCohort("test", r, n, resolution=size, persons=chosen[r])
            for r, n in (("chest", n_chest), ("brain", n_brain))
        }
        self.other = {
            r: VirtualCohort("val", r, reference, resolution=size, persons=chosen[r])
            for r in self.data
        }
        self.validation = {
            r: VirtualCohort(
                "val", r, min(VALIDATION, reference), resolution=size, persons=chosen[r]
            )
            for r in self.data
        }
        self.bar = tqdm(desc="drawing", unit="batch", disable=not progress)
        self._drawn: dict[tuple[Any, ...], dict[str, torch.Tensor | list[str]]] = {}

    def studies(self, region: str, split: Split = "test") -> VirtualCohort:
        """Studies of a region: those that are scored, or those that settings are chosen on."""
        return (self.data if split == "test" else self.validation)[region]

    def value(
        self, region: str, name: str, index: Sequence[int], split: Split = "test"
    ) -> torch.Tensor | list[str]:
        """True values of one stream: images (B, 1, H, W), or B reports."""
        data = self.studies(region, split)
        return [data.texts[i] for i in index] if name == "text" else data.stack(name, index)

    def draw(
        self,
        region: str,
        given: Sequence[str],
        want: Sequence[str],
        *,
        draw: int = 0,
        shift: int = 0,
        guidance: float | None = None,
        cross_guidance: float | None = None,
        prompt_weights: dict[str, float] | None = None,
        order: Order = "joint",
        noise_scale: float = 1.0,
        best_of: int = 1,
        given_from: tuple[str, ...] = (),
        split: Split = "test",
    ) -> dict[str, Any]:
        """Generate ``want`` for every held-out study of a region.

        Args:
            draw: number of the draw; another one starts from other noise.
            shift: ``given`` comes from the study so many places further on (`SHIFT` for controls);
                0 for its own.
            guidance: scale; by default `guidance` if only a report is given, else
                `translation_guidance`.
            cross_guidance, prompt_weights, order, noise_scale, best_of: see `MedM2GPipeline`.
            given_from: only these of the given streams are shifted (all if empty).
            split: ``"val"`` to choose settings without a look at the test studies.

        Returns:
            stream -> images (N, 1, H, W) in -1..1, or a list of N reports. Remembered: a second
            call costs nothing.
        """
        if guidance is None:
            guidance = (
                self.guidance
                if list(given) == ["text"] or "text" in want
                else self.translation_guidance
            )
        weights = tuple(sorted((prompt_weights or {}).items()))
        key = (
            region,
            tuple(given),
            tuple(want),
            draw,
            shift,
            guidance,
            cross_guidance,
            weights,
            order,
            noise_scale,
            best_of,
            given_from,
            split,
        )
        if key not in self._drawn:
            data = self.studies(region, split)
            n = len(data)
            self._drawn[key] = draw_studies(
                self.pipe,
                data,
                range(n),
                given,
                want,
                other=lambda g, i: (i + shift) % n if not given_from or g in given_from else i,
                seed=self.seed + DRAW_STRIDE * draw,
                after_batch=self.bar.update,
                num_inference_steps=self.steps,
                guidance_scale=guidance,
                cross_guidance_scale=cross_guidance,
                prompt_weights=prompt_weights,
                order=order,
                noise_scale=noise_scale,
                best_of=best_of,
            )
        return self._drawn[key]

    def draws(
        self, region: str, given: Sequence[str], target: str, count: int, **kwargs: Any
    ) -> torch.Tensor:
        """``count`` draws of one image stream: (count, N, 1, H, W)."""
        return torch.stack(
            [self.draw(region, given, [target], draw=d, **kwargs)[target] for d in range(count)]
        )

    @torch.no_grad()
    def codec(self, region: str, name: str, split: Split = "test") -> torch.Tensor | list[str]:
        """The held-out truth through the codec and back: the ceiling of everything that is
        generated."""
        key = ("codec", region, name, split)
        if key not in self._drawn:
            n = len(self.studies(region, split))
            parts: list[Any] = []
            for i in range(0, n, BATCH):
                index = list(range(i, min(n, i + BATCH)))
                out = self.model.decode(
                    name, self.model.encode(name, self.value(region, name, index, split))
                )
                parts += [out.cpu()] if isinstance(out, torch.Tensor) else out
            self._drawn[key] = {
                name: torch.cat(parts) if isinstance(parts[0], torch.Tensor) else parts
            }
        return self._drawn[key][name]
