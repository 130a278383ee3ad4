"""Safetensors files without loading them: the header tells what is inside, then one tensor is read at a time.

The format is 8 bytes of little-endian header length, a JSON header, and the tensors' bytes. Tensors are read into
memory of their own instead of being mapped: the memory used is what was asked for, and a file that is replaced
while the model lives cannot take the process down.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# How files start that are often found under the name of a safetensors file.
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: fetch the file itself (git lfs pull)"),
    (b"<", "a web page: the download was answered by a page, for example a login. Download the file again"),
    (b"GGUF", "a GGUF file, which this pack does not read"),
    (b"PK\x03\x04", "a PyTorch pickle. Pickles can run code and are never loaded: get the safetensors version"),
    (b"\x80", "a Python pickle. Pickles can run code and are never loaded: get the safetensors version"),
)


class CheckpointError(ValueError):
    """A file or folder that is not a Helios checkpoint this code can read. The message names it and says why."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies: `file`, the `key` it is stored under, its bytes from `offset` on.

    `scale` is the tensor that a scaled fp8 weight is to be multiplied with.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    scale: TensorEntry | None = None

    @property
    def nbytes(self) -> int:
        """Size in the file, without the scale."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Only the header is read.

    Raises CheckpointError for a file in another format, a damaged header, or a file shorter than it should be.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        data_offset = _LENGTH_BYTES + length
        if len(start) < _LENGTH_BYTES or not 2 <= length <= _MAX_HEADER_BYTES:
            raise _not_safetensors(file, start + stream.read(64))
        if size < data_offset:
            raise _truncated(file, size, data_offset)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise _not_safetensors(file, start + raw[:64]) from None
    if not isinstance(header, dict):
        raise _not_safetensors(file, start + raw[:64])

    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: the header's __metadata__ is {metadata!r:.200}; it must map names to strings")
    entries = {key: _parse_entry(file, key, value, data_offset) for key, value in header.items()}
    end = max((entry.offset + entry.nbytes for entry in entries.values()), default=data_offset)
    if size < end:
        raise _truncated(file, size, end)
    return entries, metadata


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """The tensor as stored, on the CPU; a `scale` is not applied."""
    buffer = torch.empty(entry.nbytes, dtype=torch.uint8)
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        num_read = stream.readinto(memoryview(buffer.numpy()))
    if num_read != entry.nbytes:
        raise _truncated(entry.file, entry.offset + num_read, entry.offset + entry.nbytes)
    return buffer.view(entry.dtype).view(entry.shape)


def _parse_entry(file: Path, key: str, value: Any, data_offset: int) -> TensorEntry:
    try:
        dtype_name, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{file}: the header's entry for {key!r} is damaged: {str(value)[:200]}") from None
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise CheckpointError(
            f"{file}: {key!r} is stored as {dtype_name!r}; supported: {', '.join(_DTYPES)}. "
            "Get the bf16, fp16, fp32 or fp8 version of the weights"
        )
    dtype = _DTYPES[dtype_name]
    sizes_are_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    if not sizes_are_whole or end - begin != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{file}: the header is damaged: {key!r} is {dtype_name} of shape {list(shape)} in bytes {begin} to {end}"
        )
    return TensorEntry(file, key, shape, dtype, data_offset + begin)


def _truncated(file: Path, size: int, expected: int) -> CheckpointError:
    return CheckpointError(
        f"{file} is cut off: it has {size} bytes, its header tells of {expected}. Download or copy it again"
    )


def _not_safetensors(file: Path, start: bytes) -> CheckpointError:
    if not start:
        return CheckpointError(f"{file} is empty. Download or copy it again")
    for magic, what in _OTHER_FORMATS:
        if start.lstrip().startswith(magic):
            return CheckpointError(f"{file} is not a safetensors file but {what}")
    return CheckpointError(f"{file} is not a safetensors file, or its header is damaged. Download or copy it again")
