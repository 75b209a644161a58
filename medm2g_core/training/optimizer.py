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

__all__ = ["BatchedMuon", "Optimizer", "decays", "matrices"]

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


def decays(parameter: torch.Tensor) -> bool:
    """Whether weight decay may pull at a parameter: at matrices and kernels, but not at gates,
    norms, biases, single vectors and the logit scale, whose size means something.
    """
    return sum(n > 1 for n in parameter.shape) >= 2


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
            shapes: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for (rows, columns), own in shapes.items():
                grads = [cast(torch.Tensor, p.grad) for p in own]
                moments = [self._momentum(p) for p in own]
                torch._foreach_lerp_(moments, grads, 1 - group["momentum"])
                x = torch.stack(torch._foreach_lerp(grads, moments, group["momentum"]))  # Nesterov
                x = x if rows <= columns else x.mT  # (n, short, long)
                x = _orthogonal(x, group).to(grads[0].dtype)
                x = x * (-group["lr"] * 0.2 * max(rows, columns) ** 0.5)  # match_rms_adamw
                x = x if rows <= columns else x.mT.contiguous()  # laid out as the parameters
                torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(own, list(x.unbind(0)))

    def _momentum(self, p: torch.Tensor) -> torch.Tensor:
        """Running mean of the gradient of ``p``, in ``p``'s shape."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return state["momentum_buffer"]


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
        config: ``optimizer`` ``"adamw"`` or ``"muon"``, learning rate and weight decay (of what
            `decays`).
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
        self._on_gpu = any(p.is_cuda for p in named.values())
        if self._plain:
            groups: list[dict[str, Any]] = [
                {"params": [p for p in self._plain.values() if decays(p)]},
                {"params": [p for p in self._plain.values() if not decays(p)], "weight_decay": 0.0},
            ]
            self._adamw = torch.optim.AdamW(
                groups,
                config.lr,
                betas=(0.9, 0.99),
                weight_decay=config.weight_decay,
                fused=self._on_gpu,  # one kernel for all of them
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
                    "step": tensors[f"n.{n}"].clone().to(p.device if self._on_gpu else "cpu"),
                    "exp_avg": tensors[f"m.{n}"].to(p.device),
                    "exp_avg_sq": tensors[f"v.{n}"].to(p.device),
                }
        for n, view in self._view.items():
            if f"b.{n}" in tensors:
                self._muon.state[view] = {"momentum_buffer": tensors[f"b.{n}"].to(view.device)}
