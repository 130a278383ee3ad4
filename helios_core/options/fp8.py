"""Linear layers that multiply in fp8 (e4m3fn), with a scale for each row of the weight and for each token.

A GPU does so at twice the speed of bf16, and the weights take half of its memory. The scales are taken out of the
product again, so one token or output with large values costs the others no precision, as one scale for a whole tensor
would. What stays is the rounding of each number to three bits behind the point.
"""

from __future__ import annotations

import torch
from torch import nn

from ..model.config import TransformerConfig

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max
_ROWS = 4096  # of tokens whose fp32 quotients exist at a time


class Fp8Linear(nn.Module):
    """A Linear over `weight` (out_features, in_features), kept as fp8 `weight` and fp32 `scale` (out_features, 1).

    `bias` is set by who loads the model. Nothing of it can be trained.
    """

    scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        data, scale = self.quantise(weight)
        self.weight = nn.Parameter(data, requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", None)

    @staticmethod
    def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """rows (R, K) -> fp8 numbers (R, K) and fp32 scales (R, 1), their product being the rows nearly: the largest
        number of each row becomes the largest of fp8."""
        largest = torch.linalg.vector_norm(rows, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
        scale = largest.clamp_min(torch.finfo(torch.float32).tiny * _LARGEST) / _LARGEST
        data = torch.empty(rows.shape, dtype=FP8, device=rows.device)
        for first in range(0, len(rows), _ROWS):
            part = slice(first, first + _ROWS)
            data[part] = rows[part] / scale[part]
        return data, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in x's dtype."""
        data, scale = self.quantise(x.reshape(-1, x.shape[-1]))
        product = _product(data, self.weight, scale, self.scale, self.bias, x.dtype)
        return product.view(*x.shape[:-1], -1).to(x.dtype)


def _product(data, weight, scale, weight_scale, bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """(R, K) and (N, K) in fp8 with scales (R, 1) and (N, 1) -> (R, N); in bf16 on a GPU, which knows no other here."""
    dtype = dtype if data.device.type == "cpu" else torch.bfloat16
    return torch._scaled_mm(
        data,
        weight.t(),
        scale_a=scale,
        scale_b=weight_scale.t(),
        bias=None if bias is None else bias.to(dtype),
        out_dtype=dtype,
        # The fast way keeps some 14 bits of the sums, too few for the thousands of products in a row of the model.
        use_fast_accum=False,
    )


def fp8_linear(linear: nn.Linear, weight: torch.Tensor) -> Fp8Linear:
    """For `load_transformer`: the layer in the place of `linear`, whose weight is read."""
    return Fp8Linear(weight.float())  # it may come in fp8, which torch does no arithmetic in


def check_fp8_products(device: torch.device | str, config: TransformerConfig) -> None:
    """Raise ValueError, before anything is loaded, when the device has no fp8 products for a model of these sizes.

    It is asked with small products: which devices, sizes and versions of torch have them is not known otherwise.
    """
    for size in (config.inner_dim, config.ffn_dim):
        try:
            data, scale = (torch.ones(shape, device=device) for shape in ((16, size), (16, 1)))
            _product(data.to(FP8), data.to(FP8), scale, scale, None, torch.bfloat16)
        except RuntimeError as fault:
            raise ValueError(
                f"device {str(device)!r} with torch {torch.__version__} cannot multiply fp8 matrices of {size} columns "
                "with a scale for each row. That takes an NVIDIA GPU of compute capability 8.9 or more (RTX 40 series, "
                f"L4, H100 and later) or a CPU with torch 2.13; leave out --fp8-matmul here. torch said: {fault}"
            ) from fault
