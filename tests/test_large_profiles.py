"""The profiles of 256 and 512 pixels train on the embedded cohort, and can start from Stable
Diffusion's weights; at reduced widths, a step a stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from medm2g_core.cli import main
from medm2g_core.model import MedM2G
from medm2g_core.profiles import STAGES, profile

STEP = [
    f"stages.{stage}.{field}" for stage in STAGES for field in ("steps=1", "batch=2", "warmup=0")
]
FEW = ["data.chest_train=2", "data.brain_train=2", "data.chest_val=1", "data.brain_val=1"]
NARROW_TEXT = [
    "text_codec.vocab_size=4096",
    "text_codec.max_length=128",
    "text_codec.width=32",
    "text_codec.encoder_layers=1",
    "text_codec.decoder_layers=1",
    "text_codec.heads=2",
    "alignment.text_width=32",
    "alignment.text_layers=1",
    "alignment.text_heads=2",
    "alignment.embed_dim=32",
    "alignment.image_channels=16,32",
    "alignment.clip_width=32",
    "alignment.clip_layers=1",
    "alignment.clip_heads=2",
    "alignment.clip_patch=56",
]
NARROW_FLOW = [
    "flow.text_width=32",
    "flow.text_layers=2",
    "flow.text_heads=2",
    "flow.env_width=32",
    "flow.env_grid=4",
    "flow.guidance_heads=2",
    "flow.head_dim=2",
    "flow.norm_groups=8",
]
NARROW = {
    "gpu": [
        "image_codec.channels=8,16,16",
        "image_codec.layers=1",
        "image_codec.norm_groups=4",
        "flow.channels=16,24,32",
        "flow.layers=1",
    ],
    "paper": [
        "image_codec.channels=8,8,16,16",
        "image_codec.layers=1",
        "image_codec.norm_groups=4",
        "image_codec.mid_attention=false",
        "flow.channels=8,16,24,32",
        "flow.attention=false,false,true,false",
        "flow.layers=1",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pixels"), [("gpu", 256), ("paper", 512)])
def test_a_large_profile_trains_through_all_stages(name: str, pixels: int, tmp_path: Path) -> None:
    assert profile(name).resolution == pixels
    changes = [*STEP, *FEW, *NARROW_TEXT, *NARROW_FLOW, *NARROW[name]]
    out = tmp_path / "out"
    call = ["train", "--profile", name, "--device", "cpu", "--out", str(out), "--set", *changes]
    assert main(call) == 0
    record = json.loads((out / "training.json").read_text(encoding="utf-8"))
    assert set(record["stages"]) == {s for s in STAGES if profile(name).trains(s)}
    model = MedM2G.from_pretrained(out)
    assert model.profile.resolution == pixels
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


# --- Stable Diffusion's weights

SD_CHANGES = [
    *STEP,
    *FEW,
    *NARROW_TEXT,
    *NARROW_FLOW,
    "flow.norm_groups=4",
    "image_codec.channels=8,16",
    "image_codec.norm_groups=4",
    "flow.channels=8,16",
    "flow.attention=true,false",
]


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder laid out like Stable Diffusion's, written by diffusers."""
    folder = tmp_path_factory.mktemp("tiny-stable-diffusion")
    torch.manual_seed(5)
    UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).save_pretrained(folder / "vae")
    return folder


def train(folder: Path, *more: str, changes: list[str] = SD_CHANGES) -> int:
    call = ["train", "--profile", "paper", "--device", "cpu", "--stage", "text_codec"]
    return main([*call, "--out", str(folder), *more, "--set", *changes])


def weights(stable_diffusion: Path) -> dict[str, dict[str, torch.Tensor]]:
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(stable_diffusion, subfolder="vae")
    return {"unet": unet.state_dict(), "vae": vae.state_dict()}


def arrived(model: MedM2G, source: dict[str, dict[str, torch.Tensor]]) -> list[bool]:
    """For each image flow and the autoencoder: whether all its weights are Stable Diffusion's."""
    parts = [(model.flows[m].unet.state_dict(), source["unet"]) for m in ("xray", "ct", "mri")]
    parts.append((model.image_codec.vae.state_dict(), source["vae"]))
    return [
        # the folder of a model holds half precision
        all(torch.equal(own[k].half(), weight.half()) for k, weight in given.items())
        for own, given in parts
    ]


def test_training_starts_from_stable_diffusions_weights(
    stable_diffusion: Path, tmp_path: Path
) -> None:
    source = weights(stable_diffusion)
    flag = ("--start-from-stable-diffusion", str(stable_diffusion))
    assert train(tmp_path / "from", *flag) == 0
    assert all(arrived(MedM2G.from_pretrained(tmp_path / "from"), source))
    record = json.loads((tmp_path / "from" / "training.json").read_text(encoding="utf-8"))
    assert record["stable diffusion"] == stable_diffusion.name
    assert train(tmp_path / "fresh") == 0  # control
    assert not any(arrived(MedM2G.from_pretrained(tmp_path / "fresh"), source))


def test_weights_of_other_shapes_are_refused_with_the_shapes(
    stable_diffusion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = ("--start-from-stable-diffusion", str(stable_diffusion))
    wider = [*SD_CHANGES, "image_codec.channels=8,24"]
    assert train(tmp_path, *flag, changes=wider) != 0
    said = capsys.readouterr().err
    assert "vae does not fit" in said and "(16," in said and "(24," in said
    assert train(tmp_path, *flag, changes=[*SD_CHANGES, "flow.channels=8,24"]) != 0
    assert "unet does not fit" in capsys.readouterr().err
    assert train(tmp_path, "--start-from-stable-diffusion", str(tmp_path / "nothing")) != 0
