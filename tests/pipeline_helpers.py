"""One call of the pipeline, the same each time, for its tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from conftest import pictures, reports

STEPS = 3


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(s) for s in seeds]


def inputs(studies: int = 1, **settings: Any) -> dict[str, Any]:
    """The same call each time: a CT and a report in, an X-ray and an MR out."""
    count = studies * settings.get("num_images_per_prompt", 1)
    return {
        "given": {"text": reports(3)[:studies], "ct": pictures(3)[:studies]},
        "want": ["xray", "mri_t1"],
        "num_inference_steps": STEPS,
        "generator": seeded(*range(count)),
    } | settings


def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[n], b[n]) if isinstance(a[n], torch.Tensor) else a[n] == b[n] for n in a
    )
