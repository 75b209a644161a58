"""MedM2G: codecs, aligned prompt encoders and flows as one model, and how it lies on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from diffusers import __version__ as diffusers_version
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from medm2g_core.alignment.encoders import N_CONTRASTS, AlignedEncoders, Embedding
from medm2g_core.codecs.image import ImageCodec
from medm2g_core.codecs.text import TextCodec
from medm2g_core.codecs.tokenizer import encode_texts, tokenizer_text
from medm2g_core.codecs.writer import Picture, ReportWriter
from medm2g_core.flows.environment import ImageEnvironment, TextEnvironment
from medm2g_core.flows.guidance import Guide
from medm2g_core.flows.image import ImageFlow
from medm2g_core.flows.prompt import Prompt, PromptProjection
from medm2g_core.flows.schedule import NoiseSchedule
from medm2g_core.flows.text import TextFlow
from medm2g_core.profiles import Profile
from medm2g_core.storage import atomic_write
from medm2g_core.streams import MODALITIES, STREAMS, StreamError, check_image, stream

__all__ = ["FORMAT_VERSION", "CheckpointError", "MedM2G", "RawBatch"]

FORMAT_VERSION = 2
"""Of the folder that `save_pretrained` writes."""

_READABLE = (1, FORMAT_VERSION)
_NAMES_OF_FORMAT_1 = {".prompt.met": ".prompt.trained_with"}
"""Ends of the tensor names that format 1 had -> today's."""

_NO_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "device_map": (None,),
    "max_memory": (None,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "variant": (None,),
    "use_safetensors": (None, True),
    "use_flashpack": (False,),
    "low_cpu_mem_usage": (True, False),
    "disable_mmap": (False,),
}
"""Options of diffusers' models -> the values that ask for what is done here anyway."""

RawBatch = Mapping[str, torch.Tensor | Sequence[str]]
"""Stream -> images (B, 1, H, W) in -1..1, or B reports."""

PARTS = ("image_codec", "text_codec", "alignment", "writer", "text", "xray", "ct", "mri")
"""Weight files: the two codecs, the prompt encoders, the report writer if there is one
(`MedM2G.parts`), and for every modality its flow with its environment encoder."""


class CheckpointError(RuntimeError):
    """A folder of weights is missing, half written, of another version or of another shape."""


def _on_disk(key: str) -> str:
    """Name of a tensor in a weight file: older transformers have CLIP's text transformer one
    level deeper."""
    return key.replace(".model.text_model.", ".model.")


Method = TypeVar("Method", bound=Callable[..., Any])


def _moves_when_offloaded(method: Method) -> Method:
    """Let a method move the model to its device first, when `enable_model_cpu_offload` is on, as
    accelerate does for ``forward`` alone."""
    return cast(Method, apply_forward_hook(method))


class MedM2G(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """One model for text, X-ray, CT and MR.

    Symbols of the paper: x^m a stream, z^m its latent, h^m = E_m(x^m) its aligned embedding
    (``alignment``), V_m its environment encoder (``environments[m]``), eps_m its flow
    (``flows[m]``).

    A model of diffusers, with its methods. Loading and saving alone are its own: training goes on
    from any part, so each part is a file, and the tokenizer lies beside them.

    To compile the flows, in place: ``for flow in model.flows.values(): flow.compile()``.
    """

    latent_shift: torch.Tensor
    latent_scale: torch.Tensor
    _supports_gradient_checkpointing = True

    if TYPE_CHECKING:  # ModelMixin's own is not typed

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

    def __init__(
        self, profile: Profile | Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """``profile`` may also be the dict of a `Profile`, as ``config["profile"]`` holds it."""
        super().__init__()
        if not isinstance(profile, Profile):
            profile = Profile.from_dict(dict(profile))
        self.profile, self.tokenizer = profile, tokenizer
        # Stream -> PSNR of the codec below which a picture is unlike training, if measured; see
        # `medm2g_core.familiarity`.
        self.familiar: dict[str, float] = {}
        image, text = profile.image_codec, profile.text_codec
        align, flow = profile.alignment, profile.flow
        self.schedule = NoiseSchedule(flow.objective)
        self.image_codec = ImageCodec(image)
        self.text_codec = TextCodec(text)
        self.alignment = AlignedEncoders(align, text)
        room = min(text.vocab_size, self.alignment.text.vocab_size)
        if len(tokenizer) > room:
            raise ValueError(
                f"{len(tokenizer)} tokens in the tokenizer; profile {profile.name!r} has room for"
                f" {room}"
            )
        self.writer: ReportWriter | None = None
        if text.reads_pictures:
            self.writer = ReportWriter(text, align.embed_dim, align.cells(profile.resolution))
        contrasts = {"xray": 1, "ct": 1, "mri": N_CONTRASTS}
        self.flows = nn.ModuleDict({"text": TextFlow(text, align, flow)})
        self.environments = nn.ModuleDict(
            {"text": TextEnvironment(text.latent_tokens, text.latent_dim, flow)}
        )
        for m, n in contrasts.items():
            self.flows[m] = ImageFlow(image, align, flow, n)
            self.environments[m] = ImageEnvironment(
                image.latent_channels, image.latent_size, flow, n
            )
        # Standardisation of the image latents, a row per stream of STREAMS; fitted after the image
        # codec is trained.
        self.register_buffer("latent_shift", torch.zeros(len(STREAMS), image.latent_channels))
        self.register_buffer("latent_scale", torch.ones(len(STREAMS), image.latent_channels))

    @property
    def config(self) -> FrozenDict:
        """What `from_config` needs beside a tokenizer, and ``config.json`` holds."""
        return FrozenDict(
            _class_name=type(self).__name__,
            _diffusers_version=diffusers_version,
            format_version=FORMAT_VERSION,
            profile=self.profile.to_dict(),
            **({"familiar": dict(self.familiar)} if self.familiar else {}),
        )

    # ---- streams <-> latents

    @property
    def device(self) -> torch.device:
        return self.latent_shift.device

    @property
    def dtype(self) -> torch.dtype:
        return self.latent_shift.dtype

    def latent_shape(self, name: str) -> tuple[int, ...]:
        """Shape of one latent of a stream, without the batch."""
        if stream(name).is_image:
            c = self.profile.image_codec
            return (c.latent_channels, c.latent_size, c.latent_size)
        t = self.profile.text_codec
        return (t.latent_tokens, t.latent_dim)

    def standardisation(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Shift and scale (C, 1, 1) of an image stream, whose latents are (z - shift) / scale."""
        row = list(STREAMS).index(name)
        return self.latent_shift[row][:, None, None], self.latent_scale[row][:, None, None]

    def tokens(self, texts: Sequence[str], multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Texts to (ids, mask) on the model's device, padded to the longest, and on to a
        ``multiple`` of tokens; `TextTooLongError` when one does not fit."""
        longest = min(self.profile.text_codec.max_length, self.alignment.text.max_tokens)
        ids, mask = encode_texts(self.tokenizer, list(texts), longest, multiple)
        return ids.to(self.device), mask.to(self.device)

    def images(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """Check a batch of images of a stream and bring it to the model's device."""
        check_image(images, name)
        size = self.profile.resolution
        if images.ndim != 4 or images.shape[-2:] != (size, size):
            raise StreamError(
                f"{name}: got {tuple(images.shape)}; this model needs (B, 1, {size}, {size})"
            )
        return images.to(self.device, self.dtype)

    @_moves_when_offloaded
    @torch.no_grad()
    def encode(self, name: str, values: torch.Tensor | Sequence[str]) -> torch.Tensor:
        """A batch of a stream to standardised latents (B, *latent_shape)."""
        if not stream(name).is_image:
            return self.text_codec.encode(*self.tokens(values))  # type: ignore[arg-type]
        shift, scale = self.standardisation(name)
        return (self.image_codec.encode(self.images(name, values)) - shift) / scale  # type: ignore[arg-type]

    @_moves_when_offloaded
    @torch.no_grad()
    def decode(
        self, name: str, latent: torch.Tensor, pictures: Mapping[str, Embedding] | None = None
    ) -> torch.Tensor | list[str]:
        """Latents to images (B, 1, H, W) clipped to -1..1, or to reports.

        Args:
            pictures: image stream -> embedding of the study's picture: what a report is about. The
                report writer looks at them; without any, or where the model has no trained writer,
                a report is decoded from its latent alone. Images take none.
        """
        if not stream(name).is_image:
            # The codec's latents are layer-normalised; a sampled one is put back on that sphere
            # first.
            z = self.text_codec.norm(latent)
            if pictures and self.writer is not None and bool(self.writer.ready):
                seen = {n: Picture.of(e.pooled, e.tokens) for n, e in pictures.items()}
                ids = self.writer.decode(z, seen)
            else:
                ids = self.text_codec.decode(z)
            return [t.strip() for t in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]
        shift, scale = self.standardisation(name)
        return self.image_codec.decode(latent * scale + shift).clamp(-1, 1)

    @torch.no_grad()
    def fit_standardisation(self, latents: Mapping[str, torch.Tensor]) -> None:
        """Set shift and scale from *unstandardised* latents (N, C, h, w) per stream: mean and
        deviation a channel."""
        for name, z in latents.items():
            row = list(STREAMS).index(name)
            self.latent_shift[row] = z.float().mean((0, 2, 3)).to(self.latent_shift)
            self.latent_scale[row] = z.float().std((0, 2, 3)).clamp_min(1e-3).to(self.latent_scale)

    # ---- prompts and the joint call

    @_moves_when_offloaded
    @torch.no_grad()
    def embed(self, values: RawBatch) -> dict[str, Embedding]:
        """Aligned embeddings h^m of a batch of raw streams."""
        out: dict[str, Embedding] = {}
        for name, value in values.items():
            raw = self.images(name, value) if stream(name).is_image else self.tokens(value)  # type: ignore[arg-type]
            out[name] = self.alignment(name, raw)
        return out

    def contrast(self, name: str, batch: int) -> torch.Tensor:
        return torch.full((batch,), stream(name).contrast, dtype=torch.long, device=self.device)

    def environment(
        self, name: str, z: torch.Tensor, level: torch.Tensor, present: torch.Tensor
    ) -> Guide:
        """V_m(z^m, s) of one stream as a guide for the others.

        Args:
            z: latent at noise level ``level`` (B,).  present: (B,) 1 or 0, see `Guide`.
        """
        modality = stream(name).modality
        encoder = cast(ImageEnvironment | TextEnvironment, self.environments[modality])
        tokens, fine = encoder(z, level, self.contrast(name, len(z)))
        return Guide(modality, tokens, encoder.token_grid, present, fine, name)

    def prompt_projection(self, modality: str) -> PromptProjection:
        """Where prompts enter the flow of a modality; its ``trained_with`` says what that flow was
        trained with."""
        return cast(PromptProjection, self.flows[modality].prompt)

    def flow(
        self,
        name: str,
        z: torch.Tensor,
        level: torch.Tensor,
        prompt: Prompt,
        guides: Sequence[Guide],
    ) -> torch.Tensor:
        """eps_m(z^m, t, c, guides): what the flow of that stream predicts, in z's shape."""
        network = self.flows[stream(name).modality]
        if not self.profile.flow.precondition:
            return network(z, level, prompt, guides, self.contrast(name, len(z)))
        c_in, c_skip, c_out = self.schedule.precondition(level, z)
        return c_skip * z + c_out * network(
            c_in * z, level, prompt, guides, self.contrast(name, len(z))
        )

    @_moves_when_offloaded
    def predict(
        self,
        latents: Mapping[str, torch.Tensor],
        levels: Mapping[str, torch.Tensor],
        want: Iterable[str],
        prompt: Prompt,
        present: Mapping[str, torch.Tensor] | None = None,
        *,
        untrained_pairs: bool = False,
    ) -> dict[str, torch.Tensor]:
        """The joint call: every wanted flow predicts, guided by all *other* streams.

        Args:
            latents: stream -> latent at its level; given streams have level 0.
            levels: stream -> (B,) noise level in [0, 1].
            want: streams to predict for; each must be in ``latents``.
            prompt: the mixed prompts.
            present: stream -> (B,) 1 where the stream may guide; 1 for all if not named.
            untrained_pairs: let streams guide a flow that was never trained with their modality.
                Off by default: their guidance would pass through weights that never saw them, while
                the prompt reaches every flow.
        """
        present = present or {}
        want = tuple(want)
        guides = {
            n: self.environment(n, z, levels[n], present.get(n, torch.ones_like(levels[n])))
            for n, z in latents.items()
            if any(m != n for m in want)
        }
        out = {}
        for m in want:
            trained_with = self.prompt_projection(stream(m).modality).was_trained_with
            others = [g for n, g in guides.items() if n != m]
            allowed = [g for g in others if untrained_pairs or trained_with(g.modality)]
            out[m] = self.flow(m, latents[m], levels[m], prompt, allowed)
        return out

    # ---- on disk

    def part(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one weight file, keyed as in `state_dict`."""
        if name not in PARTS:
            raise KeyError(f"unknown part {name!r}; known: {', '.join(PARTS)}")
        prefixes: tuple[str, ...] = (f"{name}.",)
        if name == "image_codec":
            prefixes = ("image_codec.", "latent_shift", "latent_scale")
        elif name in MODALITIES:
            prefixes = (f"flows.{name}.", f"environments.{name}.")
        # GPT-2's output layer is its input embedding: stored once. torch.compile's wrapper puts a
        # name of its own before those of the module inside.
        tied = ("text_codec.decoder.lm_head.weight", "writer.decoder.lm_head.weight")
        tensors = {k.replace("_orig_mod.", ""): v for k, v in self.state_dict().items()}
        return {k: v for k, v in tensors.items() if k.startswith(prefixes) and k not in tied}

    @property
    def parts(self) -> tuple[str, ...]:
        """Those of `PARTS` that this model has."""
        return tuple(p for p in PARTS if p != "writer" or self.writer is not None)

    def save_pretrained(  # type: ignore[override]
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        parts: Sequence[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Write ``config.json``, the tokenizer and one safetensors file a part, each in one atomic
        step.

        Args:
            dtype: of the weights on disk, ``torch.float16`` halves the size; standardisation stays
                as it is.
            parts: which of `PARTS` to write; all that it has unless told.
            safe_serialization: as in diffusers; ``False`` would ask for pickles and is refused.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False: only safetensors are written, no pickles")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in self.parts if parts is None else parts:
            tensors = {}
            for own, value in self.part(name).items():
                key = _on_disk(own)
                exact = key.startswith("latent_") or not value.is_floating_point()
                to = value.dtype if exact or dtype is None else dtype
                tensors[key] = value.detach().to("cpu", to).contiguous().clone()
            # One entry: safetensors writes several in an order that differs from run to run, and
            # equal weights are to give equal files.
            facts = {
                "format_version": FORMAT_VERSION,
                "part": name,
                "profile": self.profile.name,
            }
            meta = {"medm2g": json.dumps(facts)}
            atomic_write(
                folder / f"{name}.safetensors", lambda p, t=tensors, m=meta: save_file(t, p, m)
            )
        tokenizer = tokenizer_text(self.tokenizer)
        atomic_write(folder / "tokenizer.json", lambda p: p.write_text(tokenizer, encoding="utf-8"))
        config = json.dumps(self.config, indent=1)
        atomic_write(folder / "config.json", lambda p: p.write_text(config, encoding="utf-8"))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        parts: Sequence[str] | None = None,
        **options: Any,
    ) -> MedM2G:
        """Load what `save_pretrained` wrote.

        Args:
            folder: where it lies.
            torch_dtype: what the weights become; float32 unless told, whatever they are on disk.
            parts: which of `PARTS` to read, all that the model has unless told; the others keep
                their random start.
            options: what diffusers' `DiffusionPipeline` hands to every model. Those of its defaults
                that mean nothing here are taken, anything else is refused.

        Raises:
            CheckpointError: the folder or a part is missing, half written, or of another version.
            ValueError: an option that this model does not have.
        """
        for key, value in options.items():
            if key not in _NO_OPTIONS or value not in _NO_OPTIONS[key]:
                raise ValueError(
                    f"{key}={value!r}: MedM2G.from_pretrained has no such option; it takes"
                    " torch_dtype and parts, and moves to a device with .to(device)"
                )
        folder = Path(folder)
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise CheckpointError(f"{folder} holds no model: there is no config.json in it")
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
            version = config["format_version"]
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{config_file} is damaged ({error}); copy the checkpoint again"
            ) from error
        if version not in _READABLE:
            raise CheckpointError(
                f"{folder} has checkpoint format {version}, this program reads"
                f" {' and '.join(map(str, _READABLE))}; train again or use the matching release"
            )
        try:
            profile = Profile.from_dict(config["profile"])
        except (TypeError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{config_file} describes another model version ({error})"
            ) from error
        model = cls(profile, load_tokenizer(folder))
        model.familiar = {n: float(db) for n, db in config.get("familiar", {}).items()}
        for name in model.parts if parts is None else parts:
            model.load_part(folder, name)
        nn.Module.to(model, torch_dtype or torch.float32)
        return model.eval()

    def load_part(self, folder: str | Path, name: str) -> None:
        """Load one weight file into this model; `CheckpointError` if it is missing, damaged or does
        not fit."""
        file = Path(folder) / f"{name}.safetensors"
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: the checkpoint is incomplete")
        try:
            tensors = load_file(file)
        except Exception as error:  # safetensors raises its own Rust error type
            raise CheckpointError(
                f"{file} is damaged or half written ({error}); copy it again"
            ) from error
        for old, new in _NAMES_OF_FORMAT_1.items():
            tensors = {
                k.removesuffix(old) + new if k.endswith(old) else k: v for k, v in tensors.items()
            }
        own = {_on_disk(key): tensor for key, tensor in self.part(name).items()}
        wrong = sorted(
            k
            for k in own.keys() | tensors.keys()
            if k not in own or k not in tensors or own[k].shape != tensors[k].shape
        )
        if wrong:
            raise CheckpointError(
                f"{file} does not fit this profile: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        if name == "image_codec" and not (tensors["latent_scale"] > 0).all():
            raise CheckpointError(f"{file}: the latent scale must be positive")
        with torch.no_grad():
            for key, value in tensors.items():
                own[key].copy_(value)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the checkpoint is incomplete")
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
    except Exception as error:  # tokenizers raises a bare Exception on bad files
        raise CheckpointError(f"{file} is damaged ({error}); copy it again") from error
