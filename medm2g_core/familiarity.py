"""Is a picture like those that the model was trained on? Told by how well its own image codec
redraws the picture.

A codec keeps what it has seen often and loses what it has not. How badly it redraws pictures of
validation studies is measured once (``python -m medm2g_core.evaluation.familiarity``) and stored
with the model, in ``config.json``; a picture that comes back worse than nearly all of them is
unlike anything in training, and what is drawn from it is not to be trusted. The idea is that of
anomaly detection by reconstruction (Baur et al., Medical Image Analysis 69, 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medm2g_core.metrics.pixels import psnr
from medm2g_core.model import MedM2G

__all__ = ["MARGIN_DB", "QUANTILE", "note_on", "redrawn_db", "threshold_db"]

QUANTILE = 0.01
"""Part of the validation pictures that come back worse than the threshold."""

MARGIN_DB = 0.5
"""A picture must come back so much worse than that: a hundred studies do not settle their lowest
hundredth, so a few pictures of other studies of the same cohort fall short of it too."""

BATCH = 16


@torch.no_grad()
def redrawn_db(model: MedM2G, name: str, images: torch.Tensor) -> torch.Tensor:
    """PSNR (B,) in dB of pictures that went through the model's image codec and back.

    Args:
        images: (B, 1, H, W), -1..1, of the model's resolution.
    """
    parts = []
    for batch in images.split(BATCH):
        back = model.decode(name, model.encode(name, batch))
        assert isinstance(back, torch.Tensor)
        parts.append(psnr(back.float().cpu(), batch.float().cpu()))
    return torch.cat(parts)


def threshold_db(scores: torch.Tensor) -> float:
    """The PSNR that all but `QUANTILE` of the validation pictures reach."""
    return float(torch.quantile(scores.float(), QUANTILE))


def note_on(model: MedM2G, name: str, images: torch.Tensor) -> list[str]:
    """A sentence if one of the pictures is unlike training, else nothing; nothing too where the
    model has no threshold for the stream.

    Args:
        images: as `redrawn_db`'s.
    """
    limits: Mapping[str, float] = model.familiar
    size = model.profile.resolution
    if name not in limits or images.shape[-2:] != (size, size):
        return []
    worst = float(redrawn_db(model, name, images).min())
    if worst >= limits[name] - MARGIN_DB:
        return []
    return [
        "unlike anything in training: the model itself redraws this picture with"
        f" {_percent(worst):.1f} % error, and {100 * (1 - QUANTILE):.0f} of 100 pictures like its"
        f" training's with less than {_percent(limits[name]):.1f} %; do not trust what it draws"
        " from it"
    ]


def _percent(db: float) -> float:
    """Root mean square error in percent of the range of grey, from a PSNR."""
    return float(100 * 10 ** (-db / 20))
