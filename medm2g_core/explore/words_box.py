"""The part of a panel in which words are typed, chosen from examples, or put together from a
finding."""

from __future__ import annotations

from typing import Any

from medm2g_core.data.findings import FINDINGS
from medm2g_core.explore.controls import Controls, say
from medm2g_core.explore.state import Explorer
from medm2g_core.explore.words import EXAMPLES, words_of
from medm2g_core.show.report import make_finding

__all__ = ["WordsBox"]


class WordsBox:
    """Examples, menus of findings, the words themselves, and what is read in them.

    Typed words change only when the user presses a button or chooses an example.

    Attributes:
        text: the text field; its words go to ``state.words``.
        children: the controls from top to bottom.
    """

    def __init__(self, controls: Controls, state: Explorer) -> None:
        c, self.state = controls, state
        self.example = c.choice("Dropdown", "example", options=[("choose", ""), *EXAMPLES.items()])
        kinds = [("none: a normal chest", "chest"), ("none: a normal brain", "brain")]
        kinds += [(kind.title, name) for name, kind in FINDINGS.items()]
        self.finding = c.choice("Dropdown", "finding", options=kinds)
        self.side = c.choice("Dropdown", "side", options=[""])
        self.lobe = c.choice("Dropdown", "lobe", options=[""])
        self.extent = c.choice("Dropdown", "size", options=[""])
        self.compose = c.button("Write these words", self._compose)
        self.text = c.choice(
            "Textarea",
            "words",
            placeholder="what a report would say, in English",
            layout=c.wide(height="72px"),
        )
        self.reading = c.text()
        menus = (self.finding, self.side, self.lobe, self.extent, self.compose)
        self.children: list[Any] = [self.example, c.flow(menus), self.text, self.reading]
        self.finding.observe(lambda _: self._offer(), "value")
        self._offer()
        self.example.observe(lambda _: self._use_example(), "value")
        self.text.observe(lambda _: self._read(), "value")

    def _offer(self) -> None:
        kind = FINDINGS.get(self.finding.value)
        for box, values in (
            (self.side, kind.sides if kind else ("",)),
            (self.lobe, kind.locations if kind else ("",)),
            (self.extent, kind.sizes if kind else ("",)),
        ):
            box.options = values
            box.disabled = not any(values)

    def _compose(self) -> None:
        name = self.finding.value
        if name not in FINDINGS:
            self.text.value = words_of(None, name)
            return
        try:
            finding = make_finding(name, self.side.value, self.lobe.value, self.extent.value)
        except ValueError as error:
            say(self.reading, str(error), bad=True)
        else:
            self.text.value = words_of(finding, FINDINGS[name].region)

    def _use_example(self) -> None:
        if self.example.value:
            self.text.value = self.example.value

    def _read(self) -> None:
        self.state.words = self.text.value
        if not self.text.value.strip():
            self.reading.value = ""
            return
        reading = self.state.read()
        words = ". ".join([f"Read in these words: {reading}", *reading.notes])
        say(self.reading, words, bad=bool(reading.notes))
