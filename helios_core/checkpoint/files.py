"""Which files a checkpoint consists of: one file, or shards listed by an index; and the JSON files beside them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gguf_file import read_gguf_header
from .safetensors_file import CheckpointError, TensorEntry, read_header

_INDEX_SUFFIX = ".safetensors.index.json"
_WEIGHTS_NAME = "diffusion_pytorch_model"
_SHARD_NAME = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_PLAIN_NAME = re.compile(r"[\w.-]{1,200}\.safetensors")
_NUM_NAMED = 4  # of many wrong things an error names so many


@dataclass(frozen=True)
class WeightFiles:
    """The files of one model. `weight_map`, from an index, says which key is to be found in which file.

    `is_lone_file`: a file was asked for by its own name, so the folder around it may hold other models as well.
    """

    files: tuple[Path, ...]
    weight_map: Mapping[str, str] | None = None
    is_lone_file: bool = False

    @property
    def folder(self) -> Path:
        """The folder that all files are in."""
        return self.files[0].parent

    def read_headers(self) -> tuple[dict[str, TensorEntry], dict[str, str]]:
        """Tensors by the key they are stored under, and metadata, of all files together.

        Raises CheckpointError for a damaged file, a key in two files, or a file that lacks what the index says.
        """
        stored: dict[str, TensorEntry] = {}
        metadata: dict[str, str] = {}
        for file in self.files:
            read = read_gguf_header if file.suffix == ".gguf" else read_header
            entries, file_metadata = read(file)
            metadata.update(file_metadata)
            if twice := stored.keys() & entries.keys():
                first = min(twice)
                raise CheckpointError(f"{first!r} is both in {stored[first].file} and in {file}")
            stored.update(entries)
        weight_map = self.weight_map or {}
        absent = [key for key, name in weight_map.items() if key not in stored or stored[key].file.name != name]
        if absent:
            raise CheckpointError(
                f"{self.folder}: {len(absent)} tensors are not in the shard that the index names: "
                f"{first_few(absent)}. Index and shards are of different downloads: get both again"
            )
        return stored, metadata


def find_weight_files(path: Path) -> WeightFiles:
    """The weight files at `path`: a safetensors or GGUF file, an index, a folder of weights or one with `transformer/`.

    Raises CheckpointError when there are none, when it is not clear which, or when an index names files that are
    missing or lie outside its folder.
    """
    if path.name.endswith(_INDEX_SUFFIX):
        return _read_index(path)
    if path.is_file():
        index = _find_index(path.parent) if _SHARD_NAME.fullmatch(path.name) else None
        return _read_index(index) if index else WeightFiles((path,), is_lone_file=True)
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist")

    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if index := _find_index(folder):
        return _read_index(index)
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if file.stem == _WEIGHTS_NAME] or files
    if len(files) == 1:
        return WeightFiles(tuple(files))
    if files:
        raise CheckpointError(
            f"{folder} has {len(files)} safetensors files ({first_few(file.name for file in files)}) and no "
            f"*{_INDEX_SUFFIX} that says how they belong together. Get the index file, or choose one file"
        )
    raise CheckpointError(f"{folder} has no safetensors file")


def _find_index(folder: Path) -> Path | None:
    indexes = sorted(folder.glob(f"*{_INDEX_SUFFIX}"))
    named = [index for index in indexes if index.name == _WEIGHTS_NAME + _INDEX_SUFFIX]
    if len(named or indexes) > 1:
        raise CheckpointError(f"{folder} has several index files; choose one: {first_few(i.name for i in indexes)}")
    return next(iter(named or indexes), None)


def _read_index(index: Path) -> WeightFiles:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names. Download it again")
    names = sorted(set(weight_map.values()))
    allowed = _folders_of(index.parent)
    for name in names:
        # An index is downloaded text: it must not make us open anything but its own shards.
        if not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(f"{index} names {name!r}; a shard must be a safetensors file in the same folder")
        target = Path(os.path.realpath(index.parent / name))
        if not any(target.is_relative_to(folder) for folder in allowed):
            raise CheckpointError(f"{index} names {name!r}, which is a link to {target}, outside the folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(names)} shards, {len(missing)} of them missing: {first_few(missing)}. Download them"
        )
    return WeightFiles(tuple(index.parent / name for name in names), weight_map)


def _folders_of(folder: Path) -> list[Path]:
    """Folders that a shard may lie in: the index's own, and in a Hugging Face cache the one its links point to."""
    folder = Path(os.path.abspath(folder))
    blobs = [parent.parent / "blobs" for parent in folder.parents if parent.name == "snapshots"]
    return [Path(os.path.realpath(candidate)) for candidate in (folder, *blobs)]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, naming the file, if it holds anything else."""
    try:
        return parse_json(str(file), file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error


def parse_json(where: str, text: str) -> dict[str, Any]:
    """The JSON object in `text`, that stands in `where`. Raises CheckpointError if it holds anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds {value!r:.80}; expected is a JSON object")
    return value


def first_few(names: Iterable[str]) -> str:
    """The first few names, and dots if there are more."""
    names = list(names)
    return ", ".join(names[:_NUM_NAMED]) + (", ..." if len(names) > _NUM_NAMED else "")
