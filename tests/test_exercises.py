"""The checks of the exercises: what they accept, what they say when they do not, and that nothing
makes them raise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from medm2g_core.data.mri import TISSUES
from medm2g_core.data.xray import MU_WATER
from medm2g_core.show import exercises
from medm2g_core.streams import Finding


def _mse(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().item()


FAT = TISSUES["fat"].t1_ms
NODULE = Finding("nodule", "right", "middle", "moderate", 20)
EFFUSION = Finding("pleural_effusion", "left", size="small")
ANSWERS: list[tuple[str, tuple[Any, ...], str]] = [
    ("check_call", (["mri_pd", "mri_t1"], ["mri_flair", "mri_t2"]), "Right:"),
    ("check_call", (["mri_t1"], ["mri_t1"]), "Not yet: mri_t1 cannot be given and wanted"),
    ("check_call", (["mri_t1", "ct"], ["mri_t2", "mri_flair"]), "Not yet:"),
    ("check_call", ("mri_t1", ["mri_t2"]), "Not yet: given is a str; needed a list"),
    ("check_call", ({"mri_t1", "mri_pd"}, ["mri_t2"]), "Not yet: given is a set; needed a list"),
    ("check_call", (["mri_t1"], {"mri_t2": 1}), "Not yet: want is a dict; needed a list"),
    ("check_call", (["mri_t1", "T2"], ["mri_t2"]), "Not yet: given holds 'T2'; needed a list"),
    ("check_call", (["mri_t1", "mri_t1"], ["ct"]), "Not yet: given holds a name twice"),
    ("check_call", (None, None), "No answer"),
    ("check_psnr", (lambda a, b: 10 * math.log10(4 / _mse(a, b)),), "Right:"),
    (
        "check_psnr",
        (lambda a, b: 10 * math.log10(1 / _mse(a, b)),),
        "Not yet: that is right for values 0..1",
    ),
    ("check_psnr", (_mse,), "Not yet: an error of"),
    ("check_psnr", (lambda a, b: math.nan,), "Not yet: an error of 0.2 everywhere is 20.00 dB"),
    ("check_psnr", (lambda a, b: a - b,), "Not yet: the function returns a Tensor; needed one"),
    ("check_psnr", (lambda a: 0.0,), "Not yet: the function raised TypeError"),
    ("check_unseen_pair", (("text", "mri"),), "Right:"),
    ("check_unseen_pair", (("mri", "ct"),), "Not yet: mri and ct are trained"),
    ("check_unseen_pair", ("ct",), "Not yet: the pair is a str"),
    ("check_unseen_pair", (3,), "Not yet: the pair is a int"),
    ("check_unseen_pair", (["ct"],), "Not yet: two names are needed, got 1"),
    ("check_hounsfield", (lambda mu: 1000 * (mu / MU_WATER - 1),), "Right:"),
    ("check_hounsfield", (lambda mu: 1000 * mu / MU_WATER,), "Not yet: mu ="),
    ("check_null_time", (FAT * math.log(2),), "Right:"),
    ("check_null_time", (np.float32(FAT * math.log(2)),), "Right:"),
    ("check_null_time", (torch.tensor(FAT * math.log(2)),), "Right:"),
    ("check_null_time", (FAT,), "Not yet:"),
    ("check_null_time", (math.nan,), "Not yet: TI is nan (a float); needed a time in ms"),
    ("check_null_time", (math.inf,), "Not yet: TI is inf"),
    ("check_null_time", (-1,), "Not yet: TI is -1"),
    ("check_null_time", ("238",), "Not yet: TI is nan (a str)"),
    ("check_null_time", (238, "cheese"), "Not yet: no such tissue; there are: air, fat"),
    ("check_null_time", (238, "air"), "Not yet: air gives no signal"),
    ("check_null_time", (238, "fat", math.nan), "Not yet: TR is nan"),
    ("check_statement", ((NODULE, EFFUSION),), "Right:"),
    ("check_statement", ([NODULE, EFFUSION, NODULE],), "Not yet: exactly"),
    ("check_statement", (NODULE,), "Not yet: the answer is a Finding; needed a list"),
    ("check_statement", (["nodule"],), "Not yet: the list holds a str"),
    (
        "check_statement",
        ([replace(NODULE, size_mm="20"), EFFUSION],),
        "Not yet: size_mm of a Finding is a whole number, not a str",
    ),
    (
        "check_statement",
        ((Finding("nodule", "right", "middle", "moderate", 12),),),
        "Not yet: nodule: 12 mm",
    ),
    (
        "check_statement",
        ((Finding("pleural_effusion", "left", size="small"),),),
        "Not yet: exactly",
    ),
]


@pytest.mark.parametrize(("check", "answer", "says"), ANSWERS)
def test_checks_accept_right_answers_and_explain_wrong_ones(
    check: str, answer: tuple[Any, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(exercises, check)(*answer)
    assert capsys.readouterr().out.startswith(says)


class Hostile:
    """Whatever is asked of it, it refuses."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise RuntimeError("do not look at me")

    __bool__ = __len__ = __iter__ = __eq__ = __hash__ = __repr__ = __float__ = _refuse  # type: ignore
    __getattr__ = __getitem__ = __contains__ = __lt__ = __gt__ = _refuse


JUNK: dict[str, Any] = {
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
    "finding": NODULE,
    "odd findings": [Finding(None), Finding([]), Finding(3.0, torch.zeros(2))],  # type: ignore
    "hostile findings": [replace(NODULE, side=Hostile()), replace(NODULE, size_mm=Hostile())],
    "unmeasured findings": [replace(NODULE, size_mm=math.nan), replace(NODULE, size_mm="20")],
    "function": lambda *_: None,
}
ONE_ANSWER = ("check_psnr", "check_unseen_pair", "check_hounsfield", "check_statement")


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    out = capsys.readouterr().out
    assert out.endswith("\n") and out.count("\n") == 1, "one sentence an answer"
    return out


@pytest.mark.parametrize("junk", JUNK)
def test_nothing_makes_a_check_raise_or_say_right(
    junk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = JUNK[junk]
    expected = "No answer yet." if junk == "None" else "Not yet: "
    for check in (*ONE_ANSWER, "check_null_time"):
        getattr(exercises, check)(answer)
        assert _said(capsys).startswith(expected), check
    for pair in ((answer, ["ct"]), (["ct"], answer), (answer, answer)):
        exercises.check_call(*pair)
        assert _said(capsys).startswith(expected)
    exercises.check_null_time(FAT * math.log(2), answer)
    assert _said(capsys).startswith("Not yet: ")
    exercises.check_null_time(FAT, "fat", answer)
    assert _said(capsys).startswith("Not yet: ")


@pytest.mark.parametrize("check", [exercises.check_psnr, exercises.check_hounsfield])
@pytest.mark.parametrize("junk", JUNK)
def test_whatever_a_function_returns_is_answered(
    check: Callable[[Any], None], junk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(lambda *_: JUNK[junk])
    assert _said(capsys).startswith("Not yet: ")
