"""Weights stored with fewer bits, and the numbers they stand for: scaled fp8 and int8, and the blocks of GGUF files.

A GGUF row is cut into blocks of 32 or 256 numbers. A block holds small integers and, in fp16, one factor `d` for them;
the K formats cut it once more into sub-blocks, each with a small integer scale (and minimum) of its own. The layouts
are those of ggml's `block_q8_0`, `block_q4_K`, `block_q5_K` and `block_q6_K`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .quant_formats import QuantFormat


@dataclass(frozen=True)
class QuantisedWeight:
    """A weight as stored, and what is needed to read it.

    Either fp8 or int8 numbers `data` of `shape`, to be multiplied with `scale` (float32: one number, or one for each
    row); or the bytes `data` (rows, bytes per row) of GGUF blocks in `block_format`, which stand for numbers of
    `shape`; or `data` and `parts` in one of ComfyUI's formats, `quant`, that only its own layers read.
    """

    data: torch.Tensor
    shape: tuple[int, ...]
    scale: torch.Tensor | None = None
    block_format: str | None = None
    quant: QuantFormat | None = None
    parts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def has_numbers(self) -> bool:
        """Whether `dequantised` can be called."""
        return self.quant is None or self.quant.has_numbers_here

    def dequantised(self) -> torch.Tensor:
        """The numbers, in float32. Raises ValueError for a format that only ComfyUI's layers read."""
        if not self.has_numbers:
            raise ValueError(f"a weight in format {self.quant.name!r} cannot be turned into numbers here")
        if self.block_format is not None:
            return dequantise_blocks(self.data, self.block_format).view(self.shape)
        return self.data.float() * (self.scale.reshape(()) if self.scale.numel() == 1 else self.scale.reshape(-1, 1))

    def is_finite(self) -> bool:
        """Whether all numbers are finite. Of blocks only the factors are looked at: the rest are integers."""
        if self.block_format is not None:
            block_format = BLOCK_FORMATS[self.block_format]
            blocks = self.data.view(-1, block_format.num_bytes)
            return all(bool(_half(blocks, start).isfinite().all()) for start in block_format.factors)
        scales = [] if self.scale is None else [self.scale]
        floats = [t for t in (self.data, *scales, *self.parts.values()) if t.is_floating_point()]
        return all(is_finite(tensor) for tensor in floats)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no number in it is infinite or NaN. As fast as reading it once, unless one is."""
    if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
        tensor = tensor.bfloat16()  # fp8 has no arithmetic
    # One that is not makes the sum so too; a sum may also be merely too large, which the second look shows.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


# A trained Linear keeps the size of what goes through it within a few times, so its weights are about 1/sqrt(inputs);
# in fp8 without their scale they are about a quarter of fp8's largest number, thousands of times that.
_MOST_GAIN = 60.0
_NUM_SAMPLED_ROWS = 64


def has_lost_its_scale(weight: torch.Tensor) -> bool:
    """Whether the numbers of an fp8 Linear (rows, columns) are far larger than those of any trained layer."""
    rows = weight[:: max(1, len(weight) // _NUM_SAMPLED_ROWS)].float()
    return bool(rows.square().mean().sqrt() * rows.shape[1] ** 0.5 > _MOST_GAIN)


def dequantise_blocks(data: torch.Tensor, block_format: str) -> torch.Tensor:
    """The float32 numbers (rows, columns) that the bytes (rows, bytes per row) of GGUF blocks stand for."""
    num_bytes, _, _, dequantise = BLOCK_FORMATS[block_format]
    return dequantise(data.reshape(-1, num_bytes)).view(data.shape[0], -1)


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The fp16 number of each block that starts at that byte, as (blocks, 1) float32."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """fp16 d | 32 signed bytes."""
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8)


def _scales_and_minimums(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the 8 sub-blocks of Q4_K and Q5_K, each (blocks, 8, 1): fp16 d, fp16 dmin | 12 bytes of 6-bit numbers.

    The 6 low bits of bytes 0..3 are the first four scales, those of bytes 4..7 the first four minimums. Of the last
    four the low 4 bits are the halves of bytes 8..11, and the 2 high bits what is left of bytes 0..7.
    """
    first, second, low = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat((first & 63, (low & 15) | (first >> 6 << 4)), dim=1)
    minimums = torch.cat((second & 63, (low >> 4) | (second >> 6 << 4)), dim=1)
    return (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * minimums)[..., None]


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    """(blocks, 128) -> (blocks, 8, 32): of every 32 bytes the low halves, then the high halves."""
    data = data.view(-1, 4, 1, 32)
    return torch.cat((data & 15, data >> 4), dim=2).view(-1, 8, 32)


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    """Scales and minimums | 128 bytes: 8 sub-blocks of 32 numbers of 4 bits."""
    scale, minimum = _scales_and_minimums(blocks)
    return scale * _nibbles(blocks[:, 16:]) - minimum


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    """Scales and minimums | 32 bytes: bit s is the fifth bit of sub-block s | 128 bytes with the other four."""
    scale, minimum = _scales_and_minimums(blocks)
    sub_block = torch.arange(8, dtype=torch.uint8, device=blocks.device)[:, None]
    fifth = blocks[:, None, 16:48] >> sub_block & 1
    return scale * (_nibbles(blocks[:, 48:]) | fifth << 4) - minimum


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """128 bytes with 4 low bits | 64 bytes with 2 high bits | 16 signed scales | fp16 d: 16 sub-blocks of 16."""
    low = blocks[:, :128].view(-1, 2, 1, 64)
    low = torch.cat((low & 15, low >> 4), dim=2).view(-1, 8, 32)
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)[:, None]
    high = (blocks[:, 128:192].view(-1, 2, 1, 32) >> shift & 3).view(-1, 8, 32)
    numbers = (low | high << 4).view(-1, 16, 16).view(torch.int8) - 32
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return scale[..., None] * numbers


class BlockFormat(NamedTuple):
    """Bytes and numbers of a block, where its fp16 factors start, and (blocks, bytes) -> float32 numbers."""

    num_bytes: int
    num_values: int
    factors: tuple[int, ...]
    dequantise: Callable[[torch.Tensor], torch.Tensor]


BLOCK_FORMATS = {
    "Q8_0": BlockFormat(34, 32, (0,), _q8_0),
    "Q6_K": BlockFormat(210, 256, (208,), _q6_k),
    "Q5_K": BlockFormat(176, 256, (0, 2), _q5_k),
    "Q4_K": BlockFormat(144, 256, (0, 2), _q4_k),
}
