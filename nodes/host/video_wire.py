"""What Helios takes from a VIDEO wire: its last frames and its sound, without holding all of it in memory."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice

import torch
from comfy_api.latest import InputImpl

from ...helios_core.media.audio import MediaFile, Sound, file_sound, waveform_sound
from ...helios_core.media.frames import resize_frames
from ...helios_core.media.reader import exact_rate, open_video, read_video
from ...helios_core.media.timing import at_rate


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
    frames = components.images[..., :3]
    if frame_rate and len(frames):
        own, end = Fraction(components.frame_rate), len(frames) / Fraction(components.frame_rate)
        numbers = at_rate(((number / own, number) for number in range(len(frames))), exact_rate(frame_rate), end)
        frames = frames[list(numbers)]
    return tuple(fit_frames(part, width, height, resize) for part in (frames[:1], frames[-num_frames:]))


def frames_in_parts(video, num_frames: int) -> tuple[float, Iterator[torch.Tensor]]:
    """The frame rate of a VIDEO, per second, and its frames (T, H, W, 3) in [0, 1], `num_frames` at a time.

    A file is decoded as its parts are asked for; frames that are in memory, or a part of a file, come from there.
    """
    file = whole_file(video)
    if file is None:
        components = video.get_components()
        return float(components.frame_rate), iter(components.images.split(num_frames))
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
    """The sound of an AUDIO. Raises ValueError for several clips at once or more than two channels."""
    waveform = audio["waveform"]
    if waveform.ndim != 3 or len(waveform) != 1:
        raise ValueError(
            f"audio has shape {tuple(waveform.shape)}; a video takes one clip (1, channels, samples) of 1 or 2 channels"
        )
    return waveform_sound(waveform[0], audio["sample_rate"])
