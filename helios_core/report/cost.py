"""What a run costs, computed from sizes alone: tokens, floating point operations, memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..geometry import LATENT_FRAMES_PER_CHUNK, VAE_SPATIAL_STRIDE
from ..memory.config import MemoryConfig
from ..model.config import MAX_PROMPT_TOKENS, TransformerConfig
from ..model.patchify import num_tokens
from ..sampling.guidance import is_zero_step
from ..sampling.settings import SamplingSettings

VAE_VALUES_PER_PIXEL = 4200


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
    parts = ((long, 4), (mid, 2), (short, 1))
    return sum(num_tokens((num_frames, *grid), config.patch_size, pool) for num_frames, pool in parts)


def noisy_tokens(config: TransformerConfig, width: int, height: int, stage: int, num_stages: int) -> int:
    """Noisy tokens of a chunk in `stage` of `num_stages` at width x height pixels."""
    shrink = VAE_SPATIAL_STRIDE * 2 ** (num_stages - 1 - stage)
    return num_tokens((LATENT_FRAMES_PER_CHUNK, height // shrink, width // shrink), config.patch_size)


def forward_flops(config: TransformerConfig, num_noisy: int, num_memory: int) -> int:
    """Operations (a multiply-add counts two) of the blocks in one forward, the prompt's keys and values at hand."""
    dim, tokens = config.inner_dim, num_noisy + num_memory

    def block(num_rows: int) -> int:
        """A block that gives `num_rows` rows; key and value it needs of all tokens."""
        self_attention = 4 * (num_rows + tokens) * dim**2 + 4 * num_rows * tokens * dim
        guidance_attention = 4 * num_noisy * dim**2 + 4 * num_noisy * MAX_PROMPT_TOKENS * dim
        return self_attention + guidance_attention + 4 * num_rows * dim * config.ffn_dim

    return (config.num_layers - 1) * block(tokens) + block(num_noisy)


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
    return [sum(forwards) for forwards in step_forwards(settings, chunk_index)]


def step_forwards(settings: SamplingSettings, chunk_index: int) -> list[list[int]]:
    """Forwards of the model in each step of each stage of a chunk."""
    of_a_step = 2 if settings.guided else 1
    return [
        [0 if is_zero_step(settings, stage, step) else of_a_step for step in range(num_steps)]
        for stage, num_steps in enumerate(settings.steps_in_chunk(chunk_index))
    ]


def weight_bytes(config: TransformerConfig, dtype: torch.dtype) -> int:
    """Bytes of all weights when kept in `dtype`; a few parts stay fp32 (see `HeliosTransformer`)."""
    dim = config.inner_dim
    block = 6 * dim + 2 * dim  # scale_shift_table and norm2
    if config.is_amplify_history:
        block += config.num_attention_heads if config.history_scale_mode == "per_head" else 1
    fp32 = config.num_layers * block + 2 * dim + (config.freq_dim + 1 + dim + 1) * dim
    return (num_parameters(config) - fp32) * dtype.itemsize + fp32 * 4


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
    config: TransformerConfig,
    width: int,
    height: int,
    dtype: torch.dtype,
    *,
    num_prompts: int = 1,
    reuse_history: bool = False,
) -> int:
    """Peak bytes of all tensors besides the weights while a chunk of width x height pixels is sampled.

    The peak is in a block of the last stage. Scratch space inside one kernel (attention, convolution) is not
    counted. Nor is the copy of a layer's weight that is cast or streamed from host RAM when it is used: while there
    is one, the activations are further below their peak than the largest weight is large.
    """
    size, dim = dtype.itemsize, config.inner_dim
    history = memory_tokens(config, width, height)
    tokens = history + noisy_tokens(config, width, height, 0, 1)
    stream = tokens * dim * size  # the residual stream, or anything of its shape, once
    # The stream and its normed copy, or what attention gives; query, key and value.
    attention = 5 * stream
    # The stream, its normed copy or the output, and the hidden layer (the activation takes its place).
    feed_forward = 2 * stream + tokens * config.ffn_dim * size
    kept = _kept_bytes(config, width, height, dtype, num_prompts)
    if reuse_history:  # key and value of the history in each block
        kept += num_prompts * 2 * config.num_layers * history * dim * size
    return max(attention, feed_forward) + kept


def _kept_bytes(config: TransformerConfig, width: int, height: int, dtype: torch.dtype, num_prompts: int) -> int:
    """Bytes of what lives on from step to step, beside a block's own work."""
    size, dim = dtype.itemsize, config.inner_dim
    history = memory_tokens(config, width, height)
    # A prompt: the text encoder's rows, the tokens made of them, and each block's keys and values.
    prompt = MAX_PROMPT_TOKENS * (config.text_dim + dim + 2 * config.num_layers * dim) * size
    memory = history * dim * size
    # A table of cosines and sines (fp32) for the memory alone, and one with the noisy tokens for each stage:
    # 1 + 1/4 + 1/16 times the full grid.
    noisy = 21 * noisy_tokens(config, width, height, 0, 1) // 16
    rotary = (4 * history + noisy) * config.attention_head_dim * 4
    # Sample, start of the stage and velocity, and the memory's 19 frames and anchor.
    latents = (3 * LATENT_FRAMES_PER_CHUNK + 20) * latent_bytes(config, width, height) // LATENT_FRAMES_PER_CHUNK
    return num_prompts * prompt + memory + rotary + latents


def latent_bytes(config: TransformerConfig, width: int, height: int) -> int:
    """Bytes of a chunk's latents, which are fp32."""
    positions = (width // VAE_SPATIAL_STRIDE) * (height // VAE_SPATIAL_STRIDE)
    return config.in_channels * LATENT_FRAMES_PER_CHUNK * positions * 4


def vae_bytes(width: int, height: int, dtype: torch.dtype) -> int:
    """Peak bytes of the Wan VAE besides its weights while it decodes a chunk, whatever the chunk's length.

    It decodes one latent frame at a time and keeps two frames before each convolution. Measured on ours, and checked
    by a test; diffusers' and ComfyUI's take a fifth more.
    """
    return width * height * VAE_VALUES_PER_PIXEL * dtype.itemsize


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a run takes: on the device its weights and activations and, after it, the VAE's activations; in
    host RAM the weights that are not on the device, at most all of them; on disk the latents of a chunk where they
    are kept."""

    weights: int
    activations: int
    vae: int
    host: int
    disk_per_chunk: int

    def __str__(self) -> str:
        def gib(size: int) -> str:
            return f"{size / 2**30:.2f} GiB"

        return (
            f"weights {gib(self.weights)}, activations {gib(self.activations)}, together "
            f"{gib(self.weights + self.activations)}; VAE decoding {gib(self.vae)}; host RAM at most {gib(self.host)} "
            f"(weights not on the device); disk {self.disk_per_chunk / 2**20:.1f} MiB for each chunk of latents kept"
        )


def estimate_memory(
    config: TransformerConfig,
    settings: SamplingSettings,
    width: int,
    height: int,
    *,
    dtype: torch.dtype,
    weight_bytes: int,
    vae_dtype: torch.dtype = torch.float32,
) -> MemoryEstimate:
    """What sampling at width x height pixels takes, computing in `dtype`, however long the video."""
    return MemoryEstimate(
        weights=weight_bytes,
        activations=activation_bytes(
            config,
            width,
            height,
            dtype,
            num_prompts=2 if settings.guided else 1,
            reuse_history=settings.history_reuse != "off",
        ),
        vae=vae_bytes(width, height, vae_dtype),
        host=weight_bytes,
        disk_per_chunk=latent_bytes(config, width, height),
    )
