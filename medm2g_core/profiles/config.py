"""Sizes and budgets: frozen dataclasses, checked when made; `Profile` holds one of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

__all__ = [
    "BASE_STAGES",
    "FLOW_STAGES",
    "REPORT_STAGE",
    "ROUND_STAGES",
    "STAGES",
    "AlignmentConfig",
    "ConditioningConfig",
    "DataConfig",
    "FlowConfig",
    "ImageCodecConfig",
    "Objective",
    "Profile",
    "ReportConfig",
    "StageConfig",
    "TextCodecConfig",
]

Guidance = Literal["tokens", "pooled", "adapter", "off"]
Objective = Literal["flow", "epsilon", "v_prediction"]


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ImageCodecConfig:
    """Image autoencoder: pixel unshuffle (none in ``paper``), then diffusers' AutoencoderKL.

    A picture of ``resolution`` px becomes ``latent_channels`` x ``latent_size`` x
    ``latent_size`` numbers.
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
    reads_pictures: bool = False
    """A second decoder, the report writer, sees the pictures of the study beside the latent, and
    writes wherever there is one."""
    prompt_share: float = 0.25
    """Texts of a training batch that are prompts, not reports: a prompt that is given guides by its
    latent, so the codec must read any register. It is to *write* reports, so most are those."""

    def __post_init__(self) -> None:
        _need(
            self.width % self.heads == 0, f"width {self.width} is no multiple of {self.heads} heads"
        )
        _need(
            self.max_length >= 96, f"max_length {self.max_length}: reports need at least 96 tokens"
        )
        _need(
            0 <= self.prompt_share <= 1,
            f"prompt_share is a share of the texts, 0 to 1; got {self.prompt_share}",
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
    contradicted: float = 0.5
    """Share of the studies of a batch that get a contradiction: nearly the words of their prompt,
    and the opposite said of one finding. For this study's pictures it is one more wrong text
    (hard negatives, as in NegCLIP, Yuksekgonul et al. 2023). Without, "large effusion" and "no
    large effusion" lie side by side in the aligned space."""
    pairs: Literal["central", "all"] = "central"
    invariant: Literal["off", "off_diagonal", "full"] = "full"
    invariant_weight: float = 0.01
    """Ten times as much loses on every score of the ablation."""
    diagonal_weight: float = 0.05

    def __post_init__(self) -> None:
        _need(
            0 <= self.contradicted <= 1,
            f"contradicted is a share of the studies, 0 to 1; got {self.contradicted}",
        )

    def cells(self, resolution: int) -> int:
        """Cells that an image encoder makes of a picture of ``resolution`` px."""
        if self.image_encoder == "clip":
            return (self.clip_resolution // self.clip_patch) ** 2
        return (resolution // (self.image_unshuffle * 2 ** (len(self.image_channels) - 1))) ** 2


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Image flows (diffusers' UNet2DConditionModel), the text flow (a small transformer), and how
    they guide."""

    objective: Objective = "flow"
    precondition: bool = False
    """Skip connection and scales round the network, see `NoiseSchedule.precondition`; no effect on
    other objectives. The ablation is 0.2 dB better without."""
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
    map_entries: Literal["modality", "stream"] = "modality"
    """Whose matrix a map enters through. With one a modality the contrasts of MR share it and are
    *added*, so T1 and T2 of a brain arrive as one sum; one a stream keeps them apart."""
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
class ConditioningConfig:
    """What a flow is told during its rounds: how often prompts and guides are taken away, and how
    noisy they are. Training alone reads it; what a trained model computes does not depend on it.

    All rates are shares of the studies, drawn anew for every target of every step.
    """

    drop_all: float = 0.1
    """Neither prompt nor guide: the null branch of classifier-free guidance. Elsewhere one of the
    two stays, so this is the whole share. A tenth, as Ho and Salimans 2022."""
    drop_guides: float = 0.15
    """Of the rest: no guide at all, the prompt stays. A report that draws a picture of a modality
    that was never trained with text always samples here."""
    all_guides: float = 0.0
    """Of the studies with guides: all of them. In the others any number is equally frequent, from
    one to all, and so is any set of that number. Worth raising where what is given is always the
    same."""
    drop_prompt: float = 0.15
    """Of the rest: no prompt, where a guide stays. Translation must work from the guides alone."""
    drop_details: float = 0.3
    """The prompt keeps its pooled embedding and loses its tokens: only the embedding crosses to
    modalities that a flow was never trained with, so it must be enough by itself."""
    self_prompt: float = 0.2
    """The prompt is the target's own embedding with noise: the flow learns to follow a point of
    the aligned space, whichever modality the point comes from."""
    self_prompt_noise: float = 0.6
    """Length of that noise relative to the embedding's: about the gap between modalities."""
    guides_clean: float = 0.5
    """All guides of the study are clean: they are given."""
    guides_alike: float = 0.2
    """All guides are as noisy as the target: all are drawn together. In the remaining studies each
    guide is one of these, with the same shares, or at a level of its own."""
    acquired: float = 0.3
    """A given picture is shown as another scanner or protocol would show it, see
    `medm2g_core.data.acquisition`; what is drawn always is the cohort's own kind. The encoders see
    the same share of such pictures. Without, no network knows a real scan from noise."""
    level_mean: float = 0.5
    level_std: float = 1.2
    """Mean and deviation of the log-odds of the noise level (objective ``flow``). Above 0, denser
    where noise is high: there the prompt and the guides decide what is drawn."""

    def __post_init__(self) -> None:
        lengths = ("self_prompt_noise", "level_mean", "level_std")
        for name in (f.name for f in dataclasses.fields(self) if f.name not in lengths):
            rate = getattr(self, name)
            _need(0 <= rate <= 1, f"{name} is a share of the studies, 0 to 1; got {rate}")
        _need(
            self.guides_clean + self.guides_alike <= 1,
            f"guides_clean {self.guides_clean} and guides_alike {self.guides_alike} are more than"
            " all studies",
        )


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """How unsure the plan is that the report writer learns from. Training alone reads it.

    What a flow draws is a plausible latent that is wrong in part: with the latents of true reports
    alone the writer would learn to copy and not to look. The shares are of the studies; in the
    remaining ones the plan is that of the true report, with the codec's own noise, so that the
    writer still carries out a plan that the picture agrees with.
    """

    another: float = 0.25
    """The plan is that of another study: it reads as surely as a true one, and only the picture
    tells that it is wrong."""
    noisier: float = 0.25
    """More noise than the codec's own, up to `most_noise`: findings fade, the wording with them."""
    nothing: float = 0.2
    """Noise alone: the writer is then a plain autoregressive decoder, and no worse than one."""
    most_noise: float = 1.0
    """Deviation relative to the latent's own; at 1 half of what is left is noise."""

    def __post_init__(self) -> None:
        rates = (self.another, self.noisier, self.nothing)
        _need(
            min(rates) >= 0 and sum(rates) <= 1,
            f"another, noisier and nothing are shares of the studies; got {rates}",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How many studies of the embedded cohort to make."""

    chest_train: int = 1408
    brain_train: int = 704
    chest_val: int = 128
    brain_val: int = 64
    acquisitions: int = 1
    """Other acquisitions of each training picture that the flows' studies hold; 0 switches them
    off."""
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


BASE_STAGES: tuple[str, ...] = ("image_codec", "text_codec", "alignment")
"""What the flows build on; each can be trained on its own."""

REPORT_STAGE = "reports"
"""Trains the report writer, in profiles with `TextCodecConfig.reads_pictures`."""

ROUND_STAGES: tuple[str, ...] = ("round1", "round2", "round3")
"""The rounds of the paper."""

FLOW_STAGES: tuple[str, ...] = (*ROUND_STAGES, "joint")
"""Those that train flows: after the paper's rounds one in which all of them meet."""

STAGES: tuple[str, ...] = (*BASE_STAGES, REPORT_STAGE, *FLOW_STAGES)
"""The stages of training, in their order; see `Profile.trains`."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything that makes a model and its training: `MedM2G.from_profile(profile)` builds it."""

    name: str
    image_codec: ImageCodecConfig = field(default_factory=ImageCodecConfig)
    text_codec: TextCodecConfig = field(default_factory=TextCodecConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    reports: ReportConfig = field(default_factory=ReportConfig)
    data: DataConfig = field(default_factory=DataConfig)
    stages: Mapping[str, StageConfig] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        return self.image_codec.resolution

    def trains(self, stage: str) -> bool:
        """Whether a model of this profile has what ``stage`` trains."""
        return stage != REPORT_STAGE or self.text_codec.reads_pictures

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
        out: dict[str, Any] = {"name": self.name}
        for part in _CONFIGS:
            out[part] = dataclasses.asdict(getattr(self, part))
        out["stages"] = {name: dataclasses.asdict(s) for name, s in self.stages.items()}
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles by value: read-only mappings cannot be pickled."""
        return (Profile.from_dict, (self.to_dict(),))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """The inverse of `to_dict`; unknown keys raise ``TypeError``, so a file of another version
        is noticed. One without ``conditioning`` or ``reports`` is older than that part, and gets
        today's."""

        def build(kind: type, plain: Mapping[str, Any]) -> Any:
            return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})

        values = {"conditioning": {}, "reports": {}, **values}
        parts = {part: build(kind, values[part]) for part, kind in _CONFIGS.items()}
        stages = {n: build(StageConfig, s) for n, s in values["stages"].items()}
        return cls(name=values["name"], stages=MappingProxyType(stages), **parts)


_CONFIGS: Mapping[str, type] = MappingProxyType(
    {
        "image_codec": ImageCodecConfig,
        "text_codec": TextCodecConfig,
        "alignment": AlignmentConfig,
        "flow": FlowConfig,
        "conditioning": ConditioningConfig,
        "reports": ReportConfig,
        "data": DataConfig,
    }
)
"""Parts of a profile beside its name and stages."""
