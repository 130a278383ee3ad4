"""Finished pieces of a video on disk, each encoded on its own, and joined without encoding anything twice."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av

from ..files import remove_unfinished, written_atomically
from ..media.audio import Sound, SoundTrack
from ..media.formats import VideoFormat
from ..run.run_folder import RunFolder

logger = logging.getLogger(__name__)

# How many frames the encoders, as they are set up here, decode before they show the first.
_REORDER_DEPTH = {"libx264": 2, "libx265": 2}
_NAME = re.compile(r"[\w-]+\.\w+")


class PieceFolder:
    """Pieces in a run folder, under names that say what they were made from; writing happens inside `locked`.

    The journal keeps a digest of each, so that a damaged one is seen, and which pieces make up a finished film.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.path / "pieces"
        self._digests: dict[str, str] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """As `RunFolder.locked`."""
        with self.run.locked():
            self.open()
            yield

    def open(self) -> None:
        """Get ready for writing, in a folder that is locked already."""
        self.path.mkdir(exist_ok=True)
        remove_unfinished(self.path)
        records = [record for record in self.run.journal() if record["record"] == "piece"]
        self._digests = {str(record.get("name")): str(record.get("digest")) for record in records}

    def find(self, name: str) -> Path | None:
        """The piece of that name if it is there with every byte. A damaged one is removed: it is made again."""
        path = self.path / name
        if not path.is_file():
            return None
        if name not in self._digests or _digest(path) != self._digests[name]:
            logger.warning("%s is damaged or was not finished, and is made again", path)
            path.unlink()
            return None
        return path

    def make(self, name: str, write: Callable[[Path], None]) -> Path:
        """Let `write` write a piece, whole or not at all. Raises OSError when the disk is full."""
        path = self.path / name
        with written_atomically(path) as unfinished:
            write(unfinished)
            digest = _digest(unfinished)
        self._digests[name] = digest
        self.run.note("piece", name=name, digest=digest)
        return path

    def note_film(self, pieces: Iterable[Path], path: Path) -> None:
        """Write down that these pieces in order made up a film."""
        self.run.note("film", pieces=[piece.name for piece in pieces], file=path.name)


def remove_old_pieces(run: RunFolder) -> tuple[int, int]:
    """Delete the pieces that the latest film does not have; how many, and their bytes.

    Raises ValueError when no film was finished in that folder, RunFolderBusyError while somebody writes in it.
    """
    folder = PieceFolder(run)
    films = [record for record in run.journal() if record["record"] == "film"]
    if not films:
        raise ValueError(f"no film was finished in {run.path}, so no piece is older than it; remove all with --remove")
    kept, num_removed, num_bytes = {str(name) for name in films[-1].get("pieces", ())}, 0, 0
    with folder.locked():
        for path in folder.path.iterdir():
            if path.is_file() and _NAME.fullmatch(path.name) and path.name not in kept:
                num_removed, num_bytes = num_removed + 1, num_bytes + path.stat().st_size
                path.unlink()
    return num_removed, num_bytes


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def join_pieces(
    pieces: list[Path],
    path: Path,
    *,
    format: VideoFormat,
    frame_rate: Fraction,
    sound: Sound | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """One file of all pieces in order, with `sound` as long as they are, whole or not at all; the number of frames.

    Pictures are copied as they are encoded. Raises ValueError without pieces or when they were not encoded alike,
    OSError when the file cannot be written.
    """
    if not pieces:
        raise ValueError(f"there are no pieces to join into {path.name}")
    # Absolute, or FFmpeg takes what stands before a colon for a protocol.
    path, pieces = Path(os.path.abspath(path)), [Path(os.path.abspath(piece)) for piece in pieces]
    # Without random numbers and dates, so that equal pieces give equal bytes.
    options = {**format.container_options, "fflags": "+bitexact"}
    with (
        written_atomically(path, precious=True) as unfinished,
        av.open(str(unfinished), "w", format=format.container, options=options) as target,
    ):
        target.metadata.update(metadata or {})
        with av.open(str(pieces[0])) as source:
            # Opaque: PyAV would look for an encoder of the name of the decoder, and there is no encoder libdav1d.
            stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
            codec_setup = source.streams.video[0].codec_context.extradata
        stream.time_base = 1 / frame_rate
        track = sound and SoundTrack(target, sound, format.audio_codec)
        num_frames = 0
        for piece in pieces:
            for packet in _packets(piece, codec_setup, pieces[0].name, num_frames, format, frame_rate):
                packet.stream = stream
                target.mux(packet)
                num_frames += 1
                if track is not None:
                    track.advance(num_frames / frame_rate)
        if track is not None:
            track.finish()
    return num_frames


def _packets(
    piece: Path, codec_setup: bytes | None, first: str, num_before: int, format: VideoFormat, frame_rate: Fraction
) -> Iterator[av.Packet]:
    """A piece's packets with the times that they have in the whole, counted in frames."""
    depth = _REORDER_DEPTH.get(format.encoder, 0)
    with av.open(str(piece)) as source:
        picture = source.streams.video[0]
        if picture.codec_context.extradata != codec_setup:
            raise ValueError(f"{piece.name} was encoded with other settings than {first}; take another run_name")
        packets = [packet for packet in source.demux(picture) if packet.size]
        start = min(packet.pts for packet in packets)
        for number, packet in enumerate(packets, start=num_before):
            # Some containers round times to milliseconds.
            packet.pts = num_before + round((packet.pts - start) * picture.time_base * frame_rate)
            packet.dts = number - depth
            packet.duration = 1
            packet.time_base = 1 / frame_rate
            yield packet
