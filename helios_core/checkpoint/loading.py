"""From an opened checkpoint to a transformer, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..model.transformer import HeliosTransformer
from .checkpoint import WEIGHT_DTYPES, Checkpoint, ReadTensor, cast_weight
from .quantised import QuantisedWeight

# A host's own layer for a weight that stays quantised: (the Linear it takes the place of, weight) -> layer with that
# weight and no bias yet, or None to have the weight's numbers read into the Linear.
KeepQuantised = Callable[[nn.Linear, QuantisedWeight], nn.Module | None]
MakeLinear = Callable[[nn.Linear, torch.Tensor], nn.Module]
# store(layer, parameter name, weight as read, dtype to keep it in) -> what the parameter is to be: for a host that
# casts by itself when a weight is used.
StoreWeight = Callable[[nn.Module, str, torch.Tensor, torch.dtype], torch.Tensor]


def load_transformer(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    operations=nn,
    weight_dtype: torch.dtype | None = None,
    keep_quantised: KeepQuantised | None = None,
    make_linear: MakeLinear | None = None,
    read: ReadTensor | None = None,
    store: StoreWeight | None = None,
) -> HeliosTransformer:
    """Build the transformer on `device` and read its weights, one tensor at a time.

    `dtype` is the compute dtype (float32, bfloat16 or float16); the parameters that Helios keeps in float32 are
    float32 whatever it is. `weight_dtype` (also float8_e4m3fn or float8_e5m2) is what the Linear weights of the blocks
    are stored in, for `operations` that cast weights when they use them (torch.nn does not). In fp8, values beyond
    the range are clamped to it. `keep_quantised` may give a layer of its own for each Linear of the blocks whose weight
    is quantised (scaled fp8 or int8, GGUF); without, those weights are dequantised. `make_linear` gives a layer of its
    own for every other Linear of the blocks, from its numbers on `device`. `read` takes a tensor from its file in the
    place of `TensorEntry.read`; `store` decides what becomes of one that stays a parameter (without: it is cast and put
    on `device`).

    Parameters need no gradient. Raises CheckpointError when a file has changed since it was opened or holds a number
    that is not finite, ValueError for other dtypes.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype}; allowed: float32, bfloat16, float16. For fp8 storage use weight_dtype")
    if weight_dtype not in (None, *WEIGHT_DTYPES):
        allowed = ", ".join(map(str, WEIGHT_DTYPES))
        raise ValueError(f"weight_dtype is {weight_dtype}; allowed: None, {allowed}")

    model = HeliosTransformer(checkpoint.config, operations=operations, dtype=dtype, device="meta")
    # Asked of torch's own layers: a host's may have no parameters before they are given their weights.
    dtypes = parameter_dtypes(HeliosTransformer(checkpoint.config, dtype=dtype, device="meta"), weight_dtype)
    for name in checkpoint.tensors:
        layer_name, _, parameter_name = name.rpartition(".")
        layer = model.get_submodule(layer_name)
        weight = checkpoint.read_stored(name, read)
        if isinstance(weight, QuantisedWeight):
            if keep_quantised is not None and (is_block_linear(name, weight.shape) or not weight.has_numbers):
                own_layer = keep_quantised(layer, weight)
                if own_layer is not None:
                    own_layer.to(device).bias = layer.bias
                    _replace_layer(model, layer_name, own_layer)
                    continue
            weight = weight.dequantised()
        if make_linear is not None and is_block_linear(name, tuple(weight.shape)):
            own_layer = make_linear(layer, weight.to(device))
            own_layer.bias = layer.bias
            _replace_layer(model, layer_name, own_layer)
            continue
        if store is None:
            tensor = cast_weight(weight, dtypes[name]).to(device)
        else:
            tensor = store(layer, parameter_name, weight, dtypes[name])
        setattr(layer, parameter_name, nn.Parameter(tensor, requires_grad=False))
    return model.eval()


def parameter_dtypes(model: HeliosTransformer, weight_dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What each parameter is stored in: the Linear weights of the blocks in `weight_dtype`, if given."""
    return {
        name: weight_dtype if weight_dtype and is_block_linear(name, parameter.shape) else parameter.dtype
        for name, parameter in model.named_parameters()
    }


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is one of the weights that take nearly all of the memory."""
    return name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2


def _replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(parent), own_name, layer)
