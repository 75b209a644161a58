"""The pipeline: give some streams, want others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.codecs.tokenizer import TextTooLongError
from medm2g_core.flows.prompt import Prompt, mix, null_prompt
from medm2g_core.model import CheckpointError, MedM2G
from medm2g_core.sampling import Order, SampleStep, sample_latents
from medm2g_core.streams import StreamError, stream

__all__ = ["SHIPPED_WEIGHTS", "MedM2GOutput", "MedM2GPipeline"]

SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "checkpoints" / "cpu"
"""The weights in this repository (present in a clone; not part of an installed wheel)."""

Value = str | Sequence[str] | torch.Tensor
Given = Mapping[str, Value]


@dataclass
class MedM2GOutput(BaseOutput):
    """What the pipeline drew.

    Attributes:
        streams: stream -> images (B, 1, H, W) in -1..1, or a list of B reports.
        latents: stream -> standardised latents, for who wants to go on with them.

    Generated streams are for research and teaching, never for diagnosis.
    """

    streams: dict[str, torch.Tensor | list[str]]
    latents: dict[str, torch.Tensor]

    def __getitem__(self, key: Any) -> Any:
        return self.streams[key] if key in self.streams else super().__getitem__(key)


class MedM2GPipeline(DiffusionPipeline):
    """Any given streams to any wanted streams; all five tasks of MedM2G are this one call.

    >>> pipe = MedM2GPipeline.from_pretrained()                     # the shipped weights
    >>> out = pipe(given={"text": "Findings: ..."}, want=["xray", "ct"])
    >>> out["xray"].shape
    torch.Size([1, 1, 128, 128])
    """

    model: MedM2G

    def __init__(self, model: MedM2G) -> None:
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path | None = None, *, torch_dtype: torch.dtype = torch.float32
    ) -> MedM2GPipeline:
        """Load a folder written by `MedM2G.save_pretrained`; without one, the weights shipped in
        the repository.

        Raises:
            CheckpointError: there is no such folder, or it is damaged, incomplete or of another
                version.
        """
        if folder is None:
            folder = SHIPPED_WEIGHTS
            if not folder.is_dir():
                raise CheckpointError(
                    f"the shipped weights are not at {folder}: work from a clone of the repository,"
                    " or name a folder"
                )
        return cls(MedM2G.from_pretrained(folder, torch_dtype=torch_dtype))

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """As `MedM2G.save_pretrained`."""
        self.model.save_pretrained(folder, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        given: Given | None = None,
        want: Sequence[str] = (),
        *,
        num_inference_steps: int = 10,
        guidance_scale: float = 2.0,
        cross_guidance_scale: float | None = None,
        prompt_weights: Mapping[str, float] | None = None,
        order: Order = "joint",
        num_samples: int = 1,
        best_of: int = 1,
        noise_scale: float = 1.0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: (
            Callable[[MedM2GPipeline, int, float, dict[str, Any]], Any] | None
        ) = None,
    ) -> MedM2GOutput:
        """Generate ``want`` from ``given``.

        Each given stream acts twice: its aligned embedding is (part of) the prompt, and its latent,
        at noise level 0, guides the flows of the wanted streams through cross-attention.

        Args:
            given: stream -> a report or list of reports, or images (1, H, W) or (B, 1, H, W) in
                -1..1 (`medm2g_core.streams` says what the values mean). May be empty: then the draw
                is unconditional.
            want: names of the streams to generate; none of them may be given.
            num_inference_steps: steps of the sampler.
            guidance_scale: classifier-free guidance by everything given; 1 switches it off (half
                the time).
            cross_guidance_scale: if set, the given guides get this scale of their own and
                ``guidance_scale`` is the prompt's (a third of time more).
            prompt_weights: stream -> weight in the mix of prompts; a weight of 0 leaves a stream as
                a guide only.
            order: ``"joint"`` or ``"cascade"``, see `sample_latents`.
            num_samples: draws for each study; outputs are ordered study by study.
            best_of: draw each output so many times and keep the one whose own aligned embeddings
                lie nearest to those of the given streams (as CLIP re-ranks DALL-E's draws, Ramesh
                et al. 2021); so many times slower.
            noise_scale: deviation of the starting noise.
            generator: CPU generator, or one for each output.
            callback_on_step_end: called as in diffusers with (pipeline, step, noise level,
                {"latents", "denoised"}).

        Raises:
            StreamError: unknown streams, a wanted stream that is also given, wrong shapes or
                ranges, or batches of different sizes.
            TextTooLongError: a report has more tokens than the model reads.
        """
        given = dict(given or {})
        want = self._check_want(given, want)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {best_of}")
        if best_of > 1 and not given:
            raise StreamError(
                "best_of compares what is drawn with what is given, and nothing is given: give a"
                " stream, or take 1"
            )
        if isinstance(generator, torch.Generator) and generator.device.type != "cpu":
            raise ValueError(
                f"the generator is on {generator.device}; needed one on the CPU, so that seeds"
                " carry over"
            )
        raw = self._batch(given, num_samples)
        batch = len(next(iter(raw.values()))) if raw else num_samples
        embeddings = self.model.embed(raw)
        prompt: Prompt
        if not raw:
            prompt = null_prompt(
                batch, self.model.profile.alignment.embed_dim, self.model.latent_shift
            )
        else:
            prompt = mix(embeddings, prompt_weights)
        latents = {n: self.model.encode(n, v) for n, v in raw.items()}

        def callback(step: SampleStep) -> None:
            if callback_on_step_end is not None:
                seen = {"latents": dict(step.latents), "denoised": dict(step.denoised)}
                callback_on_step_end(self, step.step, step.level, seen)

        kept: dict[str, torch.Tensor] = {}
        kept_score = torch.full((batch,), -torch.inf, device=prompt.pooled.device)
        for _ in range(best_of):
            drawn = sample_latents(
                self.model,
                latents,
                want,
                prompt,
                steps=num_inference_steps,
                guidance_scale=guidance_scale,
                cross_guidance_scale=cross_guidance_scale,
                order=order,
                generator=generator,
                noise_scale=noise_scale,
                callback=callback,
            )
            streams = {n: self.model.decode(n, z) for n, z in drawn.items()}
            if best_of == 1:
                return MedM2GOutput(streams=streams, latents=drawn)
            score = self._likeness(embeddings, streams)  # (B,)
            better = score > kept_score
            for n, z in drawn.items():
                kept[n] = (
                    torch.where(better.reshape(-1, *[1] * (z.ndim - 1)), z, kept[n])
                    if n in kept
                    else z
                )
            kept_score = torch.maximum(score, kept_score)
        streams = {n: self.model.decode(n, z) for n, z in kept.items()}
        return MedM2GOutput(streams=streams, latents=kept)

    def _likeness(
        self, given: Mapping[str, Embedding], streams: Mapping[str, torch.Tensor | list[str]]
    ) -> torch.Tensor:
        """Mean cosine (B,) between the aligned embeddings of given and drawn streams."""
        own = {
            n: [self.readable(t) for t in v] if isinstance(v, list) else v
            for n, v in streams.items()
        }
        drawn = self.model.embed(own).values()
        return torch.stack(
            [(a.pooled * b.pooled).sum(-1) for a in given.values() for b in drawn]
        ).mean(0)

    def readable(self, text: str) -> str:
        """A drawn report, or a blank for one that came out empty or too long to read back: nothing
        was said then."""
        try:
            self.model.tokens([text or " "])
        except TextTooLongError:
            return " "
        return text or " "

    @staticmethod
    def _check_want(given: Given, want: Sequence[str]) -> list[str]:
        if isinstance(want, str):
            raise StreamError(
                f"want must be a list of streams, got the string {want!r}; write want=[{want!r}]"
            )
        for name in (*given, *want):
            stream(name)
        if not want:
            raise StreamError("nothing is wanted: name at least one stream in want")
        both = [n for n in want if n in given]
        if both:
            raise StreamError(
                f"{', '.join(both)}: given and wanted at once; a given stream is never generated"
            )
        if len(set(want)) != len(want):
            raise StreamError(f"a stream is wanted twice: {', '.join(want)}")
        return list(want)

    @staticmethod
    def _batch(given: Given, num_samples: int) -> dict[str, torch.Tensor | list[str]]:
        """Every given stream as a batch, each study repeated ``num_samples`` times."""
        raw: dict[str, torch.Tensor | list[str]] = {}
        for name, value in given.items():
            if stream(name).is_image:
                if not isinstance(value, torch.Tensor):
                    raise StreamError(
                        f"{name}: got {type(value).__name__}; needed a tensor (1, H, W) or (B, 1,"
                        " H, W)"
                    )
                image = value[None] if value.ndim == 3 else value
                raw[name] = image.repeat_interleave(num_samples, 0)
            else:
                texts = [value] if isinstance(value, str) else list(value)
                if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                    raise StreamError(
                        f"{name}: needed a report or a list of reports, none of them empty"
                    )
                raw[name] = [t for t in texts for _ in range(num_samples)]
        sizes = {n: len(v) for n, v in raw.items()}
        if len(set(sizes.values())) > 1:
            raise StreamError(f"given streams have batches of different sizes: {sizes}")
        return raw
