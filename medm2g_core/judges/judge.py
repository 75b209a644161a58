"""A judge: a trained network and the questions that its columns answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from medm2g_core.judges.labels import Label, labels_of
from medm2g_core.judges.network import JudgeNet
from medm2g_core.streams import StreamError, check_image

__all__ = ["JUDGED", "Judge", "Judges"]

JUDGED: tuple[tuple[str, str], ...] = (
    *(("chest", s) for s in ("xray", "ct", "mri_t1", "mri_t2")),
    *(("brain", s) for s in ("mri_flair", "mri_t1", "mri_t2", "mri_pd")),
)
"""(region, stream) of every judge: a network of its own for each contrast."""


@dataclass
class Judge:
    """A trained classifier of one stream.

    Attributes:
        region, stream: what it judges.
        net: the network, in evaluation mode.
        info: how it was trained, and its AUCs on held-out real images.
    """

    region: str
    stream: str
    net: JudgeNet
    info: Mapping[str, Any]

    @property
    def labels(self) -> tuple[Label, ...]:
        """The questions, in the order of the columns of `logits`."""
        return labels_of(self.region)

    def column(self, finding: str, side: str = "", location: str = "") -> int:
        """Column of one question."""
        return self.labels.index(Label(finding, side, location))

    @torch.no_grad()
    def read(self, images: torch.Tensor, batch: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 1, H, W) in -1..1 to logits (N, L) and features (N, D), float64."""
        if images.ndim != 4 or not len(images) or images.shape[-1] % 16 or images.shape[-2] % 16:
            raise StreamError(
                f"judge of {self.stream}: got {tuple(images.shape)}; needed (N, 1, H, W), N from 1,"
                " sides of 16 k"
            )
        check_image(images, self.stream)
        device = self.net.thresholds.device
        parts = [
            self.net(x.to(device, torch.float32, memory_format=torch.channels_last))
            for x in images.split(batch)
        ]
        logits, features = (torch.cat(p).double().cpu().numpy() for p in zip(*parts, strict=True))
        return logits, features

    def logits(self, images: torch.Tensor) -> np.ndarray:
        """(N, L); the answer is yes above ``net.thresholds``, which are logits too."""
        return self.read(images)[0]

    def probabilities(self, images: torch.Tensor) -> np.ndarray:
        """(N, L) in 0..1."""
        return 1 / (1 + np.exp(-self.logits(images)))

    def features(self, images: torch.Tensor) -> np.ndarray:
        """(N, 64): mean activations at an eighth of the resolution, standardised on real images.

        Taken before the last layers: those keep the findings and drop how sharp an image is.
        """
        return self.read(images)[1]


Judges = Mapping[tuple[str, str], Judge]
"""(region, stream) -> judge."""
