"""What is done to one frame after the other: another size, sharper edges, grain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

FITS = ("crop", "pad", "stretch")
_BLUR_SIGMA = 1.0  # pixels


@dataclass(frozen=True)
class Placement:
    """How a frame of `source` (width, height) fills one of `size`: the part `box` (left, top, right, bottom, in source
    pixels) is resized to `inner`, whose upper left corner comes to `corner`; black is around it."""

    source: tuple[int, int]
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    inner: tuple[int, int]
    corner: tuple[int, int]

    @property
    def words(self) -> str:
        """What is lost or added, for people; empty when nothing is."""
        left, top, right, bottom = self.box
        across, down = self.source[0] - (right - left), self.source[1] - (bottom - top)
        lost = max(across / self.source[0], down / self.source[1])
        if lost > 1e-9:
            side = "left and right" if across / self.source[0] == lost else "above and below"
            return f"{lost:.1%} of the picture is cut off, {side}"
        if self.inner != self.size:
            across, down = self.size[0] - self.inner[0], self.size[1] - self.inner[1]
            return f"black bars are added: {across} pixels in width, {down} in height"
        return ""


def place(source: tuple[int, int], size: tuple[int, int], fit: str) -> Placement:
    """Where a frame of `source` (width, height) goes in one of `size`.

    "crop" fills the size and cuts off both sides alike, "pad" shows all with black bars, "stretch" ignores the shape.
    Raises ValueError for another fit.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; allowed: {', '.join(FITS)}")
    (source_width, source_height), (width, height) = source, size
    box, inner = (0.0, 0.0, float(source_width), float(source_height)), size
    if fit == "crop":
        scale = max(width / source_width, height / source_height)
        margins = (source_width - width / scale) / 2, (source_height - height / scale) / 2
        across, down = (max(0.0, margin) if margin > 1e-6 else 0.0 for margin in margins)
        box = (across, down, source_width - across, source_height - down)
    elif fit == "pad":
        scale = min(width / source_width, height / source_height)
        inner = tuple(max(1, min(new, round(old * scale))) for new, old in zip(size, source, strict=True))
    corner = (round((width - inner[0]) / 2), round((height - inner[1]) / 2))
    return Placement(source, size, box, inner, corner)


def resize(frame: torch.Tensor, placement: Placement) -> torch.Tensor:
    """A frame (H, W, 3), floats in [0, 1], placed in the new size by Pillow's Lanczos filter on floats, on the CPU."""
    (width, height), (left, top) = placement.size, placement.corner
    if placement.source == placement.size == placement.inner and placement.box[:2] == (0, 0):
        return frame
    result = torch.zeros(height, width, 3)
    for channel, plane in enumerate(frame.float().cpu().movedim(-1, 0)):
        resized = Image.fromarray(np.ascontiguousarray(plane.numpy())).resize(
            placement.inner, Image.Resampling.LANCZOS, box=placement.box
        )
        inside = result[top : top + placement.inner[1], left : left + placement.inner[0], channel]
        inside.copy_(torch.from_numpy(np.array(resized)))
    return result.clamp_(0, 1)


def sharpen(frame: torch.Tensor, amount: float) -> torch.Tensor:
    """Unsharp mask: `amount` times what a Gaussian blur of one pixel takes away is added. (H, W, 3) in [0, 1]."""
    if not amount:
        return frame
    taps = torch.exp(-(torch.arange(-3, 4, dtype=torch.float32) ** 2) / (2 * _BLUR_SIGMA**2)).to(frame.device)
    taps = (taps / taps.sum()).expand(3, 1, 7)
    blurred = frame.movedim(-1, 0)[None].float()
    blurred = torch.nn.functional.pad(blurred, (3, 3, 3, 3), mode="replicate")
    blurred = torch.nn.functional.conv2d(blurred, taps[..., None, :], groups=3)
    blurred = torch.nn.functional.conv2d(blurred, taps[..., None], groups=3)
    return (frame + amount * (frame - blurred[0].movedim(0, -1))).clamp(0, 1)


def add_grain(frame: torch.Tensor, amount: float, seed: int, number: int) -> torch.Tensor:
    """Grey noise with a standard deviation of `amount` of the range of values, strongest in the middle tones as on
    film. (H, W, 3) in [0, 1]; equal `seed` and frame `number` give equal grain."""
    if not amount:
        return frame
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    noise = torch.randn(frame.shape[:2], generator=generator).to(frame.device)[..., None]
    brightness = frame.mean(-1, keepdim=True)
    return (frame + amount * noise * (4 * brightness * (1 - brightness)).sqrt()).clamp(0, 1)
