"""Progress by work done: even although steps differ in cost, and with the time left that the measured speed gives."""

from dataclasses import replace

import pytest
import torch

from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.report.cost import chunk_forwards, stage_costs
from helios_core.report.eta import JobClock, step_costs
from helios_core.run.pace import in_words
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks, StepDone
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS
from tests.chunks import chunks_of

CONFIG = TransformerConfig()
TINY = TransformerConfig(
    num_attention_heads=1, attention_head_dim=8, rope_dim=(4, 2, 2), num_layers=1, ffn_dim=8, text_dim=8, freq_dim=8
)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk_index", [0, 1])
def test_each_step_is_expected_to_cost_the_forwards_that_the_sampler_makes_in_it(variant, chunk_index):
    """Counted in a run with a model that does nothing, and weighed by the stages' operations."""
    settings = replace(VARIANTS[variant], steps=(4, 2, 3)[: len(VARIANTS[variant].steps)])
    model = HeliosTransformer(TINY).eval().requires_grad_(False)
    forwards, steps = 0, []

    def forward(latents, timestep, prompt, memory):
        nonlocal forwards
        forwards += 1
        return torch.zeros_like(latents)

    def step_done(step: StepDone):
        nonlocal forwards
        steps.append((step.chunk_index, step.stage, forwards))
        forwards = 0

    rows = torch.zeros(1, 4, TINY.text_dim)
    negative = rows if settings.guided else None
    hooks = Hooks(progress=step_done, forward=forward)
    memory = text_memory(width=128, height=64)
    list(chunks_of(model, rows, memory, 2, SeededNoise(0), settings, negative=negative, hooks=hooks))
    stages = stage_costs(CONFIG, 640, 384, settings.schedule.num_stages)
    expected = [count * stages[stage].flops for chunk, stage, count in steps if chunk == chunk_index]
    assert step_costs(CONFIG, settings, 640, 384, chunk_index) == expected
    in_stages = [
        sum(count for chunk, own, count in steps if (chunk, own) == (chunk_index, stage))
        for stage in range(len(stages))
    ]
    assert chunk_forwards(settings, chunk_index) == in_stages


def test_with_time_proportional_to_work_the_estimate_is_right_from_the_second_step_on():
    chunks = [step_costs(CONFIG, VARIANTS["distilled"], 640, 384, chunk) for chunk in (0, 1)]
    costs = [cost for chunk in chunks for cost in chunk]
    places = [7] * len(chunks[0]) + [8] * len(chunks[1])
    now = 0.0
    clock = JobClock(chunks, first_chunk=7, clock=lambda: now)
    now = 100.0  # loading: no step is to blame for it
    for number, (place, cost) in enumerate(zip(places, costs, strict=True), start=1):
        now += cost / 1e15
        clock.step_done(place)
        left = sum(costs[number:]) / 1e15
        assert clock.fraction == pytest.approx(sum(costs[:number]) / sum(costs))
        if number == 1:
            assert clock.seconds_left is None
        else:
            assert clock.seconds_left == pytest.approx(left)
    assert clock.fraction == 1


def test_chunks_found_finished_count_as_done_and_not_as_speed():
    now = 0.0
    clock = JobClock([[1, 3], [1, 3], [1, 3], [1, 3]], clock=lambda: now)
    clock.step_done(2)  # chunks 0 and 1 were there
    assert clock.fraction == 9 / 16
    now = 6.0
    clock.step_done(2)
    assert clock.fraction == 12 / 16
    assert clock.seconds_left == pytest.approx(4 * 6.0 / 3)


def test_steps_without_a_forward_move_nothing_and_are_not_taken_for_the_measure():
    settings = replace(VARIANTS["mid"], steps=(3, 1, 1))
    costs = step_costs(CONFIG, settings, 640, 384, 0)
    assert costs[:2] == [0, 0]
    clock = JobClock([costs], clock=lambda: 0.0)
    clock.step_done(0)
    clock.step_done(0)
    assert clock.fraction == 0
    assert clock.seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_seconds_are_given_in_words(seconds, words):
    assert in_words(seconds) == words
