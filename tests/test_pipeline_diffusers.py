"""The pipeline as diffusers' own tests ask of theirs (its ``test_pipelines_common.py``): outputs,
callbacks, progress, saving, devices."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import pictures, reports, speak_up, untrained
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.callbacks import PipelineCallback
from diffusers.utils import dynamic_modules_utils

from medm2g_core.flows.prompt import null_prompt
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GOutput, MedM2GPipeline

STEPS = 3
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pipe(smoke) -> MedM2GPipeline:
    out = MedM2GPipeline(speak_up(untrained(smoke)))
    out.set_progress_bar_config(disable=True)
    return out


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def inputs(studies: int = 1, **settings: Any) -> dict[str, Any]:
    """The same call each time: a CT and a report in, an X-ray and an MR out."""
    count = studies * settings.get("num_images_per_prompt", 1)
    return {
        "given": {"text": reports(3)[:studies], "ct": pictures(3)[:studies]},
        "want": ["xray", "mri_t1"],
        "num_inference_steps": STEPS,
        "generator": seeded(*range(count)),
    } | settings


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[n], b[n]) if isinstance(a[n], torch.Tensor) else a[n] == b[n] for n in a
    )


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


# ---- saving and loading


def test_a_saved_pipeline_loads_in_both_ways_and_draws_bit_for_bit_the_same(
    pipe, tmp_path, monkeypatch
):
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe.save_pretrained(tmp_path / "saved")
    expected = pipe(**inputs())
    generic = DiffusionPipeline.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    for again in (MedM2GPipeline.from_pretrained(tmp_path / "saved"), generic):
        again.set_progress_bar_config(disable=True)
        assert type(again) is MedM2GPipeline and not again.model.training
        assert again.model.profile == pipe.model.profile and again.dtype == torch.float32
        own, other = pipe.model.state_dict(), again.model.state_dict()
        assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)
        assert same(again(**inputs()).streams, expected.streams)
    generic.save_pretrained(tmp_path / "twice")
    files = sorted(p.name for p in (tmp_path / "saved").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "twice").iterdir())
    for name in files:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_diffusers_alone_finds_the_class_in_the_folder(pipe, tmp_path):
    """In a process that has imported nothing of ours."""
    pipe.save_pretrained(tmp_path / "saved")
    code = (
        "import sys, torch; from diffusers import DiffusionPipeline;"
        " assert 'medm2g_core' not in sys.modules;"
        " pipe = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16,"
        " trust_remote_code=True); print(type(pipe).__module__, type(pipe).__name__, pipe.dtype)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["medm2g_core.pipeline", "MedM2GPipeline", "torch.bfloat16"]


def test_diffusers_asks_for_consent_before_it_loads_a_class_from_a_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_a_folder_of_the_model_alone_is_enough_for_the_pipeline(pipe, tmp_path):
    pipe.model.save_pretrained(tmp_path)
    again = MedM2GPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert same(again(**inputs()).streams, pipe(**inputs()).streams)


@pytest.mark.skipif(not SHIPPED_WEIGHTS.is_dir(), reason="the shipped weights are in a clone only")
def test_the_shipped_weights_load():
    shipped = MedM2GPipeline.from_pretrained()
    assert shipped.model.profile.name == "cpu" and shipped.dtype == torch.float32


def test_the_type_of_the_weights_has_both_of_its_names(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert MedM2GPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    old = MedM2GPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert old.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="one option"):
        MedM2GPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "option", [{"device_map": "balanced"}, {"use_safetensors": False}, {"revision": "main"}]
)
def test_options_that_nothing_would_follow_are_refused(pipe, tmp_path, option):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no such option"):
        MedM2GPipeline.from_pretrained(tmp_path, **option)
    with pytest.raises(ValueError, match="no pickles"):
        pipe.save_pretrained(tmp_path, safe_serialization=False)


# ---- the model, devices, compiling


def test_components_make_another_pipeline_of_the_same_model(pipe):
    assert list(pipe.components) == ["model"]
    other = MedM2GPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert other.model is pipe.model and same(other(**inputs()).streams, pipe(**inputs()).streams)


def test_the_model_is_one_of_diffusers(pipe):
    model = pipe.model
    assert isinstance(model, ModelMixin) and isinstance(model, ConfigMixin)
    assert model.num_parameters() == sum(p.numel() for p in model.parameters())
    assert model.config["profile"] == model.profile.to_dict()
    again = MedM2G.from_config(model.config, tokenizer=model.tokenizer)
    assert again.profile == model.profile
    assert again.state_dict().keys() == model.state_dict().keys()


def test_to_device_and_to_dtype(pipe):
    moved = MedM2GPipeline(copy.deepcopy(pipe.model))
    moved.set_progress_bar_config(disable=True)
    assert moved.device == torch.device("cpu") and moved.dtype == torch.float32
    assert moved.to("meta").device == torch.device("meta")
    half = MedM2GPipeline(copy.deepcopy(pipe.model)).to(dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.dtype == torch.bfloat16
    assert all(p.dtype == torch.bfloat16 for p in half.model.parameters())
    for n, images in half(**inputs()).streams.items():
        assert images.isfinite().all(), n
        assert (images.float() - pipe(**inputs())[n]).abs().mean() < 0.1
    assert half(**inputs(output_type="np"))["xray"].dtype == np.float32


@pytest.mark.parametrize("given", [True, False])
def test_model_offload_attaches_and_leaves_the_result(pipe, given):
    """On the CPU nothing can move; the hook must be asked before the first use all the same."""
    options = {} if given else {"given": {}, "num_samples": 1}
    offloaded = MedM2GPipeline(copy.deepcopy(pipe.model))
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload(device="cpu")
    asked = []
    hook = offloaded.model._hf_hook
    hook.pre_forward, own = lambda *a, **k: asked.append(1) or own(*a, **k), hook.pre_forward
    out = offloaded(**inputs() | options)
    assert asked and same(out.streams, pipe(**inputs() | options).streams)
    assert offloaded.model._hf_hook is not hook  # offloaded again at the end of the call


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_flow_draws_the_same_and_is_saved_under_the_same_names(pipe, tmp_path, in_place):
    model = copy.deepcopy(pipe.model)
    if in_place:
        model.flows["text"].compile(backend="eager")
    else:
        model.flows["text"] = torch.compile(model.flows["text"], backend="eager")
    compiled = MedM2GPipeline(model)
    compiled.set_progress_bar_config(disable=True)
    call = {"given": {"ct": pictures(1)}, "want": ["text"], "num_inference_steps": 2}
    a, b = (p(**call, generator=seeded(0)).latents["text"] for p in (compiled, pipe))
    assert torch.allclose(a, b, atol=1e-5)

    compiled.save_pretrained(tmp_path)
    again = MedM2G.from_pretrained(tmp_path).state_dict()
    own = pipe.model.state_dict()
    assert own.keys() == again.keys() and all(torch.equal(own[k], again[k]) for k in own)
    other = untrained(pipe.model.profile, seed=5)
    other.save_pretrained(tmp_path / "other", parts=["text"])
    model.load_part(tmp_path / "other", "text")
    assert all(torch.equal(v, other.part("text")[k]) for k, v in model.part("text").items())


def test_gradient_checkpointing_leaves_the_gradients(pipe):
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(pipe.model).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing is checkpointing
        z = {n: model.encode(n, v) for n, v in inputs()["given"].items()}
        t = {n: torch.full((1,), 0.5) for n in z}
        prompt = null_prompt(1, model.profile.alignment.embed_dim, z["ct"])
        out = model.predict(z, t, list(z), prompt)
        sum(x.square().mean() for x in out.values()).backward()
        return {n: p.grad for n, p in model.flows.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys() and len(plain) > 100
    assert all(torch.allclose(plain[n], checkpointed[n], atol=1e-6) for n in plain)


@pytest.mark.cuda
def test_an_offloaded_pipeline_draws_on_the_gpu_and_goes_back(pipe):
    offloaded = MedM2GPipeline(copy.deepcopy(pipe.model))
    offloaded.set_progress_bar_config(disable=True)
    offloaded.enable_model_cpu_offload()
    devices = []
    out = offloaded(
        **inputs(), callback_on_step_end=lambda p, *_: devices.append(p.model.device.type)
    )
    assert devices == ["cuda"] * STEPS and offloaded.model.device.type == "cpu"
    assert torch.allclose(out["xray"].cpu(), pipe(**inputs())["xray"], atol=2e-2)
