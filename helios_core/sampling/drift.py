"""Adaptive anti-drifting (an option): when the latents leave their band, the model is made to trust its past less.

Mean and variance of each latent channel are followed with an exponential moving average. When a chunk is far from the
average in both, a little noise is added to what the *next* chunks remember of it: a slightly corrupted past is what
the model was trained to correct. The chunk that is shown stays as it is. (The authors' research code, which is not on
their inference path, corrupts the shown chunk too.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DriftState:
    """Moving averages over the chunks so far: `mean` and `variance` of each channel, (B, C), fp32."""

    mean: torch.Tensor
    variance: torch.Tensor


@dataclass(frozen=True)
class DriftCheck:
    """How far a chunk is from the average (L2 over channels, averaged over the batch), and whether that is drift."""

    mean_distance: float
    variance_distance: float
    has_drifted: bool


@dataclass(frozen=True)
class AntiDrift:
    """Settings. `momentum` in [0, 1) is how slowly the averages follow; both distances must exceed their threshold
    (positive, in the latents' own units) to call it drift; `strength` (at least 0) is the standard deviation of the
    noise. The defaults are the authors'. Raises ValueError outside these ranges."""

    momentum: float = 0.9
    mean_threshold: float = 0.15
    variance_threshold: float = 0.15
    strength: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; allowed: 0 (no average) to below 1")
        for name in ("mean_threshold", "variance_threshold", "strength"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 and above")

    def watch(self, latents: torch.Tensor, state: DriftState | None) -> tuple[DriftCheck, DriftState]:
        """Take a chunk (B, C, T, h, w) into the averages (`state` is None before the first), then compare it to them.

        The comparison comes after the update, so a jump of d shows as a distance of `momentum` * d, and the first
        chunk never drifts.
        """
        latents = latents.float()
        mean, variance = latents.mean((2, 3, 4)), latents.var((2, 3, 4))
        if state is None:
            state = DriftState(mean, variance)
        else:
            state = DriftState(
                torch.lerp(mean, state.mean.to(mean), self.momentum),
                torch.lerp(variance, state.variance.to(variance), self.momentum),
            )
        mean_distance = (mean - state.mean).norm(dim=1).mean().item()
        variance_distance = (variance - state.variance).norm(dim=1).mean().item()
        has_drifted = mean_distance > self.mean_threshold and variance_distance > self.variance_threshold
        return DriftCheck(mean_distance, variance_distance, has_drifted), state
