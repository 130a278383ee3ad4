"""Pictures and video files: a writer that takes frames as they come, readers, sizes, and pixel ranges.

Frames come in two forms here: `(T, H, W, 3)` uint8 or [0, 1] floats, as files and ComfyUI's IMAGE have them,
and `(1, 3, T, H, W)` in [-1, 1], "pixels", as a codec takes them. Colour is BT.709 with limited range, said
in the file and used in the arithmetic: FFmpeg's converter would take BT.601 when nothing is said.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image, ImageOps

from ..geometry import FRAME_RATE
from .audio import MediaFile, file_name, open_media
from .formats import BT709, FULL_RANGE
from .timing import at_rate, average_rate, is_constant

logger = logging.getLogger(__name__)

# swscale's BILINEAR | FULL_CHR_H_INT | ACCURATE_RND: without the last two a flat colour is off by 3 of 255.
_EXACT_CONVERSION = 0x2 | 0x2000 | 0x40000


# Numbers of ISO/IEC 23091-2: how light is coded, and which red, green and blue are meant.
_HDR_TRANSFERS = {16: "HDR (PQ)", 18: "HDR (HLG)"}
_WIDE_PRIMARIES = {9: "wide colour (BT.2020)"}


HDR_ADVICE = "its colours are read without tone mapping and look pale; convert it to SDR (BT.709) first"


def hdr_kind(file: MediaFile) -> str | None:
    """What makes a video's colours more than a usual screen shows, in words; None for usual video and what is none.

    Such frames are read without tone mapping: they look pale and flat.
    """
    try:
        with open_media(file) as container:
            return _hdr_kind(container)
    except (OSError, av.error.FFmpegError):
        return None


def _hdr_kind(container: av.container.InputContainer) -> str | None:
    if not container.streams.video or container.streams.video[0].codec_context is None:
        return None
    context = container.streams.video[0].codec_context
    return _HDR_TRANSFERS.get(int(context.color_trc)) or _WIDE_PRIMARIES.get(int(context.color_primaries))


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
            hdr = _hdr_kind(container)
    except av.error.FFmpegError as fault:
        raise _unreadable(name, 0, fault) from fault
    if hdr is not None:
        logger.warning("%s is %s: %s", name, hdr, HDR_ADVICE)
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


_FITS = {
    "crop": ImageOps.fit,  # cover, then cut the middle out
    "stretch": Image.Image.resize,
    "pad": ImageOps.pad,  # contain, black around it
}
