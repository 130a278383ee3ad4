"""From a file to a MODEL: which dtype is stored and which computed in, on which of ComfyUI's layers."""

import logging
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.ops
import torch

from ...helios_core.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ...helios_core.checkpoint.loading import load_transformer
from ...helios_core.dtypes import DTYPES
from ...helios_core.report.cost import num_parameters
from ...helios_core.sampling.settings import SamplingSettings, model_title
from ...helios_core.sampling.variant import choose_variant
from .file_content import files_content
from .layers import QuantisedLayers, host_formats
from .mapped import MappedWeights
from .model import HeliosModel, HeliosModelConfig
from .patcher import HeliosPatcher, patcher_class, takes_dynamic

logger = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "default": None,
    **DTYPES,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e4m3fn_fast": torch.float8_e4m3fn,
}


def load_model(path: Path, variant: str, weight_dtype: str, *, disable_dynamic: bool = False) -> HeliosPatcher:
    """Read a Helios checkpoint into a MODEL.

    `variant` is one of VARIANTS, or "auto" for what the files or the name say; `weight_dtype` one of WEIGHT_DTYPES.
    With "default" weights that are stored quantised stay so (GGUF, scaled fp8), with the fp8 choices those in fp8.
    `disable_dynamic` gives a static patcher under dynamic VRAM too.

    Raises CheckpointError for a file that is not a complete Helios transformer, ImportError for GGUF without the `gguf`
    package, ValueError for an unknown choice.
    """
    checkpoint = open_checkpoint(path, host_formats())
    settings = choose_variant(path, checkpoint.settings, None if variant == "auto" else variant)
    patcher = make_patcher(checkpoint, settings, path.name, weight_dtype, disable_dynamic=disable_dynamic)
    return reloadable(patcher, load_model, path, variant, weight_dtype)


def reloadable(patcher: HeliosPatcher, load: Callable[..., HeliosPatcher], *arguments) -> HeliosPatcher:
    """The patcher, with what ComfyUI calls for a copy with weights of its own (another device, no dynamic VRAM):
    `load(*arguments, disable_dynamic=...)`."""
    patcher.cached_patcher_init = (load, arguments)
    return patcher


def make_patcher(
    checkpoint: Checkpoint,
    settings: SamplingSettings,
    name: str,
    weight_dtype: str,
    *,
    disable_dynamic: bool = False,
) -> HeliosPatcher:
    """Read an opened checkpoint into a MODEL that is sampled with `settings`; otherwise as `load_model`."""
    if weight_dtype not in WEIGHT_DTYPES:
        raise ValueError(f"weight_dtype is {weight_dtype!r}; allowed: {', '.join(WEIGHT_DTYPES)}")
    management = comfy.model_management
    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    dynamic = takes_dynamic(load_device) and not disable_dynamic
    supported = list(HeliosModelConfig.supported_inference_dtypes)
    # A quantised file says nothing about the dtype of the few weights that are not, nor of the computation.
    stored_dtype = None if checkpoint.is_quantised else checkpoint.stored_dtype
    storage = WEIGHT_DTYPES[weight_dtype] or management.unet_dtype(
        model_params=num_parameters(checkpoint.config), supported_dtypes=supported, weight_dtype=stored_dtype
    )
    manual_cast = management.unet_manual_cast(storage, load_device, supported)
    compute = manual_cast or storage
    fast = weight_dtype == "fp8_e4m3fn_fast"
    mapped = MappedWeights() if dynamic else None
    transformer = load_transformer(
        checkpoint,
        dtype=compute,
        weight_dtype=storage,
        device=offload_device,
        operations=comfy.ops.pick_operations(storage, compute, load_device=load_device, fp8_optimizations=fast),
        keep_quantised=QuantisedLayers(compute, load_device, WEIGHT_DTYPES[weight_dtype], fast),
        **({} if mapped is None else {"read": mapped.read, "store": mapped.store}),
    )
    made_from = {
        "weights": files_content({entry.file for entry in checkpoint.tensors.values()}),
        "dtype": f"{storage} computed in {compute}",
        # What else the choice means: fp8 products, and which quantised weights are kept as they are stored.
        "weight_dtype": weight_dtype if fast or checkpoint.is_quantised else "",
    }
    model = HeliosModel(transformer, settings, name, manual_cast, made_from)
    if mapped is not None:
        mapped.let_go()
    patcher = patcher_class(dynamic)(model, load_device=load_device, offload_device=offload_device)
    logger.info(
        "%s from %s: %.1f B parameters, %.2f GiB of weights, computing in %s",
        model_title(settings), name, num_parameters(checkpoint.config) / 1e9, patcher.model_size() / 2**30, compute,
    )  # fmt: skip
    return patcher
