"""Fingerprints: a short name for a value that changes when any bit of the value does.

They show whether a chunk on disk is the one that is wanted: same model, same prompt, same seed, same past.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

_DIGEST_BYTES = 16
_SAMPLES_PER_TENSOR = 4096
_SAMPLES_PER_FILE = 64
_BYTES_PER_SAMPLE = 64 * 1024
_BYTES_PER_TENSOR = 1024
_MAX_HEADER = 100_000_000  # bytes, the format's own limit


def fingerprint(*parts: Any) -> str:
    """32 hex digits for plain values, tensors, and (nested) dataclasses, mappings, lists and tuples of these.

    Equal values of different types (1, 1.0, True, "1") differ, a list and a tuple of the same values do not, and
    neither does the device of a tensor matter. Raises TypeError for any other type, whose value could not be seen.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for token in _tokens(parts):
        # The length keeps ("ab", "c") apart from ("a", "bc").
        digest.update(len(token).to_bytes(8, "big"))
        digest.update(token)
    return digest.hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Names, shapes, dtypes, and values spread over every parameter: milliseconds where reading all of 14 B
    parameters takes a minute. Two trainings or quantisations of one model differ; two copies do not."""
    return fingerprint({name: tensor_samples(parameter.detach()) for name, parameter in model.named_parameters()})


def file_fingerprint(path: Path) -> str:
    """The size, and 64 pieces of 64 KiB spread from the first byte (where headers are) to the last: of weights that
    need not be loaded. Raises OSError when the file cannot be read."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        digest.update(size.to_bytes(8, "big"))
        for piece in range(_SAMPLES_PER_FILE):
            stream.seek(max(0, size - _BYTES_PER_SAMPLE) * piece // (_SAMPLES_PER_FILE - 1))
            digest.update(stream.read(_BYTES_PER_SAMPLE))
    return digest.hexdigest()


def content_fingerprint(path: Path) -> str:
    """`file_fingerprint`, and of a safetensors file also the header and the middle of every tensor, so that two
    trainings of a few layers differ. Raises OSError when the file cannot be read."""
    whole = file_fingerprint(path)
    if path.suffix != ".safetensors":
        return whole
    with path.open("rb") as stream:
        return fingerprint(whole, *_tensor_pieces(stream, stream.seek(0, 2)))


def folder_fingerprint(folder: Path) -> str:
    """The files of a folder, without those below it, by name and `content_fingerprint`. Raises OSError when one cannot
    be read; a folder that is not there is like an empty one."""
    files = sorted(file for file in folder.glob("*") if file.is_file())
    return fingerprint([[file.name, content_fingerprint(file)] for file in files])


def _tensor_pieces(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """The header of a safetensors file, and a piece from the middle of each tensor. Nothing of a damaged file: its
    spread pieces must do, and its reader will say what is wrong."""
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if length > min(_MAX_HEADER, size - 8):
        return
    header = stream.read(length)
    try:
        tensors = json.loads(header)
        offsets = sorted(
            tuple(map(int, entry["data_offsets"])) for name, entry in tensors.items() if name != "__metadata__"
        )
        middles = [8 + length + max(0, start, (start + end - _BYTES_PER_TENSOR) // 2) for start, end in offsets]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return
    yield header
    for middle in middles:
        stream.seek(middle)
        yield stream.read(_BYTES_PER_TENSOR)


def tensor_samples(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Shape, and values spread evenly over the tensor: enough to distinguish two trained tensors."""
    flat = tensor.reshape(-1)
    return tuple(tensor.shape), flat[:: max(1, flat.numel() // _SAMPLES_PER_TENSOR)]


def _tokens(value: Any) -> Iterator[bytes | memoryview]:
    """The value as a row of byte strings from which it could be rebuilt."""
    if isinstance(value, torch.Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield raw.numpy().data
    elif isinstance(value, bytes):
        yield b"bytes"
        yield value
    elif value is None or isinstance(value, bool | int | float | str | Fraction):
        yield f"{type(value).__name__} {value!r}".encode()
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__.encode()
        yield from _tokens({field.name: getattr(value, field.name) for field in fields(value)})
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for key in sorted(value):
            yield from _tokens(key)
            yield from _tokens(value[key])
    elif isinstance(value, list | tuple):
        yield f"row {len(value)}".encode()
        for item in value:
            yield from _tokens(item)
    else:
        raise TypeError(f"cannot take a fingerprint of a {type(value).__name__}; give plain values or tensors")
