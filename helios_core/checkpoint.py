"""Reading Helios transformer weights in every published layout, and writing them as one safetensors file.

`open_checkpoint` reads headers only: it finds the files, gives the tensors their canonical (diffusers) names and
checks that nothing is missing. `load_transformer` then streams tensor after tensor into a model that had no memory
before, so loading takes the model's own size and one tensor more.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from .checkpoint_files import WeightFiles, find_weight_files, first_few, parse_json, read_json
from .config import VARIANTS, SamplingSettings, TransformerConfig, settings_from_folder
from .layouts import (
    WEIGHT_SCALES,
    Layout,
    canonical_name,
    find_prefix,
    is_beside_the_point,
    what_it_looks_like,
)
from .safetensors_file import CheckpointError, TensorEntry
from .transformer import HeliosTransformer

__all__ = ["Checkpoint", "CheckpointError", "TensorEntry", "load_transformer", "open_checkpoint", "save_transformer"]

logger = logging.getLogger(__name__)

# Keys in the metadata of a safetensors file: what config.json and the scheduler config say in a model folder.
CONFIG_METADATA = "helios_config"
VARIANT_METADATA = "helios_variant"

_DIFFUSERS_CLASS = "HeliosTransformer3DModel"
_FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
_WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, *_FP8_DTYPES)
_MAX_LAYERS = 1000  # a damaged file must not make us build blocks for hours


@dataclass(frozen=True)
class Checkpoint:
    """A Helios transformer on disk, complete and of the right shapes; no weight has been read yet.

    `tensors` maps the model's parameter names to where they lie. `settings` are None when nothing beside or in the
    file tells the variant: the three published variants have the same tensors.
    """

    path: Path
    layout: Layout
    tensors: Mapping[str, TensorEntry]
    config: TransformerConfig
    settings: SamplingSettings | None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype that most of the weights' bytes are in."""
        nbytes: dict[torch.dtype, int] = {}
        for entry in self.tensors.values():
            nbytes[entry.dtype] = nbytes.get(entry.dtype, 0) + entry.nbytes
        return max(nbytes, key=nbytes.__getitem__)

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor by its canonical name, on the CPU, in `dtype`.

        Without `dtype` it comes as stored, or in float32 if it is scaled fp8. Raises KeyError for a name that is
        not in `tensors`, and CheckpointError when the file has changed since it was opened.
        """
        entry = self.tensors[name]
        tensor = entry.read()
        if entry.scale is not None:
            scale = entry.scale.read().float()
            # One scale for the tensor, or one for each output row.
            tensor = tensor.float() * (scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1))
        return tensor if dtype is None else _cast(tensor, dtype)


def open_checkpoint(path: Path) -> Checkpoint:
    """Find, name and check the weights at `path`. Reads headers and small JSON files, no weights.

    `path` is a safetensors file, or a folder: the published model folder, its `transformer` subfolder (one file, or
    shards with an index), or any folder with one safetensors file. One of several shards stands for its folder.

    The config comes from the file's metadata, else from `config.json` beside it, else from the tensors' shapes; the
    settings from the file's metadata, else from the scheduler config of a model folder.

    Raises CheckpointError, naming the file and what is wrong with it.
    """
    path = Path(path)
    weights = find_weight_files(path)
    stored, metadata = weights.read_headers()
    layout, tensors, unexpected = _canonical_tensors(stored)
    config = (
        _config_from_metadata(path, metadata)
        or _config_from_folder(weights)
        or _config_from_shapes(path, tensors, unexpected)
    )
    _check_tensors(path, config, layout, tensors, unexpected)
    checkpoint = Checkpoint(path, layout, tensors, config, _read_settings(weights, metadata))
    logger.info(
        "Helios checkpoint %s: %d tensors, %s layout, %s, %.2f GiB",
        path, len(tensors), layout, checkpoint.stored_dtype, checkpoint.nbytes / 2**30,
    )  # fmt: skip
    return checkpoint


def load_transformer(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    operations=nn,
    weight_dtype: torch.dtype | None = None,
) -> HeliosTransformer:
    """Build the transformer on `device` and read its weights, one tensor at a time.

    `dtype` is the compute dtype (float32, bfloat16 or float16); the parameters that Helios keeps in float32 are
    float32 whatever it is. `weight_dtype` (also float8_e4m3fn or float8_e5m2) is what the Linear weights of the blocks
    are stored in, for `operations` that cast weights when they use them (torch.nn does not). In fp8, values beyond
    the range are clamped to it, and a scaled fp8 file is rounded a second time, without its scale.

    Parameters need no gradient. Raises CheckpointError when a file has changed since it was opened, ValueError for
    other dtypes.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype}; allowed: float32, bfloat16, float16. For fp8 storage use weight_dtype")
    if weight_dtype not in (None, *_WEIGHT_DTYPES):
        allowed = ", ".join(map(str, _WEIGHT_DTYPES))
        raise ValueError(f"weight_dtype is {weight_dtype}; allowed: None, {allowed}")

    model = HeliosTransformer(checkpoint.config, operations=operations, dtype=dtype, device="meta")
    for name, entry in checkpoint.tensors.items():
        module_name, _, parameter_name = name.rpartition(".")
        module = model.get_submodule(module_name)
        is_linear = name.startswith("blocks.") and name.endswith(".weight") and len(entry.shape) == 2
        stored = weight_dtype if is_linear and weight_dtype else getattr(module, parameter_name).dtype
        tensor = checkpoint.read(name, stored)
        setattr(module, parameter_name, nn.Parameter(tensor.to(device), requires_grad=False))
    return model.eval()


def save_transformer(model: HeliosTransformer, path: Path, *, variant: str | None = None) -> None:
    """Write the weights, in their dtypes, as one safetensors file that `open_checkpoint` reads in full.

    `variant` ("base", "mid" or "distilled") is written beside the config, as the weights do not tell it. The file is
    there whole or not at all: a crash leaves what was at `path` before. Raises ValueError for an unknown variant.
    """
    path = Path(path)
    metadata = {CONFIG_METADATA: json.dumps(asdict(model.config))}
    if variant is not None:
        metadata[VARIANT_METADATA] = _known_variant(variant)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file(tensors, unfinished, metadata=metadata)
        with unfinished.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


# Naming and checking the tensors


def _canonical_tensors(
    stored: Mapping[str, TensorEntry],
) -> tuple[Layout, dict[str, TensorEntry], list[str]]:
    """The layout, the weights by canonical name with their scales attached, and the keys that are neither."""
    prefix = find_prefix(stored)
    layout: Layout = "diffusers"
    tensors: dict[str, TensorEntry] = {}
    scales: dict[str, TensorEntry] = {}
    unexpected = []
    for key, entry in stored.items():
        if is_beside_the_point(key):
            continue
        if not key.startswith(prefix):
            unexpected.append(key)
            continue
        name = canonical_name(key.removeprefix(prefix))
        if prefix + name != key:
            layout = "comfyui"
        layer, _, kind = name.rpartition(".")
        target, name = (scales, f"{layer}.weight") if kind in WEIGHT_SCALES else (tensors, name)
        if name in target:
            raise CheckpointError(f"{entry.file}: {target[name].key!r} and {key!r} are the same tensor {name!r}")
        target[name] = entry
    for name, scale in scales.items():
        if name in tensors:
            tensors[name] = replace(tensors[name], scale=scale)
        else:
            unexpected.append(scale.key)
    return layout, tensors, unexpected


def _check_tensors(
    path: Path,
    config: TransformerConfig,
    layout: Layout,
    tensors: Mapping[str, TensorEntry],
    unexpected: list[str],
) -> None:
    """Raise one CheckpointError that tells all: missing, unexpected, wrong shapes, dtypes and scales."""
    expected = _expected_shapes(path, config)
    known = {name: entry for name, entry in tensors.items() if name in expected}
    findings = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": unexpected + [entry.key for name, entry in tensors.items() if name not in expected],
        "of wrong shape": [
            f"{name} is {entry.shape}, expected {expected[name]}"
            for name, entry in known.items()
            # A quantised weight is packed, so its shape tells nothing.
            if entry.shape != expected[name] and entry.dtype in _WEIGHT_DTYPES
        ],
        "in a quantised format that is not supported": [
            f"{name} is {entry.dtype}" for name, entry in known.items() if entry.dtype not in _WEIGHT_DTYPES
        ],
        "with a scale that is neither one number nor one for each row": [
            f"{entry.scale.key} is {entry.scale.dtype} {entry.scale.shape}"
            for entry in known.values()
            if entry.scale is not None and not _is_scale_of(entry.scale, entry)
        ],
    }
    problems = [f"{len(found)} {what} ({first_few(found)})" for what, found in findings.items() if found]
    if problems:
        raise CheckpointError(
            f"{path} is not a complete Helios transformer. Expected are {len(expected)} tensors for "
            f"{config.num_layers} blocks of width {config.inner_dim} ({layout} names), found {len(tensors)}: "
            f"{'; '.join(problems)}.{_looks_like(tensors, unexpected)}"
        )


def _looks_like(tensors: Mapping[str, TensorEntry], unexpected: list[str]) -> str:
    what = what_it_looks_like([entry.key for entry in tensors.values()] + unexpected)
    return f" It looks like {what}." if what else ""


def _expected_shapes(path: Path, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    if config.num_layers > _MAX_LAYERS:
        raise CheckpointError(f"{path}: {config.num_layers} blocks; no Helios has more than {_MAX_LAYERS}")
    try:
        model = HeliosTransformer(config, dtype=torch.float32, device="meta")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: no Helios transformer can be built from {config}: {error}") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _is_scale_of(scale: TensorEntry, weight: TensorEntry) -> bool:
    if not weight.shape or scale.dtype not in _WEIGHT_DTYPES:
        return False
    rows = weight.shape[0]
    return scale.shape in ((), (1,), (1, 1)) or (len(weight.shape) == 2 and scale.shape in ((rows,), (rows, 1)))


# Config and settings


def _config_from_metadata(path: Path, metadata: Mapping[str, str]) -> TransformerConfig | None:
    if CONFIG_METADATA not in metadata:
        return None
    where = f"{path}, metadata {CONFIG_METADATA}"
    return _make_config(where, parse_json(where, metadata[CONFIG_METADATA]), lambda values: TransformerConfig(**values))


def _config_from_folder(weights: WeightFiles) -> TransformerConfig | None:
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


def _config_from_shapes(path: Path, tensors: Mapping[str, TensorEntry], unexpected: list[str]) -> TransformerConfig:
    try:
        return TransformerConfig.from_shapes({name: entry.shape for name, entry in tensors.items()})
    except KeyError:
        # Too little is there to tell the sizes: the published model then says what is missing.
        return TransformerConfig()
    except (IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the tensors do not make a Helios transformer: {error}.{_looks_like(tensors, unexpected)}"
        ) from error


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


def _read_settings(weights: WeightFiles, metadata: Mapping[str, str]) -> SamplingSettings | None:
    if VARIANT_METADATA in metadata:
        try:
            return VARIANTS[_known_variant(metadata[VARIANT_METADATA])]
        except ValueError as error:
            raise CheckpointError(f"{weights.files[0]}, metadata {VARIANT_METADATA}: {error}") from error
    try:
        return settings_from_folder(weights.folder)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{weights.folder.parent}: scheduler config or model_index.json: {error}") from error


def _known_variant(variant: str) -> str:
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; allowed: {', '.join(map(repr, VARIANTS))}")
    return variant


# Small helpers


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype in _FP8_DTYPES and tensor.dtype != dtype:
        # Out of range, the conversion gives infinity or NaN, depending on format and torch version.
        limit = torch.finfo(dtype).max
        tensor = tensor.float().clamp(-limit, limit)
    return tensor.to(dtype)
