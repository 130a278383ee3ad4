"""How a video begins: text-, image- and video-to-video differ only in the first memory.

All latents here are in model space. Image and video latents get a little noise, which the model was trained to
expect of a past that it did not make itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..geometry import FRAMES_PER_CHUNK, LATENT_CHANNELS, LATENT_FRAMES_PER_CHUNK, VAE_SPATIAL_STRIDE
from ..memory.config import MemoryConfig
from ..memory.memory import HeliosMemory, Provenance, Task
from .noise import Key, NoiseSource

DEFAULT_SIGMA_RANGE = (0.111, 0.135)

# encode(frames (T, H, W, 3), key) -> latents (1, C, 1 + (T - 1) / 4, h, w) in model space, for T = 1 or 33. The key
# names the draw of an encoder that samples its posterior: no two encodings of a video shall get the same noise.
Encode = Callable[[torch.Tensor, Key], torch.Tensor]


def encode_image(image: torch.Tensor, encode: Encode) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents for `image_memory` of an image (1, H, W, 3): of the image alone, and the tail of 33 frames of it."""
    still = image.expand(FRAMES_PER_CHUNK, -1, -1, -1)
    return encode(image, ()), encode(still, ())[:, :, -1:]


def encode_video(
    frames: torch.Tensor, encode: Encode, *, first_frame: torch.Tensor | None = None, config: MemoryConfig | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents for `video_memory` of a video (T, H, W, 3): of its first frame, and of as many of its last chunks of 33
    frames as the memory reaches back.

    `first_frame` (1, H, W, 3) is given when `frames` are only the end of the video. Raises ValueError for a video
    shorter than one chunk.
    """
    config = config or MemoryConfig()
    if len(frames) < FRAMES_PER_CHUNK:
        raise ValueError(
            f"the video has {len(frames)} frames; at least {FRAMES_PER_CHUNK} (one chunk) are needed to continue it. "
            "Use a longer clip, or image-to-video from one of its frames"
        )
    reach = -(-config.num_latent_frames // LATENT_FRAMES_PER_CHUNK)
    num_chunks = min(len(frames) // FRAMES_PER_CHUNK, reach)
    first = encode(frames[:1] if first_frame is None else first_frame, ())
    tail = frames[len(frames) - num_chunks * FRAMES_PER_CHUNK :].split(FRAMES_PER_CHUNK)
    # Named from the end, as their noise is: a clip cut to what matters is encoded alike.
    chunks = [encode(chunk, ("video", number)) for number, chunk in zip(range(-num_chunks, 0), tail, strict=True)]
    return first, torch.cat(chunks, dim=2)


def text_memory(
    *, width: int, height: int, batch_size: int = 1, channels: int = LATENT_CHANNELS, config: MemoryConfig | None = None
) -> HeliosMemory:
    """T2V: no past at all. `width` and `height` in pixels."""
    config = config or MemoryConfig()
    grid = (height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE)
    frames = torch.zeros(batch_size, channels, config.num_latent_frames, *grid)
    return HeliosMemory(frames, config=config)


def image_memory(
    image_latents: torch.Tensor,
    tail_latents: torch.Tensor,
    noise: NoiseSource,
    *,
    add_noise: bool = True,
    image_sigma_range: tuple[float, float] = DEFAULT_SIGMA_RANGE,
    video_sigma_range: tuple[float, float] = DEFAULT_SIGMA_RANGE,
    config: MemoryConfig | None = None,
) -> HeliosMemory:
    """I2V: the image is the anchor, and a still video of it the past.

    `image_latents` (B, C, 1, h, w): the image encoded alone. `tail_latents` (B, C, 1, h, w): the last latent frame of
    the image repeated for 33 frames. Each is mixed with noise at its own level, uniform in its sigma range.
    """
    config = config or MemoryConfig()
    if add_noise:
        image_latents = _mix_noise(image_latents, noise, image_sigma_range, 1, ("image",))
        tail_latents = _mix_noise(tail_latents, noise, video_sigma_range, 1, ("tail",))
    return _memory_of(image_latents, tail_latents, "i2v", config)


def video_memory(
    first_frame_latents: torch.Tensor,
    video_latents: torch.Tensor,
    noise: NoiseSource,
    *,
    add_noise: bool = True,
    image_sigma_range: tuple[float, float] = DEFAULT_SIGMA_RANGE,
    video_sigma_range: tuple[float, float] = DEFAULT_SIGMA_RANGE,
    config: MemoryConfig | None = None,
) -> HeliosMemory:
    """V2V: the video is the past, its first frame the anchor.

    `first_frame_latents` (B, C, 1, h, w): frame 0 of the whole video, encoded alone. `video_latents` (B, C, 9n, h, w):
    chunks of 33 frames, each encoded alone. Every latent frame is mixed with noise at its own level. More than
    the last three chunks make no difference with a memory of 19 frames, and need not be given.
    """
    config = config or MemoryConfig()
    num_chunks, rest = divmod(video_latents.shape[2], LATENT_FRAMES_PER_CHUNK)
    if rest or not num_chunks:
        raise ValueError(
            f"video latents have {video_latents.shape[2]} frames; a positive multiple of {LATENT_FRAMES_PER_CHUNK} "
            f"is needed (each {FRAMES_PER_CHUNK} frames of video, encoded alone, give {LATENT_FRAMES_PER_CHUNK})"
        )
    if add_noise:
        first_frame_latents = _mix_noise(first_frame_latents, noise, image_sigma_range, 1, ("first_frame",))
        chunks = video_latents.split(LATENT_FRAMES_PER_CHUNK, dim=2)
        # Named from the end, so that a video cut to the chunks that matter gets the same noise.
        names = range(-num_chunks, 0)
        chunks = [
            _mix_noise(chunk, noise, video_sigma_range, LATENT_FRAMES_PER_CHUNK, ("video", name))
            for name, chunk in zip(names, chunks, strict=True)
        ]
        video_latents = torch.cat(chunks, dim=2)
    return _memory_of(first_frame_latents, video_latents, "v2v", config)


def _memory_of(anchor: torch.Tensor, past: torch.Tensor, task: Task, config: MemoryConfig) -> HeliosMemory:
    missing = config.num_latent_frames - past.shape[2]
    past = past.float()
    if missing > 0:
        nothing = past.new_zeros(*past.shape[:2], missing, *past.shape[3:])
        past = torch.cat((nothing, past), dim=2)
    frames = past[:, :, -config.num_latent_frames :].clone()
    return HeliosMemory(
        frames,
        anchor=anchor.float() if config.keep_first_frame else None,
        config=config,
        provenance=Provenance(task=task),
    )


def _mix_noise(
    latents: torch.Tensor, noise: NoiseSource, sigma_range: tuple[float, float], num_levels: int, key: Key
) -> torch.Tensor:
    """sigma * noise + (1 - sigma) * latents, with one sigma for all frames or one for each."""
    low, high = sigma_range
    if not 0 <= low <= high <= 1:
        raise ValueError(f"sigma range {sigma_range} must be two rising numbers in [0, 1]")
    sigma = (noise.uniform((num_levels,), (*key, "sigma")) * (high - low) + low).to(latents.device)
    sigma = sigma.view(1, 1, -1, 1, 1)
    normal = noise.normal(tuple(latents.shape), key).to(latents.device)
    return sigma * normal + (1 - sigma) * latents
