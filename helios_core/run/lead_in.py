"""The clip that a video continues, as parts to be put before the new chunks: every frame once, colours kept."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import torch

from ..fingerprint import file_fingerprint, fingerprint
from ..geometry import FRAMES_PER_CHUNK
from ..media.audio import Sound, file_sound
from ..media.frames import resize_frames
from ..media.parts import Encoding, write_part
from ..media.reader import stream_video, video_facts
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def write_lead_in(
    clip: Path, folder: RunFolder, *, width: int, height: int, resize: str = "crop", encoding: Encoding
) -> list[Path]:
    """Encode all of a clip into the run folder, fitted to the size and rate of the new chunks; gives the parts.

    No more than 33 frames are held at a time. Parts that are there from before are not encoded again. Raises as
    `read_video` and `RunFolder.locked` do.
    """
    source = fingerprint(file_fingerprint(clip), width, height, resize, encoding.fingerprint)
    frames = stream_video(clip, frame_rate=encoding.frame_rate)
    parts: list[Path] = []
    with folder.locked():
        while group := list(islice(frames, FRAMES_PER_CHUNK)):
            key = f"lead-{len(parts):05}-{source}"
            path = folder.part_path(key)
            if not folder.has_part(key):
                fitted = resize_frames(torch.stack(group), width, height, resize)
                write_part(path, fitted.float() / 255, encoding)
            parts.append(path)
    return parts


def lead_in_sound(clip: Path) -> Sound | None:
    """The clip's sound, over when its pictures are: the new chunks after it are silent. None when it has none."""
    sound, facts = file_sound(clip), video_facts(clip)
    if sound is not None:
        logger.info("%s keeps its sound; the new chunks after it are silent", clip.name)
    return sound and sound.until(facts.num_frames / facts.frame_rate)
