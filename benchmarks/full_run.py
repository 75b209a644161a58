"""How long a full training of a profile takes on this machine, without doing it: a few steps of
every stage are timed.

A stage costs its steps times the seconds of one; encoding the studies for the flows is counted too,
drawing the virtual patients (once, then cached; ``cohort_speed.py``) is not.

    python benchmarks/full_run.py --profile cpu
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from record import record

from medm2g_core.profiles import STAGES, Profile, profile
from medm2g_core.training.data import EmbeddedData, codec_texts
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.loop import run_stage
from medm2g_core.training.run import new_model
from medm2g_core.training.stages import (
    AlignmentStage,
    ImageCodecStage,
    RoundStage,
    Stage,
    TextCodecStage,
)

STUDIES = {"chest_train": 128, "brain_train": 64}
WARM, TIMED = 8, 24
AIM_HOURS = 2.5


def stage_seconds(stage: Stage, chosen: Profile, folder: Path) -> float:
    """Seconds of one step: a longer and a shorter run differ by steps alone, not by what it takes
    to start."""
    config = chosen.stages[stage.name]
    took = []
    for steps in (WARM, WARM + TIMED):
        begin = time.perf_counter()
        run_stage(stage, config.shortened(steps), folder / str(steps), progress=False)
        took.append(time.perf_counter() - begin)
    return (took[1] - took[0]) / TIMED


def measure(chosen: Profile, folder: Path) -> None:
    small = chosen.replace(data=STUDIES)
    model, data = new_model(chosen), EmbeddedData(small)
    data.fit(model)
    corpora = data.corpora("train")
    made = {
        "image_codec": lambda: ImageCodecStage(model, corpora),
        "text_codec": lambda: TextCodecStage(
            model, codec_texts(data, small.text_codec.prompt_share)
        ),
        "alignment": lambda: AlignmentStage(model, corpora),
    }
    seconds, latent, encoding = {}, [], 0.0
    for name in STAGES:
        if name not in made and not latent:
            begin = time.perf_counter()
            latent = [LatentCorpus.build(model.eval(), c) for c in corpora]
            whole = chosen.data.chest_train + chosen.data.brain_train
            encoding = (time.perf_counter() - begin) * whole / sum(map(len, corpora))
        stage = made[name]() if name in made else RoundStage(model, latent, name)
        seconds[name] = stage_seconds(stage, chosen, folder / name) * chosen.stages[name].steps
    hours = (sum(seconds.values()) + encoding) / 3600
    each = ", ".join(f"{name} {s / 60:.0f}" for name, s in seconds.items())
    record(
        f"full_run_{chosen.name}",
        f"a full training of profile `{chosen.name}` on {torch.get_num_threads()} threads, from"
        f" {TIMED} steps a stage",
        f"{hours:.2f} hours (minutes: {each}, encoding {encoding / 60:.0f})",
        f"<= {AIM_HOURS} hours" if chosen.name == "cpu" else "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(profile(args.profile), Path(folder))


if __name__ == "__main__":
    main()
