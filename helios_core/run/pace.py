"""How fast the chunks of a long video are made."""

from __future__ import annotations

import time

from ..geometry import FRAMES_PER_CHUNK


class Pace:
    """How fast the chunks of a long video are made, of which `num_missing` are not on disk when it begins."""

    def __init__(self, num_missing: int) -> None:
        self.num_missing = num_missing
        self.num_made = 0
        self.started: float | None = None
        self.seconds = 0.0
        self._mark = time.monotonic()

    def count(self, *, made: bool) -> None:
        """A chunk is there; only the time of those that were made counts."""
        now = time.monotonic()
        if made:
            self.num_made += 1
            self.seconds += now - self._mark
        self._mark = now

    @property
    def frames_per_second(self) -> float | None:
        return self.num_made * FRAMES_PER_CHUNK / self.seconds if self.seconds else None

    @property
    def eta_seconds(self) -> float | None:
        if not self.num_made:
            return None
        return max(0, self.num_missing - self.num_made) * self.seconds / self.num_made


def in_words(seconds: float) -> str:
    """12.3 -> "12 s", 200 -> "3 min 20 s", 7500 -> "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
