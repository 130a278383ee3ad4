"""Between latents (B, C, T, H, W) and tokens (B, N, D)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange


def pad_to_multiple(x: torch.Tensor, multiple: tuple[int, int, int]) -> torch.Tensor:
    """Repeat the last frame, row and column of x (B, C, T, H, W) until T, H, W are multiples of `multiple`."""
    pad_t, pad_h, pad_w = (-size % step for size, step in zip(x.shape[2:], multiple, strict=True))
    return F.pad(x, (0, pad_w, 0, pad_h, 0, pad_t), mode="replicate")


def num_tokens(sizes: Sequence[int], patch_size: tuple[int, int, int], pool: int = 1) -> int:
    """Tokens of latents of `sizes` (T, H, W), in patches `pool` times as large in each direction. One that is not
    filled counts whole, as it is padded."""
    return math.prod(-(-size // (pool * patch)) for size, patch in zip(sizes, patch_size, strict=True))


def to_tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, D, T, H, W) -> (B, T*H*W, D), frame-major, then rows, then columns."""
    return rearrange(x, "b d t h w -> b (t h w) d")


def unpatchify(tokens: torch.Tensor, grid: torch.Size, patch_size: tuple[int, int, int]) -> torch.Tensor:
    """(B, N, pt*ph*pw*C) on a token grid (t, h, w) -> (B, C, t*pt, h*ph, w*pw). The channel index runs fastest."""
    (t, h, w), (pt, ph, pw) = grid, patch_size
    pattern = "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)"
    return rearrange(tokens, pattern, t=t, h=h, w=w, pt=pt, ph=ph, pw=pw)
