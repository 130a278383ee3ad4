"""What a video is finished into: size, rate, looks and format, and the models that make it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Protocol

import av
import torch

from ..fingerprint import fingerprint
from ..media.formats import MP4_H264, VideoFormat
from ..media.reader import exact_rate
from . import pictures
from .timing import CONTEXT_FRAMES, CutDetector, Interpolate, Pace, interpolated

# Raised by one whenever equal settings would give other frames than before: pieces are then made again.
_VERSION = 1


class Upscaler(Protocol):
    """A model that makes a frame (H, W, 3) in [0, 1] into one (scale * H, scale * W, 3)."""

    scale: float
    fingerprint: str

    def __call__(self, frame: torch.Tensor) -> torch.Tensor: ...


class Interpolator(Protocol):
    """A model that makes frames between two; see `timing.Interpolate`."""

    fingerprint: str
    __call__: Interpolate


@dataclass(frozen=True)
class Recipe:
    """What to do with a video. The order is fixed: interpolate, upscale, resize, sharpen, grain.

    Size: `width` and `height` in pixels, one of them 0 to follow the shape of the picture, or `scale` times the source;
    all 0: what the upscaler gives. `fit` is how another shape is met (see `pictures.place`). Rate: `factor` times the
    source's or `frame_rate` per second. `cut_threshold` as in `CutDetector`; `sharpness` as in `pictures.sharpen`;
    `grain` as in `pictures.add_grain`, from 0 to 1.

    Raises ValueError for values that are out of range or contradict each other.
    """

    upscaler: Upscaler | None = None
    interpolator: Interpolator | None = None
    width: int = 0
    height: int = 0
    scale: float = 0.0
    fit: str = "crop"
    factor: int = 1
    frame_rate: float | Fraction = 0
    cut_threshold: float = 0.06
    sharpness: float = 0.0
    grain: float = 0.0
    grain_seed: int = 0
    format: VideoFormat = MP4_H264
    pixel_format: str = "auto"
    crf: float = 18

    def __post_init__(self) -> None:
        ranges = {
            "width": (0, 16384), "height": (0, 16384), "scale": (0, 16), "factor": (1, 16), "frame_rate": (0, 1000),
            "cut_threshold": (0, 1), "sharpness": (0, 5), "grain": (0, 1),
        }  # fmt: skip
        for name, (lowest, highest) in ranges.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise ValueError(f"{name} is {value}; allowed: {lowest} to {highest}")
        if self.fit not in pictures.FITS:
            raise ValueError(f"fit is {self.fit!r}; allowed: {', '.join(pictures.FITS)}")
        if self.scale and (self.width or self.height):
            raise ValueError(
                f"scale {self.scale} and a size of {self.width}x{self.height} are both set; set one of them to 0"
            )
        if self.frame_rate and self.factor > 1:
            raise ValueError(
                f"the frame rate is set twice: factor {self.factor} and {float(self.frame_rate):g} per second. Set "
                "factor to 1 or frame_rate to 0"
            )
        self.format.check_crf(self.crf)

    def target_size(self, source: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the result for a source of that size; sizes that follow from others are even numbers.

        Raises ValueError when it cannot be written in the format.
        """
        width, height = source
        if self.width and self.height:
            size = self.width, self.height
        elif self.width or self.height:
            ratio = self.width / width if self.width else self.height / height
            size = self.width or _even(width * ratio), self.height or _even(height * ratio)
        else:
            ratio = self.scale or (self.upscaler.scale if self.upscaler else 1)
            size = _even(width * ratio), _even(height * ratio)
        self.format.choose_pixel_format(self.pixel_format, *size)
        self.format.check_width(size[0])
        return size

    def pace(self, source_rate: Fraction) -> Pace:
        """The rates before and after. Raises ValueError for a new rate without a model that makes the frames."""
        rate = exact_rate(self.frame_rate) if self.frame_rate else source_rate * self.factor
        if rate != source_rate and self.interpolator is None:
            raise ValueError(
                f"{float(source_rate):g} frames per second become {float(rate):g} only with a model that makes the "
                "frames between: connect one to interp_model (from Load Frame Interpolation Model), or set factor to 1 "
                "and frame_rate to 0"
            )
        return Pace(source_rate, exact_rate(rate))

    @property
    def num_context(self) -> int:
        """How many frames before a window its result depends on."""
        return CONTEXT_FRAMES if self.interpolator else 0

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that the bytes of a piece depend on besides its frames; also of FFmpeg's version."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for model in ("upscaler", "interpolator"):
            values[model] = getattr(values[model], "fingerprint", None)
        return fingerprint(_VERSION, values, {name: list(part) for name, part in av.library_versions.items()})


def _even(size: float) -> int:
    return max(2, round(size / 2) * 2)


@dataclass(frozen=True)
class Kitchen:
    """A recipe for a video of a known size and rate: makes its frames window by window."""

    recipe: Recipe
    pace: Pace
    source: tuple[int, int]  # width, height
    size: tuple[int, int]
    placement: pictures.Placement = field(init=False)

    def __post_init__(self) -> None:
        scale = self.recipe.upscaler.scale if self.recipe.upscaler else 1
        upscaled = tuple(round(side * scale) for side in self.source)
        object.__setattr__(self, "placement", pictures.place(upscaled, self.size, self.recipe.fit))

    def frames(
        self,
        window: Iterator[torch.Tensor],
        first: int,
        outputs: range,
        on_cut: Callable[[int], None] = lambda frame: None,
    ) -> Iterator[torch.Tensor]:
        """The result's frames (H, W, 3) in [0, 1] with the numbers `outputs`, from source frames (H, W, 3), uint8 or
        floats, from number `first` on."""
        recipe = self.recipe
        cuts = CutDetector(recipe.cut_threshold)
        floats = (_as_floats(frame) for frame in window)
        made = interpolated(floats, first, outputs, self.pace, recipe.interpolator, cuts, on_cut)
        for number, frame in zip(outputs, made, strict=True):
            if recipe.upscaler is not None:
                frame = recipe.upscaler(frame)  # noqa: PLW2901
            looks = pictures.sharpen(pictures.resize(frame, self.placement), recipe.sharpness)
            yield pictures.add_grain(looks, recipe.grain, recipe.grain_seed, number)


def _as_floats(frame: torch.Tensor) -> torch.Tensor:
    return frame.float() if frame.is_floating_point() else frame.float() / 255
