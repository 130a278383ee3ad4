"""A text encoder with random weights, and words as it takes them. Both sides encode with it."""

from __future__ import annotations

import zlib

import torch
from transformers import BatchEncoding, UMT5Config, UMT5EncoderModel

from helios_core.demo.words import split_words
from helios_core.model.config import MAX_PROMPT_TOKENS
from helios_core.script.text_encoder import clean_prompt

_XXL = {"d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 256384}
_TINY = {"d_ff": 64, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 384}
_FIRST_WORD = 3  # the ids before it stand for padding, the end and what is unknown
_END = 1


def text_encoder(text_dim: int, device: torch.device, dtype: torch.dtype) -> UMT5EncoderModel:
    """UMT5 with rows of `text_dim`: of UMT5-XXL's shape on a GPU, tiny on a CPU."""
    sizes = _TINY if device.type == "cpu" else _XXL
    config = UMT5Config(d_model=text_dim, feed_forward_proj="gated-gelu", **sizes)
    with device:
        return UMT5EncoderModel(config).to(dtype).eval().requires_grad_(False)


class WordTokenizer:
    """A token for each word, numbered by its hash: takes a published tokenizer's place, with which there is no file."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def __call__(self, prompts: list[str], max_length: int = MAX_PROMPT_TOKENS, **_) -> BatchEncoding:
        """Ids and mask (len(prompts), max_length)."""
        ids = torch.zeros(len(prompts), max_length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            words = [zlib.crc32(word.encode()) % (self.vocabulary - _FIRST_WORD) for word in split_words(prompt)]
            tokens = [*(word + _FIRST_WORD for word in words[: max_length - 1]), _END]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})


@torch.no_grad()
def encode(encoder: UMT5EncoderModel, tokenizer: WordTokenizer, prompt: str) -> torch.Tensor:
    """Rows (1, 512, text_dim), zero after the prompt's own tokens, as `script.text_encoder.umt5_rows` does."""
    tokens = tokenizer([clean_prompt(prompt)]).to(encoder.device)
    rows = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return rows * tokens.attention_mask[..., None].to(rows.dtype)
