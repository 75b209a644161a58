"""The line before one model where every user has a process: tickets in a folder.

A ticket is a locked file. The system lets go of the lock when its process ends, however it ends, so
that nobody waits for someone who is gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from medm2g_core.explore.line import LOOK_S, Line, LineFullError, StoppedError

__all__ = ["FolderLine"]

DIGITS = 12  # of a ticket's number: names sort as numbers do


class FolderLine(Line):
    """As `medm2g_core.explore.line.Line`, between processes of one machine.

    Args:
        folder: the same for all of them; made if it is not there.
        limit: how many may be in the line, the one who is served included.
    """

    def __init__(self, folder: Path, limit: int = 12) -> None:
        super().__init__(limit)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _master(self) -> FileLock:
        return FileLock(self.folder / "line.lock")  # tickets are taken and counted one at a time

    def _waiting(self) -> list[Path]:
        """Tickets whose owners live, first come first; the others are cleared away."""
        living = []
        for path in sorted(self.folder.glob("*.ticket")):
            held = FileLock(path)
            try:
                held.acquire(timeout=0)
            except Timeout:
                living.append(path)
            else:
                held.release()
                path.unlink(missing_ok=True)
        return living

    def __len__(self) -> int:
        with self._master():
            return len(self._waiting())

    def _take(self) -> tuple[Path, FileLock]:
        with self._master():
            waiting = self._waiting()
            if len(waiting) >= self.limit:
                raise LineFullError(self._full(len(waiting)))
            number = int(waiting[-1].stem) + 1 if waiting else 0
            path = self.folder / f"{number:0{DIGITS}d}.ticket"
            ticket = FileLock(path)
            ticket.acquire(timeout=0)
        return path, ticket

    @contextmanager
    def turn(
        self, stop: threading.Event, on_place: Callable[[int], None] | None = None
    ) -> Iterator[None]:
        path, ticket = self._take()
        told = -1
        try:
            while told != 0:
                with self._master():
                    place = self._before(path)
                if stop.is_set():
                    raise StoppedError("left the line")
                if place != told:
                    told = place
                    if on_place is not None:
                        on_place(place)
                elif place:
                    time.sleep(LOOK_S)
            yield
        finally:
            with self._master():
                ticket.release()
                path.unlink(missing_ok=True)

    def _before(self, mine: Path) -> int:
        return sum(path < mine for path in self._waiting())
