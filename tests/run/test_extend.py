"""Continuing a clip: every frame of it once, at its time, in its colours, and then the new chunks."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from helios_core.cli import main
from helios_core.media.audio import waveform_sound
from helios_core.media.parts import Encoding
from helios_core.media.reader import read_video, stream_video
from helios_core.media.writer import VideoWriter
from helios_core.run.lead_in import write_lead_in
from helios_core.run.run_folder import RunFolder

WIDTH, HEIGHT = 64, 64


def colours(num_frames):
    """Frames (T, 64, 64, 3): six large fields of saturated and grey colours; below, eight black or white squares with
    the frame's number in binary."""
    fields = torch.tensor(
        [[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.5, 0.5, 0.5], [0.95, 0.95, 0.9], [0.05, 0.05, 0.05]]
    )
    picture = fields.view(2, 3, 3).repeat_interleave(32, 0).repeat_interleave(22, 1)[:, :64]
    frames = picture.repeat(num_frames, 1, 1, 1)
    bits = (torch.arange(num_frames)[:, None] >> torch.arange(8)) & 1
    frames[:, -8:] = bits.float().repeat_interleave(8, 1)[:, None, :, None]
    return frames


def numbers(frames):
    """The numbers written in frames (T, 64, 64, 3) uint8."""
    squares = frames[:, -6:-2].float().mean((1, 3)).view(-1, 8, 8).mean(2)
    return ((squares > 128).long() << torch.arange(8)).sum(1).tolist()


def write_clip(path, num_frames, frame_rate=24):
    with VideoWriter(path, width=WIDTH, height=HEIGHT, frame_rate=frame_rate, crf=4) as writer:
        writer.write(colours(num_frames))


def extend(tmp_path, clip, *options):
    out = tmp_path / "extended.mp4"
    arguments = ["generate", "--prompt", "a fox", "--video", clip, "--keep-video", "--chunks", 1, "--out", out]
    size = ["--width", WIDTH, "--height", HEIGHT, "--steps", "1,1", "--guidance-scale", "1"]
    assert main([str(argument) for argument in [*arguments, *size, *options]]) == 0
    return out


@pytest.mark.parametrize("num_frames", [33, 40, 70])
def test_the_join_adds_no_frame_twice_leaves_none_out_and_shifts_no_colour(tmp_path, num_frames):
    write_clip(tmp_path / "clip.mp4", num_frames)
    source = read_video(tmp_path / "clip.mp4").frames
    extended = read_video(extend(tmp_path, tmp_path / "clip.mp4"))
    assert extended.num_frames == num_frames + 33
    kept = extended.frames[:num_frames]
    assert numbers(kept) == list(range(num_frames))
    # Inside each field. A step of 8-bit colour difference is up to 1.9 levels of RGB, so half of that, and a little
    # for x264, is rounding; a wrong matrix or range would shift these fields by 5 to 20.
    for rows in (slice(4, 28), slice(36, 52)):
        for columns in (slice(4, 18), slice(26, 40), slice(48, 60)):
            shift = kept[:, rows, columns].float() - source[:, rows, columns].float()
            assert shift.mean((0, 1, 2)).abs().max() < 1.5


def test_a_clip_of_another_rate_continues_at_its_own_speed(tmp_path):
    write_clip(tmp_path / "clip.mp4", 60, frame_rate=30)
    extended = read_video(extend(tmp_path, tmp_path / "clip.mp4"))
    assert extended.frame_rate == 24
    assert extended.num_frames == 48 + 33  # two seconds stay two seconds
    expected = [number * 30 / 24 for number in range(48)]
    assert all(abs(a - b) <= 0.5 for a, b in zip(numbers(extended.frames[:48]), expected, strict=True))


def test_every_frame_of_the_extended_file_comes_at_its_time(tmp_path):
    write_clip(tmp_path / "clip.mp4", 40)
    with av.open(str(extend(tmp_path, tmp_path / "clip.mp4"))) as file:
        times = [frame.pts * frame.time_base for frame in file.decode(video=0)]
    assert times == [Fraction(number, 24) for number in range(73)]


def test_sound_that_is_shorter_than_its_clip_does_no_harm(tmp_path):
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        pictures, sound = file.add_stream("libx264", rate=24), file.add_stream("aac", rate=48000)
        pictures.width, pictures.height, pictures.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, frame in enumerate((colours(40) * 255).byte().numpy()):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts = number
            file.mux(pictures.encode(picture))
        tone = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        tone.sample_rate = 48000
        file.mux(sound.encode(tone))
        file.mux([*pictures.encode(None), *sound.encode(None)])
    with av.open(str(extend(tmp_path, tmp_path / "clip.mp4"))) as file:
        assert file.streams.video[0].frames == 73
        assert float(file.duration / 1e6) == pytest.approx(73 / 24, abs=0.05)


def test_a_resumed_extension_encodes_the_clip_once_and_ends_in_the_same_file(tmp_path):
    write_clip(tmp_path / "clip.mp4", 50)
    options = {"width": WIDTH, "height": HEIGHT, "encoding": Encoding()}
    folder = RunFolder(tmp_path / "run")
    parts = write_lead_in(tmp_path / "clip.mp4", folder, **options)
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in parts]
    assert write_lead_in(tmp_path / "clip.mp4", folder, **options) == parts
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in parts] == before
    assert [read_video(part).num_frames for part in parts] == [33, 17]


def test_another_clip_size_or_fit_makes_other_parts(tmp_path):
    write_clip(tmp_path / "clip.mp4", 33)
    write_clip(tmp_path / "other.mp4", 34)
    folder, encoding = RunFolder(tmp_path / "run"), Encoding()
    made = [
        write_lead_in(tmp_path / clip, folder, width=width, height=64, resize=resize, encoding=encoding)[0]
        for clip, width, resize in (
            ("clip.mp4", 64, "crop"), ("other.mp4", 64, "crop"), ("clip.mp4", 128, "crop"), ("clip.mp4", 128, "pad"),
        )
    ]  # fmt: skip
    assert len(set(made)) == 4


def test_a_streamed_clip_has_the_frames_of_a_read_one(tmp_path):
    write_clip(tmp_path / "clip.mp4", 40, frame_rate=30)
    for rate in (None, 24):
        read = read_video(tmp_path / "clip.mp4", frame_rate=rate).frames
        assert torch.equal(torch.stack(list(stream_video(tmp_path / "clip.mp4", frame_rate=rate))), read)


def test_a_clip_keeps_its_sound_and_silence_follows(tmp_path, caplog):
    wave = torch.zeros(2, 3 * 44100)
    wave[:, 22050:22150] = 0.9
    wave[:, 80000:] = 0.9  # longer than the pictures
    with VideoWriter(
        tmp_path / "clip.mp4", width=WIDTH, height=HEIGHT, sound=waveform_sound(wave, 44100)
    ) as writer:
        writer.write(colours(40))
    caplog.set_level("INFO")
    path = extend(tmp_path, tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        samples = np.concatenate([part.to_ndarray() for part in container.decode(audio=0)], axis=1)[0]
    assert len(samples) / 44100 == pytest.approx(73 / 24, abs=0.05)
    assert abs(int(np.abs(samples[:44100]).argmax()) - 22100) < 300
    assert np.abs(samples[round((40 / 24 + 0.05) * 44100) :]).max() < 0.01
    assert "keeps its sound; the new chunks after it are silent" in caplog.text
