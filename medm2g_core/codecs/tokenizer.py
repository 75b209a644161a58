"""The report tokenizer: byte-level BPE, so that any text survives a round trip."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

__all__ = ["TextTooLongError", "encode_texts", "tokenizer_text", "train_tokenizer"]

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


class TextTooLongError(ValueError):
    """A report has more tokens than the model reads."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE of ``vocab_size`` entries; ids 0, 1, 2 are pad, start, end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        # Digits last: split before the byte level, every digit would get a space of its own.
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS)), (EOS, tokenizer.token_to_id(EOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS
    )


def tokenizer_text(tokenizer: PreTrainedTokenizerFast) -> str:
    """The tokenizer as the JSON of the tokenizers library, the same whatever was encoded with it.

    A tokenizer remembers the padding of its last call and would write that too.
    """
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy.to_str()


def encode_texts(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], max_length: int, multiple: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, padded to the longest text.

    Args:
        multiple: the padded length is one of it, or ``max_length``: few shapes for many texts.

    Returns:
        ids (B, L) int64 and mask (B, L) int64 with 1 where a token is, L <= ``max_length``.

    ``</s>`` and its like in a text are words like any others, not the tokens of that name.

    Raises:
        TextTooLongError: a text has more than ``max_length`` tokens. Nothing is cut silently.
    """
    out = tokenizer(texts, padding=True, return_tensors="pt", split_special_tokens=True)
    lengths = out["attention_mask"].sum(1)
    if int(lengths.max()) > max_length:
        i = int(lengths.argmax())
        raise TextTooLongError(
            f"the text has {int(lengths[i])} tokens ({len(texts[i].split())} words) but the model"
            f" reads at most {max_length}; shorten it"
        )
    ids, mask = out["input_ids"], out["attention_mask"]
    room = min(-(-ids.shape[1] // multiple) * multiple, max_length) - ids.shape[1]
    pad_id = tokenizer.pad_token_id
    return F.pad(ids, (0, room), value=pad_id), F.pad(mask, (0, room))
