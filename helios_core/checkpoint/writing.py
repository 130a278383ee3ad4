"""Writing Helios weights as one safetensors file, with config and variant in it, that `open_checkpoint` reads."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..dtypes import DTYPES, SAFETENSORS_NAMES
from ..files import written_atomically
from ..model.transformer import HeliosTransformer
from ..sampling.settings import variant_of
from .checkpoint import Checkpoint
from .config import make_metadata
from .loading import is_block_linear, parameter_dtypes
from .quantising import Quantiser

logger = logging.getLogger(__name__)

# Dtypes that a checkpoint can be converted to, and the dtype of what is not stored in fp8.
CONVERT_DTYPES = {
    **{name: (dtype, dtype) for name, dtype in DTYPES.items()},
    "fp8_e4m3fn": (torch.float8_e4m3fn, torch.bfloat16),
}


# Quantised with scales and ComfyUI's markers. One scale for each row is finer; of fp8 ComfyUI's layers know one only.
QUANTISED_DTYPES = {
    "fp8_scaled": Quantiser("float8_e4m3fn", row_wise=False),
    "int8": Quantiser("int8_tensorwise", row_wise=False),
    "int8_rows": Quantiser("int8_tensorwise", row_wise=True),
}
KEPT_BLOCKS = 3  # the first and the last blocks feel rounding most


class Planned(NamedTuple):
    """A tensor that will be written: known before it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def convert_checkpoint(
    checkpoint: Checkpoint, target: Path, dtype: str, variant: str | None = None, *, kept_blocks: int = KEPT_BLOCKS
) -> str | None:
    """Write `checkpoint`, whatever its layout, as one safetensors file with diffusers' names; states the variant.

    `dtype` is one of CONVERT_DTYPES or QUANTISED_DTYPES; parameters that Helios keeps in float32 stay so, and with fp8
    and int8 only the Linear weights of the blocks are in few bits. Of QUANTISED_DTYPES the first and last `kept_blocks`
    blocks are bf16 whole. `variant` ("base", "mid", "distilled") is what the file is to say of itself; without, what
    the source says, if anything. One tensor is in memory at a time.

    The file is there whole or not at all. Raises ValueError for an unknown dtype or variant, a target that is the
    source or a model of which every block is kept, CheckpointError for a source that cannot be read.
    """
    if dtype not in CONVERT_DTYPES and dtype not in QUANTISED_DTYPES:
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join([*CONVERT_DTYPES, *QUANTISED_DTYPES])}")
    if target.exists() and any(target.samefile(entry.file) for entry in checkpoint.tensors.values()):
        raise ValueError(f"{target} is what is being read; choose another name for the converted file")
    if variant is None and checkpoint.settings is not None:
        variant = variant_of(checkpoint.settings)
    if dtype in QUANTISED_DTYPES:
        plan, read = _plan_quantised(checkpoint, QUANTISED_DTYPES[dtype], kept_blocks)
    else:
        plan, read = _plan_plain(checkpoint, *CONVERT_DTYPES[dtype])
    write_safetensors(target, plan, read, make_metadata(checkpoint.config, variant))
    return variant


Plan = dict[str, Planned]
ReadPlanned = Callable[[str], torch.Tensor]


def _plan_plain(
    checkpoint: Checkpoint, weight_dtype: torch.dtype, other_dtype: torch.dtype
) -> tuple[Plan, ReadPlanned]:
    model = HeliosTransformer(checkpoint.config, dtype=other_dtype, device="meta")
    dtypes = parameter_dtypes(model, weight_dtype)
    plan = {name: Planned(dtypes[name], tuple(tensor.shape)) for name, tensor in model.named_parameters()}
    return plan, lambda name: checkpoint.read(name, dtypes[name])


def _plan_quantised(checkpoint: Checkpoint, quantiser: Quantiser, kept_blocks: int) -> tuple[Plan, ReadPlanned]:
    """As `_plan_plain`; each quantised weight is followed by its scale, and has its marker before it."""
    plan, read_plain = _plan_plain(checkpoint, torch.bfloat16, torch.bfloat16)
    num_layers = checkpoint.config.num_layers
    if kept_blocks < 0 or num_layers <= 2 * kept_blocks:
        raise ValueError(
            f"the first and last {kept_blocks} of {num_layers} blocks are to stay bf16, which leaves none to quantise; "
            f"keep 0 to {(num_layers - 1) // 2}"
        )
    middle = {f"blocks.{number}" for number in range(kept_blocks, num_layers - kept_blocks)}
    chosen = {
        name.removesuffix(".weight")
        for name, planned in plan.items()
        if is_block_linear(name, planned.shape) and ".".join(name.split(".")[:2]) in middle
    }
    for layer in chosen:
        rows, columns = plan[f"{layer}.weight"].shape
        plan[f"{layer}.weight"] = Planned(quantiser.dtype, (rows, columns))
        plan[f"{layer}.weight_scale"] = Planned(torch.float32, (rows, 1) if quantiser.row_wise else ())
        plan[f"{layer}.comfy_quant"] = Planned(torch.uint8, tuple(quantiser.marker.shape))

    @lru_cache(maxsize=1)  # a weight and its scale are asked for one after the other
    def quantised(layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        return quantiser.quantise(checkpoint.read(f"{layer}.weight", torch.float32))

    def read(name: str) -> torch.Tensor:
        layer, _, kind = name.rpartition(".")
        if layer not in chosen or kind == "bias":
            return read_plain(name)
        return quantiser.marker if kind == "comfy_quant" else quantised(layer)[kind == "weight_scale"]

    return plan, read


def save_transformer(model: HeliosTransformer, path: Path, *, variant: str | None = None) -> None:
    """Write the weights, in their dtypes, as one safetensors file that `open_checkpoint` reads in full.

    `variant` ("base", "mid" or "distilled") is written beside the config, as the weights do not show it. The file is
    there whole or not at all: a crash leaves what was at `path` before. Raises ValueError for an unknown variant.
    """
    state = model.state_dict()
    plan = {name: Planned(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    write_safetensors(path, plan, state.__getitem__, make_metadata(model.config, variant))


def write_safetensors(
    path: Path, plan: Mapping[str, Planned], read: Callable[[str], torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write the planned tensors as `read(name)` gives them, asked for in the order of their names.

    The safetensors library writes from tensors that are all in memory, which for the published model is 28 GB; so this
    writes the format itself: 8 bytes of header length, a JSON header, and the tensors' bytes. As the library does it,
    tensors stand in falling order of item size and the header is padded, so that each is aligned.
    """
    names = sorted(plan, key=lambda name: (-plan[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + math.prod(plan[name].shape) * plan[name].dtype.itemsize
        dtype, shape = SAFETENSORS_NAMES[plan[name].dtype], list(plan[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)

    free = shutil.disk_usage(path.parent).free
    if free < end:
        raise OSError(f"{path} needs {end / 2**30:.2f} GiB; free there are {free / 2**30:.2f} GiB. Make room first")
    with written_atomically(path) as unfinished, unfinished.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for number, name in enumerate(sorted(names)):
            if number % 100 == 0 and number:
                logger.info("wrote %d of %d tensors", number, len(names))
            tensor = read(name).detach().cpu().contiguous()
            if (tensor.dtype, tuple(tensor.shape)) != plan[name]:
                raise ValueError(f"{name} came as {tensor.dtype} {tuple(tensor.shape)}; planned was {plan[name]}")
            stream.seek(8 + len(encoded) + header[name]["data_offsets"][0])
            stream.write(tensor.flatten().view(torch.uint8).numpy())
    logger.info("wrote %s: %d tensors, %.2f GiB", path, len(names), end / 2**30)
