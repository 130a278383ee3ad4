"""The end of a video: read from a keyframe on, it has the very frames that reading all of it gives."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from helios_core.media.reader import open_video, read_video, stream_video

RATE = 25
LONG = {"g": "20", "keyint_min": "20", "bf": "3", "x264-params": "scenecut=0"}
# Name, encoder, its options: closed and open groups of pictures, no keyframe but the first, only keyframes, recovery
# points in place of keyframes, and codecs that hide frames or are seldom cut.
FILES = {
    "closed.mp4": ("libx264", LONG),
    "open.mkv": ("libx264", {**LONG, "x264-params": "scenecut=0:open-gop=1"}),
    "refresh.mkv": ("libx264", {**LONG, "x264-params": "scenecut=0:intra-refresh=1"}),
    "one.mp4": ("libx264", {"g": "500"}),
    "intra.mov": ("prores_ks", {}),
    "lossless.mkv": ("ffv1", {"g": "1"}),
    "alternate.webm": ("libvpx-vp9", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}),
    "old.webm": ("libvpx", {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "packed.avi": ("mpeg4", {"g": "20", "bf": "2"}),
    "hevc.mp4": ("libx265", {"g": "20", "preset": "ultrafast", "x265-params": "log-level=error:open-gop=1"}),
    "stream.ts": ("libx264", LONG),
    "fields.mp4": ("libx264", {**LONG, "x264-params": "scenecut=0:tff=1"}),
}


def moving(num_frames, height=64, width=96):
    """Frames (T, H, W, 3) uint8 of a texture that turns and brightens: every frame is another."""
    texture = np.random.default_rng(0).integers(0, 128, (height, width, 3))
    return [np.roll(texture + number, 2 * number, axis=1).clip(0, 255).astype(np.uint8) for number in range(num_frames)]


def write(path, frames, encoder="libx264", options=LONG, times=None):
    """Encode frames with PyAV alone; frame k is shown at `times[k]` (in 1/100 s), else at an even pace."""
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=RATE, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv422p10le" if encoder == "prores_ks" else "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 100)
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def check_end(path, asked, frame_rate=None):
    """The last frames are those at the end of the whole video, bit for bit, and so is all else that is known of it."""
    whole, end = read_video(path, frame_rate=frame_rate), read_video(path, last_frames=asked, frame_rate=frame_rate)
    assert torch.equal(end.frames, whole.frames[-asked:])
    assert torch.equal(end.first_frame, whole.first_frame)
    assert (end.num_frames, end.frame_rate) == (whole.num_frames, whole.frame_rate)


@pytest.mark.parametrize("name", FILES)
def test_the_end_is_that_of_the_whole_video_whatever_the_codec(tmp_path, name):
    path = write(tmp_path / name, moving(90), *FILES[name])
    for asked in (1, 9, 33):
        check_end(path, asked)


@pytest.mark.parametrize("frame_rate", [12.5, 24, 60])
def test_the_end_at_another_rate_is_that_of_the_whole_video_at_that_rate(tmp_path, frame_rate):
    check_end(write(tmp_path / "a.mp4", moving(90)), 33, frame_rate)


def test_the_end_of_a_video_of_variable_rate_is_evened_out_as_the_whole_is(tmp_path):
    times = np.cumsum(np.random.default_rng(1).integers(2, 9, 90)).tolist()
    check_end(write(tmp_path / "a.mkv", moving(90), times=times), 33)


def test_only_the_end_is_decoded(tmp_path):
    """What comes before is damaged here, which whoever decodes it must notice."""
    path = write(tmp_path / "a.mp4", moving(90))
    before = read_video(path, last_frames=9)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[21:50]:
        content[position + 4 : position + size] = bytes(size - 4)
    damaged = io.BytesIO(content)
    after = read_video(damaged, last_frames=9)
    assert torch.equal(after.frames, before.frames)
    assert torch.equal(after.first_frame, before.first_frame)
    assert after.num_frames == before.num_frames == 90
    with pytest.raises(ValueError, match="is damaged after frame"):
        read_video(damaged)


def test_an_opened_video_gives_its_rate_and_its_frames_one_after_another(tmp_path):
    path = write(tmp_path / "a.mp4", moving(40))
    rate, frames = open_video(path)
    assert rate == RATE
    whole = read_video(path).frames
    assert torch.equal(torch.stack(list(frames)), whole)
    assert torch.equal(torch.stack(list(stream_video(path))), whole)
