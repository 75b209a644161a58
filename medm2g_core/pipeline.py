"""The pipeline: give some streams, want others."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import __version__ as diffusers_version
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.codecs.tokenizer import TextTooLongError
from medm2g_core.flows.prompt import Prompt, mix, null_prompt
from medm2g_core.inputs import (
    InputWarning,
    check_batch,
    check_choice,
    check_count,
    check_generator,
    check_given,
    check_latents,
    check_num_samples,
    check_number,
    check_want,
    check_weights,
    notes_on,
)
from medm2g_core.model import CheckpointError, MedM2G
from medm2g_core.sampling import ORDERS, Order, SampleStep, sample_latents
from medm2g_core.storage import atomic_write
from medm2g_core.streams import StreamError, stream

__all__ = ["SHIPPED_WEIGHTS", "MedM2GOutput", "MedM2GPipeline", "OutputType"]

SHIPPED_WEIGHTS = Path(__file__).resolve().parent.parent / "checkpoints" / "cpu"
"""The weights in this repository (present in a clone; not part of an installed wheel)."""

LOADER = '''"""The pipeline class of this folder, for diffusers' DiffusionPipeline."""

from medm2g_core.pipeline import MedM2GPipeline

__all__ = ["MedM2GPipeline"]
'''
"""``pipeline.py`` of a saved folder."""

Value = str | Sequence[str] | torch.Tensor
Given = Mapping[str, Value]
Generators = torch.Generator | Sequence[torch.Generator] | None
OutputType = Literal["pt", "np", "pil", "latent"]
Callback = Callable[["MedM2GPipeline", int, torch.Tensor, dict[str, Any]], Mapping[str, Any] | None]


@dataclass
class MedM2GOutput(BaseOutput):
    """What the pipeline drew.

    Attributes:
        streams: stream -> images in the form that ``output_type`` asked for, or a list of B
            reports.
        latents: stream -> standardised latents (B, ...), for who wants to go on with them.
        notes: given stream -> what speaks against it, in words; empty lists where nothing does.

    Generated streams are for research and teaching, never for diagnosis.
    """

    streams: dict[str, Any]
    latents: dict[str, torch.Tensor]
    notes: dict[str, list[str]] = field(default_factory=dict)

    def __getitem__(self, key: Any) -> Any:
        return self.streams[key] if key in self.streams else super().__getitem__(key)


class MedM2GPipeline(DiffusionPipeline):
    """Any given streams to any wanted streams; all five tasks of MedM2G are this one call.

    >>> pipe = MedM2GPipeline.from_pretrained()                     # the shipped weights
    >>> out = pipe(given={"text": "Findings: ..."}, want=["xray", "ct"])
    >>> out["xray"].shape
    torch.Size([1, 1, 128, 128])

    A pipeline of diffusers. What differs: there are several streams, so whatever diffusers has one
    tensor of (latents, outputs) is a dict of streams here, and tensors of pictures are in -1..1,
    the range that a study has, where diffusers gives 0..1.
    """

    model: MedM2G
    model_cpu_offload_seq = "model"  # type: ignore[assignment]  # one component: every step needs all flows
    _callback_tensor_inputs = ("latents", "denoised")
    _guidance_scale = 1.0
    _num_timesteps = 0
    _interrupt = False

    def __init__(self, model: MedM2G) -> None:
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | Path | None = None,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> MedM2GPipeline:
        """Load a folder written by `save_pretrained` or `MedM2G.save_pretrained`; without one, the
        weights shipped in the repository.

        ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` gives the same
        pipeline. Without that option diffusers looks for a pipeline's class in its own package
        alone; with it, in ``pipeline.py`` of the folder, which `save_pretrained` writes.

        Args:
            dtype: of the weights; float32 unless told.  torch_dtype: its older name in diffusers.
            options: see `MedM2G.from_pretrained`.

        Raises:
            CheckpointError: there is no such folder, or it is damaged, incomplete or of another
                version.
        """
        if dtype is not None and torch_dtype is not None:
            raise ValueError("dtype and torch_dtype are one option; give one of them")
        if folder is None:
            folder = SHIPPED_WEIGHTS
            if not folder.is_dir():
                raise CheckpointError(
                    f"the shipped weights are not at {folder}: work from a clone of the repository,"
                    " or name a folder"
                )
        return cls(MedM2G.from_pretrained(folder, torch_dtype=dtype or torch_dtype, **options))

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """`MedM2G.save_pretrained`, and what lets diffusers load the folder by itself:
        ``model_index.json`` and ``pipeline.py``."""
        self.model.save_pretrained(folder, dtype=dtype, safe_serialization=safe_serialization)
        index = {
            "_class_name": ["pipeline", type(self).__name__],
            "_diffusers_version": diffusers_version,
            "model": [MedM2G.__module__, MedM2G.__name__],
        }
        for name, text in (
            (self.config_name, json.dumps(index, indent=2) + "\n"),
            ("pipeline.py", LOADER),
        ):
            atomic_write(Path(folder) / name, lambda p, t=text: p.write_text(t, encoding="utf-8"))

    @property
    def guidance_scale(self) -> float:
        """Of the step to come; a callback may set ``pipe._guidance_scale``."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """Steps of the whole call: of every draw, and in cascade order of every stream."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call is being stopped: set ``pipe._interrupt = True``, from a callback or
        another thread."""
        return self._interrupt

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
        num_samples: int | None = None,
        num_images_per_prompt: int | None = None,
        best_of: int = 1,
        noise_scale: float = 1.0,
        generator: Generators = None,
        latents: Mapping[str, torch.Tensor] | None = None,
        output_type: OutputType = "pt",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
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
            num_samples: draws for each study, 1 unless told; outputs are ordered study by study.
            num_images_per_prompt: diffusers' name for ``num_samples``.
            best_of: draw each output so many times and keep the one whose own aligned embeddings
                lie nearest to those of the given streams (as CLIP re-ranks DALL-E's draws, Ramesh
                et al. 2021); so many times slower.
            noise_scale: deviation of the starting noise.
            generator: CPU generator, or one for each output.
            latents: stream -> starting noise (outputs, *`MedM2G.latent_shape`), standard normal
                (``noise_scale`` then scales it); drawn for the wanted streams that are not named.
            output_type: form of the images in the output. ``"pt"``: (B, 1, H, W) in -1..1;
                ``"np"``: the same as float32 array (B, H, W, 1); ``"pil"``: a list of B 8-bit grey
                pictures, -1..1 as 0..255; ``"latent"``: no stream is decoded, images and reports
                alike stay latents.
            return_dict: ``False`` gives the tuple (streams, latents).
            callback_on_step_end: called after each step as in diffusers with (pipeline, step,
                timestep, tensors). The step counts to `num_timesteps`; the timestep is the
                scheduler's, 1000 times the noise level that was just left. The tensors are those
                asked for, each a dict of the streams that are being drawn. It may return
                ``{"latents": {stream: tensor}}``, and the sampler goes on from these; anything else
                that it returns changes nothing. It may set ``pipe._guidance_scale`` for the
                steps to come, or ``pipe._interrupt = True``: the call then returns what is there,
                noisy as it is, or with ``best_of`` the best of the draws that were finished.
            callback_on_step_end_tensor_inputs: out of ``"latents"`` (after the step) and
                ``"denoised"`` (the clean latents predicted in it).

        Warns:
            InputWarning: something speaks against what is given; `MedM2GOutput` has it too.

        Raises:
            StreamError: unknown streams, a wanted stream that is also given, wrong shapes or
                ranges, pictures that cannot be that stream, or batches of different sizes.
            TextTooLongError: a report has more tokens than the model reads.
            ValueError: a setting that is not a number or out of its range, generators or latents
                that do not fit, an unknown order, output type or tensor name.
        """
        given = check_given(given)
        want = check_want(given, want)
        num_samples = check_num_samples(num_samples, num_images_per_prompt)
        steps = check_count("num_inference_steps", num_inference_steps)
        best_of = check_count("best_of", best_of)
        check_number("guidance_scale", guidance_scale)
        if cross_guidance_scale is not None:
            check_number("cross_guidance_scale", cross_guidance_scale)
        check_number("noise_scale", noise_scale, low=0)
        check_weights(prompt_weights, given)
        check_choice("order", order, ORDERS)
        check_choice("output_type", output_type, get_args(OutputType))
        # diffusers' PipelineCallback names its tensors itself.
        asked = getattr(callback_on_step_end, "tensor_inputs", callback_on_step_end_tensor_inputs)
        for name in asked:
            check_choice("callback_on_step_end_tensor_inputs", name, self._callback_tensor_inputs)
        if best_of > 1 and (not given or latents):
            raise StreamError(
                "best_of compares several draws with what is given; "
                + (
                    "latents makes them all the same"
                    if given
                    else "nothing is given: give a stream"
                )
                + ", or take best_of=1"
            )
        raw = check_batch(given, num_samples)
        batch = len(next(iter(raw.values()))) if raw else num_samples
        check_generator(generator, batch)
        shapes = {n: (batch, *self.model.latent_shape(n)) for n in want}
        noise = check_latents("latents", latents, shapes)

        notes = notes_on(self.model, raw, num_samples)
        for name, found in notes.items():
            for note in found:
                warnings.warn(f"{name}: {note}", InputWarning, stacklevel=3)  # 2 is no_grad's own

        embeddings = self.model.embed(raw)
        if raw:
            prompt: Prompt = mix(embeddings, prompt_weights)
        else:
            like = torch.empty(0, device=self._execution_device, dtype=self.model.dtype)
            prompt = null_prompt(batch, self.model.profile.alignment.embed_dim, like)
        clean = {n: self.model.encode(n, v) for n, v in raw.items()}

        steps_a_draw = steps * (len(want) if order == "cascade" else 1)
        self._guidance_scale, self._interrupt = guidance_scale, False
        self._num_timesteps = best_of * steps_a_draw

        def draw(number: int) -> dict[str, torch.Tensor]:
            def after_step(now: SampleStep) -> None:
                if callback_on_step_end is not None:
                    tensors = {name: dict(getattr(now, name)) for name in asked}
                    index = number * steps_a_draw + now.step
                    returned = callback_on_step_end(self, index, now.timestep, tensors)
                    now.latents |= _returned_latents(returned, now.latents)
                now.guidance_scale, now.stop = self._guidance_scale, self._interrupt
                bar.update()

            return sample_latents(
                self.model,
                clean,
                want,
                prompt,
                steps=steps,
                guidance_scale=self._guidance_scale,
                cross_guidance_scale=cross_guidance_scale,
                order=order,
                generator=generator,
                noise_scale=noise_scale,
                latents=noise,
                callback=after_step,
            )

        with self.progress_bar(total=self._num_timesteps) as bar:
            best = draw(0)
            if best_of > 1 and not self._interrupt:
                best_score = self._likeness(embeddings, self._decode(best, embeddings))  # (B,)
            for number in range(1, best_of):
                drawn = best if self._interrupt else draw(number)
                if self._interrupt:
                    break  # this draw is not finished
                score = self._likeness(embeddings, self._decode(drawn, embeddings))  # (B,)
                better = score > best_score
                for n, z in drawn.items():
                    best[n] = torch.where(better.reshape(-1, *[1] * (z.ndim - 1)), z, best[n])
                best_score = torch.maximum(score, best_score)
        streams = self._decode(best, embeddings, output_type)
        self.maybe_free_model_hooks()
        out = MedM2GOutput(streams, best, notes)
        return out if return_dict else (streams, best)  # type: ignore[return-value]

    def _decode(
        self,
        latents: Mapping[str, torch.Tensor],
        given: Mapping[str, Embedding],
        output_type: OutputType = "pt",
    ) -> dict[str, Any]:
        """What the latents say; a report is written with a look at the pictures of its study, those
        that are ``given`` and those that were drawn with it."""
        if output_type == "latent":
            return dict(latents)
        streams: dict[str, Any] = {
            n: self.model.decode(n, z) for n, z in latents.items() if stream(n).is_image
        }
        if "text" in latents:
            seen = {n: e for n, e in given.items() if stream(n).is_image}
            if self.model.writer is not None:
                seen |= self.model.embed(streams)
            streams["text"] = self.model.decode("text", latents["text"], seen)
        streams = {n: streams[n] for n in latents}
        for n, images in streams.items():
            if stream(n).is_image and output_type != "pt":
                array = images.float().cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, 1) in -1..1
                streams[n] = array if output_type == "np" else self.numpy_to_pil((array + 1) / 2)
        return streams

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


# diffusers before 0.37 looks the classes of the parts up here, and takes no names for them.
MedM2GPipeline.__init__.__annotations__["model"] = MedM2G


def _returned_latents(
    returned: Any, current: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The latents that a callback wants instead of the ``current`` ones."""
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise ValueError(
            f"callback_on_step_end returned {returned!r:.80}; needed a dict that may hold latents,"
            " or None"
        )
    shapes = {n: tuple(z.shape) for n, z in current.items()}
    changed = check_latents("returned latents", returned.get("latents"), shapes)
    return {n: z.to(current[n]) for n, z in changed.items()}
