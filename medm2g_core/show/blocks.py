"""The parts of README.md and docs/ that are printed, not typed: each function gives one block of
Markdown from the files in ``results/`` and ``checkpoints/`` or from the code."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medm2g_core.evaluation.results import handicap, summary_rows
from medm2g_core.evaluation.sections import titles
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import (
    LESS_IS_BETTER,
    Row,
    SectionResult,
    below_simple,
    compact,
    is_one_answer,
    is_trained,
    strongest,
)
from medm2g_core.experiments.ablation import load_runs, summary
from medm2g_core.experiments.bars import bar_summary, verdicts
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.experiments.trainings import load_trainings, side_by_side
from medm2g_core.experiments.unseen import person_table
from medm2g_core.profiles import PROFILES

__all__ = [
    "HEADLINES",
    "Headline",
    "behind_regression",
    "blocks",
    "facts",
    "headline",
    "profile_table",
    "rooms",
]


@dataclass(frozen=True)
class Headline:
    """One of the rows that stand for all others in the README.

    Attributes:
        section, task, metric: the rows that it is made of, exactly as stored.
        words: task and score in words that need no glossary.
    """

    section: str
    task: str
    metric: str
    words: str


_XRAY, _REPORT = "Report → Chest X-ray (chest)", "Chest X-ray → Report (chest)"
_FLAIR = "MR T1-weighted + MR T2-weighted → MR FLAIR (brain)"
_TOGETHER = "Report → Chest X-ray + CT + MR T2-weighted: Chest X-ray and CT"
HEADLINES: tuple[Headline, ...] = (
    Headline(
        "alignment",
        f"alignment: {_XRAY}",
        "same findings@1",
        "find an X-ray with the findings of a report: share right",
    ),
    Headline("text_to_image", _XRAY, "finding AUC", "report to X-ray: its findings, AUC"),
    Headline(
        "text_to_image",
        _XRAY,
        "Fréchet distance",
        "report to X-ray: unlike true pictures, Fréchet distance (less is better)",
    ),
    Headline("report_xray", _REPORT, "finding F1, presence", "X-ray to report: findings, F1"),
    Headline(
        "report_xray",
        _REPORT,
        "finding F1, strict",
        "X-ray to report: with side, lobe and size, F1",
    ),
    Headline("translation", _FLAIR, "PSNR, dB", "MR T1 and T2 to FLAIR, brain: PSNR"),
    Headline("translation", "CT → MR T2-weighted (chest)", "PSNR, dB", "CT to MR T2, chest: PSNR"),
    Headline(
        "translation",
        "CT → Chest X-ray (chest)",
        "PSNR, dB",
        "CT to X-ray, never trained together: PSNR",
    ),
    Headline(
        "unified",
        _TOGETHER,
        "agreement: correlation",
        "X-ray and CT drawn together from a report: do their findings agree, correlation",
    ),
    Headline(
        "guidance",
        f"guide {_FLAIR}",
        "right guide less none, dB",
        "what T1 and T2 as guides add to FLAIR: PSNR gained",
    ),
)
"""All five tasks of the paper and its three ideas, those where the model loses among them."""


def headline(outcomes: Mapping[str, SectionResult]) -> str:
    """The README's table, a line of `HEADLINES` each, and in words where one draw is worse than a
    simple baseline.

    A headline whose section was not measured, or has no such row, is left out.
    """
    lines = [
        "| what | MedM2G, one draw | best simple baseline | best network for this task alone |"
        " ceiling |",
        "|---|---|---|---|---|",
    ]
    numbers, compared, below, trained_rows, under_trained = set(), 0, [], 0, 0
    for h in HEADLINES:
        rows = _rows(outcomes, h)
        model = strongest(rows, "model")
        if model is None:
            continue
        numbers.add(model.n)
        baselines = [r for r in rows if r.who.startswith("baseline")]
        simple = strongest([r for r in baselines if not is_trained(r)], "baseline")
        own = [r for r in baselines if is_trained(r) and is_one_answer(r)]  # as one draw is one
        trained = strongest(own, "baseline")
        kinds = ("ceiling: real images", "ceiling: codec", "ceiling: text codec")
        ceiling = next(filter(None, (strongest(rows, kind) for kind in kinds)), None)
        interval = f"[{_number(model, model.low)},&nbsp;{_number(model, model.high)}]"
        cells = [h.words, f"**{_number(model)}** {interval}", _named(simple), _named(trained)]
        lines.append(f"| {' | '.join([*cells, _named(ceiling)])} |")
        if simple is not None:
            compared += 1
            if _worse(model, simple):
                within = " (inside its interval)" if _inside(model, simple) else ""
                below.append(f"{h.words}{within}")
        if trained is not None:
            trained_rows += 1
            under_trained += _worse(model, trained)
    lines += ["", _in_words(numbers, compared, below, trained_rows, under_trained)]
    return "\n".join(lines) + "\n"


def _rows(outcomes: Mapping[str, SectionResult], h: Headline) -> list[Row]:
    rows = outcomes[h.section].rows if h.section in outcomes else []
    return [r for r in rows if (r.task, r.metric) == (h.task, h.metric)]


def _number(row: Row, value: float | None = None) -> str:
    digits = 1 if any(unit in row.metric for unit in ("dB", "Fréchet")) else 2
    return f"{row.value if value is None else value:.{digits}f}"


def _named(row: Row | None) -> str:
    return "" if row is None else f"{_number(row)} {row.who.split(': ')[-1]}"


def _worse(model: Row, rival: Row) -> bool:
    sign = -1 if model.metric in LESS_IS_BETTER else 1
    return sign * model.value < sign * rival.value


def _inside(model: Row, rival: Row) -> bool:
    return model.low <= rival.value <= model.high


def _in_words(
    numbers: set[int], compared: int, below: Sequence[str], trained_rows: int, under_trained: int
) -> str:
    studies = " or ".join(str(n) for n in sorted(numbers))
    first = f"Each row is of {studies} patients. One draw is "
    first += (
        f"**worse than a simple baseline** in {len(below)} of the {compared} rows that have one:"
        f" {'; '.join(below)}."
        if below
        else f"at least as good as every simple baseline in all {compared} rows that have one."
    )
    return (
        f"{first} It is worse than a network trained for that one task in {under_trained} of"
        f" {trained_rows}."
    )


def behind_regression(outcome: SectionResult) -> str:
    """In words how far one draw is behind the regression network over all translations."""
    parts = []
    for metric in ("PSNR, dB", "Fréchet distance"):
        pairs = []
        for task in dict.fromkeys(r.task for r in outcome.rows):
            rows = [r for r in outcome.rows if (r.task, r.metric) == (task, metric)]
            model, rival = strongest(rows, "model"), strongest(rows, "baseline: regression")
            if model is not None and rival is not None:
                pairs.append((model, rival))
        gaps = sorted(abs(r.value - m.value) for m, r in pairs if _worse(m, r))
        if gaps:
            sure = sum(_worse(m, r) and not (m.low <= r.high and r.low <= m.high) for m, r in pairs)
            parts.append(
                f"in {len(gaps)} of {len(pairs)} translations by {metric.removesuffix(', dB')} (by"
                f" {gaps[0]:.1f} to {gaps[-1]:.1f}; in {sure} the intervals do not overlap)"
            )
    return f"One draw is behind a plain regression network {' and '.join(parts)}.\n"


def facts(root: Path) -> str:
    """What the shipped weights are, and what the two commands cost, in two sentences."""
    folder = root / "checkpoints" / "cpu"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["profile"]
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    stages = record["stages"].values()
    hours = sum(s["seconds"] * s.get("threads", 1) for s in stages) / 3600
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6
    data, pixels = config["data"], config["image_codec"]["resolution"]
    out = (
        f"The shipped weights ({size:.0f} MB, pictures of {pixels} x {pixels} pixels) took"
        f" {hours:.1f} core hours of training on {data['chest_train']} virtual chest and"
        f" {data['brain_train']} virtual brain studies."
    )
    speed = root / "results" / "speed.json"
    measured = json.loads(speed.read_text(encoding="utf-8")) if speed.is_file() else {}
    places = set()
    for key, words in (("demo", "with its environment ready"), ("test", "all set-up included")):
        if key in measured:
            out += f" `make {key}`, {words}: {measured[key]['measured']}."
            places.add(measured[key]["where"])
    out += f" Measured on: {'; '.join(sorted(places))}." if places else ""
    return out + "\n"


def profile_table() -> str:
    """A line a field that differs between profiles, a column a profile."""
    flat = {name: _flat(p.to_dict()) for name, p in PROFILES.items()}
    flat = {name: {k: v for k, v in f.items() if k != "name"} for name, f in flat.items()}
    lines = [f"| field | {' | '.join(flat)} |", "|---|" + "---|" * len(flat)]
    lines.append(
        f"| `resolution` | {' | '.join(f'{p.resolution} px' for p in PROFILES.values())} |"
    )
    for key in dict.fromkeys(k for f in flat.values() for k in f):
        values = [_plain(f.get(key, "")) for f in flat.values()]
        if len(set(values)) > 1 and key != "image_codec.resolution":
            lines.append(f"| `{key}` | {' | '.join(values)} |")
    same = [k for k in flat["cpu"] if len({_plain(f.get(k, "")) for f in flat.values()}) == 1]
    alike = ", ".join(f"`{k}` {_plain(flat['cpu'][k])}" for k in same)
    return "\n".join([*lines, "", f"The same in all: {alike}."]) + "\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        )
    return out


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


ROOMS = (
    *("streams", "profiles", "storage", "data", "codecs", "alignment", "flows", "metrics"),
    *(
        "model",
        "sampling",
        "inputs",
        "familiarity",
        "pipeline",
        "training",
        "judges",
        "rivals",
        "evaluation",
    ),
    *("experiments", "show", "commands", "cli", "explore"),
)
"""The parts of the package from the ground up: each imports only from those above it in the table
or beside it."""


def rooms(package: Path) -> str:
    """A line a part of the package, with the first sentence of its own docstring."""
    lines = ["| where | what |", "|---|---|"]
    for name in ROOMS:
        folder = package / name / "__init__.py"
        file = folder if folder.is_file() else package / f"{name}.py"
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        first = " ".join(said.split("\n\n")[0].split())
        shown = f"{name}/" if file == folder else f"{name}.py"
        target = f"../{package.name}/{name if file == folder else shown}"
        lines.append(f"| [`{shown}`]({target}) | {first.replace('|', '/').replace('``', '`')} |")
    return "\n".join(lines) + "\n"


def limits_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of `medm2g_core.experiments.what_limits`."""
    lines = [
        "| the MR flow, T1 + T2 → FLAIR | CPU seconds more | n | one step, dB | ten steps, dB |",
        "|---|--:|--:|---|---|",
    ]
    for r in rows:
        cells = [
            f"{value:.1f} [{low:.1f}, {high:.1f}]"
            for value, low, high in (r["PSNR"]["1"], r["PSNR"]["10"])
        ]
        lines.append(
            f"| {r['training']} | {r['CPU seconds']:.0f} | {r['n']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def speed_table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """The table of everything that `benchmarks` recorded."""
    lines = ["| what | measured | aim | where |", "|---|---|---|---|"]
    lines += [
        f"| {r['what']} | {r['measured']} | {r['aim']} | {r['where']} |" for r in rows.values()
    ]
    return "\n".join(lines) + "\n"


def checks_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often the doubts about given files are told (`benchmarks/doubtful_files.py`)."""
    lines = ["| given | n | told | any note or refusal | refused |", "|---|--:|--:|--:|--:|"]
    for r in rows:
        told = "" if r["told"] is None else f"{r['told']:.0%}"
        lines.append(
            f"| {r['what']} | {r['n']} | {told} | {r['doubted']:.1%} | {r['refused']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def left_out(outcomes: Mapping[str, SectionResult]) -> list[str]:
    """What each section says that it could not measure, a line each."""
    names = titles(ALL_SECTIONS)
    return [
        f"{names[name]}: {said}\n"
        for name, outcome in outcomes.items()
        if (said := outcome.facts.get("left out"))
    ]


def blocks(root: Path) -> dict[str, str]:
    """Name of each block -> its text; a block whose measurements are not there is left out.

    Args:
        root: of the repository.
    """
    results = root / "results"
    out = {"facts": facts(root), "profiles": profile_table(), "rooms": rooms(root / "medm2g_core")}
    outcomes = load_results(results, ALL_SECTIONS)
    if outcomes:
        out["headline"] = headline(outcomes)
        rows = summary_rows(outcomes)
        said = [compact(rows), below_simple(rows), f"{handicap(outcomes, ALL_SECTIONS)}\n"]
        said += left_out(outcomes)
        out["results"] = "\n".join(said)
        out["bars"] = bar_summary(verdicts(outcomes), titles(ALL_SECTIONS))
    if "translation" in outcomes:
        out["behind"] = behind_regression(outcomes["translation"])
    if "unseen" in outcomes:
        out["unseen"] = person_table(outcomes["unseen"])
    trainings = load_trainings(results, root / "checkpoints" / "cpu")
    if len(trainings) > 1:
        out["trainings"] = side_by_side(trainings)
    runs = load_runs(results / "ablation")
    if any(runs.values()):
        out["ablation"] = summary(runs)
    measured: dict[str, Callable[[Any], str]] = {
        "limits": limits_table,
        "speed": speed_table,
        "file_checks": checks_table,
    }
    for name, table in measured.items():
        file = results / f"{name}.json"
        if file.is_file():
            out[name] = table(json.loads(file.read_text(encoding="utf-8")))
    return out
