"""The Wan VAE (Wan 2.1, arXiv 2503.20314, section 4.1): a causal video autoencoder, at whatever width its weights have.

33 frames become 9 latent frames: the first alone, then one for each group of 4. Nothing looks ahead in time. A
whole clip goes through at once, which is what the published, frame-by-frame computation gives, without its cache;
for a chunk of a small video that is simpler, and it can be trained. Parameter names are those of the published file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .config import LATENT_CHANNELS
from .safetensors_file import CheckpointError

# Mean and standard deviation of each latent channel: (latents - mean) / std is model space.
LATENTS_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
LATENTS_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

_WIDTHS = (1, 2, 4, 4)  # channels at each resolution, in multiples of `dim`
_HALVES_TIME = (False, True, True)  # whether the downsampling after that resolution halves the frames as well
_NUM_BLOCKS = 2


class CausalConv3d(nn.Conv3d):
    """Convolution over (t, y, x) whose time axis is padded in front only: a frame never sees a later one."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, side = self.kernel_size[0] - 1, self.kernel_size[1] // 2
        return super().forward(F.pad(x, (side, side, side, side, before, 0)))


class ChannelNorm(nn.Module):
    """Each position's channels scaled to root mean square 1, times `gamma`."""

    def __init__(self, channels: int, num_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * num_axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Five times as fast on a CPU as F.normalize, whose norm along the channels is slow.
        inverse = x.float().square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt().to(x.dtype)
        return x * inverse * (x.shape[1] ** 0.5 * self.gamma)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(in_channels),
            nn.SiLU(),
            CausalConv3d(in_channels, out_channels, 3),
            ChannelNorm(out_channels),
            nn.SiLU(),
            nn.Identity(),  # dropout when the published weights were trained
            CausalConv3d(out_channels, out_channels, 3),
        )
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else CausalConv3d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shortcut(x) + self.residual(x)


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, num_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        query, key, value = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n (h w) c", three=3)
        out = F.scaled_dot_product_attention(query, key, value)
        out = self.proj(rearrange(out, "n (h w) c -> n c h w", h=x.shape[3]))
        return x + rearrange(out, "(b t) c h w -> b c t h w", t=x.shape[2])


class Downsample(nn.Module):
    """Half the height and width; with `halves_time` also frames 1 + 2k -> 1 + k, the first one untouched."""

    def __init__(self, channels: int, halves_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if halves_time else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _by_frame(self.resample, x)
        if self.time_conv is None or x.shape[2] == 1:
            return x
        return torch.cat((x[:, :, :1], self.time_conv(x)), dim=2)


class Upsample(nn.Module):
    """Twice the height and width at half the channels; with `doubles_time` also frames 1 + k -> 1 + 2k."""

    def __init__(self, channels: int, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = nn.Conv3d(channels, 2 * channels, (3, 1, 1)) if doubles_time else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.time_conv is not None and x.shape[2] > 1:
            first, rest = x[:, :, :1], x[:, :, 1:]
            # The published cache begins after the first frame, so zeros stand before the second one.
            doubled = self.time_conv(F.pad(rest, (0, 0, 0, 0, 2, 0)))
            x = torch.cat((first, rearrange(doubled, "b (two c) t h w -> b c (t two) h w", two=2)), dim=2)
        return _by_frame(self.resample, x)


def _by_frame(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", t=x.shape[2])


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels))


def _head(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(channels), nn.SiLU(), CausalConv3d(channels, out_channels, 3))


class Encoder(nn.Module):
    """Pixels (B, 3, 1 + 4k, H, W) -> mean and log-variance (B, 32, 1 + k, H/8, W/8), before the last 1x1 layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(3, dim, 3)
        self.downsamples = nn.Sequential()
        channels = dim
        for level, width in enumerate(_WIDTHS):
            for _ in range(_NUM_BLOCKS):
                self.downsamples.append(ResidualBlock(channels, width * dim))
                channels = width * dim
            if level < len(_HALVES_TIME):
                self.downsamples.append(Downsample(channels, _HALVES_TIME[level]))
        self.middle = _middle(channels)
        self.head = _head(channels, 2 * LATENT_CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    """Latents (B, 16, 1 + k, h, w), after the first 1x1 layer -> pixels (B, 3, 1 + 4k, 8h, 8w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        channels = _WIDTHS[-1] * dim
        self.conv1 = CausalConv3d(LATENT_CHANNELS, channels, 3)
        self.middle = _middle(channels)
        self.upsamples = nn.Sequential()
        for level, width in enumerate(reversed(_WIDTHS)):
            for _ in range(_NUM_BLOCKS + 1):
                self.upsamples.append(ResidualBlock(channels, width * dim))
                channels = width * dim
            if level < len(_HALVES_TIME):
                self.upsamples.append(Upsample(channels, _HALVES_TIME[-1 - level]))
                channels //= 2
        self.head = _head(channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(x))))


class WanVAE(nn.Module):
    """Encoder and decoder. `dim` is the width: 96 in the published VAE."""

    def __init__(self, dim: int = 96) -> None:
        super().__init__()
        self.encoder = Encoder(dim)
        self.conv1 = nn.Conv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = nn.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(dim)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, 1 + 4k, H, W) in [-1, 1] -> mean of the posterior (B, 16, 1 + k, H/8, W/8), VAE space."""
        return self.conv1(self.encoder(pixels)).chunk(2, dim=1)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, 16, 1 + k, h, w), VAE space -> pixels (B, 3, 1 + 4k, 8h, 8w) around [-1, 1], not clamped."""
        return self.decoder(self.conv2(latents))


def load_wan_vae(path: Path) -> WanVAE:
    """The VAE in a safetensors file, as wide as its weights are. Raises CheckpointError for any other file."""
    try:
        weights = load_file(path)
        vae = WanVAE(dim=weights["decoder.head.0.gamma"].shape[0])
        vae.load_state_dict(weights)
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a Wan VAE with the published names: {error}") from error
    return vae
