"""What a memory holds, in pictures and in numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from ..geometry import LATENT_FRAMES_PER_CHUNK, VAE_TEMPORAL_STRIDE
from ..memory.memory import HeliosMemory
from ..model.config import TransformerConfig
from ..model.patchify import num_tokens
from ..sampling.settings import SamplingSettings
from .cost import estimate_memory, noisy_tokens
from .drawings import Strip

# to_frames(latents (1, C, T, h, w) in model space, one chunk or one frame) -> frames (n, H, W, 3) in [0, 1]
ToFrames = Callable[[torch.Tensor], torch.Tensor]


def memory_strips(memory: HeliosMemory, config: TransformerConfig, to_frames: ToFrames) -> list[Strip]:
    """Anchor, long, mid and short memory of the first video in the batch, as pictures from the oldest to the latest."""
    frames = memory_frames(memory, to_frames)
    long, mid, _ = memory.config.window_sizes
    tokens = token_counts(memory, config)
    strips = []
    if memory.config.keep_first_frame:
        anchor = None if memory.anchor is None else to_frames(memory.anchor[:1])[0]
        strips.append(Strip("Anchor", f"the frame that everything stays close to, {tokens['anchor']} tokens", [anchor]))
    parts = (
        ("Long memory", "long", frames[:long], "patches 4x4x4 times as large"),
        ("Mid memory", "mid", frames[long : long + mid], "patches 2x2x2 times as large"),
        ("Short memory", "short", frames[long + mid :], "full detail"),
    )
    for title, name, shown, detail in parts:
        count = f"{len(shown)} latent frame{'s' if len(shown) > 1 else ''}"
        strips.append(Strip(title, f"{count}, {tokens[name]} tokens, {detail}", shown))
    return strips


def memory_frames(memory: HeliosMemory, to_frames: ToFrames) -> list[torch.Tensor | None]:
    """A picture (H, W, 3) of each latent frame from the oldest to the latest; None where there is no past yet.

    Latents are decoded in the chunks they were made in, as far as the memory holds all of a chunk: a latent frame
    inside a chunk stands for the last of its 4 frames. Others are decoded alone.
    """
    latents = memory.frames[:1]
    is_past = latents.flatten(3).abs().amax(dim=(0, 1, 3)) > 0
    pictures: list[torch.Tensor | None] = []
    end = latents.shape[2]
    while end > 0:
        start = max(0, end - LATENT_FRAMES_PER_CHUNK)
        group = latents[:, :, start:end]
        if end - start == LATENT_FRAMES_PER_CHUNK and is_past[start:end].all():
            shown = list(to_frames(group))
            # A VAE gives 1 + 4k frames of a chunk; latents turned into colours directly are one frame each.
            stride = VAE_TEMPORAL_STRIDE if len(shown) > LATENT_FRAMES_PER_CHUNK else 1
            pictures = shown[::stride] + pictures
        else:
            alone = [to_frames(latents[:, :, i : i + 1])[0] if is_past[i] else None for i in range(start, end)]
            pictures = alone + pictures
        end = start
    return pictures


def token_counts(memory: HeliosMemory, config: TransformerConfig) -> dict[str, int]:
    """Tokens that the transformer makes of each part of the memory of one video."""
    window = memory.window()
    anchor = int(memory.config.keep_first_frame)
    parts = {
        "anchor": (window.short[:, :, :anchor], 1),
        "long": (window.long, 4),
        "mid": (window.mid, 2),
        "short": (window.short[:, :, anchor:], 1),
    }
    return {
        name: num_tokens(latents.shape[2:], config.patch_size, pool)
        for name, (latents, pool) in parts.items()
    }


def describe_memory(
    memory: HeliosMemory,
    config: TransformerConfig,
    settings: SamplingSettings,
    *,
    dtype: torch.dtype,
    weight_bytes: int,
) -> dict[str, Any]:
    """The memory in numbers, and what the next chunk costs with a model of this config; sizes in bytes.

    JSON-able. `dtype` is what the model computes in, `weight_bytes` what its weights take.
    """
    tokens = token_counts(memory, config)
    past = sum(tokens.values())
    num_stages = settings.schedule.num_stages
    estimate = estimate_memory(config, settings, memory.width, memory.height, dtype=dtype, weight_bytes=weight_bytes)
    stages = []
    for stage, steps in enumerate(settings.steps_in_chunk(memory.chunk_index)):
        noisy = noisy_tokens(config, memory.width, memory.height, stage, num_stages)
        stages.append({"stage": stage, "steps": steps, "noisy_tokens": noisy, "all_tokens": noisy + past})
    return {
        "width": memory.width,
        "height": memory.height,
        "videos": memory.batch_size,
        "chunks_made": memory.chunk_index,
        "provenance": asdict(memory.provenance),
        "history_sizes": list(memory.config.history_sizes),
        "has_anchor": memory.anchor is not None,
        "memory_tokens": {**tokens, "all": past},
        "stages_of_next_chunk": stages,
        "bytes": {
            "this_memory": memory.frames.nbytes + (0 if memory.anchor is None else memory.anchor.nbytes),
            **asdict(estimate),
        },
    }
