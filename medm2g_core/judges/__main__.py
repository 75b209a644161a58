"""``python -m medm2g_core.judges``: train the judges that are not up to date."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medm2g_core.judges.files import SHIPPED_JUDGES, load_judge, save_judge
from medm2g_core.judges.judge import JUDGED
from medm2g_core.judges.training import JudgeSettings, train_judge, up_to_date
from medm2g_core.streams import STREAMS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the judges that are missing, damaged, or trained on other images or with other
    settings."""
    parser = argparse.ArgumentParser(prog="python -m medm2g_core.judges", description=main.__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=SHIPPED_JUDGES,
        help="folder of the judges (default: %(default)s)",
    )
    names = [f"{r}/{s}" for r, s in JUDGED]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        metavar="REGION/STREAM",
        help="which ones",
    )
    parser.add_argument("--again", action="store_true", help="train also those that are up to date")
    parser.add_argument(
        "--steps",
        type=int,
        default=JudgeSettings.steps,
        help="steps of each (default: %(default)s)",
    )
    parser.add_argument(
        "--train", type=int, default=JudgeSettings.train, help="chests to train on (%(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=JudgeSettings.held_out,
        help="chests to test on (%(default)s)",
    )
    args = parser.parse_args(arguments)
    settings = JudgeSettings(steps=args.steps, train=args.train, held_out=args.held_out)
    for region, stream in JUDGED:
        if f"{region}/{stream}" not in args.only:
            continue
        if args.again or not up_to_date(args.out, region, stream, settings):
            save_judge(train_judge(stream, region, settings), args.out)
        info = load_judge(args.out, region, stream).info
        print(
            f"{STREAMS[stream].title} ({region}): macro AUC {info['macro_auc']} on {info['n_test']}"
            " real test images"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
