"""What a model can read of a text: all of it, or as much as fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle

from medm2g_core.model import MedM2G
from medm2g_core.training.corpus import Corpus

__all__ = ["Reader", "shortened"]


class Reader:
    """What a model can read of a report: CLIP reads 77 tokens, a report may have more.

    Attributes:
        limit: most tokens of a report.
    """

    def __init__(self, model: MedM2G) -> None:
        self.limit = min(model.profile.text_codec.max_length, model.alignment.text.max_tokens)
        self._tokenizer = model.tokenizer

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self._tokenizer(list(texts))["input_ids"]]

    def fitted(self, texts: Sequence[str]) -> list[str]:
        """The texts, each `shortened` if it is too long."""
        if not texts:
            return []
        return [
            text if n <= self.limit else shortened(text, self.lengths, self.limit)
            for text, n in zip(texts, self.lengths(texts), strict=True)
        ]

    def fitted_corpus(self, corpus: Corpus) -> Corpus:
        """The corpus with texts that the model can read.

        A contradiction may lose the words in which it differs from its prompt; another one of the
        study then takes its place.

        Raises:
            ValueError: a study of which no contradiction is left.
        """
        prompts = [self.fitted(own) for own in corpus.prompts]
        contradictions = []
        for i, wrong in enumerate(corpus.contradictions):
            pairs = list(zip(prompts[i], self.fitted(wrong), strict=True))
            if not (differ := [w for r, w in pairs if w != r]):
                raise ValueError(
                    f"{corpus.name}: no contradiction of {prompts[i][0]!r} fits into"
                    f" {self.limit} tokens"
                )
            others = cycle(differ)
            contradictions.append([w if w != r else next(others) for r, w in pairs])
        return replace(
            corpus,
            reports=[self.fitted(own) for own in corpus.reports],
            prompts=prompts,
            contradictions=contradictions,
        )


def shortened(text: str, lengths: Callable[[Sequence[str]], list[int]], limit: int) -> str:
    """The longest beginning of a report with at most ``limit`` tokens: whole sentences, else words,
    else letters.

    Args:
        lengths: texts -> their tokens.
    """
    for end in (r"[.!?](?=\s|$)", r"\S(?=\s|$)", r"."):
        starts = [text[: m.end()] for m in re.finditer(end, text)]
        tokens = lengths(starts) if starts else []
        if fitting := [s for s, n in zip(starts, tokens, strict=True) if n <= limit]:
            return fitting[-1]
    raise ValueError(f"not one letter of a report fits into {limit} tokens")
