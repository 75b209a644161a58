"""The small loop that trains what stands beside the model, the judges and the rivals, for a budget.

`medm2g_core.training.loop.run_stage` trains the model's own stages: several processes, averaged
weights, a fixed number of steps. A rival is one network (or two: pix2pix has a critic) in one
process, and its budget is *time*, that of the flow that it faces; so the schedule is a function of
the part of the budget that is spent, and how many steps there were is a result.

A step is the textbook one:

    batch = next(batches)                       # indices from a seeded generator
    loss(batch).backward(); optimizer.step()    # the network
    critic.loss(output).backward(); critic.optimizer.step()

The loop is resumable. Everything that moves is saved every `SAVE_SECONDS` and on Ctrl-C, and a run
that goes on from there ends in the same weights as one that was never stopped, if it is measured in
steps; measured in seconds, it goes on with the seconds that are left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import nn
from tqdm.auto import tqdm

from medm2g_core.storage import CacheFile
from medm2g_core.training.clock import stopwatch, unit
from medm2g_core.training.loop import (
    SAVE_SECONDS,
    StageInterrupted,
    cuda_devices,
    stop_on_signal,
)
from medm2g_core.training.optimizer import Optimizer

__all__ = ["Budget", "Critic", "Fitted", "Outcome", "Precision", "cosine", "fit", "seeded"]

Batch = TypeVar("Batch")

Precision = Literal["fp32", "bf16", "trial"]
"""``"trial"``: the first `TRIAL_STEPS` take turns in both, and the faster one goes on."""

TRIAL_STEPS = 18
"""Nine of each precision: enough that a slow step or two do not decide."""

SETTING_UP = 2
"""First steps of a trial, one of each precision, that are not timed: they allocate and compile."""

SMOOTHING = 0.98
"""Decay of the running mean of the figure that is shown: about the last fifty steps."""


@dataclass(frozen=True)
class Budget:
    """When a training ends: after so many seconds or so many steps, whichever comes first.

    Attributes:
        seconds: of `medm2g_core.training.clock.stopwatch`; 0 for no limit.
        steps: 0 for no limit.

    Raises:
        ValueError: no limit at all, or one that is negative or no number.
    """

    seconds: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        limits = (self.seconds, self.steps)
        if not all(math.isfinite(x) and x >= 0 for x in limits) or not any(limits):
            raise ValueError(
                f"budget of {self.seconds} s and {self.steps} steps: needed one of them above 0,"
                " and none below"
            )

    def part(self, seconds: float, steps: int) -> float:
        """How much of it is spent, from 0 on; there is nothing left from 1 on."""
        by_time = seconds / self.seconds if self.seconds else 0.0
        by_steps = steps / self.steps if self.steps else 0.0
        return max(by_time, by_steps)


class Outcome(NamedTuple):
    """What a loss says of one batch.

    Attributes:
        loss: scalar that the network is moved down.
        shown: scalar that the progress bar and the record show, where that is another one.
        judged: what the critic's loss is given: the network's output, detached, and whatever
            it is compared with.
    """

    loss: torch.Tensor
    shown: torch.Tensor
    judged: Any = None


@dataclass(frozen=True)
class Critic:
    """A second network, which takes its own step after each of the first (Isola et al. 2017).

    Attributes:
        net: the network.
        optimizer: of its parameters; it keeps the learning rate that it has.
        loss: `Outcome.judged` to a scalar.
    """

    net: nn.Module
    optimizer: Optimizer
    loss: Callable[[Any], torch.Tensor]


@dataclass
class Fitted:
    """What a training came to.

    Attributes:
        steps: that were made, over all runs where it was resumed.
        seconds: that they took, by the stopwatch.
        precision: ``"fp32"`` or ``"bf16"``, of the last step.
        last, recent: `Outcome.shown` of the last step, and its running mean.
        trial: seconds of the timed steps of a trial in each precision.
    """

    steps: int = 0
    seconds: float = 0.0
    precision: str = "fp32"
    last: float = math.nan
    recent: float = math.nan
    trial: dict[str, float] = field(default_factory=lambda: {"bf16": 0.0, "fp32": 0.0})

    def count(self, shown: float, seconds: float) -> None:
        """One more step, that showed this figure and took so long."""
        self.last = shown
        self.recent = SMOOTHING * self.recent + (1 - SMOOTHING) * shown if self.steps else shown
        self.steps += 1
        self.seconds += seconds
        if SETTING_UP < self.steps <= TRIAL_STEPS:
            self.trial[self.precision] += seconds

    def facts(self, device: torch.device) -> dict[str, Any]:
        """Steps, seconds with their unit, and precision: plain values for the record beside the
        weights."""
        return {
            "steps": self.steps,
            unit(device): round(self.seconds, 1),
            "precision": self.precision,
        }


def cosine(part: float, floor: float = 0.0) -> float:
    """Half a cosine from 1 (``part`` 0) to ``floor`` (``part`` 1 and beyond): the usual decay of a
    learning rate (Loshchilov and Hutter 2017)."""
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


@contextmanager
def seeded(seed: int, device: torch.device, threads: int | None = None) -> Iterator[None]:
    """A seeded global generator (weights and dropout draw from it) and so many torch threads; both
    are put back afterwards."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=cuda_devices(device)):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def fit(
    net: nn.Module,
    loss: Callable[[Batch], torch.Tensor | Outcome],
    batches: Iterator[Batch],
    optimizer: Optimizer | torch.optim.Optimizer,
    *,
    budget: Budget,
    schedule: Callable[[int, float], None],
    critic: Critic | None = None,
    clip: float | None = None,
    precision: Precision = "fp32",
    state: CacheFile | None = None,
    stop_after: int | None = None,
    title: str = "training",
    progress: bool = True,
) -> Fitted:
    """Train a network in place until its budget is spent; at least one step.

    Args:
        net: on its device, in the mode (training or evaluation, part by part) that it trains in.
        loss: batch to a scalar, or to an `Outcome`. It may draw from torch's global generators
            (dropout, augmentation): they are saved too.
        batches: without end, from a generator of its own with a fixed seed. A resumed run draws the
            batches of all steps before once more and drops them, so they are best indices, and the
            loss looks up what they stand for.
        optimizer: of ``net``'s parameters; with ``state`` ours, whose moments can be saved.
        schedule: called before every step with the number of steps made and the part of the budget
            spent; sets the learning rate.
        critic: a second network and its step.
        clip: largest norm of ``net``'s gradient.
        precision: of autocast, see `Precision`; on other devices than CPU and CUDA ``"trial"``
            means ``"fp32"``.
        state: where the work in progress is kept. Its key must change with everything that the
            training depends on; the caller deletes it once the result is stored. Without one, the
            training cannot be resumed, and Ctrl-C interrupts it as it does any program.
        stop_after: stop (saved, as by Ctrl-C) after so many steps of this call; for tests.
        title: of the progress bar, which estimates the time that is left.

    Raises:
        StageInterrupted: Ctrl-C, SIGTERM or ``stop_after``; the same call goes on from there.
        FloatingPointError: the loss is not finite.
        TypeError: ``state`` with an optimiser whose moments cannot be saved.
    """
    if state is not None and not isinstance(optimizer, Optimizer):
        raise TypeError(
            "a training with a state needs an Optimizer, whose moments can be saved; got"
            f" {type(optimizer).__name__}"
        )
    device = next(net.parameters()).device
    if precision == "trial" and device.type not in ("cpu", "cuda"):
        precision = "fp32"
    run = Fitted()
    if state is not None:
        run = _resume(state, net, optimizer, critic, device)
    for _ in range(run.steps):
        next(batches)
    first, saved, watch = run.steps, time.monotonic(), stopwatch(device)
    with (
        stop_on_signal() if state else nullcontext(lambda: False) as stop_asked,
        _bar(budget, run, title, progress) as bar,
    ):
        begin = watch()
        while (part := budget.part(run.seconds, run.steps)) < 1:
            schedule(run.steps, part)
            run.precision = _choose(precision, run)
            shown = _step(
                net, loss, next(batches), optimizer, critic, clip, device, run.precision == "bf16"
            )
            if not math.isfinite(shown):
                raise FloatingPointError(f"{title}: the loss is {shown} at step {run.steps}")
            end = watch()
            run.count(shown, end - begin)
            begin = end
            bar.update(min(bar.total, int(bar.total * budget.part(run.seconds, run.steps))) - bar.n)
            bar.set_postfix(step=run.steps, loss=f"{run.recent:.3f}", refresh=False)
            if state is None or budget.part(run.seconds, run.steps) >= 1:
                continue
            stop = stop_asked() or (stop_after is not None and run.steps - first >= stop_after)
            if stop or time.monotonic() - saved > SAVE_SECONDS:
                state.save_tensors(_moving(net, optimizer, critic, device), vars(run))
                saved, begin = time.monotonic(), watch()  # saving is not training
            if stop:
                raise StageInterrupted(
                    f"{title}: stopped at step {run.steps}; saved in {state.path}, the same"
                    " command goes on from there"
                )
    return run


def _step(
    net: nn.Module,
    loss: Callable[[Batch], torch.Tensor | Outcome],
    batch: Batch,
    optimizer: Optimizer | torch.optim.Optimizer,
    critic: Critic | None,
    clip: float | None,
    device: torch.device,
    half: bool,
) -> float:
    """One step of the network and one of its critic; returns the figure to show."""
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        said = loss(batch)
    outcome = said if isinstance(said, Outcome) else Outcome(said, said)
    if not torch.isfinite(outcome.loss):
        return math.nan
    optimizer.zero_grad()
    outcome.loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], clip)
    optimizer.step()
    optimizer.zero_grad()
    if critic is not None:
        critic.optimizer.zero_grad()  # the first network's step left gradients in the critic
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            doubt = critic.loss(outcome.judged)
        doubt.backward()
        critic.optimizer.step()
        critic.optimizer.zero_grad()
    return outcome.shown.item()


def _choose(precision: Precision, run: Fitted) -> Literal["fp32", "bf16"]:
    """Precision of the next step."""
    if precision != "trial":
        return precision
    if run.steps < TRIAL_STEPS:
        return "bf16" if run.steps % 2 == 0 else "fp32"
    return "bf16" if run.trial["bf16"] < run.trial["fp32"] else "fp32"


def _bar(budget: Budget, run: Fitted, title: str, progress: bool) -> tqdm:
    """A bar over the steps of the budget, or else over its seconds, that begins where ``run``
    stands."""
    total = budget.steps or math.ceil(budget.seconds)
    done = min(total, int(total * budget.part(run.seconds, run.steps)))
    return tqdm(
        total=total,
        initial=done,
        desc=title,
        unit="step" if budget.steps else "s",
        disable=not progress,
    )


# ---- what a resumed run needs


def _named(net: nn.Module, critic: Critic | None) -> dict[str, torch.Tensor]:
    """Parameters and buffers of both networks, a tied parameter once: ``net.`` or ``critic.`` +
    name."""
    players = {"net": net} | ({"critic": critic.net} if critic is not None else {})
    return {
        f"{who}.{name}": tensor
        for who, module in players.items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


def _moving(
    net: nn.Module,
    optimizer: Optimizer | torch.optim.Optimizer,
    critic: Critic | None,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """All that a step moves: networks, moments of the optimisers, global random generators."""
    assert isinstance(optimizer, Optimizer)
    out = _named(net, critic)
    out |= {f"optimizer.{k}": v for k, v in optimizer.state_tensors().items()}
    if critic is not None:
        moments = critic.optimizer.state_tensors()
        out |= {f"critic_optimizer.{k}": v for k, v in moments.items()}
    out["random.cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        out["random.cuda"] = torch.cuda.get_rng_state(device)
    return out


def _resume(
    state: CacheFile,
    net: nn.Module,
    optimizer: Optimizer | torch.optim.Optimizer,
    critic: Critic | None,
    device: torch.device,
) -> Fitted:
    """Put everything back as it was saved; a fresh start where nothing was."""
    assert isinstance(optimizer, Optimizer)
    found = state.load_tensors()
    if found is None:
        return Fitted()
    tensors, facts = found
    with torch.no_grad():
        for name, tensor in _named(net, critic).items():
            tensor.copy_(tensors[name])
    optimizer.load_state_tensors(_without("optimizer.", tensors))
    if critic is not None:
        critic.optimizer.load_state_tensors(_without("critic_optimizer.", tensors))
    torch.set_rng_state(tensors["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    return Fitted(**facts)


def _without(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
