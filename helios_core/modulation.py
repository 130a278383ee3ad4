"""How the noise level steers the network: adaptive layer norm with two rows.

The history is clean, so its tokens are always modulated as at t=0; only the noisy tokens follow the sampler's t.
Hence there are just two distinct modulation rows for a video, whatever the number of tokens. Everything here
is computed in fp32 and rounded to the model's dtype at the end.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


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


def _by_rows(x: torch.Tensor, num_history: int, function, *rows: torch.Tensor) -> torch.Tensor:
    """Apply `function(tokens, *row)` to the history tokens with row 0 and to the noisy tokens with rows 1..B."""
    noisy = function(x[:, num_history:], *(row[1:, None] for row in rows))
    if num_history == 0:
        return noisy
    return torch.cat((function(x[:, :num_history], *(row[:1, None] for row in rows)), noisy), dim=1)


def modulated_norm(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, num_history: int, eps: float
) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift for x (B, N, D); `shift` and `scale` are rows (1 + B, D)."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return _by_rows(normed, num_history, lambda n, shift, scale: n * (1 + scale) + shift, shift, scale).to(x.dtype)


def gated_residual(x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor, num_history: int) -> torch.Tensor:
    """x + gate * update for x and update (B, N, D); `gate` are rows (1 + B, D)."""
    gated = _by_rows(update, num_history, lambda u, gate: u.float() * gate, gate)
    return (x.float() + gated).to(x.dtype)
