"""A long video as parts: one mp4 for each chunk, joined without encoding anything twice. (A run folder keeps them in
`segments/`, its name since the first version. A segment elsewhere is a prompt's, of a schedule.)

Every chunk has an encoder of its own that starts with a key frame, so the bytes of a part depend on its frames
alone, and the joined file on the parts alone: a run that was broken off and resumed ends in the same file.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import torch

from ..files import patiently, remove_file, written_atomically
from ..fingerprint import fingerprint
from ..geometry import FRAME_RATE
from .audio import Sound, SoundTrack
from .formats import MP4_H264
from .reader import exact_rate
from .writer import VideoWriter

logger = logging.getLogger(__name__)

# Raised by one whenever equal frames would give other bytes than before: parts are then encoded again.
_ENCODER_VERSION = 1

# How many frames x264, as it is set up here, decodes before it shows the first.
_REORDER_DEPTH = 2

_SEAL_BYTES = 16
_SEAL_HEADER = (8 + _SEAL_BYTES).to_bytes(4, "big") + b"free"  # a box of mp4 that players skip


@dataclass(frozen=True)
class Encoding:
    """How frames become bytes: `frame_rate` in frames per second, `crf` as `VideoWriter` says."""

    frame_rate: Fraction = Fraction(FRAME_RATE)
    crf: float = 18

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame_rate", exact_rate(self.frame_rate))

    @property
    def fingerprint(self) -> str:
        """Also of FFmpeg's version: another x264 makes other bytes, and one file is made by one encoder."""
        return fingerprint(
            _ENCODER_VERSION, self, {name: list(version) for name, version in av.library_versions.items()}
        )


def write_part(path: Path, frames: torch.Tensor, encoding: Encoding) -> None:
    """Encode `frames` (T, H, W, 3), floats in [0, 1], as an mp4 of its own, sealed, whole or not at all."""
    height, width = frames.shape[1:3]
    with written_atomically(path) as unfinished:
        with VideoWriter(
            unfinished, width=width, height=height, frame_rate=encoding.frame_rate, crf=encoding.crf
        ) as writer:
            writer.write(frames)
        with unfinished.open("rb+") as stream:
            seal = _digest(stream.read())
            stream.write(_SEAL_HEADER + seal)


def is_whole(path: Path) -> bool:
    """Whether there is a part at `path` with every byte as `write_part` wrote it."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    body, seal = content[: -8 - _SEAL_BYTES], content[-8 - _SEAL_BYTES :]
    return seal == _SEAL_HEADER + _digest(body)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_SEAL_BYTES).digest()


def join_parts(
    parts: Sequence[Path], path: Path, metadata: Mapping[str, str] | None = None, sound: Sound | None = None
) -> None:
    """One mp4 of all parts in order, ready to be streamed, whole or not at all.

    Packets are copied. `metadata` are strings stored in the file under any key, as in `VideoWriter`; `sound` is stored
    beside the pictures, as long as they are. Raises ValueError without parts or when they were not encoded alike,
    OSError when the file cannot be written.
    """
    if not parts:
        raise ValueError(f"there are no parts to join into {path.name}; at least one chunk must be finished")
    options = {"movflags": "faststart+use_metadata_tags"}
    # Absolute, or FFmpeg takes what stands before a colon for a protocol.
    path = Path(os.path.abspath(path))
    with (
        written_atomically(path, precious=True) as unfinished,
        av.open(str(unfinished), "w", format="mp4", options=options) as target,
    ):
        target.metadata.update(metadata or {})
        _copy_packets(parts, target, sound=sound)


def _copy_packets(
    parts: Sequence[Path], target: av.container.OutputContainer, num_before: int = 0, sound: Sound | None = None
) -> int:
    """Append the packets of the parts to `target`, at an even pace after `num_before` frames, and `sound` beside
    them; how many packets there are."""
    stream, codec_setup, track, first = None, None, None, num_before
    for part in parts:
        with av.open(os.path.abspath(part)) as source:
            picture = source.streams.video[0]
            ticks = _frame_ticks(picture)
            if stream is None:
                stream = target.add_stream_from_template(picture)
                stream.time_base = picture.time_base
                codec_setup = picture.codec_context.extradata
                track = None if sound is None else SoundTrack(target, sound, MP4_H264.audio_codec)
                target.start_encoding()
            if picture.codec_context.extradata != codec_setup:
                raise ValueError(f"{part.name} was encoded with other settings than {parts[0].name}")
            packets = [packet for packet in source.demux(picture) if packet.size]
            for number, packet in enumerate(packets, start=num_before):
                packet.pts += num_before * ticks
                # A short part's own decoding times start later than a long one's; an even row suits both.
                packet.dts = (number - _REORDER_DEPTH) * ticks
                packet.stream = stream
                target.mux(packet)
                if track is not None:
                    track.advance((number + 1 - first) / picture.average_rate)
            num_before += len(packets)
    if track is not None:
        track.finish()
    return num_before - first


def _frame_ticks(picture: av.VideoStream) -> int:
    """The time that a frame is shown, in units of the stream's time base."""
    return int(1 / picture.average_rate / picture.time_base)


class GrowingVideo:
    """A video that plays while it is made: a fragmented mp4 to whose end each part is appended.

    The cost of a part does not depend on how many came before. A reader sees whole parts, or the beginning of
    the last one; players stop there. Where a player keeps the file to itself, as in Windows, it stays as it is, with a
    warning: the parts are what counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_frames = 0
        self.is_kept_from_us = not remove_file(path)

    def append(self, part: Path) -> None:
        """Add a part to the end. Raises OSError when it cannot be written; the video then stays as it was."""
        if self.is_kept_from_us:
            return
        head, fragment, num_frames = _as_fragment(part, self.num_frames)
        try:
            opened = patiently(lambda: self.path.open("ab"))
        except PermissionError as fault:
            self.is_kept_from_us = True
            logger.warning("%s grows no further, as another program has it open: %s", self.path, fault)
            return
        with opened as stream:
            size = stream.tell()
            try:
                stream.write(fragment if self.num_frames else head + fragment)
                stream.flush()
            except OSError:
                # A torn fragment in the middle would end the video there for good.
                stream.truncate(size)
                raise
        self.num_frames += num_frames


def _as_fragment(part: Path, num_before: int) -> tuple[bytes, bytes, int]:
    """A part as a fragmented mp4 that begins after `num_before` frames: its head, its fragment, and its number of
    frames."""
    memory = BytesIO()
    flags = "frag_keyframe+empty_moov+default_base_moof+skip_trailer"
    options = {
        "movflags": f"{flags}+frag_discont" if num_before else flags,  # the muxer starts at a time of ours
        "fragment_index": str(1 + num_before),  # any number that rises from fragment to fragment
        "avoid_negative_ts": "disabled",
    }
    with av.open(memory, "w", format="mp4", options=options) as target:
        num_frames = _copy_packets([part], target, num_before)
    content = memory.getvalue()
    split = content.index(b"moof") - 4  # a box begins with its size
    return content[:split], content[split:], num_frames


def video_bytes(width: int, height: int, num_frames: int) -> int:
    """About how many bytes of video to expect: 1.2 bits a pixel, which lively video at crf 18 seldom reaches."""
    return int(width * height * num_frames * 0.15)
