"""A transformer and a VAE that cost nothing and give the right shapes, so that only what is around them takes time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from helios_core.geometry import FRAMES_PER_CHUNK
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer, MemoryTokens, PromptContext

TINY = TransformerConfig(num_attention_heads=1, num_layers=1, ffn_dim=32, text_dim=64)


class FreeTransformer(HeliosTransformer):
    """Takes no time and leaves every sample as it is."""

    def __init__(self, config: TransformerConfig = TINY, **options) -> None:
        super().__init__(config, **options)
        free(self)


def free(model: HeliosTransformer) -> None:
    """Have a transformer compute nothing: its velocity is 0."""

    def encode_prompt(rows: torch.Tensor) -> PromptContext:
        return PromptContext(rows)

    def encode_memory(window) -> MemoryTokens:
        nothing = torch.zeros(0)
        return MemoryTokens(nothing, nothing, nothing, ())

    def forward(x: torch.Tensor, *arguments, **options) -> torch.Tensor:
        return torch.zeros_like(x, dtype=model.dtype)

    model.encode_prompt, model.encode_memory, model.forward = encode_prompt, encode_memory, forward


def moving_picture(width: int, height: int) -> torch.Tensor:
    """Frames (33, height, width, 3) in [0, 1]: coarse shapes and fine grain, as many of each as a photograph has, that
    a camera pans over by two pixels a frame."""
    generator = torch.Generator().manual_seed(0)
    margin = 2 * FRAMES_PER_CHUNK
    size = (height, width + margin)
    picture = torch.zeros(1, 3, *size)
    for cells in (4, 8, 16, 32, 64, 128):  # amplitude falls as 1 / frequency
        coarse = torch.rand(1, 3, cells, 2 * cells, generator=generator) - 0.5
        picture += F.interpolate(coarse, size, mode="bicubic") * (4 / cells)
    picture = (picture * 0.5 + 0.5).clamp(0, 1)[0].movedim(0, -1)
    return torch.stack([picture[:, 2 * n : 2 * n + width] for n in range(FRAMES_PER_CHUNK)])
