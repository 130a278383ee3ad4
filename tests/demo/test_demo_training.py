"""The demo's training is Helios' training in small: its targets are what the sampler asks for."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from einops import rearrange

from helios_core.demo import DEMO_SETTINGS, world
from helios_core.demo.model import DEMO_CONFIG, VAE_FILE, encode_prompt
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.pyramid import renoise, renoise_scales, renoise_shape, stage_ranges
from helios_core.vae.codec import WanCodec

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import demo_data
import train_demo as training
from demo_latents import LinearCodec

torch.set_num_threads(2)
SCHEDULE = DEMO_SETTINGS.schedule


@pytest.fixture(scope="module")
def codec():
    return LinearCodec.fitted(num_clips=100)


@pytest.fixture(scope="module")
def videos(codec):
    return demo_data.make_videos(codec, 12, seed=0)


def test_the_end_of_a_stage_renoised_has_the_distribution_that_the_next_one_starts_from():
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 16, 2, 8, 8, generator=generator)
    _, end = training.stage_flow(data, 0, torch.randn(64, 16, 2, 4, 4, generator=generator))
    independent = torch.randn(renoise_shape(end), generator=generator)
    entered = renoise(end, independent, 1, SCHEDULE, torch.float32)
    start, _ = training.stage_flow(data, 1, torch.randn(data.shape, generator=generator))
    signal, _ = training.stage_flow(data, 1, torch.zeros(data.shape))
    # Same mean given the data, same spread around it.
    for sample in (entered, start):
        slope = (sample * signal).sum() / signal.square().sum()
        assert abs(slope - 1) < 0.03
    assert abs((entered - signal).std() - (start - signal).std()) < 0.01


def test_the_last_stage_ends_at_the_data():
    data = torch.randn(2, 16, 9, 8, 8)
    torch.testing.assert_close(training.stage_flow(data, 1, torch.randn_like(data))[1], data)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_path_that_starts_astray_ends_at_the_same_place(stage):
    data, error = torch.randn(2, 16, 9, 8, 8), torch.randn(2, 16, 9, 4, 4)
    noise = torch.randn(demo_data.shrink(data, 1 - stage).shape)
    start, end = training.stage_flow(data, stage, noise)
    start_astray, end_astray = training.stage_flow(data, stage, noise, error)
    torch.testing.assert_close(end_astray, end)
    moved = demo_data.shrink(start_astray - start, stage)
    kept = (moved * error).sum() / error.square().sum()
    torch.testing.assert_close(moved, kept * error)
    # As much of it as `renoise` keeps of what the stage before made.
    alpha = renoise_scales(SCHEDULE, stage_ranges(SCHEDULE)[1].start_sigma)[0]
    wanted = 1.0 if stage == 0 else alpha * (1 - stage_ranges(SCHEDULE)[1].start_sigma)
    assert kept == pytest.approx(wanted, abs=1e-5)


def test_only_what_has_a_past_is_led_astray_and_that_by_a_movement(videos, codec):
    batch = demo_data.sample_batch(videos, 96, codec.light, torch.Generator().manual_seed(0))
    has_past = (batch.past.frames.abs().amax((1, 3, 4)) > 0).any(1)
    assert (batch.place_error.abs().amax((1, 2, 3, 4)) > 0).equal(has_past)
    # A pixel's movement: some of the picture changes a little, never so much as to another picture.
    small = demo_data.lowest_stage(videos.chunks.flatten(0, 1).float())
    changed = videos.moved.flatten(0, 1).float().square().mean((1, 2, 3, 4)) / small.var((1, 2, 3, 4))
    assert 0.001 < changed.median() < 0.1


@pytest.mark.parametrize("num_layers", [1, 4, 6])
def test_more_blocks_begin_as_the_same_function(num_layers):
    few = HeliosTransformer(replace(DEMO_CONFIG, num_layers=num_layers))
    many = training.deepened(few)
    assert len(many.blocks) == DEMO_CONFIG.num_layers
    latents = torch.randn(2, 16, 9, 8, 8)
    memory = text_memory(width=64, height=64, batch_size=2).window("cpu")
    prompt = torch.cat([encode_prompt("a red circle"), encode_prompt("")])

    def velocity(model):
        return model(latents, torch.tensor([700.0, 100.0]), model.encode_prompt(prompt), model.encode_memory(memory))

    with torch.no_grad():
        assert velocity(many).equal(velocity(few))


def test_weights_with_too_many_blocks_are_refused():
    with pytest.raises(ValueError, match="the weights have 7 blocks; give weights with at most 6"):
        training.deepened(HeliosTransformer(replace(DEMO_CONFIG, num_layers=7)))


def test_no_prompt_of_training_is_of_a_held_out_scene(videos):
    held_out = torch.cat([encode_prompt(scene.prompt) for scene in world.all_scenes() if world.is_held_out(scene)])
    distances = torch.cdist(held_out.flatten(1), videos.prompts.flatten(1))
    assert distances.min() > 1


def test_videos_continue_from_chunk_to_chunk(codec):
    scene = world.Scene("red", "square", "right", "black")
    start = (7.0, 30.0)
    second = world.render(scene, world.position(scene, start, 33), range(1))
    torch.testing.assert_close(second, world.render(scene, start, range(33, 34)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_the_vae_gives_the_latents_that_the_transformer_is_trained_on_whatever_machine_finds_them(num_threads):
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        codec = LinearCodec.fitted()
    finally:
        torch.set_num_threads(threads)
    scene = world.Scene("yellow", "triangle", "down", "grey")
    pixels = rearrange(world.render(scene, (30.0, 20.0), range(33)) * 2 - 1, "t h w c -> 1 c t h w")
    wanted = codec.encode(pixels)
    error = (WanCodec.from_file(VAE_FILE).encode(pixels) - wanted).square().mean((0, 2, 3, 4)).sqrt()
    assert error.max() < 0.3 * wanted.std()


def test_what_is_empty_in_the_past_stays_empty_and_the_rest_is_changed_in_part(codec):
    frames = torch.randn(40, 16, 20, 8, 8)
    frames[:, :, :10] = 0
    corrupted = demo_data.corrupt(frames, codec.light, torch.Generator().manual_seed(0))
    assert corrupted[:, :, :10].abs().max() == 0
    changed = (corrupted[:, :, 10:] != frames[:, :, 10:]).any(4).any(3).any(1).float().mean()
    assert 0.6 < changed < 0.8


def test_batches_hold_every_amount_of_past(videos, codec):
    batch = demo_data.sample_batch(videos, 96, codec.light, torch.Generator().manual_seed(0))
    amounts = (batch.past.frames.abs().amax((1, 3, 4)) > 0).sum(1)
    assert set(amounts.tolist()) == {0, 1, 9, 18, 19}
    assert (batch.past.anchor.abs().amax((1, 2, 3, 4)) > 0).equal(amounts > 0)


def test_a_picture_is_the_first_frame_to_make_which_weighs_more_and_often_has_no_prompt(videos, codec):
    batch = demo_data.sample_batch(videos, 200, codec.light, torch.Generator().manual_seed(0))
    is_picture = (batch.past.frames.abs().amax((1, 3, 4)) > 0).sum(1) == 1
    heavy = batch.weights[:, 0, :, 0, 0] == demo_data.PICTURE_WEIGHT
    assert heavy[:, 0].equal(is_picture)
    assert not heavy[:, 1:].any()
    distance = (batch.past.anchor[is_picture] - batch.target[is_picture][:, :, :1]).square().mean((1, 2, 3, 4))
    assert distance.median() < 0.1 * batch.target[is_picture].square().mean()
    has_no_prompt = (batch.prompts == videos.prompts[-1]).flatten(1).all(1).float()
    assert has_no_prompt[is_picture].mean() > 0.25 > has_no_prompt[~is_picture].mean()


def test_without_a_prompt_a_picture_moves_to_one_side(videos):
    draw = random.Random(0)
    untold = [demo_data.draw_chunk(videos, "picture", False, draw) for _ in range(20)]
    told = [demo_data.draw_chunk(videos, "picture", True, draw) for _ in range(40)]

    def directions(chunks):
        return {demo_data.SCENES[videos.scenes[video, target]].direction for video, target in chunks}

    assert directions(untold) == {world.UNTOLD_DIRECTION}
    assert len(directions(told)) > 2


def test_a_fifth_of_the_past_is_as_noisy_as_the_past_that_a_video_begins_with(codec):
    ones = torch.ones(4000, 1, 1, 8, 8)
    corrupted = demo_data.corrupt(ones, torch.zeros(1), torch.Generator().manual_seed(0))
    mean, spread = corrupted.mean((1, 2, 3, 4)), corrupted.std((1, 2, 3, 4))
    noisy = spread > 1e-4
    usual = noisy & (spread > 0.1) & (spread < 0.145)
    assert 0.2 < usual.float().mean() < 0.4
    torch.testing.assert_close((mean + spread)[noisy].mean(), torch.tensor(1.0), atol=0.02, rtol=0)


def test_exposure_of_latents_is_exposure_of_pixels(codec):
    pixels = torch.rand(1, 3, 33, 64, 64)
    lit = 0.7 * pixels
    difference = codec.encode(lit * 2 - 1) - (0.7 * codec.encode(pixels * 2 - 1) - 0.3 * codec.light)
    assert difference[:, :, 1:].abs().max() < 1e-4


def test_training_learns_and_a_broken_run_resumes_as_if_it_were_not_broken(videos, codec, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BATCH", (4, 2))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29433")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    dist.init_process_group("gloo")
    try:
        whole = training.Trainer("cpu", seed=1)
        batch = demo_data.sample_batch(videos, 8, codec.light, torch.Generator().manual_seed(1))

        def loss() -> torch.Tensor:
            return training.stage_loss(whole.model, batch, 0, torch.Generator().manual_seed(2)).detach()

        loss_before, losses = loss(), []
        for step in range(6):
            if step == 3:
                whole.save(tmp_path)
            losses.append(whole.train_step(videos, codec.light, 0.5))
        resumed = training.Trainer("cpu", seed=1)
        resumed.load(tmp_path)
        assert resumed.step == 3
        again = [resumed.train_step(videos, codec.light, 0.5) for _ in range(3)]
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(torch.stack(again), torch.stack(losses[3:]))
    for name, weight in whole.weights.items():
        torch.testing.assert_close(resumed.weights[name], weight)
    assert loss() < loss_before


def test_the_learning_rate_rises_and_falls_to_zero():
    factors = [training.learning_rate_factor(step, 1000) for step in range(1001)]
    assert factors[0] == pytest.approx(1 / training.WARM_UP)
    assert factors[500] == 0.5
    assert factors[1000] == 0
    top = factors.index(max(factors))
    assert sorted(factors[:top]) == factors[:top]
    assert sorted(factors[top:], reverse=True) == factors[top:]
