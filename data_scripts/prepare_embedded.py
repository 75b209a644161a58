"""Fetch the embedded data, build the atlases and, if asked, draw virtual patients ahead of time.

    python data_scripts/prepare_embedded.py
    python data_scripts/prepare_embedded.py --chest 2400 --brain 1000 --split train

The first line does the same as ``python -m medm2g_core prepare``.
"""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--chest", type=int, default=0, metavar="N", help="chest studies to draw")
    parser.add_argument("--brain", type=int, default=0, metavar="N", help="brain studies to draw")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train")
    parser.add_argument("--seed", type=int, default=0, help="of the cohort")
    parser.add_argument("--workers", type=int, help="processes (default: one a processor)")
    args = parser.parse_args(argv)

    from medm2g_core.commands.prepare import make_cohorts, prepare
    from medm2g_core.data.study_cache import CohortError
    from medm2g_core.data.wheels import DataUnavailableError

    try:
        prepare()
        make_cohorts(
            chest=args.chest,
            brain=args.brain,
            split=args.split,
            seed=args.seed,
            workers=args.workers,
        )
    except (DataUnavailableError, CohortError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
