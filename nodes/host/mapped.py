"""Weights for ComfyUI's dynamic VRAM: mapped from their files by ComfyUI itself, cast when they are used.

They take no RAM beside the system's page cache, and ComfyUI reads them from the file straight to the device.
"""

from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from torch import nn

from ...helios_core.checkpoint.checkpoint import cast_weight
from ...helios_core.checkpoint.safetensors_file import CheckpointError, TensorEntry, unreadable
from ...helios_core.dtypes import FP8_DTYPES

_MAPPED_SUFFIXES = (".safetensors", ".sft")  # anything else ComfyUI would hand to torch's unpickler
# ComfyUI brings small layers to the device as they are stored, whatever dtype they are to be kept in.
_CASTS_FROM_BYTES = 64 * 1024


class MappedWeights:
    """`read` and `store` for `load_transformer`, while one model is loaded. The mappings live on with the tensors."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, torch.Tensor]] = {}

    def read(self, entry: TensorEntry) -> torch.Tensor:
        """The tensor as stored, mapped; of a file that is no safetensors file a copy.

        Raises CheckpointError when the file is no longer what its header said.
        """
        if entry.file.suffix.lower() not in _MAPPED_SUFFIXES:
            return entry.read()
        if entry.file not in self._files:
            self._files[entry.file] = _mapped(entry.file)
        tensor = self._files[entry.file].get(entry.key)
        if tensor is None or tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
            raise CheckpointError(f"{entry.file} was replaced while it was read: {entry.key!r} is another tensor now")
        return tensor

    def store(self, layer: nn.Module, name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weight as it is where ComfyUI casts it to `dtype` by itself, else cast now, into RAM."""
        setattr(layer, f"{name}_comfy_model_dtype", dtype)
        casts_itself = isinstance(layer, comfy.ops.CastWeightBiasOp) and weight.nbytes >= _CASTS_FROM_BYTES
        # To fp8 numbers are clamped first, which ComfyUI does not do.
        if casts_itself and dtype not in FP8_DTYPES:
            return weight
        return cast_weight(weight, dtype)

    def let_go(self) -> None:
        """Once all is read and checked: ComfyUI may give the pages back that reading has brought into memory."""
        mark = getattr(comfy.model_management, "mark_mmap_dirty", None)
        for tensors in self._files.values():
            for tensor in tensors.values() if mark is not None else ():
                mark(tensor.untyped_storage())
        self._files.clear()


def _mapped(file: Path) -> dict[str, torch.Tensor]:
    try:
        return comfy.utils.load_torch_file(str(file), safe_load=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise unreadable(file, error) from error
