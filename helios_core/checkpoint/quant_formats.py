"""The formats that ComfyUI stores quantised weights in: `<layer>.comfy_quant`, a JSON such as {"format": "nvfp4"}.

Two are documented well enough to be turned into numbers here, one scale for a tensor or one for each row:
float8_e4m3fn and float8_e5m2, and int8_tensorwise. Any other is for a host that has a layer for it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

FP8_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
INT8 = "int8_tensorwise"
# Format -> what its weight is stored as. Packed ones hold two numbers in a byte.
STORED_DTYPES = {
    **FP8_FORMATS,
    INT8: torch.int8,
    "nvfp4": torch.uint8,
    "mxfp8": torch.float8_e4m3fn,
    "convrot_w4a4": torch.int8,
    "asym_w4a8_int8": torch.int8,
}
# The ComfyUI that each was seen to work in; the one before may do as well.
_KNOWN_SINCE = {"nvfp4": "0.10"}
_ALL_KNOWN_SINCE = "0.33"
_MAX_MARKER_BYTES = 4096


@dataclass(frozen=True)
class QuantFormat:
    """What a `comfy_quant` marker says: the format's name, and its settings as the layer is to be given them."""

    name: str
    settings: Mapping[str, Any]

    @property
    def has_numbers_here(self) -> bool:
        """Whether weights of this format can be turned into numbers without a host."""
        return self.name in FP8_FORMATS or (self.name == INT8 and not self._setting("convrot"))

    def _setting(self, name: str) -> Any:
        params = self.settings.get("params")
        return self.settings.get(name, params.get(name) if isinstance(params, dict) else None)


def format_of(stored: torch.dtype) -> str:
    """The format of a weight that is stored in fp8 or int8 with a scale and no marker."""
    return next(name for name, dtype in (*FP8_FORMATS.items(), (INT8, torch.int8)) if dtype == stored)


def read_marker(data: torch.Tensor) -> QuantFormat:
    """The format in a `comfy_quant` tensor (bytes of a JSON object). Raises ValueError if it names none."""
    if data.dtype != torch.uint8 or data.numel() > _MAX_MARKER_BYTES:
        raise ValueError(f"is {data.dtype} {tuple(data.shape)}; it must be the bytes of a short JSON")
    try:
        settings = json.loads(bytes(data.flatten().tolist()))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("format"), str):
        raise ValueError(f"is {settings!r:.80}; it must name a format")
    return QuantFormat(settings["format"], settings)


def make_marker(settings: Mapping[str, Any]) -> torch.Tensor:
    """The `comfy_quant` tensor that says these settings, of which "format" is one."""
    return torch.tensor(list(json.dumps(dict(settings)).encode()), dtype=torch.uint8)


def what_reads(name: str, known_to_host: Collection[str]) -> str:
    """What to do about a format that neither this code nor the host reads."""
    if name not in STORED_DTYPES:
        known = sorted({*known_to_host, *FP8_FORMATS, INT8})
        return f"it is not known; readable here are {', '.join(known)}. Get the bf16 or fp8 version of the weights"
    return (
        f"it is read inside ComfyUI {_KNOWN_SINCE.get(name, _ALL_KNOWN_SINCE)} or newer only. Use that, or the bf16 "
        "or fp8 version of the weights"
    )
