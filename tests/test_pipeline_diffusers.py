"""The pipeline as diffusers' own tests ask of theirs (its ``test_pipelines_common.py``): outputs,
callbacks, progress, saving, devices."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from conftest import pictures, speak_up, untrained
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from pipeline_helpers import STEPS, inputs, same, seeded

from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GOutput, MedM2GPipeline


@pytest.fixture(scope="module")
def pipe(smoke) -> MedM2GPipeline:
    out = MedM2GPipeline(speak_up(untrained(smoke)))
    out.set_progress_bar_config(disable=True)
    return out


def test_the_call_has_the_arguments_of_a_diffusers_pipeline():
    parameters = inspect.signature(MedM2GPipeline.__call__).parameters
    expected = (
        "num_inference_steps guidance_scale num_images_per_prompt generator latents output_type"
        " return_dict callback_on_step_end callback_on_step_end_tensor_inputs"
    )
    for name in expected.split():
        assert parameters[name].default is not inspect.Parameter.empty, name


# ---- outputs


def test_dict_and_tuple_outputs_are_the_same(pipe):
    out = pipe(**inputs())
    streams, latents = pipe(**inputs(), return_dict=False)
    assert isinstance(out, MedM2GOutput)
    assert same(out.streams, streams) and same(out.latents, latents)
    assert same(out[0], streams) and same(out["streams"], streams)
    assert torch.equal(out["xray"], streams["xray"])


def test_pt_np_and_pil_show_the_same_picture(pipe):
    pt, array, pil = (pipe(**inputs(2, output_type=t))["xray"] for t in ("pt", "np", "pil"))
    assert pt.shape == (2, 1, 32, 32) and pt.min() < -0.01 and pt.abs().max() <= 1
    assert array.shape == (2, 32, 32, 1) and array.dtype == np.float32
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    for picture, values in zip(pil, array, strict=True):
        assert picture.mode == "L" and picture.size == (32, 32)
        assert np.abs(np.asarray(picture) - (values[..., 0] + 1) / 2 * 255).max() <= 0.51


@pytest.mark.parametrize("output_type", ["np", "pil"])
def test_reports_are_words_whatever_the_form_of_the_pictures(pipe, output_type):
    out = pipe({"ct": pictures(2)}, ["text"], num_inference_steps=1, output_type=output_type)
    assert len(out["text"]) == 2 and all(isinstance(t, str) for t in out["text"])


def test_the_latent_output_is_not_decoded(pipe, monkeypatch):
    expected = pipe(**inputs())
    monkeypatch.setattr(MedM2G, "decode", lambda *_: pytest.fail("something was decoded"))
    out = pipe(**inputs(output_type="latent"))
    assert same(out.streams, expected.latents) and same(out.latents, expected.latents)


# ---- batches


@pytest.mark.parametrize("studies", [1, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_num_images_per_prompt_draws_so_many_for_each_study(pipe, studies, count):
    out = pipe(**inputs(studies, num_images_per_prompt=count))
    assert all(len(images) == studies * count for images in out.streams.values())


def test_num_images_per_prompt_is_num_samples(pipe):
    one = {"given": {}, "generator": seeded(0, 1)}
    a = pipe(**inputs() | one, num_samples=2)
    b = pipe(**inputs() | one | {"generator": seeded(0, 1)}, num_images_per_prompt=2)
    c = pipe(**inputs() | one | {"generator": seeded(0, 1)}, num_samples=2, num_images_per_prompt=2)
    assert same(a.streams, b.streams) and same(a.streams, c.streams)
    with pytest.raises(ValueError, match="two names of one setting"):
        pipe(**inputs(), num_samples=2, num_images_per_prompt=3)


def test_a_study_alone_and_in_a_batch_gives_the_same(pipe):
    alone, together = pipe(**inputs(1)), pipe(**inputs(3))
    for n in alone.streams:
        assert len(together[n]) == 3
        assert torch.allclose(alone[n][0], together[n][0], atol=1e-4)


def test_without_and_with_guidance_the_outputs_have_one_shape(pipe):
    plain, guided = (pipe(**inputs(guidance_scale=g))["xray"] for g in (1.0, 7.5))
    assert plain.shape == guided.shape and not torch.allclose(plain, guided, atol=1e-3)


# ---- noise


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_latents_are_the_starting_noise(pipe, order):
    shapes = {n: (1, *pipe.model.latent_shape(n)) for n in inputs()["want"]}
    (g,) = seeded(0)
    noise = {n: torch.randn(s, generator=g) for n, s in shapes.items()}
    drawn = pipe(**inputs(order=order, generator=seeded(0)[0]))
    told = pipe(**inputs(order=order, generator=seeded(9), latents=noise))
    assert same(drawn.streams, told.streams)
    half = pipe(**inputs(order=order, generator=seeded(9), latents={"xray": noise["xray"]}))
    if order == "cascade":  # the X-ray comes first and does not see the MR
        assert torch.equal(half["xray"], drawn["xray"])
    assert not torch.allclose(half["mri_t1"], drawn["mri_t1"], atol=1e-3)


# ---- callbacks


@pytest.mark.parametrize("order", ["joint", "cascade"])
@pytest.mark.parametrize("best_of", [1, 2])
def test_the_callback_sees_every_step_of_the_call(pipe, order, best_of):
    seen = []
    out = pipe(
        **inputs(order=order, best_of=best_of),
        callback_on_step_end=lambda *each: seen.append(each),
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
    )
    runs = best_of * (2 if order == "cascade" else 1)
    assert pipe.num_timesteps == runs * STEPS
    assert [s[1] for s in seen] == list(range(pipe.num_timesteps))
    assert all(s[0] is pipe for s in seen)
    times = [float(s[2]) for s in seen[:STEPS]]
    assert times[0] == 1000 and times == sorted(times, reverse=True) and times[-1] > 0
    assert [float(s[2]) for s in seen] == times * runs
    for i, (*_, tensors) in enumerate(seen):
        now = {"xray", "mri_t1"} if order == "joint" else {["xray", "mri_t1"][i // STEPS % 2]}
        assert set(tensors) == {"latents", "denoised"}
        assert all(set(t) == now for t in tensors.values())
    if best_of == 1:
        assert torch.equal(seen[-1][3]["latents"]["mri_t1"], out.latents["mri_t1"])


def test_the_callback_gets_only_the_tensors_that_it_asks_for(pipe):
    seen = []
    pipe(**inputs(), callback_on_step_end=lambda *each: seen.append(set(each[3])))
    assert seen == [{"latents"}] * STEPS
    seen.clear()
    pipe(
        **inputs(),
        callback_on_step_end=lambda *each: seen.append(set(each[3])),
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [set()] * STEPS


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_returned_latents_are_obeyed(pipe, order):
    def silence_the_xray(pipe, i, t, tensors):
        if "xray" in tensors["latents"]:
            tensors["latents"]["xray"] = torch.zeros_like(tensors["latents"]["xray"])
        return tensors

    plain = pipe(**inputs(order=order))
    out = pipe(**inputs(order=order), callback_on_step_end=silence_the_xray)
    assert not out.latents["xray"].any() and plain.latents["xray"].any()
    assert out.latents["mri_t1"].any()  # and the flow of the MR goes on from the new X-ray:
    assert not torch.allclose(out.latents["mri_t1"], plain.latents["mri_t1"], atol=1e-3)


def test_a_callback_that_returns_what_it_got_changes_nothing(pipe):
    out = pipe(**inputs(), callback_on_step_end=lambda pipe, i, t, tensors: tensors)
    assert same(out.streams, pipe(**inputs()).streams)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (True, "returned True"),
        ({"latents": torch.zeros(1)}, "needed a dict"),
        ({"latents": {"ct": torch.zeros(1)}}, "unknown stream"),
        ({"latents": {"xray": torch.zeros(1)}}, "needed a tensor"),
    ],
)
def test_returned_latents_that_do_not_fit_are_refused(pipe, returned, message):
    with pytest.raises(ValueError, match=message):
        pipe(**inputs(), callback_on_step_end=lambda *_: returned)
    bad = {"latents": {"xray": torch.full((1, *pipe.model.latent_shape("xray")), torch.nan)}}
    with pytest.raises(ValueError, match="NaN"):
        pipe(**inputs(), callback_on_step_end=lambda *_: bad)


def test_a_callback_can_change_the_guidance(pipe):
    def increase(pipe, i, t, tensors):
        pipe._guidance_scale += 1.0
        return tensors

    out = pipe(**inputs(guidance_scale=2.0), callback_on_step_end=increase)
    assert pipe.guidance_scale == 2.0 + pipe.num_timesteps
    assert not torch.allclose(out["xray"], pipe(**inputs(guidance_scale=2.0))["xray"], atol=1e-3)

    def switch(pipe, i, t, tensors):  # off after the first step: as if it were 1 from there
        pipe._guidance_scale = 1.0

    first = []
    out = pipe(**inputs(guidance_scale=3.0), callback_on_step_end=switch)
    pipe(**inputs(guidance_scale=3.0), callback_on_step_end=lambda *each: first.append(each[3]))
    rest = pipe(
        **inputs(guidance_scale=1.0),
        callback_on_step_end=lambda pipe, i, t, tensors: first[0] if i == 0 else None,
    )
    assert torch.allclose(out["xray"], rest["xray"], atol=1e-5)


def test_a_callback_object_of_diffusers_names_its_own_tensors(pipe):
    seen = []

    class Watch(PipelineCallback):
        @property
        def tensor_inputs(self) -> list[str]:
            return ["denoised"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            seen.append(set(callback_kwargs))
            return callback_kwargs

    pipe(**inputs(), callback_on_step_end=Watch())
    assert seen == [{"denoised"}] * STEPS


# ---- interrupting


@pytest.mark.parametrize("order", ["joint", "cascade"])
@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_call_ends_within_the_step(pipe, order, at):
    steps, wanted = [], {}

    def stop(pipe, i, t, tensors):
        steps.append(i)
        if i == at:
            wanted.update(tensors["latents"])
            pipe._interrupt = True

    out = pipe(**inputs(order=order), callback_on_step_end=stop)
    assert steps == list(range(at + 1)) and pipe.interrupt
    assert set(out.streams) == {"xray", "mri_t1"}  # noisy as they are, but all there
    assert all(torch.equal(out.latents[n], z) for n, z in wanted.items())
    assert same(pipe(**inputs()).streams, pipe(**inputs()).streams) and not pipe.interrupt


@pytest.mark.parametrize("at", [0, STEPS, 2 * STEPS - 1])
def test_of_an_interrupted_best_of_the_finished_draws_count(pipe, at):
    def stop(pipe, i, t, tensors):
        pipe._interrupt = i >= at

    out = pipe(**inputs(best_of=3), callback_on_step_end=stop)
    if at == 0:
        assert not torch.equal(out["xray"], pipe(**inputs())["xray"])
    else:  # the second draw was not finished, or its last step was the one that was stopped
        assert same(out.streams, pipe(**inputs()).streams)


# ---- progress


@pytest.mark.parametrize("order", ["joint", "cascade"])
@pytest.mark.parametrize("best_of", [1, 2])
def test_the_progress_bar_runs_exactly_through_its_total(pipe, order, best_of, monkeypatch):
    bars = []
    own = DiffusionPipeline.progress_bar

    def record(self, iterable=None, total=None):
        bars.append(own(self, iterable, total))
        return bars[-1]

    monkeypatch.setattr(DiffusionPipeline, "progress_bar", record)
    loud = MedM2GPipeline(pipe.model)
    loud(**inputs(order=order, best_of=best_of))
    (bar,) = bars
    assert bar.n == bar.total == loud.num_timesteps
    assert bar.total == STEPS * best_of * (2 if order == "cascade" else 1)


def test_the_progress_bar_is_shown_unless_it_is_switched_off(pipe, capsys):
    loud = MedM2GPipeline(pipe.model)
    loud.set_progress_bar_config(desc="drawing")
    loud(**inputs())
    assert "drawing" in capsys.readouterr().err
    loud.set_progress_bar_config(disable=True)
    loud(**inputs())
    assert capsys.readouterr().err == ""
