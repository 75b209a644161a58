"""The noise schedule and the sampler: exact ends, one joint call a step, seeds, guidance
algebra."""

from __future__ import annotations

import pytest
import torch
from conftest import pictures, reports, speak_up, untrained

from medm2g_core.flows.prompt import Prompt, mix, null_prompt
from medm2g_core.flows.schedule import NoiseSchedule
from medm2g_core.model import MedM2G
from medm2g_core.profiles import ConditioningConfig
from medm2g_core.sampling import SampleStep, draw_noise, sample_latents

OBJECTIVES = ("flow", "epsilon", "v_prediction")
B = 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- schedule


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_level_zero_is_exactly_clean(objective):
    z0, eps = torch.randn(2, 5, 3, 4, generator=seeded())
    assert torch.equal(NoiseSchedule(objective).add_noise(z0, eps, torch.zeros(5)), z0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_level_one_is_nearly_pure_noise(objective):
    z0, eps = torch.randn(2, 5, 3, 4, generator=seeded())
    a, s = NoiseSchedule(objective).coefficients(torch.ones(5), z0)
    assert (a < 0.07).all() and (s > 0.99).all()
    assert objective != "flow" or torch.equal(
        NoiseSchedule(objective).add_noise(z0, eps, torch.ones(5)), eps
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_target_leads_back_to_the_clean_latent(objective):
    schedule = NoiseSchedule(objective)
    z0, eps = torch.randn(2, 64, 3, 4, generator=seeded())
    t = schedule.sample_levels(64, seeded(1))
    zt = schedule.add_noise(z0, eps, t)
    assert torch.allclose(schedule.denoised(zt, schedule.target(z0, eps, t), t), z0, atol=1e-4)
    wrong = schedule.denoised(zt, schedule.target(z0, eps, t) + 1, t)
    assert not torch.allclose(wrong, z0, atol=1e-2)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_the_scheduler_with_a_perfect_predictor_recovers_the_clean_latent(objective, steps):
    z, z0 = run_perfect_predictor(objective, steps)
    assert torch.allclose(z, z0, atol=2e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_number_of_steps_that_does_not_divide_1000_is_off_by_less_than_a_training_step(objective):
    """diffusers' DDIM walks in whole training steps, so 7 steps of 142 end just short of the clean
    latent."""
    z, z0 = run_perfect_predictor(objective, 7)
    assert torch.allclose(z, z0, atol=2e-4 if objective == "flow" else 0.1)


def run_perfect_predictor(objective: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    schedule = NoiseSchedule(objective)
    z0 = torch.randn(4, 3, 5, generator=seeded())
    eps = torch.randn(z0.shape, generator=seeded(1))
    scheduler, levels = schedule.scheduler(steps)
    z = schedule.add_noise(z0, eps, torch.full((4,), levels[0]))
    for i, level in enumerate(levels):
        prediction = schedule.target(z0, eps, torch.full((4,), level))
        z = scheduler.step(prediction, scheduler.timesteps[i], z).prev_sample
    return z, z0


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_levels_fall_from_one(objective, steps):
    levels = NoiseSchedule(objective).scheduler(steps)[1]
    assert len(levels) == steps and levels[0] == 1.0
    assert all(a > b > 0 for a, b in zip([1.01, *levels], levels, strict=False))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_levels_lie_inside_the_range_and_follow_the_generator(objective):
    schedule = NoiseSchedule(objective)
    t = schedule.sample_levels(2000, seeded(3))
    assert t.min() > 0 and t.max() <= 1
    config = ConditioningConfig()
    if objective == "flow":  # logit-normal, denser where noise is high
        assert t.logit().mean() == pytest.approx(config.level_mean, abs=0.1)
        assert t.logit().std() == pytest.approx(config.level_std, abs=0.1)
        assert (t > 0.5).float().mean() > 0.6
    else:
        assert abs(t.mean() - 0.5) < 0.03
    assert torch.equal(t, schedule.sample_levels(2000, seeded(3)))


@pytest.mark.parametrize("level", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_a_preconditioned_network_sees_and_owes_unit_variance_at_every_level(level):
    schedule = NoiseSchedule("flow")
    g = torch.Generator().manual_seed(0)
    z0, eps = torch.randn(2, 400, 4, 4, 4, generator=g).unbind()
    t = torch.full((len(z0),), level)
    zt, target = schedule.add_noise(z0, eps, t), schedule.target(z0, eps, t)
    c_in, c_skip, c_out = schedule.precondition(t, zt)
    owed = (target - c_skip * zt) / c_out
    assert (c_in * zt).std() == pytest.approx(1, abs=0.03)
    assert owed.std() == pytest.approx(1, abs=0.03)
    assert (owed * zt).mean().abs() < 0.02  # nothing linear in z_t is left to learn
    if level == 1.0:
        assert torch.allclose(owed, -z0, atol=1e-5)  # the noise need not be handed through
    assert target.std() > 1.2 or level == 0.0  # the control: bare targets are larger


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
def test_other_objectives_are_used_as_they_are(objective):
    z = torch.ones(2, 3, 4, 4)
    c_in, c_skip, c_out = NoiseSchedule(objective).precondition(torch.tensor([0.2, 0.9]), z)
    assert (c_in == 1).all() and (c_out == 1).all() and (c_skip == 0).all()


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="unknown objective"):
        NoiseSchedule("score")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        NoiseSchedule().scheduler(0)


# ---- sampler


@pytest.fixture(scope="module")
def speaker(smoke) -> MedM2G:
    """One model for the tests that only read it."""
    return speak_up(untrained(smoke))


@pytest.fixture
def text_prompt(speaker) -> Prompt:
    return mix(speaker.embed({"text": reports(B)}))


@pytest.fixture
def given(speaker) -> dict[str, torch.Tensor]:
    return {"text": speaker.encode("text", reports(B)), "ct": speaker.encode("ct", pictures(B))}


def nothing(model: MedM2G, batch: int = B) -> Prompt:
    return null_prompt(batch, model.profile.alignment.embed_dim, model.latent_shift)


class Counter:
    """The model, with a log of its joint calls: (streams in, batch, wanted, levels)."""

    def __init__(self, model: MedM2G) -> None:
        self.model, self.calls = model, []

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def predict(self, latents, levels, want, prompt, present=None):
        self.calls.append(
            (
                tuple(latents),
                len(prompt.pooled),
                tuple(want),
                {n: t.tolist() for n, t in levels.items()},
                {n: z.clone() for n, z in latents.items()},
            )
        )
        return self.model.predict(latents, levels, want, prompt, present)


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_given_latents_are_left_alone_and_not_returned(speaker, text_prompt, given, order):
    before = {n: z.clone() for n, z in given.items()}
    out = sample_latents(
        speaker, given, ["xray", "mri_t1"], text_prompt, steps=3, order=order, generator=seeded()
    )
    assert list(out) == ["xray", "mri_t1"]
    assert all(torch.equal(given[n], before[n]) for n in given)


def test_given_streams_enter_every_step_clean_and_bit_identical(speaker, text_prompt, given):
    counter = Counter(speaker)
    sample_latents(
        counter, given, ["xray"], text_prompt, steps=3, guidance_scale=2.0, generator=seeded()
    )
    for _, _, _, levels, latents in counter.calls:
        assert levels["text"] == levels["ct"] == [0.0] * (2 * B)
        for n in given:
            assert torch.equal(latents[n], given[n].repeat(2, *[1] * (given[n].ndim - 1)))


@pytest.mark.parametrize(
    ("scale", "cross", "copies"), [(1.0, None, 1), (1.0, 1.0, 1), (2.0, None, 2), (2.0, 3.0, 3)]
)
def test_joint_sampling_makes_one_joint_call_a_step(
    speaker, text_prompt, given, scale, cross, copies
):
    counter = Counter(speaker)
    sample_latents(
        counter,
        given,
        ["xray", "mri_t1"],
        text_prompt,
        steps=4,
        guidance_scale=scale,
        cross_guidance_scale=cross,
        generator=seeded(),
    )
    assert len(counter.calls) == 4
    assert all(batch == copies * B for _, batch, *_ in counter.calls)
    assert all(want == ("xray", "mri_t1") for _, _, want, *_ in counter.calls)
    assert all(set(seen) == {"text", "ct", "xray", "mri_t1"} for seen, *_ in counter.calls)


def test_without_any_condition_no_copy_of_the_batch_is_made(speaker):
    counter = Counter(speaker)
    sample_latents(
        counter, {}, ["xray"], nothing(speaker), steps=2, guidance_scale=5.0, generator=seeded()
    )
    assert [batch for _, batch, *_ in counter.calls] == [B, B]


def test_wanted_streams_share_their_noise_level_in_joint_order(speaker):
    counter = Counter(speaker)
    sample_latents(counter, {}, ["xray", "ct"], nothing(speaker), steps=5, generator=seeded())
    assert all(levels["xray"] == levels["ct"] for *_, levels, _ in counter.calls)


def test_cascade_uses_the_finished_stream_as_a_clean_guide(speaker, text_prompt, given):
    counter = Counter(speaker)
    out = sample_latents(
        counter,
        {"text": given["text"]},
        ["ct", "xray"],
        text_prompt,
        steps=3,
        guidance_scale=1.0,
        order="cascade",
        generator=seeded(),
    )
    assert [want for _, _, want, *_ in counter.calls] == [("ct",)] * 3 + [("xray",)] * 3
    for seen, _, _, levels, latents in counter.calls[3:]:
        assert set(seen) == {"text", "ct", "xray"}
        assert levels["ct"] == [0.0] * B
        assert torch.equal(latents["ct"], out["ct"])
    assert "ct" in counter.calls[0][0] and "xray" not in counter.calls[0][0]


def test_the_same_seed_draws_the_same_sample_and_another_seed_another(speaker, text_prompt):
    def draw(seed):
        return sample_latents(
            speaker, {}, ["ct", "text"], text_prompt, steps=3, generator=seeded(seed)
        )

    a, b, c = draw(0), draw(0), draw(1)
    assert all(torch.equal(a[n], b[n]) and not torch.allclose(a[n], c[n], atol=1e-2) for n in a)


def test_sampling_leaves_the_global_generator_alone(speaker, text_prompt):
    state = torch.random.get_rng_state()
    sample_latents(speaker, {}, ["ct"], text_prompt, steps=2, generator=seeded())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_with_a_generator_each_a_sample_does_not_depend_on_its_batch(speaker, order):
    texts = reports(3)

    def draw(which: list[int]) -> dict[str, torch.Tensor]:
        prompt = mix(speaker.embed({"text": [texts[i] for i in which]}))
        return sample_latents(
            speaker,
            {},
            ["xray", "text"],
            prompt,
            steps=3,
            order=order,
            generator=[seeded(100 + i) for i in which],
        )

    together, alone = draw([0, 1, 2]), draw([1])
    for n in alone:
        assert torch.allclose(together[n][1], alone[n][0], atol=1e-4), n
        assert not torch.allclose(together[n][0], alone[n][0], atol=1e-2), n


def test_the_number_of_generators_must_match_the_batch():
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        draw_noise((3, 4), [seeded(), seeded()], torch.zeros(1))


def test_the_callback_sees_every_step_and_finite_latents(speaker, text_prompt, given):
    seen: list[SampleStep] = []
    out = sample_latents(
        speaker, given, ["xray"], text_prompt, steps=6, generator=seeded(), callback=seen.append
    )
    assert [s.step for s in seen] == list(range(6)) and {s.total for s in seen} == {6}
    assert [s.level for s in seen] == sorted((s.level for s in seen), reverse=True)
    assert all(
        s.latents["xray"].isfinite().all() and s.denoised["xray"].isfinite().all() for s in seen
    )
    assert torch.equal(seen[-1].latents["xray"], out["xray"])
    assert not torch.equal(seen[0].latents["xray"], seen[-1].latents["xray"])


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0])
def test_three_way_guidance_with_equal_scales_is_the_two_way(speaker, text_prompt, given, scale):
    def draw(cross: float | None) -> torch.Tensor:
        return sample_latents(
            speaker,
            given,
            ["xray"],
            text_prompt,
            steps=3,
            guidance_scale=scale,
            cross_guidance_scale=cross,
            generator=seeded(),
        )["xray"]

    assert torch.allclose(draw(None), draw(scale), atol=1e-4)
    assert not torch.allclose(draw(None), draw(scale + 2), atol=1e-2)


def test_guidance_scale_one_is_the_conditional_prediction(speaker, text_prompt, given):
    """The guided formula at scale 1 (forced through three copies) equals the single call."""
    out = [
        sample_latents(
            speaker, given, ["xray"], text_prompt, steps=2, guidance_scale=g, generator=seeded()
        )["xray"]
        for g in (1.0, 1.0 + 1e-6)
    ]
    assert torch.allclose(*out, atol=1e-4)


def test_guidance_scale_zero_ignores_everything_given(speaker, text_prompt, given):
    free = sample_latents(speaker, {}, ["xray"], nothing(speaker), steps=2, generator=seeded())[
        "xray"
    ]
    bound = sample_latents(
        speaker, given, ["xray"], text_prompt, steps=2, guidance_scale=0.0, generator=seeded()
    )
    assert torch.allclose(free, bound["xray"], atol=1e-4)


def test_noise_scale_zero_starts_every_sample_at_the_same_point(speaker):
    out = sample_latents(
        speaker, {}, ["ct"], nothing(speaker), steps=2, noise_scale=0.0, generator=seeded()
    )["ct"]
    assert torch.allclose(out[0], out[1], atol=1e-5)


def test_an_unknown_order_is_refused(speaker, text_prompt):
    with pytest.raises(ValueError, match="unknown order"):
        sample_latents(speaker, {}, ["ct"], text_prompt, order="zigzag")  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_samples_finite_latents(smoke, objective):
    model = speak_up(untrained(smoke.replace(flow={"objective": objective})))
    prompt = mix(model.embed({"text": reports(B)}))
    out = sample_latents(
        model, {}, ["ct", "text"], prompt, steps=4, guidance_scale=1.5, generator=seeded()
    )
    assert all(z.isfinite().all() for z in out.values())


@pytest.mark.cuda
def test_a_seed_starts_at_the_same_noise_on_cpu_and_cuda():
    cpu = draw_noise((2, 3), seeded(), torch.zeros(1))
    assert torch.equal(cpu, draw_noise((2, 3), seeded(), torch.zeros(1, device="cuda")).cpu())
