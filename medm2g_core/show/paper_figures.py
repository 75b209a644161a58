"""The paper's figures and tables, each with its counterpart here and what is missing of it:
``python -m medm2g_core.show.paper_figures`` (``make figures``) writes them to outputs/figures.

Everything comes from files that programs wrote (``results/``, ``docs/overview.png``) or from the
code itself; nothing is drawn with the model, so it takes seconds.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from medm2g_core.evaluation.source_page import PAPER, PaperFigure
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import Row, SectionResult, best_row, compact, is_trained
from medm2g_core.experiments.ablation import load_runs, summary
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.show.diagram import diagram
from medm2g_core.show.effects import RESULTS, ablation_figure
from medm2g_core.show.figures import DPI, STYLE, Figure
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS

__all__ = [
    "FIGURES",
    "TABLES",
    "PaperPicture",
    "PaperTable",
    "forest",
    "main",
    "paper_figure",
    "paper_table",
    "quoted",
    "table_rows",
]

ROOT = RESULTS.parent
WIDTH = 7.0  # inches of a page of sheets
SHARPNESS = 200  # pixels an inch of the written PNG; a notebook shows half of it


@dataclass(frozen=True)
class PaperPicture:
    """A figure of the paper and what stands for it here.

    Attributes:
        paper: what it shows, as far as that is known, with the mark of the source.
        ours: what is shown here.
        missing: what of it is not here, a sentence; empty where nothing is.
        sheets: caption -> file of the repository that is shown; empty where a program draws it.
    """

    paper: str
    ours: str
    missing: str = ""
    sheets: tuple[tuple[str, str], ...] = ()


_NO_REAL = "Pictures of real patients: none of the ten data sets may be redistributed."
FIGURES: Mapping[int, PaperPicture] = {
    1: PaperPicture(
        "overview of the tasks [P]",
        "given, true and drawn streams of all five tasks",
        _NO_REAL,
        (("", "docs/overview.png"),),
    ),
    2: PaperPicture("the network [P]", "the network, drawn from the code's own plan"),
    3: PaperPicture("three rounds of training [P]", "the rounds, drawn from the code's own plan"),
    4: PaperPicture(
        "pictures: (a) report generation, (b) text to image, (c) unified generation [P]",
        "the same three tasks; sentences have the colour of their verdict",
        f"{_NO_REAL} The paper marks MeSH terms, here a labeller judges every sentence.",
        (
            ("(a) report generation", "results/sheet_xray_to_report.png"),
            ("(b) text to image", "results/sheet_text_to_xray.png"),
            ("(c) unified generation", "results/sheet_joint.png"),
        ),
    ),
    5: PaperPicture(
        "pictures: (a) MRI synthesis (IXI), (b) MRI to CT (pelvis), (c) CT and X-ray [P]",
        "the same three tasks, on brains and chests",
        f"{_NO_REAL} There is no pelvis: it is a chest.",
        (
            ("(a) MRI synthesis", "results/sheet_t1_t2_to_flair.png"),
            ("(b) MRI to CT", "results/sheet_mr_to_ct.png"),
            ("(c) CT to X-ray", "results/sheet_ct_to_xray.png"),
        ),
    ),
    6: PaperPicture(
        "one of two more figures, of ablations or pictures; which is not known",
        "the component effects, a dot a seed",
        "What exactly the paper shows is not known.",
    ),
    7: PaperPicture(
        "the other of the two",
        "more pictures: text to CT, CT to T2",
        f"What exactly the paper shows is not known. {_NO_REAL}",
        (
            ("text to CT", "results/sheet_text_to_ct.png"),
            ("CT to T2", "results/sheet_ct_to_t2.png"),
        ),
    ),
}
"""Number of the figure -> its counterpart."""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper and what stands for it here.

    Attributes:
        title: its subject. The paper has nine tables [P]; how it divides its results among them is
            known in part only, so they are told apart by subject and have no number here.
        section: of the stored results; empty for ablations.
        task: regular expression that a row's task contains.
        metrics: of the rows that are shown.
        groups: of ablation runs that are shown instead.
        sources: data sets whose figures of the paper are known, see
            `medm2g_core.evaluation.source_page.PAPER`.
        missing: what of it is not here, a sentence.
    """

    title: str
    section: str = ""
    task: str = ""
    metrics: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    missing: str = ""


_OTHER_DATA = (
    "No score on the paper's data, which may not be shipped; who has them gets it by"
    " `evaluate --source`."
)
_REPORTS = ("finding F1, strict", "finding F1, presence", "BLEU-1, corpus", "BLEU-4, corpus")
_DRAWN = ("finding AUC", "side accuracy", "Fréchet distance")
_BRAIN = ("PSNR, dB", "SSIM", "lesion Dice (threshold)", "Fréchet distance")
_CHEST = ("PSNR, dB", "SSIM", "MAE, HU", "Fréchet distance")
TABLES: tuple[PaperTable, ...] = (
    PaperTable(
        "report generation, X-ray",
        "report_xray",
        metrics=_REPORTS,
        sources=("mimic_cxr",),
        missing=_OTHER_DATA,
    ),
    PaperTable(
        "report generation, a second set",
        "report_ct",
        metrics=_REPORTS,
        sources=("iu_xray",),
        missing=f"{_OTHER_DATA} Ours is from CT, the paper's second set is of X-rays.",
    ),
    PaperTable(
        "text to X-ray",
        "text_to_image",
        "→ Chest X-ray",
        _DRAWN,
        ("mimic_cxr", "chestxray14"),
        missing=f"{_OTHER_DATA} A Fréchet distance in other features is another number.",
    ),
    PaperTable(
        "text to CT and MR",
        "text_to_image",
        "→ CT|→ MR",
        _DRAWN,
        ("acdc", "sliver07"),
        missing=f"{_OTHER_DATA} What the paper gives to draw these from is not known.",
    ),
    PaperTable(
        "MRI synthesis",
        "translation",
        r"\(brain\)",
        _BRAIN,
        ("brats2020", "ixi"),
        missing=f"{_OTHER_DATA} The paper has two data sets for this, here is one cohort.",
    ),
    PaperTable(
        "MRI-CT translation",
        "translation",
        r"MR .*→ CT|CT → MR",
        _CHEST,
        ("gold_atlas",),
        missing=f"{_OTHER_DATA} Ours is a chest, the paper's a pelvis.",
    ),
    PaperTable(
        "CT-X-ray and unified generation",
        "unified",
        metrics=("finding AUC", "agreement: correlation"),
        missing="No figure of the paper for this is known to us.",
    ),
    PaperTable(
        "ablation: alignment and visual invariant",
        groups=("alignment",),
        missing="The paper's arms and figures are not known to us.",
    ),
    PaperTable(
        "ablation: cross-guidance and rounds",
        groups=("guidance", "rounds"),
        missing="The paper's arms and figures are not known to us.",
    ),
)
"""The nine tables, by subject; the last two are ablations."""


def table_rows(table: PaperTable, outcomes: Mapping[str, SectionResult]) -> list[Row]:
    """The stored rows of a table; empty for ablations, and where nothing was measured."""
    if table.section not in outcomes:
        return []
    return [
        r
        for r in outcomes[table.section].rows
        if r.metric in table.metrics and re.search(table.task, r.task)
    ]


def quoted(table: PaperTable) -> list[PaperFigure]:
    """Figures of the paper on the subject of a table, as secondary sources quote them [S].

    They are on other data: never put them into a column of ours.
    """
    reports = table.section.startswith("report_")
    wanted = [p for p in PAPER if p.source in table.sources]
    return [p for p in wanted if (p.target == "text") == reports]


def paper_table(
    table: PaperTable,
    outcomes: Mapping[str, SectionResult],
    runs: Mapping[str, Sequence[Mapping[str, object]]],
) -> str:
    """One table as Markdown: our rows with n, rivals and intervals; below, apart from them, the
    paper's figures where a source gives them; and what is missing or was not measured."""
    rows = table_rows(table, outcomes)
    measured = {g: runs[g] for g in table.groups if runs.get(g)}
    lines = []
    if rows:
        lines.append(compact(rows))
    if measured:
        lines.append(summary(measured))
    stored = {*measured, *(r.metric for r in rows)}
    if absent := [name for name in (*table.metrics, *table.groups) if name not in stored]:
        lines.append(f"*Not measured yet:* {', '.join(absent)}.\n")
    if quotes := quoted(table):
        lines.append("| the paper, on its own data [S] | drawn | metric | value | what differs |")
        lines.append("|---|---|---|---|---|")
        lines += [
            f"| {p.source} | {STREAMS[p.target].title} | {p.metric} | {p.value} | {p.differs} |"
            for p in quotes
        ]
        lines.append("")
    lines.append(f"*Missing:* {table.missing}\n")
    return "\n".join(lines)


# ---- figures


def _page(sheets: Sequence[tuple[str, Path]]) -> Figure:
    """Pictures of one width below each other, each with a caption above it."""
    pictures = []
    for _, file in sheets:
        with Image.open(file) as opened:
            pictures.append(np.asarray(opened.convert("RGB")))
    heights = [WIDTH * p.shape[0] / p.shape[1] for p in pictures]
    head = 0.25  # inches of a caption
    total = sum(heights) + head * len(sheets)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, total), dpi=DPI)
        top = total
        for (caption, _), picture, height in zip(sheets, pictures, heights, strict=True):
            top -= head
            figure.text(0.01, (top + 0.07) / total, caption, fontsize=9, fontweight="bold")
            axes = figure.add_axes((0, (top - height) / total, 1, height / total))
            axes.imshow(picture, interpolation="antialiased", aspect="auto")
            axes.set_axis_off()
            top -= height
    return figure


def paper_figure(number: int, root: Path = ROOT) -> Figure:
    """The counterpart of a figure of the paper.

    Args:
        number: 1 to 7.
        root: of the repository.

    Raises:
        ValueError: no such figure.
        FileNotFoundError: a sheet was not drawn yet; the message says by what it is.
    """
    if number not in FIGURES:
        raise ValueError(f"figure {number!r}: the paper has figures 1 to {max(FIGURES)}")
    draws: Mapping[int, Callable[[], Figure]] = {
        2: lambda: diagram("network"),
        3: lambda: diagram("rounds"),
        6: lambda: ablation_figure(load_runs(root / "results" / "ablation")),
    }
    if number in draws:
        return draws[number]()
    sheets = [(caption, root / file) for caption, file in FIGURES[number].sheets]
    for _, file in sheets:
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: draw it with python -m medm2g_core.show.task_sheets"
                " (docs/overview.png: python -m medm2g_core.show.readme --picture)"
            )
    return _page(sheets)


KINDS: Mapping[str, tuple[str, str]] = {
    "control": ("#a31f34", "x"),
    "simple baseline": ("#6b6b6b", "s"),
    "trained baseline": ("#8b3fa0", "D"),
    "model, one draw": ("#1f5fa8", "o"),
    "model, chosen setting": ("#1f5fa8", "^"),
    "ceiling": ("#2d7d46", "|"),
}
"""Kind of a row in a forest plot -> colour and mark."""


def _of_kind(rows: Sequence[Row]) -> dict[str, Row | None]:
    """The strongest row of each kind among rows of one task and metric."""
    baselines = [r for r in rows if r.who.startswith("baseline")]
    return {
        "control": best_row([r for r in rows if r.who.startswith("control")]),
        "simple baseline": best_row([r for r in baselines if not is_trained(r)]),
        "trained baseline": best_row([r for r in baselines if is_trained(r)]),
        "model, one draw": next((r for r in rows if r.who == "model"), None),
        "model, chosen setting": next(
            (r for r in rows if r.chosen and r.who.startswith("model, ")), None
        ),
        "ceiling": best_row([r for r in rows if r.who.startswith("ceiling")]),
    }


def forest(rows: Sequence[Row], *, metric: str, title: str = "") -> Figure:
    """A line a task: the strongest control, baselines, the model, the ceiling, each with its
    interval.

    Args:
        rows: of any metrics; only those of ``metric`` are shown.

    Raises:
        ValueError: no row of that metric.
    """
    own = [r for r in rows if r.metric == metric]
    tasks = list(dict.fromkeys(r.task for r in own))
    if not own:
        raise ValueError(f"no row of the metric {metric!r}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.0, 0.5 * len(tasks) + 1.0), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        step = 0.8 / len(KINDS)  # a task's marks share its band of height 1
        for y, task in enumerate(tasks):
            found = _of_kind([r for r in own if r.task == task])
            for k, (kind, (colour, mark)) in enumerate(KINDS.items()):
                row, place = found[kind], y + (k - len(KINDS) / 2) * step
                if row is not None:
                    axes.plot([row.low, row.high], [place, place], color=colour, linewidth=1.2)
                    axes.plot(row.value, place, mark, color=colour, markersize=4.5)
        for kind, (colour, mark) in KINDS.items():
            axes.plot([], [], mark, color=colour, label=kind, markersize=4.5)
        n = sorted({r.n for r in own})
        axes.set_yticks(range(len(tasks)), [_short(t) for t in tasks], fontsize=6.5)
        axes.set_ylim(len(tasks) - 0.4, -0.6)
        axes.set_xlabel(f"{metric}, 95 % intervals over studies, n = {', '.join(map(str, n))}")
        axes.set_title(title, fontsize=8)
        axes.grid(axis="x", alpha=0.25, linewidth=0.5)
        figure.legend(loc="outside right upper", fontsize=6.5)
    return figure


def _short(task: str) -> str:
    """A task in fewer letters, in two lines where it is long."""
    words = task.replace("-weighted", "").replace("Chest X-ray", "X-ray")
    words = words.replace("MR proton density", "MR PD").replace(", never trained together", "")
    return words if len(words) < 34 else words.replace(" → ", "\n→ ").replace(": ", ":\n", 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``figure_<n>.png`` and ``.pdf`` of every figure, and ``tables.md``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs") / "figures")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    for number in FIGURES:
        figure = paper_figure(number)
        for kind in ("png", "pdf"):
            # without a date or a version, so that the same figure is the same file
            nothing = {"Software": None} if kind == "png" else {"CreationDate": None}
            atomic_write(
                out / f"figure_{number}.{kind}",
                lambda p, figure=figure, kind=kind, nothing=nothing: figure.savefig(
                    p, format=kind, dpi=SHARPNESS, metadata=nothing
                ),
            )
        print(out / f"figure_{number}.png")
    outcomes, runs = load_results(RESULTS, ALL_SECTIONS), load_runs(RESULTS / "ablation")
    parts = [f"# {t.title.capitalize()}\n\n{paper_table(t, outcomes, runs)}" for t in TABLES]
    atomic_write(out / "tables.md", lambda p: p.write_text("\n".join(parts), encoding="utf-8"))
    print(out / "tables.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
