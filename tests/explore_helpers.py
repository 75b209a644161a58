"""A made-up patient, and a pipeline of the untrained model, for the tests of the explorer."""

from __future__ import annotations

import torch
from conftest import CHEST, EFFUSION, pictures, reports

from medm2g_core.explore.given import Patient
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.streams import Study

SIZE = 32  # pixels of the smallest model's pictures
SENTENCE = "Findings: There is a small left pleural effusion."


def quiet(model: MedM2G) -> MedM2GPipeline:
    pipe = MedM2GPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made_up() -> Study:
    """A chest with a small left effusion, whose pictures are random."""
    images = {n: pictures(1, SIZE, seed=i)[0] for i, n in enumerate(CHEST)}
    return Study(
        "made-up",
        "made-up",
        "nobody",
        "chest",
        reports(2)[1],
        images,
        (EFFUSION,),
        spacing_mm=(2.8, 2.8),
    )


def patient() -> Patient:
    """The made-up study as patient 0, so that no cohort is drawn."""
    return Patient("chest", 0, _loaded={SIZE: made_up()})


def body_ct() -> torch.Tensor:
    """A CT (1, 32, 32) with air round a body, which files are checked for."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    body = (x.square() + y.square() < 0.7).float()
    texture = 0.1 * pictures(1, SIZE, seed=5)[0, 0]
    return (-1 + body * (1.3 + texture))[None].clamp(-1, 1)
