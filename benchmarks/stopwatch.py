"""Seconds of the parts of a run, taken where the parts are called."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Seconds of each part of a run. On a GPU they are taken between events, so that the host never waits."""

    device: torch.device
    marks: list[tuple[str, object, object]] = field(default_factory=list)

    def now(self, on_host: bool = False) -> object:
        if on_host or self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wrap(self, part: str | Callable[..., str], function: Callable, *, on_host: bool = False) -> Callable:
        """`function`, timed as `part`, which may depend on its arguments; work of the host alone with `on_host`.

        The profiler gets the part too.
        """

        def timed(*args, **kwargs):
            name = part if isinstance(part, str) else part(*args, **kwargs)
            start = self.now(on_host)
            with torch.profiler.record_function(name):
                result = function(*args, **kwargs)
            self.marks.append((name, start, self.now(on_host)))
            return result

        return timed

    def seconds(self) -> dict[str, float]:
        """The sum for each part, in the order in which they first ended."""
        synchronise(self.device)
        total = defaultdict(float)
        for part, start, end in self.marks:
            total[part] += end - start if isinstance(start, float) else start.elapsed_time(end) / 1000
        return dict(total)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
