"""MedM2G, reproduced: one latent diffusion model for text, X-ray, CT and MRI.

Importing this package has no side effects; heavy parts load when first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medm2g_core.model import MedM2G as MedM2G
    from medm2g_core.pipeline import MedM2GPipeline as MedM2GPipeline
    from medm2g_core.streams import Study as Study

_LAZY = {
    "MedM2G": "medm2g_core.model",
    "MedM2GPipeline": "medm2g_core.pipeline",
    "Study": "medm2g_core.streams",
}
__all__ = ["MedM2G", "MedM2GPipeline", "Study", "__version__"]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
