"""Scores as rows: what every section of the evaluation produces, how rows are shown, and how
outcomes are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medm2g_core.metrics.bootstrap import Interval, bootstrap_mean
from medm2g_core.storage import atomic_write

__all__ = [
    "LESS_IS_BETTER",
    "Check",
    "ResultStore",
    "Row",
    "SectionResult",
    "cell",
    "compact",
    "interval_row",
    "make_row",
    "markdown",
    "strongest",
]


@dataclass(frozen=True)
class Row:
    """One score of one predictor.

    Attributes:
        task: what is generated from what.
        metric: the score and its unit.
        who: ``"model"`` (perhaps ``"model, mean of 8"``), or a rival that begins with ``"baseline:
            "``, ``"control: "`` (what must fall to chance), or ``"ceiling: "`` (codec
            reconstruction or real data).
        value, low, high: mean and 95 % interval (bootstrap over studies unless ``note`` says
            otherwise).
        n: held-out studies.
        note: what a reader of this one row must know; mostly empty.
    """

    task: str
    metric: str
    who: str
    value: float
    low: float
    high: float
    n: int
    note: str = ""


@dataclass(frozen=True)
class Check:
    """A condition without which the tables must not be believed, such as a control at chance.

    Attributes:
        name: what must hold.  passed: whether it does.  detail: the figures, in words.
    """

    name: str
    passed: bool
    detail: str


def interval_row(task: str, metric: str, who: str, scored: Interval, n: int, note: str = "") -> Row:
    """A row of a score of ``n`` studies that has its interval already."""
    value, low, high = (round(x, 4) for x in scored)
    return Row(task, metric, who, value, low, high, n, note)


def make_row(task: str, metric: str, who: str, samples: Sequence[float], note: str = "") -> Row:
    """A row of the mean of one number a study, with its bootstrap interval."""
    return interval_row(task, metric, who, bootstrap_mean(samples), len(samples), note)


def _digits(metric: str) -> int:
    return 1 if any(unit in metric for unit in ("dB", "HU", "%", "mm", "Fréchet")) else 2


def markdown(
    rows: Sequence[Row], more: Mapping[str, Callable[[str, str], str]] | None = None
) -> str:
    """Rows as a Markdown table with a line a task and metric: model | baselines and controls |
    ceilings.

    Args:
        more: headings of further columns -> from task and metric to the cell.
    """
    more = more or {}
    table: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        table.setdefault((r.task, r.metric), []).append(r)
    heads = ["task", "metric", "n", "model", "baselines and controls", "ceiling", *more]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (task, metric), group in table.items():
        digits = _digits(metric)

        def show(r: Row, digits: int = digits) -> str:
            who = r.who.split(": ")[-1].removeprefix("model, ")
            name = "" if who == "model" else f"{who} "
            return f"{name}{r.value:.{digits}f} [{r.low:.{digits}f}, {r.high:.{digits}f}]"

        def cell(kinds: tuple[str, ...], group: list[Row] = group) -> str:
            return "; ".join(show(r) for r in group if r.who.startswith(kinds))

        rivals = (cell(kinds) for kinds in (("model",), ("baseline", "control"), ("ceiling",)))
        further = (column(task, metric) for column in more.values())
        lines.append(f"| {' | '.join([task, metric, str(group[0].n), *rivals, *further])} |")
    return "\n".join(lines) + "\n"


LESS_IS_BETTER = ("Fréchet distance", "kernel distance", "MAE, HU")


def strongest(rows: Sequence[Row], kind: str | tuple[str, ...]) -> Row | None:
    """The best row of a kind among rows of one task and metric, so that nothing weaker stands for
    it.

    Args:
        kind: how ``who`` begins; ``"model"`` is the single draw alone, ``"model, "`` its other
            settings.
    """
    own = [r for r in rows if (r.who == kind if kind == "model" else r.who.startswith(kind))]
    best = min if own and own[0].metric in LESS_IS_BETTER else max
    return best(own, key=lambda r: r.value, default=None)


def cell(rows: Sequence[Row], kind: str) -> str:
    """`strongest` with its interval, and its name where the kind does not tell it; empty if there
    is none."""
    row = strongest(rows, kind)
    if row is None:
        return ""
    digits = _digits(row.metric)
    value = f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"
    return (
        value if kind == "model" else f"{value} {row.who.split(': ')[-1].removeprefix('model, ')}"
    )


def compact(rows: Sequence[Row]) -> str:
    """A line a task and metric, each rival that matters once.

    The model's single draw; the best of its other settings; the `strongest` baseline and control;
    the ceiling: real images where there are any, else the codec.
    """
    table: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        table.setdefault((r.task, r.metric), []).append(r)
    lines = [
        (
            "| task | metric | n | model, one draw | its best setting | strongest baseline |"
            " control | ceiling |"
        ),
        "|---|---|--:|---|---|---|---|---|",
    ]
    for (task, metric), group in table.items():
        ceilings = ("ceiling: real", "ceiling: codec", "ceiling: text codec", "ceiling")
        ceiling = next(filter(None, (cell(group, kind) for kind in ceilings)), "")
        cells = [cell(group, kind) for kind in ("model", "model, ", "baseline", "control")]
        lines.append(f"| {task} | {metric} | {group[0].n} | {' | '.join(cells)} | {ceiling} |")
    return "\n".join(lines) + "\n"


@dataclass
class SectionResult:
    """What one section measured.

    Attributes:
        rows: the scores.  checks: what must hold.  seconds: time it took.  facts: settings and
            other plain values.
    """

    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> SectionResult:
        rows = [Row(**r) for r in plain["rows"]]
        checks = [Check(**c) for c in plain["checks"]]
        return cls(rows, checks, plain["seconds"], plain["facts"])


class ResultStore:
    """Finished outcomes on disk: a outcome is measured again only when what it depends on has
    changed.

    Args:
        folder: one ``<name>.json`` a outcome.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(**depends: Any) -> str:
        """A digest of plain values (weights, cohort, settings, version of the section)."""
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]

    def get(self, name: str, key: str) -> SectionResult | None:
        """The stored outcome, or ``None`` if there is none for that key (also when the file is
        damaged)."""
        file = self.folder / f"{name}.json"
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            return SectionResult.from_dict(plain["result"]) if plain["key"] == key else None
        except (OSError, json.JSONDecodeError, KeyError, TypeError):
            return None

    def put(self, name: str, key: str, outcome: SectionResult) -> Path:
        """Store a outcome in one step."""
        file = self.folder / f"{name}.json"
        text = json.dumps({"key": key, "result": outcome.to_dict()}, indent=1) + "\n"
        atomic_write(file, lambda p: p.write_text(text, encoding="utf-8"))
        return file
