"""The memory: all that a chunk knows of the video before it.

However long the video, that is its last 19 latent frames and one anchor frame. The state is immutable: appending
a chunk gives a new memory, so that a run can be resumed, branched and taken back by keeping old memories.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch

from ..geometry import LATENT_FRAMES_PER_CHUNK, VAE_SPATIAL_STRIDE
from ..transfer import to_device
from .config import MemoryConfig


class FrameIndices(NamedTuple):
    """Position in time of every latent frame that a chunk sees, each a 1-D int tensor. The same for every chunk:
    anchor 0, long 1..16, mid 17..18, last 19, noisy 20..28 with the published history sizes."""

    long: torch.Tensor
    mid: torch.Tensor
    short: torch.Tensor
    noisy: torch.Tensor


@dataclass(frozen=True)
class MemoryWindow:
    """The past as one chunk sees it: latents (B, C, T, h, w) of the long, mid and short memory, model space."""

    long: torch.Tensor
    mid: torch.Tensor
    short: torch.Tensor
    frame_indices: FrameIndices


Task = Literal["t2v", "i2v", "v2v"]


@dataclass(frozen=True)
class Provenance:
    """Where a memory comes from: the task it was started for, and model and seed of its latest chunk.

    `model` is a name for people; `model_fingerprint`, when it is known, is certain.
    """

    task: Task = "t2v"
    model: str = ""
    seed: int | None = None
    model_fingerprint: str = ""


@dataclass(frozen=True)
class HeliosMemory:
    """State between chunks.

    `frames` (B, C, 19, h, w): the latest latent frames, fp32, model space, zeros where there is no past yet.
    `anchor` (B, C, 1, h, w): first frame of the video, or None before there is one (or when it is not kept).
    `chunk_index`: number of chunks made, which is also the index of the next. `identity`: a fingerprint of all that it
    was made from; "" where that is not known. Raises ValueError when the shapes do not fit each other or `config`.
    """

    frames: torch.Tensor
    anchor: torch.Tensor | None = None
    chunk_index: int = 0
    config: MemoryConfig = field(default_factory=MemoryConfig)
    provenance: Provenance = field(default_factory=Provenance)
    identity: str = ""

    def __post_init__(self) -> None:
        if self.frames.ndim != 5 or self.frames.shape[2] != self.config.num_latent_frames:
            raise ValueError(
                f"memory frames have shape {tuple(self.frames.shape)}; expected "
                f"(batch, channels, {self.config.num_latent_frames}, height/8, width/8)"
            )
        if self.anchor is not None and self.anchor.shape != self.frames[:, :, :1].shape:
            raise ValueError(
                f"anchor has shape {tuple(self.anchor.shape)}; expected {tuple(self.frames[:, :, :1].shape)}"
            )

    @property
    def batch_size(self) -> int:
        return self.frames.shape[0]

    @property
    def height(self) -> int:
        """Height of the video in pixels."""
        return self.frames.shape[3] * VAE_SPATIAL_STRIDE

    @property
    def width(self) -> int:
        """Width of the video in pixels."""
        return self.frames.shape[4] * VAE_SPATIAL_STRIDE

    def to(self, device: torch.device | str) -> HeliosMemory:
        """The same memory on `device`."""
        return replace(
            self, frames=self.frames.to(device), anchor=None if self.anchor is None else self.anchor.to(device)
        )

    def window(self, device: torch.device | str | None = None) -> MemoryWindow:
        """What the next chunk sees, on `device` (default: where the memory is)."""
        device = self.frames.device if device is None else device
        frames = to_device(self.frames, device)
        long, mid, short = frames.split(self.config.window_sizes, dim=2)
        if self.config.keep_first_frame:
            anchor = torch.zeros_like(frames[:, :, :1]) if self.anchor is None else to_device(self.anchor, device)
            short = torch.cat((anchor, short), dim=2)
        return MemoryWindow(long, mid, short, frame_indices(self.config))

    def append(
        self,
        latents: torch.Tensor,
        *,
        model: str = "",
        seed: int | None = None,
        model_fingerprint: str = "",
        identity: str = "",
    ) -> HeliosMemory:
        """The memory after a chunk. `latents` (B, C, T, h, w), model space; `model` and `seed` made them, and
        `identity` is the chunk's."""
        if latents.shape[:2] != self.frames.shape[:2] or latents.shape[3:] != self.frames.shape[3:]:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} cannot follow a memory of shape {tuple(self.frames.shape)}: "
                "only the number of frames may differ"
            )
        latents = latents.to(self.frames)
        frames = torch.cat((self.frames, latents), dim=2)[:, :, -self.config.num_latent_frames :]
        return replace(
            self,
            frames=frames.clone(),
            anchor=latents[:, :, :1].clone() if self._takes_anchor() else self.anchor,
            chunk_index=self.chunk_index + 1,
            identity=identity,
            provenance=replace(self.provenance, model=model, seed=seed, model_fingerprint=model_fingerprint),
        )

    def _takes_anchor(self) -> bool:
        """Whether the chunk about to be appended gives the anchor: the first chunk of a video that has none."""
        if not self.config.keep_first_frame:
            return False
        if self.chunk_index == 1 and self.config.reanchor_on_second_chunk:
            return True
        return self.chunk_index == 0 and self.anchor is None


def frame_indices(config: MemoryConfig, num_noisy_frames: int = LATENT_FRAMES_PER_CHUNK) -> FrameIndices:
    """Positions in time of memory and noisy frames. Only their differences matter, so they never move on."""
    long, mid, short = config.window_sizes
    anchor = int(config.keep_first_frame)
    positions = torch.arange(anchor + long + mid + short + num_noisy_frames)
    prefix, long_indices, mid_indices, last, noisy = positions.split((anchor, long, mid, short, num_noisy_frames))
    return FrameIndices(long_indices, mid_indices, torch.cat((prefix, last)), noisy)
