"""What a GPU must not change: losses, steps, resuming, weights on disk. Skipped where there is no
NVIDIA GPU."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import pictures, reports, speak_up, untrained

from medm2g_core.alignment import objective
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import StageConfig
from medm2g_core.training import batches, report_batches, round_batches
from medm2g_core.training.captured import CapturedSteps
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.loop import StageInterrupted, bf16_pays, run_stage
from medm2g_core.training.run import near_device
from medm2g_core.training.stages import (
    AlignmentStage,
    ImageCodecStage,
    ReportStage,
    RoundStage,
    Stage,
    TextCodecStage,
)

pytestmark = pytest.mark.cuda

STAGES = (
    "image_codec",
    "text_codec",
    "alignment",
    "reports",
    "round1",
    "round2",
    "round3",
    "joint",
)
SHORT = StageConfig(steps=4, batch=4, lr=1e-3, warmup=1, ema=0.5)


@pytest.fixture(autouse=True)
def exact_float32():
    """TF32 would round products to ten bits: the comparison is about our code, not about that."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def make(name: str, model: MedM2G, corpora: list[Corpus], latent: list[LatentCorpus]) -> Stage:
    if name == "image_codec":
        return ImageCodecStage(model, corpora)
    if name == "text_codec":
        return TextCodecStage(model, lambda n, seed: reports(n, seed=seed))
    if name == "alignment":
        return AlignmentStage(model, corpora)
    if name == "reports":
        stage = ReportStage(model, latent)
        stage.begin()
        return stage
    return RoundStage(model, latent, name)


@pytest.fixture(autouse=True)
def noise_of_the_cpu(monkeypatch):
    """Training draws its noise on the GPU; to compare the two, both get the CPU's."""
    for module in (batches, round_batches, report_batches, objective):
        monkeypatch.setattr(
            module, "normal", lambda shape, g, device: torch.randn(*shape, generator=g).to(device)
        )


def loss_of(stage: Stage, device: str) -> float:
    """Of one batch without dropout, the same on every device: batches are drawn on the CPU."""
    stage.to(device).eval()
    with torch.no_grad():
        return stage(4, torch.Generator().manual_seed(3))[0].item()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_the_loss_of_the_cpu(model, corpora, latent_corpora, name):
    stage = make(name, model, corpora, latent_corpora)
    with torch.random.fork_rng(
        devices=[0]
    ):  # some losses draw noise on their own device: the same only in the mean
        torch.manual_seed(0)
        there = loss_of(stage, "cuda")
    here = loss_of(stage, "cpu")
    assert there == pytest.approx(here, rel=0.2 if name == "text_codec" else 2e-3)


@pytest.mark.parametrize("name", ["image_codec", "round1", "round3"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_go_where_the_cpu_goes(smoke, corpora, latent_corpora, tmp_path, name, optimizer):
    config = StageConfig(steps=3, batch=4, lr=1e-3, warmup=1, ema=0.1, optimizer=optimizer)
    moved = {}
    for device in ("cpu", "cuda"):
        model = speak_up(untrained(smoke))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        stage = make(name, model, corpora, latent_corpora)
        run_stage(stage, config, tmp_path / device, device=device, precision="fp32", progress=False)
        moved[device] = torch.cat(
            [(p.detach().cpu() - before[n]).flatten() for n, p in stage.model.named_parameters()]
        )
    likeness = torch.nn.functional.cosine_similarity(moved["cpu"], moved["cuda"], dim=0)
    assert likeness > 0.98, likeness
    assert torch.linalg.norm(moved["cuda"]) == pytest.approx(
        torch.linalg.norm(moved["cpu"]).item(), rel=0.02
    )


@pytest.mark.parametrize("name", ["image_codec", "round1", "joint"])
def test_a_step_played_as_a_graph_is_the_step_that_runs_kernel_by_kernel(
    model, corpora, latent_corpora, name
):
    """Losses and gradients of the same draws, batch after batch, with other values each time."""
    stage = make(name, model, corpora, latent_corpora).to("cuda")
    params = [p for _, p in stage.trainable()]
    both = [
        CapturedSteps(
            partial(stage.objective, stage.model), params, 1.0, nullcontext, capture=capture
        )
        for capture in (True, False)
    ]
    for seed in range(8):
        seen = []
        for steps in both:
            generator = torch.Generator().manual_seed(seed)
            loss, _ = steps(stage.batches.draw(4, generator, torch.device("cuda")))
            flat = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            seen.append((loss.clone(), torch.cat([g.flatten() for g in flat])))
        torch.testing.assert_close(seen[0][0], seen[1][0], rtol=1e-4, atol=1e-5)
        likeness = torch.nn.functional.cosine_similarity(seen[0][1], seen[1][1], dim=0)
        assert likeness > 0.999, (seed, likeness)


@pytest.mark.parametrize("name", ["image_codec", "text_codec", "round1"])
def test_training_that_was_stopped_goes_on_to_the_same_weights(
    smoke, corpora, latent_corpora, tmp_path, name
):
    def finished(folder: Path, stop_after: int | None) -> dict[str, torch.Tensor]:
        model = untrained(smoke)
        while True:
            stage = make(name, model, corpora, latent_corpora)
            try:
                run_stage(
                    stage,
                    SHORT,
                    folder,
                    device="cuda",
                    precision="fp32",
                    stop_after=stop_after,
                    progress=False,
                )
                return {n: p.detach().cpu() for n, p in model.named_parameters()}
            except StageInterrupted:
                model = untrained(smoke)  # nothing but the file remembers

    straight, pieces = finished(tmp_path / "a", None), finished(tmp_path / "b", 1)
    far = [n for n in straight if not torch.allclose(straight[n], pieces[n], atol=1e-5, rtol=1e-3)]
    assert far == []  # not bit for bit: some sums on a GPU have no fixed order


def test_noise_drawn_on_the_gpu_is_normal_and_follows_the_seed(monkeypatch):
    monkeypatch.undo()
    shape, device = (64, 3, 32, 32), torch.device("cuda")
    a, b, c = (objective.normal(shape, torch.Generator().manual_seed(s), device) for s in (1, 1, 2))
    assert a.is_cuda and torch.equal(a, b) and not torch.equal(a, c)
    assert abs(a.mean()) < 0.01 and abs(a.std() - 1) < 0.01


def test_one_process_trains_on_the_device_that_it_asks_for(smoke, latent_corpora, tmp_path):
    for i, device in enumerate(("cpu", "cuda", "cpu")):
        model = untrained(smoke)
        result = run_stage(
            make("round1", model, [], latent_corpora),
            SHORT,
            tmp_path / str(i),
            device=device,
            precision="fp32",
            progress=False,
        )
        assert model.device.type == device and result["device"].startswith(device)


def test_bf16_is_chosen_and_changes_the_loss_little(model, latent_corpora):
    assert bf16_pays(torch.device("cuda"))
    stage = make("round1", model, [], latent_corpora)
    exact = loss_of(stage, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        rough = loss_of(stage, "cuda")
    assert rough != exact and rough == pytest.approx(exact, rel=0.03)


def test_weights_trained_on_a_gpu_are_read_on_a_cpu(smoke, latent_corpora, tmp_path):
    model = untrained(smoke)
    run_stage(
        make("round1", model, [], latent_corpora),
        SHORT,
        tmp_path / "work",
        device="cuda",
        progress=False,
    )
    model.save_pretrained(tmp_path / "model")
    read = MedM2G.from_pretrained(tmp_path / "model")
    assert read.device.type == "cpu" and model.device.type == "cuda"
    own = model.state_dict()
    assert [k for k, v in read.state_dict().items() if not torch.equal(v, own[k].cpu())] == []


def test_studies_in_the_gpus_memory_give_the_same_losses(model, latent_corpora):
    near = near_device("cuda", latent_corpora)
    assert all(c.mask.is_cuda and all(z.is_cuda for z in c.latents.values()) for c in near)
    for name in ("round1", "round3"):
        far_loss, near_loss = (
            loss_of(make(name, model, [], c), "cuda") for c in (latent_corpora, near)
        )
        assert near_loss == pytest.approx(far_loss, rel=1e-5)


def test_a_flow_learns_one_batch_by_heart(smoke, latent_corpora, tmp_path):
    config = StageConfig(steps=150, batch=8, lr=3e-3, warmup=5, ema=0.9, optimizer="muon")
    stage = make("round2", speak_up(untrained(smoke)), [], near_device("cuda", latent_corpora))
    before = loss_of(stage, "cuda")
    run_stage(stage, config, tmp_path, device="cuda", progress=False)
    assert loss_of(stage, "cuda") < 0.6 * before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_pipeline_draws_in_half_precision(smoke, dtype):
    report = reports(2)
    exact = MedM2GPipeline(untrained(smoke)).to("cuda")
    half = MedM2GPipeline(untrained(smoke)).to("cuda", dtype)
    draws = [
        p(
            {"text": report},
            ["xray"],
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(0),
        )["xray"]
        for p in (exact, half)
    ]
    assert torch.isfinite(draws[1]).all()
    assert (draws[0].cpu().float() - draws[1].cpu().float()).abs().mean() < 0.05


def test_every_stream_is_encoded_embedded_and_decoded(model):
    model.cuda()
    picture = pictures(2)
    assert model.decode("ct", model.encode("ct", picture)).shape == picture.shape
    assert model.embed({"text": reports(2), "xray": picture})["xray"].pooled.is_cuda
