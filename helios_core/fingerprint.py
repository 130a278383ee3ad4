"""Fingerprints: a short name for a value that changes when any bit of the value does.

They tell whether a chunk on disk is the one that is wanted: same model, same prompt, same seed, same past.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

_DIGEST_BYTES = 16
_SAMPLES_PER_TENSOR = 4096


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
    return fingerprint({name: _sample(parameter.detach()) for name, parameter in model.named_parameters()})


def _sample(tensor: torch.Tensor) -> tuple[Any, ...]:
    flat = tensor.reshape(-1)
    return tuple(tensor.shape), flat[:: max(1, flat.numel() // _SAMPLES_PER_TENSOR)]


def _tokens(value: Any) -> Iterator[bytes]:
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
