"""Sizes of a chunk in frames, latents and pixels, and which widths and heights a pyramid fits."""

from __future__ import annotations

# The Wan VAE squeezes 8x8 pixels and, after the first frame, 4 frames into one latent position.
VAE_SPATIAL_STRIDE = 8
VAE_TEMPORAL_STRIDE = 4
LATENT_CHANNELS = 16
LATENT_FRAMES_PER_CHUNK = 9
FRAMES_PER_CHUNK = (LATENT_FRAMES_PER_CHUNK - 1) * VAE_TEMPORAL_STRIDE + 1  # 33
MAX_SIDE = 8192  # pixels: 160 times the trained area; what is larger is a slip of the keyboard
MAX_CHUNKS = 100_000  # 38 hours at 24 frames per second
FRAME_RATE = 24  # frames per second, the rate Helios was trained at


def size_multiple(num_stages: int, patch_size: tuple[int, int, int] = (1, 2, 2)) -> int:
    """Height and width in pixels must be multiples of this: 16 for one stage, 64 for three."""
    return VAE_SPATIAL_STRIDE * patch_size[1] * 2 ** (num_stages - 1)


def check_num_chunks(num_chunks: float) -> None:
    """Raise ValueError for a length that cannot be made."""
    if not num_chunks > 0:
        raise ValueError(f"number of chunks is {num_chunks}; at least 1 is needed (a chunk is 33 frames)")
    if num_chunks > MAX_CHUNKS:
        raise ValueError(f"number of chunks is {num_chunks:.12g}; at most {MAX_CHUNKS} (38 hours) are made in one run")


def check_size(width: int, height: int, num_stages: int) -> None:
    """Raise ValueError, naming the nearest sizes that work, unless the pyramid fits width and height (pixels)."""
    multiple = size_multiple(num_stages)
    for name, value in (("width", width), ("height", height)):
        if not value <= MAX_SIDE:
            raise ValueError(f"{name} {value} is too large; at most {MAX_SIDE} pixels (Helios was trained at 640x384)")
        if value < multiple or value % multiple:
            below = max(multiple, value // multiple * multiple)
            nearest = f"{below} or {below + multiple}" if value > multiple else f"{multiple}"
            raise ValueError(
                f"{name} {value} is not a multiple of {multiple} "
                f"(needed by {num_stages} pyramid stage{'s' if num_stages > 1 else ''}); nearest: {nearest}"
            )
