"""``evaluate``: measure a model on held-out virtual patients and write the tables."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medm2g_core.commands.common import check_source, open_source_data, pick_device, writable_folder

__all__ = ["run_evaluation"]


def run_evaluation(args: argparse.Namespace) -> int:
    """Measure what is not measured yet, print the tables, write ``<section>.json`` and
    ``results.md``.

    Returns:
        0, or 1 if a control does not hold (the tables are written all the same).

    Raises:
        medm2g_core.model.CheckpointError: no such model, or a damaged one.
        ValueError: the device is not there, the folder cannot be written, or there is no such
            section.
    """
    from medm2g_core.evaluation.results import evaluate, failed, report, write_report
    from medm2g_core.evaluation.sections import SECTIONS
    from medm2g_core.evaluation.store import load_results
    from medm2g_core.experiments.bars import bar_section
    from medm2g_core.experiments.sections import ALL_SECTIONS

    check_source(args)
    if args.source is not None:
        return _run_on_source(args)
    out = writable_folder(args.out or Path("results"))
    outcomes = evaluate(
        args.model,
        out,
        sections=args.sections or tuple(SECTIONS),
        known=ALL_SECTIONS,
        n_chest=args.chest,
        n_brain=args.brain,
        reference=args.reference,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        device=pick_device(args.device),
        fresh=args.fresh,
        time_fraction=args.time_fraction,
    )
    print(report(outcomes, known=ALL_SECTIONS, first=bar_section(outcomes)))
    stored = load_results(out, ALL_SECTIONS)  # with what earlier calls measured
    text = report(stored, known=ALL_SECTIONS, first=bar_section(stored))
    print(write_report(text, out))
    bad = failed(outcomes)
    for section, check in bad:
        print(f"a control does not hold ({section}): {check.name}: {check.detail}", file=sys.stderr)
    return 1 if bad else 0


def _run_on_source(args: argparse.Namespace) -> int:
    """Measure on a real data set; writes ``source_<name>.json`` and ``.md`` and a contact sheet a
    task.

    Raises:
        SourceError: not that data set, or nothing in its test split.
    """
    import torch

    from medm2g_core.evaluation.results import TIME_FRACTION, weights_digest
    from medm2g_core.evaluation.source_page import source_page
    from medm2g_core.evaluation.source_scores import evaluate_source
    from medm2g_core.evaluation.store import load_section, save_section
    from medm2g_core.evaluation.training_time import flow_seconds
    from medm2g_core.judges.files import load_judges
    from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GPipeline
    from medm2g_core.show.source_sheets import write_sheets
    from medm2g_core.storage import atomic_write, digest

    out = writable_folder(args.out or Path("outputs") / f"evaluate-{args.source}")
    pipe = MedM2GPipeline.from_pretrained(args.model).to(pick_device(args.device))
    data = open_source_data(args, out, pipe.model.profile.resolution)
    data.fit(pipe.model)
    folder = args.model or SHIPPED_WEIGHTS
    time_fraction = args.time_fraction or str(TIME_FRACTION)
    name = f"source_{args.source}"
    settings = {
        "studies": args.studies,
        "steps": args.steps,
        "guidance": args.guidance,
        "seed": args.seed,
    }
    key = digest(
        section=name,
        version=1,
        weights=weights_digest(folder),
        data=data.facts(),
        fraction=time_fraction,
        **settings,
    )
    outcome = None if args.fresh else load_section(out, name, key)
    if outcome is None:
        outcome, examples = evaluate_source(
            pipe,
            data,
            load_judges(),
            seconds=flow_seconds(folder, time_fraction),
            threads=torch.get_num_threads(),
            **settings,
        )
        outcome.facts["settings"] = settings | {"time fraction of trained baselines": time_fraction}
        save_section(out, name, key, outcome)
        for file in write_sheets(examples, out, name):
            print(file)
    text = source_page(args.source, outcome)
    print(text)
    atomic_write(out / f"{name}.md", lambda p: p.write_text(text, encoding="utf-8"))
    bad = [c for c in outcome.checks if not c.passed]
    for check in bad:
        print(f"a control does not hold: {check.name}: {check.detail}", file=sys.stderr)
    return 1 if bad else 0
