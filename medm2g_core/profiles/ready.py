"""The five ready-made profiles.

``smoke`` runs the whole pipeline in under a minute and claims no quality, ``cpu`` is what this
repository ships weights for, ``base`` is larger and meant for ten minutes of a data-centre GPU,
``gpu`` works at 256 px, ``paper`` has the sizes of the public ancestors of MedM2G (Stable
Diffusion's UNet and autoencoder, CLIP ViT-L/14, BERT and GPT-2 for the text codec) and can start
from such weights on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from medm2g_core.profiles.config import (
    AlignmentConfig,
    DataConfig,
    FlowConfig,
    ImageCodecConfig,
    Profile,
    StageConfig,
    TextCodecConfig,
)

__all__ = ["PROFILES", "profile"]


def _stages(**steps: StageConfig) -> Mapping[str, StageConfig]:
    return MappingProxyType(steps)


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
        reads_pictures=True,
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
        map_entries="stream",
    ),
    data=DataConfig(chest_train=16, brain_train=8, chest_val=4, brain_val=2),
    stages=_stages(
        image_codec=StageConfig(steps=20, batch=8, warmup=2, ema=0.9),
        text_codec=StageConfig(steps=20, batch=8, warmup=2, ema=0.9),
        alignment=StageConfig(steps=12, batch=8, warmup=2, ema=0.9),
        reports=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
        round1=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
        round2=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
        round3=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
        joint=StageConfig(steps=8, batch=8, warmup=2, ema=0.9),
    ),
)

_CPU_ROUND = StageConfig(steps=1, batch=32, lr=3e-3, warmup=50, ema=0.995, optimizer="muon")
"""Of all its rounds, which differ in their steps."""

_CPU = Profile(
    name="cpu",
    image_codec=ImageCodecConfig(latent_channels=12),
    # The shipped weights were trained before the ablation, and training may go on from them.
    flow=FlowConfig(precondition=True),
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
        # Where `reads_pictures` is switched on.
        reports=StageConfig(steps=4000, batch=32, lr=1.5e-3, warmup=200, ema=0.995),
        round1=replace(_CPU_ROUND, steps=4000),
        round2=replace(_CPU_ROUND, steps=1500),
        round3=replace(_CPU_ROUND, steps=5600, restart=2000),
        joint=replace(_CPU_ROUND, steps=1300),
    ),
)

_BASE_ROUND = StageConfig(steps=1, batch=128, lr=3e-3, warmup=100, ema=0.998, optimizer="muon")

# Head sizes of 32 and 56: fused attention takes multiples of 8, and not the 13 and 26 of ``cpu``.
_BASE = Profile(
    name="base",
    image_codec=ImageCodecConfig(channels=(64, 128), latent_channels=16),
    text_codec=TextCodecConfig(
        vocab_size=2048,
        width=160,
        encoder_layers=2,
        decoder_layers=3,
        heads=5,
        reads_pictures=True,
    ),
    alignment=AlignmentConfig(
        embed_dim=160, text_width=160, text_layers=3, text_heads=5, image_channels=(32, 64, 96)
    ),
    flow=FlowConfig(
        channels=(80, 128),
        head_dim=4,
        text_width=224,
        text_layers=4,
        text_heads=4,
        env_width=96,
        guidance_heads=4,
        map_entries="stream",
    ),
    data=DataConfig(chest_train=2816, brain_train=1408, chest_val=256, brain_val=128),
    stages=_stages(
        image_codec=StageConfig(
            steps=2500,
            batch=192,
            lr=2e-3,
            warmup=100,
            ema=0.998,
            weight_decay=0.0,
            optimizer="muon",
        ),
        text_codec=StageConfig(steps=4000, batch=128, lr=1.5e-3, warmup=200, ema=0.998),
        alignment=StageConfig(
            steps=2500,
            batch=128,
            lr=1.5e-3,
            warmup=100,
            ema=0.998,
            weight_decay=0.05,
            optimizer="muon",
        ),
        reports=StageConfig(steps=2500, batch=128, lr=1.5e-3, warmup=200, ema=0.998),
        round1=replace(_BASE_ROUND, steps=1600),
        round2=replace(_BASE_ROUND, steps=800),
        round3=replace(_BASE_ROUND, steps=1200),
        joint=replace(_BASE_ROUND, steps=3000, ema=0.999),
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
        reads_pictures=True,
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
        map_entries="stream",
    ),
    data=DataConfig(chest_train=20000, brain_train=10000, chest_val=512, brain_val=256),
    stages=_stages(
        image_codec=StageConfig(steps=40000, batch=32, lr=2e-4, warmup=1000, weight_decay=0.0),
        text_codec=StageConfig(steps=40000, batch=128, lr=5e-4, warmup=1000),
        alignment=StageConfig(steps=20000, batch=256, lr=5e-4, warmup=1000, weight_decay=0.05),
        reports=StageConfig(steps=40000, batch=128, lr=5e-4, warmup=1000),
        round1=StageConfig(steps=100000, batch=128, lr=2e-4, warmup=1000, ema=0.9999),
        round2=StageConfig(steps=60000, batch=128, lr=2e-4, warmup=1000, ema=0.9999),
        round3=StageConfig(steps=60000, batch=128, lr=2e-4, warmup=1000, ema=0.9999),
        joint=StageConfig(steps=100000, batch=64, lr=2e-4, warmup=1000, ema=0.9999),
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
        # Where `reads_pictures` is switched on.
        reports=StageConfig(steps=50000, batch=64, lr=5e-5, warmup=1000),
        round1=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
        round2=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
        round3=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
        joint=StageConfig(steps=100000, batch=64, lr=1e-5, warmup=1000, ema=0.9999),
    ),
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {p.name: p for p in (_SMOKE, _CPU, _BASE, _GPU, _PAPER)}
)


def profile(name: str) -> Profile:
    """A ready-made profile by name; ``ValueError`` names the known ones."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]
