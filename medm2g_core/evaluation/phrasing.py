"""Does an X-ray show what its text says, however that is put? Phrasings that no rule of the grammar
makes, each affirmed and denied, read by the independent judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medm2g_core.data.held_out import HELD_OUT, HeldOut
from medm2g_core.data.reports import write_report
from medm2g_core.evaluation.bench import Bench, draw_studies
from medm2g_core.evaluation.table import SectionResult, make_row
from medm2g_core.judges.judge import Judge, Judges

__all__ = ["AFFIRMED", "DENIED", "DRAWS", "TIDY", "phrasing", "phrasing_rows", "sees"]

DRAWS = 16
"""X-rays drawn from each text."""

AFFIRMED = "seen where affirmed, share of draws"
DENIED = "seen where denied, share of draws"
TIDY = "ceiling: a report in the register of training"

REGION, STREAM = "chest", "xray"
AGE, SEX = 60, "female"
"""Of the patient in the tidy reports; the held-out phrasings name none."""


@dataclass(frozen=True)
class _Asked:
    """The same text for every draw, as `draw_studies` takes it."""

    texts: Sequence[str]

    def stack(self, name: str, index: Sequence[int], /) -> torch.Tensor:
        raise NotImplementedError(f"only text is given, not {name}")


def sees(judge: Judge, images: torch.Tensor, finding: str) -> np.ndarray:
    """Whether the judge sees a finding in each of the images (N, 1, H, W): (N,) bool, at its
    threshold, whatever the side and size."""
    column = judge.column(finding)
    return judge.logits(images)[:, column] > judge.net.thresholds[column].item()


def phrasing_rows(
    draw: Callable[[str], torch.Tensor], judge: Judge, asked: Sequence[HeldOut] = HELD_OUT
) -> SectionResult:
    """Two rows of the model a phrasing, the affirmed and the denied text, and two of a tidy report
    with the finding and without any: what the flow can do if the text is understood.

    Args:
        draw: text -> X-rays (N, 1, H, W) in -1..1.
    """
    outcome = SectionResult()
    rng = np.random.default_rng(0)
    tidy: dict[str, tuple[list[float], list[float]]] = {}
    for held in asked:
        name = held.finding.name
        if name not in tidy:
            texts = [write_report(f, REGION, AGE, SEX, rng) for f in ((held.finding,), ())]
            told = [sees(judge, draw(text), name).astype(float).tolist() for text in texts]
            tidy[name] = (told[0], told[1])
        for text, metric, reference in (
            (held.affirmed, AFFIRMED, tidy[name][0]),
            (held.denied, DENIED, tidy[name][1]),
        ):
            seen = sees(judge, draw(text), name).astype(float).tolist()
            task = f"“{text}” → Chest X-ray: {name.replace('_', ' ')}"
            outcome.rows += [
                make_row(task, metric, "model", seen),
                make_row(task, metric, TIDY, reference),
            ]
    return outcome


def phrasing(
    bench: Bench, judges: Judges, asked: Sequence[HeldOut] = HELD_OUT, draws: int = DRAWS
) -> SectionResult:
    """`phrasing_rows` of the bench's model, at its guidance and steps."""

    def draw(text: str) -> torch.Tensor:
        return draw_studies(
            bench.pipe,
            _Asked([text] * draws),
            range(draws),
            ["text"],
            [STREAM],
            seed=bench.seed,
            after_batch=bench.bar.update,
            num_inference_steps=bench.steps,
            guidance_scale=bench.guidance,
        )[STREAM]

    outcome = phrasing_rows(draw, judges[REGION, STREAM], asked)
    outcome.facts |= {"guidance": bench.guidance, "steps": bench.steps, "draws": draws}
    return outcome
