"""The demo model shows what each part of Helios is for: quick checks of what `tools/measure_demo.py` measures in full.

Bounds are wider than the measured numbers of the model card, as there are few videos here.
"""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helios_core.demo import DEMO_SETTINGS, DemoModel, world
from helios_core.demo.judge import look

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import measure_demo as measure

torch.set_num_threads(2)
HELD_OUT = [scene for scene in world.all_scenes() if world.is_held_out(scene)]
SCENES = HELD_OUT[::3]
UNGUIDED = replace(DEMO_SETTINGS, guidance_scale=1.0)


@pytest.fixture(scope="module")
def bench():
    source = DemoModel()
    return measure.Bench(source.load_transformer(), source.load_codec(), seed=3)


@pytest.fixture(scope="module")
def videos(bench):
    """Two chunks of each scene, none of which was trained on."""
    return bench.make(measure.blank(len(SCENES)), [[scene.prompt] * 2 for scene in SCENES])


@pytest.fixture(scope="module")
def seen(videos):
    return [look(video[33:]) for video in videos]


@pytest.mark.parametrize("word", measure.WORDS)
def test_a_video_shows_what_a_prompt_never_trained_on_says(seen, word):
    assert measure.agreement(SCENES, seen, word) >= 90


def test_without_its_prompt_a_video_shows_something_else(bench):
    made = bench.make(measure.blank(len(SCENES)), [[""]] * len(SCENES), UNGUIDED)
    assert measure.agreement(SCENES, [look(video) for video in made], "colour") <= 60


def test_shapes_continue_across_the_join_of_chunks(videos, seen):
    for video, after in zip(videos, seen, strict=True):
        before = look(video[:33])
        apart = (after.positions[0] - before.positions[-1] + world.SIZE / 2) % world.SIZE - world.SIZE / 2
        assert apart.norm() < 0.15 * world.SIZE


def test_a_picture_lives_on_without_a_prompt_through_the_memory_alone(bench):
    results = {result.name: result.value for result in measure.image_to_video(bench, SCENES)}
    assert results["I2V first frame, dB below the VAE's own"] < 1.2
    assert results["... with the anchor removed"] > 3
    assert results["I2V without prompt keeps colour and shape, %"] >= 90
    assert results["... with the memory zeroed, %"] <= 15


def test_a_clip_continues_along_its_path_through_the_memory(bench):
    kept, lost = measure.video_to_video(bench, SCENES)
    assert kept.value < 10
    assert lost.value > 1.5 * kept.value


def test_a_swapped_pyramid_makes_no_shapes(bench):
    made = [look(video[33:]) for video in measure.shuffled_stages(bench, SCENES)]
    assert measure.agreement(SCENES, made, "shape") <= 60


def test_model_and_vae_are_small_enough_to_ship():
    from helios_core.demo.model import TRANSFORMER_FILE, VAE_FILE

    assert TRANSFORMER_FILE.stat().st_size + VAE_FILE.stat().st_size < 12e6


def test_the_show_writes_a_video_of_eight_chunks_and_a_sheet_of_three_rows(tmp_path):
    from PIL import Image

    from helios_core.demo.show import make_show
    from helios_core.media.reader import read_video

    video, sheet = make_show(tmp_path)
    assert read_video(video).frames.shape == (8 * 33, 256, 256, 3)
    width, height = Image.open(sheet).size
    assert width > 1500
    assert height > 370
