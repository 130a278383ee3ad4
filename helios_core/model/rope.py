"""Rotary position embedding over (t, y, x), and its pooled form for compressed memory (spec of Helios, "RoPE").

A head's channels are cut into three axes; channel pair j of an axis with `dim` channels turns with the
frequency theta^(-2j/dim). Positions are integers on the token grid *at hand*: a low pyramid stage counts its own
rows and columns, it is not stretched to the full grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from .patchify import pad_to_multiple


class Rotary(NamedTuple):
    """Rotation table, fp32: `cos` and `sin` are (N, head_dim / 2), one angle for each token and channel pair."""

    cos: torch.Tensor
    sin: torch.Tensor


def rotary_table(
    frame_indices: torch.Tensor,
    height: int,
    width: int,
    rope_dim: tuple[int, int, int],
    theta: float,
    *,
    pool: int = 1,
) -> Rotary:
    """Table for `len(frame_indices)` frames of height x width tokens, in frame-major, row, column order.

    `pool` > 1 gives tokens that stand for pool^3 positions: the unit complex numbers are averaged over each block,
    after repeating the last frame, row and column up to a multiple of `pool`. The averages are shorter than one
    and are not renormalised: a token that stands for many positions attends more softly.
    """
    device = frame_indices.device
    positions = (
        frame_indices.float(),
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
    )
    grid = (len(frame_indices), height, width)
    angles = []
    for axis, (position, dim) in enumerate(zip(positions, rope_dim, strict=True)):
        frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        angles.append(torch.outer(position, frequencies).view(shape).expand(*grid, dim // 2))
    angle = torch.cat(angles, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    if pool > 1:
        cos, sin = _pool(cos, pool), _pool(sin, pool)
    return Rotary(cos.flatten(0, 2), sin.flatten(0, 2))


def _pool(table: torch.Tensor, size: int) -> torch.Tensor:
    # Other devices may lack this pooling (older MPS), and the table is small and made once.
    device = table.device if table.device.type in ("cpu", "cuda") else "cpu"
    channels_first = pad_to_multiple(table.to(device).movedim(-1, 0)[None], (size, size, size))
    return F.avg_pool3d(channels_first, size)[0].movedim(0, -1).to(table.device)


def join(first: Rotary, second: Rotary) -> Rotary:
    """Table of the tokens of `first` followed by those of `second`."""
    return Rotary(torch.cat((first.cos, second.cos)), torch.cat((first.sin, second.sin)))


def rows_of(rotary: Rotary, first: int, last: int | None = None) -> Rotary:
    """Table of the tokens from `first` up to, not including, `last`."""
    return Rotary(rotary.cos[first:last], rotary.sin[first:last])


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn the channel pairs (2j, 2j+1) of x (B, N, heads, head_dim) by the table; in fp32, rounded once at the end."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if x.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
        # One pass. Other devices may lack complex numbers, and the compiler cannot fuse them.
        numbers, turns = torch.view_as_complex(pairs), torch.complex(*rotary)[:, None]
        own = x.dtype != torch.float32 and not torch.is_grad_enabled()  # else `pairs` are x itself
        turned = torch.view_as_real(numbers.mul_(turns) if own else numbers * turns)
    else:
        cos, sin = rotary.cos[:, None], rotary.sin[:, None]
        real, imaginary = pairs.unbind(-1)
        turned = torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
