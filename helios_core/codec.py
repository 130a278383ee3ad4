"""Codecs: pixels to latents in model space and back.

Helios works on latents with the Wan VAE's geometry: 8x8 pixels become one position, the first frame of a
clip becomes one latent frame and each later group of 4 frames another. A chunk of 33 frames is 9 latent
frames, and every chunk is coded alone, so anything here that is longer than a chunk is a row of whole chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from .config import (
    FRAMES_PER_CHUNK,
    LATENT_CHANNELS,
    LATENT_FRAMES_PER_CHUNK,
    VAE_SPATIAL_STRIDE,
    VAE_TEMPORAL_STRIDE,
)

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan


class Codec(Protocol):
    """Anything that turns pixels into model-space latents and back.

    Pixels are (B, 3, T, H, W) in [-1, 1] with H and W multiples of 8 and T = 1 + 4k frames up to 33, or a
    multiple of 33. Latents are (B, 16, 1 + k, H/8, W/8), or 9 latent frames for each 33 frames.
    """

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents, float32 in model space. Raises ValueError for a shape that is not as above."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels, float32 around [-1, 1], not clamped. Raises ValueError for a shape that is not as above."""
        ...


# DctCodec's 16 basis patterns as (colour, t, y, x, spread): which colour axis, which cosine frequency along
# each axis of the block, and how much of a pixel's deviation the pattern explains in natural video (measured
# on photographs and clips, rounded); dividing by it gives latents of about unit variance.
_LUMA, _RED_BLUE, _GREEN = 0, 1, 2
_BOTH = (
    (_LUMA, 0, 0, 0, 0.47),
    (_LUMA, 0, 0, 1, 0.07),
    (_LUMA, 0, 1, 0, 0.07),
    (_LUMA, 0, 1, 1, 0.03),
    (_LUMA, 0, 0, 2, 0.033),
    (_LUMA, 0, 2, 0, 0.033),
    (_RED_BLUE, 0, 0, 0, 0.15),
    (_RED_BLUE, 0, 0, 1, 0.015),
    (_RED_BLUE, 0, 1, 0, 0.015),
    (_GREEN, 0, 0, 0, 0.09),
)
# The last six channels are detail in the first frame and motion in a group of four.
_FIRST_FRAME = (
    *_BOTH,
    (_LUMA, 0, 1, 2, 0.02),
    (_LUMA, 0, 2, 1, 0.02),
    (_LUMA, 0, 0, 3, 0.02),
    (_LUMA, 0, 3, 0, 0.02),
    (_GREEN, 0, 0, 1, 0.009),
    (_GREEN, 0, 1, 0, 0.009),
)
_FRAME_GROUP = (
    *_BOTH,
    (_LUMA, 1, 0, 0, 0.08),
    (_LUMA, 1, 0, 1, 0.018),
    (_LUMA, 1, 1, 0, 0.018),
    (_LUMA, 2, 0, 0, 0.03),
    (_LUMA, 3, 0, 0, 0.03),
    (_RED_BLUE, 1, 0, 0, 0.0075),
)


class DctCodec:
    """The embedded demo's codec until a trained one exists: a fixed cosine transform, without weights.

    Each 8x8 block of the first frame and each 4x8x8 block of the later frames is projected on 16 orthogonal
    cosine patterns: low frequencies of luma, the lowest of two colour axes, and change in time. Natural video
    comes back blurred but recognisable (24 to 28 dB, less the faster it moves), its latents have roughly unit
    variance, and encode(decode(z)) is z. Linear, deterministic, on whatever device its input is.
    """

    def __init__(self) -> None:
        self._first = _Basis(_FIRST_FRAME, num_frames=1)
        self._group = _Basis(_FRAME_GROUP, num_frames=VAE_TEMPORAL_STRIDE)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, T, H, W) to latents as `Codec` says."""
        _check_pixels(pixels)
        return _by_chunk(self._encode_chunk, pixels, FRAMES_PER_CHUNK)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, 16, T, h, w) to pixels as `Codec` says."""
        _check_latents(latents)
        return _by_chunk(self._decode_chunk, latents, LATENT_FRAMES_PER_CHUNK)

    def _encode_chunk(self, pixels: torch.Tensor) -> torch.Tensor:
        first, rest = pixels[:, :, :1], pixels[:, :, 1:]
        return torch.cat([self._first.project(first), self._group.project(rest)], dim=2)

    def _decode_chunk(self, latents: torch.Tensor) -> torch.Tensor:
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        return torch.cat([self._first.expand(first), self._group.expand(rest)], dim=2)


class _Basis:
    """16 orthonormal patterns over a block of (3 colours, num_frames, 8, 8) pixels, with their spreads."""

    def __init__(self, table: tuple[tuple[int, int, int, int, float], ...], num_frames: int) -> None:
        # Orthonormal colour axes: grey, red against blue, green against red and blue.
        colours = torch.tensor([[1, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64)
        colours = colours / colours.norm(dim=1, keepdim=True)
        in_time, in_space = _cosines(num_frames), _cosines(VAE_SPATIAL_STRIDE)
        self.num_frames = num_frames
        self.patterns = torch.stack(
            [torch.einsum("c,q,y,x->cqyx", colours[c], in_time[t], in_space[y], in_space[x]) for c, t, y, x, _ in table]
        )
        # An orthonormal coefficient is sqrt(values in a block) times the pixel deviation it explains.
        spreads = torch.tensor([spread for *_, spread in table], dtype=torch.float64)
        self.scale = (spreads * math.sqrt(self.patterns[0].numel())).view(-1, 1, 1, 1, 1)

    def project(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, num_frames * T, 8h, 8w) to (B, 16, T, h, w), float32."""
        size = VAE_SPATIAL_STRIDE
        blocks = pixels.to(_precise_dtype(pixels)).unflatten(4, (-1, size)).unflatten(3, (-1, size))
        blocks = blocks.unflatten(2, (pixels.shape[2] // self.num_frames, self.num_frames))
        return torch.einsum("bctqhywx,ncqyx->bnthw", blocks, (self.patterns / self.scale).to(blocks)).float()

    def expand(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, 16, T, h, w) to (B, 3, num_frames * T, 8h, 8w), float32."""
        latents = latents.to(_precise_dtype(latents))
        blocks = torch.einsum("bnthw,ncqyx->bctqhywx", latents, (self.patterns * self.scale).to(latents))
        return blocks.float().flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _precise_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 for sums of hundreds of values: in float32 bright levels leak into the faint channels."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # Apple's GPUs have no float64


def _cosines(size: int) -> torch.Tensor:
    """The orthonormal cosine transform (DCT-II): row k is the pattern of frequency k."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    frequency = torch.arange(size, dtype=torch.float64)[:, None]
    rows = torch.cos(math.pi / size * frequency * position)
    return rows / rows.norm(dim=1, keepdim=True)


class DiffusersWanCodec:
    """The Wan VAE of diffusers, with model space on its latent side.

    `vae` is an AutoencoderKLWan that the caller loaded; Helios runs it in float32. Encoding takes the mean
    of the posterior or, when `noise` is given, a sample mean + std * noise(shape) with unit normal noise, one
    call for each chunk, as the reference draws it. Chunks go through the VAE one at a time.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        *,
        noise: Callable[[torch.Size], torch.Tensor] | None = None,
    ) -> None:
        self.vae = vae
        self.noise = noise

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        noise: Callable[[torch.Size], torch.Tensor] | None = None,
    ) -> DiffusersWanCodec:
        """Load a VAE folder, or the `vae` in a whole model's folder. Reads safetensors only, never downloads.

        Raises ImportError without diffusers and FileNotFoundError when the folder holds no VAE.
        """
        try:
            from diffusers import AutoencoderKLWan  # optional: only this method needs it
        except ImportError as fault:
            raise ImportError("reading a diffusers VAE needs diffusers 0.33 or newer: pip install diffusers") from fault
        path = Path(path)
        for folder in (path / "vae", path):
            if (folder / "config.json").is_file():
                break
        else:
            raise FileNotFoundError(f"no VAE in {path}: expected config.json there or in its folder vae")
        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
        return cls(vae.to(device).eval().requires_grad_(False), noise=noise)

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, T, H, W) to latents as `Codec` says."""
        _check_pixels(pixels)
        return _by_chunk(self._encode_chunk, pixels, FRAMES_PER_CHUNK)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, 16, T, h, w) to pixels as `Codec` says."""
        _check_latents(latents)
        return _by_chunk(self._decode_chunk, latents, LATENT_FRAMES_PER_CHUNK)

    def _encode_chunk(self, pixels: torch.Tensor) -> torch.Tensor:
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mean
        if self.noise is not None:
            latents = latents + posterior.std * self.noise(latents.shape).to(latents)
        mean, inverse_std = self._statistics()
        return ((latents - mean) * inverse_std).float()

    def _decode_chunk(self, latents: torch.Tensor) -> torch.Tensor:
        mean, inverse_std = self._statistics()
        latents = latents.to(self.vae.device, self.vae.dtype) / inverse_std + mean
        return self.vae.decode(latents, return_dict=False)[0].float()

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and 1 / std of the VAE's latents, (1, 16, 1, 1, 1) each, in the VAE's type."""
        mean = torch.tensor(self.vae.config.latents_mean).view(1, -1, 1, 1, 1)
        inverse_std = 1 / torch.tensor(self.vae.config.latents_std).view(1, -1, 1, 1, 1)
        where = {"device": self.vae.device, "dtype": self.vae.dtype}
        return mean.to(**where), inverse_std.to(**where)


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
