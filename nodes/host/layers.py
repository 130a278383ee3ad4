"""Linear layers that keep their weight quantised: ComfyUI's own for its formats, one of ours for GGUF blocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management
import comfy.ops
import torch
import torch.nn.functional as F
from torch import nn

from ...helios_core.checkpoint.quant_formats import FP8_FORMATS, QuantFormat, format_of, make_marker
from ...helios_core.checkpoint.quantised import QuantisedWeight, dequantise_blocks


def host_formats() -> frozenset[str]:
    """The quantised formats that this ComfyUI has layers for. None before its version 0.4."""
    if not hasattr(comfy.ops, "mixed_precision_ops"):
        return frozenset()
    from comfy.quant_ops import QUANT_ALGOS

    return frozenset(QUANT_ALGOS)


@dataclass(frozen=True)
class QuantisedLayers:
    """Gives `load_transformer` a layer, still without bias, for each weight that stays quantised.

    With `only_dtype` weights that are stored otherwise do not stay so, unless nobody but ComfyUI can read them. With
    `fast` fp8, mxfp8 and nvfp4 weights are multiplied in the few bits that they are stored in, where the card
    `load_device` can; without, each is turned into numbers when it is used. ComfyUI's layers for the formats stored in
    int8 always multiply in few bits, as those files mean it.
    """

    compute_dtype: torch.dtype
    load_device: torch.device
    only_dtype: torch.dtype | None
    fast: bool

    def __call__(self, linear: nn.Linear, weight: QuantisedWeight) -> nn.Module | None:
        if weight.has_numbers and self.only_dtype not in (None, weight.data.dtype):
            return None
        sizes = linear.in_features, linear.out_features
        if weight.block_format is not None:
            return BlockLinear(*sizes, weight)
        quant = weight.quant or QuantFormat(format_of(weight.data.dtype), {})
        is_fp8 = quant.name in FP8_FORMATS
        if is_fp8 and weight.scale.numel() != 1:  # one scale for each row is more than ComfyUI's fp8 layers know
            return None
        if quant.name in host_formats():
            return self._mixed_precision(*sizes, weight, quant)
        if is_fp8 and hasattr(comfy.ops, "scaled_fp8_ops"):
            return self._scaled_fp8(*sizes, weight, self._is_fast(quant.name))
        return None

    def _is_fast(self, name: str) -> bool:
        """Whether to multiply in the few bits of that format."""
        name = "fp8" if name in FP8_FORMATS else name
        supports = getattr(comfy.model_management, f"supports_{name}_compute", None)
        return self.fast and (supports is None or supports(self.load_device))

    def _mixed_precision(self, num_in: int, num_out: int, weight: QuantisedWeight, quant: QuantFormat) -> nn.Module:
        """ComfyUI from 0.4 on: a layer takes its format and scales from its part of the state dict."""
        exact = not self._is_fast(quant.name)
        operations = comfy.ops.mixed_precision_ops({}, self.compute_dtype, full_precision_mm=exact)
        layer = operations.Linear(num_in, num_out, bias=False, device=weight.data.device)
        state = {
            **weight.parts,
            "weight": weight.data,
            "comfy_quant": make_marker({**quant.settings, "format": quant.name}),
        }
        if weight.scale is not None:
            # For each row ComfyUI wants a column.
            scale = weight.scale
            state["weight_scale"] = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
        layer.load_state_dict(state, strict=False)
        return layer

    def _scaled_fp8(self, num_in: int, num_out: int, weight: QuantisedWeight, fast: bool) -> nn.Module:
        """ComfyUI before: the scale is a parameter of the layer."""
        operations = comfy.ops.scaled_fp8_ops(fp8_matrix_mult=fast)
        layer = operations.Linear(num_in, num_out, bias=False, device="meta", dtype=weight.data.dtype)
        layer.weight = nn.Parameter(weight.data, requires_grad=False)
        layer.scale_weight = nn.Parameter(weight.scale.reshape(()), requires_grad=False)
        return layer


class BlockLinear(nn.Module, comfy.ops.CastWeightBiasOp):
    """A Linear whose weight is GGUF blocks, turned into numbers each time the layer is used.

    `weight` (rows, bytes per row) is moved between devices by ComfyUI like any other. Patches (LoRA) are functions of
    the numbers, so they wait in `number_functions` (see HeliosPatching) and nothing is ever rounded to blocks again.
    """

    comfy_cast_weights = True

    def __init__(self, in_features: int, out_features: int, weight: QuantisedWeight) -> None:
        super().__init__()
        self.in_features, self.out_features, self.block_format = in_features, out_features, weight.block_format
        self.weight = nn.Parameter(weight.data, requires_grad=False)
        self.register_parameter("bias", None)
        # ComfyUI's own lists, of which it would apply the first to the bytes: see `number_functions`.
        self.weight_function, self.bias_function = [], []
        self.number_functions = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features)."""
        with _brought(self, x) as (blocks, bias):
            weight = dequantise_blocks(blocks, self.block_format)
            for patch in self.number_functions:
                weight = patch(weight)
            return F.linear(x, weight.to(x.dtype), bias)


@contextmanager
def _brought(layer: BlockLinear, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """The layer's bytes and its patched bias on x's device, the bias in x's dtype."""
    if hasattr(comfy.ops, "CastBiasWeightContext"):  # which also knows dynamic VRAM and prefetched weights
        own = {"dtype": torch.uint8, "device": x.device, "bias_dtype": x.dtype, "offloadable": True}
        with comfy.ops.CastBiasWeightContext(layer, **own) as brought:
            yield brought
        return
    cast = comfy.model_management.cast_to_device
    bias = None
    if layer.bias is not None:
        bias = cast(layer.bias, x.device, x.dtype, copy=bool(layer.bias_function))
        for patch in layer.bias_function:
            bias = patch(bias)
    yield cast(layer.weight, x.device, torch.uint8), bias
