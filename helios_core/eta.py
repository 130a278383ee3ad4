"""How far a job is and how long the rest takes, counted by work: the stages' steps differ in cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .config import FRAMES_PER_CHUNK, SamplingSettings, TransformerConfig
from .cost import stage_costs
from .guidance import is_zero_step


def step_costs(
    config: TransformerConfig, settings: SamplingSettings, width: int, height: int, chunk_index: int
) -> list[int]:
    """Floating point operations of each step of a chunk of width x height pixels, in order."""
    forwards = 2 if settings.guided else 1
    stages = stage_costs(config, width, height, settings.schedule.num_stages)
    return [
        0 if is_zero_step(settings, stage, step) else forwards * stages[stage].flops
        for stage, num_steps in enumerate(settings.steps_in_chunk(chunk_index))
        for step in range(num_steps)
    ]


class JobClock:
    """Told each step of the sampler as it is done, knows the `fraction` of the job's work done and `seconds_left`.

    `costs` are those of the steps of each chunk in order, the first being chunk `first_chunk` of the video. A chunk
    that no step is told of was found finished: it counts as done, and tells nothing of the speed. The first step is
    left out of the measured speed too: weights move and kernels are chosen in it. `clock` gives seconds.
    """

    def __init__(
        self, costs: Sequence[Sequence[int]], first_chunk: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._costs = costs
        self._total = sum(map(sum, costs))
        self._first_chunk = first_chunk
        self._clock = clock
        self._at = (0, 0)  # chunk and step that come next
        self._done = 0
        self._measured = 0
        self._warm: tuple[float, int] | None = None  # time and work measured when the first step with any work ended

    def step_done(self, chunk_index: int) -> None:
        """A step of chunk `chunk_index` of the video is done."""
        chunk, step = self._at
        while chunk < chunk_index - self._first_chunk:
            self._done += sum(self._costs[chunk][step:])
            chunk, step = chunk + 1, 0
        self._done += self._costs[chunk][step]
        self._measured += self._costs[chunk][step]
        self._at = (chunk, step + 1)
        if self._warm is None and self._measured:
            self._warm = (self._clock(), self._measured)

    @property
    def fraction(self) -> float:
        """Work done, 0 to 1."""
        return self._done / self._total

    @property
    def seconds_left(self) -> float | None:
        """At the speed measured so far; None while nothing is measured."""
        if self._warm is None or self._measured == self._warm[1]:
            return None
        since, work = self._warm
        return (self._total - self._done) * (self._clock() - since) / (self._measured - work)


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
