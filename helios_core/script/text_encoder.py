"""From a prompt to the rows that the transformer attends to."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import torch

from ..model.config import MAX_PROMPT_TOKENS


def umt5_rows(prompts: list[str], folder: Path, dtype: torch.dtype, device: torch.device | str) -> list[torch.Tensor]:
    """Encode prompts as Helios was trained: UMT5 rows (1, 512, 4096) each, zero after the prompt's own tokens.

    `folder` is a published model's, with `tokenizer` and `text_encoder`. The encoder, larger than many cards, is let go
    before this returns. Raises ImportError without transformers and ftfy, FileNotFoundError for an incomplete folder.
    """
    try:
        import ftfy
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ImportError as fault:
        raise ImportError(
            f"reading the text encoder in {folder} needs transformers, sentencepiece and ftfy; to install: "
            "pip install transformers sentencepiece ftfy"
        ) from fault
    for part in ("tokenizer", "text_encoder"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"no folder {part!r} in {folder}; expected a published Helios model folder")

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder: Any = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", dtype=dtype, use_safetensors=True, local_files_only=True
    )
    # The published config does not tie the two names of the embedding, and one of them is not in the files.
    encoder.encoder.embed_tokens = encoder.shared
    encoder = encoder.to(device).eval()
    return [_encode(prompt, tokenizer, encoder, ftfy.fix_text) for prompt in prompts]


@torch.no_grad()
def _encode(prompt: str, tokenizer, encoder, fix_text) -> torch.Tensor:
    tokens = tokenizer(
        clean_prompt(fix_text(prompt)),
        padding="max_length",
        max_length=MAX_PROMPT_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(encoder.device)
    rows = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return rows * tokens.attention_mask[..., None].to(rows.dtype)


def clean_prompt(prompt: str) -> str:
    """Undo HTML escapes (twice, as they come doubly escaped) and fold white space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
