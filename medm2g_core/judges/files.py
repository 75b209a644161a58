"""Judges on disk: the weights as safetensors, and beside them how they were trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medm2g_core.judges.judge import JUDGED, Judge
from medm2g_core.judges.labels import labels_of
from medm2g_core.judges.network import JudgeNet
from medm2g_core.model import CheckpointError
from medm2g_core.storage import atomic_write

__all__ = ["FORMAT", "SHIPPED_JUDGES", "load_judge", "load_judges", "save_judge"]

FORMAT = 1
"""Of the files; raised when a judge of before can no longer be read."""

SHIPPED_JUDGES = Path(__file__).resolve().parents[2] / "checkpoints" / "judges"
"""The judges in this repository (present in a clone; not part of an installed wheel)."""


def _files(folder: Path, region: str, stream: str) -> tuple[Path, Path]:
    return folder / f"{region}_{stream}.safetensors", folder / f"{region}_{stream}.json"


def save_judge(judge: Judge, folder: Path) -> list[Path]:
    """Write ``<region>_<stream>.safetensors`` (float16) and ``.json`` (AUCs, cohort, settings),
    each atomically."""
    weights, facts = _files(folder, judge.region, judge.stream)
    tensors = {
        k: (v.half() if v.is_floating_point() and v.ndim > 1 else v).detach().cpu().contiguous()
        for k, v in judge.net.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    meta = {
        "format": str(FORMAT),
        "region": judge.region,
        "stream": judge.stream,
        "labels": json.dumps([label.text for label in judge.labels]),
    }
    atomic_write(weights, lambda p: save_file(tensors, p, meta))
    atomic_write(
        facts, lambda p: p.write_text(json.dumps(judge.info, indent=1) + "\n", encoding="utf-8")
    )
    return [weights, facts]


def load_judge(folder: Path, region: str, stream: str) -> Judge:
    """One judge; `CheckpointError` says what is missing, damaged or of another version."""
    weights, facts = _files(folder, region, stream)
    again = "train it again: python -m medm2g_core.judges"
    for file in (weights, facts):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; {again}")
    try:
        info = json.loads(facts.read_text(encoding="utf-8"))
        with safe_open(weights, "pt") as f:
            meta = f.metadata() or {}
        tensors = load_file(weights)
    except Exception as error:  # safetensors raises its own Rust error type
        raise CheckpointError(
            f"{weights} or its .json is damaged ({error}); copy both again, or {again}"
        ) from error
    expected = {
        "format": str(FORMAT),
        "region": region,
        "stream": stream,
        "labels": json.dumps([label.text for label in labels_of(region)]),
    }
    if meta != expected:
        raise CheckpointError(
            f"{weights} is a judge of another version or stream ({meta}); {again}"
        )
    net = JudgeNet(len(labels_of(region)))
    own = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = sorted(
        k
        for k in own.keys() | tensors.keys()
        if k not in own or k not in tensors or own[k].shape != tensors[k].shape
    )
    if wrong:
        raise CheckpointError(
            f"{weights} does not fit this network: {len(wrong)} tensors, first {wrong[0]}; {again}"
        )
    net.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()}, strict=False)
    return Judge(region, stream, net.eval(), info)


def load_judges(
    folder: str | Path | None = None, wanted: Sequence[tuple[str, str]] = JUDGED
) -> dict[tuple[str, str], Judge]:
    """(region, stream) -> judge from a folder; without one, from the folder shipped in the
    repository.

    Raises:
        CheckpointError: a judge is missing, damaged, or of another version.
    """
    folder = SHIPPED_JUDGES if folder is None else Path(folder)
    return {(r, s): load_judge(folder, r, s) for r, s in wanted}
