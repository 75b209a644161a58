"""``train``: a profile, perhaps changed on the command line, through
`medm2g_core.training.run.train`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from medm2g_core.profiles import STAGES, Profile, profile

__all__ = ["changed_profile", "run_training"]

PARTS = ("image_codec", "text_codec", "alignment", "flow", "conditioning", "reports", "data")


def changed_profile(base: Profile, changes: Iterable[tuple[str, str]]) -> Profile:
    """A profile with fields changed by words.

    Args:
        changes: pairs such as ``("flow.guidance", "pooled")`` or ``("stages.round1.steps",
            "100")``; a tuple is written with commas: ``("flow.channels", "64,104")``.

    Raises:
        ValueError: unknown part or field, or a value that the field does not take; the message
            names what there is.
    """
    # all fields of a part at once: a new width may fit only with the new number of heads
    parts: dict[str, Any] = {}
    stages: dict[str, dict[str, Any]] = {}
    for key, text in changes:
        part, _, name = key.partition(".")
        if part == "stages":
            stage, _, name = name.partition(".")
            if stage not in base.stages:
                raise ValueError(
                    f"--set {key}: unknown stage {stage!r}; known: {', '.join(base.stages)}"
                )
            stages.setdefault(stage, {})[name] = _field(base.stages[stage], name, text, key)
        elif part in PARTS:
            parts.setdefault(part, {})[name] = _field(getattr(base, part), name, text, key)
        else:
            raise ValueError(
                f"--set {key}: unknown part {part!r}; known:"
                f" {', '.join((*PARTS, 'stages.<stage>'))}"
            )
    if stages:
        new = {n: dataclasses.replace(base.stages[n], **fields) for n, fields in stages.items()}
        parts["stages"] = {**base.stages, **new}
    return base.replace(**parts)


def _field(config: Any, name: str, text: str, key: str) -> Any:
    hints = get_type_hints(type(config))
    if name not in hints:
        raise ValueError(f"--set {key}: unknown field {name!r}; known: {', '.join(hints)}")
    return _value(hints[name], text, key)


def _value(kind: Any, text: str, key: str) -> Any:
    text = text.strip()
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ValueError(
                f"--set {key}: got {text!r}, needed one of {', '.join(get_args(kind))}"
            )
        return text
    if get_origin(kind) is tuple:
        return tuple(_value(get_args(kind)[0], item, key) for item in text.split(","))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"--set {key}: got {text!r}, needed true or false")
        return text.lower() == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"--set {key}: got {text!r}, needed {what}") from None
    return text


def run_training(args: argparse.Namespace) -> int:
    """The command; 0 when all asked stages are done, 130 after Ctrl-C (everything is saved)."""
    chosen = changed_profile(profile(args.profile), args.changes)
    known = (*STAGES, "all_pairs")
    unknown = [stage for stage in args.stage or () if stage not in known]
    if unknown:
        raise ValueError(f"unknown stage {unknown[0]!r}; known: {', '.join(known)}")

    from accelerate import PartialState

    from medm2g_core.commands.common import (
        check_source,
        open_source_data,
        pick_device,
        writable_folder,
    )
    from medm2g_core.data.chest.atlas import PERSONS
    from medm2g_core.training.card import export_model
    from medm2g_core.training.data import EmbeddedData, TrainingData
    from medm2g_core.training.endless import EndlessPatients
    from medm2g_core.training.loop import StageInterrupted
    from medm2g_core.training.run import train

    unknown = [person for person in args.persons or () if person not in PERSONS]
    if unknown:
        raise ValueError(f"unknown person {unknown[0]!r}; known: {', '.join(PERSONS)}")
    check_source(args)
    if args.source is not None and args.persons:
        raise ValueError(
            "--persons chooses virtual patients, --source a real data set: use one of them"
        )
    if args.source is not None and args.endless is not None:
        raise ValueError("--endless draws virtual patients, --source is a real data set: use one")
    if args.start and args.start_from_stable_diffusion:
        raise ValueError(
            "--start takes all weights from a model, --start-from-stable-diffusion some from"
            " another one: use one of them"
        )
    device = pick_device(args.device)
    name = chosen.name if args.source is None else f"{chosen.name}-{args.source}"
    out = writable_folder(args.out or Path("outputs") / f"train-{name}")
    if args.export is not None:
        writable_folder(args.export)
    print(f"profile {chosen.name}, device {device}, into {out}", flush=True)
    data: TrainingData = EmbeddedData(
        chosen, args.persons, args.workers, endless=args.endless is not None
    )
    patients: AbstractContextManager[object] = nullcontext()
    if args.endless is not None:
        patients = EndlessPatients(
            {"chest": args.endless, "brain": args.endless // 2},
            args.workers or max(2, (os.cpu_count() or 2) - 1),  # one core stays with training
            val={"chest": chosen.data.chest_val, "brain": chosen.data.brain_val},
            seed=chosen.data.seed,
            resolution=chosen.resolution,
            persons=args.persons,
        )
    if args.source is not None:
        with PartialState(
            cpu=device == "cpu"
        ).main_process_first():  # one prepares and maps, the others find it done
            data = open_source_data(args, out, chosen.resolution)
            for split in ("train", "val"):
                data.corpora(split)
    try:
        with patients:
            model = train(
                chosen,
                out,
                stages=args.stage or STAGES,
                again=args.again,
                seed=args.seed,
                device=device,
                precision=args.precision,
                data=data,
                start=args.start,
                stable_diffusion=args.start_from_stable_diffusion,
            )
    except StageInterrupted as stopped:
        print(stopped, file=sys.stderr)
        return 130
    print(f"done: {out}")
    if args.export is not None:
        for path in export_model(model, out, args.export, command=_command(args)):
            print(path)
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command that trains this model again, without machine-dependent paths."""
    words = [
        "python",
        "-m",
        "medm2g_core",
        "train",
        "--profile",
        args.profile,
        "--seed",
        str(args.seed),
    ]
    if args.precision != "auto":
        words += ["--precision", args.precision]
    if args.stage:
        words += ["--stage", *args.stage]
    if args.persons:
        words += ["--persons", ",".join(args.persons)]
    if args.source:
        words += ["--source", args.source, "--root", "DIR"]
        words += ["--limit", str(args.limit)] if args.limit is not None else []
        words += ["--allow-missing"] if args.allow_missing else []
    if args.start:
        words += ["--start", "DIR"]
    if args.start_from_stable_diffusion:
        words += ["--start-from-stable-diffusion", "DIR"]
    if args.changes:
        words += ["--set", *(f"{key}={value}" for key, value in args.changes)]
    return shlex.join(words)
