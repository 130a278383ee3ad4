"""What a run costs, computed from sizes alone: tokens, floating point operations, memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .config import (
    LATENT_FRAMES_PER_CHUNK,
    MAX_PROMPT_TOKENS,
    VAE_SPATIAL_STRIDE,
    MemoryConfig,
    SamplingSettings,
    TransformerConfig,
)


@dataclass(frozen=True)
class StageCost:
    """One forward in one pyramid stage: noisy and memory tokens, and floating point operations."""

    noisy_tokens: int
    memory_tokens: int
    flops: int


def memory_tokens(config: TransformerConfig, width: int, height: int, memory: MemoryConfig | None = None) -> int:
    """Tokens of long, mid and short memory together at width x height pixels."""
    memory = memory or MemoryConfig()
    long, mid, short = memory.window_sizes
    short += memory.keep_first_frame
    grid = (height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE)
    total = 0
    for num_frames, pool in ((long, 4), (mid, 2), (short, 1)):
        sizes = zip((num_frames, *grid), config.patch_size, strict=True)
        frames, rows, columns = (-(-size // (pool * patch)) for size, patch in sizes)
        total += frames * rows * columns
    return total


def noisy_tokens(config: TransformerConfig, width: int, height: int, stage: int, num_stages: int) -> int:
    """Noisy tokens of a chunk in `stage` of `num_stages` at width x height pixels."""
    patch_t, patch_h, patch_w = config.patch_size
    shrink = VAE_SPATIAL_STRIDE * 2 ** (num_stages - 1 - stage)
    rows, columns = height // shrink // patch_h, width // shrink // patch_w
    return LATENT_FRAMES_PER_CHUNK // patch_t * rows * columns


def forward_flops(config: TransformerConfig, num_noisy: int, num_memory: int) -> int:
    """Operations (a multiply-add counts two) of the blocks in one forward, the prompt's keys and values at hand."""
    dim, tokens = config.inner_dim, num_noisy + num_memory
    self_attention = 8 * tokens * dim**2 + 4 * tokens**2 * dim
    guidance_attention = 4 * num_noisy * dim**2 + 4 * num_noisy * MAX_PROMPT_TOKENS * dim
    feed_forward = 4 * tokens * dim * config.ffn_dim
    return config.num_layers * (self_attention + guidance_attention + feed_forward)


def stage_costs(config: TransformerConfig, width: int, height: int, num_stages: int) -> list[StageCost]:
    """The cost of one forward in each stage."""
    past = memory_tokens(config, width, height)
    costs = []
    for stage in range(num_stages):
        noisy = noisy_tokens(config, width, height, stage, num_stages)
        costs.append(StageCost(noisy, past, forward_flops(config, noisy, past)))
    return costs


def chunk_forwards(settings: SamplingSettings, chunk_index: int = 1) -> list[int]:
    """Forwards of the model in each stage of a chunk."""
    forwards = [steps * (2 if settings.guided else 1) for steps in settings.steps_in_chunk(chunk_index)]
    if settings.guided and settings.cfg_zero_star and settings.zero_init:
        forwards[0] -= 2 * min(settings.zero_steps + 1, settings.steps_in_chunk(chunk_index)[0])
    return forwards


def weight_bytes(config: TransformerConfig, dtype: torch.dtype) -> int:
    """Bytes of all weights when kept in `dtype`."""
    return num_parameters(config) * dtype.itemsize


def num_parameters(config: TransformerConfig) -> int:
    """Number of weights, counted from the shapes."""
    dim, patch = config.inner_dim, config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    attention = 4 * (dim * dim + dim) + 2 * dim
    block = 2 * attention + 2 * dim + 2 * dim * config.ffn_dim + config.ffn_dim + dim + 6 * dim
    if config.is_amplify_history:
        block += config.num_attention_heads if config.history_scale_mode == "per_head" else 1
    patches = sum(config.in_channels * patch * pool**3 * dim + dim for pool in (1, 1, 2, 4))
    time = config.freq_dim * dim + dim + dim * dim + dim + 6 * dim * dim + 6 * dim
    text = config.text_dim * dim + dim + dim * dim + dim
    out = 2 * dim + (dim + 1) * config.out_channels * patch
    return config.num_layers * block + patches + time + text + out


def activation_bytes(
    config: TransformerConfig, width: int, height: int, dtype: torch.dtype, *, num_prompts: int = 1
) -> int:
    """Peak bytes besides the weights while sampling: one block at the last stage, and what is kept between steps."""
    size, dim = dtype.itemsize, config.inner_dim
    tokens = memory_tokens(config, width, height) + noisy_tokens(config, width, height, 0, 1)
    # Residual stream, its norm, q, k and v, and the fp32 copies while one of them is rotated.
    attention = tokens * dim * (5 * size + 3 * 4)
    # Residual stream, its norm, and the hidden layer before and after the activation.
    feed_forward = tokens * (2 * dim + 2 * config.ffn_dim) * size
    # Residual stream and update, and the fp32 gated sum.
    residual = tokens * dim * (2 * size + 3 * 4)
    prompt = num_prompts * MAX_PROMPT_TOKENS * dim * size * (2 * config.num_layers + 1)
    rotary = tokens * config.attention_head_dim * 4 * 2
    memory = memory_tokens(config, width, height) * dim * size
    return max(attention, feed_forward, residual) + prompt + rotary + memory
