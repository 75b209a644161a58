"""What the pipeline is asked for: each check says what came, what is needed and what to do."""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from medm2g_core.data.findings import FINDINGS
from medm2g_core.data.labeller import find_mentions, other_findings
from medm2g_core.data.plausibility import check_picture
from medm2g_core.familiarity import note_on
from medm2g_core.streams import StreamError, check_image, stream

if TYPE_CHECKING:
    from medm2g_core.model import MedM2G

__all__ = [
    "InputWarning",
    "check_batch",
    "check_choice",
    "check_count",
    "check_generator",
    "check_given",
    "check_latents",
    "check_num_samples",
    "check_number",
    "check_want",
    "check_weights",
    "notes_on",
    "notes_on_report",
]

MAX_BATCH = 10_000
"""Draws of each study in one call."""

MAX_PIECES = 3.0
"""Pieces that the tokenizer cuts a word into, on average. In reports like those it was fitted to a
word is one piece, in other English reports up to 2; another language takes 3.5 and more."""

LIKE_A_NAME, LONG_NAME = 0.85, 7
"""Likeness (difflib's ratio) from which a word of at least so many letters is taken for a finding's
name with a slip of the pen; true words of medicine are further off ("hemothorax" and "pneumothorax"
0.82, "diffusion" and "effusion" 0.82)."""

MAX_NAMED = 6
"""Words that a note quotes."""

NORMAL_WORDS = re.compile(
    r"\b(?:normal|unremarkable|clear|negative|no acute|no abnormal\w*)\b", re.IGNORECASE
)


class InputWarning(UserWarning):
    """What was given can be used, but may not be what the model was trained on."""


def check_given(given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise StreamError(
            f"given: got {type(given).__name__}; needed a dict of stream -> images or reports, for"
            ' example {"text": "Findings: ..."}'
        )
    return dict(given)


def check_want(given: Mapping[str, Any], want: Any) -> list[str]:
    if isinstance(want, str):
        raise StreamError(
            f"want must be a list of streams, got the string {want!r}; write want=[{want!r}]"
        )
    if not isinstance(want, Sequence) or not all(isinstance(n, str) for n in want):
        raise StreamError(
            f'want must be a list of names of streams, got {want!r}; write for example want=["ct"]'
        )
    for name in (*given, *want):
        stream(name)
    if not want:
        raise StreamError("nothing is wanted: name at least one stream in want")
    both = [n for n in want if n in given]
    if both:
        raise StreamError(
            f"{', '.join(both)}: given and wanted at once; a given stream is never generated"
        )
    if len(set(want)) != len(want):
        raise StreamError(f"a stream is wanted twice: {', '.join(want)}")
    return list(want)


def check_batch(given: Mapping[str, Any], num_samples: int) -> dict[str, torch.Tensor | list[str]]:
    """Every given stream as a batch, each study repeated ``num_samples`` times."""
    raw: dict[str, torch.Tensor | list[str]] = {}
    for name, value in given.items():
        if stream(name).is_image:
            raw[name] = _check_pictures(name, value).repeat_interleave(num_samples, 0)
            continue
        texts = [value] if isinstance(value, str) else value
        if (
            not isinstance(texts, Sequence)
            or not texts
            or not all(isinstance(t, str) and t.strip() for t in texts)
        ):
            raise StreamError(
                f"{name}: got {value!r:.80}; needed a report or a list of reports, none of them"
                " empty"
            )
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise StreamError(
                    f"{name}: character {error.start} is half of one (bytes that are no UTF-8?);"
                    " give the report as Unicode text"
                ) from error
        raw[name] = [t for t in texts for _ in range(num_samples)]
    sizes = {n: len(v) // num_samples for n, v in raw.items()}
    if len(set(sizes.values())) > 1:
        raise StreamError(f"given streams have batches of different sizes: {sizes}")
    return raw


def _check_pictures(name: str, value: Any) -> torch.Tensor:
    """Images (1, H, W) or (B, 1, H, W) of a stream as (B, 1, H, W), checked, each by
    `medm2g_core.data.plausibility.check_picture`."""
    if not isinstance(value, torch.Tensor):
        raise StreamError(
            f"{name}: got {type(value).__name__}; needed a tensor (1, H, W) or (B, 1, H, W) with"
            " values -1..1"
        )
    if not value.numel():
        raise StreamError(
            f"{name}: got an empty tensor of shape {tuple(value.shape)}; needed at least one"
            " picture (1, H, W), or to leave the stream out"
        )
    images = check_image(value, name)
    images = images[None] if images.ndim == 3 else images
    for i, picture in enumerate(images):
        refusal = check_picture(_array(picture), name).refusal
        if refusal:
            raise StreamError(
                f"{name}: picture {i} cannot be used: {refusal} ({stream(name).meaning})"
            )
    return images


def _array(picture: torch.Tensor) -> np.ndarray:
    return picture[0].detach().float().cpu().numpy()


def notes_on(
    model: MedM2G, raw: Mapping[str, torch.Tensor | list[str]], num_samples: int = 1
) -> dict[str, list[str]]:
    """What a user should know of each given stream, besides that it was taken.

    Args:
        raw: what `check_batch` gave.  num_samples: how often it repeated each study.
    """
    notes: dict[str, list[str]] = {}
    for name, values in raw.items():
        found: list[str] = []
        for value in values[::num_samples]:
            if isinstance(value, str):
                more = notes_on_report(model.tokenizer, value)
            else:
                more = check_picture(_array(value), name).notes
            found += [note for note in more if note not in found]
        if isinstance(values, torch.Tensor):
            found += note_on(model, name, values[::num_samples])
        notes[name] = found
    return notes


def notes_on_report(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """Whether a report speaks of what the model knows, in words that it knows."""
    words = re.findall(r"[^\W\d_]+", text)
    if not words:
        return ["there are no words in it: whatever is drawn has nothing to do with it"]
    if text.isupper() and len(words) > 1:
        return ["it is all in capitals, which the model does not know: give it in small letters"]
    others = other_findings(text)
    unknown = [w for w in words if w.lower() not in " ".join(others) and not find_mentions(w)]
    pieces = sum(len(tokenizer.tokenize(f" {word}")) for word in unknown)
    if pieces / len(words) >= MAX_PIECES:
        return [
            "the model does not know most of its words (another language, abbreviations?): it reads"
            " English reports of chests and brains, and will draw something, most likely a normal"
            " body"
        ]
    notes = []
    if not find_mentions(text) and not NORMAL_WORDS.search(text):
        known = ", ".join(kind.title.lower() for kind in FINDINGS.values())
        notes.append(
            "it names no finding that the model knows, so a normal body will be drawn; known are:"
            f" {known}"
        )
    if others:
        more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
        notes.append(
            f"not understood: {', '.join(others[:MAX_NAMED])}{more}; the model knows nothing of"
            " these, and they will not be drawn"
        )
    notes += [
        f"{word!r} is no word that the model knows: is {name} meant?"
        for word, name in _slips(words)[:MAX_NAMED]
    ]
    return notes


def _slips(words: Sequence[str]) -> list[tuple[str, str]]:
    """Words that are nearly a finding's name, each with that name."""
    names = sorted(
        {w for kind in FINDINGS.values() for w in kind.title.lower().split() if len(w) >= LONG_NAME}
    )
    found = []
    for word in dict.fromkeys(w.lower() for w in words):
        if len(word) < LONG_NAME or any(find_mentions(word, r) for r in ("chest", "brain")):
            continue
        like = difflib.get_close_matches(word, names, 1, LIKE_A_NAME)
        # "lesion" and "pulmonic" are words, not slips of "lesions" and "pulmonary".
        if like and not (like[0].startswith(word) or word.startswith(like[0])):
            found.append((word, like[0]))
    return found


def check_num_samples(num_samples: Any, num_images_per_prompt: Any) -> int:
    counts = {
        name: check_count(name, value)
        for name, value in (
            ("num_samples", num_samples),
            ("num_images_per_prompt", num_images_per_prompt),
        )
        if value is not None
    }
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"num_samples={num_samples} and num_images_per_prompt={num_images_per_prompt}: two"
            " names of one setting; give one of them"
        )
    count = next(iter(counts.values()), 1)
    if count > MAX_BATCH:
        raise ValueError(
            f"{count} samples in one call would fill the memory; ask for at most {MAX_BATCH} at a"
            " time"
        )
    return count


def check_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def check_number(name: str, value: Any, low: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value < low:
        kind = "a finite number" if low == -math.inf else f"a finite number of at least {low:g}"
        raise ValueError(f"{name} must be {kind}, got {value!r}")


def check_weights(weights: Any, given: Mapping[str, Any]) -> None:
    if weights is None:
        return
    if not isinstance(weights, Mapping):
        raise ValueError(f"prompt_weights must be a dict of stream -> number, got {weights!r}")
    for name, weight in weights.items():
        if name not in given:
            raise ValueError(
                f"prompt weights for {name!r}, but the given streams are:"
                f" {', '.join(given) or 'none'}"
            )
        check_number(f"the prompt weight of {name}", weight, low=0)


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; known: {', '.join(known)}")


def check_generator(generator: Any, batch: int) -> None:
    if generator is None:
        return
    each = [generator] if isinstance(generator, torch.Generator) else generator
    if not isinstance(each, Sequence) or not all(isinstance(g, torch.Generator) for g in each):
        raise ValueError(
            f"generator: got {generator!r:.80}; needed a torch.Generator, or a list with one for"
            " each output"
        )
    if each is generator and len(each) != batch:
        raise ValueError(
            f"{len(each)} generators for {batch} outputs; needed one for each output, study by"
            " study, or a single one"
        )
    for g in each:
        if g.device.type != "cpu":
            raise ValueError(
                f"the generator is on {g.device}; needed one on the CPU, so that seeds carry over"
            )


def check_latents(
    what: str, latents: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """``latents``, if they are tensors of some of the streams of ``shapes``, shaped like that."""
    if latents is None:
        return {}
    if not isinstance(latents, Mapping):
        raise ValueError(
            f"{what}: got {type(latents).__name__}; needed a dict of stream -> latent, for"
            f" {', '.join(shapes)}"
        )
    for name, z in latents.items():
        check_choice(f"stream in {what}:", name, tuple(shapes))
        if not isinstance(z, torch.Tensor) or tuple(z.shape) != shapes[name]:
            came = tuple(z.shape) if isinstance(z, torch.Tensor) else type(z).__name__
            raise ValueError(f"{what}: {name} is {came}; needed a tensor {shapes[name]}")
        if not z.isfinite().all():
            raise ValueError(f"{what}: {name} holds NaN or infinite values")
    return dict(latents)
