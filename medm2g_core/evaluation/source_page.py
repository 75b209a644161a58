"""The page of a real data set: the table of its scores, with the paper's figures beside them.

The paper's figures are those that secondary sources quote. They are **not** on the same footing:
other pictures, sizes, splits, feature networks and tokenisation; the last column says what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medm2g_core.data.sources import SOURCES
from medm2g_core.evaluation.fidelity import FRECHET
from medm2g_core.evaluation.source_scores import Task
from medm2g_core.evaluation.table import Row, SectionResult, markdown
from medm2g_core.judges.network import JudgeNet
from medm2g_core.streams import STREAMS

__all__ = ["PAPER", "PaperFigure", "source_page", "source_table"]

SLICES = "other slices, sizes, normalisation and split"
FEATURES = (
    "Inception features and n unknown; ours are those of a small classifier of virtual patients"
)


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper as secondary sources quote it ([S] in the deviation ledger).

    Attributes:
        source: name of the data set.  given: the streams, or ``None`` for every task with that
            target.
        metric: our metric that it stands beside.
        value: as quoted.  differs: why the two must not be compared as equals.
    """

    source: str
    given: tuple[str, ...] | None
    target: str
    metric: str
    value: str
    differs: str


PAPER: tuple[PaperFigure, ...] = (
    PaperFigure(
        "mimic_cxr",
        ("xray",),
        "text",
        "BLEU-4, corpus",
        "0.142",
        "tokenisation and section unknown",
    ),
    PaperFigure(
        "iu_xray",
        ("xray",),
        "text",
        "BLEU-1, corpus",
        "0.533",
        "tokenisation, split and section unknown",
    ),
    PaperFigure("mimic_cxr", ("text",), "xray", FRECHET, "FID 0.48", FEATURES),
    PaperFigure("chestxray14", ("text",), "xray", FRECHET, "FID 1.84", FEATURES),
    PaperFigure(
        "acdc", None, "mri_t2", FRECHET, "FID 15.89", f"{FEATURES}; what is given is unknown"
    ),
    PaperFigure(
        "sliver07", None, "ct", FRECHET, "FID 6.89", f"{FEATURES}; what is given is unknown"
    ),
    PaperFigure("ixi", ("mri_t2", "mri_pd"), "mri_t1", "PSNR, dB", "32.45", SLICES),
    PaperFigure("gold_atlas", ("mri_t2",), "ct", "PSNR, dB", "28.13", SLICES),
    *(
        PaperFigure(
            source, None, target, metric, value, f"range over both of BraTS and IXI; {SLICES}"
        )
        for source, targets in (
            ("brats2020", ("mri_t1", "mri_t2", "mri_flair")),
            ("ixi", ("mri_t2", "mri_pd")),
        )
        for target in targets
        for metric, value in (("PSNR, dB", "29.89 to 34.81"), ("SSIM", "0.954 to 0.982"))
    ),
)


def source_page(name: str, outcome: SectionResult) -> str:
    """The whole outcome as Markdown: what was measured on what, the table, the controls."""
    card, facts = SOURCES[name].card, outcome.facts
    held = ", ".join(f"{split}: {n}" for split, n in facts["source"]["studies"].items())
    lines = [
        f"# {card.title}",
        "",
        (
            f"Measured on its test split (studies {held}) with 95 % intervals by bootstrap over"
            " studies; several of them may be slices of one patient, so the intervals are too"
            " narrow for a claim about patients. Distances are in the features of a small"
            " classifier of virtual patients, comparable within this repository only."
        ),
        "",
        *(
            f"{who}: {info['CPU seconds']} CPU seconds of training."
            for who, info in facts["baselines"].items()
        ),
        f"{facts['tokenization']}." if any("BLEU" in r.metric for r in outcome.rows) else "",
        facts.get("left out", ""),
        "",
        source_table(name, outcome.rows),
        *_unmeasured(name, outcome),
        (
            "The paper's figures are known from secondary sources only ([S] in docs/deviations.md)."
            " They stand on other pictures, splits and features: read them as a scale, not as a"
            " rival."
        ),
        "",
        *(
            f"- {'holds' if c.passed else '**does not hold**'}: {c.name} ({c.detail})"
            for c in outcome.checks
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _unmeasured(name: str, outcome: SectionResult) -> list[str]:
    """Figures of the paper that no row stands beside, and why; an empty line at the end if there
    are any."""
    shown = {(r.task, r.metric) for r in outcome.rows}
    beside = {_quoted(name, *row) for row in shown}
    left = [p for p in PAPER if p.source == name and (p.value, p.differs) not in beside]
    more = JudgeNet.FEATURES
    why = (
        f"distances need more than {more} held-out and {more} other studies, scores need studies"
        " with both streams"
    )
    lines = [
        f"- the paper's {p.value} ({STREAMS[p.target].title}): nothing was measured to stand beside"
        f" it; {why}"
        for p in left
    ]
    return [*lines, ""] if lines else []


def source_table(name: str, rows: Sequence[Row]) -> str:
    """Rows as Markdown, a line a task and metric: ours beside baselines and ceiling; the paper's in
    its own column."""
    return markdown(
        rows,
        {
            "the paper, as secondary sources quote it [S]": lambda task, metric: _quoted(
                name, task, metric
            )[0],
            "what differs": lambda task, metric: _quoted(name, task, metric)[1],
        },
    )


def _quoted(name: str, title: str, metric: str) -> tuple[str, str]:
    """The paper's figure for that task and metric, and what differs; two empty strings where none
    is known."""
    for p in PAPER:
        to_target = title.endswith(f"→ {STREAMS[p.target].title}")
        same = to_target if p.given is None else title == Task(p.given, p.target).title
        if same and p.source == name and metric == p.metric:
            return p.value, p.differs
    return "", ""
