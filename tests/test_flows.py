"""Prompts and the flows themselves: mixing, dropping, what a flow was trained with, shapes,
overfitting."""

from __future__ import annotations

import pytest
import torch
from conftest import pictures, reports, speak_up, untrained

from medm2g_core.flows.prompt import Prompt, mix, null_prompt
from medm2g_core.streams import MODALITIES, STREAMS, stream

B = 2


@pytest.fixture
def embedded(model):
    return model.embed({"text": reports(B), "ct": pictures(B)})


def test_weights_one_and_zero_give_the_single_prompt(embedded):
    for name in embedded:
        other = next(n for n in embedded if n != name)
        single = mix({name: embedded[name]})
        mixed = mix(embedded, {name: 1.0, other: 0.0})
        assert torch.equal(mixed.pooled, single.pooled)
        gone = next(bias for m, _, bias in mixed.details if m == stream(other).modality)
        assert (gone <= -1e4).all()


def test_weights_are_normalised_and_equal_by_default(embedded):
    mean = (embedded["text"].pooled + embedded["ct"].pooled) / 2
    assert torch.allclose(mix(embedded).pooled, mean)
    assert torch.allclose(mix(embedded, {"text": 3.0, "ct": 3.0}).pooled, mean)
    per_sample = mix(embedded, {"text": torch.tensor([1.0, 0.0]), "ct": torch.tensor([0.0, 1.0])})
    assert torch.equal(
        per_sample.pooled, torch.stack([embedded["text"].pooled[0], embedded["ct"].pooled[1]])
    )


@pytest.mark.parametrize("weights", [{"text": -1.0}, {"text": 0.0, "ct": 0.0}, {"xray": 1.0}])
def test_impossible_weights_are_refused(embedded, weights):
    with pytest.raises(ValueError, match="weights"):
        mix(embedded, weights)


def test_nothing_to_mix_is_refused():
    with pytest.raises(ValueError, match="null_prompt"):
        mix({})


@torch.no_grad()
@pytest.mark.parametrize("name", ["text", "xray", "mri_t2"])
def test_a_dropped_prompt_and_no_prompt_give_the_same_prediction(model, embedded, name):
    z, t = torch.randn(B, *model.latent_shape(name)), torch.full((B,), 0.6)
    full = mix(embedded)
    none = null_prompt(B, model.profile.alignment.embed_dim, model.latent_shift)
    a = model.flow(name, z, t, full.drop(torch.zeros(B)), [])
    b = model.flow(name, z, t, none, [])
    assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(a, model.flow(name, z, t, full, []), atol=1e-4)
    mixed = model.flow(name, z, t, full.drop(torch.tensor([1.0, 0.0])), [])
    assert torch.allclose(mixed[1], b[1], atol=1e-5)
    assert not torch.allclose(mixed[0], b[0], atol=1e-4)


@torch.no_grad()
def test_dropping_the_details_keeps_the_pooled_prompt(model, embedded):
    full = mix(embedded)
    bare = Prompt(full.pooled, full.present)
    z, t = torch.randn(B, *model.latent_shape("xray")), torch.full((B,), 0.6)
    a = model.flow("xray", z, t, full.drop(torch.ones(B), torch.zeros(B)), [])
    assert torch.allclose(a, model.flow("xray", z, t, bare, []), atol=1e-5)
    assert not torch.allclose(a, model.flow("xray", z, t, full, []), atol=1e-4)


@torch.no_grad()
def test_padding_of_a_report_says_nothing(model):
    """The same report alone, and padded next to a longer one."""
    texts = sorted(reports(12), key=len)
    short, long = texts[0], texts[-1]
    alone = mix(model.embed({"text": [short]}))
    padded = mix(model.embed({"text": [short, long]}))
    assert padded.details[0][1].shape[1] > alone.details[0][1].shape[1]
    z, t = torch.randn(2, *model.latent_shape("xray")), torch.full((2,), 0.6)
    a = model.flow("xray", z[:1], t[:1], alone, [])
    assert torch.allclose(a[0], model.flow("xray", z, t, padded, [])[0], atol=1e-4)


def test_a_repeated_prompt_keeps_and_drops_whole_copies(embedded):
    many = mix(embedded).repeat([1.0, 0.0])
    assert many.present.tolist() == [1, 1, 0, 0]
    assert torch.equal(many.pooled[:B], many.pooled[B:])
    assert all((bias[B:] <= -1e4).all() for _, _, bias in many.details)


@torch.no_grad()
def test_details_and_guides_of_a_modality_not_trained_with_stay_out_and_the_pooled_prompt_gets_in(
    model, embedded
):
    projection = model.prompt_projection("xray")
    assert all(projection.was_trained_with(m) for m in MODALITIES)
    projection.trained_with[MODALITIES.index("ct")] = 0
    only_ct = mix({"ct": embedded["ct"]})
    context, bias = projection(only_ct)
    assert context.shape[1] == bias.shape[1] == 1
    z = {n: torch.randn(B, *model.latent_shape(n)) for n in ("xray", "ct")}
    t = {n: torch.full((B,), 0.5) for n in z}
    alone = model.predict({"xray": z["xray"]}, t, ["xray"], only_ct)["xray"]
    assert torch.equal(model.predict(z, t, ["xray"], only_ct)["xray"], alone)
    guided = model.predict(z, t, ["xray"], only_ct, untrained_pairs=True)["xray"]
    assert not torch.allclose(guided, alone, atol=1e-4)
    none = null_prompt(B, model.profile.alignment.embed_dim, model.latent_shift)
    assert not torch.allclose(alone, model.flow("xray", z["xray"], t["xray"], none, []), atol=1e-5)


@pytest.mark.parametrize("name", STREAMS)
@torch.no_grad()
def test_a_flow_predicts_in_the_shape_of_its_latent_and_depends_on_the_level(model, name):
    z = torch.randn(B, *model.latent_shape(name))
    none = null_prompt(B, model.profile.alignment.embed_dim, model.latent_shift)
    a, b = (model.flow(name, z, torch.full((B,), t), none, []) for t in (0.1, 0.9))
    assert a.shape == z.shape and not torch.allclose(a, b, atol=1e-4)


@torch.no_grad()
def test_mr_contrasts_share_weights_but_predict_differently(model):
    z, t = torch.randn(B, *model.latent_shape("mri_t1")), torch.full((B,), 0.5)
    none = null_prompt(B, model.profile.alignment.embed_dim, model.latent_shift)
    seen = [model.flow(n, z, t, none, []) for n in ("mri_t1", "mri_t2", "mri_pd", "mri_flair")]
    for i, a in enumerate(seen):
        assert all(not torch.allclose(a, b, atol=1e-5) for b in seen[i + 1 :])


@torch.no_grad()
def test_one_text_vector_can_be_split_into_pseudo_tokens(smoke):
    profile = smoke.replace(
        text_codec={"latent_tokens": 1, "latent_dim": 64}, flow={"text_pseudo_tokens": 4}
    )
    model = speak_up(untrained(profile))
    assert model.latent_shape("text") == (1, 64) and model.flows["text"].place.shape == (4, 32)
    none = null_prompt(B, 32, model.latent_shift)
    assert model.flow("text", torch.randn(B, 1, 64), torch.ones(B), none, []).shape == (B, 1, 64)
    with pytest.raises(ValueError, match="does not split"):
        untrained(smoke.replace(flow={"text_pseudo_tokens": 7}))


def overfit(model, name: str, lr: float, steps: int) -> tuple[float, float]:
    """Mean loss before and after training one flow on four latents at fixed levels and noise."""
    g = torch.Generator().manual_seed(0)
    z0, eps = (torch.randn(4, *model.latent_shape(name), generator=g) for _ in range(2))
    t = torch.tensor([0.2, 0.4, 0.6, 0.8])
    none = null_prompt(4, model.profile.alignment.embed_dim, model.latent_shift)
    zt, target = model.schedule.add_noise(z0, eps, t), model.schedule.target(z0, eps, t)
    optimizer = torch.optim.AdamW(
        model.flows[stream(name).modality].parameters(), lr=lr, weight_decay=0.0
    )
    losses = []
    for _ in range(steps):
        loss = (model.flow(name, zt, t, none, []) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", ["xray", "text"])
def test_a_flow_overfits_four_latents_and_frozen_weights_do_not(smoke, name):
    first, last = overfit(untrained(smoke), name, 5e-3, 50)
    assert last < 0.2 * first, (first, last)
    first, last = overfit(untrained(smoke), name, 0.0, 3)
    assert last == pytest.approx(first)


@pytest.mark.parametrize(
    ("objective", "expected"), [("epsilon", [0, 499, 999]), ("flow", [1, 500, 1000])]
)
@torch.no_grad()
def test_stable_diffusions_unet_is_told_its_own_timesteps(smoke, objective, expected):
    """Its range is 0 .. 999; our levels with its objectives are 1/1000 .. 1."""
    model = untrained(smoke.replace(flow={"objective": objective}))
    seen = []
    model.flows["ct"].unet.time_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    none = null_prompt(3, model.profile.alignment.embed_dim, model.latent_shift)
    z = torch.randn(3, *model.latent_shape("ct"))
    model.flow("ct", z, torch.tensor([0.001, 0.5, 1.0]), none, [])
    assert torch.equal(seen[0], torch.tensor(expected, dtype=torch.float32))
