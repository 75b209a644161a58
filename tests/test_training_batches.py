"""What training draws: which guides and prompts, at which noise, and the cached latents."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BRAIN, CHEST
from training_helpers import make

from medm2g_core.profiles import ConditioningConfig
from medm2g_core.training import latents as latents_module
from medm2g_core.training import objectives
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.round_batches import RoundBatches, draw_guide_sets
from medm2g_core.training.rounds import ROUNDS, Mix, Round

BRAIN_MR = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")
RATES = ConditioningConfig()
MANY = 40_000


def draws(n_guides: int, config: ConditioningConfig = RATES) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_guide_sets(n_guides, MANY, config, torch.Generator().manual_seed(0))


def batches(latent_corpora, plan: Round, config: ConditioningConfig = RATES) -> RoundBatches:
    def levels(n, generator):
        return torch.rand(n, generator=generator)

    return RoundBatches(latent_corpora, plan, config, levels)


# ---- which guides are there


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_set_of_guides_comes_as_often_as_its_size_says(n):
    guides, _ = draws(n)
    kept = 1 - RATES.drop_all
    for chosen in itertools.product((0.0, 1.0), repeat=n):
        share = (guides == torch.tensor(chosen)[:, None]).all(0).float().mean()
        size = int(sum(chosen))
        if size == 0:
            expected = RATES.drop_all + kept * RATES.drop_guides
        else:  # a size is drawn first, then one of the sets of that size
            sets = len(list(itertools.combinations(range(n), size)))
            expected = kept * (1 - RATES.drop_guides) / n / sets
        assert share == pytest.approx(expected, abs=0.01), chosen


def test_a_brain_target_has_none_of_its_three_guides_and_neither_prompt_nor_guide_often_enough(
    latent_corpora,
):
    """Dropped one by one, three guides were all gone in 2.7 % and the prompt as well in 0.4 %."""
    plan = Round(("mri",), (), (Mix("brain", BRAIN_MR, 1.0),))
    none = nothing = 0.0
    for seed in range(20):
        batch = batches(latent_corpora, plan).draw(
            256, torch.Generator().manual_seed(seed), torch.device("cpu")
        )
        (target,) = batch.targets
        assert set(batch.present[target]) == set(BRAIN_MR) - {target}
        gone = torch.stack(list(batch.present[target].values())).sum(0) == 0
        none += gone.float().mean().item() / 20
        nothing += (gone & (batch.prompts[target].present == 0)).float().mean().item() / 20
    assert none > 0.15 and nothing == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_prompt_and_guides_are_gone_together_in_drop_all_of_the_studies_and_never_else(n):
    guides, prompt = draws(n)
    nothing = (guides.sum(0) == 0) & (prompt == 0)
    assert nothing.float().mean() == pytest.approx(RATES.drop_all, abs=0.006)
    one_sided = (prompt == 0) & ~nothing
    expected = (1 - RATES.drop_all) * (1 - RATES.drop_guides) * RATES.drop_prompt if n else 0
    assert one_sided.float().mean() == pytest.approx(expected, abs=0.006)


def test_the_rates_are_those_of_the_config():
    everything = ConditioningConfig(drop_all=0.0, drop_guides=0.0, drop_prompt=0.0, all_guides=1.0)
    guides, prompt = draws(3, everything)
    assert guides.all() and prompt.all()
    guides, prompt = draws(3, ConditioningConfig(drop_all=1.0))
    assert not guides.any() and not prompt.any()
    guides, prompt = draws(3, ConditioningConfig(drop_all=0.0, drop_guides=1.0))
    assert not guides.any() and prompt.all()


def test_impossible_rates_are_refused():
    with pytest.raises(ValueError, match=r"drop_all is a share of the studies, 0 to 1; got 1\.2"):
        ConditioningConfig(drop_all=1.2)
    with pytest.raises(ValueError, match="more than all studies"):
        ConditioningConfig(guides_clean=0.7, guides_alike=0.4)


def test_a_guide_that_is_gone_for_one_target_may_be_there_for_another(latent_corpora):
    plan = Round(("text", "xray", "ct"), (), (Mix("chest", ("text", "xray", "ct"), 1.0),))
    batch = batches(latent_corpora, plan).draw(
        64, torch.Generator().manual_seed(0), torch.device("cpu")
    )
    assert len(batch.targets) == 3
    pairs = itertools.combinations(batch.targets, 2)
    shared = [
        (batch.present[a][n], batch.present[b][n])
        for a, b in pairs
        for n in batch.present[a].keys() & batch.present[b].keys()
    ]
    assert shared and any(not torch.equal(x, y) for x, y in shared)


# ---- at which noise


def test_given_guides_are_clean_together_in_half_of_the_studies(latent_corpora):
    n, g = 2000, torch.Generator().manual_seed(0)
    t = torch.rand(n, generator=g)
    drawn = batches(latent_corpora, ROUNDS["round3"]).draw_guide_levels(BRAIN_MR, t, g)
    s = torch.stack([drawn[m] for m in BRAIN_MR])  # (4, n)
    clean, same = (s == 0).all(0).float().mean(), (s == t).all(0).float().mean()
    assert clean == pytest.approx(0.5 + 0.3 * 0.5**4, abs=0.03)
    assert same == pytest.approx(0.2 + 0.3 * 0.2**4, abs=0.03)
    mixed = ((s == 0).any(0) & (s > 0).any(0)).float().mean()  # some given, others drawn along
    assert mixed > 0.1


# ---- batches are data


@pytest.mark.parametrize(
    "name", ["image_codec", "text_codec", "alignment", "reports", "round1", "round3"]
)
def test_a_batch_follows_its_generator_and_needs_no_weights(model, corpora, latent_corpora, name):
    stage = make(name, model, corpora, latent_corpora)
    for p in model.parameters():
        p.data.fill_(float("nan"))

    def tensors(seed: int) -> list:
        batch = stage.batches.draw(4, torch.Generator().manual_seed(seed), torch.device("cpu"))
        out, todo = [], [vars(batch)]
        while todo:
            each = todo.pop()
            if isinstance(each, torch.Tensor):
                assert each.isfinite().all() and not each.requires_grad
            if isinstance(each, (torch.Tensor, str)):
                out.append(each.tolist() if isinstance(each, torch.Tensor) else each)
            elif hasattr(each, "__dict__"):
                todo.append(vars(each))
            elif isinstance(each, (dict, list, tuple)):
                todo.extend(each.values() if isinstance(each, dict) else each)
        return out

    assert tensors(0) == tensors(0) != tensors(1)


def test_a_mix_may_name_a_stream_as_its_target(latent_corpora):
    plan = Round(("mri",), (), (Mix("brain", BRAIN_MR, 1.0, targets=("mri_flair",)),))
    for seed in range(4):
        batch = batches(latent_corpora, plan).draw(
            4, torch.Generator().manual_seed(seed), torch.device("cpu")
        )
        assert batch.targets == ("mri_flair",)


# ---- cached latents


def test_cached_latents_are_those_of_the_model(model, corpora, tmp_path):
    built = LatentCorpus.build(model, corpora[0], tmp_path)
    index, wording, prompt = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([2, 1])
    reports = [corpora[0].reports[2][1], corpora[0].reports[0][0]]
    prompts = [corpora[0].prompts[2][2], corpora[0].prompts[0][1]]
    assert (built.wordings, built.prompts) == (2, 3)
    for drawn, texts in (
        (built.latent("text", index, wording), reports),
        (built.given_latent("text", index, prompt), prompts),
    ):
        assert torch.allclose(drawn, model.encode("text", texts), atol=5e-3)
    image = corpora[0].images["ct"][index].float()
    assert torch.allclose(built.latent("ct", index, wording), model.encode("ct", image), atol=5e-3)
    e = built.embedding("text", index, prompt)
    own = model.embed({"text": prompts})["text"]
    assert torch.allclose(e.pooled, own.pooled, atol=5e-3)
    real = own.mask.shape[1]
    assert torch.equal(e.mask[:, :real], own.mask) and not e.mask[:, real:].any()
    read = own.mask[..., None] * (e.tokens[:, :real] - own.tokens)
    assert read.abs().max() < 5e-3
    assert set(built.latents) == {"text", *CHEST} and len(built) == 4
    ids, own_ids = built.ids[index, wording].long(), model.tokens(reports)[0]
    assert torch.equal(ids[:, : own_ids.shape[1]], own_ids)
    assert not ids[:, own_ids.shape[1] :].any()


def test_embeddings_have_one_shape_whatever_is_drawn(latent_corpora):
    """Prompts of different lengths, one at a time."""
    corpus = latent_corpora[0]
    lengths = corpus.mask.sum(-1).unique()
    assert len(lengths) > 1
    picks = [(torch.tensor([i]), torch.tensor([j])) for i in range(4) for j in range(3)]
    shapes = {corpus.embedding("text", i, j).tokens.shape for i, j in picks}
    assert shapes == {(1, int(lengths.max()), corpus.tokens["text"].shape[-1])}


@pytest.mark.parametrize("seed", range(3))
def test_what_the_text_flow_learns_is_a_report_and_what_it_is_told_is_a_prompt(
    latent_corpora, seed
):
    """Whatever the draw: both are drawn on their own, of the same study."""
    corpus = latent_corpora[0]
    plan = Round(("text", "xray"), (), (Mix("chest", ("text", "xray"), 1.0),))
    batch = batches(latent_corpora, plan).draw(
        16, torch.Generator().manual_seed(seed), torch.device("cpu")
    )
    reports, prompts = (
        x.flatten(0, 1).float() for x in (corpus.latents["text"], corpus.given["text"])
    )

    def places(z: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
        """Where each latent (B, K, d) stands among (M, K, d); -1 where it does not."""
        equal = (z[:, None] == among).all(-1).all(-1)
        return torch.where(equal.any(1), equal.float().argmax(1), -1)

    clean = batch.guide_levels["text"] == 0
    report = places(batch.latents["text"], reports)[clean]
    prompt = places(batch.guide_latents["text"][clean], prompts)
    assert len(prompt) and (report >= 0).all() and (prompt >= 0).all()
    assert torch.equal(batch.guide_latents["text"][~clean], batch.latents["text"][~clean])
    assert torch.equal(report // corpus.wordings, prompt // corpus.prompts)
    pairs = set(
        zip((report % corpus.wordings).tolist(), (prompt % corpus.prompts).tolist(), strict=True)
    )
    assert len({a == b for a, b in pairs}) == 2, "picked independently"


def test_a_text_that_is_given_guides_by_its_prompt_and_one_that_is_drawn_along_by_its_report(
    model, latent_corpora, monkeypatch
):
    plan = Round(("text", "xray"), (), (Mix("chest", ("text", "xray"), 1.0),))
    batch = batches(latent_corpora, plan).draw(
        16, torch.Generator().manual_seed(1), torch.device("cpu")
    )
    seen = {}
    monkeypatch.setattr(
        model, "environment", lambda n, z, level, present: seen.setdefault(n, (z, level))
    )
    objectives._environments(model, batch)
    z, level = seen["text"]
    clean = level == 0
    assert clean.any() and not clean.all()
    given = latent_corpora[0].given["text"].flatten(0, 1).float()
    assert all((x == given).flatten(1).all(1).any() for x in z[clean])
    own = model.schedule.add_noise(batch.latents["text"], batch.noise["text"], level)
    assert torch.equal(z[~clean], own[~clean])
    assert not torch.equal(z[clean], batch.latents["text"][clean])


def same(a: LatentCorpus, b: LatentCorpus) -> bool:
    parts = zip(
        (a.latents, a.pooled, a.tokens, a.given),
        (b.latents, b.pooled, b.tokens, b.given),
        strict=True,
    )
    equal = [torch.equal(x[k], y[k]) for x, y in parts for k in x.keys() | y.keys()]
    return all(equal) and torch.equal(a.mask, b.mask) and torch.equal(a.ids, b.ids)


def test_latents_on_disk_are_those_in_memory_and_are_mapped_not_loaded(model, corpora, tmp_path):
    built = LatentCorpus.build(model, corpora[0], tmp_path)
    assert same(built, LatentCorpus.build(model, corpora[0]))
    maps = Path("/proc/self/maps")
    if maps.is_file():
        text = maps.read_text(encoding="utf-8")
        assert all(str(next(tmp_path.glob(f"*/z.{n}"))) in text for n in built.latents)


def test_encoding_that_was_interrupted_goes_on_with_the_shards_that_are_missing(
    model, corpora, tmp_path, monkeypatch
):
    monkeypatch.setattr("medm2g_core.training.latents.SHARD", 1)
    whole = LatentCorpus.build(model, corpora[1])
    encode, calls = latents_module._encode, []

    def failing(model, corpus, shard, *rest):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(shard.start)
        encode(model, corpus, shard, *rest)

    monkeypatch.setattr(latents_module, "_encode", failing)
    with pytest.raises(KeyboardInterrupt):
        LatentCorpus.build(model, corpora[1], tmp_path)
    assert calls == [0, 1]
    calls.clear()
    assert same(LatentCorpus.build(model, corpora[1], tmp_path), whole)
    assert calls == [2, 3]


def test_a_shard_is_on_disk_before_the_next_is_begun(model, corpora, tmp_path, monkeypatch):
    monkeypatch.setattr("medm2g_core.training.latents.SHARD", 2)
    encode, written = latents_module._encode, []

    def watch(model, corpus, shard, *rest):
        (file,) = tmp_path.glob("*/z.mri_t1")
        rows = np.fromfile(file, np.float16).reshape(len(corpus), -1)
        written.append([bool(row.any()) for row in rows])
        encode(model, corpus, shard, *rest)

    monkeypatch.setattr(latents_module, "_encode", watch)
    LatentCorpus.build(model, corpora[1], tmp_path)
    assert written == [[False] * 4, [True, True, False, False]]


def test_the_cache_is_used_and_noticed_when_stale(model, corpora, tmp_path, monkeypatch):
    LatentCorpus.build(model, corpora[1], tmp_path)
    calls = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda n, v: calls.append(n) or encode(n, v))
    LatentCorpus.build(model, corpora[1], tmp_path)
    assert not calls
    with torch.no_grad():
        next(model.image_codec.parameters()).add_(0.1)
    LatentCorpus.build(model, corpora[1], tmp_path)
    assert set(calls) == {"text", *BRAIN}
    assert len(list(tmp_path.glob("latents_*"))) == 1  # those of other weights are gone
