"""A video finished piece by piece: what is on disk is found, what is missing is made, and all of it is joined."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path

import av
import torch

from ..fingerprint import fingerprint
from ..geometry import FRAMES_PER_CHUNK
from ..media.audio import Sound
from ..media.writer import VideoWriter
from .pieces import PieceFolder, join_pieces
from .recipe import Kitchen, Recipe
from .source import Source

logger = logging.getLogger(__name__)

# Source frames of a piece: a chunk of Helios, so that a video can be finished while it is made.
PIECE_FRAMES = FRAMES_PER_CHUNK

# Bytes for a pixel, generous: lively video at crf 18, and the most that masters of 8 bits take.
_BYTES_PER_PIXEL = {"prores_ks": 0.7, "ffv1": 2.0}
_USUAL_BYTES_PER_PIXEL = 0.15


@dataclass(frozen=True)
class Piece:
    """Source frames `start` to `stop`, from which the frames `outputs` of the result are made; `name` is its file's.

    A last piece without source frames holds the last frame until the video is over.
    """

    start: int
    stop: int
    outputs: range
    name: str


@dataclass(frozen=True)
class Film:
    """The finished file. `num_made` frames were made now, the others were on disk from before."""

    path: Path
    width: int
    height: int
    frame_rate: Fraction
    num_frames: int
    num_made: int


class Finisher:
    """Finishes the pieces of one video by a recipe, in a folder.

    `say` is called with every sentence that the user should read, `progress` with (frames done, all frames) of the
    result, before each frame; what it raises ends the work, and keeps finished pieces.
    """

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        *,
        say: Callable[[str], None] = logger.info,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.source, self.recipe, self.say, self.progress = source, recipe, say, progress
        self.kitchen: Kitchen | None = None

    def size(self) -> tuple[int, int]:
        """(width, height) of the result, found by reading the first frame. Raises as `plan`."""
        if self.kitchen is None:
            frame = next(self.source.open(0), None)
            if frame is None:
                raise ValueError(f"{self.source.name} has no frames; there is nothing to finish")
            self._prepare(frame)
        return self.kitchen.size

    def plan(self) -> list[Piece]:
        """The pieces in order, found by reading every frame once.

        Raises ValueError for a video without frames, of a size that cannot be written, or damaged in the middle.
        """
        self.size()
        pieces, digests = [], []
        context: deque[str] = deque(maxlen=self.recipe.num_context)
        start = 0
        for frame in self.source.open(0):
            digests.append(fingerprint(frame))
            if len(digests) == PIECE_FRAMES:
                pieces.append(self._piece(start, digests, context))
                start, digests = start + PIECE_FRAMES, []
                self.progress(0, start)  # the user may cancel
        if digests:
            pieces.append(self._piece(start, digests, context))
        num_frames = pieces[-1].stop
        tail = range(self.kitchen.pace.upto(num_frames - 1), self.kitchen.pace.total(num_frames))
        pieces.append(self._piece(num_frames, [], context, tail))
        return [piece for piece in pieces if piece.outputs]

    def _prepare(self, frame: torch.Tensor) -> None:
        if frame.ndim != 3 or frame.shape[-1] != 3:
            raise ValueError(f"{self.source.name} has frames of shape {tuple(frame.shape)}; expected (H, W, 3)")
        size = frame.shape[1], frame.shape[0]
        pace = self.recipe.pace(self.source.frame_rate)
        self.kitchen = Kitchen(self.recipe, pace, size, self.recipe.target_size(size))

    def _piece(self, start: int, digests: list[str], context: deque[str], outputs: range | None = None) -> Piece:
        stop = start + len(digests)
        if outputs is None:
            outputs = range(self.kitchen.pace.upto(start - 1), self.kitchen.pace.upto(stop - 1))
        # The size is in the frames' digests, the rate of the source is not.
        made_from = self.recipe.fingerprint, self.source.frame_rate, list(context), digests
        key = fingerprint(*made_from, start, outputs.start, outputs.stop)
        context.extend(digests)
        return Piece(start, stop, outputs, f"{start:07}-{key}{self.recipe.format.suffix}")

    def make(self, pieces: list[Piece], missing: list[Piece], folder: PieceFolder) -> None:
        """Make those of the pieces that are `missing`, in a folder that is locked."""
        total = pieces[-1].outputs.stop
        done = total - sum(len(piece.outputs) for piece in missing)
        names = {piece.name for piece in missing}
        start = max(0, min((piece.start for piece in missing), default=0) - PIECE_FRAMES)
        frames = self.source.open(start)
        context: deque[torch.Tensor] = deque(maxlen=self.recipe.num_context)
        for piece in pieces:
            if not names:
                break
            if piece.stop <= start:
                continue
            before = list(context)
            window = _remembering(islice(frames, piece.stop - piece.start), context)
            if piece.name not in names:
                deque(window, maxlen=0)
                continue
            made = self.kitchen.frames(
                chain(before, window), piece.start - len(before), piece.outputs, on_cut=self._on_cut(piece.start)
            )
            folder.make(piece.name, partial(self._encode, frames=made, done=done, total=total))
            names.remove(piece.name)
            done += len(piece.outputs)

    def say_plan(self, pieces: list[Piece], missing: list[Piece]) -> None:
        """Say what will be done, and what of it is there already."""
        (width, height), (new_width, new_height) = self.kitchen.source, self.kitchen.size
        pace, total = self.kitchen.pace, pieces[-1].outputs.stop
        num_missing = sum(len(piece.outputs) for piece in missing)
        for remark in self.source.remarks:
            self.say(remark)
        self.say(
            f"{width}x{height} at {float(pace.source_rate):g} become {new_width}x{new_height} at {float(pace.rate):g} "
            f"frames per second: {total} frames in {len(pieces)} pieces; to be made now: {num_missing} frames in "
            f"{len(missing)} pieces"
        )
        if self.recipe.interpolator and self.recipe.upscaler:
            self.say("frames between are made at the small size, then every frame is upscaled")
        if self.kitchen.placement.words:
            self.say(self.kitchen.placement.words)

    def _on_cut(self, start: int) -> Callable[[int], None]:
        def on_cut(frame: int) -> None:
            if frame >= start:  # the context was looked at in the piece before
                self.say(f"scene cut at source frame {frame}: nothing is made between it and the frame before")

        return on_cut

    def _encode(self, path: Path, frames: Iterable[torch.Tensor], done: int, total: int) -> None:
        """Write frames to a file; one is encoded while the next is made."""
        recipe, (width, height) = self.recipe, self.kitchen.size
        with (
            VideoWriter(
                path,
                width=width,
                height=height,
                frame_rate=self.kitchen.pace.rate,
                crf=recipe.crf,
                format=recipe.format,
                pixel_format=recipe.pixel_format,
            ) as writer,
            ThreadPoolExecutor(1) as encoder,
        ):
            encoding: Future | None = None
            for number, frame in enumerate(frames, start=done):
                self.progress(number, total)
                if encoding is not None:
                    encoding.result()
                encoding = encoder.submit(writer.write, frame[None])
            if encoding is not None:
                encoding.result()


def _remembering(frames: Iterable[torch.Tensor], context: deque[torch.Tensor]) -> Iterator[torch.Tensor]:
    for frame in frames:
        context.append(frame)
        yield frame


def finish_video(
    finisher: Finisher,
    folder: PieceFolder,
    path: Path,
    *,
    sound: Sound | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Film:
    """Finish all of a video into the file at `path`; what an earlier call left in the folder is used.

    `sound` takes the place of the source's own. Raises ValueError before anything is made for what cannot be done,
    OSError when the disk is too small for it, RunFolderBusyError when somebody else writes in the folder. Whatever
    ends the work keeps the finished pieces.
    """
    pieces = finisher.plan()
    kitchen, recipe = finisher.kitchen, finisher.recipe
    with folder.locked():
        missing = [piece for piece in pieces if folder.find(piece.name) is None]
        num_made = sum(len(piece.outputs) for piece in missing)
        finisher.say_plan(pieces, missing)
        finisher.say(check_disk(folder.path, path.parent, kitchen, num_made, pieces[-1].outputs.stop))
        finisher.make(pieces, missing, folder)
        parts = [folder.path / piece.name for piece in pieces]
        num_frames = join_pieces(
            parts,
            path,
            format=recipe.format,
            frame_rate=kitchen.pace.rate,
            sound=sound or finisher.source.sound,
            metadata=metadata,
        )
        folder.note_film(parts, path)
    finisher.progress(num_frames, num_frames)
    return Film(path, *kitchen.size, kitchen.pace.rate, num_frames, num_made)


def check_disk(pieces: Path, target: Path, kitchen: Kitchen, num_missing: int, num_frames: int) -> str:
    """How much disk is needed, in words. Raises OSError, with the numbers, when that is not free."""
    frame = kitchen.size[0] * kitchen.size[1] * _bytes_per_pixel(kitchen.recipe)
    needs = {pieces: num_missing * frame, target: num_frames * frame}
    words = " and ".join(
        f"{needed / 1e6:.1f} MB for {what}" for what, needed in zip(("pieces", "the film"), needs.values(), strict=True)
    )
    if os.stat(pieces).st_dev == os.stat(target).st_dev:
        needs = {target: sum(needs.values())}
    for place, needed in needs.items():
        free = shutil.disk_usage(place).free
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"finishing needs about {words} of disk, and {free / 1e6:.1f} MB are free; free some space, remove old "
                "runs (python -m helios_core runs), or make the video smaller",
                str(place),
            )
    return f"about {words} of disk are needed"


def _bytes_per_pixel(recipe: Recipe) -> float:
    usual = _BYTES_PER_PIXEL.get(recipe.format.encoder, _USUAL_BYTES_PER_PIXEL)
    name = recipe.pixel_format if recipe.pixel_format != "auto" else recipe.format.pixel_formats[0]
    return usual * max(part.bits for part in av.VideoFormat(name, 2, 2).components) / 8
