"""``info``: what a bug report needs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

__all__ = ["parameter_counts", "print_info", "versions"]

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "pydicom",
    "nibabel",
    "SimpleITK",
    "scikit-image",
    "nilearn",
)


def versions() -> dict[str, str]:
    """Library -> installed version, with this package's and Python's own."""
    import medm2g_core

    out = {"medm2g_core": medm2g_core.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "missing"
    return out


def parameter_counts() -> dict[str, dict[str, int]]:
    """Profile -> part of the model -> number of parameters; no weights are made (meta device)."""
    import torch

    from medm2g_core.codecs.tokenizer import train_tokenizer
    from medm2g_core.model import MedM2G
    from medm2g_core.profiles import PROFILES

    tokenizer = train_tokenizer(
        ["a report"], 300
    )  # the sizes come from the profile, not from the tokenizer
    out = {}
    for name, profile in PROFILES.items():
        with torch.device("meta"):
            model = MedM2G(profile, tokenizer)
        learnt = {key for key, _ in model.named_parameters()}
        out[name] = {
            part: sum(t.numel() for k, t in model.part(part).items() if k in learnt)
            for part in model.parts
        }
    return out


def _size(folder: Path) -> str:
    return f"{sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6:.0f} MB"


def print_info() -> None:
    """Print versions, device, where data and weights are, and the profiles."""
    import torch

    from medm2g_core.data.wheels import PACKAGES, cache_dir
    from medm2g_core.pipeline import SHIPPED_WEIGHTS
    from medm2g_core.profiles import PROFILES

    for name, version in versions().items():
        print(f"{name:14} {version}")
    print(
        f"{'system':14} {platform.platform()}, {os.cpu_count()} processors,"
        f" {torch.get_num_threads()} torch threads"
    )
    print(f"{'program':14} {sys.executable}")
    gpu = "none"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        gpu = (
            f"cuda: {torch.cuda.device_count()} x {card.name}, {card.total_memory / 2**30:.0f} GiB"
            " each"
        )
    elif torch.backends.mps.is_available():
        gpu = "mps"
    print(f"{'accelerator':14} {gpu}")
    cache = cache_dir()
    there = [n for n, spec in PACKAGES.items() if (cache / "archives" / spec.filename).is_file()]
    atlases = sorted(p.stem for p in cache.glob("*_atlas*.npz"))
    print(
        f"{'data':14} {cache} ({_size(cache)}); fetched:"
        f" {', '.join(there) or 'nothing, run: prepare'}; atlases: {', '.join(atlases) or 'none'}"
    )
    weights = (
        f"{SHIPPED_WEIGHTS} ({_size(SHIPPED_WEIGHTS)})"
        if SHIPPED_WEIGHTS.is_dir()
        else "not shipped here"
    )
    print(f"{'weights':14} {weights}")
    counts = parameter_counts()
    parts = list(next(iter(counts.values())))
    print("\nparameters in millions")
    print(f"{'profile':8} {'pixels':>6} {'all':>8}" + "".join(f"{part:>13}" for part in parts))
    for name, of_part in counts.items():
        row = "".join(f"{n / 1e6:13.2f}" for n in of_part.values())
        print(f"{name:8} {PROFILES[name].resolution:6d} {sum(of_part.values()) / 1e6:8.1f}{row}")
