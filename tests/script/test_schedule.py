"""Prompt schedules: their text, their JSON, and what a chunk shows."""

import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helios_core.script.schedule import (
    BLEND_SHAPES,
    MAX_SEED,
    PromptSchedule,
    Segment,
    blend_weight,
    nearest_chunk,
)
from helios_core.script.schedule_text import ScheduleError, parse_schedule
from helios_core.typed import CHOICE, NOTE

CASES = json.loads((Path(__file__).parent / "schedule_cases.json").read_text(encoding="utf-8"))

characters = st.characters(exclude_categories=("Cs", "Cc"), include_characters="\t\n\r")
texts = st.text(characters, max_size=60)
UNSEEN = "\ufeff\u200b\u2060"
names = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters=f'"{UNSEEN}'), min_size=1, max_size=20
)


def optional(strategy):
    return st.none() | strategy


@st.composite
def schedules(draw):
    steps = draw(st.lists(st.integers(1, 50), max_size=6))
    starts = [0]
    for step in steps:
        starts.append(starts[-1] + step)
    segments = [
        Segment(
            start,
            draw(texts),
            blend=draw(optional(st.integers(0, 1000))),
            shape=draw(optional(st.sampled_from(BLEND_SHAPES))),
            seed=draw(optional(st.integers(0, MAX_SEED))),
            guidance_scale=draw(optional(st.floats(1, 30))),
            anchor=draw(optional(names)),
        )
        for start in starts
    ]
    end = draw(optional(st.integers(starts[-1] + 1, starts[-1] + 50)))
    return PromptSchedule(tuple(segments), end, draw(st.integers(0, 9)), draw(st.sampled_from(BLEND_SHAPES)))


def text_of(schedule: PromptSchedule) -> str:
    """A schedule as somebody would type it, with starts in chunks."""
    lines = []
    for segment in schedule.segments:
        options = {"blend": segment.blend, "seed": segment.seed, "guidance": segment.guidance_scale}
        words = [f"{name} {value}" for name, value in options.items() if value is not None]
        words += [] if segment.shape is None else [segment.shape]
        words += [] if segment.anchor is None else [f'anchor "{segment.anchor}"']
        prompt = segment.prompt.replace("\n", "\n    ")
        lines.append(f"{' '.join([f'chunk {segment.start}', *words])}: {prompt}")
    if schedule.num_chunks is not None:
        lines.append(f"end chunk {schedule.num_chunks}")
    return "\n".join(lines)


@settings(deadline=None)
@given(schedules())
def test_a_typed_schedule_reads_back_equal(schedule):
    # The text form refuses what CLIP Text Encode would act on; JSON holds it.
    assume(not any(CHOICE.search(line) or NOTE.search(f" {line}") for s in schedule.segments for line in [s.prompt]))
    text = text_of(schedule)
    assert parse_schedule(text, blend=schedule.blend, shape=schedule.shape) == schedule


@settings(deadline=None)
@given(schedules())
def test_a_schedule_written_as_json_reads_back_equal(schedule):
    assert PromptSchedule.from_json(schedule.to_json()) == schedule
    assert parse_schedule(schedule.to_json()) == schedule


@pytest.mark.parametrize("case", CASES["good"], ids=lambda case: case["name"])
def test_text_means_what_the_shared_cases_say(case):
    schedule = parse_schedule(case["text"], frame_rate=case.get("frame_rate", 24))
    if "segments" in case:
        expected = PromptSchedule(tuple(Segment(**entry) for entry in case["segments"]), case.get("num_chunks"))
        assert schedule == expected
    assert parse_schedule(case["canonical"]) == schedule


@pytest.mark.parametrize("case", CASES["bad"], ids=lambda case: case["name"])
def test_an_error_names_line_column_what_was_found_and_what_is_allowed(case):
    with pytest.raises(ScheduleError) as fault:
        parse_schedule(case["text"])
    assert str(fault.value) == case["error"]


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=200) | st.text("0123456789s: \n\t#blendchunk\"'-.", max_size=80))
def test_any_text_is_a_schedule_or_an_error_with_a_place_in_the_text(text):
    try:
        parse_schedule(text)
        return
    except ValueError as error:
        fault = error
    if not isinstance(fault, ScheduleError):
        assert text.lstrip().startswith("{")  # JSON that is no schedule
        return
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert 1 <= fault.line <= len(lines)
    assert 1 <= fault.column <= len(lines[fault.line - 1]) + 1


@pytest.mark.parametrize(
    "text", ["0s: " + "x" * 100_000, "0s: a\n" + "\n".join(f"chunk {k}: b" for k in range(1, 9000))]
)
def test_a_huge_schedule_is_read_in_a_moment(text):
    started = time.perf_counter()
    parse_schedule(text)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "text", ["x" * 100_000, '0s "' + "x" * 100_000, "0s blend " + "9" * 100_000, "0" * 100_000 + "s"]
)
def test_an_error_about_a_huge_line_is_short_and_quick(text):
    started = time.perf_counter()
    with pytest.raises(ScheduleError) as fault:
        parse_schedule(text)
    assert time.perf_counter() - started < 1
    assert len(str(fault.value)) < 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"segments": [', "line 1, column 15: not valid JSON"),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        ('{"prompts": []}', "the schedule lacks 'segments'"),
        ('{"segments": {}}', "segments is {}; it must be a list"),
        ('{"segments": []}', "the schedule has no segment"),
        ('{"segments": [{"start": 0}]}', "segment 1 lacks 'prompt'"),
        ('{"segments": [{"start": 0, "prompt": "a", "lora": 1}]}', 'segment 1 has the key "lora"; allowed: start'),
        ('{"segments": [{"start": -1, "prompt": "a"}]}', "segment 1: start is -1"),
        ('{"segments": [{"start": true, "prompt": "a"}]}', "segment 1: start is True"),
        ('{"segments": [{"start": 0, "prompt": ["a"]}]}', r'segment 1: prompt is \["a"\]; it must be text'),
        ('{"segments": [{"start": 0, "prompt": "a", "guidance_scale": NaN}]}', "segment 1: guidance is nan"),
        ('{"segments": [{"start": 0, "prompt": "a"}, {"start": 0, "prompt": "b"}]}', "segment 2: two segments start"),
        ('{"segments": [{"start": 0, "prompt": "\\ud800"}]}', r"segment 1: the character U\+D800 is not allowed"),
    ],
)
def test_json_that_is_no_schedule_is_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule(text)


def test_defaults_hold_for_segments_and_files_that_name_no_blend():
    schedule = parse_schedule("0s: a\n5s: b\n10s blend 4 linear: c", blend=6, shape="spherical")
    assert [schedule.blend_of(index) for index in range(3)] == [(0, "step"), (6, "spherical"), (4, "linear")]
    schedule = parse_schedule('{"segments": [{"start": 0, "prompt": "a"}], "shape": "step"}', blend=6)
    assert (schedule.blend, schedule.shape) == (6, "step")


def authors_weight(chunk: int, intervals: list[int], steps: int) -> tuple[int, float]:
    """(interval, share of its prompt) as the authors' interactive inference has it, for chunks within the list."""
    ends = [sum(intervals[: index + 1]) for index in range(len(intervals))]
    index = next(number for number, end in enumerate(ends) if chunk < end)
    if index == 0:
        return 0, 1.0
    position = chunk - ends[index - 1]
    return (index, position / (steps - 1)) if position < steps else (index, 1.0)


def test_the_default_blend_is_that_of_the_authors_interactive_inference():
    intervals = [7, 5, 4]
    schedule = PromptSchedule((Segment(0, "a"), Segment(7, "b"), Segment(12, "c")))
    for chunk in range(sum(intervals)):
        index, weight = authors_weight(chunk, intervals, steps=3)
        expected = {index - 1: 1 - weight, index: weight}
        assert dict(schedule.mix(chunk)) == {key: share for key, share in expected.items() if share > 0}


@pytest.mark.parametrize(
    ("blend", "weights"),
    [(0, [1, 1]), (1, [1, 1]), (2, [0, 1, 1]), (3, [0, 0.5, 1, 1]), (5, [0, 0.25, 0.5, 0.75, 1, 1])],
)
def test_a_blend_of_n_chunks_rises_evenly_from_the_old_prompt_to_the_new_one(blend, weights):
    assert [blend_weight(position, blend) for position in range(len(weights))] == weights


@settings(deadline=None)
@given(schedules(), st.integers(0, 400))
def test_weights_add_up_to_one_and_belong_to_the_chunks_segment_and_the_one_before(schedule, chunk):
    parts = schedule.mix(chunk)
    assert math.isclose(sum(weight for _, weight in parts), 1.0)
    index = schedule.index_at(chunk)
    assert {part for part, _ in parts} <= {index, index - 1}
    assert all(0 <= part < len(schedule.segments) and 0 < weight <= 1 for part, weight in parts)


def test_past_the_end_the_last_prompt_holds():
    schedule = parse_schedule("0s: a\n5s blend 2: b\nend 10s")
    assert schedule.length == 7
    assert schedule.mix(5000) == [(1, 1.0)]


def test_segments_that_end_before_their_blend_does_are_named():
    schedule = parse_schedule(
        "0s blend 9: a\nchunk 3 blend 2: b\nchunk 5 blend 3: c\nchunk 7 blend 9 step: d\nend chunk 8"
    )
    assert schedule.cut_blends() == [2]
    assert parse_schedule("0s: a\nchunk 3: b\nend chunk 5").cut_blends() == [1]
    assert parse_schedule("0s: a\nchunk 3: b").cut_blends() == []


@settings(deadline=None)
@given(st.integers(0, 100_000), st.sampled_from([12, 16, 23.976, 24, 25, 30, 60, 120]))
def test_a_chunks_own_time_printed_to_the_millisecond_finds_it_again(chunk, frame_rate):
    assert nearest_chunk(round(33 * chunk / frame_rate, 3), frame_rate) == chunk


@pytest.mark.parametrize("text", ['{"0": "a fox", "48": "it jumps"}', '{ "0" : "a fox",\n"48":"it jumps" }'])
def test_json_by_frame_numbers_is_answered_with_the_text_to_write(text):
    with pytest.raises(ValueError, match=r"frame numbers.*0s: a fox / 2s: it jumps"):
        parse_schedule(text)
