"""A LoRA file as pairs of matrices by layer, for LoRAs whose strength changes over time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..fingerprint import file_fingerprint
from ..sampling.loras import Lora, LoraPair
from .lora_names import read_key, seems_for
from .safetensors_file import CheckpointError, unreadable

# Of the kinds in a file these make a product that can be added beside a layer.
_USED = ("lora_down", "lora_up", "alpha")


def read_lora(path: Path, name: str | None = None) -> Lora:
    """Read the LoRA at `path`, known as `name` (default: the file's name).

    Raises CheckpointError for a file that is no safetensors file, holds nothing for Helios, holds NaN, or is of a kind
    that cannot change over time (DoRA, LoHa, LoKr, whole differences).
    """
    name = name or path.name
    tensors: dict[tuple[str, str], torch.Tensor] = {}
    others: set[str] = set()
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            for key in keys:
                found = read_key(key)
                if found is None or found.absent is not None:
                    continue
                if found.kind not in _USED:
                    others.add(found.kind)
                    continue
                tensors[found.layer, found.kind] = file.get_tensor(key).clone()
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error
    if others:
        raise CheckpointError(
            f"the LoRA {name!r} holds {', '.join(sorted(others))}, which cannot change over time. Put it on the whole "
            "video with a LoRA loader, or use a plain LoRA (lora_A and lora_B) in the schedule"
        )
    layers = sorted({layer for layer, _ in tensors})
    if not layers:
        model = seems_for(keys)
        raise CheckpointError(
            f"nothing in the LoRA {name!r} fits Helios{f': it seems to be for {model}' if model else ''}. "
            "Use one for Helios or Wan 2.1 14B"
        )
    return Lora(name, file_fingerprint(path), {layer: _pair(name, layer, tensors) for layer in layers})


def _pair(name: str, layer: str, tensors: dict[tuple[str, str], torch.Tensor]) -> LoraPair:
    down, up = (tensors.get((layer, kind)) for kind in ("lora_down", "lora_up"))
    if down is None or up is None or down.shape[0] != up.shape[1]:
        raise CheckpointError(f"the LoRA {name!r} is not whole: the two matrices of {layer} do not belong together")
    down, up = (_as_numbers(tensor).flatten(1) for tensor in (down, up))
    alpha = tensors.get((layer, "alpha"))
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    if not (down.isfinite().all() and up.isfinite().all() and torch.tensor(scale).isfinite()):
        raise CheckpointError(f"the LoRA {name!r} holds NaN or infinity, in {layer}: every video would be black")
    return LoraPair(down, up if scale == 1.0 else (up.float() * scale).to(up.dtype))


def _as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """fp8 has no arithmetic."""
    return tensor.bfloat16() if tensor.dtype.itemsize == 1 else tensor


