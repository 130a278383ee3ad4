"""The two attentions of a Helios block: over all tokens, and from the noisy tokens to the text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .config import TransformerConfig
from .modulation import Work
from .rope import Rotary, rotate, rows_of

# attention(query, key, value) -> out, each (B, heads, N, head_dim); full, no mask.
AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Amplified history keys are scaled by a learned factor between 1 and this.
MAX_HISTORY_KEY_SCALE = 10.0

# Tokens whose query and key are normalised and rotated at a time: as many as stay in a processor's cache, and enough
# to keep a GPU busy.
CPU_ROWS, GPU_ROWS = 256, 4096


class _Attention(nn.Module):
    """Projections shared by both: q, k normalised by RMS over all heads together, then split into heads."""

    def __init__(self, config: TransformerConfig, operations, dtype, device) -> None:
        super().__init__()
        dim = config.inner_dim
        self.num_heads = config.num_attention_heads
        linear = {"dtype": dtype, "device": device}
        self.to_q = operations.Linear(dim, dim, **linear)
        self.to_k = operations.Linear(dim, dim, **linear)
        self.to_v = operations.Linear(dim, dim, **linear)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim, **linear)])
        self.norm_q = operations.RMSNorm(dim, eps=config.eps, **linear)
        self.norm_k = operations.RMSNorm(dim, eps=config.eps, **linear)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _normed_heads(self, norm: nn.Module, x: torch.Tensor, work: Work, rotary: Rotary | None = None) -> torch.Tensor:
        """x (B, N, D) -> (B, N, heads, head_dim), normalised and, with a table, rotated. IN_PLACE: takes x's place."""

        def of_rows(first: int, last: int | None) -> torch.Tensor:
            heads = self._heads(norm(x[:, first:last]))
            return heads if rotary is None else rotate(heads, rows_of(rotary, first, last))

        if work is Work.PLAIN:
            return of_rows(0, None)
        out = x if work is Work.IN_PLACE else torch.empty_like(x)
        # Norm and rotation make several tensors, most of them in fp32: they stay small when the rows are few.
        num_rows = CPU_ROWS if x.device.type == "cpu" else GPU_ROWS
        for first in range(0, x.shape[1], num_rows):
            out[:, first : first + num_rows] = of_rows(first, first + num_rows).flatten(2)
        return self._heads(out)

    def project(self, mixed: torch.Tensor) -> torch.Tensor:
        """What `mix` gives (B, N, D) -> (B, N, D)."""
        return self.to_out[0](mixed)


def mix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention: AttentionFunction) -> torch.Tensor:
    """Attention of query, key and value (B, N, heads, head_dim) -> (B, N, D)."""
    return attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2).flatten(2)


class SelfAttention(_Attention):
    """Full attention over [long | mid | short | noisy]: the history rows see the noisy rows as well.

    It is done in three steps, `query_key_value`, `mix` and `project`, so that what one no longer needs can be let go.
    """

    def __init__(self, config: TransformerConfig, operations, dtype, device) -> None:
        super().__init__(config, operations, dtype, device)
        if config.is_amplify_history:
            num_scales = config.num_attention_heads if config.history_scale_mode == "per_head" else 1
            self.history_key_scale = nn.Parameter(torch.ones(num_scales, dtype=torch.float32, device=device))
        else:
            self.history_key_scale = None

    def query_key_value(
        self, x: torch.Tensor, rotary: Rotary, num_history: int, *, first_query: int = 0, work: Work = Work.PLAIN
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x (B, N, D) -> query, key and value, each (B, N, heads, head_dim); queries only of the rows from
        `first_query` on."""
        query = self._normed_heads(self.norm_q, self.to_q(x[:, first_query:]), work, rows_of(rotary, first_query))
        key = self._normed_heads(self.norm_k, self.to_k(x), work, rotary)
        if self.history_key_scale is not None and num_history:
            key = self._amplify_history(key, num_history, work)
        return query, key, self._heads(self.to_v(x))

    def _amplify_history(self, key: torch.Tensor, num_history: int, work: Work) -> torch.Tensor:
        gain = torch.sigmoid(self.history_key_scale.to(device=key.device, dtype=torch.float32))
        scale = 1.0 + gain * (MAX_HISTORY_KEY_SCALE - 1.0)
        scale = scale.view(1, 1, -1, 1)
        if work is not Work.PLAIN:  # the key is our own: see `_normed_heads`
            key[:, :num_history].mul_(scale)
            return key
        return torch.cat(((key[:, :num_history] * scale).to(key.dtype), key[:, num_history:]), dim=1)


class GuidanceAttention(_Attention):
    """Cross-attention of the noisy rows to the text (the paper's guidance attention).

    The history is never asked what the prompt says: it is what has already happened.
    """

    def key_value(self, text: torch.Tensor, work: Work = Work.PLAIN) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens (B, L, D) -> key and value (B, L, heads, head_dim). They depend on the prompt alone."""
        return self._normed_heads(self.norm_k, self.to_k(text), work), self._heads(self.to_v(text))

    def forward(
        self,
        x: torch.Tensor,
        key_value: tuple[torch.Tensor, torch.Tensor],
        attention: AttentionFunction,
        work: Work = Work.PLAIN,
    ) -> torch.Tensor:
        """Noisy rows x (B, N, D) -> (B, N, D)."""
        return self.project(mix(self._normed_heads(self.norm_q, self.to_q(x), work), *key_value, attention))
