"""How the noise level steers the network: adaptive layer norm with two rows.

The history is clean, so its tokens are always modulated as at t=0; only the noisy tokens follow the sampler's t.
Hence there are just two distinct modulation rows for a video, whatever the number of tokens. Everything here
is computed in fp32 and rounded to the model's dtype at the end.
"""

from __future__ import annotations

import math
from enum import Enum, auto

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module


def sinusoid(timestep: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Embed `timestep` (R,), on the scale 0..1000, as (R, num_channels) fp32: cosines, then sines."""
    half = num_channels // 2
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=timestep.device, dtype=torch.float32))
    angle = timestep.float()[:, None] * frequencies
    return torch.cat((angle.cos(), angle.sin()), dim=-1)


class TimestepEmbedder(nn.Module):
    """Sinusoid -> Linear -> SiLU -> Linear, kept in fp32."""

    def __init__(self, freq_dim: int, dim: int, operations, device) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.linear_1 = operations.Linear(freq_dim, dim, dtype=torch.float32, device=device)
        self.linear_2 = operations.Linear(dim, dim, dtype=torch.float32, device=device)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid(timestep, self.freq_dim))))


class TextEmbedder(nn.Module):
    """Text encoder rows (B, L, text_dim) -> (B, L, D)."""

    def __init__(self, text_dim: int, dim: int, operations, dtype, device) -> None:
        super().__init__()
        self.linear_1 = operations.Linear(text_dim, dim, dtype=dtype, device=device)
        self.linear_2 = operations.Linear(dim, dim, dtype=dtype, device=device)

    def forward(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(prompt_embeds), approximate="tanh"))


class ConditionEmbedder(nn.Module):
    """Embeds noise level and text."""

    def __init__(self, config, operations, dtype, device) -> None:
        super().__init__()
        dim = config.inner_dim
        self.dtype = dtype
        self.time_embedder = TimestepEmbedder(config.freq_dim, dim, operations, device)
        self.time_proj = operations.Linear(dim, 6 * dim, dtype=dtype, device=device)
        self.text_embedder = TextEmbedder(config.text_dim, dim, operations, dtype, device)

    def embed_timestep(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`timestep` (B,) -> embedding of the noisy rows (B, D), and modulation rows (1 + B, 6, D).

        Modulation row 0 is for the history (t=0), row 1 + b for the noisy tokens of batch element b.
        """
        levels = torch.cat((timestep.new_zeros(1), timestep))
        embedding = self.time_embedder(levels).to(self.dtype)
        rows = self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))
        return embedding[1:], rows


class Work(Enum):
    """How a forward computes: decided once and handed down. FRESH and IN_PLACE give the same bits."""

    PLAIN = auto()  # the formulas as they are, which autograd needs and a compiler fuses by itself
    FRESH = auto()  # in as few passes as torch has for it, into tensors of its own
    IN_PLACE = auto()  # likewise, and a result takes the place of what nobody needs any more


def decide_work(model: nn.Module, allow_in_place: bool = True) -> Work:
    """IN_PLACE only where nobody else can hold a tensor that is written over: no hook on any layer of `model`, and no
    layer's forward replaced by another (bypassed LoRAs do so)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Work.PLAIN
    hooked = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    if not allow_in_place or hooked or any(map(_is_watched, model.modules())):
        return Work.FRESH
    return Work.IN_PLACE


def _is_watched(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def norm_with_rows(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float, work: Work = Work.PLAIN
) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift for x (B, N, D); `shift` and `scale` are rows (B, D).

    That is a layer norm with a weight and a bias for each sample, which torch does in one pass. A compiler fuses the
    formula by itself, and for training's batches it is the shorter way.
    """
    if work is Work.PLAIN:
        normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
        return (normed * (1 + scale[:, None]) + shift[:, None]).to(x.dtype)
    samples = [
        F.layer_norm(sample.float(), sample.shape[-1:], 1 + scale[index], shift[index], eps).to(x.dtype)
        for index, sample in enumerate(x.split(1))
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def modulated_norm(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, num_history: int, eps: float, work: Work = Work.PLAIN
) -> torch.Tensor:
    """As above with rows (1 + B, D): row 0 for the history of every sample, row 1 + b for the noisy tokens of b."""
    noisy = norm_with_rows(x[:, num_history:], shift[1:], scale[1:], eps, work)
    if num_history == 0:
        return noisy
    past_shift, past_scale = (rows[:1].expand(x.shape[0], -1) for rows in (shift, scale))
    return torch.cat((norm_with_rows(x[:, :num_history], past_shift, past_scale, eps, work), noisy), dim=1)


def add_gated(
    x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor, num_history: int, work: Work = Work.PLAIN
) -> torch.Tensor:
    """x + gate * update for x and update (B, N, D); `gate` are rows (1 + B, D)."""
    past, now = gate[:1, None], gate[1:, None]
    if work is Work.PLAIN:
        gated = torch.cat((update[:, :num_history] * past, update[:, num_history:] * now), dim=1)
        return (x.float() + gated).to(x.dtype)
    if work is Work.FRESH:
        x = x.clone()
    x[:, :num_history].addcmul_(update[:, :num_history], past)
    x[:, num_history:].addcmul_(update[:, num_history:], now)
    return x


def add_to_noisy(x: torch.Tensor, update: torch.Tensor, num_history: int, work: Work = Work.PLAIN) -> torch.Tensor:
    """x (B, N, D) with `update` (B, N - num_history, D) added to its noisy rows."""
    if work is not Work.IN_PLACE:
        return torch.cat((x[:, :num_history], x[:, num_history:] + update), dim=1)
    x[:, num_history:].add_(update)
    return x
