"""What a checkpoint says about itself: the model's config and the variant's settings, in metadata or JSON files."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..model.config import TransformerConfig
from ..sampling.settings import VARIANTS, SamplingSettings, settings_from_folder
from .files import WeightFiles, parse_json, read_json
from .safetensors_file import CheckpointError

logger = logging.getLogger(__name__)

# Keys in the metadata of a safetensors file: what config.json and the scheduler config say in a model folder.
CONFIG_METADATA = "helios_config"
VARIANT_METADATA = "helios_variant"

_DIFFUSERS_CLASS = "HeliosTransformer3DModel"


def make_metadata(config: TransformerConfig, variant: str | None) -> dict[str, str]:
    """The metadata that makes a file state its config and variant. Raises ValueError for an unknown variant."""
    metadata = {CONFIG_METADATA: json.dumps(asdict(config))}
    if variant is not None:
        metadata[VARIANT_METADATA] = known_variant(variant)
    return metadata


def config_from_metadata(path: Path, metadata: Mapping[str, str]) -> TransformerConfig | None:
    """The config that the file itself states, if this pack wrote it. Raises CheckpointError if it is wrong."""
    if CONFIG_METADATA not in metadata:
        return None
    where = f"{path}, metadata {CONFIG_METADATA}"
    return _make_config(where, parse_json(where, metadata[CONFIG_METADATA]), lambda values: TransformerConfig(**values))


def config_from_folder(weights: WeightFiles) -> TransformerConfig | None:
    """What `config.json` beside the weights says. Raises CheckpointError if it describes no Helios."""
    config_file = weights.folder / "config.json"
    if not config_file.is_file():
        return None
    config = read_json(config_file)
    class_name = config.get("_class_name", _DIFFUSERS_CLASS)
    if class_name != _DIFFUSERS_CLASS and weights.is_lone_file:
        # A folder belongs to its model; beside a lone file there may be other models' files.
        logger.info("%s is about a %s, not about %s", config_file, class_name, weights.files[0])
        return None
    if class_name != _DIFFUSERS_CLASS:
        raise CheckpointError(f"{config_file} describes a {class_name!r}; a Helios transformer is {_DIFFUSERS_CLASS!r}")
    return _make_config(str(config_file), config, TransformerConfig.from_diffusers)


def _make_config(
    where: str, values: dict[str, Any], make: Callable[[dict[str, Any]], TransformerConfig]
) -> TransformerConfig:
    published = asdict(TransformerConfig())
    for name, example in published.items():
        value = values.get(name, example)
        if name == "out_channels" and value is None:
            continue
        if not _is_of_kind(value, example):
            raise CheckpointError(f"{where}: {name} is {value!r}; it must be of the kind of {example!r}")
    try:
        return make(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def _is_of_kind(value: Any, example: Any) -> bool:
    """Whether a JSON value can stand where `example` does. Counts and sizes are at least 1, and not absurd."""
    if isinstance(example, tuple):
        return isinstance(value, list | tuple) and len(value) == len(example) and all(
            _is_of_kind(item, example[0]) for item in value
        )  # fmt: skip
    if type(example) is int:
        return type(value) is int and 1 <= value < 2**20
    if type(example) is float:
        return type(value) in (int, float) and 0 < value < math.inf
    return type(value) is type(example)


def read_settings(weights: WeightFiles, metadata: Mapping[str, str]) -> SamplingSettings | None:
    """The settings of the variant that the file's metadata or the model folder states, None if neither does.

    Raises CheckpointError when they state something that is none.
    """
    if VARIANT_METADATA in metadata:
        try:
            return VARIANTS[known_variant(metadata[VARIANT_METADATA])]
        except ValueError as error:
            raise CheckpointError(f"{weights.files[0]}, metadata {VARIANT_METADATA}: {error}") from error
    try:
        return settings_from_folder(weights.folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{weights.folder.parent}: scheduler config or model_index.json: {error}") from error


def known_variant(variant: str) -> str:
    """`variant` itself. Raises ValueError unless it is one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; allowed: {', '.join(map(repr, VARIANTS))}")
    return variant
