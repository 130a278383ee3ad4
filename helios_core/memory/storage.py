"""Memory files: a safetensors file with the tensors `frames` and, when there is one, `anchor`, and one JSON text in its
metadata with the rest. Nothing but tensors and JSON is ever read, so a file from a stranger cannot run code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files import StorageError, load_tensors, logger, save_tensors
from ..fingerprint import fingerprint
from .config import MemoryConfig
from .memory import HeliosMemory, Provenance

LATENT_FORMAT = "wan2.1"


# Memories


def save_memory(memory: HeliosMemory, path: str | os.PathLike[str]) -> None:
    """Write a memory file. Raises OSError when it cannot be written; what was at `path` then stays."""
    tensors, facts = pack_memory(memory)
    save_tensors(Path(path), "memory", tensors, facts)


def load_memory(path: str | os.PathLike[str]) -> HeliosMemory:
    """Read a memory file: bit for bit the memory that was saved, on the CPU.

    Raises FileNotFoundError, or StorageError for a file that is damaged or not a memory.
    """
    return unpack_memory(Path(path), *load_tensors(Path(path), "memory"))


def pack_memory(memory: HeliosMemory) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A memory as tensors and facts for `save_tensors`."""
    tensors = {"frames": memory.frames}
    if memory.anchor is not None:
        tensors["anchor"] = memory.anchor
    facts = {
        "chunk_index": memory.chunk_index,
        "width": memory.width,
        "height": memory.height,
        "latent_format": LATENT_FORMAT,
        "memory_config": asdict(memory.config),
        "provenance": asdict(memory.provenance),
    }
    if memory.identity:
        facts["identity"] = memory.identity
    return tensors, facts


def unpack_memory(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> HeliosMemory:
    """The memory in the tensors and facts of the file `path`. Raises StorageError when they are not one."""
    if facts.get("latent_format") != LATENT_FORMAT:
        raise StorageError(
            f"{path} holds latents of the format {facts.get('latent_format')!r}; Helios takes {LATENT_FORMAT!r}: "
            "the memory cannot be used with this model"
        )
    try:
        chunk_index = facts["chunk_index"]
        if type(chunk_index) is not int or chunk_index < 0:
            raise ValueError(f"chunk_index is {chunk_index!r}")
        if any(tensors[name].dtype != torch.float32 for name in ("frames", *(tensors.keys() & {"anchor"}))):
            raise ValueError("latents are not float32")
        return HeliosMemory(
            tensors["frames"],
            anchor=tensors.get("anchor"),
            chunk_index=chunk_index,
            config=MemoryConfig(**facts["memory_config"]),
            provenance=Provenance(**facts["provenance"]),
            identity=str(facts.get("identity", "")),
        )
    except (KeyError, TypeError, ValueError) as fault:
        raise StorageError(f"{path} is not a whole memory file ({fault!r}); save the memory again") from fault


@dataclass(frozen=True)
class ModelIdentity:
    """Which model: a `name` for people, and a `fingerprint` that is certain. `parts` are the fingerprints of what
    it was made from, if that is known, by names for people: they say which of them differs from another model's."""

    name: str
    fingerprint: str
    parts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_parts(cls, name: str, parts: Mapping[str, str]) -> ModelIdentity:
        """The identity of a model that is made from these parts."""
        return cls(name, fingerprint(parts), parts)


def check_memory(
    memory: HeliosMemory,
    *,
    width: int | None = None,
    height: int | None = None,
    channels: int | None = None,
    model: ModelIdentity | None = None,
) -> None:
    """Whether a memory can be continued. What is not given is not checked; `width` and `height` are pixels.

    Raises ValueError for another size or latent format. A memory made by another model works, but the style may
    change where it takes over: that is logged as a warning.
    """
    if channels is not None and memory.frames.shape[1] != channels:
        raise ValueError(
            f"the memory has {memory.frames.shape[1]} latent channels and {channels} are needed: it was made for "
            "another latent format"
        )
    wanted = (width or memory.width, height or memory.height)
    if (memory.width, memory.height) != wanted:
        raise ValueError(
            f"the memory is of a {memory.width}x{memory.height} video and cannot continue at {wanted[0]}x{wanted[1]}; "
            f"set the size to {memory.width}x{memory.height}, or start anew from a video file, which can be resized"
        )
    source = memory.provenance
    if model is not None and source.model_fingerprint not in ("", model.fingerprint):
        logger.warning(
            "this memory was made by the model %r and continues with %r: look at where they meet",
            source.model,
            model.name,
        )
