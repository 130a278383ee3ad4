"""Which of ComfyUI's attentions Helios calls."""

from collections.abc import Callable

import torch
from comfy.cli_args import args
from comfy.ldm.modules import attention


def chosen_attention(device: torch.device) -> Callable[..., torch.Tensor]:
    """What the user or ComfyUI has chosen for `device`; on a CPU for which nobody has, torch's own.

    There ComfyUI falls back to its sub-quadratic attention, which is slower, and whose parts, and so whose rounding,
    depend on how much memory is free. A model's `optimized_attention_override` acts on either.
    """
    chosen = attention.optimized_attention
    is_fallback = chosen is attention.attention_sub_quad and not args.use_quad_cross_attention
    return attention.attention_pytorch if is_fallback and device.type == "cpu" else chosen
