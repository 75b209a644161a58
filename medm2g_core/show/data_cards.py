"""The card of every real data set as one page: ``python -m medm2g_core.show.data_cards`` writes
docs/data_sets.md."""

from __future__ import annotations

from pathlib import Path

from medm2g_core.data.sources import SOURCES
from medm2g_core.data.sources.base import Source
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS

__all__ = ["card", "main", "page"]

FILE = Path(__file__).resolve().parents[2] / "docs" / "data_sets.md"


def card(source: Source) -> str:
    """One data set in Markdown."""
    c = source.card
    lines = [
        f"## {c.title}",
        "",
        (
            f'`open_source("{source.name}", folder)`:'
            f" {', '.join(STREAMS[s].title for s in source.streams)}; region {source.region}"
        ),
        "",
        f"- home: {c.homepage}",
        f"- licence: {c.licence}",
        f"- access: {c.access}",
        f"- what the paper used it for: {c.paper_use}",
        "",
        "Lost in preparation:",
        "",
        *(f"- {line}" for line in c.lost),
        "",
        "Known faults, and what is done about them:",
        "",
        *(f"- {line}" for line in c.faults),
        "",
        "Expected tree:",
        "",
        "```",
        *c.layout.splitlines(),
        "```",
    ]
    if c.recalled:
        lines += [
            "",
            "From memory or descriptions, to be checked on the real thing: "
            + "; ".join(c.recalled)
            + ".",
        ]
    return "\n".join(lines) + "\n"


HEAD = """# The real data sets

Their images were not at hand when this was written: every reader is tested on small replicas with
the true tree, names, formats and faults, IU X-Ray's also on its real reports and ChestX-ray14's
on its real tables. Point `open_source(name, folder)` at a download, or prepare shards with
`python data_scripts/prepare_<name>.py FOLDER` (`--dry-run` only checks). How to train on one and
measure it: [real data](real_data.md). Marks: [P] the paper, [S] secondary sources, [C] our
choice.

`train` goes through the stages that the data set's streams allow and says which it leaves out and
why. Reports longer than the profile reads end after the last whole sentence that fits, and are
counted. `evaluate` draws and scores the test split: every task of its streams, beside baselines,
a control and the codec's ceiling, with the paper's figures, where secondary sources quote them,
in a column of their own and a note on what differs.

"""


def page() -> str:
    """All cards, in the order of the registry."""
    return HEAD + "\n".join(card(s) for s in SOURCES.values())


def main() -> None:
    """Write the page."""
    atomic_write(FILE, lambda p: p.write_text(page(), encoding="utf-8"))
    print(FILE)


if __name__ == "__main__":
    main()
