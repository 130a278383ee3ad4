"""Pictures and video files: a writer that takes frames as they come, readers, sizes, and pixel ranges.

Frames come in two forms here: `(T, H, W, 3)` uint8 or [0, 1] floats, as files and ComfyUI's IMAGE have them,
and `(1, 3, T, H, W)` in [-1, 1], "pixels", as a codec takes them. Colour is BT.709 with limited range, said
in the file and used in the arithmetic: FFmpeg's converter would take BT.601 when nothing is said.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Literal

import av
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from .audio import MediaFile, Sound, SoundTrack, file_name, open_media
from .config import FRAME_RATE
from .formats import (
    BT709,
    FULL_RANGE,
    MP4_H264,
    VideoFormat,
    colour_matrix,
    colour_range,
    eight_bits,
    to_video_frame,
)
from .timing import at_rate, average_rate, is_constant

logger = logging.getLogger(__name__)

# swscale's BILINEAR | FULL_CHR_H_INT | ACCURATE_RND: without the last two a flat colour is off by 3 of 255.
_EXACT_CONVERSION = 0x2 | 0x2000 | 0x40000


class VideoWriter:
    """Writes a video frame by frame, an H.264 mp4 by default; memory use does not depend on the length.

    Use it as a context manager. The file grows under a temporary name beside `path` and takes its place,
    replacing an older file, when the block ends. If the block ends with an exception, the frames written so
    far are finished into a playable file at `path` just the same, and the exception goes on.

    `width` and `height` in pixels are even numbers where colour has fewer samples; `frame_rate` is in frames
    per second; `crf` is the quality, for x264 from 0 (lossless, which browsers cannot play) to 51 (worst).
    `metadata` are strings stored in the container under any key; ComfyUI reads JSON under "prompt" and
    "workflow". `format` and `pixel_format` are those of `helios_core.formats`, "auto" the format's own.
    `sound` is stored beside the pictures, as long as they are.

    Raises ValueError for a size, rate, crf, pixel format or file name that cannot be written and when the
    block ends without a frame, TypeError for metadata that is not text, FileNotFoundError when the folder is
    missing, and RuntimeError when FFmpeg was built without the encoder.
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
        self._container: av.container.OutputContainer | None = None
        self._check()

    def _check(self) -> None:
        self.format.check_crf(self.crf)
        for key, value in self.metadata.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TypeError(f"metadata {key!r} is {type(value).__name__}; keys and values are text: use json.dumps")
        if self.path.suffix.lower() != self.format.suffix:
            raise ValueError(f"cannot write {self.path.name}: the file name must end in {self.format.suffix}")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"cannot write {self.path}: the folder does not exist; create it first")

    @property
    def temporary_path(self) -> Path:
        """Where the file grows until it is finished."""
        return self.path.with_name(f"{self.path.stem}.partial{self.format.suffix}")

    def __enter__(self) -> VideoWriter:
        self._container = av.open(
            str(self.temporary_path), "w", format=self.format.container, options=dict(self.format.container_options)
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
        context.color_primaries = context.color_trc = BT709
        context.colorspace = colour_matrix(self.pixel_format)
        context.color_range = colour_range(self.pixel_format)
        self._track = self.sound and SoundTrack(self._container, self.sound, self.format.audio_codec)
        self.num_frames = 0
        return self

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
            if frame.isnan().any():
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
            exception.add_note(f"The video could not be finished either: {fault}")

    def _finish(self) -> None:
        container, self._container = self._container, None
        try:
            if self.num_frames:
                container.mux(self._stream.encode(None))
                if self._track is not None:
                    self._track.finish()
        finally:
            container.close()
            if not self.num_frames:
                self.temporary_path.unlink(missing_ok=True)
        if not self.num_frames:
            raise ValueError(f"no frames were written to {self.path.name}, so there is no video")
        os.replace(self.temporary_path, self.path)


def exact_rate(frame_rate: float | Fraction) -> Fraction:
    """The rate as the fraction that is meant. Raises ValueError unless it is above 0 and at most 1000 per second."""
    if not (math.isfinite(frame_rate) and 0 < frame_rate <= 1000):
        raise ValueError(f"frame_rate {frame_rate} is out of range; allowed: above 0 up to 1000 per second")
    # 1001 is the denominator of the television rates: 23.976... becomes 24000/1001.
    rate = Fraction(frame_rate).limit_denominator(1001)
    if rate == 0:
        raise ValueError(f"frame_rate {frame_rate} is too low; allowed: at least 1/1001 frames per second")
    return rate


@dataclass(frozen=True)
class Clip:
    """A video read from a file.

    `frames` (T, H, W, 3) uint8 are all frames or, when fewer were asked for, the last ones; `first_frame`
    (H, W, 3) uint8 is the first of the whole file, which had `num_frames` frames at `frame_rate` per second.
    """

    first_frame: torch.Tensor
    frames: torch.Tensor
    num_frames: int
    frame_rate: Fraction


def read_video(file: MediaFile, *, last_frames: int | None = None, frame_rate: float | Fraction | None = None) -> Clip:
    """Read a video as it is meant to be seen: turned as its rotation says, colours by its own tags.

    `file` is a path or a binary stream. With `last_frames` only that many frames, and the first, are ever held in
    memory; a shorter video gives all it has. Frames come as they are stored; with another `frame_rate`, and in a
    video of variable rate at its average one, they are repeated or left out so that each is the nearest in time.

    Raises FileNotFoundError when there is no such file and ValueError when it is not a video, has no frames, is
    damaged, or changes its size midway.
    """
    if last_frames is not None and last_frames < 1:
        raise ValueError(f"last_frames is {last_frames}; allowed: at least 1, or None for the whole video")
    first, num_frames = None, 0
    # Decoded frames wait in the file's own layout, half the bytes of RGB, and only those kept are converted.
    kept: deque[av.VideoFrame] = deque(maxlen=last_frames)
    rate, frames = _open_frames(file, frame_rate)
    for frame in frames:
        first = first or frame
        kept.append(frame)
        num_frames += 1
    return Clip(first_frame=_upright_rgb(first), frames=_convert_all(kept), num_frames=num_frames, frame_rate=rate)


def stream_video(file: MediaFile, *, frame_rate: float | Fraction | None = None) -> Iterator[torch.Tensor]:
    """The frames (H, W, 3) uint8 that `read_video` would give, one after another, so that length costs no memory.

    Raises as `read_video` does, at the latest when the faulty frame is reached.
    """
    _, frames = _open_frames(file, frame_rate)
    for frame in frames:
        yield _upright_rgb(frame)


def _open_frames(file: MediaFile, frame_rate: float | Fraction | None) -> tuple[Fraction, Iterator[av.VideoFrame]]:
    """The rate at which frames are shown, and the frames, at least one, decoded as they are asked for."""
    name = file_name(file)
    try:
        with open_media(file) as container:
            timing = _read_timing(container, name)
    except av.error.FFmpegError as fault:
        raise _unreadable(name, 0, fault) from fault
    rate = timing.rate if frame_rate is None else exact_rate(frame_rate)

    def frames() -> Iterator[av.VideoFrame]:
        num_frames = 0
        try:
            with open_media(file) as container:
                decoded = _decode(container, name)
                if not timing.constant or rate != timing.rate:
                    decoded = at_rate(timing.of(decoded), rate, timing.end)
                for frame in decoded:
                    yield frame
                    num_frames += 1
        except av.error.FFmpegError as fault:
            raise _unreadable(name, num_frames, fault) from fault
        if not num_frames:
            raise ValueError(f"{name} has no frames")

    return rate, frames()


def _unreadable(name: str, num_frames: int, fault: av.error.FFmpegError) -> ValueError:
    what = f"is damaged after frame {num_frames - 1}" if num_frames else "cannot be read as a video"
    return ValueError(f"{name} {what} ({fault.strerror}); try converting it to mp4 first")


@dataclass(frozen=True)
class _Timing:
    """When a file's frames are shown, `rate` per second, in constant steps or on average; `end` in seconds.

    Without `timestamps` in the file each frame is as long as the other.
    """

    rate: Fraction
    constant: bool
    timestamps: bool
    end: Fraction

    def of(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        for number, frame in enumerate(frames):
            yield (frame.pts * frame.time_base if self.timestamps else number / self.rate), frame


def _read_timing(container: av.container.InputContainer, name: str) -> _Timing:
    """Read the timestamps alone: nothing is decoded."""
    if not container.streams.video:
        raise ValueError(f"{name} is not a video: it has no picture stream")
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.base_rate
    if not rate:
        logger.warning("%s does not tell its frame rate; taking %d", name, FRAME_RATE)
    rate = Fraction(rate or FRAME_RATE)
    ticks = [packet.pts for packet in container.demux(stream) if packet.size]
    if None in ticks or len(set(ticks)) < max(2, len(ticks)):
        return _Timing(rate, constant=True, timestamps=False, end=len(ticks) / rate)
    times = [tick * stream.time_base for tick in sorted(ticks)]
    if is_constant(times):
        return _Timing(rate, constant=True, timestamps=True, end=times[-1] + 1 / rate)
    rate = average_rate(times)
    logger.info("%s has a variable frame rate; its frames are evened out to %.3f per second", name, rate)
    return _Timing(rate, constant=False, timestamps=True, end=times[-1] + 1 / rate)


def _decode(container: av.container.InputContainer, name: str) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    # Where a file does not say it, colour samples are on the left pixels, as in H.264; FFmpeg would take the middle.
    stream.codec_context.options = {"chroma_sample_location": "left"}
    first = None
    for number, frame in enumerate(container.decode(stream)):
        first = first or frame
        if (frame.width, frame.height) != (first.width, first.height):
            raise ValueError(
                f"{name} changes its size from {first.width}x{first.height} to {frame.width}x{frame.height} at "
                f"frame {number}; convert it to one size first"
            )
        yield frame


def _convert_all(waiting: deque[av.VideoFrame]) -> torch.Tensor:
    """Frames to (T, H, W, 3) uint8, letting go of each source frame once it is converted."""
    head = _upright_rgb(waiting[0])
    frames = torch.empty(len(waiting), *head.shape, dtype=torch.uint8)
    for index in range(len(waiting)):
        frames[index] = _upright_rgb(waiting.popleft())
    return frames


def _upright_rgb(frame: av.VideoFrame) -> torch.Tensor:
    # All four are named because PyAV 14 reads BT.709 as BT.601 when source and target say the same.
    rgb = frame.to_ndarray(
        format="rgb24",
        src_colorspace=frame.colorspace,
        src_color_range=frame.color_range,
        dst_colorspace=BT709,
        dst_color_range=FULL_RANGE,
        interpolation=_EXACT_CONVERSION,
    )
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        # x' = a x + c y, y' = b x + d y: phones turn by right angles or mirror, so axes swap and flip.
        a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
        if abs(b) > abs(a):
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        rgb = rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return torch.from_numpy(np.ascontiguousarray(rgb))


def read_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Read a picture as (H, W, 3) uint8, turned as its EXIF orientation says; transparency is dropped.

    Raises FileNotFoundError when there is no such file and ValueError when it is not a readable picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                # 16-bit grey: Pillow's own conversion to RGB would clip at 255 instead of scaling.
                grey = np.asarray(image).astype(np.float64) / 257
                image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
            rgb = np.array(image.convert("RGB"))
    except UnidentifiedImageError as fault:
        raise ValueError(f"{path.name} is not a picture Pillow can read; use PNG, JPEG or WebP") from fault
    except (OSError, SyntaxError, Image.DecompressionBombError) as fault:
        raise ValueError(f"the picture {path.name} cannot be read: {fault}") from fault
    return torch.from_numpy(rgb)


_FITS = {
    "crop": ImageOps.fit,  # cover, then cut the middle out
    "stretch": Image.Image.resize,
    "pad": ImageOps.pad,  # contain, black around it
}


def resize_frames(
    frames: torch.Tensor,
    width: int,
    height: int,
    mode: Literal["crop", "stretch", "pad"] = "crop",
) -> torch.Tensor:
    """Resize uint8 frames (T, H, W, 3) to (T, height, width, 3) with Pillow's Lanczos filter.

    "crop" fills the new size and cuts what stands out on both sides, "pad" shows all with black bars, and
    "stretch" ignores the shape, as diffusers' VideoProcessor does. Raises ValueError for other modes, sizes
    below 1 and other shapes, TypeError for frames that are not uint8.
    """
    _check_eight_bit(frames)
    if mode not in _FITS:
        raise ValueError(f"mode is {mode!r}; allowed: {', '.join(_FITS)}")
    if width < 1 or height < 1:
        raise ValueError(f"cannot resize to {width}x{height}; both must be at least 1")
    if frames.shape[1:3] == (height, width):
        return frames
    resized = torch.empty(len(frames), height, width, 3, dtype=torch.uint8)
    for index, frame in enumerate(frames.cpu().numpy()):
        image = _FITS[mode](Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS)
        resized[index] = torch.from_numpy(np.array(image))
    return resized


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Frames (T, H, W, 3) uint8 to pixels (1, 3, T, H, W), float32 in [-1, 1]: what a codec encodes.

    Raises ValueError for another shape, TypeError for frames that are not uint8.
    """
    _check_eight_bit(frames)
    return (frames.float() / 255 * 2 - 1).permute(3, 0, 1, 2)[None].contiguous()


def from_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels (1, 3, T, H, W) in [-1, 1] to frames (T, H, W, 3), float32 clamped to [0, 1].

    Raises ValueError for another shape.
    """
    if pixels.ndim != 5 or pixels.shape[:2] != (1, 3):
        raise ValueError(f"pixels have shape {tuple(pixels.shape)}; expected (1, 3, T, H, W)")
    return (pixels[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).contiguous()


def contact_sheet(
    frames: torch.Tensor, columns: int = 4, rows: int = 2, tile_width: int | None = None, gap: int = 4
) -> Image.Image:
    """One picture of up to `columns * rows` frames spread evenly from the first to the last.

    `frames` (T, H, W, 3) are uint8 or floats in [0, 1]. Tiles are `tile_width` pixels wide (the frames' own
    width by default) with `gap` pixels of black between. Raises ValueError without frames or tiles.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (T, H, W, 3) with T at least 1")
    if min(columns, rows) < 1:
        raise ValueError(f"a contact sheet of {columns} columns and {rows} rows has no tiles")
    num_tiles = min(columns * rows, len(frames))
    columns = min(columns, num_tiles)
    chosen = frames[torch.linspace(0, len(frames) - 1, num_tiles).round().long()].cpu()
    if chosen.is_floating_point():
        chosen = eight_bits(chosen)
    height, width = chosen.shape[1:3]
    tile_width = tile_width or width
    tile_height = max(1, round(height * tile_width / width))
    size = (columns * (tile_width + gap) - gap, math.ceil(num_tiles / columns) * (tile_height + gap) - gap)
    sheet = Image.new("RGB", size)
    for index, tile in enumerate(resize_frames(chosen, tile_width, tile_height, "stretch")):
        row, column = divmod(index, columns)
        corner = (column * (tile_width + gap), row * (tile_height + gap))
        sheet.paste(Image.fromarray(tile.numpy()), corner)
    return sheet


def _check_eight_bit(frames: torch.Tensor) -> None:
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames are {frames.dtype}; expected uint8, as read_video and read_image give them")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (T, H, W, 3)")
