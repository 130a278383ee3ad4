"""The pyramid: a chunk is denoised at a low resolution first, and each later stage doubles it (paper section 3).

The global flow from noise (sigma 1) to data (sigma 0) is cut into stages. Each stage is a flow of its own whose
local sigma runs from 1 to 0; the timestep given to the model says where on the global flow it is. Between stages
the sample is upsampled and given correlated noise, such that it has the distribution the next stage starts from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from ..transfer import to_device
from .settings import ScheduleConfig


@dataclass(frozen=True)
class StageSchedule:
    """The noise schedule of one stage: `sigmas` (n + 1 values, the last 0) local to the stage, and
    `timesteps` (n values, on the scale 0..1000) as the model is given them."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]


@dataclass(frozen=True)
class StageRange:
    """One stage's part of the flow: the global sigma it starts at, and the timesteps it begins and ends with."""

    start_sigma: float
    max_timestep: float
    min_timestep: float


@lru_cache
def stage_ranges(schedule: ScheduleConfig) -> tuple[StageRange, ...]:
    """Cut the global flow of `num_train_timesteps` levels at `stage_range`.

    Renoising brings the sample back to a higher sigma than the last stage ended with, so the stages overlap;
    their timesteps share out 0..1000 in proportion to the length of flow that each covers.
    """
    num_levels = schedule.num_train_timesteps
    sigmas = np.flip(1.0 - np.linspace(1, 1 / num_levels, num_levels + 1))[:-1]
    timesteps = sigmas * num_levels

    cuts = [int(cut * num_levels) for cut in schedule.stage_range]
    starts = [float(sigmas[cut]) for cut in cuts[:-1]]
    ends = [*starts[1:], 0.0]
    lengths = []
    for stage, (start, end) in enumerate(zip(starts, ends, strict=True)):
        renoised = 1 - renoise_scales(schedule, start)[0] * (1 - start) if stage > 0 else start
        lengths.append(renoised - end)

    cumulative = np.array([sum(lengths[:stage]) for stage in range(len(lengths))]) / sum(lengths)
    first = [int(ratio * num_levels) for ratio in cumulative]
    last = [*first[1:], num_levels - 1]
    ranges = []
    for stage, start_sigma in enumerate(starts):
        highest = min(timesteps[first[stage]], num_levels - 1)
        levels = np.linspace(highest, timesteps[last[stage]], num_levels + 1)[:-1]
        ranges.append(StageRange(start_sigma, float(levels[0]), float(levels[-1])))
    return tuple(ranges)


def shift_mu(schedule: ScheduleConfig, num_tokens: int) -> float:
    """Shift of the noise levels for a stage of `num_tokens` noisy tokens: linear in the token count."""
    slope = (schedule.max_shift - schedule.base_shift) / (schedule.max_image_seq_len - schedule.base_image_seq_len)
    return schedule.base_shift + slope * (num_tokens - schedule.base_image_seq_len)


def shift_sigma(schedule: ScheduleConfig, sigma: np.ndarray, mu: float) -> np.ndarray:
    """Move noise levels in (0, 1] towards 1."""
    factor = math.exp(mu) if schedule.time_shift_type == "exponential" else mu
    return factor / (factor + (1 / sigma - 1))


def stage_schedule(schedule: ScheduleConfig, stage: int, num_steps: int, num_tokens: int) -> StageSchedule:
    """The `num_steps` steps of a stage that has `num_tokens` noisy tokens.

    With a single stage the timesteps keep their fractions; in a pyramid the model was trained on whole numbers.
    """
    if schedule.num_stages == 1:
        sigmas = np.linspace(0.999, 0.0, num_steps + 1)[:-1]
        if schedule.use_dynamic_shifting:
            sigmas = shift_sigma(schedule, sigmas, shift_mu(schedule, num_tokens))
        timesteps = sigmas * schedule.num_train_timesteps
        return StageSchedule((*map(float, sigmas), 0.0), tuple(map(float, timesteps)))

    span = stage_ranges(schedule)[stage]
    # DMD leaves out the last point, so that its last level lies well above zero.
    num_points = num_steps + schedule.is_distilled
    sigmas = np.linspace(0.999, 0.999 / schedule.num_train_timesteps, num_points)[:num_steps]
    timesteps = np.linspace(span.max_timestep, span.min_timestep, num_points)[:num_steps]
    if schedule.use_dynamic_shifting:
        sigmas = shift_sigma(schedule, sigmas, shift_mu(schedule, num_tokens))
        timesteps = span.min_timestep + sigmas * (span.max_timestep - span.min_timestep)
    return StageSchedule((*map(float, sigmas), 0.0), tuple(map(float, np.trunc(timesteps))))


def _per_frame(x: torch.Tensor, **interpolation) -> torch.Tensor:
    frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), **interpolation)
    return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


def start_noise(noise: torch.Tensor, num_stages: int) -> torch.Tensor:
    """Full-size noise (B, C, T, h, w) -> noise of the first stage (B, C, T, h/2^(S-1), w/2^(S-1)), variance 1.

    Averaging 2x2 independent values halves the standard deviation, hence the factor 2.
    """
    for _ in range(num_stages - 1):
        height, width = noise.shape[-2:]
        noise = 2 * _per_frame(noise, size=(height // 2, width // 2), mode="bilinear")
    return noise


def renoise_scales(schedule: ScheduleConfig, start_sigma: float) -> tuple[float, float]:
    """(alpha, beta) of x = alpha * upsampled + beta * noise at the entry of a stage cut at `start_sigma`."""
    signal = 1 - start_sigma
    alpha = 1 / (math.sqrt(1 + 1 / schedule.gamma) * (1 - signal) + signal)
    return alpha, alpha * (1 - signal) / math.sqrt(schedule.gamma)


@lru_cache
def block_noise_factor(gamma: float, size: int = 4) -> tuple[tuple[float, ...], ...]:
    """Lower triangular L with L @ L.T = (1 + gamma) I - gamma J: unit variance, correlation -gamma in a 2x2 block.

    Nearest upsampling makes the four pixels of a block equal; noise that sums to nearly zero over the block breaks
    them apart. At gamma = 1/3 it sums to exactly zero and the matrix is singular, where a numerical Cholesky
    decomposition fails; so the rows are written down, with the last pivot clamped at zero.
    """
    factor = [[0.0] * size for _ in range(size)]
    remaining = 1.0  # variance of a pixel not explained by the pixels before it
    for column in range(size):
        pivot = math.sqrt(max(remaining, 0.0))
        pivot = pivot if pivot > 1e-6 else 0.0
        # By symmetry the rows below share one entry: their covariance -gamma with this pixel, less what is explained.
        explained = sum(value * value for value in factor[column][:column])
        below = (-gamma - explained) / pivot if pivot else 0.0
        factor[column][column] = pivot
        for row in range(column + 1, size):
            factor[row][column] = below
        remaining -= below * below
    return tuple(tuple(row) for row in factor)


def renoise_shape(latents: torch.Tensor) -> tuple[int, int]:
    """Shape (blocks, 4) of the independent noise that `renoise` takes for these latents (B, C, T, h, w)."""
    return latents.numel(), 4  # every value of the small sample becomes one 2x2 block


def renoise(
    latents: torch.Tensor, independent: torch.Tensor, stage: int, schedule: ScheduleConfig, dtype: torch.dtype
) -> torch.Tensor:
    """Enter `stage` > 0: (B, C, T, h, w) -> (B, C, T, 2h, 2w).

    `independent` is standard normal noise (blocks, 4); it is correlated within each 2x2 block and rounded to `dtype`,
    the model's, as the reference does.
    """
    height, width = latents.shape[-2:]
    upsampled = _per_frame(latents, size=(2 * height, 2 * width), mode="nearest")
    factor = to_device(torch.tensor(block_noise_factor(schedule.gamma)), independent.device)
    blocks = (independent @ factor.T).view(*latents.shape, 4)
    noise = rearrange(blocks, "b c t h w (ph pw) -> b c t (h ph) (w pw)", ph=2).to(latents.device, dtype)
    alpha, beta = renoise_scales(schedule, stage_ranges(schedule)[stage].start_sigma)
    return alpha * upsampled + beta * noise
