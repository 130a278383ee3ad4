"""How much a film steps where one chunk ends and the next begins, against the steps from frame to frame inside chunks.

The margins are stated for the demo model, whose joins are measured to step up to 9 of 255 more in the mean pixel and,
in one channel of the mean colour, mostly 3 to 6 more than the largest step inside (4 and 3); the first join of the
scene that is made here from words steps 16 more. That can be seen. A flash to black or white, a repeated frame or a
colour cast of the decoder would lie outside.
"""

import pytest
import torch
from PIL import Image

from helios_core import cli
from helios_core.demo import world
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter

CHUNK, NUM_CHUNKS = 33, 3
PIXEL_MARGIN, COLOUR_MARGIN = 14.0, 20.0  # of 255
SCENE = next(scene for scene in world.all_scenes() if scene.direction != "still")


def bars() -> torch.Tensor:
    columns = torch.arange(world.SIZE) * 8 // world.SIZE
    return torch.stack([columns >> bit & 1 for bit in (2, 1, 0)], dim=-1).float().expand(world.SIZE, -1, -1)


PICTURES = {"grey": torch.full((world.SIZE, world.SIZE, 3), 0.5), "white": torch.ones(world.SIZE, world.SIZE, 3)}
PICTURES["bars"] = bars()


def steps(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """From each frame to the next, of 255: the mean change of a pixel, and the change of the mean colour."""
    frames = frames.float()
    pixels = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    return pixels, (frames[1:].mean((1, 2)) - frames[:-1].mean((1, 2))).abs().amax(-1)


def made(tmp_path, *options: str) -> torch.Tensor:
    out = tmp_path / "film.mp4"
    arguments = ["generate", "--prompt", SCENE.prompt, "--out", str(out), "--chunks", str(NUM_CHUNKS), *options]
    assert cli.main(arguments) == 0
    return read_video(out).frames


def check_joins(frames: torch.Tensor) -> None:
    joins = torch.arange(CHUNK - 1, len(frames) - 1, CHUNK)
    is_inside = torch.ones(len(frames) - 1, dtype=torch.bool)
    is_inside[joins] = False
    for step, margin in zip(steps(frames), (PIXEL_MARGIN, COLOUR_MARGIN), strict=True):
        assert step[joins].max() <= step[is_inside].max() + margin, (step[joins], step[is_inside].max())
    pixels, _ = steps(frames)
    assert pixels[joins].min() > 0.3 * pixels[is_inside].median(), "a frame stands twice at a join"


def test_no_join_of_a_film_from_words_steps_more_than_the_margin(tmp_path):
    check_joins(made(tmp_path))


@pytest.mark.parametrize("picture", PICTURES)
def test_no_join_of_a_film_from_a_flat_picture_or_colour_bars_steps_more_than_the_margin(tmp_path, picture):
    Image.fromarray((PICTURES[picture] * 255).byte().numpy()).save(tmp_path / "a.png")
    check_joins(made(tmp_path, "--image", str(tmp_path / "a.png")))


def test_a_clip_and_the_film_that_continues_from_it_join_within_the_margin(tmp_path):
    start = world.random_start(SCENE, torch.Generator().manual_seed(1))
    with VideoWriter(tmp_path / "clip.mp4", width=world.SIZE, height=world.SIZE) as writer:
        writer.write(world.render(SCENE, start, range(3 * CHUNK)))
    check_joins(made(tmp_path, "--video", str(tmp_path / "clip.mp4"), "--keep-video"))
