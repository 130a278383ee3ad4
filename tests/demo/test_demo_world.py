"""The demo's toy world, and the judge that reads it back."""

import itertools

import pytest
import torch

from helios_core.demo import world
from helios_core.demo.judge import distance, look, velocity
from helios_core.demo.world import Scene

SCENES = world.all_scenes()


def starts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(scene, world.random_start(scene, generator)) for scene in SCENES]


def test_a_fifth_of_the_scenes_is_held_out_and_every_pair_of_words_is_trained_on():
    trained = [scene for scene in SCENES if not world.is_held_out(scene)]
    assert (len(SCENES), len(trained)) == (180, 144)
    fields = ("colour", "shape", "direction", "background")
    tables = (world.COLOURS, world.SHAPES, world.DIRECTIONS, world.BACKGROUNDS)
    for (one, first), (two, second) in itertools.combinations(zip(fields, tables, strict=True), 2):
        seen = {(getattr(scene, one), getattr(scene, two)) for scene in trained}
        assert seen == set(itertools.product(first, second))


def test_a_video_of_any_length_goes_round_and_round():
    scene = Scene("green", "square", "left", "white")
    period = round(world.SIZE / world.SPEED)
    first, later = (world.render(scene, (10.0, 30.0), range(start, start + 3)) for start in (0, 50 * period))
    torch.testing.assert_close(first, later, atol=1e-3, rtol=0)


def test_frames_in_parts_are_the_frames_of_the_whole():
    scene = Scene("red", "triangle", "down", "grey")
    whole = world.render(scene, (30.0, 5.0), range(40))
    assert torch.equal(whole[25:], world.render(scene, (30.0, 5.0), range(25, 40)))


def test_pictures_are_in_range_and_a_shape_wraps_around_the_sides():
    frame = world.render(Scene("red", "circle", "right", "black"), (0.0, 32.0), range(1))[0]
    assert frame.min() >= 0
    assert frame.max() <= 1
    red = frame[32, :, 0] > 0.5
    assert red[0]
    assert red[-1]
    assert not red[32]


def test_the_judge_is_right_about_every_true_scene_with_noise_on_it():
    noise = torch.Generator().manual_seed(1)
    for scene, start in starts():
        frames = world.render(scene, start, range(0, 33, 4))
        seen = look(frames + 0.03 * torch.randn(frames.shape, generator=noise))
        true = torch.tensor([world.position(scene, start, frame) for frame in range(0, 33, 4)])
        assert seen.scene == scene
        assert seen.is_there
        assert distance(seen.positions, true).max() < 1


def test_the_judge_measures_speed_across_the_side_of_the_picture():
    places = torch.tensor([[(60 + 1.5 * frame) % world.SIZE, 20.0] for frame in range(10)])
    torch.testing.assert_close(velocity(places), torch.tensor([1.5, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [torch.full((5, 64, 64, 3), 0.45), torch.rand(5, 64, 64, 3)])
def test_the_judge_sees_no_shape_where_there_is_none(frames):
    seen = look(frames)
    assert not seen.is_there
    assert seen.scene.shape is None


def test_the_judge_calls_a_shape_that_stands_still_without_direction():
    frame = world.render(Scene("blue", "square", "up", "white"), (30.0, 30.0), range(1))
    assert look(frame.expand(9, -1, -1, -1)).scene.direction is None
