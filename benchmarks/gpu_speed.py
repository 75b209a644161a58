"""What a GPU brings: training of a round and sampling, beside the CPU of the same machine where
that is bearable; and the joint round kernel by kernel, as CUDA graphs, and beside what the chip
could do at best.

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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import StageConfig, profile
from medm2g_core.training.corpus import Corpus, random_reports
from medm2g_core.training.latents import LatentCorpus
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
    model: MedM2G,
    latent: list[LatentCorpus],
    batch: int,
    device: str,
    precision: str,
    stage: str = ROUND,
    capture: bool | None = None,
    timed: int = TIMED,
) -> float:
    """A longer run less a shorter one, over the steps between: what starting takes drops out."""
    took = []
    warm = WARM if stage == ROUND else timed  # the joint round has more kinds of steps to record
    for steps in (warm, warm + timed):
        config = StageConfig(steps=steps, batch=batch, lr=1e-4, warmup=1, ema=0.9, optimizer="muon")
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run_stage(
                RoundStage(model, latent, stage),
                config,
                Path(folder),
                device=device,
                precision=precision,
                progress=False,
                capture=capture,
            )
        took.append(time.perf_counter() - begin)
    return (took[1] - took[0]) / timed


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


class Traffic(TorchDispatchMode):
    """Counts the bytes that all operations read and write together, if each goes to memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs, out)):
            self.bytes += x.nbytes if isinstance(x, torch.Tensor) else 0
        return out


def best_of_the_chip() -> tuple[float, float]:
    """FLOP/s of a large bf16 product, and bytes/s of a copy (read and written), measured."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    product = 2 * 8192**3 / middle(lambda: a @ a)
    x = torch.empty(2**30, device="cuda", dtype=torch.float32)
    y = torch.empty_like(x)
    return product, 2 * x.nbytes / middle(lambda: y.copy_(x))


def joint_round(name: str = "base", batch: int = 128) -> None:
    """Targets a second of the joint round, and the roofline of its steps: the longer of the time
    for its FLOPs and that for its bytes."""
    chosen = profile(name)
    model = new_model(chosen, texts=random_reports(400, 0)).to("cuda")
    latent = [LatentCorpus.build(model, c).to("cuda") for c in random_studies(chosen.resolution)]
    stage = RoundStage(model, latent, "joint")
    flops, traffic, targets, draws = FlopCounterMode(display=False), Traffic(), 0, 12
    for seed in range(draws):
        drawn = stage.batches.draw(batch, torch.Generator().manual_seed(seed), model.device)
        targets += sum(len(drawn.latents[m]) for m in drawn.targets)
        with flops, traffic, torch.autocast("cuda", torch.bfloat16):
            stage.objective(model, drawn)[0].backward()
        model.zero_grad(set_to_none=True)
    peak, bandwidth = best_of_the_chip()
    by_flops = flops.get_total_flops() / draws / peak
    by_bytes = traffic.bytes / draws / bandwidth
    words = []
    for capture, kind in ((False, "kernel by kernel"), (True, "as graphs")):
        second = seconds_a_step(
            model, latent, batch, "cuda", "bf16", stage="joint", capture=capture, timed=120
        )
        a_second = targets / draws / second
        words.append(f"{kind} {1e3 * second:.0f} ms a step, {a_second:.0f} targets/s")
    words.append(
        f"roofline {1e3 * max(by_flops, by_bytes):.1f} ms ({1e3 * by_flops:.1f} for"
        f" {flops.get_total_flops() / draws / 1e12:.2f} TFLOP at {peak / 1e12:.0f} TFLOP/s,"
        f" {1e3 * by_bytes:.1f} for {traffic.bytes / draws / 1e9:.0f} GB unfused at"
        f" {bandwidth / 1e12:.1f} TB/s)"
    )
    record(
        f"gpu_joint_{name}_{batch}",
        f"joint round of profile `{name}` on a GPU, bf16, batch {batch}",
        "; ".join(words),
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
    joint_round()
    sampling()
    training("cpu", (32, 128, 512), on_cpu=True)
    if not args.quick:
        training("gpu", (128,), on_cpu=False)


if __name__ == "__main__":
    main()
