"""A small panel for notebooks: choose or type findings, press a button, see what the model
draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medm2g_core.data.findings import FINDINGS, check_finding, findings_of, size_class
from medm2g_core.data.reports import write_report
from medm2g_core.show.extras import notebook_packages
from medm2g_core.show.figures import Panel, contact_sheet
from medm2g_core.streams import Finding, stream

if TYPE_CHECKING:
    import ipywidgets

    from medm2g_core.pipeline import MedM2GPipeline

__all__ = ["draw_from_text", "findings_panel", "make_finding"]


def make_finding(name: str, side: str = "", location: str = "", size: str = "") -> Finding:
    """A valid finding; a measured one gets a diameter in the middle of its size class.

    Raises:
        ValueError: its kind does not have that side, location or size.
    """
    kind = FINDINGS[name]
    size_mm = None
    if kind.millimetres is not None:
        low, high = kind.millimetres
        fitting = [mm for mm in range(low, high + 1) if size_class(name, mm) == size]
        if not fitting:
            raise ValueError(f"{name}: size {size!r} is not one of {kind.sizes}")
        size_mm = fitting[len(fitting) // 2]
    return check_finding(Finding(name, side, location, size, size_mm))


def draw_from_text(
    pipe: MedM2GPipeline,
    text: str,
    want: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 10,
    guidance: float = 2.0,
) -> bytes:
    """PNG of the wanted image streams, drawn together from one sentence."""
    out = pipe(
        given={"text": text},
        want=list(want),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
    )
    cells = [Panel(out[name][0], stream(name).title, name) for name in want]
    return contact_sheet([("", cells)], size=1.8).png()


def findings_panel(
    pipe: MedM2GPipeline,
    *,
    region: str = "chest",
    want: Sequence[str] = ("xray", "ct", "mri_t1", "mri_t2"),
    seed: int = 0,
    steps: int = 10,
    guidance: float = 2.0,
) -> ipywidgets.VBox:
    """Menus that write a report, a text field in which it can be changed, and a button that draws
    it.

    Args:
        pipe: a loaded `MedM2GPipeline`.
        region: whose findings the menus offer.
        want: image streams to draw.
        seed, steps, guidance: of the sampler; every press of the button takes the next seed.

    Raises:
        NotebookPackageError: ipywidgets is not installed.
    """
    with notebook_packages():
        import ipywidgets as w

    def menu(label: str, options: Sequence[Any]) -> ipywidgets.Dropdown:
        return w.Dropdown(options=options, description=label, layout=w.Layout(width="230px"))

    kinds = [("nothing", ""), *((FINDINGS[n].title, n) for n in findings_of(region))]
    finding, side, place, size = (
        menu("finding", kinds),
        menu("side", [""]),
        menu("lobe", [""]),
        menu("size", [""]),
    )
    text = w.Textarea(layout=w.Layout(width="95%", height="70px"))
    button, number = (
        w.Button(description="Draw", button_style="primary"),
        w.IntText(seed, description="seed"),
    )
    picture, message = w.Image(format="png"), w.HTML()

    def offer(_: Any = None) -> None:
        kind = FINDINGS.get(finding.value)
        for box, values in (
            (side, kind.sides if kind else ("",)),
            (place, kind.locations if kind else ("",)),
            (size, kind.sizes if kind else ("",)),
        ):
            box.options = values
        write()

    def write(_: Any = None) -> None:
        try:
            chosen = (
                (make_finding(finding.value, side.value, place.value, size.value),)
                if finding.value
                else ()
            )
        except ValueError as error:
            message.value = f"<em>{error}</em>"
            return
        message.value = ""
        text.value = write_report(
            chosen, region, None, "", np.random.default_rng(int(number.value))
        )

    def draw(_: Any) -> None:
        message.value, button.disabled = "drawing ...", True
        try:
            now = int(number.value)
            picture.value = draw_from_text(
                pipe, text.value, want, seed=now, steps=steps, guidance=guidance
            )
            message.value = "Drawn by a model: for teaching and research, never for diagnosis."
            number.value += 1
        except ValueError as error:  # an empty or too long text, a seed out of range
            message.value = f"<em>{error}</em>"
        finally:
            button.disabled = False

    finding.observe(offer, "value")
    for box in (side, place, size):
        box.observe(write, "value")
    button.on_click(draw)
    offer()
    return w.VBox(
        [w.HBox([finding, side, place, size]), text, w.HBox([number, button]), message, picture]
    )
