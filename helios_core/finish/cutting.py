"""A video cut into pieces for steps that only take images, and put together again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from ..fingerprint import fingerprint
from ..media.audio import Sound
from ..media.formats import VideoFormat
from ..media.writer import VideoWriter
from .pieces import PieceFolder
from .source import Source


@dataclass(frozen=True)
class Cut:
    """One piece of a video: frames `start` to `stop` are its own, `before` and `after` of its neighbours' come with
    them. It is piece `number` of `num_pieces`, of which the first begins at frame `first`; `plan` is the same for all
    pieces of a cut video and for no other."""

    number: int
    num_pieces: int
    first: int
    start: int
    stop: int
    before: int
    after: int
    frame_rate: Fraction
    plan: str

    @property
    def num_frames(self) -> int:
        """With the neighbours' frames."""
        return self.before + self.stop - self.start + self.after


def cut_video(source: Source, identity: str, number: int, length: int, overlap: int, start: int = 0) -> Cut:
    """Piece `number`, from 0, of a video cut every `length` frames from frame `start` on. `overlap` frames of each
    neighbour come with it; `identity` distinguishes this video from others.

    Raises ValueError for values out of range and for a piece that the video does not have.
    """
    if length < 1 or overlap < 0 or start < 0:
        raise ValueError(
            f"length {length}, overlap {overlap} and start {start} are frames: length is at least 1, the others 0"
        )
    num_frames = source.num_frames - start
    if num_frames < 1:
        raise ValueError(f"{source.name} has {source.num_frames} frames, so nothing is left from frame {start} on")
    num_pieces = math.ceil(num_frames / length)
    if not 0 <= number < num_pieces:
        raise ValueError(
            f"there is no piece {number}: {num_frames} frames in pieces of {length} are pieces 0 to {num_pieces - 1}"
        )
    begin, end = start + number * length, min(source.num_frames, start + (number + 1) * length)
    return Cut(
        number=number,
        num_pieces=num_pieces,
        first=start,
        start=begin,
        stop=end,
        before=min(overlap, begin),
        after=min(overlap, source.num_frames - end),
        frame_rate=source.frame_rate,
        plan=fingerprint(identity, source.num_frames, source.frame_rate, length, overlap, start),
    )


def piece_frames(source: Source, cut: Cut) -> torch.Tensor:
    """The frames (T, H, W, 3) of a piece and of its neighbours, floats in [0, 1]."""
    frames = list(islice(source.open(cut.start - cut.before), cut.num_frames))
    if len(frames) < cut.num_frames:
        raise ValueError(
            f"{source.name} says that it has {source.num_frames} frames, and ends after "
            f"{cut.start - cut.before + len(frames)}; convert it to mp4 first"
        )
    whole = torch.stack(frames)
    return whole if whole.is_floating_point() else whole.float() / 255


def piece_sound(sound: Sound, cut: Cut) -> torch.Tensor:
    """The waveform (channels, samples) under `piece_frames`, silent where the sound is over."""
    start = Fraction(cut.start - cut.before) / cut.frame_rate + Fraction(sound.start)
    first = round(start * sound.sample_rate)
    num_samples = round(cut.num_frames / cut.frame_rate * sound.sample_rate)
    waveform = np.zeros((sound.num_channels, num_samples), np.float32)
    for position, part in _placed(sound.open(), -first):
        begin, end = max(0, position), min(num_samples, position + part.shape[1])
        if begin < end:
            waveform[:, begin:end] = part[:, begin - position : end - position]
        if position >= num_samples:
            break
    return torch.from_numpy(waveform)


def _placed(parts: Iterator[np.ndarray], position: int) -> Iterator[tuple[int, np.ndarray]]:
    for part in parts:
        yield position, part
        position += part.shape[1]


@dataclass(frozen=True)
class Joining:
    """Pieces of a cut video that come back one by one, of one size and in one format."""

    cut: Cut
    width: int
    height: int
    format: VideoFormat
    pixel_format: str
    crf: float

    def name(self, number: int) -> str:
        """The file of that piece."""
        setup = self.width, self.height, self.format.name, self.pixel_format, self.crf
        return f"{number:07}-{fingerprint('joined', self.cut.plan, *setup)}{self.format.suffix}"

    def save(self, images: torch.Tensor, folder: PieceFolder) -> Path:
        """Write the piece's own frames out of `images` (T, H, W, 3), the neighbours' with them; one that is there
        already is replaced. The folder is locked.

        Raises ValueError when there are not as many images as the piece had.
        """
        cut = self.cut
        if len(images) != cut.num_frames:
            raise ValueError(
                f"{len(images)} images came back for piece {cut.number}, which had {cut.num_frames} with its overlap; "
                "the steps between must keep the number of frames. Use Helios Finish Video to change the frame rate"
            )
        own = images[cut.before : cut.num_frames - cut.after, ..., :3]

        def write(path: Path) -> None:
            with VideoWriter(
                path,
                width=self.width,
                height=self.height,
                frame_rate=cut.frame_rate,
                crf=self.crf,
                format=self.format,
                pixel_format=self.pixel_format,
            ) as writer:
                writer.write(own)

        return folder.make(self.name(cut.number), write)

    def missing(self, folder: PieceFolder) -> list[int]:
        """The numbers of the pieces that have not come back yet."""
        return [number for number in range(self.cut.num_pieces) if folder.find(self.name(number)) is None]
