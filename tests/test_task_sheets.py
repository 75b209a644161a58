"""Contact sheets: every task has one, patients are not chosen, and the pictures say what they
are."""

from __future__ import annotations

import pytest
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.show import task_sheets
from medm2g_core.show.figures import Figure
from medm2g_core.show.task_sheets import (
    SHEETS,
    first_with_findings,
    joint_sheet,
    main,
    report_sheet,
    translation_sheet,
)
from medm2g_core.streams import STREAMS


@pytest.fixture()
def pipe(model) -> MedM2GPipeline:
    out = MedM2GPipeline(model)
    out.set_progress_bar_config(disable=True)
    return out


def words(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_the_patients_are_the_first_of_the_test_split_that_have_a_finding(pipe):
    chosen = [s.id for s in first_with_findings(pipe, "brain")]
    cohort = VirtualCohort("test", "brain", 24, resolution=32)
    assert chosen == [s.id for s in map(cohort.__getitem__, range(24)) if s.findings][:3]


def test_every_sheet_names_its_task_and_its_purpose_and_is_small(pipe):
    for region, given, target in (SHEETS["t1_t2_to_flair"], SHEETS["text_to_ct"]):
        figure = translation_sheet(pipe, region, given, target)
        text = words(figure)
        assert (
            STREAMS[target].title in text
            and "research and teaching only" in text
            and "truth" in text
        )
        assert len(figure.png()) < 600e3
    for figure in (report_sheet(pipe, "xray"), joint_sheet(pipe)):
        assert "research and teaching only" in words(figure)


def test_the_same_seed_draws_the_same_sheet(pipe):
    task = SHEETS["ct_to_t2"]
    assert translation_sheet(pipe, *task).png() == translation_sheet(pipe, *task).png()


def test_the_command_writes_every_sheet(model, tmp_path):
    model.save_pretrained(tmp_path / "weights")
    assert main(["--model", str(tmp_path / "weights"), "--out", str(tmp_path / "out")]) == 0
    names = {p.stem for p in (tmp_path / "out").glob("*.png")}
    assert names == {f"sheet_{n}" for n in (*SHEETS, "xray_to_report", "ct_to_report", "joint")}


def test_sheets_of_the_same_weights_are_left_alone_and_others_are_drawn_again(
    model, tmp_path, monkeypatch
):
    model.save_pretrained(tmp_path / "weights")
    arguments = ["--model", str(tmp_path / "weights"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(task_sheets, "SHEETS", {"ct_to_t2": SHEETS["ct_to_t2"]})
    monkeypatch.setattr(task_sheets, "report_sheet", lambda *_: Figure(figsize=(1, 1)))
    monkeypatch.setattr(task_sheets, "joint_sheet", lambda *_: Figure(figsize=(1, 1)))

    def files() -> dict[str, tuple[bytes, int]]:
        found = sorted((tmp_path / "out").glob("*.png"))
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in found}

    main(arguments)
    first = files()
    main(arguments)
    assert len(first) == 4 and files() == first
    with torch.no_grad():
        next(model.flows["mri"].parameters()).add_(0.5)
    model.save_pretrained(tmp_path / "weights")
    main(arguments)
    assert all(files()[name] != first[name] for name in first)
