"""``evaluate``: measure a model on held-out virtual patients and write the tables."""

from __future__ import annotations

import argparse

from medm2g_core.commands.common import pick_device, writable_folder

__all__ = ["run_evaluation"]


def run_evaluation(args: argparse.Namespace) -> int:
    """Measure, print the table and write ``quick.json`` and ``quick.md``.

    Raises:
        medm2g_core.model.CheckpointError: no such model, or a damaged one.
        ValueError: the device is not there, or the folder cannot be written.
    """
    from medm2g_core.evaluation.quick import markdown, quick_evaluation, write_results
    from medm2g_core.pipeline import MedM2GPipeline

    out = writable_folder(args.out)
    pipe = MedM2GPipeline.from_pretrained(args.model).to(pick_device(args.device))
    result = quick_evaluation(
        pipe, n_chest=args.chest, n_brain=args.brain, steps=args.steps, guidance=args.guidance, seed=args.seed
    )
    print(markdown(result))
    for file in write_results(result, out):
        print(file)
    return 0
