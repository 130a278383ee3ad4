"""The demo's text encoder: each word is a fixed vector drawn from its hash. It has no weights."""

from __future__ import annotations

import hashlib
import re

import torch


def hashed_words(prompt: str, dim: int, num_rows: int = 16) -> torch.Tensor:
    """Rows (1, num_rows, dim) for the demo model: each word's own vector. Needs no weights.

    Zeros follow the last word; words beyond `num_rows` are cut off.
    """
    rows = torch.zeros(1, num_rows, dim)
    for index, word in enumerate(split_words(prompt)[:num_rows]):
        rows[0, index] = word_vector(word, dim)
    return rows


def split_words(prompt: str) -> list[str]:
    """The words of a prompt in lower case, without punctuation."""
    return re.findall(r"\w+", prompt.lower())


def word_vector(word: str, dim: int) -> torch.Tensor:
    """A fixed vector (dim,) of +-1 for each word, drawn from its hash."""
    bits = hashlib.shake_128(word.encode()).digest(-(-dim // 8))
    return torch.tensor([1.0 if bits[i // 8] >> (i % 8) & 1 else -1.0 for i in range(dim)])
