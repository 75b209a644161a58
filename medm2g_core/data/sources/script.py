"""The command line that all ``data_scripts/prepare_<name>.py`` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(name: str, doc: str = "", argv: Sequence[str] | None = None) -> int:
    """Check and prepare one data set; returns the exit status (0: done, 2: something is wrong and
    was said).

    Args:
        name: of the data set in `SOURCES`.
        doc: the script's docstring, shown by ``--help``.
        argv: arguments, those of the process by default.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("root", help="folder of the download")
    parser.add_argument(
        "--out",
        help=f"folder for the shards (default: prepared/{name})",
        default=f"prepared/{name}",
    )
    parser.add_argument(
        "--size", type=int, default=128, help="side of the pictures in pixels (default: 128)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N subjects, for a trial")
    parser.add_argument(
        "--workers", type=int, help="processes; 0: this one (default: one a processor)"
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="let the Dask cluster at ADDRESS do the work, such as tcp://10.0.0.1:8786 (needs the"
        " extra 'cluster'); its workers must see both folders under the same paths",
    )
    parser.add_argument(
        "--shard-size", type=int, default=256, metavar="N", help="studies a shard (default: 256)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the split, where the publisher has none (default: 0)",
    )
    parser.add_argument(
        "--shares",
        type=float,
        nargs=3,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAIN", "VAL", "TEST"),
        help="of the split, where the publisher has none (default: 0.8 0.1 0.1)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the check and the plan, write nothing"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="go on although published parts are not there"
    )
    parser.add_argument(
        "--retry", action="store_true", help="make shards again that left out unreadable files"
    )
    if name == "mimic_cxr":  # the pictures of MIMIC-CXR-JPG come without their reports
        parser.add_argument(
            "--reports",
            metavar="FOLDER",
            help="folder of MIMIC-CXR's reports, where they are not in the tree of the pictures",
        )
    args = parser.parse_args(argv)

    from medm2g_core.data.sources.mimic_cxr import MimicCXR
    from medm2g_core.data.sources.prepare import (
        prepare_source,
    )  # torch takes seconds; --help should not
    from medm2g_core.data.volumes import FileError

    reports = getattr(args, "reports", None)
    try:
        prepare_source(
            MimicCXR(reports=reports) if reports else name,
            args.root,
            args.out,
            size=args.size,
            limit=args.limit,
            workers=args.workers,
            shard_size=args.shard_size,
            dry_run=args.dry_run,
            seed=args.seed,
            shares=tuple(args.shares),
            allow_missing=args.allow_missing,
            retry=args.retry,
            scheduler=args.scheduler,
        )
    except (FileError, OSError, ValueError) as error:  # SourceError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; start again to go on where it stopped", file=sys.stderr)
        return 130
    return 0
