"""The explorer as widgets: thin controls over `medm2g_core.explore.state.Explorer`.

A drawing runs in a thread of its own, so that the kernel stays free to hear Cancel. Every control
has a label and is reached with the keyboard; everything wraps on a narrow screen.
"""

from __future__ import annotations

import base64
import html
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from medm2g_core.data.export import SYNTHETIC_MARK
from medm2g_core.explore.closer_box import CloserBox
from medm2g_core.explore.controls import Controls, say
from medm2g_core.explore.drawing import (
    MAX_DRAWS,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_STEPS,
    Settings,
    Step,
    expected,
)
from medm2g_core.explore.export import bundle, code
from medm2g_core.explore.given import PATIENTS, Given, Patient
from medm2g_core.explore.line import Line, LineFullError, StoppedError
from medm2g_core.explore.pictures import STYLE, WINDOWS, Window
from medm2g_core.explore.state import Explorer
from medm2g_core.explore.viewer_box import TAKEN_PLANES, ViewerBox
from medm2g_core.explore.words import EXAMPLES
from medm2g_core.explore.words_box import WordsBox
from medm2g_core.streams import CT_WINDOW_HU, IMAGE_STREAMS, STREAMS

if TYPE_CHECKING:
    from medm2g_core.pipeline import MedM2GPipeline

__all__ = ["SOURCES", "ExplorerPanel", "findings_panel"]

SOURCES = ("words", "patient", "file")
"""Where a given stream can come from."""

FORMATS = {"png": "PNG", "nifti": "NIfTI", "dicom": "DICOM", "film": "film (GIF)"}


class ExplorerPanel:
    """Controls, progress and results of one user; shows itself in a notebook.

    Args:
        pipe: a loaded pipeline; its model may be shared with other panels.
        line: the line that drawings wait in, where the model is shared.
        settings: what the controls begin with.
        sources: out of `SOURCES`, whichever are offered.
        words: typed words to begin with.
        paths: offer files of this machine by their path; not where others use the machine.

    Attributes:
        state: the `Explorer` behind it.
        widget: the widget, for who wants to place it.

    Raises:
        NotebookPackageError: ipywidgets is not installed.
        ValueError: an unknown source.
    """

    def __init__(
        self,
        pipe: MedM2GPipeline,
        *,
        line: Line | None = None,
        settings: Settings | None = None,
        sources: Sequence[str] = SOURCES,
        words: str = "",
        paths: bool = True,
    ) -> None:
        self.c = Controls()
        unknown = [s for s in sources if s not in SOURCES]
        if unknown:
            raise ValueError(f"unknown source {unknown[0]!r}; known: {', '.join(SOURCES)}")
        self.state = Explorer(pipe, line)
        self.thread: threading.Thread | None = None
        begin = settings or Settings()
        self.message = self.c.text()
        self.progress = self.c.choice("IntProgress", "progress", max=1, layout=self.c.wide())
        self.result = self.c.text()
        self.given_shown = self.c.text()
        sections = {"words": self._words, "patient": self._patient, "file": self._file}
        titles = {"words": "Words", "patient": "A virtual patient", "file": "My own files"}
        given = [self.c.titled(titles[s], sections[s](paths)) for s in sources]
        controls = [
            *given,
            self.c.titled("Wanted", self._wanted(begin)),
            self.c.titled("How", self._how(begin)),
            self._buttons(),
            self.progress,
            self.message,
            self.given_shown,
            self.result,
            self._views(),
            self._keep(),
            self._closer(),
        ]
        self.widget = self.c.w.VBox([self.c.w.HTML(STYLE), *controls])
        self.widget.add_class("m2g-explorer")
        if "words" in sources:
            self.words.text.value = words

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.widget)

    # --- building

    def _words(self, _: bool) -> list[Any]:
        self.words = WordsBox(self.c, self.state)
        return self.words.children

    def _patient(self, _: bool) -> list[Any]:
        # Not None for nobody: ipywidgets would show an empty menu in some processes.
        options: list[tuple[str, tuple]] = [("nobody", ())] + [
            (f"{region} {i}", (region, i)) for region in ("chest", "brain") for i in range(PATIENTS)
        ]
        self.patient = self.c.choice("Dropdown", "patient", options=options)
        self.give = {name: self.c.tick(s.title, False) for name, s in STREAMS.items()}
        self.about = self.c.text()
        self.patient.observe(lambda _: self._patient_changed(), "value")
        for box in self.give.values():
            box.layout.display = "none"
            box.observe(lambda _: self._give_changed(), "value")
        return [self.c.flow([self.patient]), self.c.flow(self.give.values()), self.about]

    def _file(self, paths: bool) -> list[Any]:
        names = [(STREAMS[n].title, n) for n in IMAGE_STREAMS]
        self.kind = self.c.choice("Dropdown", "read it as", options=names)
        self.plane = self.c.choice("Dropdown", "slice plane", options=("auto", *TAKEN_PLANES))
        self.slice = self.c.choice("Text", "slice number", placeholder="empty: the middle one")
        self.upload = self.c.w.FileUpload(
            multiple=True, description="Upload a scan", layout=self.c.w.Layout(width="190px")
        )
        self.path = self.c.choice("Text", "or its path", placeholder="a file or a DICOM folder")
        self.read_path = self.c.button("Read the path", self._take_path)
        self.forget = self.c.button("Forget my files", self._forget)
        self.file_notes = self.c.text()
        self.upload.observe(lambda _: self._take_upload(), "value")
        by_path = [self.path, self.read_path] if paths else []
        where = self.c.flow([self.kind, self.plane, self.slice])
        self.viewer = ViewerBox(self.c, self.state, self.plane, self.slice, self._take)
        rows = [where, self.c.flow([self.upload, *by_path, self.forget]), self.file_notes]
        return [*rows, *self.viewer.children]

    def _wanted(self, begin: Settings) -> list[Any]:
        self.want = {n: self.c.tick(s.title, n in begin.want) for n, s in STREAMS.items()}
        return [self.c.flow(self.want.values())]

    def _how(self, begin: Settings) -> list[Any]:
        tied = begin.guide_guidance is None
        self.seed = self.c.choice("BoundedIntText", "seed", value=begin.seed, min=0, max=MAX_SEED)
        self.steps = self.c.choice(
            "IntSlider", "steps", value=begin.steps, min=1, max=MAX_STEPS, continuous_update=False
        )
        scale = {"min": 0.0, "max": MAX_GUIDANCE, "step": 0.5, "continuous_update": False}
        self.guidance = self.c.choice("FloatSlider", "guidance", value=begin.guidance, **scale)
        self.apart = self.c.tick("guides apart", not tied)
        self.guides = self.c.choice(
            "FloatSlider",
            "by pictures",
            value=begin.guidance if tied else begin.guide_guidance,
            disabled=tied,
            **scale,
        )
        self.draws = self.c.choice("IntSlider", "draws", value=begin.draws, min=1, max=MAX_DRAWS)
        self.order = self.c.choice(
            "Dropdown", "order", options=("joint", "cascade"), value=begin.order
        )
        self.apart.observe(lambda change: setattr(self.guides, "disabled", not change.new), "value")
        rows = (self.seed, self.draws, self.steps, self.order, self.guidance)
        return [self.c.flow([*rows, self.apart, self.guides])]

    def _buttons(self) -> Any:
        self.draw = self.c.button("Draw", self._start, button_style="primary")
        self.cancel = self.c.button("Cancel", self._cancel, disabled=True)
        return self.c.flow([self.draw, self.cancel])

    def _views(self) -> Any:
        low, high = CT_WINDOW_HU
        whole = WINDOWS["whole scale"]
        self.preset = self.c.choice("Dropdown", "CT window", options=list(WINDOWS))
        hu = {"step": 10, "continuous_update": False}
        self.centre = self.c.choice(
            "FloatSlider", "centre, HU", value=whole.centre, min=low, max=high, **hu
        )
        self.width = self.c.choice(
            "FloatSlider", "width, HU", value=whole.width, min=50, max=high - low, **hu
        )
        self.differ = self.c.tick("differences", True)
        self.step = self.c.choice(
            "IntSlider", "look at step", value=1, min=1, max=1, continuous_update=False
        )
        self.film = self.c.text()
        self.preset.observe(lambda change: self._preset(WINDOWS[change.new]), "value")
        for control in (self.centre, self.width, self.differ):
            control.observe(lambda _: self._show(), "value")
        self.step.observe(lambda _: self._scrub(), "value")
        self.windows = self.c.flow([self.preset, self.centre, self.width])
        self.views = self.c.w.VBox([self.windows, self.c.flow([self.differ]), self.step, self.film])
        self.views.layout.display = "none"
        return self.views

    def _keep(self) -> Any:
        self.formats = {f: self.c.tick(title, f == "png") for f, title in FORMATS.items()}
        self.make = self.c.button("Make the files", self._export)
        self.link = self.c.text()
        self.code = self.c.text()
        inside = [self.c.flow([*self.formats.values(), self.make]), self.link, self.code]
        self.keep = self.c.titled("Keep it", inside)
        self.keep.layout.display = "none"
        return self.keep

    def _closer(self) -> Any:
        self.closer = CloserBox(self.c, self.state, self.settings, self._run, self._placed)
        self.closer_shown = self.c.titled("Look closer", self.closer.children)
        self.closer_shown.layout.display = "none"  # first a picture, then questions about it
        return self.closer_shown

    # --- what is given

    def _patient_changed(self) -> None:
        chosen = self.patient.value
        self.state.patient = Patient(*chosen) if chosen else None
        study = self.state.study
        have = study.streams if study else ()
        for name, box in self.give.items():
            box.layout.display = None if name in have else "none"
            box.value = False
        self.about.value = "" if study is None else "Give which of the records?"

    def _give_changed(self) -> None:
        self.state.from_patient = tuple(n for n, box in self.give.items() if box.value)

    def _slice(self) -> dict[str, Any]:
        number = self.slice.value.strip()
        if number and not number.isdigit():
            raise ValueError(f"slice number {number!r}: needed a whole number, or nothing")
        return {"plane": self.plane.value, "index": int(number) if number else None}

    def _take(self, read: Callable[[], Given]) -> Given | None:
        try:
            given = read()
        except ValueError as error:  # a FileError too: what it cannot be, in a sentence
            say(self.file_notes, str(error), bad=True)
            return None
        title = STREAMS[given.stream].title
        notes = "; ".join(given.notes) or "read as it is"
        say(self.file_notes, f"{title}: {notes}")
        self._show_given()
        return given

    def _take_new(self, read: Callable[[], Given]) -> None:
        self.viewer.before_new_file()
        if given := self._take(read):
            self.viewer.offer(given)

    def _take_upload(self) -> None:
        if not self.upload.value:
            return
        files = [bytes(f["content"]) for f in self.upload.value]
        self.upload.value = ()  # the content is not kept
        self._take_new(lambda: self.state.take_upload(files, self.kind.value, **self._slice()))

    def _take_path(self) -> None:
        path, kind = self.path.value, self.kind.value
        self._take_new(lambda: self.state.take_file(path, kind, **self._slice()))

    def _forget(self) -> None:
        self.state.forget()
        self.viewer.close()
        say(self.file_notes, "no file is kept")
        self._show_given()

    # --- drawing

    def settings(self) -> Settings:
        """What the controls say.

        Raises:
            ValueError: a setting out of its range.
        """
        return Settings(
            want=tuple(n for n, box in self.want.items() if box.value),
            seed=self.seed.value,
            steps=self.steps.value,
            guidance=self.guidance.value,
            guide_guidance=self.guides.value if self.apart.value else None,
            draws=self.draws.value,
            order=self.order.value,
        )

    def _start(self) -> None:
        self.state.drawn = None
        self.result.value = self.link.value = self.film.value = self.code.value = ""
        self.views.layout.display = self.keep.layout.display = "none"
        try:
            settings = self.settings()
        except ValueError as error:
            say(self.message, str(error), bad=True)
            return
        self.progress.max, self.progress.value = settings.total_steps, 0
        self._run(lambda: self._draw(settings))

    def _run(self, job: Callable[[], str]) -> None:
        """Do something that takes time in a thread of its own, so that Cancel is heard; what it
        returns is said in the end."""
        self.draw.disabled = self.closer.go.disabled = True
        self.cancel.disabled = False
        say(self.message, "beginning ...")
        self.thread = threading.Thread(target=self._work, args=(job,), daemon=True)
        self.thread.start()

    def _work(self, job: Callable[[], str]) -> None:
        """In a thread of its own."""
        try:
            if words := job():
                say(self.message, words)
        except StoppedError as stopped:
            say(self.message, str(stopped))
        except (ValueError, LineFullError) as error:
            say(self.message, str(error), bad=True)
        except Exception as error:  # the user must not wait for ever; the log gets the rest
            say(self.message, f"this failed: {type(error).__name__}: {error}", bad=True)
            raise
        finally:
            self.draw.disabled = self.closer.go.disabled = False
            self.cancel.disabled = True

    def _draw(self, settings: Settings) -> str:
        drawn = self.state.draw(settings, on_step=self._stepped, on_place=self._placed)
        self._finished(drawn.cancelled)
        return ""  # said already, with what speaks against it

    def _placed(self, place: int) -> None:
        say(self.message, f"{place} before you in the line" if place else "drawing ...")

    def _stepped(self, step: Step) -> None:
        self.progress.value = step.number
        pictures = expected(self.state.pipe.model, step.film, draws=1)
        words = f"Taking shape: step {step.number} of {step.total}"
        self.result.value = self.state.preview_html(pictures, words)

    def _cancel(self) -> None:
        self.state.cancel()
        say(self.message, "stopping after this step ...")

    def _finished(self, cancelled: bool) -> None:
        drawn = self.state.drawn
        assert drawn is not None
        notes = [f"{name}: {note}" for name, found in drawn.notes.items() for note in found]
        words = (
            f"cancelled after step {drawn.steps_done} of {drawn.settings.total_steps}: the pictures"
            " are what that step expected"
            if cancelled
            else f"drawn in {drawn.seconds:.1f} s. {SYNTHETIC_MARK}"
        )
        say(self.message, ". ".join([words, *notes]), bad=bool(notes))
        self._show_given()
        self._show()
        pictures = bool(drawn.images())
        self.views.layout.display = None if pictures else "none"
        shows_ct = "ct" in drawn.streams or any(g.stream == "ct" for g in drawn.given)
        self.windows.layout.display = "flex" if shows_ct else "none"
        length = max((len(v) for v in drawn.film.denoised.values()), default=1)
        self.step.max = length
        self.step.value = length
        self.film.value = ""  # the last step's picture is the result, which stands above
        self.keep.layout.display = "none" if cancelled else None
        self.closer_shown.layout.display = None
        if not cancelled:
            source = html.escape(code(drawn, self.state.size))
            self.code.value = (
                "<details><summary>Copy as code</summary><pre"
                f' class="m2g-code">{source}</pre></details>'
            )

    # --- looking

    def _window(self) -> Window:
        return Window(self.centre.value, self.width.value)

    def _preset(self, window: Window) -> None:
        self.centre.value, self.width.value = window.centre, window.width

    def _show_given(self) -> None:
        try:
            self.given_shown.value = self.state.given_html(self._window())
        except ValueError:  # given twice: said when it is drawn
            self.given_shown.value = ""

    def _show(self) -> None:
        if self.state.drawn is not None:
            self._show_given()
            self.result.value = self.state.result_html(
                self._window(), show_difference=self.differ.value
            )

    def _scrub(self) -> None:
        if self.state.drawn is not None:
            step = self.step.value - 1
            pictures = expected(self.state.pipe.model, self.state.drawn.film, step)
            self.film.value = self.state.film_html(pictures, step)

    # --- keeping

    def _export(self) -> None:
        drawn = self.state.drawn
        if drawn is None:
            return
        chosen = [f for f, box in self.formats.items() if box.value]
        try:
            data = base64.b64encode(bundle(drawn, self.state.pipe, chosen)).decode()
        except ValueError as error:
            say(self.link, str(error), bad=True)
            return
        self.link.value = (
            '<a class="m2g-link" download="medm2g-synthetic.zip"'
            f' href="data:application/zip;base64,{data}">Save medm2g-synthetic.zip</a>'
        )


def findings_panel(
    pipe: MedM2GPipeline,
    *,
    want: Sequence[str] = ("xray", "ct", "mri_t1", "mri_t2"),
    seed: int = 0,
    steps: int = 10,
    guidance: float = 2.0,
    words: str = EXAMPLES["enlarged heart"],
) -> ExplorerPanel:
    """The explorer for a first visit: words in, pictures out.

    Args:
        pipe: a loaded `MedM2GPipeline`.
        want: streams that are ticked.
        seed, steps, guidance: of the sampler, to begin with.
        words: to begin with.

    Raises:
        NotebookPackageError: ipywidgets is not installed.
    """
    settings = Settings(want=tuple(want), seed=seed, steps=steps, guidance=guidance)
    return ExplorerPanel(pipe, settings=settings, sources=("words",), words=words)
