"""Whole videos against diffusers' pipelines: same weights, seed and inputs, latents compared."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from tests import reference
from tests.parity import BASE, DISTILLED, MID, Case, oracle_latents, our_latents

TOLERANCE = 1e-4  # of latents with standard deviation 1.7 to 2.4; measured: below 2e-5
oracle = lru_cache(oracle_latents)


def assert_parity(case: Case):
    actual, expected = our_latents(case), oracle(case)
    assert expected.std() > 0.5
    assert actual.shape == expected.shape
    assert actual.shape[2] == 9 * case.num_chunks
    assert (actual - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("task", ["t2v", "i2v", "v2v"])
@pytest.mark.parametrize("case", [BASE, MID, DISTILLED], ids=lambda case: case.variant)
def test_three_chunks_are_the_references(case, task):
    assert_parity(replace(case, task=task))


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(replace(BASE, height=48, width=80, num_chunks=2), id="base, odd token grid"),
        pytest.param(replace(BASE, batch_size=2, num_chunks=2), id="base, two prompts"),
        pytest.param(replace(MID, batch_size=2, num_chunks=1), id="mid, two prompts"),
        pytest.param(replace(DISTILLED, batch_size=2, num_chunks=1), id="distilled, two prompts"),
        pytest.param(replace(BASE, guidance_scale=1.0, num_chunks=1), id="base, unguided"),
        pytest.param(replace(BASE, reanchor=True), id="base, anchored anew on chunk 1"),
        pytest.param(replace(BASE, reanchor=True, task="i2v"), id="base, image replaced as anchor by chunk 1"),
        pytest.param(replace(BASE, history_sizes=(8, 3, 2)), id="base, other history sizes"),
        pytest.param(replace(DISTILLED, history_sizes=(2, 5, 7), num_chunks=2), id="distilled, other history sizes"),
        pytest.param(replace(MID, zero_init=False, num_chunks=1), id="mid, without zero-init"),
        pytest.param(replace(MID, zero_steps=0, num_chunks=1), id="mid, one zero step"),
        pytest.param(replace(DISTILLED, amplify_first_chunk=False, num_chunks=2), id="distilled, not amplified"),
        pytest.param(replace(DISTILLED, steps=(1, 1, 1), num_chunks=2), id="distilled, one step a stage"),
        pytest.param(replace(DISTILLED, steps=(1, 2, 3), num_chunks=1), id="distilled, uneven steps"),
        pytest.param(replace(DISTILLED, guidance_scale=3.0, num_chunks=2), id="distilled, guided"),
        pytest.param(replace(DISTILLED, width=128, num_chunks=1), id="distilled, wide"),
        pytest.param(replace(BASE, num_video_frames=33, task="v2v", num_chunks=2), id="base, clip of one chunk"),
        pytest.param(replace(BASE, num_video_frames=105, task="v2v", num_chunks=1), id="base, clip of three chunks"),
        pytest.param(replace(BASE, add_noise=False, task="i2v", num_chunks=1), id="base, clean image"),
        pytest.param(replace(BASE, add_noise=False, task="v2v", num_chunks=1), id="base, clean clip"),
        pytest.param(
            replace(BASE, image_sigma_range=(0.3, 0.4), video_sigma_range=(0.5, 0.7), task="v2v", num_chunks=1),
            id="base, noisier clip",
        ),
        pytest.param(
            replace(BASE, image_sigma_range=(0.3, 0.4), video_sigma_range=(0.5, 0.7), task="i2v", num_chunks=1),
            id="base, noisier image",
        ),
    ],
)
def test_every_option_means_what_it_means_in_the_reference(case):
    assert_parity(case)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(replace(BASE, scheduler={"use_dynamic_shifting": False}), id="base, unshifted"),
        pytest.param(replace(BASE, scheduler={"scheduler_type": "euler"}), id="base, Euler"),
        pytest.param(replace(MID, scheduler={"scheduler_type": "euler"}, num_chunks=1), id="mid, Euler"),
        pytest.param(replace(MID, scheduler={"time_shift_type": "linear"}, num_chunks=1), id="mid, linear shift"),
        pytest.param(
            replace(MID, scheduler={"stages": 2, "stage_range": [0, 0.5, 1], "gamma": 0.25}, steps=(4, 3), width=64),
            id="mid, two stages, gamma 1/4",
        ),
        pytest.param(replace(DISTILLED, scheduler={"use_dynamic_shifting": False}), id="distilled, unshifted"),
        pytest.param(
            replace(
                DISTILLED,
                scheduler={"stage_range": [0, 0.2, 0.6, 1], "gamma": 0.2, "time_shift_type": "exponential"},
            ),
            id="distilled, uneven stages, gamma 1/5",
        ),
    ],
)
def test_other_schedules_in_the_config_are_followed(case):
    assert_parity(replace(case, num_chunks=min(case.num_chunks, 2)))


@pytest.mark.parametrize("case", [MID, DISTILLED], ids=lambda case: case.variant)
def test_the_authors_noise_is_the_references_with_a_fresh_block_noise_generator(case):
    authors = replace(case, authors_noise=True, num_chunks=2)
    assert_parity(authors)
    assert (oracle(authors) - oracle(case)[:, :, :18]).abs().max() > 0.1


@pytest.mark.parametrize("case", [BASE, MID, DISTILLED], ids=lambda case: case.variant)
def test_in_bfloat16_we_are_no_further_from_float32_than_the_reference(case):
    truth = oracle(case)[:, :, :18]
    case = replace(case, num_chunks=2)
    expected, actual = oracle(case, torch.bfloat16), our_latents(case, torch.bfloat16)

    def distance(a, b):
        return ((a - b).square().mean().sqrt() / truth.std()).item()

    # Measured: Base 1.3 %, Mid 2.8 %, Distilled 0.6 % of the latents' standard deviation from float32, the reference's
    # distances are the same to two digits. Distilled's bits are the reference's where torch's sum x + gate * update in
    # one pass rounds as it does in two; on some processors one in 50,000 falls on the other side of a bfloat16, and the
    # latents differ by 0.4 %. With UniPC ours differ, since diffusers rounds sigma itself to bfloat16 before it
    # multiplies the velocity.
    assert distance(actual, truth) < 1.1 * distance(expected, truth)
    bounds = {"base": 0.05, "mid": 0.05, "distilled": 1e-6 if one_pass_rounds_as_two() else 0.01}
    assert distance(actual, expected) < bounds[case.variant]


def one_pass_rounds_as_two() -> bool:
    """Whether this processor's torch rounds x + gate * update in one pass (ours) as in two (diffusers')."""
    x, update = torch.randn(2, 4096, 128, generator=reference.generator(0)).bfloat16()
    gate = torch.randn(1, 128, generator=reference.generator(1))
    return torch.equal(x.clone().addcmul_(update, gate), (x.float() + update * gate).bfloat16())


@pytest.mark.parametrize(
    ("case", "other"),
    [
        pytest.param(BASE, replace(BASE, task="i2v"), id="an image"),
        pytest.param(replace(BASE, task="i2v"), replace(BASE, task="v2v"), id="a clip"),
        pytest.param(MID, replace(MID, task="v2v"), id="a clip, in the pyramid"),
        pytest.param(BASE, replace(BASE, reanchor=True), id="another anchor"),
        pytest.param(DISTILLED, replace(DISTILLED, amplify_first_chunk=False, num_chunks=2), id="amplification"),
        pytest.param(
            replace(BASE, task="v2v", add_noise=False, num_chunks=1), replace(BASE, task="v2v"), id="noise on the clip"
        ),
    ],
)
def test_the_tiny_oracle_feels_what_these_tests_vary(case, other):
    """Parity proves nothing about an input that leaves no trace; in the chunks compared, each leaves one."""
    first, second = oracle(case), oracle(other)
    num_frames = min(first.shape[2], second.shape[2])
    assert (first[:, :, :num_frames] - second[:, :, :num_frames]).abs().max() > 100 * TOLERANCE
