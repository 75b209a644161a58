"""The state of one user: what is given, how it is asked, what was drawn. No widgets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from medm2g_core.data.files import FileError
from medm2g_core.explore.drawing import Drawn, Settings, Step, draw
from medm2g_core.explore.given import (
    Given,
    Patient,
    Scan,
    from_patient,
    scan_file,
    scan_upload,
    typed,
)
from medm2g_core.explore.line import Line
from medm2g_core.explore.pictures import Shown, Window, difference_rgb, gallery, grey
from medm2g_core.explore.verdict import Truth, report_html, scores, truth_of
from medm2g_core.explore.viewing import fits_memory, is_volume
from medm2g_core.explore.words import Reading, read_words
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.streams import Study, stream

__all__ = ["Explorer"]

Job = TypeVar("Job")


class Explorer:
    """What a panel shows and changes; several may share one model and one line.

    Args:
        pipe: a loaded pipeline; only its model is used.
        line: in which drawings wait; a line of its own unless told.

    Attributes:
        words: typed words; empty for none.
        patient: the virtual patient whose records may be given; ``None`` for none.
        from_patient: streams of the patient that are given.
        own: stream -> the user's own picture.
        scan: the file that came last, while other slices of it can be taken.
        keep_volume: whether a volume is kept for that, as far as
            `medm2g_core.explore.viewing.MAX_KEPT_VOXELS` allow.
        drawn: the last result.
        truth: what is known about it; ``None`` where nothing is.
    """

    def __init__(self, pipe: MedM2GPipeline, line: Line | None = None) -> None:
        self.pipe = pipe
        self.line = Line() if line is None else line  # an empty line counts 0, as false
        self.words = ""
        self.patient: Patient | None = None
        self.from_patient: tuple[str, ...] = ()
        self.own: dict[str, Given] = {}
        self.scan: Scan | None = None
        self.keep_volume = False
        self.drawn: Drawn | None = None
        self.truth: Truth | None = None
        self._stop = threading.Event()

    @property
    def size(self) -> int:
        """Side of the model's pictures in pixels."""
        return self.pipe.model.profile.resolution

    @property
    def study(self) -> Study | None:
        """The chosen patient's study."""
        return self.patient.study(self.size) if self.patient else None

    def given(self) -> list[Given]:
        """All given streams.

        Raises:
            StreamError: a stream is given twice, or the patient has no such record.
        """
        out = [typed(self.words)] if self.words.strip() else []
        if self.patient is not None:
            out += [from_patient(self.patient, n, self.size) for n in self.from_patient]
        return out + list(self.own.values())

    def take_file(self, path: str, name: str, **slice_options: Any) -> Given:
        """Give a picture of this machine; see `medm2g_core.explore.given.from_file`."""
        return self._take(scan_file(path, name), **slice_options)

    def take_upload(self, files: Iterable[bytes], name: str, **slice_options: Any) -> Given:
        """Give an uploaded picture; see `medm2g_core.explore.given.from_upload`."""
        return self._take(scan_upload(list(files), name), **slice_options)

    def _take(self, scan: Scan, **slice_options: Any) -> Given:
        given = scan.slice(self.size, **slice_options)
        self.own[scan.stream] = given
        kept = self.keep_volume and is_volume(scan.volume) and fits_memory(scan.volume)
        self.scan = scan if kept else None
        return given

    def take_slice(self, **slice_options: Any) -> Given:
        """Give another slice of the file that came last.

        Raises:
            FileError: there is no such slice, or no volume is kept.
        """
        if self.scan is None:
            raise FileError("no volume is kept: give the file again")
        self.own[self.scan.stream] = self.scan.slice(self.size, **slice_options)
        return self.own[self.scan.stream]

    def forget(self) -> None:
        """Let the user's files go, and the volume."""
        self.own.clear()
        self.scan = None

    def read(self) -> Reading:
        """What is read in the typed words."""
        return read_words(self.words, self.pipe.model.tokenizer)

    def draw(
        self,
        settings: Settings,
        *,
        on_step: Callable[[Step], None] | None = None,
        on_place: Callable[[int], None] | None = None,
    ) -> Drawn:
        """Wait in the line, draw, and keep the result; `cancel` ends both.

        Raises:
            LineFullError: too many are waiting.
            StoppedError: cancelled while waiting.
            ValueError: what cannot be drawn, in a sentence.
        """
        given = self.given()
        truth = truth_of(given, self.study)
        drawn = self.in_turn(
            lambda stop: draw(self.pipe, given, settings, on_step=on_step, stop=stop), on_place
        )
        self.drawn, self.truth = drawn, truth
        return drawn

    def in_turn(
        self, job: Callable[[threading.Event], Job], on_place: Callable[[int], None] | None = None
    ) -> Job:
        """Wait in the line, and do something that needs the model.

        Args:
            job: what to do; it is given the event that `cancel` sets.

        Raises:
            LineFullError, StoppedError: as `draw`, and whatever the job raises.
        """
        self._stop.clear()
        with self.line.turn(self._stop, on_place):
            return job(self._stop)

    def cancel(self) -> None:
        """End the drawing after the step that is running, or leave the line."""
        self._stop.set()

    def given_html(self, window: Window | None = None) -> str:
        """What is given, as a gallery.

        Raises:
            StreamError: as `given`.
        """
        cells = []
        for g in self.given():
            caption = f"given: {stream(g.stream).title}"
            what = report_html(g.value, None, "chest") if isinstance(g.value, str) else None
            cells.append(Shown(what or grey(_image(g.value), g.stream, window), caption))
        return gallery("Given", cells)

    def preview_html(self, pictures: dict[str, torch.Tensor], words: str) -> str:
        """The pictures that a step expects, of the first draw."""
        cells = [Shown(grey(v[0], n), stream(n).title) for n, v in pictures.items()]
        return gallery(words, cells)

    def result_html(self, window: Window | None = None, *, show_difference: bool = True) -> str:
        """The last result beside the truth where there is one, with differences and scores.

        Args:
            window: of CT pictures.
            show_difference: with a map of drawn minus true beside each picture, where that says
                something.
        """
        if self.drawn is None:
            return ""
        drawn, truth = self.drawn, self.truth
        said = scores(drawn, truth)
        parts = []
        for name, value in drawn.streams.items():
            title = stream(name).title
            cells = []
            if truth is not None and name in truth.streams:
                cells.append(_cell(truth.streams[name], name, f"true {title}", window, truth, True))
            for i, one in enumerate(value):
                caption = f"drawn, seed {drawn.settings.seeds[i]}"
                if name in said:
                    caption += f": {said[name][i]}"
                cells.append(_cell(one, name, caption, window, truth, False))
                if show_difference and name in said and isinstance(one, torch.Tensor):
                    assert truth is not None
                    colours = difference_rgb(name, one, _image(truth.streams[name]))
                    words = "drawn minus true: red brighter, blue darker"
                    cells.append(Shown(colours, words, sides=False))
            parts.append(gallery(title, cells))
        return "".join(parts)

    def film_html(self, pictures: dict[str, torch.Tensor], step: int) -> str:
        """The pictures that one step expected, every draw."""
        cells = [
            Shown(grey(one, name), f"{stream(name).title}, draw {i + 1}")
            for name, value in pictures.items()
            for i, one in enumerate(value)
        ]
        return gallery(f"What step {step + 1} expected the clean pictures to be", cells)


def _image(value: torch.Tensor | str) -> torch.Tensor:
    assert isinstance(value, torch.Tensor)
    return value


def _cell(
    value: torch.Tensor | str,
    name: str,
    caption: str,
    window: Window | None,
    truth: Truth | None,
    is_true: bool,
) -> Shown:
    if isinstance(value, torch.Tensor):
        return Shown(grey(value, name, window), caption)
    findings = truth.findings if truth is not None and not is_true else None
    return Shown(report_html(value, findings, truth.region if truth else "chest"), caption)
