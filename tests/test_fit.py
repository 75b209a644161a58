"""The small training loop: it is the textbook's, it keeps its budget, and an interruption changes
nothing."""

from __future__ import annotations

import copy
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from medm2g_core.profiles import StageConfig
from medm2g_core.storage import CacheFile
from medm2g_core.training import fit as module
from medm2g_core.training.clock import CPU_SECONDS
from medm2g_core.training.fit import Budget, Critic, Outcome, cosine, fit, seeded
from medm2g_core.training.loop import StageInterrupted
from medm2g_core.training.optimizer import Optimizer

STEPS = 12
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
CPU = torch.device("cpu")


def network() -> nn.Module:
    """With dropout, which draws from the global generator, and batch norm, which has buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1)
        )


def batches(seed: int = 0) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randint(len(X), (8,), generator=generator)


def trained(net: nn.Module, kind: str = "muon", steps: int = STEPS, **options):
    optimizer = Optimizer(
        dict(net.named_parameters()), net, StageConfig(steps=1, lr=0.02, optimizer=kind)
    )
    options = {"budget": Budget(steps=steps), "progress": False} | options
    return fit(
        net.train(),
        lambda index: (net(X[index]) - Y[index]).square().mean(),
        batches(),
        optimizer,
        schedule=lambda step, part: optimizer.set_lr(0.02 * cosine(part)),
        **options,
    )


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_it_is_the_textbook_loop() -> None:
    net = network()
    reference = copy.deepcopy(net)
    with seeded(3, CPU):
        done = trained(net, "adamw", clip=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        adamw = Optimizer(
            dict(reference.named_parameters()), reference, StageConfig(steps=1, lr=0.02)
        )
        draw = batches()
        for step in range(STEPS):
            adamw.set_lr(0.02 * (0.5 * (1 + math.cos(math.pi * step / STEPS))))
            index = next(draw)
            loss = (reference.train()(X[index]) - Y[index]).square().mean()
            adamw.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            adamw.step()
    assert_same(net, reference)
    assert done.steps == STEPS and done.last == loss.item()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("stops", [(1,), (5, 4)])
def test_a_training_that_was_stopped_ends_in_the_weights_of_one_that_was_not(
    kind: str, stops: tuple[int, ...], tmp_path: Path
) -> None:
    whole = network()
    with seeded(3, CPU):
        one = trained(whole, kind)
    state = CacheFile(tmp_path / "state.safetensors", "k")
    for stop in stops:
        with seeded(3, CPU), pytest.raises(StageInterrupted, match="the same command goes on"):
            trained(network(), kind, state=state, stop_after=stop)
    last = network()
    with seeded(3, CPU):
        two = trained(last, kind, state=state)
    assert_same(whole, last)
    assert (two.steps, two.last, two.recent) == (one.steps, one.last, one.recent)


def test_a_state_of_other_settings_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    with seeded(3, CPU), pytest.raises(StageInterrupted):
        trained(network(), state=CacheFile(path, "other"), stop_after=5)
    alone, beside = network(), network()
    for net, state in ((alone, None), (beside, CacheFile(path, "k"))):
        with seeded(3, CPU):
            trained(net, state=state)
    assert_same(alone, beside)


def test_a_damaged_state_is_said_and_the_training_begins_afresh(tmp_path: Path) -> None:
    state = CacheFile(tmp_path / "state.safetensors", "k")
    state.path.write_bytes(b"half")
    with pytest.warns(UserWarning, match="damaged"):
        assert trained(network(), state=state).steps == STEPS


def test_ctrl_c_saves_and_stops_after_the_step(tmp_path: Path) -> None:
    state = CacheFile(tmp_path / "state.safetensors", "k")
    net = network()
    optimizer = Optimizer(dict(net.named_parameters()), net, StageConfig(steps=1, lr=0.02))

    def loss(index: torch.Tensor) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGINT)
        return net(X[index]).square().mean()

    options = {"budget": Budget(steps=9), "schedule": lambda step, part: None, "progress": False}
    # a program that a shell started in the background ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(StageInterrupted, match="stopped at step 1"):
            fit(net, loss, batches(), optimizer, state=state, **options)
        assert state.load_tensors()[1]["steps"] == 1
        with pytest.raises(KeyboardInterrupt):  # nothing to go on from, so it is any program's
            fit(net, loss, batches(), optimizer, **options)
    finally:
        signal.signal(signal.SIGINT, before)


def test_work_in_progress_is_saved_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    state = CacheFile(tmp_path / "state.safetensors", "k")
    trained(network(), state=state)
    assert state.load_tensors()[1]["steps"] == STEPS - 1, "the last step needs no state"


def test_a_budget_is_kept_in_steps_and_in_seconds() -> None:
    assert trained(network(), steps=7).steps == 7
    assert trained(network(), budget=Budget(seconds=1e-9)).steps == 1
    timed = trained(network(), budget=Budget(seconds=0.3))
    assert 0.3 <= timed.seconds < 0.6 and timed.steps > 3
    assert trained(network(), budget=Budget(seconds=99, steps=3)).steps == 3
    assert timed.facts(CPU)[CPU_SECONDS] == round(timed.seconds, 1)


def test_the_seconds_before_an_interruption_count(tmp_path: Path) -> None:
    state = CacheFile(tmp_path / "state.safetensors", "k")
    with pytest.raises(StageInterrupted):
        trained(network(), budget=Budget(seconds=0.4), state=state, stop_after=3)
    before = state.load_tensors()[1]["seconds"]
    done = trained(network(), budget=Budget(seconds=before * 1.01), state=state)
    assert done.seconds > before > 0 and done.steps < 10


@pytest.mark.parametrize("limits", [(0, 0), (-1, 5), (float("nan"), 0), (float("inf"), 0)])
def test_a_budget_without_an_end_is_refused(limits: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Budget(*limits)


def test_a_trial_takes_turns_and_goes_on_with_the_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    done = trained(network(), steps=30, precision="trial")
    assert min(done.trial.values()) > 0
    assert done.precision == min(done.trial, key=done.trial.get)
    seen: list[bool] = []
    net = network()
    optimizer = Optimizer(dict(net.named_parameters()), net, StageConfig(steps=1, lr=0.02))

    def loss(index: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return net(X[index]).float().square().mean()

    fit(
        net,
        loss,
        batches(),
        optimizer,
        budget=Budget(steps=30),
        schedule=lambda step, part: None,
        precision="trial",
        progress=False,
    )
    assert seen[:18] == [True, False] * 9 and len(set(seen[18:])) == 1


def test_a_loss_that_is_not_finite_and_an_optimiser_that_cannot_be_saved_are_refused(
    tmp_path: Path,
) -> None:
    net = nn.Linear(4, 1)
    options = {"budget": Budget(steps=3), "schedule": lambda *_: None, "progress": False}
    adamw = torch.optim.AdamW(net.parameters())
    with pytest.raises(FloatingPointError, match="at step 0"):
        fit(net, lambda i: net(X[i]).sum() * torch.nan, batches(), adamw, **options)
    state = CacheFile(tmp_path / "s", "k")
    with pytest.raises(TypeError, match="AdamW"):
        fit(net, lambda i: net(X[i]).sum(), batches(), adamw, state=state, **options)


def rivals(steps: int, **options) -> tuple[nn.Module, nn.Module]:
    """A number that is to become what its critic takes for real, and that critic."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, critic = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 1))
    own, other = (
        Optimizer(dict(n.named_parameters()), n, StageConfig(steps=1, lr=lr))
        for n, lr in ((net, 0.02), (critic, 0.02))
    )

    def loss(index: torch.Tensor) -> Outcome:
        made = net(torch.ones(8, 1))
        doubt = (critic(made) - 1).square().mean()
        return Outcome(doubt, doubt, (torch.full((8, 1), 3.0), made.detach()))

    def critic_loss(judged: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        real, made = judged
        return 0.5 * ((critic(real) - 1).square().mean() + critic(made).square().mean())

    fit(
        net,
        loss,
        batches(),
        own,
        critic=Critic(critic, other, critic_loss),
        budget=Budget(steps=steps),
        schedule=lambda step, part: None,
        progress=False,
        **options,
    )
    return net, critic


def test_the_critic_learns_and_the_network_learns_from_it() -> None:
    start, _ = rivals(1)
    before = start(torch.ones(1, 1)).item()
    net, critic = rivals(25)
    assert critic(torch.tensor([[3.0]])) > critic(torch.tensor([[before]])) + 0.2
    net, _ = rivals(60)  # later the two circle around each other
    assert abs(net(torch.ones(1, 1)).item() - 3) < 0.5 * abs(before - 3)


def test_a_game_that_was_stopped_ends_in_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    state = CacheFile(tmp_path / "state.safetensors", "k")
    with pytest.raises(StageInterrupted):
        rivals(20, state=state, stop_after=9)
    for resumed, whole in zip(rivals(20, state=state), rivals(20), strict=True):
        assert_same(resumed, whole)


def test_threads_and_random_numbers_of_the_caller_are_left_alone() -> None:
    torch.manual_seed(5)
    threads, expected = torch.get_num_threads(), torch.rand(1)
    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError), seeded(1, CPU, threads + 1):
        assert torch.get_num_threads() == threads + 1
        torch.rand(9)
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads and torch.equal(torch.rand(1), expected)
