"""How much disk a long video takes, known before it is made."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..geometry import FRAMES_PER_CHUNK, LATENT_FRAMES_PER_CHUNK
from ..media.parts import video_bytes
from ..memory.memory import HeliosMemory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiskUse:
    """Bytes: `run_folder` grows by the first number, and the finished file takes the second."""

    run_folder: int
    video: int


def estimate_disk_use(memory: HeliosMemory, num_chunks: int, *, num_missing: int | None = None) -> DiskUse:
    """What a video of `num_chunks` chunks after `memory` takes on disk, `num_missing` of them not yet there.

    Latents and memory are counted exactly; the size of video depends on the picture and is a generous guess.
    """
    num_missing = num_chunks if num_missing is None else num_missing
    batch_size, channels, num_frames, height, width = memory.frames.shape
    # Latents, memory and anchor, 4 bytes each.
    chunk = 4 * batch_size * channels * height * width * (LATENT_FRAMES_PER_CHUNK + num_frames + 1)
    chunk_video = video_bytes(memory.width, memory.height, FRAMES_PER_CHUNK)
    return DiskUse(num_missing * (chunk + chunk_video) + num_chunks * chunk_video, num_chunks * chunk_video)


def check_disk(run_folder: Path, video_folder: Path, use: DiskUse) -> None:
    """Raise OSError, with the numbers, when what is still to be written does not fit into the two folders."""
    logger.info("%s will take about %.1f MB more on disk", run_folder, (use.run_folder + use.video) / 1e6)
    needs = [(run_folder, use.run_folder), (video_folder, use.video)]
    if os.stat(run_folder).st_dev == os.stat(video_folder).st_dev:
        needs = [(run_folder, use.run_folder + use.video)]
    for place, needed in needs:
        free = shutil.disk_usage(place).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"the video needs about {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; free some space, "
                "remove old runs (python -m helios_core runs), or make fewer chunks",
                str(place),
            )
