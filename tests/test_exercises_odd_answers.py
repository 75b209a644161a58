"""Whatever is answered to an exercise, its check says one sentence, never raises, and never says
"Right" by accident. All public checks are found, so a new one is tried without being listed."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from medm2g_core import explore, show
from medm2g_core.data.mri import TISSUES
from medm2g_core.show.answers import number
from medm2g_core.streams import Finding


def _modules() -> Iterator[ModuleType]:
    for package in (show, explore):
        for found in pkgutil.iter_modules(package.__path__):
            if found.name.startswith("exercises"):
                yield importlib.import_module(f"{package.__name__}.{found.name}")


CHECKS: dict[str, Callable[..., None]] = {
    name: getattr(module, name)
    for module in _modules()
    for name in module.__all__
    if name.startswith("check_")
}

_PICTURES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
# What a check takes from the lesson, beside the answer.
MATERIAL: dict[str, dict[str, Any]] = {
    "check_noise_level": {"cost": lambda level: math.nan},
    "check_best_pair": {"dice_of": lambda names: 0.2},
    "check_least_warned": {"errors": _PICTURES.flip(-1), "spreads": _PICTURES},
    "check_same_person": {"drawn": _PICTURES, "ct": _PICTURES, "order": [3, 1, 2, 0]},
}
# Right answers, for checks of several: one at a time is replaced by an odd one.
RIGHT: dict[str, dict[str, Any]] = {
    "check_call": {"given": ["mri_t1", "mri_pd"], "want": ["mri_t2", "mri_flair"]},
    "check_null_time": {
        "ti_ms": TISSUES["fat"].t1_ms * math.log(2), "tissue": "fat", "tr_ms": 9000.0
    },
    "check_orders": {"by_bleu": "ACB", "by_f1": "BAC"},
}  # fmt: skip


def _answers(name: str) -> list[inspect.Parameter]:
    parameters = inspect.signature(CHECKS[name]).parameters.values()
    return [p for p in parameters if p.name not in MATERIAL.get(name, {})]


PLACES = [(name, p.name) for name in CHECKS for p in _answers(name)]


class Hostile:
    """Whatever is asked of it, it refuses."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise RuntimeError("do not look at me")

    __bool__ = __len__ = __iter__ = __eq__ = __hash__ = __repr__ = __float__ = _refuse  # type: ignore
    __getattr__ = __getitem__ = __contains__ = __lt__ = __gt__ = _refuse


def odd() -> dict[str, Any]:
    """Odd answers by name, made anew, because some of them can be read only once."""
    nodule = Finding("nodule", "right", "middle", "moderate", 20)
    return {
        "None": None,
        "ellipsis": ...,
        "true": True,
        "zero": 0,
        "three": 3,
        "huge": 10**400,
        "minus huge": -(10**400),
        "nan": math.nan,
        "inf": math.inf,
        "complex": 1 + 2j,
        "numpy number": np.float32(3.0),
        "numpy nan": np.float64("nan"),
        "numpy bool": np.bool_(True),
        "numpy text": np.str_("ct"),
        "numpy array": np.arange(3.0),
        "numpy objects": np.array([None, "ct"], dtype=object),
        "tensor": torch.zeros(2, 3),
        "one number": torch.tensor(2.0),
        "empty tensor": torch.zeros(0),
        "meta tensor": torch.zeros(1, device="meta"),
        "complex tensor": torch.tensor(1j),
        "text": "ct",
        "empty text": "",
        "bytes": b"ct",
        "empty list": [],
        "set": {"ct", "mri"},
        "frozen set": frozenset({"ct"}),
        "dict": {"ct": 1, "mri": 2},
        "nested": [["ct"], ["mri"]],
        "mixed": ["ct", None],
        "numbers": [1, 2],
        "tensors": [torch.zeros(2), torch.zeros(2)],
        "sets": [set(), {"ct"}],
        "range": range(2),
        "iterator": iter(["ct", "mri"]),
        "generator": (n for n in ("ct", "mri")),
        "type": dict,
        "object": object(),
        "hostile": Hostile(),
        "hostile ones": [Hostile(), Hostile()],
        "finding": nodule,
        "odd findings": [Finding(None), Finding([]), Finding(3.0, torch.zeros(2))],  # type: ignore
        "hostile findings": [replace(nodule, side=Hostile()), replace(nodule, size_mm=Hostile())],
        "unmeasured findings": [replace(nodule, size_mm=math.nan), replace(nodule, size_mm="20")],
        "function": lambda *_: None,
    }


def _said(name: str, answers: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    CHECKS[name](**answers, **MATERIAL.get(name, {}))
    out = capsys.readouterr().out
    assert out.endswith("\n") and out.count("\n") == 1, "one sentence an answer"
    return out


def test_the_checks_of_every_notebook_with_exercises_are_found() -> None:
    assert len(CHECKS) > 30
    for name in (*MATERIAL, *RIGHT):
        assert name in CHECKS, f"{name} is no check: take it out of the tables above"


@pytest.mark.parametrize("name", RIGHT)
def test_the_answers_beside_the_odd_ones_are_right(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else an odd one would be refused for its neighbour's sake."""
    assert _said(name, RIGHT[name], capsys).startswith("Right: ")


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_an_odd_answer_is_refused_in_words(
    name: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (parameter,) = (p for p in _answers(name) if p.name == place)
    optional = parameter.default is not inspect.Parameter.empty
    for what, answer in odd().items():
        expected = "No answer yet." if answer is None and not optional else "Not yet: "
        said = _said(name, RIGHT.get(name, {}) | {place: answer}, capsys)
        assert said.startswith(expected), f"{what}: {said}"


@pytest.mark.parametrize("name", [name for name in CHECKS if len(_answers(name)) > 1])
def test_odd_answers_at_every_place_are_refused_in_words(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for what in odd():
        said = _said(name, {p.name: odd()[what] for p in _answers(name)}, capsys)
        expected = "No answer yet." if what == "None" else "Not yet: "
        assert said.startswith(expected), f"{what}: {said}"


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_function_of_odd_answers_is_refused_in_words(
    name: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for what, answer in odd().items():
        function = RIGHT.get(name, {}) | {place: lambda *_, answer=answer: answer}
        said = _said(name, function, capsys)
        assert said.startswith("Not yet: "), f"{what}: {said}"


MEASURED = [
    (name, place) for name, given in MATERIAL.items() for place, x in given.items() if callable(x)
]


@pytest.mark.parametrize(("name", "place"), MEASURED)
def test_whatever_the_lesson_measures_nothing_raises(
    name: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check that measures with the reader's own model may get anything from it. Where all pairs
    are equally good, each of them is the best, if its score is a number at all."""
    answer = {"check_noise_level": 0.3, "check_best_pair": ["mri_t1", "mri_t2"]}[name]
    for what, value in odd().items():
        CHECKS[name](answer, **{place: lambda *_, value=value: value})
        out = capsys.readouterr().out
        score = number(value)
        best = name == "check_best_pair" and score is not None and math.isfinite(score)
        assert out.startswith("Right: " if best else "Not yet: "), f"{what}: {out}"
        assert out.count("\n") == 1
