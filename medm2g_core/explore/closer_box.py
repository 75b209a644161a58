"""The part of a panel for a closer look: one menu of tools, the controls of the chosen one, a
button, and what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from medm2g_core.data.export import SYNTHETIC_MARK
from medm2g_core.explore import closer
from medm2g_core.explore.controls import Controls, say
from medm2g_core.explore.drawing import Drawn, Settings
from medm2g_core.explore.given import typed
from medm2g_core.explore.state import Explorer
from medm2g_core.show.record import Tape
from medm2g_core.streams import StreamError, stream

__all__ = ["TOOLS", "CloserBox"]

TOOLS = {
    "change": "change one thing: other words, the same noise",
    "grid": "a grid of two settings",
    "walk": "a walk from these words to others",
    "looked": "where a picture looked in what is given",
    "gates": "the gates of the model",
    "copies": "is it a copy? nearest training patients",
}
"""Tool -> its words in the menu."""

BEGIN = {"steps": "2, 5, 10", "guidance": "0, 2, 8", "guide_guidance": "0, 2, 8", "seed": "0, 1, 2"}
"""Values that a grid begins with."""


class CloserBox:
    """Controls of the tools in `medm2g_core.explore.closer`.

    Args:
        controls: makes the widgets.
        state: what is given, and the line.
        settings: what the rest of the panel says.
        run: does a job in a thread of its own, with a message and Cancel.
        placed: tells the user their place in the line.

    Attributes:
        children: the controls from top to bottom.
        shown: the place of the results.
    """

    def __init__(
        self,
        controls: Controls,
        state: Explorer,
        settings: Callable[[], Settings],
        run: Callable[[Callable[[], str]], None],
        placed: Callable[[int], None],
    ) -> None:
        c, self.state, self.settings, self.run = controls, state, settings, run
        self.placed = placed
        self.tape: tuple[Drawn, Tape] | None = None
        tools = [(words, tool) for tool, words in TOOLS.items()]
        self.tool = c.choice("Dropdown", "look at", options=tools, layout=c.wide())
        self.other = c.choice(
            "Textarea",
            "other words",
            placeholder="for example the same sentence with right in place of left",
            layout=c.wide(height="56px"),
        )
        names = [(n.replace("_", " "), n) for n in closer.GRID]
        self.rows = c.choice("Dropdown", "rows", options=names, value="steps")
        self.columns = c.choice("Dropdown", "columns", options=names, value="guidance")
        self.row_values = c.choice("Text", "their values", value=BEGIN["steps"])
        self.column_values = c.choice("Text", "and theirs", value=BEGIN["guidance"])
        self.pair = c.choice("Dropdown", "who at what", options=[("first look", ())])
        self.place = c.choice(
            "Text", "row, column", placeholder="click the picture", continuous_update=False
        )
        self.place.add_class("m2g-place")
        self.go = c.button("Look closer", self._go)
        self.shown = c.text()
        self.grid = c.flow([self.rows, self.row_values, self.columns, self.column_values])
        self.gaze = c.flow([self.pair, self.place])
        self.children: list[Any] = [
            c.flow([self.tool, self.go]),
            self.other,
            self.grid,
            self.gaze,
            self.shown,
        ]
        self.tool.observe(lambda _: self._offer(), "value")
        self.rows.observe(lambda x: setattr(self.row_values, "value", BEGIN[x.new]), "value")
        self.columns.observe(lambda x: setattr(self.column_values, "value", BEGIN[x.new]), "value")
        for control in (self.place, self.pair):
            control.observe(lambda _: self._look(), "value")
        self._offer()

    def _offer(self) -> None:
        for box, tools in (
            (self.other, ("change", "walk")),
            (self.grid, ("grid",)),
            (self.gaze, ("looked",)),
        ):
            box.layout.display = None if self.tool.value in tools else "none"
        self.gaze.layout.display = "flex" if self.tool.value == "looked" else "none"
        self.grid.layout.display = "flex" if self.tool.value == "grid" else "none"
        self.shown.value = ""

    def _go(self) -> None:
        self.shown.value, tool = "", self.tool.value

        def job() -> str:
            self.shown.value = getattr(self, f"_{tool}")()
            return f"done. {SYNTHETIC_MARK}"

        self.run(job)

    # --- the tools; each returns HTML, and runs in a thread of its own

    def _in_turn(self, job: Callable[[threading.Event], str]) -> str:
        return self.state.in_turn(job, self.placed)

    def _changed_words(self) -> list[Any]:
        given = [g for g in self.state.given() if g.stream != "text"]
        return [typed(self.other.value), *given]

    def _change(self) -> str:
        given, changed = self.state.given(), self._changed_words()
        asked = self.settings()
        return self._in_turn(
            lambda stop: closer.changed_html(self.state.pipe, given, changed, asked, stop)
        )

    def _walk(self) -> str:
        start, end, asked = self.state.given(), self._changed_words(), self.settings()
        return self._in_turn(
            lambda stop: closer.walk_html(self.state.pipe, start, end, asked, stop=stop)
        )

    def _grid(self) -> str:
        rows, columns = (
            (name.value, closer.numbers(values.value, closer.GRID[name.value]))
            for name, values in ((self.rows, self.row_values), (self.columns, self.column_values))
        )
        given, asked = self.state.given(), self.settings()
        return self._in_turn(
            lambda stop: closer.grid_html(self.state.pipe, given, asked, rows, columns, stop)
        )

    def _looked(self) -> str:
        given, asked = self.state.given(), self.settings()
        taken: list[tuple[Drawn, Tape]] = []

        def job(stop: threading.Event) -> str:
            taken.append(closer.record_looks(self.state.pipe, given, asked, stop))
            return ""

        self.tape = None
        self._in_turn(job)
        drawn, tape = taken[0]
        pairs = closer.pairs_that_looked(drawn, tape)
        if not pairs:
            raise StreamError("no wanted picture looked at a given one; want one that is not given")
        self.pair.options = [(f"{stream(a).title} at {stream(b).title}", (a, b)) for a, b in pairs]
        middle = drawn.images()[pairs[0][0]].shape[-1] // 2
        self.place.value = f"{middle}, {middle}"
        self.tape = drawn, tape  # last, so that nothing is shown, and nothing clicked, before
        return self._looked_html()

    def _looked_html(self) -> str:
        assert self.tape is not None
        drawn, tape = self.tape
        name, guide = self.pair.value
        place = closer.numbers(self.place.value, int)
        if len(place) != 2:
            raise ValueError(f"{self.place.value!r}: needed a row and a column, such as 40, 60")
        return closer.looked_html(drawn, tape, name, guide, (int(place[0]), int(place[1])))

    def _look(self) -> None:
        if self.tape is not None and self.pair.value and self.tool.value == "looked":
            try:
                self.shown.value = self._looked_html()
            except ValueError as error:
                say(self.shown, str(error), bad=True)

    def _gates(self) -> str:
        return closer.gates_html(self.state.pipe.model)

    def _copies(self) -> str:
        drawn = self.state.drawn
        if drawn is None:
            raise StreamError("nothing was drawn yet; press Draw first")
        region = self.state.patient.region if self.state.patient else self.state.read().region
        return closer.copies_html(drawn, region)
