"""Counterparts of the paper's figures and tables: all are there, and no number of the paper stands
among ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from medm2g_core.evaluation.source_page import PAPER
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import Row, SectionResult
from medm2g_core.experiments.ablation import load_runs
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.show import paper_figures
from medm2g_core.show.diagram import diagram
from medm2g_core.show.effects import RESULTS
from medm2g_core.show.paper_figures import (
    FIGURES,
    ROOT,
    TABLES,
    forest,
    main,
    paper_figure,
    paper_table,
    quoted,
    table_rows,
)


def test_sixteen_of_sixteen_have_a_counterpart() -> None:
    assert list(FIGURES) == [1, 2, 3, 4, 5, 6, 7] and len(TABLES) == 9
    outcomes, runs = load_results(RESULTS, ALL_SECTIONS), load_runs(RESULTS / "ablation")
    for picture in FIGURES.values():
        assert picture.paper and picture.ours
        assert all((ROOT / file).is_file() for _, file in picture.sheets)
    for table in TABLES:
        rows = table_rows(table, outcomes)
        assert rows if table.metrics else all(runs[g] for g in table.groups)
        assert table.missing


def test_every_quoted_figure_of_the_paper_stands_in_one_table_and_apart_from_ours() -> None:
    outcomes = load_results(RESULTS, ALL_SECTIONS)
    found = [p for table in TABLES for p in quoted(table)]
    assert sorted(map(id, found)) == sorted(map(id, PAPER)), "each once"
    for table in TABLES:
        ours, *theirs = paper_table(table, outcomes, load_runs(RESULTS / "ablation")).split(
            "| the paper, on its own data [S] |"
        )
        assert bool(theirs) == bool(quoted(table))
        for p in quoted(table):
            assert f"| {p.value} |" not in ours and f"| {p.value} | {p.differs} |" in theirs[0]


def test_the_two_halves_of_the_diagram_are_the_whole() -> None:
    """And whatever stands on one of them stands on it wholly."""
    whole, network, rounds = diagram(), paper_figure(2), paper_figure(3)
    said = [[t.get_text() for t in f.axes[0].texts] for f in (whole, network, rounds)]
    assert said[0] == said[1] + said[2] and said[1] and said[2]
    limits = network.axes[0].get_ylim(), rounds.axes[0].get_ylim()
    assert limits[0][0] == limits[1][1] and limits[1][0] == 0
    for figure in (network, rounds):
        figure.draw_without_rendering()
        page = figure.bbox
        for text in figure.axes[0].texts:
            box = text.get_window_extent()
            assert page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()


def test_a_table_that_was_not_measured_says_so() -> None:
    for table in TABLES:
        said = paper_table(table, {}, {})
        assert f"*Not measured yet:* {', '.join([*table.metrics, *table.groups])}." in said


def test_a_metric_without_a_row_is_named() -> None:
    table = next(t for t in TABLES if "SSIM" in t.metrics)
    rows = [
        Row("A → B (brain)", m, "model", 0.5, 0.4, 0.6, 8) for m in table.metrics if m != "SSIM"
    ]
    said = paper_table(table, {table.section: SectionResult(rows=rows)}, {})
    assert "*Not measured yet:* SSIM." in said and "| PSNR, dB |" in said


def test_a_missing_sheet_names_its_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"medm2g_core\.show\.task_sheets"):
        paper_figure(4, tmp_path)
    with pytest.raises(ValueError, match="figures 1 to 7"):
        paper_figure(8)


def test_a_forest_shows_each_kind_once_and_refuses_an_unknown_metric() -> None:
    who = ("model", "control: other", "baseline: mean image", "baseline: regression", "ceiling: x")
    rows = [Row("A → B", "PSNR, dB", w, 20.0 + i, 19.0, 26.0, 8) for i, w in enumerate(who)]
    (axes,) = forest(rows, metric="PSNR, dB").axes
    places = [line for line in axes.lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type]
    assert sorted(float(line.get_xdata()[0]) for line in places) == [20, 21, 22, 23, 24]  # type: ignore[index, arg-type]
    with pytest.raises(ValueError, match="no row of the metric 'SSIM'"):
        forest(rows, metric="SSIM")


def test_everything_is_written_as_png_and_pdf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {n: FIGURES[n] for n in (3, 6)}
    monkeypatch.setattr(paper_figures, "FIGURES", few)
    assert main(["--out", str(tmp_path)]) == 0
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(first) == {f"figure_{n}.{e}" for n in few for e in ("png", "pdf")} | {"tables.md"}
    assert first["figure_3.pdf"].startswith(b"%PDF") and first["figure_3.png"][1:4] == b"PNG"
    text = first["tables.md"].decode()
    assert text.count("*Missing:*") == len(TABLES)
