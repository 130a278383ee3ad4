"""The Wan VAE (Wan 2.1, arXiv 2503.20314, section 4.1): a causal video autoencoder, at whatever width its weights have.

33 frames become 9 latent frames: the first alone, then one for each group of 4. Nothing looks ahead in time, so a clip
goes through in one piece (a small video; or to train it) or latent frame by latent frame with a `CausalCache` between
them (a large one), and the numbers are the same. Parameter names are those of the published file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..dtypes import DTYPES
from ..geometry import LATENT_CHANNELS, VAE_TEMPORAL_STRIDE

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


@dataclass(frozen=True)
class Decoding:
    """How latents are decoded. As it stands it is exact; each choice is faster on a GPU and rounds otherwise.

    `dtype` is one of DTYPES. `channels_last` keeps the channels of a position side by side, as the convolutions
    of a GPU take them. `compiled` has torch.compile join what is between the convolutions.
    """

    dtype: str = "fp32"
    channels_last: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """Distinguishes frames that are decoded from the same latents; empty when exact."""
        if self == Decoding():
            return ""
        return " ".join([self.dtype, *["channels_last"] * self.channels_last, *["compiled"] * self.compiled])


class CausalCache:
    """The last frames that each causal layer has seen, for the next piece of the clip.

    Layers ask in the order in which they run. Without `earlier` it is the start of a clip, before which all is zero;
    else those frames are taken out of it one after another, so that each is let go as soon as it has been used.
    `frames` of this piece are kept for the next one if the clip `continues`.
    """

    def __init__(self, earlier: list[torch.Tensor] | None = None, *, continues: bool = False) -> None:
        self.is_start = earlier is None
        self.continues = continues
        self.frames: list[torch.Tensor] = []
        self._earlier = earlier

    def before(self, x: torch.Tensor, num_frames: int = 2) -> torch.Tensor:
        """x (B, C, T, H, W) with the `num_frames` frames before it in front."""
        if self.is_start:
            zeros = (0, 0, 0, 0, num_frames, 0)
            x = F.pad(x, zeros).contiguous(memory_format=_memory_format(x))  # to pad does not keep it
        else:
            x = torch.cat((self._earlier.pop(0), x), dim=2)
        self.keep(x, num_frames)
        return x

    def keep(self, x: torch.Tensor, num_frames: int) -> None:
        """Have `num_frames` frames of x before the next piece. A copy: a view would hold all of x."""
        if self.continues:
            self.frames.append(x[:, :, -num_frames:].clone(memory_format=_memory_format(x)))


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()
    return torch.channels_last_3d if is_channels_last else torch.contiguous_format


class Convolution(nn.Conv3d):
    """nn.Conv3d that is fast on a CPU at every size.

    torch hands a convolution of one clip to oneDNN only where channels x frames x height are more than 20480, and takes
    up to fifteen times as long below. At those sizes oneDNN is asked for here. What is chosen depends on shapes
    alone; the two round differently.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, T, H, W), with the frames that the kernel looks back on."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or not _may_ask_onednn():
            return super().forward(x)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def _may_ask_onednn() -> bool:
    """Whether this torch has it, and whether it is not a compiler that looks, which knows nn.Conv3d only."""
    return not torch.compiler.is_compiling() and torch.backends.mkldnn.is_available()


class CausalConv3d(Convolution):
    """Convolution over (t, y, x). Its frames come with those before them (see `CausalCache`); it sees no later ones."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        side = kernel // 2
        super().__init__(in_channels, out_channels, kernel, padding=(0, side, side))


class ChannelNorm(nn.Module):
    """Each position's channels scaled to root mean square 1, times `gamma`."""

    def __init__(self, channels: int, num_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * num_axes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:
            # Five times as fast on a CPU as F.normalize, whose norm along the channels is slow.
            square = x.square().sum(1, keepdim=True)
        else:  # without a copy of x in float32
            square = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).square()
        return x * square.clamp_min(1e-24).rsqrt().to(x.dtype) * (x.shape[1] ** 0.5 * self.gamma)


def _convolve(norm: ChannelNorm, convolution: CausalConv3d, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
    """Norm, SiLU, convolution. In one expression, so that nothing holds what is between them."""
    return convolution(cache.before(F.silu(norm(x), inplace=True)))


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

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        norm_1, _, convolution_1, norm_2, _, _, convolution_2 = self.residual
        hidden = _convolve(norm_1, convolution_1, x, cache)
        hidden = _convolve(norm_2, convolution_2, hidden, cache)
        hidden += self.shortcut(x)
        return hidden


class FrameAttention(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, num_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
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
        self.time_conv = Convolution(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if halves_time else None

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        x = _by_frame(self.resample, x)
        if self.time_conv is None:
            return x
        if not cache.is_start:
            return self.time_conv(cache.before(x, 1))
        cache.keep(x, 1)
        return torch.cat((x[:, :, :1], self.time_conv(x)), dim=2) if x.shape[2] > 1 else x


class Upsample(nn.Module):
    """Twice the height and width at half the channels; with `doubles_time` also frames 1 + k -> 1 + 2k."""

    def __init__(self, channels: int, doubles_time: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = Convolution(channels, 2 * channels, (3, 1, 1)) if doubles_time else None

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        return _by_frame(self.resample, x if self.time_conv is None else self._double_time(x, cache))

    def _double_time(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        # The published decoder's cache begins after the first frame, so zeros stand before the second one.
        first, rest = x.split((1, x.shape[2] - 1), dim=2) if cache.is_start else (None, x)
        padded = cache.before(rest, 2)
        if rest.shape[2] == 0:
            return x
        doubled = rearrange(self.time_conv(padded), "b (two c) t h w -> b c (t two) h w", two=2)
        return doubled if first is None else torch.cat((first, doubled), dim=2)


def _by_frame(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    frames = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b c t h w", t=x.shape[2])


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(channels, channels), FrameAttention(channels), ResidualBlock(channels, channels))


def _head(channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(ChannelNorm(channels), nn.SiLU(), CausalConv3d(channels, out_channels, 3))


def _through(x: torch.Tensor, layers: Sequence[nn.Module], head: nn.Sequential, cache: CausalCache) -> torch.Tensor:
    for layer in layers:
        x = layer(x, cache)
    norm, _, convolution = head
    return _convolve(norm, convolution, x, cache)


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

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        return _through(self.conv1(cache.before(x)), (*self.downsamples, *self.middle), self.head, cache)


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

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        return _through(self.conv1(cache.before(x)), (*self.middle, *self.upsamples), self.head, cache)


def _code_piece(
    coder: Encoder | Decoder, piece: torch.Tensor, earlier: list[torch.Tensor] | None, continues: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A piece of a clip after the frames kept of the one before (see `CausalCache`), and those to keep of it."""
    cache = CausalCache(earlier, continues=continues)
    return coder(piece, cache), cache.frames


class WanVAE(nn.Module):
    """Encoder and decoder. `dim` is the width: 96 in the published VAE.

    `piece` is how many latent frames go through at once, after the first one, which goes alone; None: the whole clip.
    Memory grows with it: at the published width and 640x384 a clip of 33 frames in one piece takes tens of GiB.
    """

    def __init__(self, dim: int = 96, piece: int | None = None) -> None:
        super().__init__()
        self.piece = piece
        self.encoder = Encoder(dim)
        self.conv1 = Convolution(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = Convolution(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(dim)
        self.decoding = Decoding()
        self._decode_piece = _code_piece

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, 1 + 4k, H, W) in [-1, 1] -> mean of the posterior (B, 16, 1 + k, H/8, W/8), VAE space."""
        return self.posterior(pixels)[0]

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels as in `encode` -> mean and standard deviation of their latents, VAE space."""
        moments = self._in_pieces(_code_piece, self.encoder, pixels, VAE_TEMPORAL_STRIDE)
        mean, log_variance = self.conv1(moments).chunk(2, dim=1)
        return mean, (log_variance.clamp(-30, 20) / 2).exp()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, 16, 1 + k, h, w), VAE space -> pixels (B, 3, 1 + 4k, 8h, 8w) around [-1, 1], not clamped."""
        if self.decoding.channels_last:
            latents = latents.contiguous(memory_format=torch.channels_last_3d)
        return self._in_pieces(self._decode_piece, self.decoder, self.conv2(latents), 1)

    def set_decoding(self, decoding: Decoding) -> None:
        """Decode so from now on; `decode` then takes and gives `decoding.dtype`. Encoding stays as it is.

        What is compiled are two functions, of the first latent frame and of a piece, in the first clip of each size.
        Raises ValueError for an unknown dtype.
        """
        if decoding.dtype not in DTYPES:
            raise ValueError(f"the decoder's dtype is {decoding.dtype!r}; allowed: {', '.join(DTYPES)}")
        for part in (self.conv2, self.decoder):
            part.to(DTYPES[decoding.dtype])
            for weight in part.parameters():
                if decoding.channels_last and weight.ndim >= 4:
                    memory_format = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
                    weight.data = weight.data.contiguous(memory_format=memory_format)
        self._decode_piece = torch.compile(_code_piece, dynamic=False) if decoding.compiled else _code_piece
        self.decoding = decoding

    def _in_pieces(
        self, code: Callable, coder: Encoder | Decoder, clip: torch.Tensor, frames_per_latent: int
    ) -> torch.Tensor:
        pieces = [clip]
        if self.piece is not None and clip.shape[2] > 1:
            pieces = [clip[:, :, :1], *clip[:, :, 1:].split(self.piece * frames_per_latent, dim=2)]
        kept, coded = None, []
        for piece in pieces:
            out, kept = code(coder, piece, kept, len(pieces) > 1)
            coded.append(out)
        return torch.cat(coded, dim=2)
