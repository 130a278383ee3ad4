"""Classifier-free guidance, plain and as CFG-Zero* (arXiv 2503.18886)."""

from __future__ import annotations

import torch

from .settings import SamplingSettings


def guide(conditional: torch.Tensor, unconditional: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Push the velocity (B, ...) away from what the model would do without the prompt."""
    if settings.cfg_zero_star:
        unconditional = unconditional * zero_star_scale(conditional, unconditional)
    return unconditional + settings.guidance_scale * (conditional - unconditional)


def zero_star_scale(conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
    """Per sample, the factor that brings `unconditional` nearest to `conditional` in the least-squares sense."""
    positive, negative = conditional.float().flatten(1), unconditional.float().flatten(1)
    scale = (positive * negative).sum(1) / (negative.square().sum(1) + 1e-8)
    return scale.to(conditional.dtype).view(-1, *[1] * (conditional.ndim - 1))


def is_zero_step(settings: SamplingSettings, stage: int, step: int) -> bool:
    """Whether zero-init sets the velocity of this step to zero, so that the model need not run.

    The reference compares with <=: `zero_steps` = 1 leaves out the first two steps of stage 0.
    """
    return (
        settings.guided and settings.cfg_zero_star and settings.zero_init and stage == 0 and step <= settings.zero_steps
    )
