"""Packages that only notebooks need, and one sentence for those who lack them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["NotebookPackageError", "notebook_packages"]


class NotebookPackageError(ImportError):
    """A package of the ``notebooks`` extra is not installed; the message says how to get it."""


@contextmanager
def notebook_packages() -> Iterator[None]:
    """Around imports of what the library itself does without.

    Raises:
        NotebookPackageError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotebookPackageError(
            f"the package {error.name} is not installed; it comes with the notebooks extra: pip"
            " install 'medm2g-core[notebooks]' (in a clone: pip install -e '.[notebooks]')"
        ) from error
