"""How long 64 X-rays take: 10 steps, guidance 2, from reports, with the shipped weights.

python benchmarks/sampling_speed.py
"""

from __future__ import annotations

import statistics
import time

import torch
from record import record

from medm2g_core import MedM2GPipeline
from medm2g_core.training.corpus import random_reports


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = MedM2GPipeline.from_pretrained().to(device)
    pipe.set_progress_bar_config(disable=True)
    texts = [t for t in random_reports(160, 1) if "brain" not in t][:64]
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        pipe(given={"text": texts}, want=["xray"], num_inference_steps=10, guidance_scale=2.0)
        seconds.append(time.perf_counter() - begin)
    best, middle = min(seconds), statistics.median(seconds)
    record(
        "sampling",
        "64 X-rays from reports, 10 steps, guidance 2",
        f"{middle:.1f} s (best {best:.1f})",
        "< 8 s",
    )


if __name__ == "__main__":
    main()
