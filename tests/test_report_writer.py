"""The report writer: what it reads, that a picture decides where the plan is unsure, and its
training."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from conftest import CHEST, pictures, reports, untrained
from torch.utils._python_dispatch import TorchDispatchMode
from training_helpers import changed, run, snapshot

from medm2g_core.alignment.encoders import ImageEncoder
from medm2g_core.codecs.text import PAD_ID
from medm2g_core.codecs.writer import Picture, ReportWriter
from medm2g_core.model import PARTS, CheckpointError, MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import PROFILES, REPORT_STAGE, ReportConfig
from medm2g_core.training.loop import StageInterrupted
from medm2g_core.training.objectives import report_objective
from medm2g_core.training.report_batches import ReportBatch, ReportBatches
from medm2g_core.training.stages import ReportStage


@pytest.fixture
def writer(model: MedM2G) -> ReportWriter:
    assert model.writer is not None
    model.writer.start_from(model.text_codec)
    return model.writer


def seen(model: MedM2G, *names: str, n: int = 2, seed: int = 0) -> dict[str, Picture]:
    embedded = model.embed({s: pictures(n, seed=seed + i) for i, s in enumerate(names)})
    return {s: Picture.of(e.pooled, e.tokens) for s, e in embedded.items()}


def latents(model: MedM2G, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return model.text_codec.norm(torch.randn(n, *model.latent_shape("text"), generator=generator))


# ---- what it reads


@pytest.mark.parametrize("name", ["smoke", "gpu", "paper"])
def test_the_number_of_cells_is_that_of_the_encoder(name):
    """On the meta device: the shapes without the weights."""
    config, size = PROFILES[name].alignment, PROFILES[name].resolution
    with torch.device("meta"):
        encoder = ImageEncoder(config).eval()
        tokens = encoder(torch.zeros(1, 1, size, size), torch.zeros(1, dtype=torch.long)).tokens
    assert tokens.shape[1] == config.cells(size)


@torch.no_grad()
def test_without_pictures_it_begins_as_the_very_decoder_of_the_codec(model, writer):
    ids, _ = model.tokens(reports(2))
    z = latents(model)
    assert torch.allclose(writer.logits(ids, z, {}), model.text_codec.logits(ids, z), atol=1e-5)
    assert torch.equal(writer.decode(z, {}), model.text_codec.decode(z))


@torch.no_grad()
def test_absent_pictures_contribute_nothing_whatever_their_cells_hold(model, writer):
    ids, _ = model.tokens(reports(2))
    z, both = latents(model), seen(model, "xray", "ct")
    alone = writer.logits(ids, z, {"xray": both["xray"]})
    gone = Picture(1e3 * both["ct"].tokens, torch.zeros(2))
    assert torch.allclose(writer.logits(ids, z, both | {"ct": gone}), alone, atol=1e-5)
    assert not torch.allclose(writer.logits(ids, z, both), alone, atol=1e-3)
    half = replace(both["ct"], present=torch.tensor([1.0, 0.0]))  # each study for itself
    mixed = writer.logits(ids, z, both | {"ct": half})
    assert torch.allclose(mixed[1], alone[1], atol=1e-5)
    assert not torch.allclose(mixed[0], alone[0], atol=1e-3)


@torch.no_grad()
def test_pictures_places_and_streams_matter_and_nothing_later_does(model, writer):
    ids, _ = model.tokens(reports(2))
    z, one = latents(model), seen(model, "xray")
    for block in writer.decoder.transformer.h:  # untrained, it hardly hears its memory
        for p in block.crossattention.parameters():
            p.mul_(10)
    logits = writer.logits(ids, z, one)
    moved = Picture(one["xray"].tokens.flip(1), one["xray"].present)
    others = [seen(model, "xray", seed=9), {"ct": one["xray"]}, {"xray": moved}]
    for other in others:
        assert not torch.allclose(writer.logits(ids, z, other), logits, atol=1e-4)
    later = ids.clone()
    later[:, 10:] = 7
    assert torch.allclose(writer.logits(later, z, one)[:, :10], logits[:, :10], atol=1e-5)


@torch.no_grad()
def test_greedy_decoding_follows_the_logits(model, writer):
    """So the cached keys and the bias of the attention belong together in generation."""
    z, given = latents(model), seen(model, "xray", "ct")
    given["ct"] = replace(given["ct"], present=torch.tensor([0.0, 1.0]))
    ids = writer.decode(z, given)
    best = writer.logits(ids[:, :-1], z, given).argmax(-1)
    real = ids[:, 1:] != PAD_ID
    assert torch.equal(best[real], ids[:, 1:][real]) and real.sum() > 20


# ---- the model


@torch.no_grad()
def test_a_report_without_a_picture_is_the_codecs(model, writer):
    z = latents(model)
    before = model.decode("text", z)
    for p in writer.parameters():
        p.fill_(float("nan"))
    assert model.decode("text", z) == model.decode("text", z, {}) == before


@torch.no_grad()
def test_a_writer_that_never_learnt_does_not_write(model):
    z, e = latents(model), model.embed({"xray": pictures(2)})
    before = model.decode("text", z)
    for p in model.writer.decoder.parameters():
        p.fill_(float("nan"))
    assert model.decode("text", z, e) == before


def test_a_model_without_a_writer_is_what_it_was(smoke, tmp_path):
    """No weight more, none elsewhere, and a profile on disk that knows nothing of writers loads."""
    plain = untrained(smoke.replace(text_codec={"reads_pictures": False}))
    assert plain.writer is None and "writer" not in plain.parts and not plain.part("writer")
    assert not any("writer" in k for k in plain.state_dict())
    z, e = latents(plain), plain.embed({"xray": pictures(2)})
    assert plain.decode("text", z, e) == plain.decode("text", z)
    plain.save_pretrained(tmp_path)
    assert not (tmp_path / "writer.safetensors").exists()
    assert changed(MedM2G.from_pretrained(tmp_path), snapshot(plain)) == set()


def test_the_writer_is_a_file_of_its_own_and_missed(model, writer, tmp_path):
    model.save_pretrained(tmp_path)
    assert {p.stem for p in tmp_path.glob("*.safetensors")} == set(PARTS) == set(model.parts)
    back = MedM2G.from_pretrained(tmp_path)
    assert changed(back, snapshot(model)) == set() and back.writer.ready
    (tmp_path / "writer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"writer\.safetensors is missing"):
        MedM2G.from_pretrained(tmp_path)


def test_the_pipeline_shows_given_and_drawn_pictures(model, writer, monkeypatch):
    shown = []

    def decode(latent, given):
        shown.append({n: p.tokens for n, p in given.items()})
        return torch.full((len(latent), 1), 1)

    monkeypatch.setattr(writer, "decode", decode)
    pipe = MedM2GPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 1, "guidance_scale": 1.0}
    given = {"ct": pictures(2)}
    pipe(given=given, want=["text"], **options)
    out = pipe(given=given, want=["text", "xray"], **options)
    assert list(out.streams) == ["text", "xray"]
    pipe(given={"text": reports(2)}, want=["xray"], **options)
    pipe(want=["text"], **options)
    assert [set(s) for s in shown] == [{"ct"}, {"ct", "xray"}]
    for name, value in {"ct": given["ct"], "xray": out["xray"]}.items():
        e = model.embed({name: value})[name]
        assert torch.equal(shown[1][name], Picture.of(e.pooled, e.tokens).tokens)


# ---- what it learns from


def draw(latent_corpora, n: int = 256, config: ReportConfig | None = None, seed: int = 0):
    codec = PROFILES["smoke"].text_codec
    batches = ReportBatches(latent_corpora, codec, config or ReportConfig())
    return batches.draw(n, torch.Generator().manual_seed(seed), torch.device("cpu"))


def test_every_study_has_a_picture_and_any_number_is_equally_frequent(latent_corpora):
    batch = draw(latent_corpora[:1], 4000)
    assert set(batch.pictures) == set(CHEST)
    count = sum(p.present for p in batch.pictures.values())
    for n in (1, 2, 3, 4):
        assert (count == n).float().mean() == pytest.approx(0.25, abs=0.03)


def test_reports_plans_and_pictures_are_of_the_same_studies(model, latent_corpora):
    sure = ReportConfig(another=0.0, noisier=0.0, nothing=0.0)
    batch = draw(latent_corpora, 64, sure)
    mask = (batch.ids != PAD_ID).long()
    with torch.no_grad():
        own = model.text_codec.encode(batch.ids, mask)
    noise = PROFILES["smoke"].text_codec.latent_noise
    assert (batch.plan - own).std().item() == pytest.approx(noise, rel=0.05)


def test_plans_are_as_unsure_as_the_config_says(latent_corpora):
    def plans(**rates: float) -> torch.Tensor:
        none = {"another": 0.0, "noisier": 0.0, "nothing": 0.0}
        return draw(latent_corpora[:1], 2000, ReportConfig(**{**none, **rates})).plan

    true = torch.cat(list(latent_corpora[0].latents["text"])).float()

    def distance(plan: torch.Tensor) -> torch.Tensor:
        """Mean squared distance to the nearest latent of the corpus (8 of them)."""
        return (plan[:, None] - true).square().mean((2, 3)).min(1).values

    own = pytest.approx(PROFILES["smoke"].text_codec.latent_noise ** 2, rel=0.05)
    assert distance(plans()).mean().item() == own
    assert distance(plans(another=1.0)).mean().item() == own  # a plan as sure as a true one
    assert 0.15 < distance(plans(noisier=1.0)).mean() < 0.6
    assert distance(plans(nothing=1.0)).mean() > 0.7
    with pytest.raises(ValueError, match="shares of the studies"):
        ReportConfig(another=0.6, noisier=0.3, nothing=0.2)


def test_data_without_a_report_or_a_picture_is_refused(latent_corpora):
    bare = [replace(c, latents={"text": c.latents["text"]}) for c in latent_corpora]
    with pytest.raises(ValueError, match="a report and a picture"):
        ReportBatches(bare, PROFILES["smoke"].text_codec, ReportConfig())


def test_the_picture_decides_where_the_plan_is_noise(smoke):
    """Four reports learnt by heart from pictures alone; swapped pictures swap the reports."""
    model = untrained(smoke.replace(text_codec={"width": 64}))
    writer, texts = model.writer, reports(4)
    writer.start_from(model.text_codec)
    ids, _ = model.tokens(texts)
    shown = seen(model, "xray", n=4)
    optimizer = torch.optim.AdamW(writer.parameters(), lr=3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        noise = torch.randn(4, *model.latent_shape("text"), generator=generator)
        loss, _ = report_objective(model, ReportBatch(ids, ids[:, :-1], noise, shown))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = torch.randn(4, *model.latent_shape("text"), generator=generator)
    e = model.embed({"xray": pictures(4)})
    assert model.decode("text", z, e) == texts
    order = torch.tensor([1, 0, 3, 2])
    swapped = model.embed({"xray": pictures(4)[order]})
    assert model.decode("text", z, swapped) == [texts[i] for i in order]


# ---- its stage


def test_the_stage_moves_the_writer_and_nothing_else(model, latent_corpora, tmp_path):
    stage = ReportStage(model, latent_corpora)
    stage.begin()
    before = snapshot(model)
    run(stage, tmp_path)
    moved = changed(model, before)
    names = {n for n, _ in stage.trainable()}
    assert moved - {"writer.decoder.lm_head.weight"} <= names
    assert all(n.startswith("writer.") for n in names)
    assert {"writer.enter.weight", "writer.from_latent.weight", "writer.slots"} <= moved
    loss, _ = stage(4, torch.Generator().manual_seed(0))
    model.zero_grad()
    loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached and all(n.startswith("writer.") for n in reached)


def test_the_stage_that_was_stopped_ends_where_it_would_have(model, latent_corpora, tmp_path):
    other = copy.deepcopy(model)
    whole, parts = (ReportStage(m, latent_corpora) for m in (model, other))
    whole.begin()
    run(whole, tmp_path / "a")
    parts.begin()
    with pytest.raises(StageInterrupted):
        run(parts, tmp_path / "b", stop_after=2)
    parts.begin()  # as `train` does each time it is called
    run(parts, tmp_path / "b")
    assert changed(other, snapshot(model)) == set()


def test_a_writer_that_has_learnt_goes_on_if_asked_to(model, latent_corpora, tmp_path):
    stage = ReportStage(model, latent_corpora)
    stage.begin(continued=True)  # it never has: it begins all the same
    assert model.writer.ready
    run(stage, tmp_path)
    learnt = snapshot(model)
    stage.begin(continued=True)
    assert changed(model, learnt) == set()
    stage.begin()
    assert "writer.from_latent.weight" in changed(model, learnt)


def test_a_model_without_a_writer_has_no_such_stage(smoke, latent_corpora):
    plain = untrained(smoke.replace(text_codec={"reads_pictures": False}))
    with pytest.raises(ValueError, match="written without pictures"):
        ReportStage(plain, latent_corpora)
    assert not plain.profile.trains(REPORT_STAGE) and plain.profile.trains("round1")


class _Calls(TorchDispatchMode):
    """Names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


READS_A_VALUE = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique_dim"}


def test_the_objective_does_not_look_at_values(model, latent_corpora, monkeypatch):
    """So that a step can be captured as a CUDA graph: no tensor decides what is computed."""
    # transformers looks whether reports are packed, but not while a graph is captured
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)
    stage = ReportStage(model, latent_corpora)
    batch = stage.batches.draw(4, torch.Generator().manual_seed(0), torch.device("cpu"))
    with _Calls() as calls:
        loss, _ = report_objective(model, batch)
        loss.backward()
    assert len(calls.names) > 20 and not calls.names & READS_A_VALUE
    with calls:  # the control
        loss.item()
    assert calls.names & READS_A_VALUE
