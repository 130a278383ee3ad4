"""What must hold of any video, whatever the weights: bounded memory, resumption, immutability, counted work."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_core.memory.config import MemoryConfig
from helios_core.memory.memory import HeliosMemory
from helios_core.sampling.conditioning import image_memory, text_memory, video_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.loop import make_chunks
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.plan import ChunkPlan, Past
from helios_core.sampling.settings import SamplingSettings, ScheduleConfig
from tests import parity, reference
from tests.chunks import chunks_of

HEIGHT = WIDTH = 64
PROMPT, NEGATIVE = torch.randn(2, 1, 7, 16, generator=reference.generator(1))
MODEL = parity.our_model(parity.weights(torch.float32))

BASE = SamplingSettings(ScheduleConfig.with_stages(1), steps=(2,))
MID = SamplingSettings(ScheduleConfig(), steps=(3, 1, 1), cfg_zero_star=True)
DISTILLED = SamplingSettings(
    ScheduleConfig(solver="dmd", time_shift_type="linear"),
    steps=(1, 1, 1),
    guidance_scale=1.0,
    amplify_first_chunk=True,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=reference.generator(seed))


def latent_frames(num_frames: int, seed: int) -> torch.Tensor:
    return randn(1, 16, num_frames, HEIGHT // 8, WIDTH // 8, seed=seed)


def start(task: str = "t2v", seed: int = 3) -> HeliosMemory:
    noise = SeededNoise(seed)
    if task == "t2v":
        return text_memory(width=WIDTH, height=HEIGHT)
    if task == "i2v":
        return image_memory(latent_frames(1, 1), latent_frames(1, 2), noise)
    return video_memory(latent_frames(1, 1), latent_frames(18, 2), noise)


def run(memory: HeliosMemory, num_chunks: int, config: SamplingSettings = DISTILLED, *, seed: int = 3, hooks=None):
    """[(latents, memory), ...] of a run, its noise from a new source."""
    noise = SeededNoise(seed)
    return list(
        chunks_of(MODEL, PROMPT, memory, num_chunks, noise, config, negative=NEGATIVE, hooks=hooks)
    )


def count_forwards(action) -> int:
    calls = []
    handle = MODEL.register_forward_hook(lambda *_: calls.append(1))
    try:
        action()
    finally:
        handle.remove()
    return len(calls)


@settings(max_examples=8)
@given(older=st.lists(st.integers(1, 30), max_size=3), recent=st.integers(19, 25))
def test_a_chunk_depends_on_nothing_older_than_19_latent_frames_and_the_anchor(older, recent):
    def memory_after(lengths: list[int], seed: int) -> HeliosMemory:
        memory = replace(start("i2v"), chunk_index=5)
        for index, length in enumerate(lengths):
            memory = memory.append(latent_frames(length, seed + index))
        return replace(memory.append(latent_frames(recent, 99)), chunk_index=5)

    plain, with_past = memory_after([], 0), memory_after(older, 40)
    assert plain.frames.shape == with_past.frames.shape == (1, 16, 19, 8, 8)
    (first, _), (second, _) = run(plain, 1)[0], run(with_past, 1)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("frame", [0, 15, 16, 17, 18])
def test_a_chunk_does_depend_on_each_part_of_its_memory(frame):
    memory = replace(start("v2v"), chunk_index=5)
    changed = memory.frames.clone()
    changed[:, :, frame] += 1.0
    (before, _), (after, _) = run(memory, 1)[0], run(replace(memory, frames=changed), 1)[0]
    assert (before - after).abs().max() > 1e-2


def test_a_chunk_does_depend_on_the_anchor():
    memory = replace(start("v2v"), chunk_index=5)
    (before, _), (after, _) = run(memory, 1)[0], run(replace(memory, anchor=memory.anchor + 1), 1)[0]
    assert (before - after).abs().max() > 1e-2


@pytest.mark.parametrize("task", ["t2v", "i2v", "v2v"])
@pytest.mark.parametrize("config", [BASE, MID, DISTILLED], ids=["base", "mid", "distilled"])
def test_a_run_split_anywhere_and_a_longer_run_give_the_same_bits(config, task):
    whole = run(start(task), 3, config)
    for split in (1, 2):
        first = run(start(task), split, config)
        second = run(first[-1][1], 3 - split, config)
        for (latents, memory), (expected, expected_memory) in zip(first + second, whole, strict=True):
            assert torch.equal(latents, expected)
            assert torch.equal(memory.frames, expected_memory.frames)
            assert torch.equal(memory.anchor, expected_memory.anchor)
            assert memory.chunk_index == expected_memory.chunk_index
            assert memory.provenance == expected_memory.provenance


@pytest.mark.parametrize("task", ["t2v", "i2v", "v2v"])
def test_no_two_draws_of_a_video_share_a_key(task):
    """A shared key would be the same noise twice."""

    class Recorder(SeededNoise):
        def _generator(self, key):
            drawn.append(key)
            return super()._generator(key)

    drawn: list = []
    noise, frames = Recorder(3), latent_frames(27, 2)
    memory = start("t2v")
    if task == "i2v":
        memory = image_memory(frames[:, :, :1], frames[:, :, 1:2], noise)
    elif task == "v2v":
        memory = video_memory(frames[:, :, :1], frames, noise)
    list(chunks_of(MODEL, PROMPT, memory, 3, noise, DISTILLED))
    given_frames = {"t2v": 0, "i2v": 2 * 2, "v2v": 2 * (1 + 3)}[task]  # a level and noise for each piece
    assert len(drawn) == given_frames + 3 * 3  # a chunk's start, and its entry into two more stages
    assert len(set(drawn)) == len(drawn)


def test_a_branch_leaves_the_other_branch_as_it_was():
    (_, trunk), *_ = run(start(), 1)
    (expected, _), *_ = run(trunk, 1)
    (other, _), *_ = run(trunk, 1, seed=4)
    (again, _), *_ = run(trunk, 1)
    assert torch.equal(expected, again)
    assert (other - expected).abs().max() > 0.1


@given(lengths=st.lists(st.integers(1, 27), min_size=1, max_size=6), reanchor=st.booleans(), given_anchor=st.booleans())
def test_append_keeps_the_latest_frames_and_the_first_and_changes_no_older_memory(lengths, reanchor, given_anchor):
    config = MemoryConfig(reanchor_on_second_chunk=reanchor)
    anchor = randn(1, 2, 1, 2, 3, seed=77) if given_anchor else None
    memory = HeliosMemory(torch.zeros(1, 2, 19, 2, 3), anchor, config=config)
    chunks = [randn(1, 2, length, 2, 3, seed=index) for index, length in enumerate(lengths)]
    history, states = [memory], [(memory.frames.clone(), memory.anchor)]
    for chunk in chunks:
        history.append(history[-1].append(chunk))
        states.append((history[-1].frames.clone(), history[-1].anchor.clone()))

    everything = torch.cat((memory.frames, *chunks), dim=2)
    assert torch.equal(history[-1].frames, everything[:, :, -19:])
    first_anchor = anchor if given_anchor else chunks[0][:, :, :1]
    expected_anchor = chunks[1][:, :, :1] if reanchor and len(chunks) > 1 else first_anchor
    assert torch.equal(history[-1].anchor, expected_anchor)
    assert history[-1].chunk_index == len(chunks)
    assert history[-1].frames.untyped_storage().nbytes() == 19 * 2 * 2 * 3 * 4  # holds on to nothing older

    frozen_anchor = expected_anchor.clone()
    for chunk in chunks:
        chunk.zero_()
    assert torch.equal(history[-1].anchor, frozen_anchor)
    for state, (frames, kept_anchor) in zip(history, states, strict=True):
        assert torch.equal(state.frames, frames)
        assert (state.anchor is None) == (kept_anchor is None)
        assert kept_anchor is None or torch.equal(state.anchor, kept_anchor)


def test_a_memory_cannot_be_assigned_to_and_does_not_share_the_latents_handed_out():
    (latents, memory), *_ = run(start(), 1)
    frames, anchor = memory.frames.clone(), memory.anchor.clone()
    latents.zero_()
    assert torch.equal(memory.frames, frames)
    assert torch.equal(memory.anchor, anchor)
    with pytest.raises(FrozenInstanceError):
        memory.chunk_index = 7


@given(sizes=st.tuples(*[st.integers(1, 20)] * 3), keep_first_frame=st.booleans())
def test_the_window_shows_every_frame_once_in_order(sizes, keep_first_frame):
    config = MemoryConfig(history_sizes=sizes, keep_first_frame=keep_first_frame)
    numbers = torch.arange(1, config.num_latent_frames + 1).float()
    frames = numbers.view(1, 1, -1, 1, 1).expand(1, 16, -1, 2, 2)
    anchor = torch.zeros(1, 16, 1, 2, 2) if keep_first_frame else None
    window = HeliosMemory(frames, anchor, config=config).window()
    indices = window.frame_indices
    short_first = 1 if keep_first_frame else 0
    shown = torch.cat((window.long, window.mid, window.short[:, :, short_first:]), dim=2)
    assert torch.equal(shown[0, 0, :, 0, 0], numbers)
    assert list(config.history_sizes) == sorted(sizes, reverse=True)
    positions = torch.cat((indices.short[:short_first], indices.long, indices.mid, indices.short[short_first:]))
    assert torch.equal(torch.cat((positions, indices.noisy)), torch.arange(len(positions) + 9))


@pytest.mark.parametrize("num_chunks", [1, 3])
def test_n_chunks_give_33n_frames(num_chunks):
    chunks = run(start(), num_chunks)
    assert [latents.shape for latents, _ in chunks] == [(1, 16, 9, 8, 8)] * num_chunks
    assert [memory.chunk_index for _, memory in chunks] == list(range(1, num_chunks + 1))
    with torch.no_grad():
        frames = [parity.autoencoder().decode(latents[..., :2, :2]).sample for latents, _ in chunks]
    assert torch.cat(frames, dim=2).shape[2] == 33 * num_chunks


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(BASE, 2 * 2, id="guided: two forwards a step"),
        pytest.param(MID, 2 * (5 - 2), id="zero-init leaves out two steps"),
        pytest.param(replace(MID, zero_steps=0), 2 * (5 - 1), id="zero-init of one step"),
        pytest.param(replace(MID, zero_steps=9), 2 * (5 - 3), id="zero-init ends with the first stage"),
        pytest.param(replace(MID, zero_init=False), 2 * 5, id="no zero-init"),
        pytest.param(replace(MID, guidance_scale=1.0), 5, id="unguided: one forward a step, none left out"),
        pytest.param(DISTILLED, 6, id="amplified first chunk"),
        pytest.param(replace(DISTILLED, amplify_first_chunk=False), 3, id="distilled"),
    ],
)
def test_the_model_runs_no_more_often_than_it_must(config, expected):
    assert count_forwards(lambda: run(start(), 1, config)) == expected


def test_only_chunk_zero_is_amplified():
    _, (_, memory) = run(start(), 2)
    assert count_forwards(lambda: run(start(), 3)) == 6 + 3 + 3
    assert count_forwards(lambda: run(memory, 1)) == 3


class Cancelled(Exception):
    """Raised by the host."""


@pytest.mark.parametrize("config", [BASE, MID, DISTILLED], ids=["base", "mid", "distilled"])
@pytest.mark.parametrize("forwards_before", [0, 1, 3])
def test_a_cancelled_run_ends_before_the_next_forward_of_the_model(config, forwards_before):
    asked = []

    def check_cancelled():
        asked.append(1)
        if len(asked) > forwards_before:
            raise Cancelled

    def cancelled_run():
        with pytest.raises(Cancelled):
            run(start(), 2, config, hooks=Hooks(check_cancelled=check_cancelled))

    assert count_forwards(cancelled_run) == forwards_before


@pytest.mark.parametrize("config", [BASE, MID, DISTILLED], ids=["base", "mid", "distilled"])
def test_progress_reports_every_step_once_and_changes_nothing(config):
    reports = []
    watched = run(start(), 2, config, hooks=Hooks(progress=reports.append))
    unwatched = run(start(), 2, config)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(watched, unwatched, strict=True))

    expected = [
        (chunk, stage, config.schedule.num_stages, step, num_steps)
        for chunk in range(2)
        for stage, num_steps in enumerate(config.steps_in_chunk(chunk))
        for step in range(num_steps)
    ]
    told = [(r.chunk_index, r.stage, r.num_stages, r.step, r.num_steps) for r in reports]
    assert told == expected
    assert reports[0].denoised.shape[-1] == WIDTH // 8 // 2 ** (config.schedule.num_stages - 1)
    # The last guess of the clean latents is the chunk.
    torch.testing.assert_close(reports[-1].denoised, watched[-1][0], rtol=0, atol=1e-4)


def test_guidance_towards_the_same_prompt_changes_nothing():
    unguided = replace(BASE, guidance_scale=1.0)
    noise = SeededNoise(3)
    same = list(chunks_of(MODEL, PROMPT, start(), 2, noise, BASE, negative=PROMPT))
    plain = list(chunks_of(MODEL, PROMPT, start(), 2, noise, unguided))
    assert torch.equal(same[-1][0], plain[-1][0])


def test_an_attention_handed_to_the_sampler_is_used_in_every_block():
    shapes = []

    def attention(query, key, value):
        shapes.append(query.shape)
        return F.scaled_dot_product_attention(query, key, value)

    handed_in = run(start(), 1, BASE, hooks=Hooks(attention=attention))
    assert len(shapes) == 2 * 2 * 2 * 2  # steps, forwards, blocks, attentions
    assert torch.equal(handed_in[0][0], run(start(), 1, BASE)[0][0])


def test_each_video_of_a_batch_is_its_own():
    """Exchanging the prompts of two videos, and their noise with them, exchanges the videos."""
    prompts = torch.cat((PROMPT, NEGATIVE))

    class Flipped(SeededNoise):
        def normal(self, shape, key):
            draw = super().normal(shape, key)
            return draw.view(2, -1).flip(0).view(shape)

    memory = text_memory(width=WIDTH, height=HEIGHT, batch_size=2)
    straight = [x for x, _ in chunks_of(MODEL, prompts, memory, 2, SeededNoise(1), DISTILLED)]
    flipped = [x for x, _ in chunks_of(MODEL, prompts.flip(0), memory, 2, Flipped(1), DISTILLED)]
    torch.testing.assert_close(straight[-1], flipped[-1].flip(0), rtol=0, atol=1e-4)
    assert (straight[-1][0] - straight[-1][1]).abs().max() > 0.1


def test_a_text_memory_is_empty_and_an_image_memory_ends_with_the_still():
    assert not start("t2v").frames.any()
    assert start("t2v").anchor is None
    image, still = latent_frames(1, 1), latent_frames(1, 2)
    memory = image_memory(image, still, SeededNoise(0), add_noise=False)
    assert torch.equal(memory.anchor, image)
    assert torch.equal(memory.frames[:, :, 18:], still)
    assert not memory.frames[:, :, :18].any()


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 5])
def test_of_a_clip_only_the_last_three_chunks_matter(num_chunks):
    first, clip = latent_frames(1, 1), latent_frames(9 * num_chunks, 2)
    whole, cut = (video_memory(first, frames, SeededNoise(6)) for frames in (clip, clip[:, :, -27:]))
    assert torch.equal(whole.frames, cut.frames)
    assert torch.equal(whole.anchor, cut.anchor)
    clean = video_memory(first, clip, SeededNoise(6), add_noise=False)
    padded = torch.cat((torch.zeros(1, 16, 19, 8, 8), clip), dim=2)
    assert torch.equal(clean.frames, padded[:, :, -19:])


@given(low=st.floats(0, 0.9), width=st.floats(0, 0.1))
def test_conditioning_noise_has_a_level_within_its_range(low, width):
    """With the clean latents all one, sigma can be read off: x = sigma * n + (1 - sigma)."""
    ones = torch.ones(1, 16, 9, 16, 16)
    noisy = video_memory(ones[:, :, :1], ones, SeededNoise(8), video_sigma_range=(low, low + width)).frames[:, :, -9:]
    sigma = 1 - noisy.mean(dim=(0, 1, 3, 4))
    # A frame has 4096 values, so sigma is read to five standard errors of sigma / 64.
    assert sigma.min() > low - 0.08 * (low + width) - 1e-3
    assert sigma.max() < (low + width) * 1.08 + 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"memory": text_memory(width=96, height=64)}, "width 96 is not a multiple of 64", id="size"),
        pytest.param({"rows": torch.zeros(2, 7, 16)}, "2 prompts and a memory of 1", id="batch"),
        pytest.param({"settings": MID}, "needs a negative prompt", id="no negative prompt"),
        pytest.param({"memory": text_memory(width=64, height=64, channels=4)}, "4 latent channels", id="channels"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_model_runs(changes, message):
    arguments = {
        "model": MODEL,
        "rows": PROMPT,
        "memory": start(),
        "num_chunks": 1,
        "noise": SeededNoise(0),
        "settings": DISTILLED,
    } | changes

    def refused():
        with pytest.raises(ValueError, match=message):
            next(chunks_of(**arguments))

    assert count_forwards(refused) == 0


def test_a_plan_is_asked_for_when_its_turn_has_come_and_not_before():
    asked = []

    def plans():
        for number in range(3):
            asked.append(number)
            yield ChunkPlan(PROMPT, DISTILLED, SeededNoise(3))

    chunks = make_chunks(lambda: MODEL, Past(start()), plans())
    for number in range(3):
        next(chunks)
        assert asked == list(range(number + 1))


@settings(max_examples=5, deadline=None)
@given(split=st.integers(1, 3))
def test_the_identity_of_a_chunk_does_not_depend_on_where_the_run_was_split(split):
    def made(memory, num_chunks):
        return [after for _, after in run(memory, num_chunks)]

    whole = made(start("i2v"), 4)
    first = made(start("i2v"), split)
    rest = made(first[-1], 4 - split)
    assert [memory.identity for memory in first + rest] == [memory.identity for memory in whole]
    assert len({memory.identity for memory in whole}) == 4
    assert [memory.identity for memory in made(start("t2v"), 1)] != [whole[0].identity]


def test_the_forwards_of_a_step_are_one_call_that_a_host_may_answer_in_its_own_way():
    asked = []

    def predict(latents, timesteps, prompts, memory, step):
        asked.append((step.stage, step.step, len(prompts)))
        return [MODEL(latents, timesteps, prompt, memory) for prompt in reversed(prompts)][::-1]

    config = replace(MID, zero_init=False)
    answered = run(start(), 1, config, hooks=Hooks(predict=predict))
    assert asked == [(0, 0, 2), (0, 1, 2), (0, 2, 2), (1, 0, 2), (2, 0, 2)]
    assert torch.equal(answered[0][0], run(start(), 1, config)[0][0])
