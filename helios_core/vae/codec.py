"""Codecs: pixels to latents in model space and back.

Helios works on latents with the Wan VAE's geometry: 8x8 pixels become one position, the first frame of a
clip becomes one latent frame and each later group of 4 frames another. A chunk of 33 frames is 9 latent
frames, and every chunk is coded alone, so anything here that is longer than a chunk is a row of whole chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from ..dtypes import DTYPES
from ..geometry import (
    FRAMES_PER_CHUNK,
    LATENT_CHANNELS,
    LATENT_FRAMES_PER_CHUNK,
    VAE_SPATIAL_STRIDE,
    VAE_TEMPORAL_STRIDE,
)
from ..sampling.noise import Key
from .wan_vae import LATENTS_MEAN, LATENTS_STD, Decoding, WanVAE
from .wan_vae_file import load_wan_vae, vae_folder

# noise(shape, key) -> unit normal noise for a sample of the posterior
PosteriorNoise = Callable[[torch.Size, Key], torch.Tensor]


class Codec(Protocol):
    """Anything that turns pixels into model-space latents and back.

    Pixels are (B, 3, T, H, W) in [-1, 1] with H and W multiples of 8 and T = 1 + 4k frames up to 33, or a
    multiple of 33. Latents are (B, 16, 1 + k, H/8, W/8), or 9 latent frames for each 33 frames.
    """

    def encode(self, pixels: torch.Tensor, key: Key = ()) -> torch.Tensor:
        """Latents, float32 in model space; `key` names the noise of a sample of the posterior, where one is drawn.
        Raises ValueError for a shape that is not as above."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels, float32 around [-1, 1], not clamped. Raises ValueError for a shape that is not as above."""
        ...


class WanCodec:
    """A Wan VAE of any width, with model space on its latent side.

    Encoding is in float32 and takes the mean of the posterior or, when `noise` is given, a sample mean + std *
    noise(shape, key) with unit normal noise, one call for each chunk, as the reference draws it. Decoding is as the
    VAE's `decoding` says. Chunks go through the VAE one at a time.
    """

    def __init__(self, vae: WanVAE, *, noise: PosteriorNoise | None = None) -> None:
        self.vae = vae.eval().requires_grad_(False)
        self.noise = noise

    @classmethod
    def from_file(cls, path: Path) -> WanCodec:
        """Read a safetensors file with the published parameter names; in float32, on the CPU.

        Raises CheckpointError for another kind of file.
        """
        return cls(load_wan_vae(path))

    @classmethod
    def from_folder(
        cls,
        path: Path,
        device: torch.device | str = "cpu",
        *,
        decoding: Decoding | None = None,
        noise: PosteriorNoise | None = None,
    ) -> WanCodec:
        """Load a VAE folder, or the `vae` in a whole model's folder, to go latent frame by latent frame.

        Raises FileNotFoundError when the folder holds no VAE, CheckpointError when it is another kind of VAE.
        """
        vae = load_wan_vae(vae_folder(path), piece=1)
        vae.set_decoding(decoding or Decoding())
        return cls(vae.to(device), noise=noise)

    @property
    def device(self) -> torch.device:
        return self.vae.conv1.weight.device

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, key: Key = ()) -> torch.Tensor:
        """Pixels (B, 3, T, H, W) to latents as `Codec` says."""
        _check_pixels(pixels)
        chunks = pixels.split(FRAMES_PER_CHUNK, dim=2)
        # The first keeps the plain key, so that a clip of one chunk draws what it always has.
        keys = [key, *((*key, number) for number in range(1, len(chunks)))]
        return torch.cat([self._encode_chunk(*pair) for pair in zip(chunks, keys, strict=True)], dim=2)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, 16, T, h, w) to pixels as `Codec` says."""
        _check_latents(latents)
        return _by_chunk(self._decode_chunk, latents, LATENT_FRAMES_PER_CHUNK)

    def _encode_chunk(self, pixels: torch.Tensor, key: Key) -> torch.Tensor:
        latents, deviation = self.vae.posterior(pixels.to(self.device, torch.float32))
        if self.noise is not None:
            latents = latents + deviation * self.noise(latents.shape, key).to(latents)
        mean, std = self._statistics()
        return (latents - mean) / std

    def _decode_chunk(self, latents: torch.Tensor) -> torch.Tensor:
        mean, std = self._statistics()
        latents = latents.to(self.device, torch.float32) * std + mean
        return self.vae.decode(latents.to(DTYPES[self.vae.decoding.dtype])).float()

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents, (1, 16, 1, 1, 1) each."""
        mean, std = (torch.tensor(values, device=self.device) for values in (LATENTS_MEAN, LATENTS_STD))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)


def _by_chunk(code: Callable[[torch.Tensor], torch.Tensor], video: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Code each `num_frames` along dim 2 alone and join the results."""
    return torch.cat([code(chunk) for chunk in video.split(num_frames, dim=2)], dim=2)


def _check_pixels(pixels: torch.Tensor) -> None:
    if pixels.ndim != 5 or pixels.shape[1] != 3 or not all(pixels.shape):
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected (B, 3, T, H, W)")
    num_frames, height, width = pixels.shape[2:]
    if height % VAE_SPATIAL_STRIDE or width % VAE_SPATIAL_STRIDE:
        raise ValueError(
            f"pixels are {width}x{height}; width and height must be multiples of {VAE_SPATIAL_STRIDE}: "
            "resize the frames first"
        )
    one_clip = num_frames <= FRAMES_PER_CHUNK and num_frames % VAE_TEMPORAL_STRIDE == 1
    if not one_clip and num_frames % FRAMES_PER_CHUNK:
        raise ValueError(
            f"{num_frames} frames cannot be encoded; allowed: 1, 5, 9, ... {FRAMES_PER_CHUNK}, "
            f"or whole chunks of {FRAMES_PER_CHUNK}: cut or repeat frames"
        )


def _check_latents(latents: torch.Tensor) -> None:
    if latents.ndim != 5 or latents.shape[1] != LATENT_CHANNELS or not all(latents.shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}; expected (B, {LATENT_CHANNELS}, T, h, w)")
    num_latent_frames = latents.shape[2]
    if num_latent_frames > LATENT_FRAMES_PER_CHUNK and num_latent_frames % LATENT_FRAMES_PER_CHUNK:
        raise ValueError(
            f"{num_latent_frames} latent frames cannot be decoded; allowed: 1 to {LATENT_FRAMES_PER_CHUNK}, "
            f"or whole chunks of {LATENT_FRAMES_PER_CHUNK}"
        )
