"""What keeps a drawn MR from the truth? The MR flow goes on for a few minutes on one translation,
in three ways.

T1 and T2 of a brain nearly determine its FLAIR, so an ideal flow would be as good as its codec. A
flow's first step from pure noise is its estimate of the mean, which a regression network would
give; ten steps draw. If training on this one translation moves both, neither the network nor the
latents are what limits the shipped flow, but how its training time is spread over targets, noise
levels and guides.

    python -m medm2g_core.experiments.what_limits     # some ten CPU minutes
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.evaluation.bench import draw_studies
from medm2g_core.evaluation.table import make_row
from medm2g_core.metrics.pixels import psnr
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import StageConfig
from medm2g_core.storage import atomic_write
from medm2g_core.training.data import corpus_of
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.loop import run_stage
from medm2g_core.training.rounds import Mix, Round
from medm2g_core.training.stages import RoundStage

FILE = Path("results/limits.json")
GIVEN, TARGET = ("mri_t1", "mri_t2"), "mri_flair"
PLAN = Round(("mri",), (), (Mix("brain", (*GIVEN, TARGET), 1.0, targets=(TARGET,)),))
ALMOST_NOISE = 0.999
"""Level of a flow's first step; at 1 nothing of the wanted picture is left to weigh a loss by."""


def scores(model: MedM2G, data: VirtualCohort) -> dict[str, list[float]]:
    """Steps -> mean PSNR in dB of a draw, and its 95 % interval."""
    pipe, truth, index = MedM2GPipeline(model), data.stack(TARGET), range(len(data))
    pipe.set_progress_bar_config(disable=True)
    out = {}
    for steps in (1, 10):
        drawn = draw_studies(
            pipe, data, index, GIVEN, [TARGET], num_inference_steps=steps, guidance_scale=1.0
        )[TARGET]
        row = make_row("", "PSNR, dB", "", psnr(drawn, truth).tolist())
        out[str(steps)] = [row.value, row.low, row.high]
    return out


def go_on(
    model: MedM2G,
    latent: LatentCorpus,
    steps: int,
    *,
    clean: float | None = None,
    levels: Callable[[int, torch.Generator], torch.Tensor] | None = None,
) -> tuple[MedM2G, float]:
    """A copy of the model after more steps on the one translation, its guides always there, and the
    CPU seconds that they took.

    Args:
        clean: share of the studies whose guides are clean; the profile's if left out.
        levels: noise levels of the target.
    """
    rates: dict[str, float] = {"drop_all": 0.0, "drop_guides": 0.0, "all_guides": 1.0}
    if clean is not None:
        rates |= {"guides_clean": clean, "guides_alike": 0.0}
    trained = copy.deepcopy(model)
    trained.profile = model.profile.replace(conditioning=rates)
    config = StageConfig(steps=steps, batch=32, lr=2e-3, warmup=20, ema=0.98, optimizer="muon")
    with tempfile.TemporaryDirectory() as folder:
        begin = time.process_time()
        run_stage(RoundStage(trained, [latent], "round3", PLAN, levels), config, Path(folder))
        return trained, time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=150, help="of each arm (default 150)")
    parser.add_argument("--out", type=Path, default=FILE, help=f"default {FILE}")
    args = parser.parse_args()
    model = MedM2GPipeline.from_pretrained().model
    size, d = model.profile.resolution, model.profile.data
    corpus = corpus_of(VirtualCohort("train", "brain", d.brain_train, resolution=size))
    own = {n: corpus.images[n] for n in (*GIVEN, TARGET)}
    latent = LatentCorpus.build(
        model,
        replace(
            corpus,
            images=own,
            reports=[r[:1] for r in corpus.reports],
            prompts=[p[:1] for p in corpus.prompts],
        ),
    )
    val = VirtualCohort("val", "brain", 64, resolution=size)
    arms: dict[str, dict[str, Any]] = {
        "this translation alone, as always": {},
        "and its guides always clean": {"clean": 1.0},
        "and from pure noise only: a regression in latents": {
            "clean": 1.0,
            "levels": lambda n, _: torch.full((n,), ALMOST_NOISE),
        },
    }
    rows = [
        {
            "training": "the shipped flow",
            "CPU seconds": 0.0,
            "n": len(val),
            "PSNR": scores(model, val),
        }
    ]
    for name, options in arms.items():
        trained, seconds = go_on(model, latent, args.steps, **options)
        rows.append(
            {
                "training": name,
                "CPU seconds": round(seconds),
                "n": len(val),
                "PSNR": scores(trained, val),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    text = json.dumps(rows, indent=1) + "\n"
    atomic_write(args.out, lambda p: p.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
