"""What a GPU brings: training of a round and sampling, beside the CPU of the same machine where
that is bearable.

Needs nothing but the package: the studies are random pictures with reports of the grammar.

    python benchmarks/gpu_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from record import record

from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import StageConfig, profile
from medm2g_core.training.corpus import Corpus, LatentCorpus, random_reports
from medm2g_core.training.loop import run_stage
from medm2g_core.training.run import near_device, new_model
from medm2g_core.training.stages import RoundStage

STUDIES = {
    "chest": ("xray", "ct", "mri_t1", "mri_t2"),
    "brain": ("mri_t1", "mri_t2", "mri_pd", "mri_flair"),
}
N, ROUND = 128, "round3"
WARM, TIMED = 6, 30


def random_studies(size: int) -> list[Corpus]:
    """Two corpora with all streams, pictures of noise."""
    texts = random_reports(4 * N, 0)
    chest = [t for t in texts if "brain" not in t.lower()]
    out = []
    for region, names in STUDIES.items():
        g = torch.Generator().manual_seed(len(out))
        images = {n: torch.rand(N, 1, size, size, generator=g).mul(2).sub(1).half() for n in names}
        out.append(Corpus(region, images, [[chest[i % len(chest)]] for i in range(N)]))
    return out


def seconds_a_step(
    model: MedM2G, latent: list[LatentCorpus], batch: int, device: str, precision: str
) -> float:
    """A longer run less a shorter one, over the steps between: what starting takes drops out."""
    took = []
    for steps in (WARM, WARM + TIMED):
        config = StageConfig(steps=steps, batch=batch, lr=1e-4, warmup=1, ema=0.9, optimizer="muon")
        stage = RoundStage(model, latent, ROUND)
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run_stage(
                stage, config, Path(folder), device=device, precision=precision, progress=False
            )
        took.append(time.perf_counter() - begin)
    return (took[1] - took[0]) / TIMED


def training(name: str, batches: tuple[int, ...], on_cpu: bool) -> None:
    chosen = profile(name)
    model = new_model(chosen, texts=random_reports(400, 0))
    latent = near_device(
        "cuda", [LatentCorpus.build(model.to("cuda"), c) for c in random_studies(chosen.resolution)]
    )
    for batch in batches:
        torch.cuda.reset_peak_memory_stats()
        second = seconds_a_step(model, latent, batch, "cuda", "bf16")
        peak = torch.cuda.max_memory_allocated() / 1e9
        words = (
            f"{batch / second:.0f} studies/s ({1e3 * second:.0f} ms a step, {peak:.1f} GB of GPU"
            " memory at most)"
        )
        if on_cpu and batch == batches[0]:
            slow = seconds_a_step(model, [c.to("cpu") for c in latent], batch, "cpu", "auto")
            words += f"; CPU, {torch.get_num_threads()} threads: {batch / slow:.0f} studies/s"
            model.to("cuda")
        record(
            f"gpu_training_{name}_{batch}",
            f"training {ROUND} of profile `{name}` on a GPU, bf16, batch {batch}",
            words,
            "",
        )


def middle(action: Callable[[], object], times: int = 5) -> float:
    action()
    seconds = []
    for _ in range(times):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        action()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def sampling() -> None:
    texts = [t for t in random_reports(1400, 1) if "brain" not in t][:512]
    pipe = MedM2GPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    words = []
    for device, dtype, n in (
        ("cpu", torch.float32, 64),
        ("cuda", torch.float32, 64),
        ("cuda", torch.float32, 512),
        ("cuda", torch.bfloat16, 512),
    ):
        pipe.to(device, dtype)
        given = {"text": texts[:n]}
        options = {"num_inference_steps": 10, "guidance_scale": 2.0}
        second = middle(lambda: pipe(given, ["xray"], **options), 3)  # noqa: B023
        words.append(
            f"{device} {str(dtype).removeprefix('torch.')}, {n} at once: {n / second:.0f} a second"
        )
    record(
        "gpu_sampling",
        "X-rays from reports, 10 steps, guidance 2, shipped weights",
        "; ".join(words),
        "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="leave out the larger profiles")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no NVIDIA GPU here: nothing measured")
        return
    sampling()
    training("cpu", (32, 128, 512), on_cpu=True)
    if not args.quick:
        training("gpu", (128,), on_cpu=False)


if __name__ == "__main__":
    main()
