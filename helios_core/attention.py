"""The two attentions of a Helios block: over all tokens, and from the noisy tokens to the text."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .config import TransformerConfig
from .rope import Rotary, rotate

# attention(query, key, value) -> out, each (B, heads, N, head_dim); full, no mask.
AttentionFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# Amplified history keys are scaled by a learned factor between 1 and this.
MAX_HISTORY_KEY_SCALE = 10.0


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

    def _attend(self, query, key, value, attention: AttentionFunction) -> torch.Tensor:
        out = attention(*(x.transpose(1, 2) for x in (query, key, value)))
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class SelfAttention(_Attention):
    """Full attention over [long | mid | short | noisy]: the history rows see the noisy rows as well."""

    def __init__(self, config: TransformerConfig, operations, dtype, device) -> None:
        super().__init__(config, operations, dtype, device)
        if config.is_amplify_history:
            num_scales = config.num_attention_heads if config.history_scale_mode == "per_head" else 1
            self.history_key_scale = nn.Parameter(torch.ones(num_scales, dtype=torch.float32, device=device))
        else:
            self.history_key_scale = None

    def forward(self, x: torch.Tensor, rotary: Rotary, num_history: int, attention: AttentionFunction) -> torch.Tensor:
        """x (B, N, D) -> (B, N, D)."""
        query = rotate(self._heads(self.norm_q(self.to_q(x))), rotary)
        key = rotate(self._heads(self.norm_k(self.to_k(x))), rotary)
        value = self._heads(self.to_v(x))
        if self.history_key_scale is not None and num_history:
            key = self._amplify_history(key, num_history)
        return self._attend(query, key, value, attention)

    def _amplify_history(self, key: torch.Tensor, num_history: int) -> torch.Tensor:
        gain = torch.sigmoid(self.history_key_scale.to(device=key.device, dtype=torch.float32))
        scale = 1.0 + gain * (MAX_HISTORY_KEY_SCALE - 1.0)
        history = (key[:, :num_history] * scale.view(1, 1, -1, 1)).to(key.dtype)
        return torch.cat((history, key[:, num_history:]), dim=1)


class GuidanceAttention(_Attention):
    """Cross-attention of the noisy rows to the text (the paper's guidance attention).

    The history is never asked what the prompt says: it is what has already happened.
    """

    def key_value(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Text tokens (B, L, D) -> key and value (B, L, heads, head_dim). They depend on the prompt alone."""
        return self._heads(self.norm_k(self.to_k(text))), self._heads(self.to_v(text))

    def forward(
        self, x: torch.Tensor, key_value: tuple[torch.Tensor, torch.Tensor], attention: AttentionFunction
    ) -> torch.Tensor:
        """Noisy rows x (B, N, D) -> (B, N, D)."""
        return self._attend(self._heads(self.norm_q(self.to_q(x))), *key_value, attention)
