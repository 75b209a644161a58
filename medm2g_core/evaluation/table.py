"""Scores as rows, what a section of the evaluation gives, and how both are shown in tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from medm2g_core.metrics.bootstrap import Interval, bootstrap_mean

__all__ = [
    "LESS_IS_BETTER",
    "MINIMUM_RISK",
    "Check",
    "Row",
    "SectionResult",
    "below_simple",
    "best_row",
    "cell",
    "choose_setting",
    "compact",
    "interval_row",
    "is_one_answer",
    "is_trained",
    "make_row",
    "markdown",
    "strongest",
]

MINIMUM_RISK = "minimum Bayes risk"
"""How settings are called that choose among draws with the metric itself."""

TRAINED = ("baseline: regression", "baseline: pix2pix", "baseline: autoregressive decoder")
"""How the names of trained baselines begin; all other baselines are simple: nothing is trained."""

ONE_ANSWER = ("regression", "pix2pix", "greedy")
"""How the names of trained baselines end that give one answer without choosing among several."""

LESS_IS_BETTER = (
    "Fréchet distance",
    "kernel distance",
    "MAE, HU",
    "seen where denied, share of draws",
)


@dataclass(frozen=True)
class Row:
    """One score of one predictor.

    Attributes:
        task: what is generated from what.
        metric: the score and its unit.
        who: ``"model"`` (one draw), ``"model, <setting>"`` (such as ``"model, mean of 8"``), or a
            rival that begins with ``"baseline: "``, ``"control: "`` (what must fall to chance), or
            ``"ceiling: "`` (codec reconstruction or real data).
        value, low, high: mean and 95 % interval (bootstrap over studies unless ``note`` says
            otherwise).
        n: held-out studies.
        note: what a reader of this one row must know; mostly empty.
        chosen: of several settings, the one that was best on validation studies
            (`choose_setting`).
    """

    task: str
    metric: str
    who: str
    value: float
    low: float
    high: float
    n: int
    note: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Check:
    """A condition without which the tables must not be believed, such as a control at chance.

    Attributes:
        name: what must hold.  passed: whether it does.  detail: the figures, in words.
    """

    name: str
    passed: bool
    detail: str


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
    def from_dict(cls, plain: Mapping[str, Any]) -> SectionResult:
        rows = [Row(**r) for r in plain["rows"]]
        checks = [Check(**c) for c in plain["checks"]]
        return cls(rows, checks, plain["seconds"], plain["facts"])


def interval_row(task: str, metric: str, who: str, scored: Interval, n: int, note: str = "") -> Row:
    """A row of a score of ``n`` studies that has its interval already."""
    value, low, high = (round(x, 4) for x in scored)
    return Row(task, metric, who, value, low, high, n, note)


def make_row(task: str, metric: str, who: str, samples: Sequence[float], note: str = "") -> Row:
    """A row of the mean of one number a study, with its bootstrap interval."""
    return interval_row(task, metric, who, bootstrap_mean(samples), len(samples), note)


# ---- several settings of one predictor


def choose_setting(
    outcome: SectionResult,
    tasks: Collection[str],
    scores: Mapping[str, float],
    *,
    by: str,
    n: int,
) -> str:
    """Choose one setting by its score on validation studies, and mark its rows of the test studies.

    One choice for a task, whatever the metric of a row: the price of a setting then shows in the
    other metrics. The scores and the choice are kept in ``outcome.facts``.

    Args:
        outcome: has the rows of the test studies.
        tasks: titles of the tasks that the choice is for.
        scores: who -> score on validation studies, more is better; NaN where there is none. The
            first of several best ones is taken, so the one draw comes first.
        by: what was scored.  n: validation studies.

    Returns:
        The name of the row that was chosen.
    """
    known = {who: s for who, s in scores.items() if math.isfinite(s)}
    best = max(known, key=lambda who: known[who]) if known else next(iter(scores))
    outcome.rows = [
        replace(r, chosen=True) if r.task in tasks and r.who == best else r for r in outcome.rows
    ]
    plain = {who: round(s, 4) if math.isfinite(s) else None for who, s in scores.items()}
    outcome.facts.setdefault("settings chosen on validation", []).append(
        {"tasks": sorted(tasks), "by": by, "n": n, "scores": plain, "chosen": best}
    )
    return best


# ---- tables


def _digits(metric: str) -> int:
    return 1 if any(unit in metric for unit in ("dB", "HU", "%", "mm", "Fréchet")) else 2


def _name(row: Row) -> str:
    """The name of a predictor without its kind."""
    return row.who.split(": ")[-1].removeprefix("model, ")


def _score(row: Row) -> str:
    digits = _digits(row.metric)
    return f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"


def _by_task(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(task, metric) -> its rows."""
    table: dict[tuple[str, str], list[Row]] = {}
    for r in rows:
        table.setdefault((r.task, r.metric), []).append(r)
    return table


def markdown(
    rows: Sequence[Row], more: Mapping[str, Callable[[str, str], str]] | None = None
) -> str:
    """Rows as a Markdown table with a line a task and metric: model | baselines and controls |
    ceilings.

    Args:
        more: headings of further columns -> from task and metric to the cell.
    """
    more = more or {}
    heads = ["task", "metric", "n", "model", "baselines and controls", "ceiling", *more]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]

    def show(r: Row) -> str:
        name = "" if r.who == "model" else f"{_name(r)} "
        return f"{name}{_score(r)}{' (chosen on validation)' if r.chosen else ''}"

    for (task, metric), group in _by_task(rows).items():
        rivals = [
            "; ".join(show(r) for r in group if r.who.startswith(kinds))
            for kinds in (("model",), ("baseline", "control"), ("ceiling",))
        ]
        further = [column(task, metric) for column in more.values()]
        lines.append(f"| {' | '.join([task, metric, str(group[0].n), *rivals, *further])} |")
    return "\n".join(lines) + "\n"


def is_trained(row: Row) -> bool:
    """Whether the row is of a baseline that was trained."""
    return row.who.startswith(TRAINED)


def is_one_answer(row: Row) -> bool:
    """Whether a trained baseline gave one answer (a decoder: greedily), as one draw of the model
    is one."""
    return row.who.endswith(ONE_ANSWER)


def best_row(rows: Sequence[Row]) -> Row | None:
    """The best among rows of one metric, so that nothing weaker stands for them."""
    best = min if rows and rows[0].metric in LESS_IS_BETTER else max
    return best(rows, key=lambda r: r.value, default=None)


def strongest(rows: Sequence[Row], kind: str | tuple[str, ...]) -> Row | None:
    """The best row of a kind among rows of one task and metric.

    Args:
        kind: how ``who`` begins; ``"model"`` is the single draw alone.
    """
    return best_row(
        [r for r in rows if (r.who == kind if kind == "model" else r.who.startswith(kind))]
    )


def cell(rows: Sequence[Row], kind: str) -> str:
    """`strongest` with its interval, and its name where the kind does not tell it; empty if there
    is none."""
    return _cell(strongest(rows, kind))


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return _score(row) if row.who == "model" else f"{_score(row)} {_name(row)}"


COLUMNS = (
    "model, one draw",
    "model, setting chosen on validation",
    "strongest trained baseline",
    "strongest simple baseline",
    "control",
    "ceiling",
)


def compact(rows: Sequence[Row]) -> str:
    """A line a task and metric, each rival that matters once, and sentences on how to read them.

    The model's single draw; the setting that was chosen on validation studies; the strongest
    trained baseline, which gives one answer too, and the setting of it that was chosen on
    validation; the strongest simple baseline; the control; the ceiling: real images where there are
    any, else the codec.
    """
    lines = [
        f"| task | metric | n | {' | '.join(COLUMNS)} |",
        "|---|---|--:|" + "---|" * len(COLUMNS),
    ]
    for (task, metric), group in _by_task(rows).items():
        ceilings = ("ceiling: real", "ceiling: codec", "ceiling: text codec", "ceiling")
        chosen = next((r for r in group if r.chosen and r.who.startswith("model")), None)
        trained = [r for r in group if is_trained(r)]
        rival = _cell(best_row([r for r in trained if is_one_answer(r)]))
        rival_chosen = best_row([r for r in trained if r.chosen and not is_one_answer(r)])
        cells = [
            cell(group, "model"),
            "one draw" if chosen and chosen.who == "model" else _cell(chosen),
            "; chosen: ".join(filter(None, (rival, _cell(rival_chosen)))),
            _cell(best_row(_simple(group))),
            cell(group, "control"),
            next(filter(None, (cell(group, kind) for kind in ceilings)), ""),
        ]
        lines.append(f"| {task} | {metric} | {group[0].n} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_legend(rows)]) + "\n"


def _simple(rows: Sequence[Row]) -> list[Row]:
    return [r for r in rows if r.who.startswith("baseline") and not is_trained(r)]


def _legend(rows: Sequence[Row]) -> list[str]:
    """What a reader of the compact table must know."""
    lines = []
    if any(r.chosen for r in rows):
        lines.append(
            "The setting of a column “chosen on validation” was chosen once for a task, by its"
            " leading score on validation studies; its score here is that of the test studies."
        )
    if any(MINIMUM_RISK in r.who for r in rows):
        lines.append(
            f"What “{MINIMUM_RISK}” chooses (Kumar and Byrne 2004) is, of several draws, the one"
            " that agrees most with the others by the labeller and the finding score that judge it"
            " here. Part of its gain is that it knows the metric; the decoder has the same"
            " privilege, with as many samples."
        )
    return [" ".join(lines)] if lines else []


def below_simple(rows: Sequence[Row]) -> str:
    """A sentence that lists where one draw of the model scores below the strongest baseline that
    needs no training; says so if there is no such row."""
    worse = []
    for (task, metric), group in _by_task(rows).items():
        model, simple = strongest(group, "model"), best_row(_simple(group))
        if model is None or simple is None or best_row([model, simple]) is model:
            continue
        apart = model.high < simple.low or simple.high < model.low
        digits = _digits(metric)
        chosen = next((r for r in group if r.chosen and r.who.startswith("model, ")), None)
        also = ""
        if chosen is not None:
            passed = best_row([chosen, simple]) is chosen
            also = f"; {_name(chosen)}: {chosen.value:.{digits}f}{'' if passed else ', below too'}"
        worse.append(
            f"- {task}, {metric}: {model.value:.{digits}f} against {simple.value:.{digits}f} of"
            f" “{_name(simple)}”{'' if apart else ' (the intervals overlap)'}{also}"
        )
    if not worse:
        return "In no row of this table is one draw of the model below a simple baseline.\n"
    head = "Below a baseline that needs no training is one draw of the model in these rows:"
    return "\n".join([head, "", *worse]) + "\n"
