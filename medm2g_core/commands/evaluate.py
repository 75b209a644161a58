"""``evaluate``: measure a model on held-out virtual patients and write the tables."""

from __future__ import annotations

import argparse
import sys

from medm2g_core.commands.common import pick_device, writable_folder

__all__ = ["run_evaluation"]


def run_evaluation(args: argparse.Namespace) -> int:
    """Measure what is not measured yet, print the tables, write ``<section>.json`` and ``results.md``.

    Returns:
        0, or 1 if a control does not hold (the tables are written all the same).

    Raises:
        medm2g_core.model.CheckpointError: no such model, or a damaged one.
        ValueError: the device is not there, the folder cannot be written, or there is no such section.
    """
    from medm2g_core.evaluation.results import SECTIONS, evaluate, failed, load_pieces, report, write_report

    pieces = evaluate(
        args.model, writable_folder(args.out), sections=args.sections or tuple(SECTIONS), n_chest=args.chest,
        n_brain=args.brain, reference=args.reference, steps=args.steps, guidance=args.guidance, seed=args.seed,
        device=pick_device(args.device), fresh=args.fresh, time_fraction=args.time_fraction,
    )  # fmt: skip
    print(report(pieces))
    print(write_report(load_pieces(args.out), args.out))  # with what earlier calls stored
    bad = failed(pieces)
    for section, check in bad:
        print(f"a control does not hold ({section}): {check.name}: {check.detail}", file=sys.stderr)
    return 1 if bad else 0
