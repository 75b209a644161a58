"""Scores on real data sets: the right tasks, rivals for each, and the paper's figures never among
our own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import untrained
from replicas.brain_mri_ct import build as write_brain_mri_ct
from replicas.chestxray14 import chestxray14
from replicas.ixi import write_ixi
from replicas.sliver07 import write_sliver07

from medm2g_core.cli import main
from medm2g_core.data.sources import SOURCES, SourceError
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.evaluation.fidelity import CODEC, FRECHET, REAL
from medm2g_core.evaluation.source_page import PAPER, source_page, source_table
from medm2g_core.evaluation.source_scores import (
    CONTROL,
    NEAREST,
    REGRESSION,
    Task,
    evaluate_source,
    tasks_of,
)
from medm2g_core.evaluation.table import Row, SectionResult
from medm2g_core.judges.files import load_judges
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import profile
from medm2g_core.streams import IMAGE_STREAMS
from medm2g_core.training.data import SourceData

SECONDS = {"mri": 0.3, "ct": 0.3, "xray": 0.3}


@pytest.fixture(scope="module")
def pipe() -> MedM2GPipeline:
    out = MedM2GPipeline(untrained(profile("smoke")))
    out.set_progress_bar_config(disable=True)
    return out


def measured(pipe, name, root, work, **options):
    data = SourceData(name, root, work, 32, workers=0, allow_missing=True)
    data.fit(pipe.model)
    judges = load_judges()
    return evaluate_source(
        pipe, data, judges, seconds=SECONDS, means=2, steps=2, progress=False, **options
    )


# ---- tasks


def test_streams_say_what_can_be_asked():
    assert tasks_of(["text", "xray"]) == [Task(("text",), "xray"), Task(("xray",), "text")]
    assert tasks_of(["mri_t1", "mri_t2", "mri_pd"])[0] == Task(("mri_t2", "mri_pd"), "mri_t1"), (
        "the paper's IXI task"
    )
    pelvis = tasks_of(["ct", "mri_t1", "mri_t2"])
    assert {Task(("mri_t2",), "ct"), Task(("ct",), "mri_t2"), Task(("mri_t2",), "mri_t1")} <= set(
        pelvis
    )
    assert tasks_of(["xray", "ct"]) == [Task(("xray",), "ct"), Task(("ct",), "xray")]
    assert tasks_of(["ct"]) == [Task((), "ct")]


@pytest.mark.parametrize("figure", PAPER, ids=lambda p: f"{p.source}-{p.target}-{p.metric}")
def test_every_quoted_figure_belongs_to_a_task_that_its_data_set_allows(figure):
    streams = SOURCES[figure.source].streams
    tasks = tasks_of(streams)
    assert any(t.target == figure.target and figure.given in (None, t.given) for t in tasks), (
        streams,
        figure,
    )
    assert figure.differs


# ---- the rows


def test_image_tasks_have_baselines_a_control_and_a_ceiling(pipe, tmp_path):
    outcome, examples = measured(
        pipe, "brain_mri_ct", write_brain_mri_ct(tmp_path / "root"), tmp_path / "work"
    )
    assert set(examples) == {Task(("mri_t1",), "ct"), Task(("ct",), "mri_t1")}
    for task in examples:
        own = {r.who for r in outcome.rows if r.task == task.title and r.metric == "PSNR, dB"}
        assert own >= {
            "model",
            "model, mean of 2",
            CONTROL,
            REGRESSION,
            CODEC,
            "baseline: mean image",
            "baseline: nearest training study",
        }
        hu = {r.who for r in outcome.rows if r.task == task.title and r.metric == "MAE, HU"}
        assert bool(hu) == (task.target == "ct")
    assert len(outcome.checks) == 2 and all(r.n == 3 for r in outcome.rows)
    assert not any(r.metric == FRECHET for r in outcome.rows), "three studies have no covariance"
    assert {"regression, ct", "regression, mri"} == set(outcome.facts["baselines"])


def test_report_tasks_compare_with_reports_of_the_training_split(pipe, tmp_path):
    outcome, examples = measured(
        pipe, "chestxray14", chestxray14(tmp_path / "root"), tmp_path / "work"
    )
    (task,) = [t for t in examples if t.target == "text"]
    own = {r.who for r in outcome.rows if r.task == task.title and r.metric == "BLEU-4, corpus"}
    assert own == {
        "model",
        CONTROL,
        NEAREST,
        "baseline: commonest training report",
        "baseline: random training report",
        "ceiling: text codec",
    }
    assert not any("finding" in r.metric for r in outcome.rows), (
        "the labeller knows the grammar, not real reports"
    )


def test_a_lone_stream_is_drawn_from_nothing_and_has_a_floor(pipe, tmp_path):
    root = write_sliver07(tmp_path / "root")
    outcome, examples = measured(pipe, "sliver07", root, tmp_path / "work")
    (task,) = examples
    assert task == Task((), "ct") and not outcome.rows and not outcome.checks
    page = source_page("sliver07", outcome)
    assert (
        "the paper's FID 6.89 (CT): nothing was measured to stand beside it" in page
        and "64" in page
    )


def test_distances_have_the_floor_of_real_images(pipe, tmp_path):
    """With eyes of few features a replica has studies enough."""
    data = SourceData(
        "sliver07",
        write_sliver07(tmp_path / "root"),
        tmp_path / "work",
        32,
        workers=0,
        allow_missing=True,
    )
    data.fit(pipe.model)

    class Net:
        FEATURES = 16

    class Eyes:
        net = Net()

        @staticmethod
        def features(x: torch.Tensor):
            return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1).double().numpy()

    judges = {("chest", n): Eyes() for n in IMAGE_STREAMS}
    outcome, _ = evaluate_source(pipe, data, judges, seconds=SECONDS, steps=2, progress=False)
    distance = {r.who: r.value for r in outcome.rows if r.metric == FRECHET}
    assert set(distance) == {REAL, "model", CODEC}
    assert distance[REAL] < distance["model"], "an untrained model is further away than real images"
    table = source_table("sliver07", outcome.rows)
    assert "| FID 6.89 |" in table and "Inception" in table


def test_a_data_set_without_a_test_split_is_an_error(pipe, tmp_path):
    root = write_ixi(tmp_path / "root")
    prepare_source(
        "ixi",
        root,
        tmp_path / "shards",
        size=32,
        workers=0,
        allow_missing=True,
        shares=(0.6, 0.4, 0.0),
    )
    data = SourceData("ixi", tmp_path / "shards", tmp_path / "work", 32)
    data.fit(pipe.model)
    with pytest.raises(SourceError, match="no study in the test split"):
        evaluate_source(pipe, data, {}, seconds=SECONDS, progress=False)


# ---- pages


def test_the_papers_figure_stands_in_its_own_column_with_its_mark_and_what_differs():
    rows = [
        Row(Task(("mri_t2", "mri_pd"), "mri_t1").title, "PSNR, dB", "model", 21.0, 20.0, 22.0, 9),
        Row(Task(("mri_t2", "mri_pd"), "mri_t1").title, "SSIM", "model", 0.5, 0.4, 0.6, 9),
    ]
    head, _, first, second = source_table("ixi", rows).splitlines()
    columns = [c.strip() for c in head.split("|")]
    assert "[S]" in columns[7] and columns[4] == "model"
    assert [c.strip() for c in first.split("|")][7] == "32.45" and "other slices" in first
    assert "32.45" not in second and "32.45" not in source_table("acdc", rows)
    assert "secondary sources only" in source_page("ixi", _result(rows))


def _result(rows):
    facts = {"source": {"studies": {"test": 9}}, "baselines": {}, "tokenization": ""}
    return SectionResult(rows=rows, facts=facts)


# ---- command


def test_the_command_writes_table_and_sheets_and_measures_once(pipe, tmp_path, capsys, monkeypatch):
    pipe.model.save_pretrained(tmp_path / "model")
    root = chestxray14(tmp_path / "root")
    out = tmp_path / "out"
    words = (
        f"evaluate --source chestxray14 --root {root} --allow-missing --workers 0 --model"
        f" {tmp_path / 'model'}"
    )
    words += f" --out {out} --steps 2 --time-fraction 0.001 --device cpu"
    assert main(words.split()) == 0
    assert {p.name for p in out.glob("*.png")} == {
        "source_chestxray14_text_to_xray.png",
        "source_chestxray14_xray_to_text.png",
    }
    page = (out / "source_chestxray14.md").read_text(encoding="utf-8")
    assert "BLEU-4" in page and "FID 1.84" in page and str(tmp_path) not in page
    assert json.loads((out / "source_chestxray14.json").read_text(encoding="utf-8"))["result"][
        "rows"
    ]
    monkeypatch.setattr("medm2g_core.evaluation.source_scores.evaluate_source", None)
    assert main(words.split()) == 0, "the second call takes what is stored"
    assert page in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--source ixi", "belong together"),
        ("--root .", "belong together"),
        ("--limit 3", "--source"),
    ],
)
def test_words_that_do_not_fit_together_are_explained(words, message, tmp_path, capsys):
    assert main([*f"evaluate --out {tmp_path / 'out'}".split(), *words.split()]) == 2
    assert message in capsys.readouterr().err and not Path(tmp_path / "out").exists()
