"""The shape of the network. The defaults are the published 14B model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

MAX_PROMPT_TOKENS = 512  # rows of text embedding; padding rows are attended to, so the count matters

# head_dim 128 is the only one published; its split over (t, y, x) cannot be read off tensor shapes.
_HEAD_DIM = 128


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the Helios transformer. The defaults are the published 14B model.

    `rope_dim` is the split of a head's channels over the axes (t, y, x); all even, their sum is
    `attention_head_dim`. `is_amplify_history` adds one learned key scale for the history rows, per head
    or as one scalar (`history_scale_mode`). Raises ValueError for shapes that contradict each other.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    eps: float = 1e-6
    rope_dim: tuple[int, int, int] = (44, 42, 42)
    rope_theta: float = 10000.0
    is_amplify_history: bool = False
    history_scale_mode: Literal["per_head", "scalar"] = "per_head"

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        object.__setattr__(self, "rope_dim", tuple(self.rope_dim))
        if sum(self.rope_dim) != self.attention_head_dim or any(dim % 2 for dim in self.rope_dim):
            raise ValueError(
                f"rope_dim {self.rope_dim} must be even numbers that add up to "
                f"attention_head_dim {self.attention_head_dim}"
            )
        if self.history_scale_mode not in ("per_head", "scalar"):
            raise ValueError(f"history_scale_mode is {self.history_scale_mode!r}; allowed: 'per_head' or 'scalar'")

    @property
    def inner_dim(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_diffusers(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Read the `config.json` that diffusers writes beside the weights.

        Raises ValueError when the file describes a network without one of the parts that make Helios
        (memory patches, history at t=0, guidance attention), which this code does not build.
        """
        required = {
            "guidance_cross_attn": True,
            "zero_history_timestep": True,
            "has_multi_term_memory_patch": True,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "added_kv_proj_dim": None,
        }
        for name, value in required.items():
            if config.get(name, value) != value:
                raise ValueError(f"transformer config has {name}={config[name]!r}; Helios needs {name}={value!r}")
        known = {f.name for f in fields(cls)}
        values = {name: value for name, value in config.items() if name in known}
        if values.get("out_channels", 0) is None:
            values["out_channels"] = values.get("in_channels", cls.in_channels)
        return cls(**values)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> TransformerConfig:
        """Infer the config from tensor shapes under the diffusers names (checkpoint layouts are renamed first).

        The head size and its RoPE split leave no trace in the shapes: 128 and (44, 42, 42) are assumed.
        Raises ValueError when the width is no multiple of 128; such a model needs its `config.json`.
        """
        inner_dim, in_channels, *patch_size = shapes["patch_embedding.weight"]
        if inner_dim % _HEAD_DIM:
            raise ValueError(
                f"cannot infer the number of heads: width {inner_dim} is not a multiple of {_HEAD_DIM}. "
                "Put the model's config.json beside the weights"
            )
        history_key_scale = shapes.get("blocks.0.attn1.history_key_scale")
        num_heads = inner_dim // _HEAD_DIM
        return cls(
            patch_size=tuple(patch_size),
            num_attention_heads=num_heads,
            attention_head_dim=_HEAD_DIM,
            in_channels=in_channels,
            out_channels=shapes["proj_out.weight"][0] // math.prod(patch_size),
            text_dim=shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            freq_dim=shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            ffn_dim=shapes["blocks.0.ffn.net.0.proj.weight"][0],
            num_layers=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
            is_amplify_history=history_key_scale is not None,
            history_scale_mode="scalar" if history_key_scale == (1,) and num_heads > 1 else "per_head",
        )
