"""The two kinds of text of a study, prompts and reports, and how batches hold them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import pictures, reports
from torch.utils._python_dispatch import TorchDispatchMode

from medm2g_core.data.chest.pathology import sample_findings
from medm2g_core.data.labeller import label_report
from medm2g_core.data.reports import write_report
from medm2g_core.profiles import AlignmentConfig, TextCodecConfig, profile
from medm2g_core.training import corpus as corpus_module
from medm2g_core.training import objectives
from medm2g_core.training.batches import TOKEN_MULTIPLE, AlignmentBatches, TextBatches, TextPool
from medm2g_core.training.corpus import (
    Corpus,
    random_prompts,
    random_reports,
)
from medm2g_core.training.data import EmbeddedData, codec_texts, corpus_of
from medm2g_core.training.reader import Reader
from medm2g_core.training.run import new_model


def places(text: str) -> set[tuple[str, str, str]]:
    return {(f.name, f.side, f.location) for f in label_report(text, "chest").findings}


# ---- prompts and reports of a study


class FewStudies:
    """Chest studies without pictures worth drawing."""

    region, split = "chest", "train"

    def __init__(self, n: int, split: str = "train") -> None:
        self.split = split
        self.studies = []
        for seed in range(n):
            rng = np.random.default_rng(seed)
            findings = sample_findings(rng)
            text = write_report(findings, "chest", 50, "male", rng)
            self.studies.append(Study(findings, text, pictures(1)[0]))

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, i: int) -> Study:
        return self.studies[i]

    def stack(self, name: str, index) -> torch.Tensor:
        return torch.stack([self.studies[i].images[name] for i in index])


class Study:
    region, age, sex = "chest", 50, "male"

    def __init__(self, findings, text: str, image: torch.Tensor) -> None:
        self.findings, self.text, self.images = findings, text, {"xray": image}


def test_prompts_and_reports_of_a_study_differ_and_say_the_same():
    corpus = corpus_of(FewStudies(12))
    for study, written, said, wrong in zip(
        FewStudies(12).studies, corpus.reports, corpus.prompts, corpus.contradictions, strict=True
    ):
        true = {(f.name, f.side, f.location) for f in study.findings}
        assert written[0] == said[0] == study.text and len(written) == len(said) == len(wrong) == 4
        assert not set(said[1:]) & set(written) and len(set(said)) == 4
        assert all(places(t) == true for t in (*written, *said))
        for right, opposite in zip(said, wrong, strict=True):
            assert opposite != right and opposite not in said
    assert any(t.isupper() for own in corpus.prompts for t in own)
    assert not any(t.isupper() for own in corpus.reports for t in own)


def test_validation_studies_are_described_by_their_report():
    corpus = corpus_of(FewStudies(3, "val"))
    assert corpus.prompts == corpus.reports == [[s.text] for s in FewStudies(3).studies]
    assert not corpus.contradictions


def test_texts_of_some_studies_only_are_refused():
    images = {"xray": pictures(2).half()}
    with pytest.raises(ValueError, match="prompts of 1 studies, reports of 2"):
        Corpus("chest", images, [["a"], ["b"]], prompts=[["a"]])
    with pytest.raises(ValueError, match="equally many texts"):
        Corpus("chest", images, [["a"], ["b"]], contradictions=[["a"], ["b", "c"]])


def test_the_fingerprint_knows_prompts():
    images = {"xray": pictures(1).half()}
    plain = Corpus("chest", images, [["a"]])
    assert plain.fingerprint() == Corpus("chest", images, [["a"]], prompts=[["a"]]).fingerprint()
    assert plain.fingerprint() != Corpus("chest", images, [["a"]], prompts=[["b"]]).fingerprint()


def test_a_corpus_that_is_fitted_can_be_read_and_keeps_its_contradictions(model):
    """Texts four times as long as usual: most are cut."""

    def longer(texts: list[str]) -> list[str]:
        return [*texts[:2], *("The patient was cooperative. " * 12 + t for t in texts[2:])]

    corpus = corpus_of(FewStudies(8))
    long = dataclasses.replace(
        corpus,
        prompts=[longer(own) for own in corpus.prompts],
        contradictions=[longer(own) for own in corpus.contradictions],
    )
    reader = Reader(model)
    fitted = reader.fitted_corpus(long)
    assert fitted.prompts != long.prompts
    for right, wrong in zip(fitted.prompts, fitted.contradictions, strict=True):
        assert max(reader.lengths([*right, *wrong])) <= reader.limit
        assert all(a != b for a, b in zip(right, wrong, strict=True))


def test_the_tokenizer_of_a_new_model_knows_capitals_and_abbreviations(smoke):
    """At 2,048 entries capitals cost no more tokens than small letters, within a fifth."""
    wide = smoke.replace(text_codec={"vocab_size": 2048})
    tidy = new_model(wide, texts=random_reports(4000, 0)).tokenizer
    own = new_model(wide).tokenizer

    def tokens(tokenizer, texts) -> float:
        return float(np.mean([len(i) for i in tokenizer(texts)["input_ids"]]))

    prompts = random_prompts(300, 77)
    loud = [t for t in prompts if t.isupper()]
    quiet = [t for t in prompts if not t.isupper()]
    assert tokens(own, loud) < 1.2 * tokens(own, quiet) < 0.5 * tokens(tidy, loud)
    written = random_reports(300, 78)
    assert tokens(own, written) < 1.05 * tokens(tidy, written)


def test_the_codec_reads_prompts_in_their_share():
    class Data(EmbeddedData):
        def __init__(self) -> None: ...

        def reports(self, n: int, seed: int, split: str = "train") -> list[str]:
            return [f"report {seed}"] * n

        def prompts(self, n: int, seed: int) -> list[str]:
            return [f"prompt {seed}"] * n

    texts = codec_texts(Data(), 0.25)(32, 5)
    assert texts.count("prompt 5") == 8 and texts.count("report 5") == 24
    with pytest.raises(ValueError, match="prompt_share"):
        TextCodecConfig(prompt_share=1.5)
    with pytest.raises(ValueError, match="contradicted"):
        AlignmentConfig(contradicted=-0.1)


# ---- batches


def test_texts_are_tokens_of_a_few_shapes(model):
    """Of any texts, and the padding is none of them."""
    lengths = set()
    for n in (1, 3, 20):
        texts = Reader(model).fitted(random_prompts(n, n))
        drawn = TextBatches(lambda _, seed, t=texts: t, model.tokens).draw(
            n, torch.Generator(), torch.device("cpu")
        )
        assert drawn.ids.shape == drawn.mask.shape and drawn.ids.shape[0] == n
        lengths.add(drawn.ids.shape[1])
        ids, mask = model.tokens(texts)
        assert torch.equal(drawn.ids[:, : ids.shape[1]], ids)
        assert (
            torch.equal(drawn.mask.sum(1), mask.sum(1)) and (drawn.ids[drawn.mask == 0] == 0).all()
        )
    longest = model.profile.text_codec.max_length
    assert all(n % TOKEN_MULTIPLE == 0 or n == longest for n in lengths)


def draw_alignment(model, corpora, n: int = 8, seed: int = 0, **changes):
    config = dataclasses.replace(model.profile.alignment, **changes)
    return AlignmentBatches(corpora, config, model.tokens).draw(
        n, torch.Generator().manual_seed(seed), torch.device("cpu")
    )


def words(model, ids: torch.Tensor) -> list[str]:
    return [t.strip() for t in model.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def test_alignment_reads_prompts_and_contradictions_of_the_same_studies(model, corpora):
    batch = draw_alignment(model, corpora, contradicted=0.5)
    assert len(batch.contradicted) == 4 and len(batch.ids) == 8 + 4
    texts = words(model, batch.ids)
    place = {
        kind: {
            t: (c.name, i, j)
            for c in corpora
            for i, own in enumerate(lists(c))
            for j, t in enumerate(own)
        }
        for kind, lists in (
            ("right", lambda c: c.prompts),
            ("wrong", lambda c: c.contradictions),
        )
    }
    right = [place["right"][t] for t in texts[:8]]
    wrong = [place["wrong"][t] for t in texts[8:]]
    assert [right[i] for i in batch.contradicted.tolist()] == wrong
    assert len({region for region, _, _ in wrong}) == 2


def test_the_shapes_of_an_alignment_batch_do_not_depend_on_the_draw(model, corpora):
    shapes = {draw_alignment(model, corpora, seed=s).ids.shape for s in range(8)}
    assert len(shapes) == 1 and shapes.pop()[1] % TOKEN_MULTIPLE == 0


def test_corpora_without_contradictions_align_without_them(model, corpora):
    plain = [dataclasses.replace(c, contradictions=[]) for c in corpora]
    for batch in (
        draw_alignment(model, plain),
        draw_alignment(model, corpora, contradicted=0.0),
    ):
        assert len(batch.ids) == 8 and not len(batch.contradicted)
    loss, _ = objectives.alignment_objective(model, batch)
    assert loss.isfinite()


def test_a_contradiction_makes_the_text_encoder_tell_it_from_the_prompt(model, corpora):
    """Steps on one batch: with contradictions the own picture is soon more like the prompt than
    like its opposite, for all studies."""
    batch = draw_alignment(model, corpora, contradicted=1.0)
    model.train()
    optimiser = torch.optim.Adam(model.alignment.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        objectives.alignment_objective(model, batch)[0].backward()
        optimiser.step()
    text = model.alignment("text", (batch.ids, batch.mask)).pooled
    image = model.alignment.encoders["xray"](batch.views["xray"], batch.contrasts["xray"]).pooled
    own, partner = batch.shared["text", "xray"]
    right = (text[:8][own] * image[partner]).sum(1)
    wrong = (text[8:][own] * image[partner]).sum(1)  # every study has one, in their order
    assert (right > wrong).all()


class NothingRead(TorchDispatchMode):
    """Refuses what waits for a GPU: reading a value, or a shape that depends on one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        read = any(w in name for w in ("_local_scalar_dense", "nonzero", "masked_select"))
        if "index.Tensor" in name or "index_put" in name:
            read |= any(i is not None and i.dtype == torch.bool for i in args[1])
        assert not read, name
        return func(*args, **(kwargs or {}))


@pytest.fixture
def capturing(monkeypatch):
    """transformers looks at masks unless a graph is captured: as in a capture."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda *_: True)


def test_losses_of_texts_read_no_value(model, corpora, capturing):
    batch = draw_alignment(model, corpora)
    texts = TextBatches(lambda n, _: reports(n), model.tokens).draw(
        4, torch.Generator().manual_seed(0), torch.device("cpu")
    )
    model.train()
    with NothingRead():
        objectives.alignment_objective(model, batch)[0].backward()
        objectives.text_codec_objective(model, texts)[0].backward()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NothingRead():
        batch.ids.sum().item()


# ---- a pool of texts, for a GPU


def test_a_pool_holds_what_its_source_writes_and_batches_are_of_one_shape():
    model = new_model(profile("smoke"))
    pool = TextPool(random_reports, model.tokens, 24, 0, "cpu")
    written = {tuple(ids.tolist()) for ids in model.tokens(random_reports(24, 0), 16)[0]}
    shapes = set()
    for seed in range(8):
        batch = pool.draw(6, torch.Generator().manual_seed(seed), torch.device("cpu"))
        shapes.add(tuple(batch.ids.shape))
        assert {tuple(ids.tolist()) for ids in batch.ids} <= written
    assert len(shapes) == 1


def test_many_texts_are_the_same_from_many_processes_as_from_one(monkeypatch):
    alone = random_reports(10, 3)
    monkeypatch.setattr(corpus_module, "MANY_TEXTS", 8)
    assert random_reports(10, 3) == alone
