"""Reads a toy video back: which scene it shows, where the shape is in each frame, and whether it is there at all.

By image analysis alone. The backgrounds are grey and the shapes are not, so saturation distinguishes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZE, SPEED, Scene, shape_mask

_GREY, _COLOURED = 0.15, 0.45  # saturation of what is surely background, and surely shape (the palest has 0.6)
_MOVING = 0.3 * SPEED  # slower than this along both axes is standing still


@dataclass(frozen=True)
class Seen:
    """What a video shows. `scene` holds None for what cannot be seen. `positions` (T, 2) are the shape's centres in
    pixels, `colours` (T, 3) its mean colour and `sizes` (T,) the part of a true shape's area that it has."""

    scene: Scene
    positions: torch.Tensor
    colours: torch.Tensor
    sizes: torch.Tensor

    @property
    def is_there(self) -> bool:
        """Whether the shape has about its size in nearly every frame."""
        return float(((self.sizes > 0.5) & (self.sizes < 1.7)).float().mean()) >= 0.9


def look(frames: torch.Tensor) -> Seen:
    """Judge frames (T, H, W, 3) in [0, 1]."""
    frames = frames.float()
    cover = ((frames.amax(-1) - frames.amin(-1) - _GREY) / (_COLOURED - _GREY)).clamp(0, 1)
    solid = (cover > 0.9).float()
    weight = solid.flatten(1)
    colours = (weight[:, :, None] * frames.flatten(1, 2)).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)
    positions = centres(cover)
    shape, area = _shape(cover, positions)
    grey = frames[cover == 0]
    scene = Scene(
        colour=_nearest(colours.mean(0), COLOURS) if weight.sum() else None,
        shape=shape,
        direction=_direction(positions),
        background=_nearest(grey.mean(), BACKGROUNDS) if len(grey) else None,
    )
    return Seen(scene, positions, colours, area)


def centres(cover: torch.Tensor) -> torch.Tensor:
    """Centre (x, y) in pixels of what is covered (T, H, W), on a picture that wraps around: (T, 2) in [0, SIZE)."""
    angle = (torch.arange(SIZE) + 0.5) * (2 * math.pi / SIZE)
    places = []
    for profile in (cover.sum(1), cover.sum(2)):
        turn = torch.atan2((profile * angle.sin()).sum(1), (profile * angle.cos()).sum(1))
        places.append(turn / (2 * math.pi) * SIZE % SIZE)
    return torch.stack(places, dim=1)


def distance(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Distance in pixels between places (..., 2), the short way around."""
    apart = (first - second + SIZE / 2) % SIZE - SIZE / 2
    return apart.norm(dim=-1)


def velocity(positions: torch.Tensor) -> torch.Tensor:
    """Pixels a frame (x, y) of a path (T, 2): the slope of the best straight line through it."""
    steps = (positions.diff(dim=0) + SIZE / 2) % SIZE - SIZE / 2
    path = torch.cat((torch.zeros(1, 2), steps.cumsum(0)))
    time = torch.arange(len(path)).float()
    time = time - time.mean()
    return (time[:, None] * (path - path.mean(0))).sum(0) / time.square().sum()


def _direction(positions: torch.Tensor) -> str | None:
    x, y = velocity(positions).tolist()
    if max(abs(x), abs(y)) < _MOVING:
        return None
    return max(DIRECTIONS, key=lambda name: x * DIRECTIONS[name][0] + y * DIRECTIONS[name][1])


def _shape(cover: torch.Tensor, positions: torch.Tensor) -> tuple[str | None, torch.Tensor]:
    """The shape whose picture overlaps best with what is covered, on average over the frames, and its size."""
    overlap = {}
    for shape in SHAPES:
        # A triangle's centre of mass is its centre; so a true shape at the measured centre lies on it.
        template = shape_mask(shape, positions)
        shared, either = torch.minimum(cover, template).sum((1, 2)), torch.maximum(cover, template).sum((1, 2))
        overlap[shape] = float((shared / either.clamp_min(1)).mean())
    best = max(overlap, key=overlap.__getitem__)
    full = shape_mask(best, torch.tensor([[SIZE / 2, SIZE / 2]])).sum()
    return (best if overlap[best] > 0.5 else None), cover.sum((1, 2)) / full


def _nearest(value: torch.Tensor, table: dict) -> str:
    return min(table, key=lambda name: float((value - torch.tensor(table[name])).square().sum()))
