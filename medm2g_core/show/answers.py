"""What the checks of all exercises share: how an answer is taken apart and what is said of it.

A check prints one sentence, whatever it is given, and never raises. An answer is looked at only
after its type is known, so a strange one is answered in words too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = [
    "check_function",
    "check_number",
    "number",
    "returned",
    "say",
    "unanswered",
    "wrong_names",
]

CLOSE = 1e-3
"""Relative and absolute difference up to which two numbers are one: a student may well compute in
another order, or in double precision."""

ROUNDED = 0.005
"""How far a number may be off that was worked out on paper and written with two decimals."""


def say(good: bool, message: str) -> None:
    """Print the verdict on an answer."""
    print(("Right: " if good else "Not yet: ") + message)


def unanswered(*answers: Any) -> bool:
    """Whether one of the answers is still ``None``; it is then said."""
    if any(a is None for a in answers):
        print("No answer yet.")
        return True
    return False


def number(value: Any) -> float | None:
    """A real number: Python's, numpy's, or a tensor's or array's only element. Else ``None``."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        try:
            value = value.item()
        except (ValueError, RuntimeError, NotImplementedError):  # more than one, or on no device
            return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond 1e308
        return math.inf if value > 0 else -math.inf


def returned(function: Callable[..., Any], *arguments: Any) -> tuple[float, str]:
    """The number that a student's function returns, and what is wrong with it (else empty)."""
    try:
        answer = function(*arguments)
    except Exception as error:  # whatever the student's function raises is the message
        return math.nan, f"the function raised {type(error).__name__}: {error}"
    value = number(answer)
    if value is None:
        return math.nan, f"the function returns a {type(answer).__name__}; needed one number"
    return value, ""


def wrong_names(what: str, answer: Any, known: Collection[str]) -> str:
    """What keeps an answer from being a list of different known names; empty if nothing does."""
    offer = f"a list of names out of {', '.join(known)}"
    if not isinstance(answer, list | tuple):
        return f"{what} is a {type(answer).__name__}; needed {offer}"
    for name in answer:
        if not isinstance(name, str):
            return f"{what} holds a {type(name).__name__}; needed {offer}"
        if name not in known:
            return f"{what} holds {name!r}; needed {offer}"
    if len(set(answer)) < len(answer):
        return f"{what} holds a name twice"
    return ""


def _close(a: float, b: float, off: float = CLOSE) -> bool:
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=off)


def check_number(
    answer: Any, truth: float, *, hints: Mapping[str, float], ask: str, right: str
) -> None:
    """Compare a student's number with the true one.

    Args:
        answer: ``None`` if there is none yet.
        truth: the true number; an answer may be rounded to two decimals.
        hints: what to say to a usual mistake -> the number with that mistake, further from
            ``truth`` than rounding is.
        ask: what to say to any other number.
        right: what to say of a right answer.
    """
    if unanswered(answer):
        return
    value = number(answer)
    if value is None:
        return say(False, f"the answer is a {type(answer).__name__}; needed one number")
    if _close(value, truth, ROUNDED):
        return say(True, right)
    for hint, mistaken in hints.items():
        if _close(value, mistaken, ROUNDED):
            return say(False, hint)
    say(False, f"{value:g} is not it: {ask}")


def check_function(
    candidate: Any,
    reference: Callable[..., float],
    cases: Sequence[tuple[Any, ...]],
    *,
    takes: str,
    hints: Mapping[str, Callable[..., float]],
    right: str,
) -> None:
    """Compare a student's function of one number with the true one.

    Args:
        candidate: the answer; ``None`` if there is none yet.
        reference: the true function.
        cases: arguments to try, one tuple a call. They must tell the mistakes of ``hints`` from the
            truth.
        takes: what the function takes and returns, in words.
        hints: what to say to a usual mistake -> the function with that mistake.
        right: what to say of a right answer.
    """
    if unanswered(candidate):
        return
    if not callable(candidate):
        return say(False, f"the answer is a {type(candidate).__name__}; needed {takes}")
    values = []
    for case in cases:
        value, wrong = returned(candidate, *case)
        if wrong:
            return say(False, wrong)
        values.append(value)
    wanted = [float(reference(*case)) for case in cases]
    if all(map(_close, values, wanted)):
        return say(True, right)
    for hint, mistaken in hints.items():
        if all(map(_close, values, (float(mistaken(*case)) for case in cases))):
            return say(False, hint)
    i = next(i for i, (a, b) in enumerate(zip(values, wanted, strict=True)) if not _close(a, b))
    say(False, f"in case {i + 1} the function says {values[i]:.3f}, and {wanted[i]:.3f} is right")
