"""Sizes and budgets: frozen dataclasses, four of them ready made.

``smoke`` runs the whole pipeline in under a minute and claims no quality, ``cpu`` is what this
repository ships weights for, ``gpu`` works at 256 px, ``paper`` has the sizes of the public
ancestors of MedM2G (Stable Diffusion's UNet and autoencoder, CLIP ViT-L/14, BERT and GPT-2 for the
text codec) and can start from such weights on disk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = [
    "BASE_STAGES",
    "PROFILES",
    "ROUND_STAGES",
    "STAGES",
    "AlignmentConfig",
    "DataConfig",
    "FlowConfig",
    "ImageCodecConfig",
    "Profile",
    "StageConfig",
    "TextCodecConfig",
    "profile",
]

Guidance = Literal["tokens", "pooled", "adapter", "off"]
Objective = Literal["flow", "epsilon", "v_prediction"]


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ImageCodecConfig:
    """Image autoencoder: pixel unshuffle (none in ``paper``), then diffusers' AutoencoderKL.

    A picture of ``resolution`` px becomes ``latent_channels`` x ``latent_size``^2 numbers.
    """

    resolution: int = 128
    unshuffle: int = 4
    channels: tuple[int, ...] = (48, 96)
    layers: int = 1
    latent_channels: int = 8
    mid_attention: bool = False
    norm_groups: int = 16
    pixel_channels: int = 1
    """1 for ours; 3 for Stable Diffusion's autoencoder (grey is repeated in, averaged out)."""
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        _need(
            self.resolution % self.factor == 0,
            f"resolution {self.resolution} is no multiple of {self.factor}",
        )

    @property
    def factor(self) -> int:
        """Pixels a latent cell spans along one axis."""
        return self.unshuffle * 2 ** (len(self.channels) - 1)

    @property
    def latent_size(self) -> int:
        return self.resolution // self.factor


@dataclass(frozen=True, kw_only=True)
class TextCodecConfig:
    """Text autoencoder: BERT encoder, learned-query tokens as latent, GPT-2 decoder with
    cross-attention.

    ``latent_tokens=1`` with a wide ``latent_dim`` is the single vector of Optimus, the ablation.
    """

    vocab_size: int = 1024
    max_length: int = 128
    width: int = 128
    encoder_layers: int = 2
    decoder_layers: int = 2
    heads: int = 4
    latent_tokens: int = 16
    latent_dim: int = 32
    latent_noise: float = 0.2
    word_dropout: float = 0.25
    bag_weight: float = 0.5

    def __post_init__(self) -> None:
        _need(
            self.width % self.heads == 0, f"width {self.width} is no multiple of {self.heads} heads"
        )
        _need(
            self.max_length >= 96, f"max_length {self.max_length}: reports need at least 96 tokens"
        )


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Prompt encoders in one space with text at its centre."""

    embed_dim: int = 128
    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    image_encoder: Literal["cnn", "clip"] = "cnn"
    image_channels: tuple[int, ...] = (32, 64, 96)
    """``cnn``: widths after the pixel-unshuffle stem; each further one halves the grid."""
    image_unshuffle: int = 4
    clip_width: int = 1024
    clip_layers: int = 24
    clip_heads: int = 16
    clip_patch: int = 14
    clip_resolution: int = 224
    temperature: float = 0.07
    pairs: Literal["central", "all"] = "central"
    invariant: Literal["off", "off_diagonal", "full"] = "full"
    invariant_weight: float = 0.1
    diagonal_weight: float = 0.05


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Image flows (diffusers' UNet2DConditionModel), the text flow (a small transformer), and how
    they guide."""

    objective: Objective = "flow"
    precondition: bool = True
    """Skip connection and scales round the network, see `NoiseSchedule.precondition`; no effect on
    other objectives."""
    channels: tuple[int, ...] = (64, 104)
    attention: tuple[bool, ...] = (False, True)
    layers: int = 1
    head_dim: int = 8
    """diffusers' ``attention_head_dim``; for historical reasons that is the *number* of heads."""
    norm_groups: int = 8
    text_width: int = 160
    text_layers: int = 5
    text_heads: int = 5
    text_pseudo_tokens: int = 0
    """Split a single-vector text latent into so many tokens for the flow (4 in CoDi); 0 = as it
    is."""
    env_width: int = 96
    env_grid: int = 8
    guidance: Guidance = "tokens"
    positions: Literal["tied", "untied", "none"] = "tied"
    gate_start: float = 1.0
    aligned_map: bool = True
    """Image guides also enter place by place, as a map at the resolution of the latent."""
    guidance_heads: int = 4
    env_contrast: float = 0.02
    """Weight of the contrastive term between the environments of paired streams (CoDi)."""

    def __post_init__(self) -> None:
        _need(
            len(self.channels) == len(self.attention),
            "channels and attention must have the same length",
        )
        _need(
            any(self.attention),
            "at least one level needs attention: the prompt and the guides enter there",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How many studies of the embedded cohort to make."""

    chest_train: int = 1408
    brain_train: int = 704
    chest_val: int = 128
    brain_val: int = 64
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Budget of one training stage.

    Attributes:
        restart: step at which the schedule begins anew from the averaged weights, with fresh
            optimiser moments (a warm restart, Loshchilov and Hutter 2017); what stood at that step
            is a finished training. 0, or a step that the training does not reach, leaves one
            schedule.
    """

    steps: int
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "muon"] = "adamw"
    restart: int = 0

    def cycle(self, step: int) -> tuple[int, int]:
        """The schedule that ``step`` belongs to: its first step, and how many it has."""
        cut = self.restart if self.restart < self.steps else 0
        return (cut, self.steps - cut) if step >= cut else (0, cut)

    def shortened(self, steps: int) -> StageConfig:
        """The same settings for a short trial: one schedule, warm-up and averaging cut to what the
        steps allow."""
        warmup, ema = max(1, min(self.warmup, steps // 5)), min(self.ema, 0.98)
        return dataclasses.replace(self, steps=steps, warmup=warmup, ema=ema, restart=0)


def _stages(**steps: StageConfig) -> Mapping[str, StageConfig]:
    return MappingProxyType(steps)


BASE_STAGES: tuple[str, ...] = ("image_codec", "text_codec", "alignment")
"""What the flows build on; each can be trained on its own."""

ROUND_STAGES: tuple[str, ...] = ("round1", "round2", "round3")
STAGES: tuple[str, ...] = (*BASE_STAGES, *ROUND_STAGES)
"""The stages of training, in their order."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that makes a model and its training: `MedM2G.from_profile(profile)` builds it."""

    name: str
    image_codec: ImageCodecConfig = field(default_factory=ImageCodecConfig)
    text_codec: TextCodecConfig = field(default_factory=TextCodecConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: Mapping[str, StageConfig] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        return self.image_codec.resolution

    def replace(self, **changes: Any) -> Profile:
        """A copy with other values; a dict changes fields inside a part:
        ``replace(flow={"guidance": "pooled"})``."""
        parts = {
            k: (
                dataclasses.replace(getattr(self, k), **v)
                if isinstance(v, dict) and k != "stages"
                else v
            )
            for k, v in changes.items()
        }
        return dataclasses.replace(self, **parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            k: (
                {n: dataclasses.asdict(s) for n, s in v.items()}
                if k == "stages"
                else (
                    dataclasses.asdict(v)
                    if dataclasses.is_dataclass(v) and not isinstance(v, type)
                    else v
                )
            )
            for k, v in plain.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles by value: read-only mappings cannot be pickled."""
        return (Profile.from_dict, (self.to_dict(),))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """The inverse of `to_dict`; unknown keys raise ``TypeError``, so a file of another version
        is noticed."""

        def build(kind: type, plain: Mapping[str, Any]) -> Any:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})

        return cls(
            name=values["name"],
            image_codec=build(ImageCodecConfig, values["image_codec"]),
            text_codec=build(TextCodecConfig, values["text_codec"]),
            alignment=build(AlignmentConfig, values["alignment"]),
            flow=build(FlowConfig, values["flow"]),
            data=build(DataConfig, values["data"]),
            stages=MappingProxyType(
                {n: build(StageConfig, s) for n, s in values["stages"].items()}
            ),
        )


_SMOKE = Profile(
    name="smoke",
    image_codec=ImageCodecConfig(
        resolution=32, unshuffle=2, channels=(16, 32), norm_groups=8, latent_channels=4
    ),
    text_codec=TextCodecConfig(
        vocab_size=768,
        width=32,
        encoder_layers=1,
        decoder_layers=1,
        heads=2,
        latent_tokens=4,
        latent_dim=16,
    ),
    alignment=AlignmentConfig(
        embed_dim=32,
        text_width=32,
        text_layers=1,
        text_heads=2,
        image_channels=(16, 32),
        image_unshuffle=2,
    ),
    flow=FlowConfig(
        channels=(16, 32),
        attention=(False, True),
        head_dim=2,
        norm_groups=8,
        text_width=32,
        text_layers=2,
        text_heads=2,
        env_width=32,
        env_grid=4,
        guidance_heads=2,
    ),
    data=DataConfig(chest_train=16, brain_train=8, chest_val=4, brain_val=2),
    stages=_stages(
        image_codec=StageConfig(steps=20, batch=8, warmup=2, ema=0.9),
        text_codec=StageConfig(steps=20, batch=8, warmup=2, ema=0.9),
        alignment=StageConfig(steps=12, batch=8, warmup=2, ema=0.9),
        round1=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
        round2=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
        round3=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
    ),
)

_CPU = Profile(
    name="cpu",
    image_codec=ImageCodecConfig(latent_channels=12),
    alignment=AlignmentConfig(invariant_weight=0.01),
    data=DataConfig(chest_train=2816, brain_train=1408, chest_val=256, brain_val=128),
    stages=_stages(
        image_codec=StageConfig(
            steps=2000, batch=32, lr=2e-3, warmup=50, ema=0.995, weight_decay=0.0, optimizer="muon"
        ),
        text_codec=StageConfig(steps=4000, batch=32, lr=1.5e-3, warmup=200, ema=0.995),
        alignment=StageConfig(
            steps=1000,
            batch=64,
            lr=1.5e-3,
            warmup=50,
            ema=0.995,
            weight_decay=0.05,
            optimizer="muon",
        ),
        round1=StageConfig(steps=4000, batch=32, lr=3e-3, warmup=50, ema=0.995, optimizer="muon"),
        round2=StageConfig(steps=1500, batch=32, lr=3e-3, warmup=50, ema=0.995, optimizer="muon"),
        round3=StageConfig(
            steps=5600, restart=2000, batch=32, lr=3e-3, warmup=50, ema=0.995, optimizer="muon"
        ),
    ),
)

_GPU = Profile(
    name="gpu",
    image_codec=ImageCodecConfig(
        resolution=256,
        unshuffle=2,
        channels=(128, 256, 256),
        layers=2,
        norm_groups=32,
        latent_channels=8,
    ),
    text_codec=TextCodecConfig(
        vocab_size=4096,
        width=384,
        encoder_layers=4,
        decoder_layers=6,
        heads=6,
        latent_tokens=32,
        latent_dim=64,
    ),
    alignment=AlignmentConfig(
        embed_dim=512,
        text_width=512,
        text_layers=6,
        text_heads=8,
        image_channels=(128, 256, 384, 512),
    ),
    flow=FlowConfig(
        channels=(192, 384, 576),
        attention=(False, True, True),
        layers=2,
        head_dim=12,
        norm_groups=32,
        text_width=768,
        text_layers=12,
        text_heads=12,
        env_width=384,
        env_grid=16,
        guidance_heads=6,
    ),
    data=DataConfig(chest_train=20000, brain_train=10000, chest_val=512, brain_val=256),
    stages=_stages(
        image_codec=StageConfig(steps=40000, batch=32, lr=2e-4, warmup=1000, weight_decay=0.0),
        text_codec=StageConfig(steps=40000, batch=128, lr=5e-4, warmup=1000),
        alignment=StageConfig(steps=20000, batch=256, lr=5e-4, warmup=1000, weight_decay=0.05),
        round1=StageConfig(steps=100000, batch=128, lr=2e-4, warmup=1000, ema=0.9999),
        round2=StageConfig(steps=60000, batch=128, lr=2e-4, warmup=1000, ema=0.9999),
        round3=StageConfig(steps=60000, batch=128, lr=2e-4, warmup=1000, ema=0.9999),
    ),
)

_PAPER = Profile(
    name="paper",
    image_codec=ImageCodecConfig(
        resolution=512,
        unshuffle=1,
        channels=(128, 256, 512, 512),
        layers=2,
        norm_groups=32,
        latent_channels=4,
        mid_attention=True,
        pixel_channels=3,
    ),
    text_codec=TextCodecConfig(
        vocab_size=50257,
        max_length=1024,
        width=768,
        encoder_layers=12,
        decoder_layers=12,
        heads=12,
        latent_tokens=1,
        latent_dim=768,
    ),
    alignment=AlignmentConfig(
        embed_dim=768, text_width=768, text_layers=12, text_heads=12, image_encoder="clip"
    ),
    flow=FlowConfig(
        objective="epsilon",
        channels=(320, 640, 1280, 1280),
        attention=(True, True, True, False),
        layers=2,
        head_dim=8,
        norm_groups=32,
        text_width=768,
        text_layers=12,
        text_heads=12,
        text_pseudo_tokens=4,
        env_width=768,
        env_grid=16,
        guidance_heads=8,
        gate_start=0.0,
        aligned_map=False,
    ),
    data=DataConfig(chest_train=20000, brain_train=10000, chest_val=512, brain_val=256),
    stages=_stages(
        image_codec=StageConfig(steps=20000, batch=16, lr=1e-5, warmup=1000, weight_decay=0.0),
        text_codec=StageConfig(steps=50000, batch=64, lr=5e-5, warmup=1000),
        alignment=StageConfig(steps=50000, batch=256, lr=1e-5, warmup=1000, weight_decay=0.05),
        round1=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
        round2=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
        round3=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
    ),
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {p.name: p for p in (_SMOKE, _CPU, _GPU, _PAPER)}
)


def profile(name: str) -> Profile:
    """A ready-made profile by name; ``ValueError`` names the known ones."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]
