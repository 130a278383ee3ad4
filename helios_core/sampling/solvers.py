"""Steps along the flow, each a function of the sample, what gives velocities, and an explicit state.

Conventions: sample x = (1 - sigma) * data + sigma * noise, velocity v = noise - data, hence data = x - sigma * v.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..transfer import to_device, to_float64
from .pyramid import StageSchedule


@dataclass(frozen=True)
class SolverState:
    """What a solver remembers within a stage. `start` is the sample at the stage's entry, `data` the last estimates
    of the clean sample (latest first), `previous` the corrected sample of the last step and `order` its order."""

    start: torch.Tensor
    index: int = 0
    data: tuple[torch.Tensor, ...] = ()
    previous: torch.Tensor | None = None
    order: int = 0


# velocity(x, timestep) -> the velocity of the sample x at a timestep: asked for as often as the solver needs it.
Velocity = Callable[[torch.Tensor, float], torch.Tensor]
# (the sample at the next noise level, the estimate of the clean sample that led there, the state after the step)
StepTaken = tuple[torch.Tensor, torch.Tensor, SolverState]
Solver = Callable[[torch.Tensor, Velocity, StageSchedule, SolverState], StepTaken]


def euler_step(x: torch.Tensor, velocity: Velocity, schedule: StageSchedule, state: SolverState) -> StepTaken:
    """Straight on along the velocity; the result takes the velocity's dtype."""
    sigma, next_sigma = schedule.sigmas[state.index : state.index + 2]
    v = velocity(x, schedule.timesteps[state.index])
    data = x - sigma * v
    x = (x.float() + (next_sigma - sigma) * v).to(v.dtype)
    return x, data, replace(state, index=state.index + 1)


def dmd_step(x: torch.Tensor, velocity: Velocity, schedule: StageSchedule, state: SolverState) -> StepTaken:
    """Jump to the clean sample, then back to the next noise level with the stage's own start as the noise
    (distribution matching distillation, arXiv 2311.18828, without fresh noise). Computed in fp64, on the CPU where the
    device has none, so that every device gives the same bits."""
    sigma, next_sigma = schedule.sigmas[state.index : state.index + 2]
    v = velocity(x, schedule.timesteps[state.index])
    data = (to_float64(x) - sigma * to_float64(v)).to(v.dtype)
    ahead = data
    if next_sigma > 0:
        ahead = ((1 - next_sigma) * data.double() + next_sigma * to_float64(state.start)).to(state.start.dtype)
    return to_device(ahead, x.device), to_device(data, x.device), replace(state, index=state.index + 1)


def unipc_step(x: torch.Tensor, velocity: Velocity, schedule: StageSchedule, state: SolverState) -> StepTaken:
    """UniPC of order 2, B(h) = e^h - 1 ("bh2"), on the clean sample (arXiv 2302.04867, algorithms 5 and 6).

    The step that led here is corrected by what the model says here; then one step is predicted. The first and
    the last step of a stage are of order 1.
    """
    index, num_steps = state.index, len(schedule.timesteps)
    v = velocity(x, schedule.timesteps[index])
    data = (x - schedule.sigmas[index] * v, *state.data)[:3]
    if index > 0:
        x = _unipc_correct(data, schedule, state)
    order = min(2, num_steps - index, index + 1)
    state = SolverState(state.start, index + 1, data, previous=x, order=order)
    return _unipc_predict(x, data, schedule, index, order), data[0], state


def _log_snr(sigma: float) -> float:
    """lambda = ln(alpha / sigma) with alpha = 1 - sigma."""
    return math.log(1 - sigma) - math.log(max(sigma, 1e-8))


def _exponential_step(
    x: torch.Tensor, data: torch.Tensor, sigma: float, next_sigma: float
) -> tuple[torch.Tensor, float, float]:
    """First-order step: (next sample, h, alpha * (e^-h - 1)), the last being what higher orders multiply."""
    h = _log_snr(next_sigma) - _log_snr(sigma)
    weight = (1 - next_sigma) * math.expm1(-h)
    return max(next_sigma, 1e-8) / max(sigma, 1e-8) * x - weight * data, h, weight


def _unipc_predict(x, data, schedule: StageSchedule, index: int, order: int) -> torch.Tensor:
    """From the noise level `index` to the next one."""
    sigmas = schedule.sigmas
    ahead, h, weight = _exponential_step(x, data[0], sigmas[index], sigmas[index + 1])
    if order == 2:
        ratio = (_log_snr(sigmas[index - 1]) - _log_snr(sigmas[index])) / h
        ahead = ahead - weight * 0.5 * ((data[1] - data[0]) / ratio)
    return ahead


def _unipc_correct(data, schedule: StageSchedule, state: SolverState) -> torch.Tensor:
    """Redo the step from level index - 1 to `index`, now that the clean sample data[0] is known at its end."""
    index, sigmas = state.index, schedule.sigmas
    assert state.previous is not None, "only a stage's first step has none, and is not corrected"
    base, h, weight = _exponential_step(state.previous, data[1], sigmas[index - 1], sigmas[index])
    change = data[0] - data[1]
    if state.order == 1:
        return base - weight * 0.5 * change
    ratio = (_log_snr(sigmas[index - 2]) - _log_snr(sigmas[index - 1])) / h
    phi = math.expm1(-h)
    first = (phi / -h - 1) / phi
    second = 2 * ((phi / -h - 1) / -h - 0.5) / phi
    # rho solves [[1, 1], [ratio, 1]] rho = [first, second]
    rho_old = (first - second) / (1 - ratio)
    rho_new = first - rho_old
    return base - weight * (rho_old * ((data[2] - data[1]) / ratio) + rho_new * change)


SOLVERS: dict[str, Solver] = {"unipc": unipc_step, "euler": euler_step, "dmd": dmd_step}
