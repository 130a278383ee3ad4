"""GGUF files: what is inside, and one tensor at a time. Needs the `gguf` package, which is not installed by default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..dtypes import SAFETENSORS_DTYPES
from .quantised import BLOCK_FORMATS
from .safetensors_file import CheckpointError, TensorEntry, unreadable

_DTYPES = {name: SAFETENSORS_DTYPES[name] for name in ("F32", "F16", "BF16")}  # GGUF has the same names
# GGUF has four dimensions at most. The shape of a tensor with more is in the metadata, under this and its name.
_SHAPE_METADATA = "comfy.gguf.orig_shape."


@dataclass(frozen=True)
class GGUFEntry(TensorEntry):
    """A tensor in a GGUF file: its bytes from `offset` on. With a `block_format` they are quantised blocks."""

    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        if self.block_format is None:
            return super().nbytes
        num_bytes, num_values, *_ = BLOCK_FORMATS[self.block_format]
        return math.prod(self.shape) // num_values * num_bytes

    def read(self) -> torch.Tensor:
        """The tensor on the CPU, in memory of its own; of quantised blocks the bytes, uint8 (rows, bytes per row).

        Raises CheckpointError when the file has become shorter since its header was read.
        """
        data = torch.from_numpy(np.fromfile(self.file, np.uint8, self.nbytes, offset=self.offset))
        if len(data) != self.nbytes:
            raise CheckpointError(f"{self.file} is cut off: {self.key!r} ends outside. Download or copy it again")
        if self.block_format is None:
            return data.view(self.dtype).view(self.shape)
        return data.view(math.prod(self.shape[:-1]), -1)


def read_gguf_header(file: Path) -> tuple[dict[str, GGUFEntry], dict[str, str]]:
    """Tensors and text metadata of a GGUF file. No weight is read.

    Raises CheckpointError for a damaged file or a block format that is not supported, and ImportError with what to
    install when the `gguf` package is missing.
    """
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError as error:
        raise ImportError(
            f"reading {file.name} needs the Python package 'gguf', which is not installed. Install it into the Python "
            "that runs this (python -m pip install gguf), or use a safetensors file"
        ) from error
    # The library has no error of its own: a damaged file shows in the first operation that its numbers break.
    try:
        reader = GGUFReader(file)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if field.types == [GGUFValueType.STRING] or name.startswith(_SHAPE_METADATA)
        }
        found = [(t.name, t.tensor_type.name, t.shape.tolist()[::-1], int(t.data_offset)) for t in reader.tensors]
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, OSError) as error:
        raise unreadable(file, error) from error

    entries = {}
    for name, kind, stored_shape, offset in found:
        if kind not in _DTYPES and kind not in BLOCK_FORMATS:
            raise CheckpointError(
                f"{file}: {name!r} is quantised as {kind}; supported: {', '.join([*BLOCK_FORMATS, *_DTYPES])}"
            )
        shape = tuple(metadata.get(_SHAPE_METADATA + name, stored_shape))
        if math.prod(shape) != math.prod(stored_shape):
            raise CheckpointError(f"{file}: {name!r} is {tuple(stored_shape)}, its metadata says {shape}")
        block_format = kind if kind in BLOCK_FORMATS else None
        dtype = _DTYPES.get(kind, torch.uint8)
        entries[name] = GGUFEntry(file, name, shape, dtype, block_format=block_format, offset=offset)
    return entries, {name: value for name, value in metadata.items() if isinstance(value, str)}
