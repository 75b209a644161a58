"""Controls of the panels: labelled, reached with the keyboard, and wrapping on a narrow screen."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from medm2g_core.show.extras import notebook_packages

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["Controls", "say", "widget_package"]

CHOICE = "290px"
"""Width of one control: two stand side by side on a small laptop, one on a telephone."""

LABEL = "105px"
TICK = "164px"  # two on a telephone
WIDE = {"width": "98%", "max_width": "640px"}
BAD, GOOD = "#b00020", "inherit"  # of the page, which may be dark


def widget_package() -> ModuleType:
    """The package ipywidgets.

    Raises:
        NotebookPackageError: it is not installed.
    """
    with notebook_packages():
        import ipywidgets
    return ipywidgets


class Controls:
    """Makes controls of one look.

    Attributes:
        w: the package ipywidgets.

    Raises:
        NotebookPackageError: it is not installed.
    """

    def __init__(self) -> None:
        self.w: Any = widget_package()

    def choice(self, kind: str, label: str, **options: Any) -> Any:
        """A control with a label.

        Args:
            kind: name of a class of ipywidgets.
        """
        options.setdefault("layout", self.w.Layout(width=CHOICE, max_width="96%"))
        make = getattr(self.w, kind)
        return make(description=label, style={"description_width": LABEL}, **options)

    def tick(self, label: str, value: bool) -> ipywidgets.Checkbox:
        layout = self.w.Layout(width=TICK)
        return self.w.Checkbox(value, description=label, indent=False, layout=layout)

    def button(self, label: str, action: Callable[[], None], **options: Any) -> ipywidgets.Button:
        made = self.w.Button(description=label, **options)
        made.on_click(lambda _: action())
        return made

    def text(self) -> ipywidgets.HTML:
        """An empty place for words or pictures."""
        return self.w.HTML(layout=self.w.Layout(width="98%"))

    def wide(self, **more: str) -> Any:
        """Layout of a control as wide as the page, within reason."""
        return self.w.Layout(**WIDE, **more)

    def flow(self, children: Iterable[Any]) -> ipywidgets.Box:
        """Children side by side, on as many lines as they need."""
        layout = self.w.Layout(display="flex", flex_flow="row wrap", align_items="center")
        return self.w.Box(list(children), layout=layout)

    def titled(self, title: str, children: Sequence[Any]) -> ipywidgets.VBox:
        """Children below a heading."""
        head = self.w.HTML(f'<div class="m2g-head">{html.escape(title)}</div>')
        return self.w.VBox([head, *children])


def say(place: ipywidgets.HTML, words: str, *, bad: bool = False) -> None:
    """Plain words at a place; bad news in red, and read out at once by a screen reader."""
    role, colour = ("alert", BAD) if bad else ("status", GOOD)
    place.value = f'<span role="{role}" style="color:{colour}">{html.escape(words)}</span>'
