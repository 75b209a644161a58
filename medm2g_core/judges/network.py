"""The network of a judge."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["JudgeNet"]


class JudgeNet(nn.Module):
    """Images (B, 1, H, W) to logits (B, L) and features (B, `FEATURES`).

    Seven 3x3 convolutions after a pixel unshuffle (cheap on a CPU). Two channels of coordinates
    tell it where left is and where a lobe lies; the maximum keeps a small nodule that an average
    would drown.
    """

    FEATURES = 64

    feature_shift: torch.Tensor
    feature_scale: torch.Tensor
    thresholds: torch.Tensor

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        a, b, c = 16, 32, self.FEATURES
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), *_conv(4, a, 1))
        self.fine = nn.Sequential(*_conv(a + 2, a, 1), *_conv(a, b, 2), *_conv(b, b, 1))
        self.coarse = nn.Sequential(*_conv(b + 2, c, 2), *_conv(c, c, 1))
        self.last = nn.Sequential(*_conv(c + 2, c, 2))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(2 * c, n_labels))
        # Features are standardised, so that no channel rules the distances; fitted on real images
        # of the val split.
        self.register_buffer("feature_shift", torch.zeros(self.FEATURES))
        self.register_buffer("feature_scale", torch.ones(self.FEATURES))
        self.register_buffer("thresholds", torch.zeros(n_labels))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # its hints lack the argument

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.coarse(_with_place(self.fine(_with_place(self.stem(images)))))
        top = self.last(_with_place(h))
        logits = self.head(torch.cat([top.mean((2, 3)), top.amax((2, 3))], 1))
        return logits, (h.mean((2, 3)) - self.feature_shift) / self.feature_scale


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _with_place(h: torch.Tensor) -> torch.Tensor:
    """Two more channels: row and column, -1..1."""
    rows = torch.linspace(-1, 1, h.shape[2], device=h.device, dtype=h.dtype)[:, None].expand(
        h.shape[2:]
    )
    columns = torch.linspace(-1, 1, h.shape[3], device=h.device, dtype=h.dtype)[None].expand(
        h.shape[2:]
    )
    return torch.cat([h, torch.stack([rows, columns]).expand(len(h), -1, -1, -1)], 1)
