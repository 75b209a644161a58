"""Small draws and choices that batches of all stages are made of."""

from __future__ import annotations

import torch

__all__ = ["integer", "integers", "some_of", "there", "where_chosen"]


def integers(high: int, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(high, (n,), generator=generator)


def integer(high: int, generator: torch.Generator) -> int:
    return int(integers(high, 1, generator))


def some_of(n: int, count: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(n, B) bool: for each of B studies a random set of ``count`` (B,) of ``n`` things."""
    place = torch.rand(n, len(count), generator=generator).argsort(0).argsort(0)  # (n, B)
    return place < count


def where_chosen(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a`` (B, ...) where ``chosen`` (B,), else ``b``."""
    return torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def there(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on the device. A GPU takes small tensors along with its commands: it is not waited
    for."""
    return x.to(device, non_blocking=True)
