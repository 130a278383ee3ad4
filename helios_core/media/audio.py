"""Sound beside the pictures: from a file or a waveform, cut or filled with silence to the video's length."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import torch

MediaFile = str | os.PathLike[str] | BinaryIO

_SILENCE_SAMPLES = 48000
_LAYOUTS = {1: "mono", 2: "stereo"}
# What so many channels are when nothing else is said, by FFmpeg's names.
_WIDE_LAYOUTS = {3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sound:
    """Where a video's sound comes from; it can be opened any number of times.

    `open()` gives parts (num_channels, n), float32 in [-1, 1], one after another without gaps, `sample_rate` samples
    a second. The video begins at `start` seconds of it; below 0 it begins with silence.
    """

    open: Callable[[], Iterator[np.ndarray]]
    sample_rate: int
    num_channels: int
    start: float = 0.0

    def starting_at(self, seconds: float) -> Sound:
        """The same sound, of which the video begins at another moment."""
        return replace(self, start=seconds)

    def until(self, seconds: float | Fraction) -> Sound:
        """The same sound, which is over at that second of it."""

        def parts() -> Iterator[np.ndarray]:
            left = round(seconds * self.sample_rate)
            for part in self.open():
                yield part[:, :left]
                left -= part.shape[1]
                if left <= 0:
                    return

        return replace(self, open=parts)


def waveform_sound(waveform: torch.Tensor, sample_rate: int) -> Sound:
    """Sound of a waveform (C, S), floats in [-1, 1], as ComfyUI's AUDIO has it for one clip.

    3 to 8 channels are mixed down to two as FFmpeg does for a file of so many, and more to one. NaN counts as silence.
    Raises ValueError for another shape, and unless the sample rate is above 0.
    """
    if waveform.ndim != 2 or not len(waveform):
        raise ValueError(f"the waveform has shape {tuple(waveform.shape)}; expected (channels, samples)")
    if sample_rate < 1:
        raise ValueError(f"sample_rate is {sample_rate}; allowed: above 0, for example 44100")

    def second_by_second() -> Iterator[np.ndarray]:
        mix = _mixer(len(waveform), sample_rate)
        for part in waveform.split(sample_rate, dim=1):
            yield mix(part.float().nan_to_num(0.0, 1.0, -1.0).cpu().numpy())

    return Sound(second_by_second, sample_rate, _mixed_channels(len(waveform)))


def _mixed_channels(num_channels: int) -> int:
    return 2 if num_channels in _WIDE_LAYOUTS else num_channels if num_channels in _LAYOUTS else 1


def _mixer(num_channels: int, sample_rate: int) -> Callable[[np.ndarray], np.ndarray]:
    """What turns (num_channels, n) into (1 or 2, n)."""
    if num_channels in _LAYOUTS:
        return lambda part: part
    if num_channels not in _WIDE_LAYOUTS:
        return lambda part: part.mean(axis=0, keepdims=True)
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=sample_rate)

    def mix(part: np.ndarray) -> np.ndarray:
        if not part.shape[1]:
            return part[:2]
        # Side by side: PyAV fills no more than seven planes.
        samples = np.ascontiguousarray(part.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=_WIDE_LAYOUTS[num_channels])
        frame.sample_rate = sample_rate
        return np.concatenate([mixed.to_ndarray() for mixed in resampler.resample(frame)], axis=1)

    return mix


def file_sound(file: MediaFile) -> Sound | None:
    """The sound of a video or sound file, in step with its pictures; None when it has none.

    More than two channels are mixed down to two. Raises FileNotFoundError when there is no such file and ValueError
    when it is no media file; damage in the middle is a ValueError of whoever reads the sound.
    """
    try:
        with open_media(file) as container:
            stream = _sound_stream(container)
            if stream is None:
                return None
            sample_rate, num_channels = stream.sample_rate, min(stream.channels, 2)
            if not sample_rate or not num_channels:
                logger.warning("the sound of %s says neither rate nor channels; it is left out", file_name(file))
                return None
    except av.error.FFmpegError as fault:
        raise ValueError(f"{file_name(file)} cannot be read ({fault.strerror}); try converting it first") from fault
    return Sound(lambda: _decode(file, sample_rate, num_channels), sample_rate, num_channels)


def open_media(file: MediaFile) -> av.container.InputContainer:
    """Open a path, or a binary stream from its beginning. Raises FileNotFoundError when there is no such file.

    What is in memory is opened apart each time, without a copy, so that several may read it at once.
    """
    if isinstance(file, BytesIO):
        return av.open(BytesIO(file.getvalue()))
    if not isinstance(file, str | os.PathLike):
        file.seek(0)
        return av.open(file)
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}")
    return av.open(os.path.abspath(file))  # or FFmpeg takes what stands before a colon for a protocol


def file_name(file: MediaFile) -> str:
    """What to call a path or a stream in a message."""
    return Path(file).name if isinstance(file, str | os.PathLike) else "the file"


def _sound_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    # Streams that FFmpeg has no decoder for have no codec context: spatial sound of phones, for example.
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)


def _decode(file: MediaFile, sample_rate: int, num_channels: int) -> Iterator[np.ndarray]:
    """Samples from the moment of the first picture on."""
    resampler = av.AudioResampler(format="fltp", layout=_LAYOUTS[num_channels], rate=sample_rate)
    try:
        with open_media(file) as container:
            frames = container.decode(_sound_stream(container))
            first = next(frames, None)
            if first is None:
                return
            head_start = round((_first_picture(container) - (first.time or 0.0)) * sample_rate)
            yield from _from_sample(head_start, num_channels, _resample(chain((first,), frames), resampler))
    except av.error.FFmpegError as fault:
        raise ValueError(f"the sound of {file_name(file)} is damaged ({fault.strerror})") from fault


def _first_picture(container: av.container.InputContainer) -> float:
    """When the first picture is shown, in seconds of the file's clock."""
    pictures = next(iter(container.streams.video), None)
    if pictures is None or pictures.start_time is None:
        return 0.0
    return float(pictures.start_time * pictures.time_base)


def _resample(frames: Iterator[av.AudioFrame], resampler: av.AudioResampler) -> Iterator[np.ndarray]:
    for frame in chain(frames, (None,)):  # None empties the resampler
        for part in resampler.resample(frame):
            yield part.to_ndarray()


def _from_sample(start: int, num_channels: int, parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The parts from sample `start` on; with a negative one that many zeros before them."""
    while start < 0:
        silence = np.zeros((num_channels, min(-start, _SILENCE_SAMPLES)), np.float32)
        start += silence.shape[1]
        yield silence
    for part in parts:
        rest = part[:, start:]
        start -= part.shape[1] - rest.shape[1]
        if rest.shape[1]:
            yield rest


class SoundTrack:
    """Encodes a sound into an open container, as far as its pictures have come.

    Silence follows when the sound is over, and what is left of it when the pictures are over is not written.
    """

    def __init__(self, container: av.container.OutputContainer, sound: Sound, codec: str) -> None:
        self._container = container
        self._sound = sound
        rates = av.Codec(codec, "w").audio_rates
        rate = sound.sample_rate if rates is None or sound.sample_rate in rates else 48000
        self._stream = container.add_stream(codec, rate=rate)
        self._stream.layout = _LAYOUTS[sound.num_channels]
        start = round(sound.start * sound.sample_rate)
        self._parts = _from_sample(start, sound.num_channels, sound.open())
        self._waiting = np.zeros((sound.num_channels, 0), np.float32)
        self._num_samples = 0

    def advance(self, seconds: Fraction) -> None:
        """Encode up to this moment of the video."""
        missing = round(seconds * self._sound.sample_rate) - self._num_samples
        if missing <= 0:
            return
        frame = av.AudioFrame.from_ndarray(
            self._take(missing), format="fltp", layout=_LAYOUTS[self._sound.num_channels]
        )
        frame.sample_rate = self._sound.sample_rate
        frame.time_base = Fraction(1, self._sound.sample_rate)
        frame.pts = self._num_samples
        self._num_samples += missing
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))

    def _next_part(self) -> np.ndarray | None:
        try:
            return next(self._parts, None)
        except ValueError as fault:  # the pictures are what the hours went into
            logger.warning("%s; the rest of the video is silent", fault)
            self._parts = iter(())
            return None

    def _take(self, num_samples: int) -> np.ndarray:
        parts, num_waiting = [self._waiting], self._waiting.shape[1]
        while num_waiting < num_samples:
            part = self._next_part()
            if part is None:
                part = np.zeros((self._sound.num_channels, num_samples - num_waiting), np.float32)
            parts.append(part)
            num_waiting += part.shape[1]
        samples = np.concatenate(parts, axis=1)
        self._waiting = samples[:, num_samples:]
        return np.ascontiguousarray(samples[:, :num_samples])
