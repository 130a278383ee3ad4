"""Memory files, and how anything is written here: whole or not at all.

A memory file is a safetensors file with the tensors `frames` and, when there is one, `anchor`, and one JSON text in
its metadata that tells the rest. Nothing but tensors and JSON is ever read, so a file from a stranger cannot run code.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .fingerprint import fingerprint

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1

# One key for all metadata: safetensors writes several in random order, and equal content shall be equal bytes.
_METADATA = "helios"
_TEMPORARY = ".tmp"


class StorageError(ValueError):
    """A file that is not what it should be. The message names it, says why, and what to do."""


# Writing whole or not at all


@contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write; it takes the place of `path` when the block ends.

    A crash at any moment leaves at `path` what was there before, or the whole new file; after a power cut, too, since
    file and folder are flushed to the disk. When the block raises, the temporary file is removed. What a killed
    process left behind is named so that `remove_unfinished` finds it.
    """
    unfinished = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{_TEMPORARY}{path.suffix}")
    try:
        yield unfinished
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
        _flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: Path, stem: str = "*") -> None:
    """Remove what killed processes left half-written in `folder`, for files of that stem or all. Nobody else may be
    writing them."""
    name = stem if stem == "*" else glob.escape(stem)
    for leftover in folder.glob(f".{name}.*{_TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut; Windows does so by itself and opens no folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Tensors with facts


def save_tensors(path: Path, kind: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able `facts` as one safetensors file of this `kind`, with a checksum over the tensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"kind": kind, "version": FORMAT_VERSION, "checksum": fingerprint(tensors), **facts}
    with written_atomically(path) as unfinished:
        # Not save_file, whose errors hide that the disk is full.
        unfinished.write_bytes(save(tensors, metadata={_METADATA: json.dumps(header, sort_keys=True)}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `save_tensors` wrote.

    Raises FileNotFoundError, or StorageError for a file that is damaged, of another kind, or of a newer version.
    """
    with _opened(path, kind) as (file, facts):
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    if facts.get("checksum") != fingerprint(tensors):
        raise StorageError(f"{path} is damaged: its content does not match its checksum. Copy or make it again")
    return tensors, facts


def check_tensors(path: Path, kind: str) -> None:
    """Raise as `load_tensors` does, for all that can be told without reading the tensors (cut off, of another kind)."""
    with _opened(path, kind):
        pass


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and its facts."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file, _check_facts(path, kind, file.metadata())
    except SafetensorError as fault:
        raise StorageError(
            f"{path} is cut off, damaged, or not a safetensors file ({fault}). Copy or make it again"
        ) from fault


def _check_facts(path: Path, kind: str, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        facts = json.loads((metadata or {})[_METADATA])
        found, version = facts["kind"], facts["version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise StorageError(f"{path} is no Helios {kind} file: it is safetensors, but not written by Helios") from None
    if found != kind:
        raise StorageError(f"{path} is a Helios {found} file; a {kind} file is needed")
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path} has version {version!r} of the file format; this program reads {FORMAT_VERSION}. Update it"
        )
    return facts
