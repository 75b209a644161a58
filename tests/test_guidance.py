"""Cross-guidance: which stream guides which, what a dropped guide does, and where attention looks
before any training."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import pictures, speak_up, untrained
from diffusers.models.attention_processor import Attention

from medm2g_core.flows.guidance import (
    CrossGuidedAttnProcessor,
    GuidanceInput,
    Guide,
    SelfAttnProcessor,
    grid_positions,
    install,
)
from medm2g_core.flows.prompt import null_prompt
from medm2g_core.model import MedM2G
from medm2g_core.profiles import FlowConfig, Profile
from medm2g_core.streams import MODALITIES, STREAMS, stream

BATCH = 2
GRID = (4, 4)


def latents(model: MedM2G, names: tuple[str, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(BATCH, *model.latent_shape(n), generator=g) for n in names}


def levels(names: tuple[str, ...], level: float = 0.5) -> dict[str, torch.Tensor]:
    return {n: torch.full((BATCH,), level) for n in names}


def no_prompt(model: MedM2G):
    return null_prompt(BATCH, model.profile.alignment.embed_dim, model.latent_shift)


PAIRS = list(itertools.permutations(("text", "xray", "ct", "mri_t1"), 2))


@pytest.mark.parametrize(("a", "b"), [*PAIRS, ("mri_t1", "mri_t2")])
@torch.no_grad()
def test_the_latent_of_one_stream_changes_the_prediction_of_the_other(model, a, b):
    z = latents(model, (a, b))
    before = model.predict(z, levels((a, b)), [a], no_prompt(model))[a]
    other = {a: z[a], b: z[b] + 1}
    assert not torch.allclose(
        before, model.predict(other, levels((a, b)), [a], no_prompt(model))[a], atol=1e-5
    )


@pytest.mark.parametrize("name", STREAMS)
def test_a_flow_is_never_handed_its_own_environment(model, name, monkeypatch):
    names = tuple(STREAMS)
    handed: list[tuple[str, tuple[int, ...]]] = []
    made: dict[int, str] = {}
    environment = model.environment

    def watch_environment(n, *args):
        guide = environment(n, *args)
        made[id(guide)] = n
        return guide

    def watch_flow(n, z, level, prompt, guides):
        handed.append((n, tuple(sorted(names.index(made[id(g)]) for g in guides))))
        return torch.zeros_like(z)

    monkeypatch.setattr(model, "environment", watch_environment)
    monkeypatch.setattr(model, "flow", watch_flow)
    model.predict(latents(model, names), levels(names), [name], no_prompt(model))
    assert handed == [(name, tuple(i for i, n in enumerate(names) if n != name))]


@torch.no_grad()
def test_a_stream_does_not_reach_itself_through_the_environment_encoder(model):
    """Break the own environment encoder: the prediction must not notice."""
    names = ("xray", "text")
    z = latents(model, names)
    before = model.predict(z, levels(names), ["xray"], no_prompt(model))["xray"]
    for p in model.environments["xray"].parameters():
        p.fill_(float("nan"))
    assert torch.equal(before, model.predict(z, levels(names), ["xray"], no_prompt(model))["xray"])
    for p in model.environments["text"].parameters():  # the control: the other one guides
        p.fill_(float("nan"))
    assert model.predict(z, levels(names), ["xray"], no_prompt(model))["xray"].isnan().all()


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_the_loss_of_one_flow_trains_the_other_environment_and_not_its_own(model, a, b):
    prediction = model.predict(latents(model, (a, b)), levels((a, b)), [a], no_prompt(model))[a]
    prediction.square().mean().backward()

    def gradient(name: str) -> float:
        grads = [p.grad for p in model.environments[stream(name).modality].parameters()]
        return sum(g.abs().sum().item() for g in grads if g is not None)

    assert gradient(b) > 0
    assert gradient(a) == 0


@pytest.mark.parametrize("guidance", ["tokens", "pooled", "adapter", "off"])
@torch.no_grad()
def test_with_gates_at_zero_the_joint_call_equals_separate_calls(smoke, guidance):
    names = ("text", "xray", "ct", "mri_t1", "mri_t2")
    flow = {"guidance": guidance, "gate_start": 0.0, "aligned_map": False}
    model = speak_up(untrained(smoke.replace(flow=flow)))
    z, t = latents(model, names), levels(names)
    joint = model.predict(z, t, names, no_prompt(model))
    for n in names:
        alone = model.predict({n: z[n]}, {n: t[n]}, [n], no_prompt(model))
        assert torch.equal(joint[n], alone[n]), n


@torch.no_grad()
def test_with_gates_at_one_the_joint_call_differs_from_separate_calls(model):
    names = ("text", "xray", "ct", "mri_t1")
    z, t = latents(model, names), levels(names)
    joint = model.predict(z, t, names, no_prompt(model))
    for n in names:
        assert not torch.allclose(
            joint[n], model.predict({n: z[n]}, {n: t[n]}, [n], no_prompt(model))[n], atol=1e-4
        )


@torch.no_grad()
def test_a_dropped_guide_contributes_exactly_nothing(model):
    names = ("text", "xray", "ct")
    z, t = latents(model, names), levels(names)
    alone = model.predict({"xray": z["xray"]}, t, ["xray"], no_prompt(model))["xray"]
    gone = {"text": torch.zeros(BATCH), "ct": torch.zeros(BATCH)}
    assert torch.equal(model.predict(z, t, ["xray"], no_prompt(model), gone)["xray"], alone)
    half = {"text": torch.zeros(BATCH), "ct": torch.tensor([0.0, 1.0])}
    mixed = model.predict(z, t, ["xray"], no_prompt(model), half)["xray"]
    assert torch.equal(mixed[0], alone[0])
    assert not torch.allclose(mixed[1], alone[1], atol=1e-4)


@torch.no_grad()
def test_an_adapter_is_inert_until_it_is_trained(smoke):
    model = untrained(
        smoke.replace(flow={"guidance": "adapter", "aligned_map": False, "gate_start": 1.0})
    )
    with torch.no_grad():
        for m in MODALITIES:  # the flows speak, the adapters keep their zeros
            for name, p in model.flows[m].named_parameters():
                if not p.any() and ".adapt." not in name and ".gate." not in name:
                    p.add_(0.1)
    names = ("text", "xray", "ct", "mri_t1")
    z, t = latents(model, names), levels(names)
    joint = model.predict(z, t, names, no_prompt(model))
    for n in names:
        assert torch.equal(joint[n], model.predict({n: z[n]}, t, [n], no_prompt(model))[n])
    adapters = [p for k, p in model.flows["xray"].named_parameters() if ".adapt." in k]
    assert adapters
    for p in adapters:
        p.add_(0.1)
    alone = model.predict({"xray": z["xray"]}, t, ["xray"], no_prompt(model))["xray"]
    assert not torch.allclose(
        model.predict(z, t, ["xray"], no_prompt(model))["xray"], alone, atol=1e-4
    )


@pytest.mark.parametrize("positions", ["tied", "untied", "none"])
@pytest.mark.parametrize("guidance", ["tokens", "pooled", "adapter", "off"])
@torch.no_grad()
def test_every_guidance_mode_runs_and_survives_the_disk(smoke, guidance, positions, tmp_path):
    if guidance != "tokens" and positions != "tied":
        pytest.skip("positions exist only with tokens")
    model = speak_up(untrained(smoke.replace(flow={"guidance": guidance, "positions": positions})))
    names = ("text", "xray", "ct", "mri_t1", "mri_flair")
    z, t = latents(model, names), levels(names)
    out = model.predict(z, t, names, no_prompt(model))
    assert all(out[n].shape == z[n].shape and out[n].isfinite().all() for n in names)
    model.save_pretrained(tmp_path)
    again = MedM2G.from_pretrained(tmp_path).predict(z, t, names, no_prompt(model))
    assert all(torch.equal(out[n], again[n]) for n in names)


# ---- one layer


def layer(
    smoke: Profile, seed: int = 0, is_grid: bool = True, width: int = 32, **flow
) -> CrossGuidedAttnProcessor:
    config = smoke.replace(flow={"guidance_heads": 1, **flow}).flow
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CrossGuidedAttnProcessor(width, config, is_grid)


def look(
    processor: CrossGuidedAttnProcessor, h: torch.Tensor, tokens: torch.Tensor, grid=GRID
) -> torch.Tensor:
    guide = Guide("ct", tokens, grid, torch.ones(len(h)))
    return processor._look(h, guide, GuidanceInput(torch.zeros(len(h), 1), (guide,), (8, 8)))


def random_layer_input(smoke: Profile) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(BATCH, 64, 32, generator=g), torch.randn(
        BATCH, 16, smoke.flow.env_width, generator=g
    )


@torch.no_grad()
def test_one_key_makes_attention_a_constant_over_places(smoke):
    h, tokens = random_layer_input(smoke)
    seen = look(layer(smoke, guidance="pooled"), h, tokens[:, :1], None)
    assert torch.allclose(seen, seen[:, :1].expand_as(seen), atol=1e-6)
    seen = look(layer(smoke, guidance="tokens"), h, tokens)  # the control: many keys do not
    assert not torch.allclose(seen, seen[:, :1].expand_as(seen), atol=1e-3)


@torch.no_grad()
def test_pooled_guidance_loses_places_and_tokens_keep_them(smoke):
    """Shuffle the cells of the latent that guides: only the order of places changes, not what is in
    them."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    h, tokens = random_layer_input(smoke)
    pooled = layer(smoke, guidance="pooled")
    mean = tokens.mean(1, keepdim=True), tokens[:, order].mean(1, keepdim=True)
    assert torch.allclose(look(pooled, h, mean[0], None), look(pooled, h, mean[1], None), atol=1e-5)
    placed = layer(smoke, guidance="tokens", positions="tied")
    assert not torch.allclose(look(placed, h, tokens), look(placed, h, tokens[:, order]), atol=1e-2)
    unplaced = layer(smoke, guidance="tokens", positions="none")  # no position: a set of tokens
    assert torch.allclose(look(unplaced, h, tokens), look(unplaced, h, tokens[:, order]), atol=1e-5)


def test_the_number_of_environment_tokens_is_one_if_pooled_and_the_grid_otherwise(smoke):
    for guidance, n in (("tokens", 16), ("pooled", 1)):
        model = untrained(smoke.replace(flow={"guidance": guidance}))
        z = latents(model, ("ct", "text"))
        guide = model.environment("ct", z["ct"], torch.zeros(BATCH), torch.ones(BATCH))
        assert guide.tokens.shape[1] == n
        assert guide.grid == (GRID if n > 1 else None)
        text = model.environment("text", z["text"], torch.zeros(BATCH), torch.ones(BATCH))
        assert text.tokens.shape[1] == (smoke.text_codec.latent_tokens if n > 1 else 1)


@torch.no_grad()
def test_the_environment_encoder_is_told_the_noise_level_and_the_contrast(model):
    z = latents(model, ("mri_t1",))["mri_t1"]
    ones = torch.ones(BATCH)
    clean = model.environment("mri_t1", z, 0 * ones, ones).tokens
    assert not torch.allclose(clean, model.environment("mri_t1", z, ones, ones).tokens, atol=1e-3)
    assert not torch.allclose(
        clean, model.environment("mri_t2", z, 0 * ones, ones).tokens, atol=1e-3
    )


def attention_near(
    processor: CrossGuidedAttnProcessor, query: tuple[int, int], key: tuple[int, int]
) -> float:
    """Mean attention mass within one key cell of the query's own place, for random content."""
    g = torch.Generator().manual_seed(5)
    n, m = query[0] * query[1], key[0] * key[1]
    q = processor.to_q(torch.randn(8, n, processor.to_q.in_features, generator=g))
    k = processor.to_k(torch.randn(8, m, processor.to_k.in_features, generator=g))
    if hasattr(processor, "q_position"):
        q = q + processor.q_position(grid_positions(query))
        k = k + processor.k_position(grid_positions(key))
    weight = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # (8, n, m)

    def centres(grid: tuple[int, int]) -> torch.Tensor:
        axes = [(torch.arange(c) + 0.5) / c for c in grid]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)

    distance = (centres(query)[:, None] - centres(key)[None]).abs().amax(-1)  # (n, m)
    return (weight * (distance <= 1.01 / key[0])).sum(-1).mean().item()


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("query", "key"), [((8, 8), (8, 8)), ((4, 4), (8, 8)), ((16, 16), (8, 8))])
def test_tied_positions_look_at_the_same_place_before_training(smoke, seed, query, key):
    tied = attention_near(layer(smoke, seed, width=64, positions="tied"), query, key)
    untied = attention_near(layer(smoke, seed, width=64, positions="untied"), query, key)
    none = attention_near(layer(smoke, seed, width=64, positions="none"), query, key)
    assert tied > 2.5 * none, (tied, none)
    assert tied > 2 * untied, (tied, untied)
    assert none < 0.2


@torch.no_grad()
def test_all_grids_share_one_frame():
    """The centre of a 2 x 2 block of cells has the phase of the coarse cell: sines agree in the
    mean direction."""
    fine, coarse = grid_positions((8, 8)), grid_positions((4, 4))
    block = (
        fine.unflatten(0, (8, 8)).unfold(0, 2, 2).unfold(1, 2, 2).mean((-1, -2)).flatten(0, 1)
    )  # (16, 32)
    similarity = (
        torch.nn.functional.normalize(coarse, dim=1) @ torch.nn.functional.normalize(block, dim=1).T
    )
    assert (similarity.argmax(1) == torch.arange(16)).all()
    assert grid_positions((3, 5)).shape == (15, 32)


def test_positions_are_computed_once_and_can_be_trained_with_after_inference():
    grid_positions.cache_clear()
    with torch.inference_mode():
        first = grid_positions((4, 6))
    assert grid_positions((4, 6)) is first
    linear = torch.nn.Linear(first.shape[1], 2)
    linear(first).sum().backward()  # an inference tensor could not be kept for this
    assert linear.weight.grad is not None


def test_a_wrong_latent_size_is_refused(smoke):
    h, tokens = random_layer_input(smoke)
    guide = Guide("ct", tokens, GRID, torch.ones(BATCH))
    with pytest.raises(ValueError, match="no level of a latent"):
        layer(smoke)._look(h, guide, GuidanceInput(torch.zeros(BATCH, 1), (guide,), (7, 9)))


def test_cross_guided_attention_without_guidance_equals_diffusers_own(smoke):
    """Same weights, no guide: the processor is the plain attention to the prompt."""
    torch.manual_seed(0)
    attention = Attention(query_dim=32, cross_attention_dim=24, heads=2, dim_head=16)
    h, context = torch.randn(BATCH, 9, 32), torch.randn(BATCH, 5, 24)
    plain = attention(h, encoder_hidden_states=context)
    attention.set_processor(layer(smoke))
    own = attention(h, encoder_hidden_states=context, guidance=GuidanceInput(torch.zeros(BATCH, 5)))
    assert torch.allclose(plain, own, atol=1e-5)
    with pytest.raises(ValueError, match="guidance"):
        attention(h, encoder_hidden_states=context)


def test_install_puts_guidance_into_cross_attention_only(model):
    seen = {True: 0, False: 0}
    for attention in (m for m in model.flows["ct"].modules() if isinstance(m, Attention)):
        guided = isinstance(attention.processor, CrossGuidedAttnProcessor)
        assert guided == bool(attention.is_cross_attention)
        assert guided or isinstance(attention.processor, SelfAttnProcessor)
        seen[guided] += 1
    assert seen[True] == seen[False] > 0
    gates = [n for n, _ in model.flows["ct"].named_parameters() if ".gate." in n]
    assert len(gates) == len(MODALITIES) * seen[True]  # one a layer and modality


def test_a_profile_without_attention_is_refused():
    with pytest.raises(ValueError, match="attention"):
        FlowConfig(channels=(8, 8), attention=(False, False))


def test_install_is_per_module(smoke):
    module = torch.nn.Sequential(
        Attention(query_dim=32, cross_attention_dim=24, heads=2, dim_head=16)
    )
    install(module, smoke.flow, is_grid=True)
    assert isinstance(module[0].processor, CrossGuidedAttnProcessor)


@pytest.mark.cuda
@torch.no_grad()
def test_the_joint_call_agrees_on_cpu_and_cuda(model):
    names = ("text", "xray", "ct", "mri_t1")
    z, t = latents(model, names), levels(names)
    raw = {"xray": pictures(BATCH)}
    from medm2g_core.flows.prompt import mix

    cpu = model.predict(z, t, names, mix(model.embed(raw)))
    model.cuda()
    there = {n: x.cuda() for n, x in z.items()}, {n: x.cuda() for n, x in t.items()}
    cuda = model.predict(*there, names, mix(model.embed(raw)))
    for n in names:
        assert torch.allclose(cpu[n], cuda[n].cpu(), atol=2e-3, rtol=2e-2), n


def test_maps_at_the_first_convolution_are_channel_concatenation(model):
    """One convolution over the channels of the latent and of both maps gives what the parts give
    together."""
    flow = model.flows["mri"]
    first, kernels = flow.unet.conv_in, [flow.maps["ct"], flow.maps["mri_t1"]]
    g = torch.Generator().manual_seed(0)
    z = torch.randn(BATCH, first.in_channels, 8, 8, generator=g)
    maps = [torch.randn(BATCH, k.in_channels, 8, 8, generator=g) for k in kernels]
    added = sum(k(x) for k, x in zip(kernels, maps, strict=True))
    weight = torch.cat(
        [first.weight, *[torch.nn.functional.pad(k.weight, (1, 1, 1, 1)) for k in kernels]], 1
    )
    bias = first.bias + sum(k.bias for k in kernels)
    whole = torch.nn.functional.conv2d(torch.cat([z, *maps], 1), weight, bias, padding=1)
    assert torch.allclose(first(torch.cat([z, added], 1)), whole, atol=1e-5)
    assert not torch.allclose(first(z), whole, atol=1e-2)


@torch.no_grad()
def test_a_map_acts_where_it_lies_and_not_before_it_is_trained(smoke):
    """With attention off the map is the only way for a guide; a change in one corner is seen there
    first."""
    quiet = untrained(smoke.replace(flow={"guidance": "off"}))
    names = ("ct", "mri_t2")
    z, t = latents(quiet, names), levels(names)
    other = {"ct": z["ct"].clone(), "mri_t2": z["mri_t2"]}
    other["ct"][..., :2, :2] += 3
    loud = untrained(smoke.replace(flow={"guidance": "off"}))
    for p in (loud.flows["mri"].unet.conv_out.weight, loud.flows["mri"].maps["ct"].weight):
        p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    change = []
    for model in (quiet, loud):
        with_a_voice = model.flows["mri"].unet.conv_out.weight
        with_a_voice.copy_(loud.flows["mri"].unet.conv_out.weight)
        a, b = (model.predict(x, t, ["mri_t2"], no_prompt(model))["mri_t2"] for x in (z, other))
        change.append((a - b).abs().mean((0, 1)))
    assert change[0].max() == 0
    near, far = change[1][:3, :3].mean(), change[1][-3:, -3:].mean()
    assert near > 2 * far


def test_words_have_no_map_and_a_profile_may_do_without(smoke):
    with_map, without = untrained(smoke), untrained(smoke.replace(flow={"aligned_map": False}))
    for name, there in (("text", False), ("ct", True)):
        for model, expected in ((with_map, there), (without, False)):
            z = latents(model, (name,))[name]
            guide = model.environment(name, z, torch.zeros(BATCH), torch.ones(BATCH))
            assert (guide.map is not None) == expected
    assert len(without.flows["ct"].maps) == 0
