"""Safetensors files without loading them: the header says what is inside, then one tensor is read at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..dtypes import SAFETENSORS_DTYPES
from .quant_formats import QuantFormat, read_marker

# How files start that are often found under the name of a safetensors file.
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: fetch the file itself (git lfs pull)"),
    (b"<", "a web page: the download was answered by a page, for example a login. Download the file again"),
    (b"GGUF", "a GGUF file: give it the name ending .gguf"),
    (b"PK\x03\x04", "a PyTorch pickle. Pickles can run code and are never loaded: get the safetensors version"),
    (b"\x80", "a Python pickle. Pickles can run code and are never loaded: get the safetensors version"),
)


class CheckpointError(ValueError):
    """A file or folder that is not a Helios checkpoint this code can read. The message names it and says why."""


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a file: the `key` it is stored under, and what the header says of it.

    `scale` is the tensor that a scaled fp8 or int8 weight is to be multiplied with. `block_format` is for quantised
    weights of GGUF files. `quant` is the format that a ComfyUI file names for the weight, and `parts` are the other
    tensors of such a weight, by the names that ComfyUI's layers give them.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scale: TensorEntry | None = None
    block_format: str | None = None
    quant: QuantFormat | None = None
    parts: Mapping[str, TensorEntry] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Size in the file, without the scale."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor as stored, on the CPU, in memory of its own; a `scale` is not applied.

        Raises CheckpointError when the file is no longer what its header said.
        """
        # The file is mapped for one tensor only. A mapping that stays counts all that was read as memory in use, and
        # takes the process down if the file is cut meanwhile.
        try:
            with safe_open(self.file, framework="pt") as opened:
                tensor = opened.get_tensor(self.key).clone()
        except (OSError, SafetensorError) as error:
            raise unreadable(self.file, error) from error
        if tensor.shape != self.shape or tensor.dtype != self.dtype:
            raise CheckpointError(f"{self.file} was replaced while it was read: {self.key!r} is another tensor now")
        return tensor


def read_header(file: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Only the header is read.

    Raises CheckpointError for a file in another format, a damaged header, or a file shorter than it should be.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118 (it is no dict)
            stored = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise unreadable(file, error) from error
    for key, (_, dtype_name) in stored.items():
        if dtype_name not in SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"{file}: {key!r} is stored as {dtype_name}; supported: {', '.join(SAFETENSORS_DTYPES)}. "
                "Get the bf16, fp16, fp32 or fp8 version of the weights"
            )
    entries = {key: TensorEntry(file, key, shape, SAFETENSORS_DTYPES[name]) for key, (shape, name) in stored.items()}
    return entries, metadata


def read_markers(markers: Mapping[str, TensorEntry]) -> dict[str, QuantFormat]:
    """What the `comfy_quant` tensors say, by any name; each file is opened once. Raises CheckpointError."""
    formats = {}
    for file in sorted({entry.file for entry in markers.values()}):
        here = {name: entry for name, entry in markers.items() if entry.file == file}
        try:
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(entry.key) for name, entry in here.items()}
        except (OSError, SafetensorError) as error:
            raise unreadable(file, error) from error
        for name, tensor in tensors.items():
            try:
                formats[name] = read_marker(tensor)
            except ValueError as error:
                raise CheckpointError(f"{file}: {here[name].key!r} {error}") from error
    return formats


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """What to say about a file that the format's library cannot read: what it is instead, else the library's words."""
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as cause:
        return CheckpointError(f"{file} cannot be read: {cause.strerror}")
    if not start:
        return CheckpointError(f"{file} is empty. Download or copy it again")
    name = file.suffix.removeprefix(".")
    for magic, what in _OTHER_FORMATS:
        if start.lstrip().startswith(magic) and magic.decode("latin-1").lower() != name:
            return CheckpointError(f"{file} is not a {name} file but {what}")
    return CheckpointError(
        f"{file} is cut off, damaged or not a {name} file at all ({error}). Download or copy it again"
    )
