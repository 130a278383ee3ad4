"""Frames as tensors: pictures from files, sizes, value ranges, contact sheets."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .formats import eight_bits

_FITS: Mapping[str, Callable[..., Image.Image]] = {
    "crop": ImageOps.fit,  # cover, then cut the middle out
    "stretch": Image.Image.resize,
    "pad": ImageOps.pad,  # contain, black around it
}


def read_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read a picture as (H, W, 3) uint8, turned as its EXIF orientation says; transparency is dropped.

    Raises FileNotFoundError when there is no such file and ValueError when it is not a readable picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                # 16-bit grey: Pillow's own conversion to RGB would clip at 255 instead of scaling.
                grey = np.asarray(image).astype(np.float64) / 257
                image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
            rgb = np.array(image.convert("RGB"))
    except UnidentifiedImageError as fault:
        raise ValueError(f"{path.name} is not a picture Pillow can read; use PNG, JPEG or WebP") from fault
    except (OSError, SyntaxError, Image.DecompressionBombError) as fault:
        raise ValueError(f"the picture {path.name} cannot be read: {fault}") from fault
    return torch.from_numpy(rgb)


def resize_frames(
    frames: torch.Tensor,
    width: int,
    height: int,
    mode: str = "crop",
) -> torch.Tensor:
    """Resize uint8 frames (T, H, W, 3) to (T, height, width, 3) with Pillow's Lanczos filter.

    "crop" fills the new size and cuts what stands out on both sides, "pad" shows all with black bars, and
    "stretch" ignores the shape, as diffusers' VideoProcessor does. Raises ValueError for other modes, sizes
    below 1 and other shapes, TypeError for frames that are not uint8.
    """
    check_eight_bit(frames)
    if mode not in _FITS:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(_FITS)}")
    if width < 1 or height < 1:
        raise ValueError(f"cannot resize to {width}x{height}; both must be at least 1")
    if frames.shape[1:3] == (height, width):
        return frames
    resized = torch.empty(len(frames), height, width, 3, dtype=torch.uint8)
    for index, frame in enumerate(frames.cpu().numpy()):
        image = _FITS[mode](Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS)
        resized[index] = torch.from_numpy(np.array(image))
    return resized


def extend_edges(frames: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Frames (T, H, W, C), made wider and higher to the right and at the bottom by repeating their last pixels."""
    if frames.shape[2] < width:
        frames = torch.cat((frames, frames[:, :, -1:].expand(-1, -1, width - frames.shape[2], -1)), dim=2)
    if frames.shape[1] < height:
        frames = torch.cat((frames, frames[:, -1:].expand(-1, height - frames.shape[1], -1, -1)), dim=1)
    return frames


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 to pixels (1, 3, T, H, W), float32 in [-1, 1]: what a codec encodes.

    Raises ValueError for another shape, TypeError for frames that are not uint8.
    """
    check_eight_bit(frames)
    return (frames.float() / 255 * 2 - 1).permute(3, 0, 1, 2)[None].contiguous()


def from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (1, 3, T, H, W) in [-1, 1] to frames (T, H, W, 3), float32 clamped to [0, 1].

    Raises ValueError for another shape.
    """
    if pixels.ndim != 5 or pixels.shape[:2] != (1, 3):
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected (1, 3, T, H, W)")
    return (pixels[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).contiguous()


def contact_sheet(
    frames: torch.Tensor, columns: int = 4, rows: int = 2, tile_width: int | None = None, gap: int = 4
) -> Image.Image:
    """One picture of up to `columns * rows` frames spread evenly from the first to the last.

    `frames` (T, H, W, 3) are uint8 or floats in [0, 1]. Tiles are `tile_width` pixels wide (the frames' own
    width by default) with `gap` pixels of black between. Raises ValueError without frames or tiles.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (T, H, W, 3) with T at least 1")
    if min(columns, rows) < 1:
        raise ValueError(f"a contact sheet of {columns} columns and {rows} rows has no tiles")
    num_tiles = min(columns * rows, len(frames))
    columns = min(columns, num_tiles)
    chosen = frames[torch.linspace(0, len(frames) - 1, num_tiles).round().long()].cpu()
    if chosen.is_floating_point():
        chosen = eight_bits(chosen)
    height, width = chosen.shape[1:3]
    tile_width = tile_width or width
    tile_height = max(1, round(height * tile_width / width))
    size = (columns * (tile_width + gap) - gap, math.ceil(num_tiles / columns) * (tile_height + gap) - gap)
    sheet = Image.new("RGB", size)
    for index, tile in enumerate(resize_frames(chosen, tile_width, tile_height, "stretch")):
        row, column = divmod(index, columns)
        corner = (column * (tile_width + gap), row * (tile_height + gap))
        sheet.paste(Image.fromarray(tile.numpy()), corner)
    return sheet


def check_eight_bit(frames: torch.Tensor) -> None:
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}; expected uint8, as read_video and read_image give them")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (T, H, W, 3)")
