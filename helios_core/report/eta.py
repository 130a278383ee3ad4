"""How far a job is and how long the rest takes, counted by work: the stages' steps differ in cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..model.config import TransformerConfig
from ..sampling.settings import SamplingSettings
from .cost import stage_costs, step_forwards


def step_costs(
    config: TransformerConfig, settings: SamplingSettings, width: int, height: int, chunk_index: int
) -> list[int]:
    """Floating point operations of each step of a chunk of width x height pixels, in order."""
    stages = stage_costs(config, width, height, settings.schedule.num_stages)
    steps = step_forwards(settings, chunk_index)
    return [num * stage.flops for stage, forwards in zip(stages, steps, strict=True) for num in forwards]


class JobClock:
    """Given each step of the sampler as it is done, knows the `fraction` of the job's work done and `seconds_left`.

    `costs` are those of the steps of each chunk in order, the first being chunk `first_chunk` of the video. A chunk
    that no step is reported of was found finished: it counts as done, and says nothing of the speed. The first step is
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
