"""``python -m medm2g_core.evaluation.familiarity``: how badly a model's codec redraws pictures of
validation studies, and from where on a picture counts as unlike training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.evaluation.codec import REGION_STREAMS
from medm2g_core.familiarity import QUANTILE, redrawn_db, threshold_db
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import SHIPPED_WEIGHTS
from medm2g_core.storage import atomic_write
from medm2g_core.streams import IMAGE_STREAMS

__all__ = ["main", "measure"]


def measure(model: MedM2G, cohorts: Mapping[str, VirtualCohort]) -> dict[str, torch.Tensor]:
    """Stream -> PSNR in dB of every validation picture of it, of all regions together: a given
    picture does not say which it is of."""
    found: dict[str, list[torch.Tensor]] = {name: [] for name in IMAGE_STREAMS}
    for region, cohort in cohorts.items():
        for name in REGION_STREAMS[region]:
            found[name].append(redrawn_db(model, name, cohort.stack(name)))
    return {name: torch.cat(parts) for name, parts in found.items() if parts}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the thresholds of a model; with --write, store them in its config.json."""
    parser = argparse.ArgumentParser(
        prog="python -m medm2g_core.evaluation.familiarity", description=main.__doc__
    )
    parser.add_argument("--model", type=Path, default=SHIPPED_WEIGHTS, metavar="DIR")
    parser.add_argument("--chest", type=int, default=200, help="chest studies (default 200)")
    parser.add_argument("--brain", type=int, default=100, help="brain studies (default 100)")
    parser.add_argument("--workers", type=int, help="processes that draw them")
    parser.add_argument("--write", action="store_true", help="store them with the model")
    args = parser.parse_args(arguments)
    model = MedM2G.from_pretrained(args.model, parts=("image_codec",))
    cohorts = {
        region: VirtualCohort(
            "val", region, count, resolution=model.profile.resolution, workers=args.workers
        )
        for region, count in (("chest", args.chest), ("brain", args.brain))
    }
    limits = {}
    print(f"stream      n    median   {QUANTILE:.0%} quantile   worst   (dB)")
    for name, scores in measure(model, cohorts).items():
        limits[name] = round(threshold_db(scores), 2)
        middle, worst = float(scores.median()), float(scores.min())
        print(f"{name:10s} {len(scores):3d} {middle:8.2f} {limits[name]:12.2f} {worst:11.2f}")
    if args.write:
        file = args.model / "config.json"
        config = json.loads(file.read_text(encoding="utf-8")) | {"familiar": limits}
        text = json.dumps(config, indent=1)
        atomic_write(file, lambda p: p.write_text(text, encoding="utf-8"))
        print(f"stored in {file}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
