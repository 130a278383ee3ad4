"""Continuing a clip: which of its frames are taken, at what rate, and what the join looks like in the file."""

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.data import astronaut

from helios_core.media.audio import waveform_sound
from helios_core.media.formats import FORMATS, MKV_FFV1, MP4_H264
from helios_core.media.reader import read_video
from helios_core.media.timing import at_rate, average_rate, is_constant
from helios_core.media.writer import VideoWriter

torch.set_num_threads(1)


def numbered(numbers, height=32, width=64):
    """Frames whose grey level tells their number: 20 + 3 * number, of 255."""
    levels = (20 + 3 * torch.as_tensor(list(numbers))) / 255
    return levels.view(-1, 1, 1, 1).expand(-1, height, width, 3)


def numbers_in(frames):
    return [round((level - 20) / 3) for level in frames.float().mean(dim=(1, 2, 3)).tolist()]


def write_at(path, milliseconds, codec="libx264", **options):
    """Numbered frames shown at these times, by PyAV alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options={"crf": "5", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        for number, time in enumerate(milliseconds):
            rgb = np.full((32, 64, 3), 20 + 3 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p", dst_colorspace=1)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def nearest(times, rate, end):
    """The frame whose time is nearest to each k / rate, looked for among all: the later one of two as near."""
    count = max(1, int((end - times[0]) * rate + Fraction(1, 2) - Fraction(1, 10**9)))
    wanted = [times[0] + Fraction(k) / rate for k in range(count)]
    return [min(range(len(times)), key=lambda i: (abs(times[i] - time), -i)) for time in wanted]


# Rates


@given(
    intervals=st.lists(st.integers(1, 200), min_size=1, max_size=12),
    rate=st.integers(1, 120),
    start=st.integers(-500, 500),
)
@settings(max_examples=60, deadline=None)
def test_each_frame_of_another_rate_is_the_nearest_in_time(intervals, rate, start):
    times = [Fraction(start + sum(intervals[:i]), 1000) for i in range(len(intervals))]
    end = Fraction(start + sum(intervals), 1000)
    result = list(at_rate(zip(times, range(len(times)), strict=True), Fraction(rate), end))
    expected = nearest(times, Fraction(rate), end)
    assert result[0] == 0
    # What is nearest to a moment half way between two frames may differ in the last frame alone.
    assert abs(len(result) - len(expected)) <= 1
    assert result[: len(expected)] == expected[: len(result)]


@given(numbers=st.integers(1, 60), rate=st.sampled_from([8, 24, 25, Fraction(30000, 1001), 60]))
def test_a_clip_at_its_own_rate_stays_as_it_is_though_its_times_are_rounded(numbers, rate):
    times = [Fraction(round(1000 * i / Fraction(rate)), 1000) for i in range(numbers)]
    assert is_constant(times)
    end = times[-1] + 1 / Fraction(rate)
    assert list(at_rate(zip(times, range(numbers), strict=True), Fraction(rate), end)) == list(range(numbers))


def test_no_frames_make_no_frames():
    assert list(at_rate([], Fraction(24), Fraction(1))) == []


def test_sixty_frames_a_second_become_twenty_four_and_back():
    times = [Fraction(i, 60) for i in range(60)]
    slower = list(at_rate(zip(times, range(60), strict=True), Fraction(24), Fraction(1)))
    assert len(slower) == 24
    assert max(abs(times[n] - Fraction(k, 24)) for k, n in enumerate(slower)) <= Fraction(1, 120)
    faster = list(at_rate(((Fraction(k, 24), k) for k in range(24)), Fraction(60), Fraction(1)))
    assert len(faster) == 60
    assert sorted(set(faster)) == list(range(24))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_rate_is_evened_out_to_the_average(tmp_path, suffix):
    # 10 frames at 20 per second, then 10 at 40 per second.
    times = [50 * i for i in range(10)] + [500 + 25 * i for i in range(10)]
    clip = read_video(write_at(tmp_path / f"a{suffix}", times))
    exact = [Fraction(time, 1000) for time in times]
    rate = average_rate(exact)
    assert clip.frame_rate == rate
    assert numbers_in(clip.frames) == nearest(exact, rate, exact[-1] + 1 / rate)
    assert clip.num_frames == 20


def test_jitter_of_a_phone_counts_as_constant_and_no_frame_is_touched(tmp_path):
    jitter = np.random.default_rng(0).integers(-4, 5, 30)
    clip = read_video(write_at(tmp_path / "a.mp4", [int(33 * i + 10 + jitter[i]) for i in range(30)]))
    assert numbers_in(clip.frames) == list(range(30))


def test_a_clip_is_read_at_the_rate_that_is_asked_for(tmp_path):
    path = write_at(tmp_path / "a.mp4", [round(1000 * i / 48) for i in range(48)])
    clip = read_video(path, frame_rate=24, last_frames=10)
    assert (clip.num_frames, clip.frame_rate) == (24, 24)
    assert numbers_in(clip.frames) == list(range(28, 48, 2))
    assert numbers_in(clip.first_frame[None]) == [0]


def test_a_stream_in_memory_is_read_like_its_file(tmp_path):
    path = write_at(tmp_path / "a.mp4", range(0, 400, 40))
    assert torch.equal(read_video(BytesIO(path.read_bytes())).frames, read_video(path).frames)


def test_sound_beside_the_pictures_changes_none_of_them(tmp_path):
    for name, sound in (("with", waveform_sound(torch.rand(2, 44100) - 0.5, 44100)), ("without", None)):
        with VideoWriter(tmp_path / f"{name}.mp4", width=64, height=32, sound=sound) as writer:
            writer.write(numbered(range(20)))
    assert torch.equal(read_video(tmp_path / "with.mp4").frames, read_video(tmp_path / "without.mp4").frames)


# Joins


@pytest.mark.parametrize("known", FORMATS.values(), ids=lambda known: known.name)
def test_a_clip_and_what_follows_it_are_joined_with_no_frame_twice_and_none_missing(known, tmp_path):
    source = write_at(tmp_path / "source.mp4", [round(1000 * i / 24) for i in range(40)])
    clip = read_video(source)
    path = tmp_path / f"joined{known.suffix}"
    with VideoWriter(path, width=64, height=32, format=known, frame_rate=clip.frame_rate) as writer:
        writer.write(clip.frames.float() / 255)
        for chunk in numbered(range(40, 70)).split(10):
            writer.write(chunk)
    assert numbers_in(read_video(path).frames) == list(range(70))
    with av.open(str(path)) as container:
        times = sorted(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.size)
    assert len(times) == 70
    assert [round((time - times[0]) * 24) for time in times] == list(range(70))


def mean_colour(path):
    """(T, 3): each frame's mean RGB, of 255, from the stored samples by ITU-R BT.709-6: a decoder of our own."""
    means = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.format.name == "yuv420p"
            planes = [np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in frame.planes]
            y, b, r = [plane.mean() for plane in planes]
            y, b, r = (y - 16) / 219, (b - 128) / 224, (r - 128) / 224
            red, blue = y + 1.5748 * r, y + 1.8556 * b
            means.append([red, (y - 0.2126 * red - 0.0722 * blue) / 0.7152, blue])
    return 255 * np.array(means)


@pytest.mark.parametrize("known", [MP4_H264, MKV_FFV1], ids=lambda known: known.name)
def test_a_join_shifts_no_colour(known, tmp_path):
    picture = torch.from_numpy(astronaut()[100:356, 100:356]).float() / 255
    source = tmp_path / "source.mp4"
    with VideoWriter(source, width=256, height=256, crf=10) as writer:
        writer.write(picture.expand(8, -1, -1, -1))
    path = tmp_path / f"joined{known.suffix}"
    with VideoWriter(path, width=256, height=256, crf=10, format=known, pixel_format="yuv420p") as writer:
        writer.write(read_video(source).frames.float() / 255)  # the clip, once more encoded
        writer.write(picture.expand(8, -1, -1, -1))  # what was made after it, never encoded before
    joined = mean_colour(path)
    assert np.abs(joined[:8] - mean_colour(source)).max() < 0.5
    assert np.abs(joined[7] - joined[8]).max() < 0.5
    assert np.abs(joined[8:] - picture.mean(dim=(0, 1)).numpy() * 255).max() < 0.5


def test_colour_does_not_move_sideways_however_often_a_clip_is_copied(tmp_path):
    # Two colours of one luma, blurred so that halving the colour's resolution loses little.
    step = torch.sigmoid((torch.arange(64) - 31.5) / 4).view(1, 64, 1)
    edge = torch.tensor([0.6, 0.4, 0.3]) * (1 - step) + torch.tensor([0.2, 0.5, 0.5]) * step
    frames = edge.expand(64, 64, 3)[None]
    for number in range(5):
        path = tmp_path / f"{number}.mp4"
        with VideoWriter(path, width=64, height=64, crf=1) as writer:
            writer.write(frames)
        frames = read_video(path).frames.float() / 255
    moved = (frames[0, :, :, 0].mean() - edge[0, :, 0].mean()) * 64 / (edge[0, -1, 0] - edge[0, 0, 0])
    assert abs(moved) < 0.25  # pixels, after five copies; half a pixel each when colour is stored off its place
