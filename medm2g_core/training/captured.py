"""A training step as CUDA graphs: the host says once what to compute, then only "again".

A flow's step is some ten thousand small kernels. Started one by one they keep the host busy for
longer than the GPU. So the objective, its backward pass and the clipping of the gradient are
recorded as a graph, one for every *kind* of batch (which streams, which are targets, which shapes),
and played from then on. What differs from step to step is copied into the tensors that the graph
reads; everything random was drawn before (`medm2g_core.training.batches`), so a graph computes what
the same step without it would. The optimiser stays outside: its few hundred kernels start while the
GPU is busy with the graph.

(`torch.cuda.make_graphed_callables` records one module for one shape, with forward and backward
apart; a round has several kinds of steps through several modules, and they share one pool of
memory.)
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

__all__ = ["CapturedSteps", "kind_of", "tensors_in"]

WARM_UP = 2
"""Steps without a graph before it is recorded: libraries choose their kernels there."""

Logs = dict[str, torch.Tensor]
Objective = Callable[[Any], tuple[torch.Tensor, Logs]]


def _walk(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Leaves of nested dataclasses, mappings and sequences, each with its path."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _walk(getattr(value, f.name), f"{path}.{f.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{path}[{key}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, item in enumerate(value):
            yield from _walk(item, f"{path}[{i}]")
    else:
        yield path, value


def tensors_in(batch: object) -> list[torch.Tensor]:
    """All tensors of a batch, in a fixed order."""
    return [x for _, x in _walk(batch) if isinstance(x, torch.Tensor)]


def kind_of(batch: object) -> Hashable:
    """Equal for batches that one graph can serve: they differ in nothing but the values of their
    tensors."""
    return tuple(
        (path, (tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x)
        for path, x in _walk(batch)
    )


@dataclasses.dataclass
class _Step:
    """One kind of step: the tensors that it reads, and what it leaves."""

    batch: Any
    run: Callable[[], object]
    loss: torch.Tensor
    logs: Logs
    grads: list[torch.Tensor | None]


class CapturedSteps:
    """Loss, logs and clipped gradients of batches, as graphs where ``capture``.

    Args:
        objective: batch -> loss, logs; on a GPU nothing in it may wait for the GPU or depend on the
            values of tensors.
        params: whose gradients are wanted.
        clip: largest norm of all gradients together.
        context: made anew round every forward pass: autocast and the like.
        capture: record graphs. Without, the same steps run one kernel at a time, on any device.
    """

    def __init__(
        self,
        objective: Objective,
        params: Sequence[nn.Parameter],
        clip: float,
        context: Callable[[], AbstractContextManager[Any]],
        *,
        capture: bool,
    ) -> None:
        self.objective, self.params, self.clip = objective, list(params), clip
        self.context, self.capture = context, capture
        self._steps: dict[Hashable, _Step] = {}
        self._pool = torch.cuda.graph_pool_handle() if capture else None

    def __call__(self, batch: Any) -> tuple[torch.Tensor, Logs]:
        """Loss and logs of a batch; the gradients lie in ``params`` afterwards, ``None`` where the
        loss does not reach."""
        kind = kind_of(batch)
        if kind not in self._steps:
            self._steps[kind] = self._record(batch)
        step = self._steps[kind]
        if step.batch is not batch:
            torch._foreach_copy_(tensors_in(step.batch), tensors_in(batch))
        step.run()
        for p, grad in zip(self.params, step.grads, strict=True):
            p.grad = grad
        return step.loss, step.logs

    def _forget_gradients(self) -> None:
        for p in self.params:
            p.grad = None

    def _compute(self, batch: Any) -> tuple[torch.Tensor, Logs]:
        with self.context():
            loss, logs = self.objective(batch)
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.params if p.grad is not None], self.clip)
        return loss.detach(), {name: x.detach() for name, x in logs.items()}

    def _record(self, batch: Any) -> _Step:
        if not self.capture:
            return self._kernel_by_kernel(batch)
        before = torch.cuda.Stream()
        before.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(before):
            for _ in range(WARM_UP):
                self._forget_gradients()
                self._compute(batch)
        torch.cuda.current_stream().wait_stream(before)
        self._forget_gradients()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                loss, logs = self._compute(batch)
        except RuntimeError as error:
            # An operation that a graph cannot hold, of a library's other version perhaps: the
            # training is the same, and slower.
            warnings.warn(f"no graph of this step, it runs kernel by kernel: {error}", stacklevel=2)
            self.capture = False
            return self._kernel_by_kernel(batch)
        grads = [p.grad for p in self.params]
        return _Step(batch, graph.replay, loss, logs, grads)

    def _kernel_by_kernel(self, batch: Any) -> _Step:
        step = _Step(batch, lambda: None, torch.zeros(()), {}, [])

        def compute() -> None:
            self._forget_gradients()
            step.loss, step.logs = self._compute(step.batch)
            step.grads = [p.grad for p in self.params]

        step.run = compute
        return step
