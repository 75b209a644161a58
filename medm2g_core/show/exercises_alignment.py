"""Checks of the exercises in notebook 03, see `medm2g_core.show.answers`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from medm2g_core.metrics.retrieval import ceiling_hits
from medm2g_core.show.answers import check_function, check_number

__all__ = ["check_ceiling", "check_shared_partners", "check_start_loss"]

START_BATCH = 64
"""Pairs in the batch of the exercise."""


def _one_way(a: torch.Tensor, b: torch.Tensor, tau: float, keys: Sequence[Hashable]) -> float:
    """Cross entropy against a target that is spread evenly over all partners with the same key."""
    same = torch.tensor([[float(x == y) for y in keys] for x in keys])  # (B, B)
    return F.cross_entropy(a @ b.T / tau, same / same.sum(1, keepdim=True)).item()


def _shared(a: torch.Tensor, b: torch.Tensor, tau: float, keys: Sequence[Hashable]) -> float:
    return 0.5 * (_one_way(a, b, tau, keys) + _one_way(b, a, tau, keys))


def check_shared_partners(
    function: Callable[[torch.Tensor, torch.Tensor, float, Sequence[Hashable]], Any] | None,
) -> None:
    """Symmetric InfoNCE of unit vectors (B, D) whose target is shared by equal keys."""
    draw = torch.Generator().manual_seed(0)

    def unit(n: int) -> torch.Tensor:
        return F.normalize(torch.randn(n, 8, generator=draw), dim=1)

    cases = [
        (unit(len(keys)), unit(len(keys)), tau, keys)
        for keys, tau in (("aab", 0.5), ("aabbbc", 0.2), ("abacadaef", 0.07))
    ]
    check_function(
        function,
        _shared,
        [(a, b, tau, list(keys)) for a, b, tau, keys in cases],
        takes="a function of two batches, tau and a list of keys that returns one number",
        hints={
            "that is plain InfoNCE: equal keys take no part": (
                lambda a, b, tau, keys: _shared(a, b, tau, range(len(keys)))
            ),
            "that is one direction, rows only; the columns have to find their row too": _one_way,
            "that is one direction, columns only; the rows have to find their column too": (
                lambda a, b, tau, keys: _one_way(b, a, tau, keys)
            ),
            "the similarities are not divided by tau": (
                lambda a, b, tau, keys: _shared(a, b, 1.0, keys)
            ),
            "similarities are divided by tau, not multiplied": (
                lambda a, b, tau, keys: _shared(a, b, 1 / tau, keys)
            ),
            "that is the sum over the pairs; the mean is wanted": (
                lambda a, b, tau, keys: _shared(a, b, tau, keys) * len(a)
            ),
            "both directions are added; halve them": (
                lambda a, b, tau, keys: _shared(a, b, tau, keys) * 2
            ),
        },
        right="patients with equal reports no longer push each other away.",
    )


def check_start_loss(loss: float | None) -> None:
    """InfoNCE of an encoder that gives the same vector to everything, for 64 pairs."""
    truth = math.log(START_BATCH)
    check_number(
        loss,
        truth,
        hints={
            "that is the logarithm to base 2; cross entropy has the natural one": math.log2(
                START_BATCH
            ),
            "that is the logarithm to base 10; cross entropy has the natural one": math.log10(
                START_BATCH
            ),
            "that is the chance of a lucky guess; the loss is minus its logarithm": 1 / START_BATCH,
            "the loss is minus the logarithm of a chance, so it is positive": -truth,
        },
        ask=f"what does the softmax give to {START_BATCH} equals?",
        right="so a first loss far above ln B says that something is wrong.",
    )


def check_ceiling(function: Callable[[Sequence[Hashable], int], Any] | None) -> None:
    """Best recall at k of a reader who knows what the keys say and nothing else."""
    cases: list[tuple[list[str], int]] = [
        (["normal", "normal", "effusion", "nodule"], 1),
        (["normal"] * 8 + ["nodule"] * 2, 1),
        (["normal"] * 8 + ["nodule"] * 2 + ["mass"], 5),
    ]

    def reference(keys: Sequence[Hashable], k: int) -> float:
        return sum(ceiling_hits(keys, k)) / len(keys)

    def unique(keys: Sequence[Hashable], k: int) -> float:
        return sum(n == 1 for n in Counter(keys).values()) / len(keys)

    check_function(
        function,
        reference,
        cases,
        takes="a function of a list of keys and k that returns one number",
        hints={
            "that counts only patients whose key is unique; twins are found half the time": unique,
            "that is right for k = 1; with k guesses a patient among c equals has k chances of c": (
                lambda keys, k: reference(keys, 1)
            ),
            "of eight equals five guesses find five: a share is never above 1": (
                lambda keys, k: sum(k / keys.count(key) for key in keys) / len(keys)
            ),
        },
        right="compare a model with this number, not with 1.",
    )
