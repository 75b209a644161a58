"""One line for processes that know only a folder: in order, with a limit, and nobody waits for the
dead."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medm2g_core.explore.folder_line import FolderLine
from medm2g_core.explore.line import LineFullError, StoppedError

PATIENCE_S = 60

SERVED = """
import sys, threading
from pathlib import Path
from medm2g_core.explore.folder_line import FolderLine
with FolderLine(Path(sys.argv[1])).turn(threading.Event()):
    print("served", flush=True)
    sys.stdin.read()
"""


def _other_process(folder: Path) -> subprocess.Popen[str]:
    """A process that is served and stays so until its input ends."""
    command = [sys.executable, "-c", SERVED, str(folder)]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "served\n"
    return process


def _customer(line: FolderLine, stop: threading.Event) -> tuple[threading.Thread, list, list]:
    """Someone who waits: the thread, the places told, and how it ended. Returns once waiting."""
    places: list[int] = []
    ends: list[str] = []
    told = threading.Event()

    def place(number: int) -> None:
        places.append(number)
        told.set()

    def wait() -> None:
        try:
            with line.turn(stop, place):
                ends.append("served")
        except StoppedError:
            ends.append("left")

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert told.wait(PATIENCE_S)
    return thread, places, ends


@pytest.mark.parametrize("killed", [False, True], ids=["leaves", "is killed"])
def test_the_next_is_served_when_the_process_before(tmp_path: Path, killed: bool) -> None:
    line, before = FolderLine(tmp_path), _other_process(tmp_path)
    thread, places, ends = _customer(line, threading.Event())
    assert places == [1] and len(line) == 2
    before.kill() if killed else before.communicate("")
    thread.join(PATIENCE_S)
    before.wait(PATIENCE_S)
    assert places == [1, 0] and ends == ["served"] and len(line) == 0
    assert not list(tmp_path.glob("*.ticket"))


def test_a_full_line_says_so_and_who_is_told_to_stop_leaves_it(tmp_path: Path) -> None:
    line, stop, turn = FolderLine(tmp_path, limit=2), threading.Event(), threading.Event()
    with line.turn(turn):
        thread, places, ends = _customer(line, stop)
        with pytest.raises(LineFullError, match="2 drawings are in the line"), line.turn(turn):
            pass
        stop.set()
        thread.join(PATIENCE_S)
        assert places == [1] and ends == ["left"] and len(line) == 1
    assert len(line) == 0


def test_an_error_in_ones_turn_lets_the_next_in(tmp_path: Path) -> None:
    line = FolderLine(tmp_path)
    with pytest.raises(ZeroDivisionError), line.turn(threading.Event()):
        raise ZeroDivisionError
    places: list[int] = []
    with line.turn(threading.Event(), places.append):
        assert places == [0]
