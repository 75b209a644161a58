"""The codecs: shapes, exact tokenizer, and that one small batch can be learned by heart."""

from __future__ import annotations

import pytest
import torch
from conftest import pictures, reports, untrained

from medm2g_core.codecs.image import ImageCodec, image_codec_loss
from medm2g_core.codecs.text import BOS_ID, EOS_ID, PAD_ID, text_codec_loss
from medm2g_core.codecs.tokenizer import TextTooLongError, encode_texts, train_tokenizer
from medm2g_core.profiles import ImageCodecConfig, TextCodecConfig

# ---- tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(reports(40), 512)


@pytest.mark.parametrize(
    "text",
    [
        "Findings: a 14 mm nodule.",
        "Ärztin: 3,5 × 2 cm",
        "  two  spaces\nand a line",
        "😀 x",
        *reports(5, seed=9),
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids).strip() == text.strip()


def test_special_tokens_have_the_ids_that_the_codec_expects(tokenizer):
    ids, mask = encode_texts(tokenizer, ["short", "a rather longer text than that"], 128)
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>"]) == [PAD_ID, BOS_ID, EOS_ID]
    assert (ids[:, 0] == BOS_ID).all()
    last = mask.sum(1) - 1
    assert (ids[torch.arange(2), last] == EOS_ID).all() and (ids[mask == 0] == PAD_ID).all()


def test_digits_are_single_tokens(tokenizer):
    tokens = tokenizer.tokenize("a mass of 123 mm")
    assert not any(sum(c.isdigit() for c in t) > 1 for t in tokens)


def test_a_text_that_is_too_long_is_refused_and_never_cut(tokenizer):
    with pytest.raises(TextTooLongError, match=r"at most 8"):
        encode_texts(tokenizer, ["short", "one two three four five six seven eight nine"], 8)


def test_the_same_texts_give_the_same_tokenizer():
    a, b = (train_tokenizer(reports(40), 512).backend_tokenizer.to_str() for _ in range(2))
    assert a == b


# ---- images


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
@pytest.mark.parametrize("channels", [(8, 16), (8, 8, 16)])
@torch.no_grad()
def test_latent_and_picture_have_the_promised_shapes(unshuffle, channels):
    config = ImageCodecConfig(
        resolution=32, unshuffle=unshuffle, channels=channels, norm_groups=4, latent_channels=3
    )
    codec = ImageCodec(config)
    z = codec.encode(pictures(2))
    assert z.shape == (2, 3, config.latent_size, config.latent_size)
    assert codec.decode(z).shape == (2, 1, 32, 32)


@torch.no_grad()
def test_three_pixel_channels_take_and_give_grey(smoke):
    codec = ImageCodec(
        ImageCodecConfig(
            resolution=32, unshuffle=1, channels=(8, 8), norm_groups=4, pixel_channels=3
        )
    )
    assert codec.vae.config.in_channels == 3
    assert codec.decode(codec.encode(pictures(1))).shape == (1, 1, 32, 32)


def test_a_picture_of_a_wrong_size_is_refused(model):
    with pytest.raises(ValueError, match="multiples of 4"):
        model.image_codec.encode(torch.zeros(1, 1, 30, 32))
    with pytest.raises(ValueError, match="no multiple"):
        ImageCodecConfig(resolution=30)


def fit(parameters, loss_of, lr: float, steps: int) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


def test_the_image_codec_learns_one_batch_by_heart_and_frozen_weights_do_not(model):
    codec, image = model.image_codec, pictures(4)
    noise = torch.zeros(4, *model.latent_shape("xray"))

    def loss():
        return image_codec_loss(codec, image, noise)[0]

    first, last = fit(codec.parameters(), loss, 0.0, 2)
    assert last == pytest.approx(first)
    first, last = fit(codec.parameters(), loss, 1e-2, 100)
    assert last < 0.2 * first, (first, last)
    with torch.no_grad():
        assert (codec.decode(codec.encode(image)) - image).square().mean() < 0.05 * image.var()


# ---- reports


@torch.no_grad()
def test_the_text_latent_has_unit_scale_and_ignores_padding(model):
    texts = sorted(reports(12), key=len)
    alone, padded = model.encode("text", texts[:1]), model.encode("text", [texts[0], texts[-1]])
    assert alone.shape == (1, *model.latent_shape("text"))
    assert torch.allclose(alone[0], padded[0], atol=1e-4)
    assert torch.allclose(alone.std(-1, correction=0), torch.ones(alone.shape[:2]), atol=1e-2)


@torch.no_grad()
def test_the_decoder_reads_the_latent_and_does_not_look_ahead(model):
    ids, _ = model.tokens(reports(2))
    z = torch.randn(2, *model.latent_shape("text"))
    logits = model.text_codec.logits(ids, z)
    assert not torch.allclose(logits, model.text_codec.logits(ids, -z), atol=1e-3)
    later = ids.clone()
    later[:, 10:] = 7
    assert torch.allclose(logits[:, :10], model.text_codec.logits(later, z)[:, :10], atol=1e-5)


def test_the_text_codec_learns_four_reports_to_an_exact_round_trip_and_frozen_weights_do_not(smoke):
    profile = smoke.replace(text_codec={"width": 64, "latent_noise": 0.05, "word_dropout": 0.1})
    model = untrained(profile)
    codec, texts = model.text_codec, reports(4)
    ids, mask = model.tokens(texts)

    def loss():
        return text_codec_loss(codec, ids, mask)[0]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        fit(codec.parameters(), loss, 0.0, 2)
        assert model.decode("text", model.encode("text", texts)) != texts
        first, last = fit(codec.parameters(), loss, 3e-3, 150)
    assert last < 0.2 * first, (first, last)
    assert model.decode("text", model.encode("text", texts)) == texts
    swapped = model.decode("text", model.encode("text", texts)[[1, 0, 3, 2]])
    assert swapped == [texts[i] for i in (1, 0, 3, 2)]  # the latent decides, not the language model


def test_impossible_text_codecs_are_refused():
    with pytest.raises(ValueError, match="heads"):
        TextCodecConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="at least 96"):
        TextCodecConfig(max_length=64)


@torch.no_grad()
def test_padding_is_no_word_of_the_bag(model):
    """A bias that says "padding is there" must cost, whether a batch is padded or not."""
    codec, texts = model.text_codec, sorted(reports(12), key=len)
    ids, mask = model.tokens([texts[0], texts[-1]])
    assert (ids == PAD_ID).any()
    bags = []
    for bias in (-20.0, 20.0):
        codec.bag.bias[PAD_ID] = bias
        torch.manual_seed(0)
        bags.append(text_codec_loss(codec, ids, mask)[1]["bag"])
    assert bags[0] < bags[1]
