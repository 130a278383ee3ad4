"""The oracle: diffusers' own Helios (0.42.1) with tiny random weights.

Everything here is diffusers' code, unchanged, with one exception that `_SolvableBlockNoise` explains: the
covariance of the block noise is singular, and torch's Cholesky refuses it.
"""

import logging
import math
import tempfile
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
)

# diffusers warns on every guided run of a distilled model and for configs made in memory; both are meant here.
logging.getLogger("diffusers").setLevel(logging.ERROR)

TINY_SHAPE = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "rope_dim": (4, 4, 4),
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
}
CHANNELS, CHUNK = 16, 9


def generator(seed: int) -> torch.Generator:
    """A CPU generator with that seed."""
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter a random value that keeps activations near unit size, also gates and shifts."""
    device = next(module.parameters()).device
    source = torch.Generator(device).manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=source, device=device)
        if "scale_shift_table" in name:
            value = 0.4 * noise
        elif "history_key_scale" in name:
            value = -2 + noise  # amplification between about 1.3 and 3, where the sigmoid has a slope
        elif parameter.ndim == 1:
            value = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * noise
        else:
            value = noise / math.sqrt(parameter[0].numel())
        parameter.copy_(value)
    return module.eval()


def transformer(seed: int = 0, **shape) -> HeliosTransformer3DModel:
    """A tiny float32 HeliosTransformer3DModel; `shape` overrides TINY_SHAPE."""
    return randomise(HeliosTransformer3DModel(**{**TINY_SHAPE, **shape}), seed)


def in_bfloat16(model: HeliosTransformer3DModel) -> HeliosTransformer3DModel:
    """The model as `from_pretrained(torch_dtype=bfloat16)` gives it, with diffusers' choice of float32 parts."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return HeliosTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16).eval()


def vae(seed: int = 0) -> AutoencoderKLWan:
    """A tiny AutoencoderKLWan with the real strides (8, and 4 in time) and latent statistics.

    Half of the spatial stride is Wan 2.2's patchify: a quarter of the convolutions at full resolution.
    """
    patches = {"patch_size": 2, "in_channels": 12, "out_channels": 12}
    levels = {"dim_mult": [1, 1, 1], "temperal_downsample": [True, True], "num_res_blocks": 0}
    return randomise(AutoencoderKLWan(base_dim=4, decoder_base_dim=2, z_dim=CHANNELS, **patches, **levels), seed)


def scheduler(variant: str, **config) -> HeliosScheduler | HeliosDMDScheduler:
    """The scheduler of "base", "mid" or "distilled" with dynamic shifting; `config` overrides its settings."""
    if variant == "distilled":
        return HeliosDMDScheduler(**{"use_dynamic_shifting": True, "time_shift_type": "linear", **config})
    stages = {"stages": 1, "stage_range": [0, 1]} if variant == "base" else {}
    return HeliosScheduler(**{"use_dynamic_shifting": True, "time_shift_type": "exponential", **stages, **config})


def block_noise_factor(gamma: float) -> torch.Tensor:
    """Lower triangular L (4, 4), float32, with L @ L.T = (1 + gamma) I - gamma J, exact at gamma = 1/3.

    There the covariance has rank 3 (the four values of a block sum to zero) and the last pivot is 0.
    """
    if not math.isclose(gamma, 1 / 3):
        return torch.linalg.cholesky(torch.eye(4) * (1 + gamma) - gamma)
    r2, r6 = math.sqrt(2) / 3, math.sqrt(6) / 3
    return torch.tensor(
        [[1, 0, 0, 0], [-1 / 3, 2 * r2, 0, 0], [-1 / 3, -r2, r6, 0], [-1 / 3, -r2, -r6, 0]], dtype=torch.float32
    )


class _SolvableBlockNoise(HeliosPyramidPipeline):
    """The reference pipeline, with the one Cholesky that fails replaced by its closed form.

    The covariance at gamma = 1/3 is singular, and diffusers' jitter of 1e-8 vanishes in float32.
    """

    def sample_block_noise(self, *args, **kwargs):
        factor = block_noise_factor(self.scheduler.config.gamma)
        with mock.patch.object(torch.linalg, "cholesky", return_value=factor):
            return super().sample_block_noise(*args, **kwargs)


class _AuthorsBlockNoise(_SolvableBlockNoise):
    """As the authors' repository runs it: the block noise never sees the caller's generator."""

    def sample_block_noise(self, *args, **kwargs):
        *rest, _ = args
        return super().sample_block_noise(*rest, None, **kwargs)


def pipeline(variant: str, model, autoencoder, *, authors_noise: bool = False, **scheduler_config):
    """The diffusers pipeline of "base", "mid" or "distilled" around a tiny model, without text encoder."""
    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": autoencoder,
        "scheduler": scheduler(variant, **scheduler_config),
        "transformer": model,
    }
    if variant == "base":
        pipe = HeliosPipeline(**parts)
    else:
        pyramid = _AuthorsBlockNoise if authors_noise else _SolvableBlockNoise
        pipe = pyramid(**parts, is_cfg_zero_star=variant == "mid", is_distilled=variant == "distilled")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(num_frames: int, height: int, width: int, seed: int = 7) -> torch.Tensor:
    """Pixels (num_frames, 3, height, width) in 0..1: smooth blobs that move, so that the VAE has structure."""
    small = torch.randn(1, 3, max(2, num_frames // 8), 4, 4, generator=generator(seed))
    video = F.interpolate(small, (num_frames, height, width), mode="trilinear").sigmoid()
    return video[0].transpose(0, 1)


@torch.no_grad()
def encode(autoencoder: AutoencoderKLWan, frames: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """Posterior sample (1, 16, T, h, w) in model space of frames (F, 3, H, W) in 0..1."""
    pixels = (2 * frames - 1).transpose(0, 1)[None].to(autoencoder.dtype)
    latents = autoencoder.encode(pixels).latent_dist.sample(generator=source)
    mean = torch.tensor(autoencoder.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(autoencoder.config.latents_std).view(1, -1, 1, 1, 1)
    return (latents - mean) * (1.0 / std)
