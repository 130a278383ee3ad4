"""Reading Helios transformer weights in every published layout.

`open_checkpoint` reads headers only: it finds the files, gives the tensors their canonical (diffusers) names and
checks that nothing is missing. `load_transformer` then streams tensor after tensor into a model that had no memory
before, so loading takes the model's own size and one tensor more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..dtypes import FP8_DTYPES
from ..model.config import TransformerConfig
from ..model.transformer import HeliosTransformer
from ..sampling.settings import SamplingSettings
from .config import config_from_folder, config_from_metadata, read_settings
from .files import find_weight_files, first_few
from .layouts import (
    QUANT_MARKER,
    WEIGHT_PARTS,
    WEIGHT_SCALES,
    Layout,
    canonical_name,
    find_prefix,
    is_beside_the_point,
    what_it_looks_like,
)
from .quant_formats import QuantFormat, what_reads
from .quantised import QuantisedWeight, has_lost_its_scale, is_finite
from .safetensors_file import CheckpointError, TensorEntry, read_markers

__all__ = ["Checkpoint", "CheckpointError", "TensorEntry", "open_checkpoint"]

logger = logging.getLogger(__name__)

_PLAIN_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WEIGHT_DTYPES = (*_PLAIN_DTYPES, *FP8_DTYPES)
# read(entry) -> the tensor as stored, on the CPU: what `entry.read()` gives.
ReadTensor = Callable[[TensorEntry], torch.Tensor]
_MAX_LAYERS = 1000  # a damaged file must not make us build blocks for hours


@dataclass(frozen=True)
class Checkpoint:
    """A Helios transformer on disk, complete and of the right shapes; no weight has been read yet.

    `tensors` maps the model's parameter names to where they lie. `settings` are None when nothing beside or in the
    file says the variant: the three published variants have the same tensors.
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

    @property
    def is_quantised(self) -> bool:
        """Whether weights are scaled fp8 or int8, in another of ComfyUI's formats, or the blocks of a GGUF file."""
        return any(_is_quantised(entry) for entry in self.tensors.values())

    def read_stored(self, name: str, read: ReadTensor | None = None) -> torch.Tensor | QuantisedWeight:
        """One tensor by its canonical name, on the CPU, as stored; taken from its file by `read`, if that is given.

        Raises KeyError for a name that is not in `tensors`, and CheckpointError when the file has changed since it was
        opened, a number in it is not finite, or an fp8 weight lacks the scale that it was divided by.
        """
        entry = self.tensors[name]
        read = read or (lambda entry: entry.read())
        weight = read(entry)
        if _is_quantised(entry):
            scale = None if entry.scale is None else read(entry.scale).float()
            parts = {part: read(stored) for part, stored in entry.parts.items()}
            weight = QuantisedWeight(weight, entry.shape, scale, entry.block_format, entry.quant, parts)
        if not (weight.is_finite() if isinstance(weight, QuantisedWeight) else is_finite(weight)):
            raise CheckpointError(
                f"{entry.file}: {entry.key!r} holds NaN or infinity, so every video would be black. Download the file "
                "again; if that does not help, whoever made it has to make it anew"
            )
        is_plain_fp8 = not isinstance(weight, QuantisedWeight) and weight.dtype in FP8_DTYPES
        if is_plain_fp8 and weight.ndim == 2 and has_lost_its_scale(weight):
            raise CheckpointError(
                f"{entry.file}: {entry.key!r} is fp8 without the scale that it was divided by: its numbers are far "
                "larger than a trained layer's. Whoever wrote the file has left the scales out; get another"
            )
        return weight

    def read(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Like `read_stored`, in `dtype`. Without `dtype` it comes as stored, or in float32 if it is quantised."""
        weight = self.read_stored(name)
        if isinstance(weight, QuantisedWeight):
            weight = weight.dequantised()
        return weight if dtype is None else cast_weight(weight, dtype)


def open_checkpoint(path: Path, host_formats: Collection[str] = ()) -> Checkpoint:
    """Find, name and check the weights at `path`. Reads headers and small JSON files, no weights.

    `path` is a safetensors or GGUF file, or a folder: the published model folder, its `transformer` subfolder (one
    file, or shards with an index), or any folder with one safetensors file. One of several shards stands for all.

    The config comes from the file's metadata, else from `config.json` beside it, else from the tensors' shapes; the
    settings from the file's metadata, else from the scheduler config of a model folder. `host_formats` are the
    quantised formats of ComfyUI that the host has layers for, beside those that can be turned into numbers here.

    Raises CheckpointError, naming the file and what is wrong with it, and ImportError for a GGUF file when the `gguf`
    package is missing.
    """
    path = Path(path)
    weights = find_weight_files(path)
    stored, metadata = weights.read_headers()
    layout, tensors, unexpected = _canonical_tensors(stored)
    config = (
        config_from_metadata(path, metadata)
        or config_from_folder(weights)
        or _config_from_shapes(path, tensors, unexpected)
    )
    _check_formats(path, tensors, host_formats)
    _check_tensors(path, config, layout, tensors, unexpected)
    checkpoint = Checkpoint(path, layout, tensors, config, read_settings(weights, metadata))
    logger.info(
        "Helios checkpoint %s: %d tensors, %s layout, %s, %.2f GiB",
        path, len(tensors), layout, checkpoint.stored_dtype, checkpoint.nbytes / 2**30,
    )  # fmt: skip
    return checkpoint


# Naming and checking the tensors


def _canonical_tensors(
    stored: Mapping[str, TensorEntry],
) -> tuple[Layout, dict[str, TensorEntry], list[str]]:
    """The layout, the weights by canonical name with their scales attached, and the keys that are neither."""
    prefix = find_prefix(stored)
    layout: Layout = "diffusers"
    tensors: dict[str, TensorEntry] = {}
    beside: dict[str, dict[str, TensorEntry]] = {}  # weight -> what is stored beside it, by the kind of name
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
        target = tensors
        if kind in (*WEIGHT_SCALES, *WEIGHT_PARTS, QUANT_MARKER):
            target, name = beside.setdefault(f"{layer}.weight", {}), "scale" if kind in WEIGHT_SCALES else kind
        if name in target:
            raise CheckpointError(f"{entry.file}: {target[name].key!r} and {key!r} are the same tensor {name!r}")
        target[name] = entry
    formats = read_markers({name: found[QUANT_MARKER] for name, found in beside.items() if QUANT_MARKER in found})
    for name, found in beside.items():
        if name in tensors:
            tensors[name] = _with_parts(tensors[name], found, formats.get(name))
        else:
            unexpected += [entry.key for entry in found.values()]
    return layout, tensors, unexpected


def _with_parts(weight: TensorEntry, beside: Mapping[str, TensorEntry], quant: QuantFormat | None) -> TensorEntry:
    """The weight with what belongs to it of what is stored beside it."""
    if weight.dtype in _PLAIN_DTYPES:
        # As quantisers leave it behind that keep some layers in full: the scale says nothing about such a weight.
        logger.info("%s: %r is %s; the scale beside it is not used", weight.file, weight.key, weight.dtype)
        return weight
    scale = beside.get("scale")
    if quant is None or quant.has_numbers_here:
        quant = quant if scale is not None else None
        return replace(weight, scale=scale, quant=quant, parts=_host_parts(beside) if quant else {})
    parts = _host_parts(beside) | ({} if scale is None else {"weight_scale": scale})
    return replace(weight, quant=quant, parts=parts)


def _host_parts(beside: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    return {name: entry for name, entry in beside.items() if name not in ("scale", QUANT_MARKER)}


def _check_formats(path: Path, tensors: Mapping[str, TensorEntry], host_formats: Collection[str]) -> None:
    """Raise CheckpointError for a weight in a format that nobody here reads."""
    for name, entry in tensors.items():
        if entry.quant is not None and not entry.quant.has_numbers_here and entry.quant.name not in host_formats:
            raise CheckpointError(
                f"{path}: {name} is quantised as {entry.quant.name!r}; {what_reads(entry.quant.name, host_formats)}"
            )


def _check_tensors(
    path: Path,
    config: TransformerConfig,
    layout: Layout,
    tensors: Mapping[str, TensorEntry],
    unexpected: list[str],
) -> None:
    """Raise one CheckpointError that names all: missing, unexpected, wrong shapes, dtypes and scales."""
    expected = _expected_shapes(path, config)
    known = {name: entry for name, entry in tensors.items() if name in expected}
    findings = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": unexpected + [entry.key for name, entry in tensors.items() if name not in expected],
        "of wrong shape": [
            f"{name} is {entry.shape}, expected {expected[name]}"
            for name, entry in known.items()
            # The weights of other quantised formats are packed, so their shapes say nothing.
            if entry.shape != expected[name] and _is_readable(entry) and not _is_packed(entry)
        ],
        "in a quantised format that is not supported": [
            f"{name} is {entry.dtype}" for name, entry in known.items() if not _is_readable(entry)
        ],
        "with a scale that is neither one number nor one for each row": [
            f"{entry.scale.key} is {entry.scale.dtype} {entry.scale.shape}"
            for entry in known.values()
            if entry.scale is not None and not _is_scale_of(entry.scale, entry)
        ],
        "in int8 without the scale that they were divided by": [
            name for name, entry in known.items() if entry.dtype == torch.int8 and not _is_quantised(entry)
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


def _is_readable(entry: TensorEntry) -> bool:
    return entry.dtype in (*WEIGHT_DTYPES, torch.int8) or entry.block_format is not None or _is_packed(entry)


def _is_packed(entry: TensorEntry) -> bool:
    """Whether the shape in the file is not the weight's own, as only ComfyUI's layers know."""
    return entry.quant is not None and not entry.quant.has_numbers_here


def _is_quantised(entry: TensorEntry) -> bool:
    return entry.scale is not None or entry.block_format is not None or entry.quant is not None


def _is_scale_of(scale: TensorEntry, weight: TensorEntry) -> bool:
    if not weight.shape or scale.dtype not in WEIGHT_DTYPES:
        return False
    rows = weight.shape[0]
    return scale.shape in ((), (1,), (1, 1)) or (len(weight.shape) == 2 and scale.shape in ((rows,), (rows, 1)))


def _config_from_shapes(path: Path, tensors: Mapping[str, TensorEntry], unexpected: list[str]) -> TransformerConfig:
    try:
        return TransformerConfig.from_shapes({name: entry.shape for name, entry in tensors.items()})
    except KeyError:
        # Too little is there to know the sizes: the published model then says what is missing.
        return TransformerConfig()
    except (IndexError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the tensors do not make a Helios transformer: {error}.{_looks_like(tensors, unexpected)}"
        ) from error


def cast_weight(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype in FP8_DTYPES and tensor.dtype != dtype:
        # Out of range, the conversion gives infinity or NaN, depending on format and torch version.
        limit = torch.finfo(dtype).max
        tensor = tensor.float().clamp(-limit, limit)
    return tensor.to(dtype)
