"""The optimiser: Muon moves matrices, AdamW the rest, and both go on from where they were."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from conftest import untrained
from torch import nn

from medm2g_core.profiles import StageConfig
from medm2g_core.training.optimizer import BatchedMuon, Optimizer, decays, matrices

MUON = StageConfig(steps=1, lr=0.05, optimizer="muon", weight_decay=0.0)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1),
            nn.GroupNorm(2, 8),
            nn.Flatten(),
            nn.Linear(8 * 16, 8),
            nn.Linear(8, 2),
        )


def a_step(net: nn.Module, optimizer: Optimizer, seed: int = 0) -> float:
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(16, 8, 4, 4, generator=g), torch.randn(16, 2, generator=g)
    loss = (net(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_kernels_and_matrices_are_muons_and_small_or_one_dimensional_weights_are_not():
    net = network()
    chosen = {n for n, p in net.named_parameters() if id(p) in matrices(net)}
    assert chosen == {"0.weight", "3.weight"}  # "4.weight" has two rows only


def test_no_embedding_table_is_a_matrix_not_even_a_tied_one(smoke):
    model = untrained(smoke)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    assert id(model.text_codec.decoder.lm_head.weight) in tables
    chosen = matrices(model)
    assert chosen and not chosen & tables


def test_an_update_of_a_kernel_is_orthogonal_as_a_matrix():
    """The gradient has singular values of 1 to 100, the update of one size; its sides are the
    gradient's."""
    net = network()
    optimizer = Optimizer(dict(net.named_parameters()), net, MUON)
    g = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(8, 8, generator=g))
    v, _ = torch.linalg.qr(torch.randn(72, 8, generator=g))
    gradient = u @ torch.diag(torch.logspace(0, 2, 8)) @ v.T
    before = net[0].weight.detach().clone()
    net[0].weight.grad = gradient.reshape(before.shape)
    optimizer.step()
    update = (before - net[0].weight.detach()).flatten(1)
    singular = torch.linalg.svdvals(update)
    assert singular.max() / singular.min() < 2.5
    aligned = torch.diagonal(u.T @ update @ v)
    assert (aligned > 0).all() and aligned.square().sum() > 0.99 * update.square().sum()


def test_both_learn_and_every_parameter_moves():
    for kind in ("muon", "adamw"):
        net = network()
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optimizer = Optimizer(
            dict(net.named_parameters()), net, dataclasses.replace(MUON, optimizer=kind, lr=0.01)
        )
        losses = [a_step(net, optimizer) for _ in range(60)]
        assert losses[-1] < 0.5 * losses[0]
        assert all(not torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_without_a_gradient_nothing_moves():
    net = network()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer = Optimizer(dict(net.named_parameters()), net, MUON)
    a_step(net, optimizer)
    moved = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer.step()  # gradients were cleared: neither momentum nor weight decay may move anything
    assert all(torch.equal(p, moved[n]) for n, p in net.named_parameters())
    assert any(not torch.equal(moved[n], before[n]) for n in moved)


def test_with_zero_gradients_matrices_decay_and_gates_norms_biases_and_single_vectors_do_not():
    for kind in ("adamw", "muon"):
        net = network()
        net.gate, net.scale = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor([2.7]))
        net.vector = nn.Embedding(1, 16)
        for p in net.parameters():
            p.data.add_(0.1)
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        config = dataclasses.replace(MUON, optimizer=kind, weight_decay=0.1)
        optimizer = Optimizer(dict(net.named_parameters()), net, config)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        moved = {n for n, p in net.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {"0.weight", "3.weight", "4.weight"}
        for n in moved:
            shrunk = before[n] * (1 - config.lr * config.weight_decay) ** 3
            torch.testing.assert_close(dict(net.named_parameters())[n].detach(), shrunk)


def test_no_gate_norm_bias_or_logit_scale_of_the_model_decays(smoke):
    model = untrained(smoke)
    decayed = {n for n, p in model.named_parameters() if decays(p)}
    ends = (".bias", "logit_scale", "prompt.null")
    assert not {n for n in decayed if n.endswith(ends) or ".gate." in n or "norm" in n}
    assert "alignment.encoders.text.tokens.weight" in decayed and len(decayed) > 200


def test_state_that_was_stored_goes_on_as_if_nothing_had_happened():
    straight, broken, control = network(), network(), network()
    one = Optimizer(dict(straight.named_parameters()), straight, MUON)
    for i in range(4):
        a_step(straight, one, i)
    two = Optimizer(dict(broken.named_parameters()), broken, MUON)
    for i in range(2):
        a_step(broken, two, i)
    stored = {k: v.clone() for k, v in two.state_tensors().items()}
    resumed = Optimizer(dict(broken.named_parameters()), broken, MUON)
    resumed.load_state_tensors(stored)
    forgotten = Optimizer(dict(control.named_parameters()), control, MUON)
    for i in range(4):
        if i == 2:
            forgotten = Optimizer(dict(control.named_parameters()), control, MUON)
        a_step(control, forgotten, i)
        if i >= 2:
            a_step(broken, resumed, i)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.parameters(), broken.parameters(), strict=True)
    )
    assert any(
        not torch.equal(a, b)
        for a, b in zip(straight.parameters(), control.parameters(), strict=True)
    )


def test_batched_muon_moves_matrices_as_torchs_own_does():
    """Several of one shape, one lying and one standing of the same sides, one alone; a control with
    half the rate."""
    g = torch.Generator().manual_seed(0)
    shapes = [(16, 16)] * 3 + [(16, 40), (40, 16), (24, 8)]
    start = [torch.randn(s, generator=g) for s in shapes]
    options = {"weight_decay": 0.1, "momentum": 0.95}
    runs = []
    torchs = partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    for kind, lr in ((torchs, 0.02), (BatchedMuon, 0.02), (BatchedMuon, 0.01)):
        parameters = [nn.Parameter(p.clone()) for p in start]
        optimizer = kind(parameters, lr=lr, **options)
        draw = torch.Generator().manual_seed(1)
        for step in range(3):
            for i, p in enumerate(parameters):
                gradient = torch.randn(p.shape, generator=draw)
                p.grad = None if (step, i) == (1, 2) else gradient  # one has no gradient once
            optimizer.step()
        runs.append(
            torch.cat([(p - s).detach().flatten() for p, s in zip(parameters, start, strict=True)])
        )
    theirs, ours, control = runs
    size = theirs.square().mean().sqrt()
    assert (ours - theirs).abs().max() < 0.05 * size  # both iterate in bf16, whose step is 0.4 %
    assert (control - theirs).abs().max() > 0.5 * size
