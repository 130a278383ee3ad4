"""What Helios takes from a VIDEO wire: its last frames and its sound, without holding all of it in memory."""

import logging
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import torch
from comfy_api.latest import InputImpl

from ...helios_core.media.audio import MediaFile, Sound, file_sound, waveform_sound
from ...helios_core.media.frames import resize_frames
from ...helios_core.media.reader import exact_rate, open_video, read_video
from ...helios_core.media.timing import at_rate

logger = logging.getLogger(__name__)


def whole_file(video) -> MediaFile | None:
    """The file of a VIDEO that shows all of it, to be read as a stream; None for frames in memory or a part of a file.

    Newer versions of ComfyUI cut clips without making a new file.
    """
    if not isinstance(video, InputImpl.VideoFromFile):
        return None
    return None if any(trim_window(video)) else video.get_stream_source()


def trim_window(video: InputImpl.VideoFromFile) -> tuple[float, float]:
    """Where the part of a file that a VIDEO shows begins, and how long it is, in seconds; length 0 is to the end."""
    if hasattr(video, "get_active_trim_window"):
        return video.get_active_trim_window()
    # Versions before that method keep it to themselves.
    start, duration = (vars(video).get(f"_VideoFromFile__{name}") or 0.0 for name in ("start_time", "duration"))
    return start, duration


def last_frames(
    video, num_frames: int, frame_rate: float, width: int, height: int, resize: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first frame (1, height, width, 3) of a VIDEO and up to `num_frames` last ones, floats in [0, 1].

    `frame_rate` in frames per second, 0 for the clip's own: frames are repeated or left out to meet it.
    """
    file = whole_file(video)
    if file is not None:
        clip = read_video(file, last_frames=num_frames, frame_rate=frame_rate or None)
        first, last = (resize_frames(part, width, height, resize) for part in (clip.first_frame[None], clip.frames))
        return first.float() / 255, last.float() / 255
    components = video.get_components()
    frames = rgb(components.images, "video")
    if frame_rate and len(frames):
        own, end = Fraction(components.frame_rate), len(frames) / Fraction(components.frame_rate)
        numbers = at_rate(((number / own, number) for number in range(len(frames))), exact_rate(frame_rate), end)
        frames = frames[list(numbers)]
    first, last = (fit_frames(part, width, height, resize) for part in (frames[:1], frames[-num_frames:]))
    return first, last


def frames_in_parts(video, num_frames: int) -> tuple[float, Iterator[torch.Tensor]]:
    """The frame rate of a VIDEO, per second, and its frames (T, H, W, 3) in [0, 1], `num_frames` at a time.

    A file is decoded as its parts are asked for; frames that are in memory, or a part of a file, come from there.
    """
    file = whole_file(video)
    if file is None:
        components = video.get_components()
        return float(components.frame_rate), iter(rgb(components.images, "video").split(num_frames))
    rate, frames = open_video(file)
    parts = iter(lambda: list(islice(frames, num_frames)), [])
    return float(rate), (torch.stack(part).float() / 255 for part in parts)


def fit_frames(frames: torch.Tensor, width: int, height: int, resize: str) -> torch.Tensor:
    """IMAGE (T, H, W, 3) in [0, 1] -> (T, height, width, 3) in [0, 1]. Frames of the right size stay as they are."""
    if frames.shape[1:3] == (height, width):
        return frames
    return resize_frames((frames * 255).round().clamp(0, 255).byte(), width, height, resize).float() / 255


def sound_of_video(video) -> Sound | None:
    """The sound of a VIDEO, None when it has none."""
    file = whole_file(video)
    if file is not None:
        return file_sound(file)
    audio = video.get_components().audio
    return audio and sound_of_audio(audio)


def sound_of_audio(audio: dict) -> Sound:
    """The sound of an AUDIO; several clips at once are mixed into one. Raises ValueError for anything else."""
    waveform = audio["waveform"]
    if waveform.ndim < 3:  # some nodes leave out the batch, or the channels of a single one
        waveform = waveform.reshape(1, -1, waveform.shape[-1])
    if waveform.ndim != 3 or not len(waveform):
        raise ValueError(f"audio has shape {tuple(waveform.shape)}; a video takes (1, channels, samples)")
    if len(waveform) > 1:
        logger.warning("audio holds %d clips at once; the video gets their mix", len(waveform))
    return waveform_sound(waveform.float().mean(dim=0), int(audio["sample_rate"]))


def rgb(images: torch.Tensor, name: str) -> torch.Tensor:
    """IMAGE of any kind as (T, H, W, 3): grey is repeated, and what lies behind three colours is left out.

    Raises ValueError for a shape that is no picture's.
    """
    if images.ndim == 3:  # one picture, or masks
        images = images[None] if images.shape[-1] in (3, 4) else images[..., None]
    if images.ndim != 4 or not images.shape[-1] or 0 in images.shape:
        raise ValueError(f"{name} has shape {tuple(images.shape)}; expected pictures (number, height, width, 3)")
    return images[..., :3] if images.shape[-1] >= 3 else images[..., :1].expand(-1, -1, -1, 3)
