"""Report baselines: retrieval finds itself, the decoder reads its image, and kept weights are
trusted only if whole."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EDEMA, EFFUSION, NODULE, pictures

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.reports import write_report
from medm2g_core.data.wheels import DataUnavailableError
from medm2g_core.evaluation import report_generation as section
from medm2g_core.evaluation import text_codec
from medm2g_core.evaluation.alignment import alignment_section
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.codec import image_codec_section
from medm2g_core.evaluation.report_rows import Truth, finding_summary
from medm2g_core.evaluation.sections import SECTIONS
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.rivals.report_decoder import (
    DecoderSettings,
    decoder_file,
    train_decoder,
)
from medm2g_core.rivals.reports import (
    constant_reports,
    embed_images,
    embed_reports,
    image_retrieval,
    pixel_retrieval,
    report_corpus,
    report_retrieval,
    reports_of_random_studies,
)
from medm2g_core.streams import StreamError
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.fit import fit
from medm2g_core.training.loop import StageInterrupted

FINDINGS = [(EFFUSION,), (NODULE,), (EDEMA,), (EDEMA, EFFUSION)] * 2


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> int:
    """An untrained decoder writes every report to the full length: four of them will do."""
    monkeypatch.setattr(section, "DRAWS", 4)
    return 4


def corpus() -> Corpus:
    """Eight studies of random pictures, two wordings each."""
    rngs = np.random.default_rng(0).spawn(16)
    reports = [
        [write_report(f, "chest", 30 + 5 * i, "male", rngs[2 * i + w]) for w in range(2)]
        for i, f in enumerate(FINDINGS)
    ]
    return Corpus("chest", {"xray": pictures(8, seed=4).half()}, reports)


def test_retrieval_of_a_study_from_itself_finds_itself_and_from_others_does_not(
    model: MedM2G,
) -> None:
    c = corpus()
    own = [r[0] for r in c.reports]
    images = c.images["xray"].float()
    seen = embed_images(model, "xray", images)
    assert pixel_retrieval(images, c, "xray") == own
    assert pixel_retrieval((images * 0.8 + 0.1).clamp(-1, 1), c, "xray") == own
    assert image_retrieval(seen, seen, c) == own
    texts = [t for r in c.reports for t in r]
    read = embed_reports(model, texts)
    assert seen.shape[1] == read.shape[1] and torch.allclose(
        read.norm(dim=1), torch.ones(16), atol=1e-4
    )
    assert report_retrieval(read, read, c) == texts
    assert image_retrieval(seen.roll(1, 0), seen, c) == own[-1:] + own[:-1]


def test_simple_reports_are_constant_or_random() -> None:
    c = corpus()
    assert len(set(constant_reports("chest", 5))) == 1
    assert sorted(reports_of_random_studies(c, 8)) == sorted(r[0] for r in c.reports)
    assert reports_of_random_studies(c, 20, seed=1) != reports_of_random_studies(c, 20, seed=2)


def test_a_corpus_has_the_wordings_of_training_and_one_region(tmp_path: Path) -> None:
    cohort = VirtualCohort("val", "chest", 2, resolution=32)
    c = report_corpus(cohort, "xray")
    assert (
        c.reports[0][0] == cohort.texts[0]
        and len(set(c.reports[0])) == 4
        and list(c.images) == ["xray"]
    )
    assert finding_summary(
        [r[3] for r in c.reports], Truth("chest", cohort.texts, cohort.findings)
    )["strict"] in (0, 1)
    with pytest.raises(StreamError, match="both regions"):
        report_corpus(VirtualCohort("val", "both", 2, resolution=32), "xray")


@pytest.mark.parametrize("encoder", ["frozen", "fresh"])
def test_the_decoder_learns_eight_studies_by_their_pictures(
    model: MedM2G, tmp_path: Path, encoder: str
) -> None:
    c = corpus()
    how = (
        {"lr": 5e-3} if encoder == "frozen" else {"lr": 3e-3, "optimizer": "muon"}
    )  # both learn on any processor
    settings = DecoderSettings(
        stream="xray", seconds=299, steps=500, encoder=encoder, batch=16, dropout=0.0, **how
    )  # type: ignore[arg-type]
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    decoder = train_decoder(model, c, settings, cache=tmp_path, progress=False)
    assert torch.equal(torch.rand(1), before), "the caller's random numbers moved"
    truth = Truth("chest", [r[0] for r in c.reports], FINDINGS)
    images = c.images["xray"].float()
    greedy = decoder.write(images)
    right = finding_summary(greedy, truth)["strict"]
    # An encoder of its own sees augmented pictures and starts from nothing: it is less sure after
    # these steps.
    assert right > (0.9 if encoder == "frozen" else 0.6)
    assert (
        encoder == "fresh"
        or finding_summary(decoder.write(images, sample=True, seed=1), truth)["strict"] > 0.45
    )
    assert decoder.write(images, sample=True, seed=1) == decoder.write(images, sample=True, seed=1)
    # The control: it reads the picture, so another patient's picture gives another patient's
    # report.
    assert finding_summary(decoder.write(images.roll(1, 0)), truth)["strict"] < 0.75 * right


def test_a_decoder_whose_pictures_were_shuffled_cannot_tell_them_apart(
    model: MedM2G, tmp_path: Path
) -> None:
    c = corpus()
    same = Corpus("chest", {"xray": c.images["xray"][:1].expand(8, -1, -1, -1).clone()}, c.reports)
    settings = DecoderSettings(stream="xray", seconds=99, steps=100, lr=1e-2, batch=16, dropout=0.0)
    decoder = train_decoder(model, same, settings, cache=tmp_path, progress=False)
    written = decoder.write(same.images["xray"].float())
    assert len(set(written)) == 1
    assert (
        finding_summary(written, Truth("chest", [r[0] for r in c.reports], FINDINGS))["strict"]
        < 0.7
    )


def test_a_kept_decoder_is_loaded_and_a_damaged_one_trained_again(
    model: MedM2G, tmp_path: Path
) -> None:
    c = corpus()
    settings = DecoderSettings(stream="xray", seconds=99, steps=4)
    images = c.images["xray"].float()

    def train() -> tuple[list[str], float]:
        start = time.process_time()
        return train_decoder(model, c, settings, cache=tmp_path, progress=False).write(images), (
            time.process_time() - start
        )

    train()
    file = decoder_file(model, c, settings, tmp_path).path
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    whole, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert train()[0] == train()[0] and file.stat().st_mtime_ns == stamp, (
        "the kept file was not used"
    )
    for damage in (whole[: len(whole) // 2], b"", b"not a safetensors file at all"):
        file.write_bytes(damage)
        with pytest.warns(UserWarning, match="damaged .* made anew"):
            train()
        assert len(file.read_bytes()) == pytest.approx(len(whole), rel=0.01)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, c, s: (m, c, DecoderSettings(stream="xray", seconds=s.seconds, seed=1)),
        lambda m, c, s: (m, c, DecoderSettings(stream="xray", seconds=s.seconds + 1)),
        lambda m, c, s: (m, Corpus(c.region, c.images, c.reports[1:] + c.reports[:1]), s),
        lambda m, c, s: (_moved(m), c, s),
    ],
)
def test_other_settings_studies_or_weights_mean_another_file(
    model: MedM2G, change: Callable
) -> None:
    c, s = corpus(), DecoderSettings(stream="xray", seconds=1)
    before = decoder_file(model, c, s)
    assert decoder_file(model, corpus(), DecoderSettings(stream="xray", seconds=1)) == before
    assert decoder_file(*change(model, c, s)) != before


def test_a_decoder_that_was_stopped_goes_on(
    model: MedM2G, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c, stop = corpus(), {"stop_after": 5, "precision": "fp32"}
    settings = DecoderSettings(stream="xray", seconds=99, steps=12, encoder="tuned")
    monkeypatch.setattr(
        "medm2g_core.rivals.report_decoder.fit", lambda *a, **k: fit(*a, **{**k, **stop})
    )
    with pytest.raises(StageInterrupted, match="the same command goes on"):
        train_decoder(model, c, settings, cache=tmp_path, progress=False)
    (state,) = tmp_path.iterdir()
    stop["stop_after"] = None
    resumed = train_decoder(model, c, settings, cache=tmp_path, progress=False)
    assert not state.exists() and resumed.info["steps"] == 12
    whole = train_decoder(model, c, settings, cache=tmp_path / "other", progress=False)
    for name, tensor in whole.kept().items():
        assert torch.equal(tensor, resumed.kept()[name]), name


def test_samples_encode_an_image_once_and_the_first_are_those_of_fewer(
    model: MedM2G, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DecoderSettings(stream="xray", seconds=99, steps=2)
    decoder = train_decoder(model, corpus(), settings, keep=False, progress=False)
    images, encoded = pictures(3), []
    encode = decoder.encode
    monkeypatch.setattr(decoder, "encode", lambda x: encoded.append(len(x)) or encode(x))
    four = decoder.write_samples(images, 4, seed=7)
    assert encoded == [3] and [len(draw) for draw in four] == [3] * 4
    assert len({draw[0] for draw in four}) > 1, "the draws differ"
    assert decoder.write_samples(images, 2, seed=7) == four[:2]
    assert decoder.write(images, sample=True, seed=7) == four[0]
    assert decoder.write_samples(images, 1, seed=8)[0] != four[0]
    with pytest.raises(ValueError, match="at least 1"):
        decoder.write_samples(images, 0)


def _moved(model: MedM2G) -> MedM2G:
    with torch.no_grad():
        next(model.alignment.encoders["xray"].parameters()).add_(0.01)
    return model


def test_reports_have_no_decoder_of_reports(model: MedM2G) -> None:
    with pytest.raises(StreamError, match="image stream"):
        train_decoder(model, corpus(), DecoderSettings(stream="text", seconds=1), keep=False)


def test_the_section_has_model_baselines_control_ceilings_and_tunes_on_validation(
    model: MedM2G, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_draws: int
) -> None:
    monkeypatch.setattr("medm2g_core.evaluation.report_rows.meteor", lambda a, b: None)
    bench = Bench(MedM2GPipeline(model), n_chest=4, n_brain=2, reference=3, steps=1, progress=False)
    train = VirtualCohort("train", "chest", 6, resolution=32)
    outcome = section.report_generation(
        bench, "xray", decoder_seconds=0.2, train=train, cache=tmp_path
    )
    strict = {r.who: r for r in outcome.rows if r.metric == "finding F1, strict"}
    kinds = [who.split(":")[0].split(",")[0] for who in strict]
    assert (
        kinds.count("baseline") >= 7 and kinds.count("ceiling") == 2 and kinds.count("control") == 1
    )
    assert strict["ceiling: true findings in other words"].value == 1.0
    risk = f"model, minimum Bayes risk of {section.DRAWS}, noise x {section.LOW_NOISE}"
    assert {"model", risk} <= strict.keys() and len(outcome.checks) == 2
    assert (
        len(outcome.facts["grid on validation"]) == len(section.GRID)
        and outcome.facts["validation studies"] == 3
    )
    drawn = [k for k in bench._drawn if k[0] != "codec"]
    grid = {(k[5], k[9]) for k in drawn if k[-1] == "val"}
    assert grid == set(section.GRID), "the grid is drawn on the validation split"
    assert all(
        (k[5], k[9])
        in {
            (float(g), float(n))
            for n, g in outcome.facts["guidance chosen for each noise scale"].items()
        }
        for k in drawn
        if k[-1] == "test"
    ), "test studies see the chosen settings only"
    model_choice, decoder_choice = outcome.facts["settings chosen on validation"]
    assert set(model_choice["scores"]) == {w for w in strict if w.startswith("model")}
    assert set(decoder_choice["scores"]) == {w for w in strict if "autoregressive" in w}
    chosen = {r.who for r in outcome.rows if r.chosen}
    assert chosen == {model_choice["chosen"], decoder_choice["chosen"]}
    assert model_choice["n"] == 3


def test_the_decoder_has_every_privilege_of_the_model(
    model: MedM2G, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_draws: int
) -> None:
    """As many reports to choose from, chosen in the same ways, with the same words."""
    monkeypatch.setattr("medm2g_core.evaluation.report_rows.meteor", lambda a, b: None)
    chosen_from: list[int] = []
    risk = section.minimum_risk

    def watched(draws, region):
        chosen_from.append(len(draws))
        return risk(draws, region)

    monkeypatch.setattr(section, "minimum_risk", watched)
    bench = Bench(MedM2GPipeline(model), n_chest=2, n_brain=2, reference=2, steps=1, progress=False)
    train = VirtualCohort("train", "chest", 6, resolution=32)
    outcome = section.report_generation(
        bench, "xray", decoder_seconds=0.2, train=train, cache=tmp_path
    )
    names = {r.who for r in outcome.rows}
    low, own = f", noise x {section.LOW_NOISE}", "baseline: autoregressive decoder, "
    of_model = {n.removeprefix("model, ").removesuffix(low) for n in names if low in n}
    of_decoder = {n.removeprefix(own) for n in names if n.startswith(own)}
    three = {n for n in of_model if "of" in n}
    assert len(three) == 3 and three <= of_decoder
    assert of_decoder - three == {"greedy", "sampled"}
    half = section.DRAWS // 2
    assert chosen_from == [section.DRAWS, half] * 4, "both predictors, on both splits"
    noted = {r.who for r in outcome.rows if "Kumar and Byrne" in r.note}
    assert noted == {n for n in names if "minimum Bayes risk" in n}


def ruin_all_but(model: MedM2G, reads: tuple[str, ...]) -> MedM2G:
    ruined = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in ruined.state_dict().items():
            if tensor.is_floating_point() and not name.startswith(reads):
                tensor.fill_(torch.nan)
    return ruined


@pytest.mark.parametrize("given", ["xray", "ct"])
def test_reports_are_scored_the_same_whatever_the_weights_that_their_key_leaves_out(
    model: MedM2G, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_draws: int, given: str
) -> None:
    """`Section.reads` decides which scores stay when a flow was trained further."""
    monkeypatch.setattr("medm2g_core.evaluation.report_rows.meteor", lambda a, b: None)
    train = VirtualCohort("train", "chest", 6, resolution=32)

    def measured(of: MedM2G) -> tuple[list[tuple[str, str, float]], dict[str, str]]:
        bench = Bench(
            MedM2GPipeline(of), n_chest=4, n_brain=2, reference=3, steps=1, progress=False
        )
        outcome = section.report_generation(
            bench, given, decoder_seconds=0.2, train=train, cache=tmp_path
        )
        untimed = [
            (r.who, r.metric, r.value) for r in outcome.rows if "autoregressive" not in r.who
        ]
        return untimed, {str(k): str(v) for k, v in bench._drawn.items()}

    reads = SECTIONS[f"report_{given}"].reads
    rows, drawn = measured(model)
    assert measured(ruin_all_but(model, reads)) == (rows, drawn)
    deaf = tuple(r for r in reads if not r.startswith("environments"))
    assert measured(ruin_all_but(model, deaf))[1] != drawn, "the control: it does read its guide"


@pytest.mark.parametrize("name", ["alignment", "text_codec", "image_codec"])
def test_codecs_and_alignment_are_scored_the_same_whatever_the_weights_that_their_key_leaves_out(
    model: MedM2G, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def gone(progress: bool) -> None:
        raise DataUnavailableError("not needed here")

    monkeypatch.setattr(text_codec, "load_iu_reports", gone)
    measure = {
        "alignment": alignment_section,
        "text_codec": text_codec.text_codec_section,
        "image_codec": lambda bench: image_codec_section(bench, None),
    }[name]

    def rows(of: MedM2G) -> list[tuple[str, str, str, float]]:
        outcome = measure(
            Bench(MedM2GPipeline(of), n_chest=3, n_brain=2, reference=2, progress=False)
        )
        return [(r.task, r.who, r.metric, r.value) for r in outcome.rows]

    assert rows(ruin_all_but(model, SECTIONS[name].reads)) == rows(model)


def test_the_control_check_fails_where_another_patients_image_does_as_well_as_the_own() -> None:
    from medm2g_core.evaluation.table import Row

    def rows(control: float) -> list[Row]:
        return [
            Row("t", m, who, v, v - 0.05, v + 0.05, 50)
            for m in ("finding F1, strict", "finding F1, presence")
            for who, v in (
                ("model", 0.6),
                ("baseline: random report", 0.1),
                ("control: another patient's image", control),
            )
        ]

    assert all(c.passed for c in section._falls_to_chance(rows(0.12), "t"))
    assert not any(c.passed for c in section._falls_to_chance(rows(0.5), "t"))


def test_the_text_codec_section_skips_real_reports_that_cannot_be_had(
    model: MedM2G, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(progress: bool) -> None:
        raise DataUnavailableError("no network")

    monkeypatch.setattr(text_codec, "load_iu_reports", gone)
    bench = Bench(MedM2GPipeline(model), n_chest=3, n_brain=2, reference=2, progress=False)
    outcome = text_codec.text_codec_section(bench)
    assert "left out" in outcome.facts["real IU findings"]
    assert {r.task for r in outcome.rows} == {
        "text codec: Report (chest)",
        "text codec: Report (brain)",
    }
    assert {"exact match, share", "BLEU-4, corpus", "finding F1, strict"} <= {
        r.metric for r in outcome.rows
    }


def test_the_better_half_are_the_draws_most_like_the_image_and_the_rest_has_no_vote():
    true, false = reports_of((NODULE,)), reports_of((EDEMA,))
    draws = [[true, false], [true, false], [false, true], [false, true], [false, true]]
    likeness = torch.tensor([[0.9, 0.9], [0.8, 0.8], [0.7, 0.1], [0.1, 0.2], [0.1, 0.3]])
    chosen = section.choices_of_many(draws, likeness, "chest")
    assert chosen["minimum Bayes risk of 5"] == [false, true], "all five together say the other"
    assert chosen["best of 5 by the aligned encoders"] == [true, false]
    better_half = "minimum Bayes risk of the better half of 5 by the aligned encoders"
    assert chosen[better_half] == [true, false]


def reports_of(findings) -> str:
    return write_report(findings, "chest", 50, "female", np.random.default_rng(0))
