"""The toy world of the demo model: one soft coloured shape drifts without end over a shaded background.

Shapes that leave on one side come in again on the other, so that "right" is true of every frame, and a video of any
length has a true continuation. Everything a prompt says can be seen in the picture; the judge in `judge` reads it back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

SIZE = 64  # width and height in pixels
SPEED = 1.0  # pixels a frame
MARGIN = 20.0  # a shape's path keeps this far from the sides along which it moves
OPENING = 8.0  # where nothing came before, a shape begins no farther than this from the middle of its path
EDGE = 2.0  # pixels over which a shape fades into the background

COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.70, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.70, 0.20, 0.80),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}  # (x, y); y grows downwards
UNTOLD_DIRECTION = "right"  # in which the shape of a picture moves when no prompt says otherwise
BACKGROUNDS = {"black": 0.10, "grey": 0.45, "white": 0.85}
SHADE = 0.08  # backgrounds are this much darker at the top left and brighter at the bottom right


@dataclass(frozen=True)
class Scene:
    """What a prompt says of a video. The words are keys of the tables above."""

    colour: str
    shape: str
    direction: str
    background: str

    @property
    def prompt(self) -> str:
        return f"a {self.colour} {self.shape} moving {self.direction} on a {self.background} background"


def all_scenes() -> list[Scene]:
    """Every scene that a prompt can name, 180 of them."""
    return [Scene(*words) for words in itertools.product(COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS)]


def is_held_out(scene: Scene) -> bool:
    """Whether the model never saw this scene in training: a fifth of them, with every pair of words in the rest."""
    tables: tuple[Iterable[str], ...] = (COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS)
    words = (scene.colour, scene.shape, scene.direction, scene.background)
    return sum(list(table).index(word) for table, word in zip(tables, words, strict=True)) % len(COLOURS) == 0


def random_start(scene: Scene, generator: torch.Generator, *, opening: bool = False) -> tuple[float, float]:
    """A place (x, y) in pixels where a video of the scene may begin: anywhere along its path, away from the sides.

    An `opening`, which is what text-to-video makes, begins about the middle of the path. Were it anywhere, so small a
    model would have to think of a place and of a movement at the same time, and often takes the wrong one of two
    opposite directions.
    """
    along, across = torch.rand(2, generator=generator).tolist()
    along = SIZE / 2 + (2 * along - 1) * OPENING if opening else along * SIZE
    across = MARGIN + across * (SIZE - 2 * MARGIN)
    return (along, across) if DIRECTIONS[scene.direction][0] else (across, along)


def position(scene: Scene, start: tuple[float, float], frame: float) -> tuple[float, float]:
    """Centre (x, y) of the shape in that frame, in [0, SIZE)."""
    step = DIRECTIONS[scene.direction]
    x, y = ((place + SPEED * frame * along) % SIZE for place, along in zip(start, step, strict=True))
    return x, y


def render(scene: Scene, start: tuple[float, float], frames: range) -> torch.Tensor:
    """Those frames of the video as (T, H, W, 3) in [0, 1]."""
    places = torch.tensor([position(scene, start, frame) for frame in frames])
    cover = shape_mask(scene.shape, places)[..., None]
    return cover * torch.tensor(COLOURS[scene.colour]) + (1 - cover) * background(scene.background)


def background(name: str) -> torch.Tensor:
    """The empty background (H, W, 3) in [0, 1]: grey, darker at the top left."""
    ramp = torch.linspace(-1, 1, SIZE)
    shade = BACKGROUNDS[name] + SHADE * (ramp[:, None] + ramp) / 2
    return shade[..., None].expand(SIZE, SIZE, 3)


def shape_mask(shape: str, places: torch.Tensor) -> torch.Tensor:
    """How much of each pixel a shape at `places` (T, 2) covers, (T, H, W) in [0, 1]; it wraps around all sides."""
    pixels = torch.arange(SIZE) + 0.5
    x, y = (((pixels - places[:, axis, None] + SIZE / 2) % SIZE) - SIZE / 2 for axis in (0, 1))
    x, y = x[:, None, :], y[:, :, None]
    return torch.sigmoid(-4 / EDGE * _DISTANCES[shape](x, y))


def _circle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.sqrt(x**2 + y**2) - 13


def _square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.abs(), y.abs()) - 11.5


def _triangle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Equilateral, one corner up, 9 pixels from the centre to each side."""
    return torch.maximum(y, math.sqrt(3) / 2 * x.abs() - y / 2) - 9


# Distance in pixels from the outline, negative inside.
_DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle}
