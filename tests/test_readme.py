"""README.md and docs/: printed where they can be, alive where they link, true where they tell what
to type."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from medm2g_core.cli import build_parser
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import Row, SectionResult
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.profiles import BASE_STAGES, PROFILES, ROUND_STAGES
from medm2g_core.show.blocks import (
    HEADLINES,
    ROOMS,
    behind_regression,
    blocks,
    headline,
    profile_table,
    rooms,
)
from medm2g_core.show.data_cards import page
from medm2g_core.show.diagram import HEIGHT, WIDTH, diagram, never_together, state
from medm2g_core.show.readme import PAGES, fill, pages
from medm2g_core.streams import MODALITIES, STREAMS
from medm2g_core.training.rounds import ROUNDS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXTS = {
    str(p.relative_to(ROOT)): p.read_text(encoding="utf-8")
    for p in (README, *sorted((ROOT / "docs").glob("*.md")))
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def _code(language: str) -> list[tuple[str, str]]:
    """(file, text) of every code block of a language."""
    return [
        (name, code)
        for name, text in TEXTS.items()
        for kind, code in _FENCE.findall(text)
        if kind == language
    ]


# --- printed, not typed


def test_every_block_is_what_the_programs_print() -> None:
    for name, text in pages(ROOT).items():
        assert TEXTS[name] == text, f"{name}: run python -m medm2g_core.show.readme"


def test_every_block_stands_in_one_file_once() -> None:
    marks = [
        (mark, end)
        for text in TEXTS.values()
        for mark, end in re.findall(r"<!-- (\w+):(begin|end) -->", text)
    ]
    listed = [name for names in PAGES.values() for name in names]
    assert sorted(marks) == sorted((n, end) for n in listed for end in ("begin", "end"))
    assert set(blocks(ROOT)) <= set(listed), "a block that no page shows"


@pytest.mark.parametrize(
    "text",
    [
        "nothing here",
        "<!-- x:begin -->\nno end",
        "<!-- x:begin -->\n<!-- x:end -->\n<!-- x:begin -->\n<!-- x:end -->",
    ],
)
def test_a_block_that_is_not_there_exactly_once_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="block 'x'"):
        fill(text, {"x": "new\n"})


def test_filling_changes_the_block_alone() -> None:
    text = "before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n"
    assert fill(text, {"x": "new\n"}) == text.replace("old", "new")
    assert fill(text, {}) == text


def test_the_cards_of_the_data_sets_are_what_the_readers_say() -> None:
    assert TEXTS["docs/data_sets.md"] == page(), "run: python -m medm2g_core.show.data_cards"


# --- the README


def test_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150


def test_every_headline_of_the_readme_was_measured() -> None:
    outcomes = load_results(ROOT / "results", ALL_SECTIONS)
    assert outcomes
    lines = headline(outcomes).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2 : 2 + len(HEADLINES)]] == [
        h.words for h in HEADLINES
    ]


def _outcome(*scores: tuple[str, float]) -> dict[str, SectionResult]:
    h = next(h for h in HEADLINES if h.section == "translation")
    rows = [Row(h.task, h.metric, who, x, x - 1, x + 1, 8) for who, x in scores]
    return {"translation": SectionResult(rows=rows)}


def test_a_draw_below_a_simple_baseline_is_said_in_words() -> None:
    said = headline(_outcome(("model", 15.0), ("baseline: mean image", 19.0)))
    assert "worse than a simple baseline** in 1 of the 1" in said and "inside" not in said
    said = headline(_outcome(("model", 15.0), ("baseline: mean image", 15.5)))
    assert "(inside its interval)" in said


def test_a_trained_network_is_no_simple_baseline() -> None:
    rows = [("model", 20.0), ("baseline: mean image", 15.0), ("baseline: regression", 30.0)]
    said = headline(_outcome(*rows))
    assert "at least as good as every simple baseline" in said
    assert "trained for that one task in 1 of 1" in said


def test_of_a_distance_less_is_better() -> None:
    h = next(h for h in HEADLINES if h.metric == "Fréchet distance")
    model = Row(h.task, h.metric, "model", 5.0, 4.0, 6.0, 8)
    rows = [model, replace(model, who="baseline: random real image", value=9.0)]
    assert "at least as good" in headline({h.section: SectionResult(rows=rows)})


def test_how_far_regression_is_ahead_is_counted() -> None:
    said = behind_regression(
        _outcome(("model", 20.0), ("baseline: regression", 30.0))["translation"]
    )
    assert "1 of 1 translations by PSNR (by 10.0 to 10.0; in 1 " in said


def test_without_results_the_readme_keeps_what_it_says(tmp_path: Path) -> None:
    assert headline({}).count("\n") < 6
    text = TEXTS["README.md"]
    assert fill(text, {}) == text


# --- links, commands, examples


def _anchor(heading: str) -> str:
    """As GitHub makes it from a heading."""
    plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    text = _FENCE.sub("", TEXTS[name])
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in map(_anchor, headings), f"{name}: {target}"


def test_every_page_is_in_the_index() -> None:
    index = TEXTS["docs/README.md"]
    for name in TEXTS:
        if name.startswith("docs/") and name != "docs/README.md":
            assert f"({Path(name).name})" in index, name


def _commands() -> list[tuple[str, list[str]]]:
    lines = [
        (name, line.split("#")[0].strip())
        for language in ("sh", "bat")
        for name, code in _code(language)
        for line in code.splitlines()
    ]
    return [(name, shlex.split(line, posix="\\" not in line)) for name, line in lines if line]


def test_commands_of_this_package_are_understood() -> None:
    seen = 0
    for name, words in _commands():
        if words[1:3] == ["-m", "medm2g_core"]:
            try:
                build_parser().parse_args(words[3:])
            except ValueError as error:
                pytest.fail(f"{name}: {' '.join(words)}: {error}")
            seen += 1
        elif words[0].startswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{name}: {words[1]}"
    assert seen >= 5


def test_programs_that_a_page_names_exist() -> None:
    for name, text in TEXTS.items():
        for path in set(re.findall(r"\b(?:benchmarks|data_scripts|tests)/\w+\.py", text)):
            assert (ROOT / path).is_file(), f"{name}: {path}"
        for module in set(re.findall(r"\bmedm2g_core(?:\.\w+)+", text)):
            parts = module.split(".")
            known = (ROOT.joinpath(*parts[:n]) for n in (len(parts), len(parts) - 1))
            assert any(p.is_dir() or p.with_suffix(".py").is_file() for p in known), module


def test_options_that_a_page_names_exist() -> None:
    helped = "".join(
        subparser.format_help()
        for action in build_parser()._actions
        if hasattr(action, "choices") and isinstance(action.choices, dict)
        for subparser in action.choices.values()
    )
    for name, text in TEXTS.items():
        for option in set(re.findall(r"`(--[a-z-]+)", text)) - {"--dry-run"}:
            assert option in helped, f"{name}: {option}"


_EXAMPLES = [
    (n, code) for n, code in _code("python") if "open_source" not in code
]  # needs a data set


@pytest.mark.parametrize(("name", "code"), _EXAMPLES, ids=[n for n, _ in _EXAMPLES])
def test_a_python_example_prints_what_it_says(name: str, code: str) -> None:
    said = re.search(r"^print\(.*\)  # (.*?)(?:, values .*)?$", code, re.M)
    assert said
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == said[1]


def test_readme_has_an_example_that_runs() -> None:
    assert "README.md" in {name for name, _ in _EXAMPLES}


def test_every_stream_has_its_name_in_the_readme() -> None:
    assert all(f"`{name}`" in TEXTS["README.md"] for name in STREAMS)


# --- the printed pages


def test_every_room_of_the_package_has_its_line() -> None:
    package = ROOT / "medm2g_core"
    parts = {p.stem if p.suffix else p.name for p in package.iterdir()}
    parts -= {"__init__", "__main__", "__pycache__", "py"}
    assert parts == set(ROOMS)
    lines = rooms(package).splitlines()[2:]
    assert len(lines) == len(ROOMS) and all(line.count(" | ") == 1 for line in lines)


def test_the_places_of_the_glossary_exist() -> None:
    rows = [line for line in TEXTS["docs/glossary.md"].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        place = re.findall(r"`([^`]+)`", row)[-1]
        assert (ROOT / place).exists(), row
    words = [row.split(" | ")[0] for row in rows]
    assert len(set(words)) == len(words)


def test_the_table_of_profiles_has_every_profile_and_field() -> None:
    table = profile_table()
    assert table.startswith(f"| field | {' | '.join(PROFILES)} |")
    for part in ("image_codec", "text_codec", "alignment", "flow", "data"):
        for field in PROFILES["cpu"].to_dict()[part]:
            if (part, field) != ("image_codec", "resolution"):
                assert f"`{part}.{field}`" in table


# --- the diagram


def test_the_diagram_tells_what_the_rounds_do() -> None:
    said = " ".join(" ".join(t.get_text().split()) for t in diagram().axes[0].texts)
    for name in ROUND_STAGES:
        assert name.replace("round", "round ") in said
        for modality in MODALITIES:
            assert " ".join(state(name, modality).split()) in said
    for stage in BASE_STAGES:
        assert stage.replace("_", " ") in said
    for s in STREAMS.values():
        assert s.title in said


def test_a_flow_trains_before_it_is_frozen_and_from_one_that_trained() -> None:
    trained: set[str] = set()
    for name in ROUND_STAGES:
        plan = ROUNDS[name]
        assert set(plan.frozen) <= trained
        assert {source for _, source in plan.initialised_from} <= trained
        trained |= set(plan.trained)
    assert trained == set(MODALITIES)
    assert ("xray", "ct") in never_together() and ("text", "ct") not in never_together()


def test_no_words_of_the_diagram_overlap_or_leave_the_page() -> None:
    figure = diagram()
    figure.canvas.draw()
    boxes = [
        (t.get_text(), t.get_window_extent())
        for t in figure.axes[0].texts
        if t.get_text()  # in pixels
    ]
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        assert not box_a.overlaps(box_b), (a, b)
    for text, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= WIDTH and box.y1 <= HEIGHT, text


# --- the ledger


def test_the_places_of_the_ledger_exist() -> None:
    rows = [line.split(" | ") for line in TEXTS["docs/deviations.md"].splitlines() if "|" in line]
    seen = 0
    for row in rows[2:]:
        for path in re.findall(r"`([\w/*]+(?:\.py|/))(?:::\w+)?`", " ".join(row[3:])):
            root = ROOT if path.startswith("tests/") else ROOT / "medm2g_core"
            assert list(root.glob(path)), f"{row[0]}: {path}"
            seen += 1
    assert seen > 40
