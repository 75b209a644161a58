"""The loop: accelerate, EMA, progress, atomic checkpoints that resume to the same weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from medm2g_core.model import CheckpointError
from medm2g_core.profiles import StageConfig
from medm2g_core.storage import atomic_write
from medm2g_core.training.captured import CapturedSteps
from medm2g_core.training.optimizer import Optimizer
from medm2g_core.training.stages import Stage

__all__ = [
    "StageInterrupted",
    "bf16_pays",
    "cuda_devices",
    "device_name",
    "run_stage",
    "state_file",
    "stop_on_signal",
    "training_attention",
]

SAVE_SECONDS = 120.0
"""Time between two saves of the state: what a power cut costs."""

LOG_EVERY = 20
GATES_EVERY = 5 * LOG_EVERY
"""In steps. Gates move slowly, and all of them make a long line."""

CLIP = 1.0
"""Largest norm of the gradient."""

LOWEST_RATE = 0.05
"""Where the cosine ends, relative to the highest learning rate."""

NORM_BATCHES = 32
"""Batches over which the averaged weights get their batch-norm statistics: two thousand studies of
the ``cpu`` profile, so a mean is good to 2 % of a deviation."""


class StageInterrupted(RuntimeError):
    """Training was stopped by the user; everything is saved and the same command goes on."""


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 autocast is faster here: yes on CUDA; on a CPU a small convolution is timed both
    ways."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    conv, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(16, 64, 32, 32)

    def seconds(enabled: bool) -> float:
        best = math.inf
        for _ in range(4):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                conv(x).float().mean().backward()
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(True) < 0.9 * seconds(False)


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth; both once more after a `StageConfig.restart`.

    After the warm-up this is transformers' ``get_cosine_with_min_lr_schedule_with_warmup`` (a test
    holds them together). That one belongs to one torch optimiser and counts its own steps from a
    rate of 0; a function of the step serves two optimisers, restarts and resuming as it is.
    """
    first, steps = config.cycle(step)
    step -= first
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    x = (step - config.warmup) / max(1, steps - config.warmup)
    return config.lr * (
        LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, x)))
    )


def _step_seed(seed: int, stage: str, step: int, rank: int) -> int:
    """A seed of its own for every step and process. Hashed, because torch's CPU generator keeps 32
    bits of a seed."""
    return int.from_bytes(
        hashlib.sha256(f"{seed}/{stage}/{step}/{rank}".encode()).digest()[:4], "big"
    )


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM end the current step and then the loop, not the program in mid-write."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    before: dict[signal.Signals, Any] = {}
    for s in (signal.SIGINT, signal.SIGTERM):
        try:
            before[s] = signal.signal(s, ask)
        except ValueError:  # not the main thread, as in some notebooks: leave signals alone
            break
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def training_attention(device: torch.device) -> AbstractContextManager[None]:
    """On a CPU attention as plain matrix products: for the few dozen places of our maps the
    backward pass of torch's fused kernel is slower (``benchmarks/training_speed.py``). Elsewhere
    torch chooses."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class _State:
    """Weights, EMA and optimiser moments of a stage as one safetensors file."""

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key

    def load(self) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]] | None:
        if not self.file.is_file():
            return None
        try:
            with safe_open(self.file, "pt") as f:
                facts = json.loads((f.metadata() or {})["state"])
            tensors = load_file(self.file)
        except Exception as error:  # safetensors raises its own Rust error type
            raise CheckpointError(
                f"{self.file} is damaged ({error}); delete it to start this stage afresh"
            ) from error
        if facts["key"] != self.key:
            raise CheckpointError(
                f"{self.file} belongs to another configuration; delete it, or train into another"
                " folder"
            )
        return int(facts["step"]), tensors, facts["extra"]

    def save(self, step: int, tensors: dict[str, torch.Tensor], extra: dict[str, Any]) -> None:
        cpu = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        meta = {"state": json.dumps({"key": self.key, "step": step, "extra": extra})}
        atomic_write(self.file, lambda p: save_file(cpu, p, meta))


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[torch.Generator]:
    """The seeds of one step; the generator of its batch. Torch's own generators are as they were
    afterwards."""
    with torch.random.fork_rng(devices=cuda_devices(device)):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@contextmanager
def _forward_context(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast and attention of a forward pass."""
    with (
        training_attention(device),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
    ):
        yield


@contextmanager
def _step_context(device: torch.device, precision: str, seed: int) -> Iterator[torch.Generator]:
    """`_seeded` and `_forward_context`, for a step that draws and computes in one call."""
    with _seeded(device, seed) as generator, _forward_context(device, precision):
        yield generator


class _Forward(nn.Module):
    """Training batches through a stage, for `update_bn`, which looks for layers in here."""

    def __init__(self, layers: list[Any], forward: Callable[[int], object]) -> None:
        super().__init__()
        self.layers, self._forward = nn.ModuleList(layers), forward

    def forward(self, i: int) -> None:
        self._forward(i)


@torch.no_grad()
def _update_batch_norms(
    stage: Stage, config: StageConfig, seed: int, device: torch.device, precision: str
) -> None:
    """Give the averaged weights batch-norm statistics of their own.

    The running ones are those of the weights that moved, step by step; what the averaged weights
    send through these layers has other means. All processes draw the same batches.
    """

    def forward(i: int) -> None:
        with _step_context(device, precision, _step_seed(seed, f"{stage.name}/norm", i, 0)) as g:
            stage(config.batch, g)

    if layers := stage.batch_norms():
        update_bn(range(NORM_BATCHES), _Forward(layers, forward))


def run_stage(
    stage: Stage,
    config: StageConfig,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "auto",
    stop_after: int | None = None,
    progress: bool = True,
    capture: bool | None = None,
) -> dict[str, Any]:
    """Train one stage to its last step, resuming from ``folder`` if it was begun there; EMA weights
    end in the model.

    Args:
        folder: gets ``<stage>.state.safetensors`` (`state_file`; the caller deletes it once it has
            stored the model) and ``<stage>.log.jsonl``: a line every `LOG_EVERY` steps, and every
            `GATES_EVERY` steps the gates (`Stage.gates`) in it.
        precision: ``"fp32"``, ``"bf16"`` or ``"auto"`` (measured at the start, then kept for the
            stage).
        stop_after: stop (saved, as by Ctrl-C) after so many steps of this call; for tests.
        capture: run the steps as CUDA graphs (`medm2g_core.training.captured`); by default on a GPU
            where one process trains alone. On a CPU the same code runs them kernel by kernel.

    Returns:
        summary with steps, seconds, precision, world size and the last logged values.

    Raises:
        StageInterrupted: stopped by Ctrl-C, SIGTERM or ``stop_after``; call again to go on.
        CheckpointError: a state file that is damaged or of another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = json.dumps(
        [stage.name, config.__dict__, seed, stage.model.profile.to_dict()], sort_keys=True
    )
    state = _State(state_file(folder, stage.name), key)
    loaded = state.load()
    if loaded:
        precision = loaded[2]["precision"]
    elif precision == "auto":
        precision = "bf16" if bf16_pays(torch.device(device)) else "fp32"

    # Autocast and the device are ours: accelerate keeps one precision and one device a process, and
    # every stage may choose its own.
    accelerator = Accelerator(
        mixed_precision="no",
        device_placement=False,
        cpu=torch.device(device).type == "cpu" and not is_initialized(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    # Several processes have a device each from the launcher, and keep it.
    place = torch.device(device) if accelerator.num_processes == 1 else accelerator.device
    # Timings differ between processes, the precision must not.
    precision = broadcast_object_list([precision])[0]
    named = dict(stage.trainable())
    if not named:
        raise ValueError(f"stage {stage.name} trains nothing")
    for name, parameter in stage.model.named_parameters():
        parameter.requires_grad_(name in named)
    stage.to(place)
    named = dict(stage.trainable())
    params = list(named.values())
    optimizer = Optimizer(named, stage.model, config)
    ema = EMAModel(params, decay=config.ema, foreach=True)

    kept = stage.model.state_dict().keys()
    buffers = {n: b for n, b in stage.model.named_buffers() if n in kept}
    start, seconds, last = 0, 0.0, {}
    if loaded:
        start, tensors, extra = loaded
        seconds, last = extra["seconds"], extra["last"]
        for n, b in buffers.items():
            b.copy_(tensors[f"buffer.{n}"])
        for (n, p), average in zip(named.items(), ema.shadow_params, strict=True):
            p.data.copy_(tensors[f"weight.{n}"])
            average.copy_(tensors[f"ema.{n}"])
        ema.optimization_step = extra["averaged"]
        optimizer.load_state_tensors(tensors)
    wrapped = accelerator.prepare(stage)
    alone = accelerator.num_processes == 1
    captured = None
    if alone and (place.type == "cuda" if capture is None else capture):
        captured = CapturedSteps(
            partial(stage.objective, stage.model),
            params,
            CLIP,
            lambda: _forward_context(place, precision),
            capture=place.type == "cuda",
        )

    def save(step: int) -> None:
        if not accelerator.is_main_process:
            return
        tensors: dict[str, torch.Tensor] = {f"weight.{n}": p for n, p in named.items()}
        tensors |= {f"ema.{n}": e for n, e in zip(named, ema.shadow_params, strict=True)}
        tensors |= {f"buffer.{n}": b for n, b in buffers.items()}
        tensors |= optimizer.state_tensors()
        extra = {"precision": precision, "seconds": seconds, "last": last}
        state.save(step, tensors, extra | {"averaged": ema.optimization_step})

    def gates_at(step: int) -> dict[str, dict[str, list[float]]]:
        """What the log of a step says of the gates, if it does."""
        if step % GATES_EVERY and step != config.steps - 1:
            return {}
        found = stage.gates()
        rounded = {pair: [round(g, 4) for g in values] for pair, values in found.items()}
        return {"gates": rounded} if found else {}

    log = folder / f"{stage.name}.log.jsonl"
    stage.train()
    began = saved = time.monotonic()
    before = seconds
    step = start
    hide = not progress or not accelerator.is_main_process
    with (
        stop_on_signal() as asked,
        tqdm(total=config.steps, initial=start, desc=stage.name, disable=hide) as bar,
    ):
        for step in range(start, config.steps):
            first, _ = config.cycle(step)
            if step == first > 0:  # a restart: from the averaged weights, with fresh moments
                ema.copy_to(params)
                optimizer = Optimizer(named, stage.model, config)
                ema = EMAModel(params, decay=config.ema, foreach=True)
            step_seed = _step_seed(seed, stage.name, step, accelerator.process_index)
            log_now = step % LOG_EVERY == 0 or step == config.steps - 1
            if captured is not None:
                with _seeded(place, step_seed) as generator:
                    loss, logs = captured(stage.batches.draw(config.batch, generator, place))
            else:
                with _step_context(place, precision, step_seed) as generator:
                    loss, logs = wrapped(config.batch, generator)
            # A GPU works behind the host's back: it is asked only where the host waits anyway.
            if (log_now or place.type == "cpu") and not torch.isfinite(loss):
                raise FloatingPointError(f"{stage.name}: the loss is {loss.item()} at step {step}")
            if captured is None:
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(params, CLIP)
            optimizer.set_lr(learning_rate(config, step))
            optimizer.step()
            optimizer.zero_grad()
            ema.step(params)
            bar.update()
            seconds = before + time.monotonic() - began
            if log_now:
                last = {"loss": round(loss.item(), 5)} | {
                    k: round(v.item(), 5) for k, v in logs.items()
                }
                bar.set_postfix(last)
                if accelerator.is_main_process:
                    line = {"step": step, "seconds": round(seconds, 1), **last, **gates_at(step)}
                    with log.open("a", encoding="utf-8") as f:
                        f.write(json.dumps(line) + "\n")
            stop = asked() or (stop_after is not None and step + 1 - start >= stop_after)
            if (
                accelerator.num_processes > 1
            ):  # a signal reaches the processes at different steps: stop all at this one
                stop = bool(accelerator.reduce(torch.tensor(float(stop), device=place), "sum") > 0)
            if (stop and step + 1 < config.steps) or time.monotonic() - saved > SAVE_SECONDS:
                save(step + 1)
                saved = time.monotonic()
            if stop and step + 1 < config.steps:
                raise StageInterrupted(
                    f"{stage.name}: stopped at step {step + 1} of {config.steps}; saved in"
                    f" {state.file}, the same command goes on from there"
                )
    save(config.steps)
    ema.copy_to(params)
    _update_batch_norms(stage, config, seed, place, precision)
    accelerator.wait_for_everyone()
    stage.eval()
    for parameter in stage.model.parameters():
        parameter.requires_grad_(True)
    return {
        "steps": config.steps,
        "seconds": round(seconds, 1),
        "precision": precision,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "device": device_name(place),
        **{f"last_{k}": v for k, v in last.items()},
    }


def state_file(folder: Path, stage: str) -> Path:
    """Where a stage that is under way keeps its state."""
    return folder / f"{stage}.state.safetensors"


def device_name(device: torch.device) -> str:
    """``"cpu"``, or the kind and what the driver calls it: ``"cuda (NVIDIA H200)"``."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def cuda_devices(device: torch.device) -> list[int]:
    """What `torch.random.fork_rng` takes: the GPUs whose generator a computation on ``device``
    moves."""
    return [device.index or 0] if device.type == "cuda" else []
