"""The demo's demo: text-, image- and video-to-video with the embedded model, as one video and one contact sheet."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..generate import Job, generate
from ..geometry import FRAMES_PER_CHUNK
from ..media.frames import contact_sheet, resize_frames
from ..media.reader import read_video
from ..media.writer import VideoWriter
from ..run.run_folder import RunFolder
from ..sampling.noise import SeededNoise
from .model import DemoModel
from .world import SIZE, Scene, render

logger = logging.getLogger(__name__)

ENLARGED = 4  # the video is shown that many times its size, as 64x64 pixels are hard to watch
_TILES = 12  # of a row of the contact sheet

BEFORE = Scene("red", "circle", "right", "black")
AFTER = Scene("yellow", "square", "left", "grey")
DRAWN = Scene("blue", "triangle", "up", "white")


def make_show(folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Make three short videos with the demo model, one after the other, in `folder`: the paths of `demo.mp4`, which
    shows all of them enlarged, and of the contact sheet `demo.png`, which has a row for each.

    Text-to-video with a change of the prompt, image-to-video from a drawn picture, and video-to-video that continues
    from there. The three videos and their finished chunks stay in `folder` too; made again, they are only read.
    """
    source = DemoModel()
    picture = (render(DRAWN, (SIZE / 2, 44.0), range(1))[0] * 255).round().to(torch.uint8)
    jobs = {
        "text-to-video": Job(BEFORE.prompt, 4, later_prompts={2: AFTER.prompt}, width=SIZE, height=SIZE),
        "image-to-video": Job(DRAWN.prompt, 2, image=picture, width=SIZE, height=SIZE),
    }
    videos = []
    for name, job in jobs.items():
        videos.append(_make(source, name, job, folder, seed))
    goes_on = Job(DRAWN.prompt, 2, video=read_video(videos[-1]), width=SIZE, height=SIZE)
    videos.append(_make(source, "video-to-video", goes_on, folder, seed))

    frames = [read_video(video).frames for video in videos]
    tiles = torch.cat([clip[torch.linspace(0, len(clip) - 1, _TILES).long()] for clip in frames])
    sheet = folder / "demo.png"
    contact_sheet(tiles, columns=_TILES, rows=len(frames), tile_width=2 * SIZE).save(sheet)
    joined = folder / "demo.mp4"
    with VideoWriter(joined, width=ENLARGED * SIZE, height=ENLARGED * SIZE) as writer:
        for clip in frames:
            for part in clip.split(FRAMES_PER_CHUNK):
                writer.write(resize_frames(part, ENLARGED * SIZE, ENLARGED * SIZE).float() / 255)
    return joined, sheet


def _make(source: DemoModel, name: str, job: Job, folder: Path, seed: int) -> Path:
    prompts = " -> ".join([job.prompt, *job.later_prompts.values()])
    logger.info("%s, %d chunks of %d frames: %s", name, job.num_chunks, FRAMES_PER_CHUNK, prompts)
    path = folder / f"{name}.mp4"
    generate(source, job, source.settings, SeededNoise(seed), folder=RunFolder(folder / f"{name}.run"), path=path)
    return path
