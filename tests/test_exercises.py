"""The checks of notebooks 00 and 01: what they accept, and what they say when they do not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

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
