"""Which frames a result has, cut up in pieces or whole, and where scenes cut."""

from fractions import Fraction
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_core.finish.timing import CONTEXT_FRAMES, CutDetector, Pace, interpolated

RATES = st.fractions(min_value=1, max_value=120, max_denominator=1001)


def linear(before, after, positions):
    return torch.stack([before + (after - before) * position for position in positions])


def ramp(num_frames):
    """Frames whose value is their number."""
    return [torch.full((2, 2, 3), float(number)) for number in range(num_frames)]


def whole(frames, pace, cuts=0.0, interpolate=linear):
    outputs = range(pace.total(len(frames)))
    return list(interpolated(frames, 0, outputs, pace, interpolate, CutDetector(cuts)))


@settings(deadline=None)
@given(RATES, RATES, st.integers(1, 40))
def test_each_frame_is_at_its_own_time_and_the_last_is_held_until_the_end(source_rate, rate, num_frames):
    pace = Pace(source_rate, rate)
    made = whole(ramp(num_frames), pace)
    # As many as begin before the last source frame is over.
    assert (len(made) - 1) / rate < num_frames / source_rate <= len(made) / rate
    for number, frame in enumerate(made):
        time = min(number / rate * source_rate, Fraction(num_frames - 1))
        assert float(frame[0, 0, 0]) == pytest.approx(float(time), abs=1e-4)


@settings(deadline=None)
@given(RATES, RATES, st.integers(1, 40), st.integers(2, 9))
def test_pieces_make_the_frames_of_the_whole(source_rate, rate, num_frames, piece):
    pace, frames = Pace(source_rate, rate), ramp(num_frames)
    parts = []
    for start in range(0, num_frames, piece):
        stop, before = min(num_frames, start + piece), max(0, start - CONTEXT_FRAMES)
        outputs = range(pace.upto(start - 1), pace.upto(stop - 1))
        parts += interpolated(frames[before:stop], before, outputs, pace, linear, CutDetector(0))
    tail = range(pace.upto(num_frames - 1), pace.total(num_frames))
    before = max(0, num_frames - CONTEXT_FRAMES)
    parts += interpolated(frames[before:], before, tail, pace, linear, CutDetector(0))
    assert torch.equal(torch.stack(parts), torch.stack(whole(frames, pace)))


def test_nothing_is_made_between_two_scenes():
    torch.manual_seed(0)
    scenes = torch.rand(2, 64, 64, 3).round()
    frames = [scenes[0]] * 4 + [scenes[1]] * 4
    found = []
    pace = Pace(Fraction(24), Fraction(72))
    made = list(interpolated(frames, 0, range(24), pace, linear, CutDetector(0.1), found.append))
    assert found == [4]
    assert all(torch.equal(frame, scenes[int(number >= 12)]) for number, frame in enumerate(made))


def test_fast_motion_is_no_cut():
    torch.manual_seed(1)
    wide = torch.rand(1, 3, 8, 40)
    wide = torch.nn.functional.interpolate(wide, scale_factor=8, mode="bilinear")[0].movedim(0, -1)
    cuts = CutDetector(0.1)
    # A third of the picture is new in every frame.
    assert not any(cuts.is_cut(wide[:, start : start + 64]) for start in range(0, 240, 20))


def test_a_threshold_of_0_finds_no_cut():
    cuts = CutDetector(0)
    assert not any(cuts.is_cut(torch.full((8, 8, 3), float(value))) for value in (0, 1, 0, 1))


def test_frames_are_asked_for_one_by_one():
    def endless():
        number = 0
        while True:
            assert number <= asked[0] + 1
            yield torch.full((2, 2, 3), float(number))
            number += 1

    asked = [0]
    pace = Pace(Fraction(24), Fraction(48))
    for frame in islice(interpolated(endless(), 0, range(10**6), pace, linear, CutDetector(0.1)), 20):
        asked[0] = int(frame[0, 0, 0]) + 1
