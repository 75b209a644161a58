"""A line before one model: who came first is served first, and everybody sees their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Line", "LineFullError", "StoppedError"]

LOOK_S = 0.2
"""How often who waits looks whether they were told to stop: short of what a person notices."""


class LineFullError(RuntimeError):
    """Too many are waiting already; the message says how many."""


class StoppedError(RuntimeError):
    """Told to stop while still waiting."""


class Line:
    """One turn at a time, in the order of coming.

    Args:
        limit: how many may be in the line, the one who is served included.
    """

    def __init__(self, limit: int = 12) -> None:
        if limit < 1:
            raise ValueError(f"limit {limit}: needed at least 1")
        self.limit = limit
        self._queue: list[object] = []
        self._moved = threading.Condition()

    def __len__(self) -> int:
        return len(self._queue)

    def _full(self, waiting: int) -> str:
        return (
            f"{waiting} drawings are in the line already, and no more are taken; try again in a"
            " minute"
        )

    @contextmanager
    def turn(
        self, stop: threading.Event, on_place: Callable[[int], None] | None = None
    ) -> Iterator[None]:
        """Wait for one's turn; the ``with`` block is it.

        Args:
            stop: set it to leave the line.
            on_place: called with the number of those before, whenever it changes; 0 when the turn
                has come.

        Raises:
            LineFullError: at once, if the line is full.
            StoppedError: ``stop`` was set before the turn came.
        """
        me, told = object(), -1
        with self._moved:
            if len(self._queue) >= self.limit:
                raise LineFullError(self._full(len(self._queue)))
            self._queue.append(me)
        try:
            while told != 0:
                with self._moved:
                    if self._queue.index(me) == told:
                        self._moved.wait(LOOK_S)
                    place = self._queue.index(me)
                if stop.is_set():
                    raise StoppedError("left the line")
                if place != told:
                    told = place
                    if on_place is not None:
                        on_place(place)
            yield
        finally:
            with self._moved:
                self._queue.remove(me)
                self._moved.notify_all()
