"""Which frames a video has at a higher rate, and where it cuts to another scene."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

# Frames (H, W, 3) before and after, positions between 0 and 1 -> frames (len(positions), H, W, 3).
Interpolate = Callable[[torch.Tensor, torch.Tensor, Sequence[float]], torch.Tensor]

# A cut is recognised by the frame before the pair, too: so many frames a window needs before its first.
CONTEXT_FRAMES = 2
_THUMBNAIL = 64  # longest side in pixels


@dataclass(frozen=True)
class Pace:
    """Frames at `rate` per second from frames at `source_rate`: frame k of the result is at k * source_rate / rate,
    counted in source frames.

    Each source frame is shown as long as before, the last one too, so that a video keeps its duration.
    """

    source_rate: Fraction
    rate: Fraction

    def position(self, output: int) -> Fraction:
        return output * self.source_rate / self.rate

    def upto(self, frame: int) -> int:
        """How many frames of the result are not later than this source frame; 0 for a frame before the first."""
        return math.floor(frame * self.rate / self.source_rate) + 1 if frame >= 0 else 0

    def total(self, num_frames: int) -> int:
        """How many frames the result has for so many source frames."""
        return math.ceil(num_frames * self.rate / self.source_rate)


class CutDetector:
    """Finds the first frame of a new scene: it differs from the one before more than the two frames before it differ
    from each other, by more than `threshold` of the range of values (0: never).

    So fast motion does not count: there all frames differ. And the second frame of all is never taken for
    a cut. Differences are of thumbnails, mean absolute.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._thumbnail: torch.Tensor | None = None
        self._difference: float | None = None

    def is_cut(self, frame: torch.Tensor) -> bool:
        """Whether `frame` (H, W, 3) in [0, 1] begins a scene; ask about every frame in turn."""
        shrink = min(1.0, _THUMBNAIL / max(frame.shape[:2]))
        size = [max(1, round(side * shrink)) for side in frame.shape[:2]]
        thumbnail = torch.nn.functional.adaptive_avg_pool2d(frame.movedim(-1, 0)[None], size)
        before, self._thumbnail = self._thumbnail, thumbnail
        if before is None:
            return False
        difference = float((thumbnail - before).abs().mean())
        usual, self._difference = self._difference, difference
        return usual is not None and 0 < self._threshold < difference - usual


def interpolated(
    frames: Iterable[torch.Tensor],
    first: int,
    outputs: range,
    pace: Pace,
    interpolate: Interpolate | None,
    cuts: CutDetector,
    on_cut: Callable[[int], None] = lambda frame: None,
) -> Iterator[torch.Tensor]:
    """The frames of the result with the numbers `outputs`, from source frames (H, W, 3) in [0, 1] numbered from
    `first` on.

    Between two scenes and after the last frame, the frame before is held. `interpolate` may be None when no result
    lies between two frames.
    """
    before, output = None, outputs.start
    for number, frame in enumerate(frames, first):
        cut = interpolate is not None and cuts.is_cut(frame)
        if cut:
            on_cut(number)
        wanted = range(output, max(output, min(outputs.stop, pace.upto(number))))
        between = [float(pace.position(k) - (number - 1)) for k in wanted if pace.position(k) < number]
        if between and cut:
            yield from [before] * len(between)
        elif between:
            yield from interpolate(before, frame, between)
        yield from [frame] * (len(wanted) - len(between))
        before, output = frame, wanted.stop
    yield from [before] * (outputs.stop - output)
