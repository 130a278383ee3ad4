"""Weights in few bits: numbers -> fp8 or int8 and their scale, as ComfyUI's own quantiser rounds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .quant_formats import FP8_FORMATS, INT8, make_marker


@dataclass(frozen=True)
class Quantiser:
    """A format of `quant_formats` that has numbers, with one scale for the tensor or one for each row."""

    format: str
    row_wise: bool

    @property
    def dtype(self) -> torch.dtype:
        """What the weight is stored as."""
        return FP8_FORMATS.get(self.format, torch.int8)

    @property
    def marker(self) -> torch.Tensor:
        """The `comfy_quant` tensor of such a weight."""
        return make_marker({"format": self.format})

    def quantise(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers (rows, columns) -> what is stored, and the float32 scale () or (rows, 1) to multiply it with.

        The largest number (of the row) becomes the largest that the dtype has.
        """
        weight = weight.float()
        largest = weight.abs().amax(dim=1, keepdim=True) if self.row_wise else weight.abs().amax()
        limit = 127.0 if self.format == INT8 else torch.finfo(self.dtype).max
        scale = torch.where(largest > 0, largest / limit, torch.ones_like(largest))
        scaled = (weight / scale).clamp(-limit, limit)
        return (scaled.round() if self.format == INT8 else scaled).to(self.dtype), scale
