"""Text autoencoder: a report to a few latent tokens and back."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from medm2g_core.codecs.tokenizer import BOS, EOS, PAD
from medm2g_core.profiles import TextCodecConfig

__all__ = ["TextCodec", "report_decoder", "text_codec_loss", "write_greedily"]

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
assert (PAD, BOS, EOS) == ("<pad>", "<s>", "</s>")

BAG_SCALE = 20
"""A report has some forty of a thousand words, so the mean over the vocabulary is small: this
brings it to the size of the cross-entropy."""


def report_decoder(config: TextCodecConfig) -> GPT2LMHeadModel:
    """A GPT-2 of the codec's size that attends to a memory (B, M, width)."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_length,
            n_embd=config.width,
            n_layer=config.decoder_layers,
            n_head=config.heads,
            add_cross_attention=True,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


@torch.no_grad()
def write_greedily(
    decoder: GPT2LMHeadModel,
    memory: torch.Tensor,
    max_length: int,
    memory_bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Greedy decoding of a memory (B, M, width) to token ids (B, <= max_length), start token first.

    Args:
        memory_bias: (B, 1, 1, M), added to the logits of the attention to the memory.
    """
    start = torch.full((len(memory), 1), BOS_ID, dtype=torch.long, device=memory.device)
    return decoder.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        encoder_hidden_states=memory,
        encoder_attention_mask=memory_bias,
        max_length=max_length,
        do_sample=False,
        pad_token_id=PAD_ID,
        num_beams=1,
        use_cache=True,
    )


class TextCodec(nn.Module):
    """BERT encoder -> K learned-query tokens of d numbers -> GPT-2 decoder that attends to them.

    Optimus, which the public ancestors use, has one vector (K = 1): available, but several tokens
    keep far more of a report at the same size. The latent is layer-normalised, so it has unit scale
    by construction, and noise on it during training makes near-by latents decode to the same
    report: what a flow leaves wrong is forgiven.
    """

    def __init__(self, config: TextCodecConfig) -> None:
        super().__init__()
        self.config = config
        d, heads = config.width, config.heads
        self.encoder = BertModel(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=d,
                num_hidden_layers=config.encoder_layers,
                num_attention_heads=heads,
                intermediate_size=4 * d,
                max_position_embeddings=config.max_length,
                pad_token_id=PAD_ID,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )
        self.queries = nn.Parameter(torch.randn(config.latent_tokens, d) * 0.5)
        self.read = nn.TransformerDecoderLayer(
            d, heads, 4 * d, dropout=0.0, batch_first=True, norm_first=True
        )
        self.to_latent = nn.Linear(d, config.latent_dim)
        self.norm = nn.LayerNorm(config.latent_dim, elementwise_affine=False)
        self.from_latent = nn.Linear(config.latent_dim, d)
        self.slots = nn.Parameter(torch.randn(config.latent_tokens, d) * 0.5)
        self.decoder = report_decoder(config)
        self.bag = nn.Linear(config.latent_tokens * config.latent_dim, config.vocab_size)

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token ids (B, L) and mask (B, L) to the latent (B, K, d)."""
        h = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, L, width)
        q = self.queries.expand(len(ids), -1, -1)  # (B, K, width)
        h = self.read(q, h, memory_key_padding_mask=mask == 0)  # (B, K, width)
        return self.norm(self.to_latent(h))  # (B, K, d)

    def memory(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent (B, K, d) to what the decoder attends to (B, K, width)."""
        return self.from_latent(latent) + self.slots

    def logits(self, ids: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Next-token logits (B, L, vocab) of the decoder that has read ``ids`` (B, L)."""
        return self.decoder(
            input_ids=ids, encoder_hidden_states=self.memory(latent), use_cache=False
        ).logits

    @torch.no_grad()
    def decode(self, latent: torch.Tensor, max_length: int | None = None) -> torch.Tensor:
        """Greedy decoding of a latent (B, K, d) to token ids (B, <= max_length), start token
        first."""
        return write_greedily(
            self.decoder, self.memory(latent), max_length or self.config.max_length
        )


def text_codec_loss(
    codec: TextCodec, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Next-token cross-entropy with random word dropout and a noisy latent, plus a bag-of-words
    loss on the latent.

    Word dropout keeps the decoder from getting by as a language model, and the bag of words gives
    the latent a gradient from the first step; without them training stays on the plateau where the
    latent is ignored.
    """
    config = codec.config
    latent = codec.encode(ids, mask)  # (B, K, d)
    noisy = latent + config.latent_noise * torch.randn_like(latent)
    read = ids[:, :-1]  # (B, L-1)
    # A report sees its own dropout rate, from none to everything, so that decoding without dropout
    # is trained too.
    rate = torch.rand(len(ids), 1, device=ids.device) * 2 * config.word_dropout
    drop = torch.rand(read.shape, device=ids.device) < rate
    drop[:, 0] = False
    logits = codec.logits(read.masked_fill(drop, PAD_ID), noisy)  # (B, L-1, V)
    target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    ce = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
    bag_target = torch.zeros(len(ids), config.vocab_size, device=ids.device).scatter_(1, ids, 1.0)
    bag_target[:, PAD_ID] = 0.0  # padding is no word
    bag = F.binary_cross_entropy_with_logits(codec.bag(noisy.flatten(1)), bag_target) * BAG_SCALE
    with torch.no_grad():
        hit = (logits.argmax(-1) == target) | (target == -100)
        exact = hit.all(1).float().mean()
    return ce + config.bag_weight * bag, {"ce": ce, "bag": bag, "teacher_exact": exact}
