"""Progress by work done: even although steps differ in cost, and with the time left that the measured speed gives."""

from dataclasses import replace

import pytest

from helios_core.model.config import TransformerConfig
from helios_core.report.cost import chunk_forwards, stage_costs
from helios_core.report.eta import JobClock, step_costs
from helios_core.run.pace import in_words
from helios_core.sampling.settings import VARIANTS

CONFIG = TransformerConfig()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk_index", [0, 1])
def test_the_steps_of_a_chunk_cost_together_what_its_forwards_cost(variant, chunk_index):
    settings = VARIANTS[variant]
    stages = stage_costs(CONFIG, 640, 384, settings.schedule.num_stages)
    forwards = chunk_forwards(settings, chunk_index)
    expected = sum(number * stage.flops for number, stage in zip(forwards, stages, strict=True))
    steps = step_costs(CONFIG, settings, 640, 384, chunk_index)
    assert sum(steps) == expected
    assert len(steps) == sum(settings.steps_in_chunk(chunk_index))


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
def test_seconds_are_told_in_words(seconds, words):
    assert in_words(seconds) == words
