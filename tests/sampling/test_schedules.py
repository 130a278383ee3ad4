"""Noise levels, timesteps and solvers against diffusers' schedulers, and the pyramid's own algebra."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import HeliosDMDScheduler
from hypothesis import given
from hypothesis import strategies as st

from helios_core.sampling.guidance import zero_star_scale
from helios_core.sampling.pyramid import (
    StageSchedule,
    block_noise_factor,
    renoise,
    renoise_scales,
    renoise_shape,
    shift_mu,
    stage_ranges,
    stage_schedule,
    start_noise,
)
from helios_core.sampling.settings import ScheduleConfig
from helios_core.sampling.solvers import SOLVERS, SolverState
from tests import reference
from tests.stand_in_device import DEVICE, StandInDevice, to_stand_in

SHIFTS = {
    "exponential": {"use_dynamic_shifting": True, "time_shift_type": "exponential"},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "unshifted": {"use_dynamic_shifting": False},
}
STAGE_TOKENS = (540, 2160, 8640)  # 384x640: the lowest stage, the middle one, the full size


def ours(scheduler) -> ScheduleConfig:
    """Our schedule from the scheduler_config.json that this diffusers scheduler would write."""
    return ScheduleConfig.from_diffusers(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})


def even_stages(num_stages: int) -> dict:
    return {"stages": num_stages, "stage_range": [stage / num_stages for stage in range(num_stages + 1)]}


def mu_of(num_tokens: int) -> float:
    """The shift that diffusers' pipelines compute: a line through (256, 0.5) and (4096, 1.15)."""
    return 0.5 + (num_tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def assert_same_schedule(actual: StageSchedule, scheduler, *, whole_timesteps: bool):
    expected = scheduler.timesteps.double()
    if whole_timesteps:
        expected = expected.to(torch.int64).double()  # as HeliosPyramidPipeline tells them to the model
    torch.testing.assert_close(
        torch.tensor(actual.sigmas, dtype=torch.float64), scheduler.sigmas.double(), rtol=0, atol=1e-7
    )
    torch.testing.assert_close(torch.tensor(actual.timesteps, dtype=torch.float64), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 20, 50])
def test_a_single_stage_has_the_references_noise_levels(num_steps, shift):
    scheduler = reference.scheduler("base", **SHIFTS[shift])
    sigmas = torch.linspace(0.999, 0.0, num_steps + 1, dtype=torch.float64)[:-1].numpy()  # HeliosPipeline's
    scheduler.set_timesteps(num_steps, sigmas=sigmas, mu=mu_of(8640))
    assert_same_schedule(stage_schedule(ours(scheduler), 0, num_steps, 8640), scheduler, whole_timesteps=False)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("variant", ["mid", "distilled"])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_every_pyramid_stage_has_the_references_noise_levels(num_stages, variant, num_steps, shift):
    scheduler = reference.scheduler(variant, **even_stages(num_stages), **SHIFTS[shift])
    for stage in range(num_stages):
        num_tokens = 9 * 16 * 4**stage
        scheduler.set_timesteps(num_steps, stage, mu=mu_of(num_tokens))
        actual = stage_schedule(ours(scheduler), stage, num_steps, num_tokens)
        assert_same_schedule(actual, scheduler, whole_timesteps=True)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
def test_an_amplified_chunk_has_the_references_noise_levels(num_steps, shift):
    scheduler = reference.scheduler("distilled", **SHIFTS[shift])
    for stage, num_tokens in enumerate(STAGE_TOKENS):
        scheduler.set_timesteps(num_steps, stage, mu=mu_of(num_tokens), is_amplify_first_chunk=True)
        actual = stage_schedule(ours(scheduler), stage, 2 * num_steps, num_tokens)
        assert_same_schedule(actual, scheduler, whole_timesteps=True)


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
@pytest.mark.parametrize("gamma", [1 / 3, 0.25, 0.1])
def test_stages_begin_and_end_where_the_references_do(num_stages, gamma):
    scheduler = reference.scheduler("mid", **even_stages(num_stages), gamma=gamma)
    for stage, actual in enumerate(stage_ranges(ours(scheduler))):
        timesteps = scheduler.timesteps_per_stage[stage]
        assert actual.start_sigma == pytest.approx(scheduler.ori_start_sigmas[stage], abs=1e-12)
        assert actual.max_timestep == pytest.approx(timesteps.max().item(), abs=1e-9)
        assert actual.min_timestep == pytest.approx(timesteps.min().item(), abs=1e-9)


def test_uneven_stages_follow_the_reference():
    scheduler = reference.scheduler("mid", stages=3, stage_range=[0, 0.2, 0.5, 1])
    for stage, num_tokens in enumerate(STAGE_TOKENS):
        scheduler.set_timesteps(7, stage, mu=mu_of(num_tokens))
        assert_same_schedule(stage_schedule(ours(scheduler), stage, 7, num_tokens), scheduler, whole_timesteps=True)


@pytest.mark.parametrize("num_tokens", [9, 256, 540, 2160, 4096, 8640])
def test_the_shift_is_a_line_in_the_token_count(num_tokens):
    assert shift_mu(ScheduleConfig(), num_tokens) == pytest.approx(mu_of(num_tokens), abs=1e-12)


@given(
    num_stages=st.integers(1, 4),
    num_steps=st.integers(1, 60),
    tokens_per_frame=st.integers(1, 4000),
    solver=st.sampled_from(["unipc", "euler", "dmd"]),
    shift=st.sampled_from(list(SHIFTS.values())),
)
def test_noise_levels_fall_from_below_one_to_zero(num_stages, num_steps, tokens_per_frame, solver, shift):
    schedule = ScheduleConfig.with_stages(num_stages, solver=solver, **shift)
    previous_stage_end = math.inf
    for stage in range(num_stages):
        steps = stage_schedule(schedule, stage, num_steps, 9 * tokens_per_frame)
        assert len(steps.sigmas) == num_steps + 1
        assert len(steps.timesteps) == num_steps
        assert steps.sigmas[0] < 1
        assert steps.sigmas[-1] == 0
        assert all(earlier > later for earlier, later in zip(steps.sigmas, steps.sigmas[1:], strict=False))
        assert all(earlier >= later for earlier, later in zip(steps.timesteps, steps.timesteps[1:], strict=False))
        assert steps.timesteps[-1] >= 0
        assert steps.timesteps[0] <= min(previous_stage_end, 1000)
        previous_stage_end = steps.timesteps[-1]


def curved_velocity(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A smooth field that bends, so that errors of first and second order would show."""
    return torch.tanh(1.3 * x) * math.cos(timestep / 150) + 0.6 * torch.sin(x.roll(1, -1)) + timestep / 2000


def run_oracle(scheduler, x: torch.Tensor) -> torch.Tensor:
    timesteps, extra = scheduler.timesteps, {}
    if isinstance(scheduler, HeliosDMDScheduler):
        extra = {"dmd_sigmas": scheduler.sigmas, "dmd_timesteps": timesteps, "all_timesteps": timesteps}
        extra["dmd_noisy_tensor"] = x
    for index, timestep in enumerate(timesteps):
        if extra:
            extra["cur_sampling_step"] = index
        x = scheduler.step(curved_velocity(x, float(timestep)), timestep, x, return_dict=False, **extra)[0]
    return x


def run_ours(solver: str, scheduler, x: torch.Tensor) -> torch.Tensor:
    timesteps = tuple(scheduler.timesteps.tolist())
    schedule = StageSchedule(tuple(scheduler.sigmas.tolist()), timesteps)
    state = SolverState(start=x)
    for _ in timesteps:
        x, _, state = SOLVERS[solver](x, curved_velocity, schedule, state)
    return x


def start_sample(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(2, 16, 3, 4, 4, generator=reference.generator(11)).to(dtype)


@pytest.mark.parametrize("num_stages", [1, 3])
@pytest.mark.parametrize("num_steps", range(1, 9))
@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_unipc_and_euler_steps_are_the_references(solver, num_steps, num_stages):
    variant = "base" if num_stages == 1 else "mid"
    for stage in range(num_stages):
        scheduler = reference.scheduler(variant, scheduler_type=solver)
        sigmas = torch.linspace(0.999, 0.0, num_steps + 1, dtype=torch.float64)[:-1].numpy()
        scheduler.set_timesteps(num_steps, stage, sigmas=sigmas, mu=0.9)
        expected = run_oracle(scheduler, start_sample())
        actual = run_ours(solver, scheduler, start_sample())
        assert (actual - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("num_steps", range(1, 9))
def test_dmd_steps_are_the_references(num_steps, dtype):
    scheduler = reference.scheduler("distilled")
    for stage in range(3):
        scheduler.set_timesteps(num_steps, stage, mu=0.9)
        expected = run_oracle(scheduler, start_sample(dtype))
        actual = run_ours("dmd", scheduler, start_sample(dtype))
        assert actual.dtype == expected.dtype
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_without_float64_takes_the_same_steps_bit_for_bit(solver, dtype):
    schedule = stage_schedule(ScheduleConfig(solver=solver), 1, 3, 2160)
    velocities = [start_sample(dtype) * factor for factor in (0.3, -0.7, 0.5)]

    def run(to_device) -> torch.Tensor:
        x = to_device(start_sample(dtype))
        state = SolverState(start=x)
        for velocity in velocities:
            there = to_device(velocity)
            x, denoised, state = SOLVERS[solver](x, lambda at, _, there=there: there, schedule, state)
            assert denoised.device == x.device == there.device
        return x

    with StandInDevice():
        there = run(to_stand_in)
        assert there.device == DEVICE
        assert torch.equal(there.cpu(), run(lambda tensor: tensor))


@pytest.mark.parametrize("solver", ["unipc", "euler", "dmd"])
def test_a_straight_flow_is_solved_exactly_in_any_number_of_steps(solver):
    """Velocity noise - data for one data point: every solver must land on the data."""
    data, noise = start_sample(), start_sample().flip(-1)
    for num_steps in (1, 2, 5):
        steps = stage_schedule(ScheduleConfig(solver=solver), 1, num_steps, 2160)
        x = (1 - steps.sigmas[0]) * data + steps.sigmas[0] * noise
        state = SolverState(start=x)
        for sigma in steps.sigmas[:-1]:
            x, denoised, state = SOLVERS[solver](x, lambda at, _, sigma=sigma: (at - data) / sigma, steps, state)
            torch.testing.assert_close(denoised, data, rtol=0, atol=1e-5)
        torch.testing.assert_close(x, data, rtol=0, atol=1e-5)


@given(st.floats(0.0, 1 / 3))
def test_the_block_noise_factor_has_the_covariance_of_the_paper(gamma):
    factor = torch.tensor(block_noise_factor(gamma), dtype=torch.float64)
    expected = (1 + gamma) * torch.eye(4, dtype=torch.float64) - gamma
    torch.testing.assert_close(factor @ factor.T, expected, rtol=0, atol=1e-6)
    assert torch.equal(factor, factor.tril())


def test_at_one_third_the_factor_is_the_closed_form_and_a_block_sums_to_zero():
    factor = torch.tensor(block_noise_factor(1 / 3))
    torch.testing.assert_close(factor, reference.block_noise_factor(1 / 3), rtol=0, atol=1e-6)
    assert factor.sum(0).abs().max() < 1e-6


def test_renoise_adds_unit_noise_with_the_right_correlation_in_each_block():
    schedule, shape = ScheduleConfig(), (1, 16, 9, 16, 16)
    nothing = torch.zeros(shape)
    independent = torch.randn(renoise_shape(nothing), generator=reference.generator(3))
    _, beta = renoise_scales(schedule, stage_ranges(schedule)[1].start_sigma)
    noise = renoise(nothing, independent, 1, schedule, torch.float32) / beta
    assert noise.shape == (1, 16, 9, 32, 32)
    blocks = F.unfold(noise.reshape(-1, 1, 32, 32), 2, stride=2).transpose(1, 2).reshape(-1, 4)
    covariance = blocks.T @ blocks / len(blocks)
    # 36,864 blocks: the standard error of an entry is below sqrt(2 / 36864) = 0.0074; four of them are allowed.
    torch.testing.assert_close(covariance, (4 / 3) * torch.eye(4) - 1 / 3, rtol=0, atol=0.03)
    across = (noise[..., 1:-1:2] * noise[..., 2::2]).mean()  # neighbours in different blocks
    assert across.abs() < 0.03


@pytest.mark.parametrize("stage", [1, 2])
def test_renoise_keeps_the_blocks_mean_and_scales_it(stage):
    schedule = ScheduleConfig()
    latents = start_sample()
    independent = torch.randn(renoise_shape(latents), generator=reference.generator(4))
    alpha, _ = renoise_scales(schedule, stage_ranges(schedule)[stage].start_sigma)
    entered = renoise(latents, independent, stage, schedule, torch.float32)
    pooled = F.avg_pool2d(entered.flatten(0, 2), 2).view_as(latents)
    torch.testing.assert_close(pooled, alpha * latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_at_one_third_the_renoise_scales_have_a_simple_form(stage):
    sigma = stage_ranges(ScheduleConfig())[stage].start_sigma
    assert renoise_scales(ScheduleConfig(), stage_ranges(ScheduleConfig())[stage].start_sigma) == pytest.approx(
        (1 / (1 + sigma), math.sqrt(3) * sigma / (1 + sigma)), abs=1e-12
    )


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_start_noise_is_the_references_bilinear_pyramid(num_stages):
    noise = torch.randn(2, 16, 9, 16, 24, generator=reference.generator(2))
    expected = noise.transpose(1, 2).flatten(0, 1)
    for _ in range(num_stages - 1):
        expected = 2 * F.interpolate(expected, scale_factor=0.5, mode="bilinear")
    actual = start_noise(noise, num_stages)
    torch.testing.assert_close(actual.transpose(1, 2).flatten(0, 1), expected, rtol=0, atol=1e-6)
    mean_of_blocks = F.avg_pool2d(noise.flatten(0, 2), 2 ** (num_stages - 1)) * 2 ** (num_stages - 1)
    torch.testing.assert_close(actual.flatten(0, 2), mean_of_blocks, rtol=0, atol=5e-6)


def test_the_zero_star_scale_is_the_least_squares_fit_of_each_sample():
    conditional, unconditional = start_sample(), start_sample().roll(1, -1) + 0.3 * start_sample()
    scale = zero_star_scale(conditional, unconditional)
    for index in range(2):
        columns = unconditional[index].reshape(-1, 1).double()
        fit = torch.linalg.lstsq(columns, conditional[index].reshape(-1, 1).double()).solution
        assert scale[index].item() == pytest.approx(fit.item(), rel=1e-5)
