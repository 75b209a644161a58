"""``ablate``: short trainings that differ in one component, over several seeds."""

from __future__ import annotations

import argparse

from medm2g_core.commands.common import writable_folder

__all__ = ["run_ablation"]


def run_ablation(args: argparse.Namespace) -> int:
    """Run what is missing, print the tables and write ``ablation.md`` and ``ablation.png`` beside
    the runs.

    Raises:
        medm2g_core.model.CheckpointError: no such model, or a damaged one.
        ValueError: an unknown group, or a folder that cannot be written.
    """
    from medm2g_core.experiments.ablation import GROUPS, ablate, table
    from medm2g_core.pipeline import SHIPPED_WEIGHTS
    from medm2g_core.show.effects import ablation_figure
    from medm2g_core.storage import atomic_write

    out = writable_folder(args.out)
    runs = ablate(
        args.model or SHIPPED_WEIGHTS,
        out,
        groups=args.groups or tuple(GROUPS),
        seeds=range(args.seeds),
    )
    text = table(runs)
    print(text)
    atomic_write(out / "ablation.md", lambda p: p.write_text(text, encoding="utf-8"))
    png = ablation_figure(runs).png()
    atomic_write(out / "ablation.png", lambda p: p.write_bytes(png))
    return 0
