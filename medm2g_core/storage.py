"""Files that are either whole or not there, and the cache of what is dear to make.

A cached file is good for one *key*: a `digest` of everything that its content depends on. With the
same key it is read, with another one it counts as absent, and a damaged one is said and made anew:

    file = CacheFile(folder / "latents.safetensors", digest(weights=..., studies=...))
    found = file.load_tensors()
    if found is None:
        tensors = encode(...)
        file.save_tensors(tensors, {"seconds": 12})

A caller that wants to keep the results of several keys side by side puts the key into the file's
name as well; with a fixed name only the latest stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["CacheFile", "atomic_write", "check_shapes", "digest", "tensor_digest"]

DIGITS = 16
"""Hexadecimal digits of a digest: 64 bits, so two of a million keys agree with a chance of 3e-8."""


def atomic_write(path: Path, write: Callable[..., object]) -> None:
    """Call ``write(temporary path)`` and move the result to ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(**depends: Any) -> str:
    """`DIGITS` hexadecimal digits that change with any of these plain values, or with their names.

    Args:
        depends: what JSON holds: numbers, texts, lists, tuples (as lists) and dicts of them, whose
            order does not matter. Of tensors give the `tensor_digest`.

    Raises:
        TypeError: a value that JSON cannot hold, such as a path or an array.
    """
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:DIGITS]


def check_shapes(
    own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], where: str
) -> None:
    """Refuse weights that do not fit, with the shapes that differ.

    Args:
        own: name -> tensor that is to be filled.
        given: name -> tensor from elsewhere.
        where: what is given, for the message.

    Raises:
        ValueError: a name of ``own`` is missing in ``given``, or unknown to it, or has another
            shape.
    """
    wrong = [
        f"{name}: given {tuple(given[name].shape)}, needed {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    wrong += [
        f"{name}: missing, needed {tuple(own[name].shape)}" for name in own if name not in given
    ]
    wrong += [
        f"{name}: given {tuple(given[name].shape)}, unknown" for name in given if name not in own
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{where} does not fit this profile: {'; '.join(wrong[:5])}{more}")


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """`DIGITS` hexadecimal digits that change with a name or with a value (as float32) of tensors
    of any shape; their order and device do not matter."""
    h = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        h.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return h.hexdigest()[:DIGITS]


@dataclass(frozen=True)
class CacheFile:
    """One file of JSON or of tensors that counts only with the key that it was written with.

    Attributes:
        path: where it lies; folders are made when it is written.
        key: `digest` of all that the content depends on, a version of the code that makes it
            included.
    """

    path: Path
    key: str

    def load_json(self) -> Any | None:
        """The plain value that `save_json` wrote with this key.

        Returns:
            ``None`` where there is no file, one of another key, or a damaged one (with a warning
            that it is made anew). An ``OSError``, as of a folder without permission, is raised.
        """
        try:
            plain = json.loads(self.path.read_text(encoding="utf-8"))
            return plain["result"] if plain["key"] == self.key else None
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:  # no text, no JSON, or not this shape
            self._warn(error)
            return None

    def save_json(self, value: Any) -> None:
        """Write a plain value in one step, as ``{"key": ..., "result": value}``."""
        text = json.dumps({"key": self.key, "result": value}, indent=1) + "\n"
        atomic_write(self.path, lambda p: p.write_text(text, encoding="utf-8"))

    def load_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors on the CPU and the facts beside them, as `save_tensors` wrote them with this key.

        Returns:
            ``None`` as in `load_json`.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as f:
                beside = json.loads((f.metadata() or {})["cache"])
                if beside["key"] != self.key:
                    return None
                return {name: f.get_tensor(name) for name in f.keys()}, beside["facts"]  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            self._warn(error)
            return None

    def save_tensors(
        self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write tensors (of any device; no two of them sharing memory) and plain facts in one step,
        as safetensors."""
        from safetensors.torch import save_file

        cpu = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        # One entry: safetensors writes several in an order that differs from run to run, and equal
        # contents are to give equal files.
        meta = {"cache": json.dumps({"key": self.key, "facts": dict(facts or {})}, sort_keys=True)}
        atomic_write(self.path, lambda p: save_file(cpu, p, meta))

    def delete(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def _warn(self, error: Exception) -> None:
        warnings.warn(f"{self.path} is damaged ({error}) and is made anew", stacklevel=3)
