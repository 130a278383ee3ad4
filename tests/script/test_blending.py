"""Blending prompts, and sampling along a schedule."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from helios_core.cli import main
from helios_core.demo import DemoModel
from helios_core.media.frames import to_pixels
from helios_core.memory.storage import load_memory
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.noise import SeededNoise
from helios_core.script.blending import EncodedSchedule, blend_rows
from helios_core.script.schedule import PromptSchedule, Segment
from helios_core.script.schedule_text import parse_schedule
from tests.chunks import chunks_of, chunks_of_script
from tests.stand_in_device import DEVICE, StandInDevice, to_stand_in

weights = st.floats(0.01, 0.99)


def random_rows(seed: int, num_padding: int = 2) -> torch.Tensor:
    rows = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))
    rows[:, 6 - num_padding :] = 0
    return rows


@hypothesis_settings(deadline=None)  # torch takes its time over the first call
@given(weights)
def test_a_linear_blend_is_the_weighted_sum(weight):
    a, b = random_rows(0), random_rows(1)
    torch.testing.assert_close(blend_rows(a, b, weight), (1 - weight) * a + weight * b)


@hypothesis_settings(deadline=None)
@given(weights)
def test_a_spherical_blend_turns_each_row_in_the_plane_of_the_two(weight):
    a, b = random_rows(0).double(), random_rows(1).double()
    blended = blend_rows(a, b, weight, "spherical")
    for row_a, row_b, row in zip(a[0, :4], b[0, :4], blended[0, :4], strict=True):
        # Gram-Schmidt: a rotation by the weighted angle from the first towards the second.
        first = row_a / row_a.norm()
        second = row_b - (row_b @ first) * first
        second = second / second.norm()
        angle = weight * math.acos(row_a @ row_b / (row_a.norm() * row_b.norm()))
        length = (1 - weight) * row_a.norm() + weight * row_b.norm()
        torch.testing.assert_close(row, length * (math.cos(angle) * first + math.sin(angle) * second))
    assert (blended[0, 4:] == 0).all()


def test_a_device_without_float64_blends_to_the_same_bits():
    a, b = random_rows(0), random_rows(1)
    with StandInDevice():
        there = blend_rows(to_stand_in(a), to_stand_in(b), 0.3, "spherical")
        assert there.device == DEVICE
        assert torch.equal(there.cpu(), blend_rows(a, b, 0.3, "spherical"))


@hypothesis_settings(deadline=None)
@given(weights)
def test_rows_without_an_arc_between_them_are_blended_linearly(weight):
    a, b = random_rows(0, num_padding=3), random_rows(1, num_padding=1)
    b[0, 0] = a[0, 0]
    b[0, 1] = -2 * a[0, 1]
    b[0, 2] = 3 * a[0, 2]
    blended, linear = blend_rows(a, b, weight, "spherical"), blend_rows(a, b, weight)
    for row in (0, 1, 2, 3, 4):  # equal, opposite, parallel, and zero in one of the two
        torch.testing.assert_close(blended[0, row], linear[0, row])


@pytest.mark.parametrize("shape", ["linear", "spherical"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ends_of_a_blend_are_the_prompts_bit_for_bit_and_the_dtype_stays(shape, dtype):
    a, b = random_rows(0).to(dtype), random_rows(1).to(dtype)
    assert blend_rows(a, b, 0.0, shape).equal(a)
    assert blend_rows(a, b, 1.0, shape).equal(b)
    assert blend_rows(a, b, 0.5, shape).dtype == dtype


def test_rows_of_two_text_encoders_are_refused():
    with pytest.raises(ValueError, match="cannot be blended"):
        blend_rows(torch.zeros(1, 6, 8), torch.zeros(1, 5, 8), 0.5)


@pytest.fixture(scope="module")
def demo():
    source = DemoModel()
    return source, source.load_transformer(), replace(source.settings, steps=(1, 1), guidance_scale=1.0)


def run(demo, script, num_chunks, *, memory=None, seed=1, **options):
    _, model, settings = demo
    memory = memory or text_memory(width=64, height=64)
    plans = (SeededNoise(seed), SeededNoise, settings)
    return list(chunks_of_script(model, script, memory, num_chunks, *plans, **options))


def encode(demo, text):
    return EncodedSchedule.encode(parse_schedule(text), demo[0].encode_prompts)


def test_each_distinct_prompt_is_encoded_once():
    asked = []

    def encode_prompts(prompts):
        asked.extend(prompts)
        return [random_rows(len(prompt)) for prompt in prompts]

    script = EncodedSchedule.encode(parse_schedule("0s: a\n5s: bb\n10s: a"), encode_prompts)
    assert asked == ["a", "bb"]
    assert script.rows[0] is script.rows[2]


def test_a_segment_is_added_after_the_last_and_moves_an_end_that_it_lies_behind(demo):
    script = encode(demo, "0s: a fox\nend chunk 3")
    rows = script.rows[0]
    assert script.add(Segment(2, "b"), rows).schedule.num_chunks == 3
    assert script.add(Segment(3, "b"), rows).schedule.num_chunks is None
    with pytest.raises(ValueError, match="two segments start at chunk 0"):
        script.add(Segment(0, "b"), rows)


def test_rows_of_a_chunk_are_blended_as_the_schedule_says(demo):
    script = encode(demo, "0s: a fox\nchunk 2 blend 3: a hare\nchunk 6 blend 4 spherical: a crow")
    fox, hare, crow = script.rows
    assert [script.rows_for(chunk) is fox for chunk in range(4)] == [True, True, True, False]
    assert script.rows_for(3).equal(blend_rows(fox, hare, 0.5))
    assert script.rows_for(5) is hare
    assert script.rows_for(7).equal(blend_rows(hare, crow, 1 / 3, "spherical"))
    assert script.rows_for(500) is crow


def test_a_schedule_of_steps_equals_a_chain_of_samplers(demo):
    source, model, settings = demo
    script = encode(demo, "0s: a fox\nchunk 1 step seed 9: a hare\nchunk 3 step: a crow")
    directed = run(demo, script, 4)

    memory, chained = text_memory(width=64, height=64), []
    for prompt, seed, num_chunks in (("a fox", 1, 1), ("a hare", 9, 2), ("a crow", 1, 1)):
        (rows,) = source.encode_prompts([prompt])
        made = list(chunks_of(model, rows, memory, num_chunks, SeededNoise(seed), settings))
        chained += [latents for latents, _ in made]
        memory = made[-1][1]
    assert torch.cat([latents for latents, _ in directed]).equal(torch.cat(chained))
    assert [after.provenance.seed for _, after in directed] == [1, 9, 9, 1]


def test_a_run_that_continues_from_a_memory_takes_the_schedule_up_there(demo):
    script = encode(demo, "0s: a fox\nchunk 1 blend 3: a hare")
    whole = run(demo, script, 4)
    rest = run(demo, script, 2, memory=whole[1][1])
    assert [a.equal(b) for (a, _), (b, _) in zip(whole[2:], rest, strict=True)] == [True, True]


def test_guidance_of_one_segment_needs_a_negative_prompt_and_acts_there_only(demo):
    script = encode(demo, "0s: a fox\nchunk 1 step guidance 5: a fox\nchunk 2 step: a fox")
    with pytest.raises(ValueError, match="needs a negative prompt"):
        run(demo, script, 3)
    (negative,) = demo[0].encode_prompts(["blurry"])
    guided = run(demo, script, 2, negative=negative)
    plain = run(demo, encode(demo, "0s: a fox"), 2)
    assert guided[0][0].equal(plain[0][0])
    assert not guided[1][0].equal(plain[1][0])
    assert run(demo, script, 1)[0][0].equal(plain[0][0]), "a segment that is not reached needs nothing"


def test_an_anchor_picture_takes_the_place_of_the_first_frame_from_its_segment_on(demo):
    schedule = PromptSchedule((Segment(0, "a fox"), Segment(1, "a fox", blend=0, anchor="dusk.png")))
    (rows,) = demo[0].encode_prompts(["a fox"])
    picture = torch.rand(64, 64, 3)
    anchor = torch.full((1, 16, 1, 8, 8), 0.5)
    script = EncodedSchedule(schedule, (rows, rows), {"dusk.png": picture})
    (chunk, shown), *others = script.anchors_in(range(3)).items()
    assert chunk == 1
    assert shown is picture
    assert others == []
    chunks = run(demo, script, 3, anchors={1: anchor})
    assert chunks[0][1].anchor.equal(chunks[0][0][:, :, :1])
    assert chunks[1][1].anchor.equal(anchor)
    assert chunks[2][1].anchor.equal(anchor)
    plain = run(demo, encode(demo, "0s: a fox"), 3)
    assert plain[0][0].equal(chunks[0][0])
    assert not plain[1][0].equal(chunks[1][0])
    with pytest.raises(ValueError, match="an anchor at chunk 1 whose latents are not given"):
        run(demo, script, 3)
    with pytest.raises(ValueError, match=r"names the anchor picture 'dusk.png', which is not given"):
        EncodedSchedule(schedule, (rows, rows))


def test_a_single_prompt_is_a_schedule_too(demo):
    source, model, settings = demo
    (rows,) = source.encode_prompts(["a fox"])
    memory = text_memory(width=64, height=64)
    plain = [latents for latents, _ in chunks_of(model, rows, memory, 2, SeededNoise(1), settings)]
    directed = run(demo, EncodedSchedule.of_one_prompt(rows), 2)
    assert [latents.equal(other) for latents, (other, _) in zip(plain, directed, strict=True)] == [True, True]


SCRIPT = "0s: a fox\nchunk 1 blend 3 seed 9: a hare\nchunk 3 step anchor dusk.png: a crow\nend chunk 4\n"


def test_the_command_line_follows_a_schedule(demo, tmp_path):
    (tmp_path / "script.txt").write_text(SCRIPT, encoding="utf-8")
    Image.new("RGB", (64, 64), (200, 100, 50)).save(tmp_path / "dusk.png")
    arguments = ["--width", "64", "--height", "64", "--seed", "1", "--device", "cpu"]
    arguments += ["--steps", "1,1", "--guidance-scale", "1"]
    script_arguments = ["generate", "--schedule", str(tmp_path / "script.txt"), "--out", str(tmp_path / "out.mp4")]
    memory_file = tmp_path / "last.helios.safetensors"
    assert main([*script_arguments, *arguments, "--save-memory", str(memory_file)]) == 0

    encode = DemoModel().load_codec().encode
    picture = torch.tensor([200, 100, 50]).expand(1, 64, 64, 3).to(torch.uint8)
    schedule = parse_schedule(SCRIPT)
    script = EncodedSchedule.encode(schedule, demo[0].encode_prompts, {"dusk.png": picture[0]})
    expected = run(demo, script, 4, anchors={3: encode(to_pixels(picture))})[-1][1]
    saved = load_memory(memory_file)
    assert saved.chunk_index == 4
    assert saved.frames.equal(expected.frames)
    assert saved.anchor.equal(expected.anchor)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("0s: a\n-3s: b", [], "script.txt: line 2, column 1: expected a start"),
        ("0s: a", ["--then", "2:b"], "put the prompts into the schedule"),
        ("0s anchor no.png: a", [], "no.png"),
    ],
)
def test_the_command_line_says_what_is_wrong_with_a_schedule(text, options, message, tmp_path, caplog):
    (tmp_path / "script.txt").write_text(text, encoding="utf-8")
    arguments = ["--schedule", str(tmp_path / "script.txt"), "--out", str(tmp_path / "out.mp4"), *options]
    assert main(["generate", *arguments]) == 2
    assert message in caplog.text
