"""The part of a panel in which a slice of the user's volume is chosen by looking: a three-plane
viewer (NiiVue, of the optional package ipyniivue) with a button for each plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from medm2g_core.data.volumes import PLANES
from medm2g_core.explore.controls import Controls, say
from medm2g_core.explore.given import Given
from medm2g_core.explore.state import Explorer
from medm2g_core.explore.viewing import View, view_of

__all__ = ["MISSING", "TAKEN_PLANES", "TOO_LARGE", "ViewerBox"]

MISSING = (
    "To choose the slice in a three-plane viewer, install the package ipyniivue: pip install"
    " 'medm2g-core[viewer]' (in a clone: pip install -e '.[viewer]')."
)
TOO_LARGE = (
    "This volume is too large to be kept for the viewer: for another slice, type its number and"
    " give the file again."
)

TAKEN_PLANES = ("axial", "coronal")
"""Those that the model was trained on; a sagittal slice is only looked at."""

HEIGHT_PX = 360
LINE_MM = 1.5
"""Of the cross-hair: about a pixel of the screen, whatever the voxels."""

NAME = "volume.nii"
"""Tells the viewer the format; the file's own name is nobody's business."""


def _has_viewer() -> bool:
    return find_spec("ipyniivue") is not None


class ViewerBox:
    """The viewer and what goes with it; empty until a volume comes.

    Slice plane and number follow the cross-hair, and the cross-hair follows them.

    Args:
        controls: makes the widgets.
        state: what is given.
        plane, number: the panel's controls of these names.
        take: gives the model what a function gives, and says what was found.

    Attributes:
        children: from top to bottom.
        place: where the cross-hair is, as in `View`; ``None`` while no volume is open.
    """

    def __init__(
        self,
        controls: Controls,
        state: Explorer,
        plane: Any,
        number: Any,
        take: Callable[[Callable[[], Given]], Given | None],
    ) -> None:
        c, self.state = controls, state
        self.plane, self.number, self.take = plane, number, take
        self.view: View | None = None
        self.place: tuple[int, int, int] | None = None
        self.viewer: Any = None
        self.followed = False  # the last to write plane and number was the viewer, not the user
        self._writing = False
        self.words = c.text()
        self.slot = c.w.Box(
            [], layout=c.w.Layout(width="98%", max_width="min(900px, 90vw)", overflow="hidden")
        )
        self.slot.add_class("m2g-viewer")
        self.buttons = {
            p: c.button("", partial(self._take, p), layout=c.w.Layout(width="190px"))
            for p in TAKEN_PLANES
        }
        self.row = c.flow(self.buttons.values())
        self.children: list[Any] = [self.slot, self.row, self.words]
        state.keep_volume = _has_viewer()
        plane.observe(lambda _: self._plane_chosen(), "value")
        number.observe(lambda _: self._typed(), "value")
        self.close()

    # --- files that come and go

    def before_new_file(self) -> None:
        """A number that was chosen in the last file means nothing in the next one."""
        if self.followed:
            self._write("auto", "")

    def offer(self, given: Given) -> None:
        """Show the volume that a picture was cut from, or say why not, where one might wonder."""
        self.close()
        scan = self.state.scan
        if scan is not None:
            place = [n // 2 for n in scan.volume.array.shape]
            if given.index is not None and given.plane in PLANES:
                place[PLANES.index(given.plane)] = given.index
            self._open(view_of(scan.volume, scan.stream), place)
        elif given.index is not None:
            say(self.words, TOO_LARGE if _has_viewer() else MISSING)

    def close(self) -> None:
        """Let the volume go, here and in the browser."""
        self.view = self.place = None
        self.slot.children = ()
        self.slot.layout.display = self.row.layout.display = "none"
        self.words.value = ""
        if self.viewer is not None:
            shown, self.viewer.volumes = self.viewer.volumes, []
            for volume in shown:
                volume.close()

    def _open(self, view: View, place: Sequence[int]) -> None:
        self.view = view
        if self.viewer is None:
            self.viewer = _new_viewer()
            self.viewer.on_location_change(self._looked)
        grey = {"data": view.nifti, "name": NAME, "cal_min": 0.0, "cal_max": 255.0}
        self.viewer.load_volumes([grey])
        self.slot.children = [self.viewer]
        self.slot.layout.display, self.row.layout.display = "block", "flex"
        self._go(place)

    # --- the cross-hair

    def _looked(self, location: dict[str, Any]) -> None:
        """The viewer's own news: a click, a turn of the wheel, a key."""
        if self.view is None or self.place is None:
            return  # of a volume that has just been closed
        place = self.view.place(location["mm"])
        if self.view.fraction(place) == self.view.fraction(self.place):
            return  # where it was sent, perhaps to a slice that the viewer leaves out
        self._at(place)
        plane = self.plane.value
        if plane == "auto":
            assert self.state.scan is not None
            shown = self.state.own[self.state.scan.stream].plane
            plane = shown if shown in TAKEN_PLANES else TAKEN_PLANES[0]
        self._write(plane, str(place[PLANES.index(plane)]))

    def _plane_chosen(self) -> None:
        if self._writing or not self.followed or self.place is None:
            self._typed()
        elif self.plane.value in PLANES:
            self._write(self.plane.value, str(self.place[PLANES.index(self.plane.value)]))
        else:
            self._write("auto", "")

    def _typed(self) -> None:
        if self._writing:
            return
        self.followed = False
        plane, number = self.plane.value, self.number.value.strip()
        if self.place is not None and plane in PLANES and number.isdigit():
            place = list(self.place)
            place[PLANES.index(plane)] = int(number)
            self._go(place)

    def _write(self, plane: str, number: str) -> None:
        self._writing = True
        self.plane.value, self.number.value = plane, number
        self._writing, self.followed = False, bool(number)

    def _go(self, place: Sequence[int]) -> None:
        if self.view is not None and self.view.has(place):  # else the reader says what there is
            self.viewer.scene.crosshair_pos = list(self.view.fraction(place))
            self._at((place[0], place[1], place[2]))

    def _at(self, place: tuple[int, int, int]) -> None:
        assert self.view is not None
        self.place = place
        for plane, button in self.buttons.items():
            button.description = f"Take {plane} slice {place[PLANES.index(plane)]}"
        say(self.words, self.view.words(place))

    def _take(self, plane: str) -> None:
        assert self.place is not None
        index = self.place[PLANES.index(plane)]
        self._write(plane, str(index))
        self.take(lambda: self.state.take_slice(plane=plane, index=index))


def _new_viewer() -> Any:
    import ipyniivue

    return ipyniivue.NiiVue(
        height=HEIGHT_PX,
        slice_type=ipyniivue.SliceType.MULTIPLANAR,
        multiplanar_show_render=ipyniivue.ShowRender.NEVER,
        is_radiological_convention=True,  # the patient's right on the left, as in all pictures here
        sagittal_nose_left=True,
        crosshair_width=LINE_MM,
        crosshair_width_unit="mm",
        is_force_mouse_click_to_voxel_centers=True,  # between two slices there is none to take
        drag_and_drop_enabled=False,  # a file dropped here would pass all checks by
        scroll_requires_focus=True,  # else the page could not be scrolled across it
    )
