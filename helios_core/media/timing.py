"""When frames are shown: whether a clip's rate is constant, and the same clip at another rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TypeVar

Frame = TypeVar("Frame")

# Timestamps are rounded to a tick of the file's clock, at worst a millisecond; a frame left out makes a gap of two.
_LARGEST_RATIO = 1.5


def is_constant(times: Sequence[Fraction]) -> bool:
    """Whether frames shown at these times, in seconds, ascending, come at even intervals (to half an interval)."""
    intervals = [after - before for before, after in pairwise(times)]
    return not intervals or max(intervals) < _LARGEST_RATIO * min(intervals)


def average_rate(times: Sequence[Fraction]) -> Fraction:
    """Frames per second of at least two frames shown at these times, the last as long as the average of the others."""
    return Fraction(len(times) - 1) / (times[-1] - times[0])


def at_rate(timed: Iterable[tuple[Fraction, Frame]], rate: Fraction, end: Fraction) -> Iterator[Frame]:
    """Of frames with the times in seconds they are shown at, ascending, as many as `rate` per second make to `end`.

    Frame k of the result is the one whose time is nearest to k / rate after the first: frames are repeated or left
    out, never mixed. The first is always there. `end` is when the last one is no longer shown.
    """
    timed = iter(timed)
    before = next(timed, None)
    if before is None:
        return
    wanted = before[0]
    for time, frame in timed:
        middle = (before[0] + time) / 2
        while wanted < middle:
            yield before[1]
            wanted += 1 / rate
        before = (time, frame)
    # Half an interval of tolerance for rounded timestamps; it also rounds the number of frames to the nearest.
    while wanted < end - 1 / rate / 2 or wanted == before[0]:
        yield before[1]
        wanted += 1 / rate
