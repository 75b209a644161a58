"""The pipeline: any given streams, any wanted ones, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import pictures, reports, speak_up, untrained

from medm2g_core import pipeline
from medm2g_core.codecs.tokenizer import TextTooLongError
from medm2g_core.model import CheckpointError
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.streams import IMAGE_STREAMS, StreamError


@pytest.fixture(scope="module")
def pipe(smoke) -> MedM2GPipeline:
    return MedM2GPipeline(speak_up(untrained(smoke)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


REPORT, CT = reports(1)[0], pictures(1)[0]


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({"xray": CT}, ["text"]),
        ({"text": REPORT}, ["xray"]),
        ({"mri_t1": CT, "mri_pd": CT}, ["mri_t2"]),
        ({"mri_t2": CT}, ["ct"]),
        ({"text": REPORT, "ct": CT}, ["xray", "mri_t1"]),
        ({}, ["text", "xray", "ct", "mri_t1"]),
    ],
)
def test_all_five_tasks_are_one_call(pipe, given, want):
    out = pipe(given, want, num_inference_steps=2, generator=seeded())
    assert list(out.streams) == want
    for name in want:
        if name == "text":
            assert len(out[name]) == 1 and isinstance(out[name][0], str)
        else:
            assert (
                out[name].shape == (1, 1, 32, 32)
                and out[name].abs().max() <= 1
                and out[name].isfinite().all()
            )
        assert out.latents[name].shape[1:] == pipe.model.latent_shape(name)


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_the_same_seed_gives_the_same_streams(pipe, order):
    def draw(seed):
        return pipe(
            {"text": REPORT},
            ["xray", "ct"],
            num_inference_steps=2,
            order=order,
            generator=seeded(seed),
        )

    a, b, c = draw(0), draw(0), draw(1)
    assert torch.equal(a["xray"], b["xray"]) and torch.equal(a["ct"], b["ct"])
    assert not torch.equal(a["xray"], c["xray"])


def test_given_images_are_not_modified(pipe):
    image = pictures(2)
    before = image.clone()
    pipe({"ct": image}, ["xray"], num_inference_steps=2, num_samples=2, generator=seeded())
    assert torch.equal(image, before)


def test_samples_come_study_by_study_and_do_not_depend_on_the_batch(pipe):
    texts = reports(2)
    many = pipe(
        {"text": texts},
        ["ct"],
        num_inference_steps=2,
        num_samples=2,
        generator=[seeded(i) for i in range(4)],
    )["ct"]
    second = pipe(
        {"text": texts[1]},
        ["ct"],
        num_inference_steps=2,
        num_samples=2,
        generator=[seeded(2), seeded(3)],
    )["ct"]
    assert many.shape[0] == 4 and torch.allclose(many[2:], second, atol=1e-3)
    assert not torch.allclose(many[0], many[1], atol=1e-2)


def test_the_best_of_several_is_one_of_them_and_the_nearest_to_what_is_given(pipe):
    given = {"text": reports(3)}

    def nearness(images: torch.Tensor) -> torch.Tensor:
        e = pipe.model.embed({**given, "xray": images})
        return (e["text"].pooled * e["xray"].pooled).sum(-1)

    def generators() -> list[torch.Generator]:
        return [seeded(i) for i in range(3)]

    g = generators()  # drawn one after the other from the same generators: the candidates
    each = torch.stack(
        [pipe(given, ["xray"], num_inference_steps=2, generator=g)["xray"] for _ in range(4)]
    )
    scores = torch.stack([nearness(x) for x in each])  # (4, 3)
    best = pipe(given, ["xray"], num_inference_steps=2, generator=generators(), best_of=4)
    expected = torch.stack([each[k, i] for i, k in enumerate(scores.argmax(0).tolist())])
    assert torch.allclose(best["xray"], expected, atol=1e-5)
    assert (
        len(set(scores.argmax(0).tolist())) > 1
        and (scores.max(0).values > scores.min(0).values).all()
    )
    assert torch.allclose(pipe.model.decode("xray", best.latents["xray"]), expected, atol=1e-5)


def test_several_streams_and_reports_can_be_the_best_of_several(pipe):
    out = pipe({"ct": CT}, ["text", "xray"], num_inference_steps=2, generator=seeded(), best_of=2)
    assert len(out["text"]) == 1 and out["xray"].shape == (1, 1, 32, 32)


def test_a_weight_of_zero_silences_a_prompt_but_its_stream_still_guides(pipe):
    def draw(report: str, scale: float):
        return pipe(
            {"text": report, "ct": CT},
            ["xray"],
            num_inference_steps=2,
            guidance_scale=1.0,
            prompt_weights={"text": scale, "ct": 1.0},
            generator=seeded(),
        )["xray"]

    other = reports(4)[3]
    assert not torch.allclose(draw(REPORT, 1.0), draw(other, 1.0), atol=1e-4)
    assert not torch.equal(draw(REPORT, 0.0), draw(other, 0.0))  # as a guide


def test_a_saved_pipeline_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = MedM2GPipeline.from_pretrained(tmp_path)
    a, b = (
        p({"text": REPORT}, ["ct", "mri_t2"], num_inference_steps=2, generator=seeded())
        for p in (pipe, again)
    )
    assert torch.equal(a["ct"], b["ct"]) and torch.equal(a["mri_t2"], b["mri_t2"])


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "SHIPPED_WEIGHTS", tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"):
        MedM2GPipeline.from_pretrained()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        MedM2GPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("given", "want", "message"),
    [
        ({"text": REPORT}, [], "nothing is wanted"),
        ({"text": REPORT}, None, "must be a list"),
        ({"text": REPORT}, "ct", "must be a list"),
        ({"text": REPORT}, {"ct"}, "must be a list"),
        ({"text": REPORT}, [["ct"]], "must be a list"),
        ({"text": REPORT}, ["text"], "given and wanted"),
        ({"text": REPORT}, ["ct", "ct"], "twice"),
        ({"pet": CT}, ["ct"], "unknown stream 'pet'"),
        ({"text": REPORT}, ["pet"], "unknown stream 'pet'"),
        (REPORT, ["ct"], "needed a dict"),
        ({"text": " "}, ["ct"], "none of them empty"),
        ({"text": []}, ["ct"], "none of them empty"),
        ({"text": None}, ["ct"], "none of them empty"),
        ({"text": 5}, ["ct"], "none of them empty"),
        ({"text": b"Findings"}, ["ct"], "none of them empty"),
        ({"xray": "a path"}, ["ct"], "needed a tensor"),
        ({"xray": None}, ["ct"], "needed a tensor"),
        ({"xray": CT.numpy()}, ["ct"], "needed a tensor"),
        ({"xray": CT[None][:0]}, ["ct"], "empty tensor"),
        ({"xray": pictures(1, size=64)}, ["ct"], "this model needs"),
        ({"xray": 5 * CT}, ["ct"], "outside"),
        ({"xray": CT.expand(3, -1, -1)}, ["ct"], "needed"),
        ({"xray": CT[0]}, ["ct"], "needed"),
        ({"xray": (127 * CT).to(torch.int8)}, ["ct"], "needed a float tensor"),
        ({"xray": CT.masked_fill(CT > 0.5, torch.nan)}, ["ct"], "NaN"),
        ({"text": [REPORT, REPORT], "xray": CT}, ["ct"], "different sizes"),
    ],
)
def test_impossible_requests_are_refused(pipe, given, want, message):
    with pytest.raises(StreamError, match=message):
        pipe(given, want, num_inference_steps=1)


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_a_picture_in_0_to_1_is_refused_and_both_ranges_are_named(pipe, name):
    """Read as -1..1 it would have half its contrast, and the score of reports is halved too."""
    want = ["ct" if name != "ct" else "xray"]
    pair = pictures(2)
    pair[1] = (pair[1] + 1) / 2
    with pytest.raises(StreamError, match=r"picture 1 .* 0\.\.1 .*needed -1\.\.1.*multiply by 2"):
        pipe({name: pair}, want, num_inference_steps=1)
    pair[1] = pair[1] * 2 - 1
    pipe({name: pair}, want, num_inference_steps=1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((n, v) for n in ("num_samples", "best_of") for v in (0, -1, 1.5, torch.nan, "2", True)),
        ("num_inference_steps", 0),
        ("num_inference_steps", -3),
        ("num_inference_steps", 2.0),
        ("num_inference_steps", None),
        *(
            (n, v)
            for n in ("guidance_scale", "cross_guidance_scale", "noise_scale")
            for v in (torch.nan, torch.inf, "2", [2.0])
        ),
        ("guidance_scale", None),
        ("noise_scale", -0.1),
        ("prompt_weights", {"text": torch.nan}),
        ("prompt_weights", {"text": -1.0}),
        ("prompt_weights", {"text": 0.0}),
        ("prompt_weights", {"text": "much"}),
        ("prompt_weights", {"mri_t1": 1.0}),
        ("prompt_weights", [1.0]),
        ("order", "zigzag"),
        ("order", None),
        ("output_type", "jpeg"),
        ("generator", 3),
        ("generator", [3]),
        ("generator", []),
        ("generator", [seeded(), seeded()]),
        ("latents", torch.zeros(1, 4, 8, 8)),
        ("latents", {"ct": torch.zeros(1, 4, 8, 8)}),
        ("latents", {"xray": torch.zeros(1, 1, 1, 1)}),
        ("latents", {"xray": "noise"}),
        ("callback_on_step_end_tensor_inputs", ["prompt_embeds"]),
    ],
)
def test_settings_that_are_none_are_refused_by_name(pipe, setting, value):
    with pytest.raises(ValueError, match=setting.replace("_", "[_ ]").removesuffix("s")):
        pipe({"text": REPORT}, ["xray"], **{"num_inference_steps": 1, setting: value})


def test_numbers_of_numpy_are_numbers(pipe):
    options = {"num_inference_steps": np.int64(2), "guidance_scale": np.float32(2)}
    a = pipe({"text": REPORT}, ["xray"], generator=seeded(), **options)["xray"]
    b = pipe({"text": REPORT}, ["xray"], generator=seeded(), num_inference_steps=2)["xray"]
    assert torch.equal(a, b)


def test_the_best_of_several_needs_something_to_differ_and_to_compare_with(pipe):
    noise = torch.zeros(1, *pipe.model.latent_shape("xray"))
    with pytest.raises(StreamError, match="nothing is given"):
        pipe({}, ["xray"], best_of=2)
    with pytest.raises(StreamError, match="all the same"):
        pipe({"text": REPORT}, ["xray"], best_of=2, latents={"xray": noise})


def test_a_report_that_is_too_long_is_refused(pipe):
    with pytest.raises(TextTooLongError, match="shorten"):
        pipe({"text": "word " * 400}, ["ct"])


def test_a_list_of_generators_has_one_for_each_output(pipe):
    with pytest.raises(ValueError, match="2 generators for 1 outputs"):
        pipe({}, ["ct"], generator=[seeded(), seeded()], num_inference_steps=1)


@pytest.mark.parametrize("name", IMAGE_STREAMS)
def test_every_image_stream_can_be_given_and_wanted(pipe, name):
    other = next(n for n in IMAGE_STREAMS if n != name)
    assert pipe({name: CT}, [other], num_inference_steps=1, generator=seeded())[other].shape == (
        1,
        1,
        32,
        32,
    )
    assert pipe({other: CT}, [name], num_inference_steps=1, generator=seeded())[name].shape == (
        1,
        1,
        32,
        32,
    )


@pytest.mark.cuda
def test_cuda_draws_what_the_cpu_draws(smoke):
    def draw(device: str) -> torch.Tensor:
        on = MedM2GPipeline(speak_up(untrained(smoke))).to(device)
        return on({"text": REPORT}, ["ct"], num_inference_steps=4, generator=seeded())["ct"].cpu()

    assert torch.allclose(draw("cpu"), draw("cuda"), atol=2e-2)
