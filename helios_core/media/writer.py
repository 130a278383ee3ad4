"""Frames to a video file, one after another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import torch

from ..faults import add_note
from ..files import remove_unfinished, written_atomically
from ..geometry import FRAME_RATE
from .audio import Sound, SoundTrack
from .formats import BT709, MP4_H264, MP4_HEVC, VideoFormat, colour_matrix, colour_range, to_video_frame
from .reader import exact_rate


class VideoWriter:
    """Writes a video frame by frame, an H.264 mp4 by default; memory use does not depend on the length.

    Use it as a context manager. The file grows under a temporary name beside `path`, `temporary_path`, and takes its
    place, replacing an older file, when the block ends; what a killed process left there of the same file is removed
    first. If the block ends with an exception, the frames written so far are finished into a playable file at `path`
    just the same, and the exception is raised again.

    `width` and `height` in pixels are even numbers where colour has fewer samples; `frame_rate` is in frames
    per second; `crf` is the quality, for x264 from 0 (lossless, which browsers cannot play) to 51 (worst).
    `metadata` are strings stored in the container under any key; ComfyUI reads JSON under "prompt" and
    "workflow". `format` and `pixel_format` are those of `helios_core.formats`, "auto" the format's own.
    `sound` is stored beside the pictures, as long as they are.

    Raises ValueError for a size, rate, crf, pixel format or file name that cannot be written and when the
    block ends without a frame, TypeError for metadata that is not text, FileNotFoundError when the folder is
    missing, and MissingEncoderError when FFmpeg was built without the encoder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        frame_rate: float | Fraction = FRAME_RATE,
        crf: float = 18,
        metadata: Mapping[str, str] | None = None,
        format: VideoFormat = MP4_H264,
        pixel_format: str = "auto",
        sound: Sound | None = None,
    ) -> None:
        self.path = Path(path)
        self.width = width
        self.height = height
        self.frame_rate = exact_rate(frame_rate)
        self.crf = crf
        self.metadata = dict(metadata or {})
        self.format = format
        self.pixel_format = format.choose_pixel_format(pixel_format, width, height)
        self.sound = sound
        self.num_frames = 0
        self._container: Any = None  # the output, while it is open
        self._check()

    def _check(self) -> None:
        self.format.check_crf(self.crf)
        self.format.check_width(self.width)
        for key, value in self.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"metadata {key!r} is {type(value).__name__}; keys and values are text: use json.dumps")
        if self.path.suffix.lower() != self.format.suffix:
            raise ValueError(f"cannot write {self.path.name}: the file name must end in {self.format.suffix}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {self.path}: the folder does not exist; create it first")

    def __enter__(self) -> VideoWriter:
        remove_unfinished(self.path.parent, self.path.stem)
        self._file = ExitStack()
        self.temporary_path = self._file.enter_context(written_atomically(self.path, precious=True))
        try:
            self._open()
        except BaseException:
            with self._file:  # which removes the file
                raise
        return self

    def _open(self) -> None:
        self._container = av.open(
            os.path.abspath(self.temporary_path),  # or FFmpeg takes what stands before a colon for a protocol
            "w",
            format=self.format.container,
            options=dict(self.format.container_options),
        )
        self._container.metadata.update(self.metadata)
        options = {**self.format.encoder_options, "chroma_sample_location": "left"}
        if self.format.max_crf is not None:
            options["crf"] = str(self.crf)
        self._stream = self._container.add_stream(self.format.encoder, rate=self.frame_rate, options=options)
        self._stream.width = self.width
        self._stream.height = self.height
        self._stream.pix_fmt = self.pixel_format
        context = self._stream.codec_context
        context.time_base = 1 / self.frame_rate
        if self.format.codec_tag:
            context.codec_tag = self.format.codec_tag
        context.color_primaries = context.color_trc = BT709
        context.colorspace = colour_matrix(self.pixel_format)
        context.color_range = colour_range(self.pixel_format)
        self._track = None
        if self.sound is not None:
            self._track = SoundTrack(self._container, self.sound, self.format.audio_codec)
        self.num_frames = 0

    def write(self, frames: torch.Tensor) -> None:
        """Append `frames` (T, height, width, 3), floats clamped to [0, 1], on any device.

        Raises ValueError for another shape or for NaN, TypeError for whole numbers, RuntimeError outside the
        `with` block. Frames before a faulty one are kept.
        """
        if self._container is None:
            raise RuntimeError(f"{self.path.name} is not open; use VideoWriter in a with block")
        if not frames.is_floating_point():
            raise TypeError(f"frames are {frames.dtype}; expected floats in [0, 1]: divide 8-bit ones by 255")
        if frames.ndim != 4 or frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (T, {self.height}, {self.width}, 3)")
        for frame in frames:
            if frame.amin().isnan():  # a fifth of the time of looking at each number
                raise ValueError(
                    f"frame {self.num_frames} contains NaN: model or VAE overflowed; run the VAE in float32"
                )
            self._encode(to_video_frame(frame, self.pixel_format))

    def _encode(self, frame: av.VideoFrame) -> None:
        frame.pts = self.num_frames
        frame.time_base = 1 / self.frame_rate
        self._container.mux(self._stream.encode(frame))
        self.num_frames += 1
        if self._track is not None:
            self._track.advance(self.num_frames / self.frame_rate)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exception is None:
            self._finish()
            return
        try:
            self._finish()
        except (OSError, ValueError, av.error.FFmpegError) as fault:
            # The block's own exception says what went wrong first, and Cancel must stay Cancel for the host.
            add_note(exception, f"The video could not be finished either: {fault}")

    def _finish(self) -> None:
        container, self._container = self._container, None
        with self._file:  # puts the file in its place, or removes it when this raises
            try:
                if self.num_frames:
                    packets = self._stream.encode(None)
                    if self.format is MP4_HEVC and self.num_frames <= 2:
                        # x265 leaves decoding times to chance where it never reorders.
                        for packet in packets:
                            packet.dts = packet.pts
                    container.mux(packets)
                    if self._track is not None:
                        self._track.finish()
            finally:
                container.close()
            if not self.num_frames:
                raise ValueError(f"no frames were written to {self.path.name}, so there is no video")
