"""Pictures and video files: a writer that takes frames as they come, readers, sizes, and pixel ranges.

Frames come in two forms here: `(T, H, W, 3)` uint8 or [0, 1] floats, as files and ComfyUI's IMAGE have them,
and `(1, 3, T, H, W)` in [-1, 1], "pixels", as a codec takes them. Colour is BT.709 with limited range, said
in the file and used in the arithmetic: FFmpeg's converter would take BT.601 when nothing is said.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import torch

from ..geometry import FRAME_RATE
from .audio import MediaFile, file_name, open_media
from .formats import BT709, FULL_RANGE
from .timing import at_rate, average_rate, is_constant

logger = logging.getLogger(__name__)

# swscale's BILINEAR | FULL_CHR_H_INT | ACCURATE_RND: without the last two a flat colour is off by 3 of 255.
_EXACT_CONVERSION = 0x2 | 0x2000 | 0x40000

# Decoders of which each packet gives the one frame that is shown at its time. Others hide frames, or put two together.
_ONE_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "libdav1d", "prores", "ffv1", "mjpeg", "png")


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
    memory, and of most files no more than the end is decoded; a shorter video gives all it has. Frames come as they
    are stored; with another `frame_rate`, and in a video of variable rate at its average one, they are repeated or left
    out so that each is the nearest in time.

    Raises FileNotFoundError when there is no such file and ValueError when it is not a video, has no frames, is
    damaged, or changes its size midway; damage in a part that is not decoded goes unnoticed.
    """
    if last_frames is not None and last_frames < 1:
        raise ValueError(f"last_frames is {last_frames}; allowed: at least 1, or None for the whole video")
    timing, rate = _timing_of(file, frame_rate)
    if last_frames is not None:
        clip = _read_end(file, timing, rate, last_frames)
        if clip is not None:
            return clip
    first, num_frames = None, 0
    # Decoded frames wait in the file's own pixel format, half the bytes of RGB, and only those kept are converted.
    kept: deque[av.VideoFrame] = deque(maxlen=last_frames)
    for frame in _frames(file, timing, rate):
        first = first or frame
        kept.append(frame)
        num_frames += 1
    return Clip(first_frame=_upright_rgb(first), frames=_convert_all(kept), num_frames=num_frames, frame_rate=rate)


def open_video(
    file: MediaFile, *, frame_rate: float | Fraction | None = None
) -> tuple[Fraction, Iterator[torch.Tensor]]:
    """The rate (per second) and the frames (H, W, 3) uint8 that `read_video` would give, decoded as they are asked for,
    so that length costs no memory. Raises as `read_video` does, at the latest when the faulty frame is reached."""
    timing, rate = _timing_of(file, frame_rate)
    return rate, map(_upright_rgb, _frames(file, timing, rate))


def stream_video(
    file: MediaFile, *, frame_rate: float | Fraction | None = None, first: int = 0
) -> Iterator[torch.Tensor]:
    """The frames of `open_video` from number `first` on; the file is opened when the first is asked for."""
    timing, rate = _timing_of(file, frame_rate)
    for frame in islice(_frames(file, timing, rate), first, None):
        yield _upright_rgb(frame)


@dataclass(frozen=True)
class VideoFacts:
    """What a file says of its pictures, read without decoding them. `frame_rate` is the average where it is not
    `constant`, and `num_frames` how many there are at that rate; `transfer` is the transfer function's number in
    ISO/IEC 23091-2."""

    frame_rate: Fraction
    constant: bool
    num_frames: int
    transfer: int
    has_alpha: bool


def video_facts(file: MediaFile) -> VideoFacts:
    """Raises FileNotFoundError when there is no such file and ValueError when it is not a video."""
    name = file_name(file)
    try:
        with open_media(file) as container:
            timing = _read_timing(container, name)
            stream = container.streams.video[0]
            pixels = stream.codec_context.format
            return VideoFacts(
                frame_rate=timing.rate,
                constant=timing.constant,
                num_frames=len(timing.ticks) or round(timing.end * timing.rate),
                transfer=int(stream.codec_context.color_trc),
                # webm keeps transparency in a stream beside the pictures, which decoders leave out.
                has_alpha=stream.metadata.get("alpha_mode") == "1"
                or (pixels is not None and any(component.is_alpha for component in pixels.components)),
            )
    except av.error.FFmpegError as fault:
        raise _unreadable(name, 0, fault) from fault


def _timing_of(file: MediaFile, frame_rate: float | Fraction | None) -> tuple[_Timing, Fraction]:
    """When the file's frames are shown, and at what rate they are wanted: its own when `frame_rate` is None."""
    name = file_name(file)
    try:
        with open_media(file) as container:
            timing = _read_timing(container, name)
            hdr = _hdr_kind(container)
    except av.error.FFmpegError as fault:
        raise _unreadable(name, 0, fault) from fault
    if hdr is not None:
        logger.warning("%s is %s: %s", name, hdr, HDR_ADVICE)
    return timing, timing.rate if frame_rate is None else exact_rate(frame_rate)


def _frames(file: MediaFile, timing: _Timing, rate: Fraction) -> Iterator[av.VideoFrame]:
    """The frames, at least one, decoded as they are asked for."""
    name, num_frames = file_name(file), 0
    try:
        with open_media(file) as container:
            decoded: Iterator[av.VideoFrame] = _decode(container, name)
            if not timing.is_kept_at(rate):
                decoded = at_rate(timing.of(decoded), rate, timing.end)
            for frame in decoded:
                yield frame
                num_frames += 1
    except av.error.FFmpegError as fault:
        raise _unreadable(name, num_frames, fault) from fault
    if not num_frames:
        raise ValueError(f"{name} has no frames")


def _read_end(file: MediaFile, timing: _Timing, rate: Fraction, last_frames: int) -> Clip | None:
    """What `read_video` gives, of which only the end is decoded, from a keyframe on. None for a file in which that
    could give other frames, or saves nothing."""
    shown = timing.numbers(rate)
    wanted = shown[-last_frames:]
    keyframe = timing.keyframe_before(wanted[0]) if wanted else None
    if keyframe is None:
        return None
    try:
        with open_media(file) as container, closing(_decode(container, file_name(file))) as frames:
            first = next(frames)
        with open_media(file) as container, closing(_decode(container, file_name(file))) as frames:
            container.seek(keyframe, stream=container.streams.video[0])
            kept = _keep(frames, timing.ticks, wanted)
    except (av.error.FFmpegError, StopIteration, ValueError):
        return None  # whoever reads all of it will say what is wrong, and where
    if kept is None or (kept[0].width, kept[0].height) != (first.width, first.height):
        return None
    return Clip(first_frame=_upright_rgb(first), frames=_convert_all(kept), num_frames=len(shown), frame_rate=rate)


def _keep(
    frames: Iterable[av.VideoFrame], ticks: Sequence[int], wanted: Sequence[int]
) -> deque[av.VideoFrame] | None:
    """Of frames that are decoded from a keyframe on, those with the `wanted` numbers (ascending, each as often as it
    stands there). None unless every frame from the first wanted one on is there, whole, and shown when it should be."""
    times, number = Counter(wanted), wanted[0]
    kept: deque[av.VideoFrame] = deque()
    for frame in frames:
        if frame.pts is None:
            return None
        if frame.pts < ticks[wanted[0]]:
            continue
        if frame.is_corrupt or number == len(ticks) or frame.pts != ticks[number]:
            return None
        kept.extend([frame] * times[number])
        number += 1
    return kept if number == len(ticks) else None


def _unreadable(name: str, num_frames: int, fault: av.error.FFmpegError) -> ValueError:
    what = f"is damaged after frame {num_frames - 1}" if num_frames else "cannot be read as a video"
    return ValueError(f"{name} {what} ({fault.strerror}); try converting it to mp4 first")


@dataclass(frozen=True)
class _Timing:
    """When a file's frames are shown, `rate` per second, in constant steps or on average; `end` in seconds.

    `ticks` are the times of the frames, ascending, in units of `time_base`; without usable ones in the file there are
    none, and each frame is as long as the other. `keyframes` are (time of showing, time of decoding) of frames that
    decoding can begin at, in a file whose every packet is one frame; else there are none.
    """

    rate: Fraction
    constant: bool
    end: Fraction
    time_base: Fraction = Fraction(1)
    ticks: tuple[int, ...] = ()
    keyframes: tuple[tuple[int, int], ...] = ()

    def of(self, frames: Iterable[av.VideoFrame]) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        for number, frame in enumerate(frames):
            yield (frame.pts * frame.time_base if self.ticks else number / self.rate), frame

    def is_kept_at(self, rate: Fraction) -> bool:
        """Whether all frames are shown, once each."""
        return self.constant and rate == self.rate

    def numbers(self, rate: Fraction) -> Sequence[int]:
        """Which of the frames that have `ticks` are shown, in order."""
        if self.is_kept_at(rate):
            return range(len(self.ticks))
        timed = ((tick * self.time_base, number) for number, tick in enumerate(self.ticks))
        return list(at_rate(timed, rate, self.end))

    def keyframe_before(self, number: int) -> int | None:
        """When the last keyframe is decoded that is shown no later than this frame; None for the file's first."""
        before = [decoded for shown, decoded in self.keyframes[1:] if shown <= self.ticks[number]]
        return before[-1] if before else None


def _read_timing(container: av.container.InputContainer, name: str) -> _Timing:
    """Read the timestamps alone: nothing is decoded."""
    if not container.streams.video:
        raise ValueError(f"{name} is not a video: it has no picture stream")
    stream = container.streams.video[0]
    rate = stream.average_rate or stream.base_rate
    if not rate:
        logger.warning("%s does not state its frame rate; taking %d", name, FRAME_RATE)
    rate = Fraction(rate or FRAME_RATE)
    ticks, keyframes, one_frame_each = [], [], stream.codec_context.name in _ONE_FRAME_A_PACKET
    for packet in container.demux(stream):
        if not packet.size:
            continue
        ticks.append(packet.pts)
        one_frame_each = one_frame_each and not (packet.is_discard or packet.is_corrupt)
        if packet.is_keyframe:
            keyframes.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
    if None in ticks or len(set(ticks)) < max(2, len(ticks)):
        return _Timing(rate, constant=True, end=len(ticks) / rate)
    times = [tick * stream.time_base for tick in sorted(ticks)]
    own = {
        "time_base": stream.time_base,
        "ticks": tuple(sorted(ticks)),
        "keyframes": tuple(sorted(keyframes)) if one_frame_each else (),
    }
    if is_constant(times):
        return _Timing(rate, constant=True, end=times[-1] + 1 / rate, **own)
    rate = average_rate(times)
    logger.info("%s has a variable frame rate; its frames are evened out to %.3f per second", name, rate)
    return _Timing(rate, constant=False, end=times[-1] + 1 / rate, **own)


def _decode(container: av.container.InputContainer, name: str) -> Generator[av.VideoFrame, None, None]:
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
