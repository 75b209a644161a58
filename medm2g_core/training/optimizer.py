"""The optimiser: torch's Muon for the matrices of linear and convolution layers, AdamW for
everything else.

Muon (Jordan et al. 2024) makes every update an orthogonal matrix. Convolution kernels count as
matrices (out, in k^2), as in its author's image experiments. With ``match_rms_adamw`` (Liu et al.
2025) an update has the size of AdamW's, so both share one learning rate. torch makes one matrix
orthogonal after the other; a network has dozens of small ones of few shapes, so `BatchedMuon` does
those of one shape together, with the same update in less time (``benchmarks/training_speed.py``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from medm2g_core.profiles import StageConfig

__all__ = ["BatchedMuon", "Optimizer", "matrices"]

MOMENTUM = 0.95
SMALLEST = 8
"""A matrix with a shorter side is left to AdamW: there is little to make orthogonal."""


def matrices(model: nn.Module) -> set[int]:
    """``id`` of every weight that Muon may move: of linear and 2-D convolution layers, but no
    embedding table.

    A tied output layer (GPT-2) shares its embedding's table and is left out with it.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    layers = (nn.Linear, nn.Conv2d, Conv1D)
    weights = [m.weight for m in model.modules() if isinstance(m, layers)]
    return {
        id(w) for w in weights if id(w) not in tables and min(w.shape[0], w[0].numel()) >= SMALLEST
    }


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` (Nesterov, ``match_rms_adamw``) that iterates all matrices of one shape as
    one batch."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("BatchedMuon takes no closure")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
            grads = [cast(torch.Tensor, p.grad) for p in params]
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            # All matrices in one call each: a GPU would wait longer for a thousand small calls than
            # it works on them.
            torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
            updates = list(torch._foreach_lerp(grads, buffers, group["momentum"]))  # Nesterov
            shapes: dict[torch.Size, list[int]] = defaultdict(list)
            for i, p in enumerate(params):
                shapes[p.shape].append(i)
            for (rows, columns), own in shapes.items():
                x = torch.stack([updates[i] for i in own])  # (n, rows, columns)
                x = _orthogonal(x if rows <= columns else x.mT, group).to(
                    x.dtype
                )  # (n, short, long)
                x = x * (-group["lr"] * 0.2 * max(rows, columns) ** 0.5)  # match_rms_adamw
                x = x if rows <= columns else x.mT.contiguous()  # laid out as the parameters
                for i, new in zip(own, x, strict=True):
                    updates[i] = new
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates)


def _orthogonal(x: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor:
    """(n, short, long) to matrices of the same row and column spaces with singular values near 1,
    in bf16 as torch."""
    a, b, c = group["ns_coefficients"]
    x = x.bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT  # (n, short, short)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Optimizer:
    """One or two torch optimisers over named parameters, stepped together.

    Args:
        named: name -> parameter, on their device (it must not change afterwards).
        model: whose layers tell which of them are matrices.
        config: ``optimizer`` ``"adamw"`` or ``"muon"``, learning rate and weight decay.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], model: nn.Module, config: StageConfig
    ) -> None:
        chosen = matrices(model) if config.optimizer == "muon" else set()
        self._matrix = {n: p for n, p in named.items() if id(p) in chosen}
        self._plain = {n: p for n, p in named.items() if id(p) not in chosen}
        # Muon takes matrices only. These views share their memory with the kernels, so updating one
        # moves the other.
        self._view = {n: nn.Parameter(p.data.view(p.shape[0], -1)) for n, p in self._matrix.items()}
        self._all: list[torch.optim.Optimizer] = []
        if self._plain:
            self._adamw = torch.optim.AdamW(
                self._plain.values(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay
            )
            self._all.append(self._adamw)
        if self._view:
            self._muon = BatchedMuon(
                self._view.values(),
                lr=config.lr,
                weight_decay=config.weight_decay,
                momentum=MOMENTUM,
            )
            self._all.append(self._muon)

    def set_lr(self, lr: float) -> None:
        """Of both, from the next step on."""
        for group in [g for o in self._all for g in o.param_groups]:
            group["lr"] = lr

    def step(self) -> None:
        """Move what has a gradient; a part of the model that this step did not use stays where it
        is."""
        for n, view in self._view.items():
            grad = self._matrix[n].grad
            view.grad = None if grad is None else grad.reshape(view.shape)
        for optimizer in self._all:
            optimizer.step()

    def zero_grad(self) -> None:
        for p in (*self._plain.values(), *self._matrix.values(), *self._view.values()):
            p.grad = None

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a later run needs to go on: ``n.``, ``m.``, ``v.`` (AdamW) and ``b.``
        (Muon) + name."""
        out: dict[str, torch.Tensor] = {}
        for n, p in self._plain.items():
            moments = self._adamw.state.get(p)
            if moments:
                out |= {
                    f"n.{n}": moments["step"],
                    f"m.{n}": moments["exp_avg"],
                    f"v.{n}": moments["exp_avg_sq"],
                }
        for n, view in self._view.items():
            moments = self._muon.state.get(view)
            if moments:
                out[f"b.{n}"] = moments["momentum_buffer"]
        return out

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `state_tensors`; parameters without an entry start afresh."""
        for n, p in self._plain.items():
            if f"m.{n}" in tensors:
                self._adamw.state[p] = {
                    "step": tensors[f"n.{n}"].clone(),
                    "exp_avg": tensors[f"m.{n}"].to(p.device),
                    "exp_avg_sq": tensors[f"v.{n}"].to(p.device),
                }
        for n, view in self._view.items():
            if f"b.{n}" in tensors:
                self._muon.state[view] = {"momentum_buffer": tensors[f"b.{n}"].to(view.device)}
