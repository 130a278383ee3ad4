"""From prompt to video file, chunk by chunk: prompt -> first memory -> chunks of latents -> frames -> file.

No more than one chunk is held at a time, however long the video.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from .checkpoint import load_transformer, open_checkpoint
from .codec import Codec, DiffusersWanCodec
from .conditioning import encode_image, encode_video, image_memory, text_memory, video_memory
from .config import FRAMES_PER_CHUNK, VARIANTS, SamplingSettings, check_size
from .memory import HeliosMemory
from .noise import NoiseSource
from .sampler import Hooks, sample_chunks
from .text import umt5_rows
from .transformer import HeliosTransformer
from .video import Clip, from_pixels, resize_frames, to_pixels

# The last three chunks of a clip are all that a memory of 19 latent frames can hold.
CLIP_FRAMES = 3 * FRAMES_PER_CHUNK


class ModelSource(Protocol):
    """The parts of a Helios, each loaded when it is needed: together they are larger than most cards."""

    name: str
    width: int  # default size of the video in pixels
    height: int
    settings: SamplingSettings

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        """Text encoder rows (1, L, text_dim) of each prompt."""

    def load_codec(self) -> Codec:
        """The VAE."""

    def load_transformer(self) -> HeliosTransformer:
        """The transformer, ready to sample."""


class PublishedModel:
    """A published Helios folder (`transformer`, `scheduler`, `vae`, `text_encoder`, `tokenizer`) as a `ModelSource`.

    Raises CheckpointError when the transformer is incomplete.
    """

    width, height = 640, 384

    def __init__(
        self, folder: Path, *, variant: str | None, dtype: torch.dtype, device: str, noise: NoiseSource
    ) -> None:
        self.folder, self.dtype, self.device, self.noise = folder, dtype, device, noise
        self.name = folder.name
        self.checkpoint = open_checkpoint(folder)
        settings = VARIANTS[variant] if variant else self.checkpoint.settings
        if settings is None:
            raise ValueError(
                f"{folder} has no scheduler/scheduler_config.json to tell which variant it is; "
                f"give --variant {', '.join(VARIANTS)}"
            )
        self.settings = settings

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        return [rows.to(self.device) for rows in umt5_rows(prompts, self.folder, self.dtype, self.device)]

    def load_codec(self) -> Codec:
        def posterior_noise(shape: torch.Size) -> torch.Tensor:
            return self.noise.normal(tuple(shape), ("posterior", *shape))

        return DiffusersWanCodec.from_folder(self.folder, torch.float32, self.device, noise=posterior_noise)

    def load_transformer(self) -> HeliosTransformer:
        return load_transformer(self.checkpoint, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class Job:
    """What to make. `image` (H, W, 3) uint8 makes it image-to-video, `video` video-to-video, neither text-to-video."""

    prompt: str
    num_chunks: int
    width: int
    height: int
    negative_prompt: str = ""
    image: torch.Tensor | None = None
    video: Clip | None = None
    resize: str = "crop"

    def check(self, settings: SamplingSettings) -> None:
        """Raise ValueError, before anything heavy is loaded, for what cannot work."""
        check_size(self.width, self.height, settings.schedule.num_stages)
        if self.num_chunks < 1:
            raise ValueError(f"number of chunks is {self.num_chunks}; at least 1 is needed (a chunk is 33 frames)")
        if self.image is not None and self.video is not None:
            raise ValueError("both an image and a video are given; a video starts from one of them")
        if self.video is not None and len(self.video.frames) < FRAMES_PER_CHUNK:
            raise ValueError(
                f"the clip has {len(self.video.frames)} frames; at least {FRAMES_PER_CHUNK} are needed to go on from"
            )


def first_memory(job: Job, codec: Codec, noise: NoiseSource) -> HeliosMemory:
    """The memory that the first chunk goes on from."""

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return codec.encode(to_pixels(resize_frames(frames, job.width, job.height, job.resize)))

    if job.image is not None:
        return image_memory(*encode_image(job.image[None], encode), noise)
    if job.video is not None:
        clip = job.video
        return video_memory(*encode_video(clip.frames, encode, first_frame=clip.first_frame[None]), noise)
    return text_memory(width=job.width, height=job.height)


def generate(
    source: ModelSource, job: Job, settings: SamplingSettings, noise: NoiseSource, hooks: Hooks | None = None
) -> Iterator[torch.Tensor]:
    """Yield the video as frames (33, H, W, 3) in [0, 1], chunk after chunk."""
    job.check(settings)
    prompts = [job.prompt, job.negative_prompt] if settings.guided else [job.prompt]
    prompt, *negative = source.encode_prompts(prompts)
    codec = source.load_codec()
    memory = first_memory(job, codec, noise)
    transformer = source.load_transformer()
    for latents, _ in sample_chunks(
        transformer,
        prompt,
        memory,
        job.num_chunks,
        noise,
        settings,
        negative_prompt_embeds=negative[0] if negative else None,
        hooks=hooks,
        model_name=source.name,
    ):
        yield from_pixels(codec.decode(latents))
