"""What several commands need: the device, and a folder that can be written."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from medm2g_core.training.data import SourceData

__all__ = ["check_source", "open_source_data", "pick_device", "writable_folder"]


def pick_device(name: str) -> str:
    """``"auto"`` to the best device there is; a device that is not there raises ``ValueError``.

    Args:
        name: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, here in there.items() if here)
    if not there[name]:
        what = {"cuda": "an NVIDIA GPU", "mps": "an Apple GPU"}[name]
        raise ValueError(
            f"--device {name}: PyTorch {torch.__version__} sees no {what.split(' ', 1)[1]} here; "
            "take --device cpu or --device auto"
        )
    return name


def writable_folder(folder: Path) -> Path:
    """Make a folder and try to write into it, before hours of work are lost; ``ValueError`` if that
    fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        os.close(handle)
        os.unlink(name)
    except OSError as error:
        raise ValueError(
            f"cannot write into {folder} ({error.strerror or error}); choose another folder"
        ) from error
    return folder


def check_source(args: argparse.Namespace) -> None:
    """Refuse arguments about a real data set that do not belong together, with ``ValueError``."""
    if (args.source is None) != (args.root is None):
        raise ValueError(
            "--source NAME and --root DIR belong together: a real data set, and where it is"
        )
    if args.source is None and (args.limit is not None or args.allow_missing):
        raise ValueError(
            "--limit and --allow-missing are for real data sets: name one with --source and --root"
        )


def open_source_data(args: argparse.Namespace, out: Path, size: int) -> SourceData:
    """The data set of ``--source``, prepared first if ``--root`` is its download; ``out/work``
    holds what it needs."""
    from medm2g_core.training.data import SourceData

    return SourceData(
        args.source,
        args.root,
        out / "work",
        size,
        limit=args.limit,
        workers=args.workers,
        allow_missing=args.allow_missing,
    )
