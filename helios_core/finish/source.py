"""What is finished: a video's frames, which can be read any number of times, its rate and its sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import torch

from ..media.audio import MediaFile, Sound, file_name, file_sound
from ..media.reader import exact_rate, stream_video, video_facts

# Transfer functions of HDR, numbers of ISO/IEC 23091-2.
_HDR = {16: "PQ", 18: "HLG"}


@dataclass(frozen=True)
class Source:
    """A video as `open(first)` gives it from that frame on: frames (H, W, 3) one after another, uint8 or floats in
    [0, 1], all of one size.

    `num_frames` is what the file says; `remarks` are sentences about what was changed in reading it.
    """

    name: str
    frame_rate: Fraction
    open: Callable[[int], Iterator[torch.Tensor]]
    num_frames: int
    sound: Sound | None = None
    remarks: tuple[str, ...] = ()


def file_source(file: MediaFile, *, start: float = 0.0, duration: float = 0.0) -> Source:
    """A video file, or `duration` seconds of it (0: all) from second `start` on.

    Raises FileNotFoundError when there is no such file, and ValueError when it is not a video or is HDR.
    """
    name, facts = file_name(file), video_facts(file)
    if facts.transfer in _HDR:
        raise ValueError(
            f"{name} is HDR ({_HDR[facts.transfer]}); finishing works in the range of ordinary screens (BT.709), where "
            "its colours would come out wrong. Convert it first, for example with FFmpeg's zscale and tonemap filters"
        )
    remarks = []
    if facts.has_alpha:
        remarks.append(f"{name} has transparency, which is left out: the pictures are taken as they are stored")
    if not facts.constant:
        remarks.append(
            f"{name} has a variable frame rate; its frames are evened out to {float(facts.frame_rate):.3f} per second"
        )
    rate = exact_rate(facts.frame_rate)
    # A hundredth of a frame is what timestamps are rounded by.
    begin = max(0, math.ceil(Fraction(start) * rate - Fraction(1, 100)))
    stop = facts.num_frames
    if duration:
        stop = min(stop, math.ceil(Fraction(start + duration) * rate - Fraction(1, 100)))

    def frames_from(first: int) -> Iterator[torch.Tensor]:
        # At a constant rate every stored frame is taken once, whatever the rounding of the rate.
        frames = stream_video(file, frame_rate=None if facts.constant else rate, first=begin + first)
        return islice(frames, max(0, stop - begin - first)) if duration else frames

    sound = file_sound(file)
    return Source(name, rate, frames_from, max(0, stop - begin), sound and sound.starting_at(start), tuple(remarks))


def frames_source(frames: torch.Tensor, frame_rate: float | Fraction, sound: Sound | None = None) -> Source:
    """Frames (T, H, W, 3 or more) in memory, floats in [0, 1]; channels after the third are left out."""
    remarks = ("the frames have transparency, which is left out",) if frames.shape[-1] > 3 else ()
    return Source(
        "the video", exact_rate(frame_rate), lambda first: iter(frames[first:, ..., :3]), len(frames), sound, remarks
    )
