"""The Wan VAE of diffusers as a `Codec`: what ours is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan

from helios_core.geometry import FRAMES_PER_CHUNK, LATENT_FRAMES_PER_CHUNK


class DiffusersWanCodec:
    """Pixels (B, 3, T, H, W) in [-1, 1] to latents in model space and back, chunk by chunk.

    Encoding takes the mean of the posterior or, with `noise`, a sample mean + std * noise(shape), one call for each
    chunk, as diffusers' pipelines draw it.
    """

    def __init__(self, vae: AutoencoderKLWan, *, noise: Callable[[torch.Size], torch.Tensor] | None = None) -> None:
        self.vae, self.noise = vae, noise

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._encode(chunk) for chunk in pixels.split(FRAMES_PER_CHUNK, dim=2)], dim=2)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._decode(chunk) for chunk in latents.split(LATENT_FRAMES_PER_CHUNK, dim=2)], dim=2)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mean
        if self.noise is not None:
            latents = latents + posterior.std * self.noise(latents.shape).to(latents)
        mean, inverse_std = self._statistics()
        return ((latents - mean) * inverse_std).float()

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        mean, inverse_std = self._statistics()
        latents = latents.to(self.vae.device, self.vae.dtype) / inverse_std + mean
        return self.vae.decode(latents, return_dict=False)[0].float()

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and 1 / std of the VAE's latents, (1, 16, 1, 1, 1) each, in the VAE's type."""
        mean = torch.tensor(self.vae.config.latents_mean).view(1, -1, 1, 1, 1)
        inverse_std = 1 / torch.tensor(self.vae.config.latents_std).view(1, -1, 1, 1, 1)
        where = {"device": self.vae.device, "dtype": self.vae.dtype}
        return mean.to(**where), inverse_std.to(**where)
