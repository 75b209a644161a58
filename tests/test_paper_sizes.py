"""The ``paper`` profile has the published sizes, and Stable Diffusion's weights fit; nothing is
downloaded.

Counted on the meta device, so no memory is used. Figures: Stable Diffusion 1.x UNet 859,520,964 and
autoencoder 83,653,863; CLIP ViT-L/14 text transformer 123,060,480 and vision transformer
303,179,776; BERT-base 109,482,240 with its pooler; GPT-2 124,439,808.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from conftest import untrained
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from medm2g_core.model import MedM2G
from medm2g_core.profiles import profile


class TokenizerStub(SimpleNamespace):
    def __len__(self) -> int:
        return 49408


@pytest.fixture(scope="module")
def paper() -> MedM2G:
    with torch.device("meta"):
        return MedM2G(profile("paper"), cast(PreTrainedTokenizerFast, TokenizerStub()))


def count(module: nn.Module, *without: str) -> int:
    return sum(p.numel() for n, p in module.named_parameters() if not any(w in n for w in without))


def test_nothing_of_the_paper_model_takes_memory(paper):
    assert all(p.is_meta for p in paper.parameters())


@pytest.mark.parametrize("modality", ["xray", "ct"])
def test_the_unet_is_stable_diffusions(paper, modality):
    assert count(paper.flows[modality].unet, ".processor.") == 859_520_964


def test_the_mri_unet_adds_a_contrast_embedding(paper):
    assert count(paper.flows["mri"].unet, ".processor.", "class_embedding") == 859_520_964
    assert count(paper.flows["mri"].unet.class_embedding) == 4 * 1280


def test_the_image_autoencoder_is_stable_diffusions_kl_f8(paper):
    assert count(paper.image_codec.vae) == 83_653_863
    assert profile("paper").image_codec.factor == 8


def test_the_prompt_encoders_are_clip_vit_l_14(paper):
    assert count(paper.alignment.encoders["text"].model) == 123_060_480
    for m in ("xray", "ct", "mri"):
        assert count(paper.alignment.encoders[m].vit) == 303_179_776


def test_the_text_codec_is_bert_base_and_gpt2_with_cross_attention(paper):
    """BERT-base has 30,522 word pieces and 512 positions; ours shares GPT-2's 50,257 and 1,024, and
    has no pooler."""
    codec, d = paper.text_codec, 768
    pooler = d * d + d
    assert count(codec.encoder) == 109_482_240 - pooler + (50_257 - 30_522 + 1024 - 512) * d
    gpt2 = cast(GPT2LMHeadModel, codec.decoder)
    cross = ("crossattention", "ln_cross_attn")
    assert count(gpt2, *cross) == 124_439_808
    # query d x d, key and value d x 2d, output d x d, each with a bias, and a layer norm
    assert count(gpt2) - count(gpt2, *cross) == 12 * (
        d * d + d + 2 * d * d + 2 * d + d * d + d + 2 * d
    )


def test_the_text_latent_is_one_vector_of_768_in_four_pseudo_tokens(paper):
    assert paper.latent_shape("text") == (1, 768) and paper.flows["text"].place.shape == (4, 768)
    assert paper.latent_shape("ct") == (4, 64, 64)


# ---- Stable Diffusion folders


UNET = {
    "channels": (8, 16),
    "attention": (True, False),
    "layers": 2,
    "head_dim": 2,
    "norm_groups": 4,
}
VAE = {
    "unshuffle": 1,
    "pixel_channels": 3,
    "channels": (8, 16),
    "layers": 2,
    "norm_groups": 4,
    "mid_attention": True,
}


@pytest.fixture
def stable_diffusion(tmp_path):
    """A small folder laid out like Stable Diffusion's, written by diffusers."""
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
    ).save_pretrained(tmp_path / "unet")
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
    ).save_pretrained(tmp_path / "vae")
    return tmp_path


def test_stable_diffusions_weights_fit(smoke, stable_diffusion):
    model = untrained(smoke.replace(image_codec=VAE, flow=UNET))
    model.image_codec.load_stable_diffusion(str(stable_diffusion))
    vae = AutoencoderKL.from_pretrained(stable_diffusion, subfolder="vae").state_dict()
    own = model.image_codec.vae.state_dict()
    assert own.keys() == vae.keys() and all(torch.equal(own[k], vae[k]) for k in vae)
    unet = UNet2DConditionModel.from_pretrained(stable_diffusion, subfolder="unet").state_dict()
    for m in ("xray", "mri"):
        flow = model.flows[m]
        before = {k: v.clone() for k, v in flow.state_dict().items()}
        flow.load_stable_diffusion(str(stable_diffusion))
        after = flow.state_dict()
        assert all(torch.equal(after[f"unet.{k}"], unet[k]) for k in unet)
        kept = [k for k in after if k.removeprefix("unet.") not in unet]
        assert any(".processor." in k for k in kept) and any("prompt" in k for k in kept)
        assert all(torch.equal(after[k], before[k]) for k in kept)


@pytest.mark.parametrize("change", [{"channels": (8, 24)}, {"layers": 1}, {"layers": 3}])
def test_weights_of_another_size_are_refused(smoke, stable_diffusion, change):
    wrong = untrained(smoke.replace(image_codec=VAE | change, flow=UNET | change))
    with pytest.raises(ValueError, match="does not fit this profile"):
        wrong.flows["xray"].load_stable_diffusion(str(stable_diffusion))
    with pytest.raises(ValueError, match="does not fit this profile"):
        wrong.image_codec.load_stable_diffusion(str(stable_diffusion))


def test_a_folder_without_weights_is_refused(model, tmp_path):
    with pytest.raises(OSError):
        model.flows["xray"].load_stable_diffusion(str(tmp_path))
    with pytest.raises(OSError):
        model.image_codec.load_stable_diffusion(str(tmp_path))
