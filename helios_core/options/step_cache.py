"""Step caching, in the way of EasyCache (arXiv 2507.02860): forwards that would add little new are left out.

Along a stage a velocity changes with the sample at a rate that hardly differs from one step to the next. So what a
forward would change is foretold from how far the sample has moved, and while that stays small the last velocity is
given again. EasyCache gives velocity minus input again; here the flow of a stage is nearly straight, where the velocity
itself stays the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..model.transformer import MemoryTokens
from ..sampling.hooks import Predict


@dataclass(frozen=True)
class _Forward:
    """What the latest forwards were given and gave; `rates` (prompts, B) say how much of its own size each velocity
    changed for each unit that the sample moved, None before there are two forwards to compare."""

    sample: torch.Tensor
    velocities: list[torch.Tensor]
    rates: torch.Tensor | None


class StepCache:
    """The forwards of one stage of `num_steps` steps. `threshold` is the change, as a part of the velocity's size, up
    to which the last velocities are given again.

    Each prompt is followed apart, but all skip together, when each of them would: guidance multiplies the difference of
    two velocities, and one that is old beside one that is new differ by their age as well. Nor may one video of a batch
    hide another. The first two forwards give the rate and the last step leaves the stage: these are always made.
    """

    def __init__(self, threshold: float, num_steps: int) -> None:
        self.threshold, self.num_steps = threshold, num_steps
        self._latest: _Forward | None = None
        self._before: torch.Tensor | None = None  # the sample of the step before, be its forward made or not
        self._change: torch.Tensor | float = 0.0  # foretold since the latest forward

    def velocities(
        self, step: int, x: torch.Tensor, compute: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """The velocity of each prompt for the sample x (B, ...) at this step: as `compute` gives them, or the last."""
        if self._latest is None or not self._may_reuse(step, x):
            velocities = compute()
            self._latest = _Forward(x, velocities, self._rates(x, velocities))
            self._change = 0.0
        self._before = x
        return self._latest.velocities

    def _may_reuse(self, step: int, x: torch.Tensor) -> bool:
        if step == self.num_steps - 1 or self._latest is None or self._latest.rates is None or self._before is None:
            return False
        self._change = self._change + self._latest.rates * _size(x - self._before)
        # The host must know whether to launch a forward, so here, once a step, it waits for the device. A change that
        # is not a number (the sample did not move) is none to rely on: it compares as false.
        return bool((self._change < self.threshold).all())

    def _rates(self, x: torch.Tensor, velocities: list[torch.Tensor]) -> torch.Tensor | None:
        if self._latest is None:
            return None
        moved = _size(x - self._latest.sample)
        pairs = zip(velocities, self._latest.velocities, strict=True)
        return torch.stack([_size(new - old) / (moved * _size(new)) for new, old in pairs])


def caching_steps(predict: Predict, threshold: float) -> Predict:
    """`predict` behind a cache of its own for each stage of each chunk."""
    held: list[tuple[MemoryTokens, int, StepCache]] = []

    def cached(latents, timesteps, prompts, memory, step):
        if not held or held[0][0] is not memory or held[0][1] != step.stage:
            held[:] = [(memory, step.stage, StepCache(threshold, step.num_steps))]
        return held[0][2].velocities(step.step, latents, lambda: predict(latents, timesteps, prompts, memory, step))

    return cached


def _size(x: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each sample of x (B, ...)."""
    return x.float().abs().flatten(1).mean(1)
