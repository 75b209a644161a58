"""How long a trained baseline gets: the time that the flow had which it faces, or a share of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from medm2g_core.profiles import REPORT_STAGE, ROUND_STAGES
from medm2g_core.rivals.shares import Shares, parse_shares

__all__ = ["flow_device", "flow_seconds", "split_equally"]

UNKNOWN_SECONDS = 600.0
"""Of a round, where nothing tells how long it took: ten minutes on one thread."""


def flow_seconds(folder: Path, share: float | str | Shares = 1.0) -> dict[str, float]:
    """How long a trained baseline gets: seconds a modality, from the model's own ``training.json``.

    The time of a round (seconds, on a CPU times threads) is shared equally by the flows that it
    trains, and text gets the report writer's on top; ``share`` shortens it (tests, small machines).
    Where the folder tells nothing a round counts `UNKNOWN_SECONDS`.
    """
    shares = parse_shares(share)
    try:
        stages = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
        spent = {
            n: float(stages[n]["seconds"])
            * (stages[n]["threads"] if stages[n].get("device", "cpu") == "cpu" else 1)
            for n in (*ROUND_STAGES, *({REPORT_STAGE} & stages.keys()))
        }
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        spent = dict.fromkeys(ROUND_STAGES, UNKNOWN_SECONDS)
    seconds = split_equally(spent)
    seconds["text"] += spent.get(REPORT_STAGE, 0.0)
    return {m: round(s * shares[m], 1) for m, s in seconds.items()}


def split_equally(rounds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the three rounds to seconds a modality: those that train together share their
    round equally."""
    return {
        "text": rounds["round1"] / 2,
        "xray": rounds["round1"] / 2,
        "ct": rounds["round2"],
        "mri": rounds["round3"],
    }


def flow_device(folder: Path) -> str:
    """Kind of the device that the rounds were trained on: ``"cpu"``, ``"cuda"``; ``"cpu"`` where
    nothing is told."""
    try:
        stages = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
        return str(stages[ROUND_STAGES[-1]].get("device", "cpu")).split()[0]
    except (OSError, json.JSONDecodeError, KeyError):
        return "cpu"
