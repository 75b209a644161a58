"""Two choices of the training loop on this machine, as ratios: how attention is computed, and how
Muon steps.

python benchmarks/training_speed.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from record import record
from torch import nn
from torch.nn import functional as F

from medm2g_core.profiles import profile
from medm2g_core.training.loop import training_attention
from medm2g_core.training.optimizer import MOMENTUM, BatchedMuon, matrices
from medm2g_core.training.run import new_model

REPEATS = 7


def fastest(action: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs, after one to warm up."""
    action()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)


def attention(
    how: AbstractContextManager[None], batch: int, heads: int, places: int, width: int
) -> None:
    """Forward and backward of one self-attention of an image flow."""
    q, k, v = (
        torch.randn(batch, heads, places, width // heads, requires_grad=True) for _ in range(3)
    )
    with how, torch.autocast("cpu", torch.bfloat16):
        F.scaled_dot_product_attention(
            q.bfloat16(), k.bfloat16(), v.bfloat16()
        ).float().sum().backward()


def main() -> None:
    cpu = profile("cpu")
    flow, batch = cpu.flow, cpu.stages["round1"].batch
    level = flow.attention.index(True)
    places, width = (cpu.image_codec.latent_size // 2**level) ** 2, flow.channels[level]
    fused = fastest(lambda: attention(nullcontext(), batch, flow.head_dim, places, width))
    plain = fastest(
        lambda: attention(
            training_attention(torch.device("cpu")), batch, flow.head_dim, places, width
        )
    )
    record(
        "training_attention",
        f"one attention over {places} places, forward and backward, batch {batch}: matrix products"
        " against torch's fused kernel",
        f"{1e3 * plain:.1f} ms against {1e3 * fused:.1f} ms, {fused / plain:.1f} times as fast",
        "> 1",
    )

    model = new_model(cpu)
    own = matrices(model)
    named = [p for m in ("text", "xray") for p in model.flows[m].parameters() if id(p) in own]
    seconds = []
    for kind in (partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"), BatchedMuon):
        views = [nn.Parameter(p.detach().reshape(len(p), -1).clone()) for p in named]
        optimizer = kind(views, lr=1e-3, weight_decay=0.0, momentum=MOMENTUM)
        for view in views:
            view.grad = torch.randn_like(view)
        seconds.append(fastest(optimizer.step))
    one_by_one, batched = seconds
    record(
        "training_muon",
        f"a step of Muon on the {len(named)} matrices of two flows: those of one shape together"
        " against torch's own",
        f"{1e3 * batched:.0f} ms against {1e3 * one_by_one:.0f} ms, {one_by_one / batched:.1f}"
        " times as fast",
        "> 1",
    )


if __name__ == "__main__":
    main()
