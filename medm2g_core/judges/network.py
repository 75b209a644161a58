"""The network of a judge."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["JudgeNet"]


class JudgeNet(nn.Module):
    """Images (B, 1, H, W) in -1..1 to logits (B, L) and features (B, `FEATURES`).

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
        h = self.stem(images)  # (B, 16, H/2, W/2)
        h = self.fine(_with_place(h))  # (B, 32, H/4, W/4)
        h = self.coarse(_with_place(h))  # (B, 64, H/8, W/8)
        features = (h.mean((2, 3)) - self.feature_shift) / self.feature_scale  # (B, 64)
        h = self.last(_with_place(h))  # (B, 64, H/16, W/16)
        pooled = torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)  # (B, 128)
        return self.head(pooled), features


def _conv(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    """A 3 x 3 convolution, batch norm, ReLU."""
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _with_place(h: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, C + 2, H, W): also row and column, -1..1 (CoordConv, Liu et al. 2018)."""
    b, _, height, width = h.shape
    rows = torch.linspace(-1, 1, height, device=h.device, dtype=h.dtype)
    columns = torch.linspace(-1, 1, width, device=h.device, dtype=h.dtype)
    place = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, H, W)
    return torch.cat([h, place.expand(b, -1, -1, -1)], 1)
