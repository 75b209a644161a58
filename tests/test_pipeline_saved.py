"""The pipeline on disk, on devices and compiled, as diffusers' own tests ask of theirs."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures, speak_up, untrained
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.utils import dynamic_modules_utils
from pipeline_helpers import STEPS, inputs, same, seeded

from medm2g_core.flows.prompt import null_prompt
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GPipeline

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pipe(smoke) -> MedM2GPipeline:
    out = MedM2GPipeline(speak_up(untrained(smoke)))
    out.set_progress_bar_config(disable=True)
    return out


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


def test_a_saved_tokenizer_does_not_depend_on_what_was_encoded_with_it(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "before")
    pipe.model.tokenizer(
        ["short", "a longer text"], padding="max_length", max_length=20, truncation=True
    )
    pipe.save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / n / "tokenizer.json").read_bytes() for n in ("before", "after"))
    assert before == after
