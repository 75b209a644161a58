"""The model on disk and at its borders: identical after loading, and clear refusals."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import pictures, reports, untrained

from medm2g_core.flows.prompt import mix
from medm2g_core.model import FORMAT_VERSION, PARTS, CheckpointError, MedM2G
from medm2g_core.profiles import PROFILES, Profile, profile
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS, StreamError


@torch.no_grad()
def outputs(model: MedM2G) -> dict[str, torch.Tensor]:
    """Something of every part: embeddings, latents, pictures, predictions."""
    raw = {"text": reports(2), "ct": pictures(2)}
    z = {n: model.encode(n, v) for n, v in raw.items()} | {
        "xray": model.encode("xray", pictures(2, seed=1))
    }
    t = {n: torch.full((2,), 0.5, dtype=model.dtype) for n in z}
    out = model.predict(z, t, list(z), mix(model.embed(raw)))
    out |= {f"z.{n}": x for n, x in z.items()} | {"picture": model.decode("ct", z["ct"])}
    return out | {f"h.{n}": e.pooled for n, e in model.embed(raw).items()}


@pytest.fixture
def standardised(model) -> MedM2G:
    model.fit_standardisation({n: 3 + 2 * torch.randn(8, 4, 8, 8) for n in ("xray", "ct")})
    return model


@pytest.fixture
def folder(standardised, tmp_path):
    standardised.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_a_loaded_model_gives_identical_outputs(standardised, folder):
    again = MedM2G.from_pretrained(folder)
    assert again.profile == standardised.profile and not again.training
    a, b = outputs(standardised), outputs(again)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert again.decode("text", a["z.text"]) == standardised.decode("text", a["z.text"])
    own, other = standardised.state_dict(), again.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[k], other[k]) for k in own)


def test_half_precision_on_disk_is_half_the_size_and_close(standardised, folder, tmp_path):
    standardised.save_pretrained(tmp_path / "half", dtype=torch.float16)
    size = {
        f: sum(p.stat().st_size for p in f.glob("*.safetensors"))
        for f in (folder, tmp_path / "half")
    }
    assert size[tmp_path / "half"] < 0.6 * size[folder]
    again = MedM2G.from_pretrained(tmp_path / "half")
    assert torch.equal(
        again.latent_scale, standardised.latent_scale
    )  # standardisation is kept exactly
    a, b = outputs(standardised), outputs(again)
    assert all(torch.allclose(a[k], b[k], atol=2e-2, rtol=2e-2) for k in a)


def test_a_model_can_run_in_half_precision(folder):
    model = MedM2G.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert all(v.isfinite().all() for v in outputs(model).values())


def test_every_tensor_lies_in_exactly_one_file(model):
    names = [k for p in PARTS for k in model.part(p)]
    tied = []  # the output layer is the input embedding, and lies in the file under one name
    for owner in ("text_codec", "writer"):
        decoder = model.get_submodule(f"{owner}.decoder")
        assert decoder.lm_head.weight is decoder.transformer.wte.weight
        tied.append(f"{owner}.decoder.lm_head.weight")
    assert sorted([*names, *tied]) == sorted(model.state_dict())
    with pytest.raises(KeyError, match="unknown part"):
        model.part("decoder")


def test_parts_can_be_saved_alone(model, tmp_path):
    model.save_pretrained(tmp_path, parts=["xray"])
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["xray.safetensors"]
    MedM2G.from_pretrained(tmp_path, parts=["xray"])


def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(file, fail)
    assert file.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.json"]


# ---- damaged folders


def test_an_empty_folder_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MedM2G.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", [*(f"{p}.safetensors" for p in PARTS), "tokenizer.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        MedM2G.from_pretrained(folder)


@pytest.mark.parametrize(
    "name", ["ct.safetensors", "image_codec.safetensors", "tokenizer.json", "config.json"]
)
def test_a_truncated_file_is_named(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=name):
        MedM2G.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_a_config_that_is_something_else_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        MedM2G.from_pretrained(folder)


def edit_config(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_another_version_is_refused(folder):
    edit_config(folder, lambda c: c.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(CheckpointError, match=f"format {FORMAT_VERSION + 1}"):
        MedM2G.from_pretrained(folder)


def test_an_unknown_setting_is_refused(folder):
    edit_config(folder, lambda c: c["profile"]["flow"].update(new_setting=1))
    with pytest.raises(CheckpointError, match="another model version"):
        MedM2G.from_pretrained(folder)


def test_other_shapes_are_refused_with_the_first_tensor_named(folder, smoke, tmp_path):
    untrained(smoke.replace(flow={"env_width": 16})).save_pretrained(
        tmp_path / "other", parts=["ct"]
    )
    (folder / "ct.safetensors").write_bytes((tmp_path / "other" / "ct.safetensors").read_bytes())
    with pytest.raises(
        CheckpointError,
        match=r"ct\.safetensors does not fit this profile: \d+ tensors differ, first ",
    ):
        MedM2G.from_pretrained(folder)


def test_a_latent_scale_of_zero_is_refused(model, tmp_path):
    model.latent_scale.zero_()
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="scale must be positive"):
        MedM2G.from_pretrained(tmp_path)


# ---- inputs


def test_pictures_and_names_that_do_not_fit_are_refused(model):
    with pytest.raises(StreamError, match="this model needs"):
        model.encode("ct", pictures(1, size=64))
    with pytest.raises(StreamError, match="outside"):
        model.encode("ct", 3 * pictures(1))
    with pytest.raises(StreamError, match="unknown stream"):
        model.encode("pet", pictures(1))


def test_a_tokenizer_that_is_too_large_is_refused(model, smoke):
    with pytest.raises(ValueError, match="room for"):
        MedM2G(smoke.replace(text_codec={"vocab_size": 300}), model.tokenizer)


@torch.no_grad()
def test_standardisation_makes_unit_latents_and_is_undone_by_decoding(model):
    image = pictures(16, seed=4)
    model.fit_standardisation({"ct": model.image_codec.encode(image)})
    z = model.encode("ct", image)
    assert z.mean((0, 2, 3)).abs().max() < 1e-3 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-2
    plain = model.image_codec.decode(model.image_codec.encode(image)).clamp(-1, 1)
    assert torch.allclose(model.decode("ct", z), plain, atol=1e-4)
    assert torch.equal(
        model.encode("xray", image), model.image_codec.encode(image)
    )  # others keep their own


# ---- profiles


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_survives_json_and_copying(name):
    p = profile(name)
    assert Profile.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    assert copy.deepcopy(p) == p


def test_replace_changes_one_setting_and_leaves_the_profile_alone(smoke):
    other = smoke.replace(flow={"guidance": "pooled"})
    assert (other.flow.guidance, smoke.flow.guidance) == ("pooled", "tokens")
    assert other.replace(flow={"guidance": "tokens"}) == smoke


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="known: smoke, cpu, base, gpu, paper"):
        profile("huge")


def test_the_model_of_every_stream_has_a_latent_shape(model):
    assert {n: len(model.latent_shape(n)) for n in STREAMS} == {
        n: 3 if s.is_image else 2 for n, s in STREAMS.items()
    }


@pytest.mark.cuda
def test_outputs_agree_on_cpu_and_cuda(standardised):
    a = outputs(standardised)
    standardised.cuda()
    raw = {"text": reports(2), "ct": pictures(2)}
    for n, v in raw.items():
        assert torch.allclose(standardised.encode(n, v).cpu(), a[f"z.{n}"], atol=2e-3, rtol=2e-2)
