"""Every output format decodes back to what went in, says what it is, and carries its sound in step."""

from fractions import Fraction
from io import BytesIO
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from helios_core.media.audio import file_sound, waveform_sound
from helios_core.media.formats import (
    FORMATS,
    MKV_FFV1,
    MOV_PRORES,
    MP4_H264,
    MP4_HEVC,
    WEBM_VP9,
    MissingEncoderError,
    find_format,
    to_video_frame,
)
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter

torch.set_num_threads(1)

RATE = 24
BUILT_IN = {
    known.encoder: {each.name for each in av.Codec(known.encoder, "w").video_formats} for known in FORMATS.values()
}
ALL = [(known, pixel_format) for known in FORMATS.values() for pixel_format in known.pixel_formats]
WRITABLE = [(known, pixel_format) for known, pixel_format in ALL if pixel_format in BUILT_IN[known.encoder]]
NOT_BUILT_IN = [pair for pair in ALL if pair not in WRITABLE]


def label(value):
    return getattr(value, "name", value)


def photo(num_frames=6, height=64, width=96):
    """A part of a photo that moves by two pixels a frame, floats in [0, 1]."""
    picture = torch.from_numpy(astronaut()).float() / 255
    return torch.stack([picture[40 : 40 + height, 180 + 2 * i : 180 + 2 * i + width] for i in range(num_frames)])


def write(path, frames, **options):
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1], **options) as writer:
        writer.write(frames)
    return path


def stored_planes(path):
    """The samples of the first frame as they lie in the file, a (height, width) array for each plane."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        bits = frame.format.components[0].bits
        dtype = np.uint8 if bits == 8 else np.uint16
        return [np.frombuffer(p, dtype).reshape(p.height, -1)[:, : p.width] for p in frame.planes], bits


def click(at, seconds, rate=44100, channels=2):
    wave = torch.zeros(channels, round(seconds * rate))
    wave[:, round(at * rate) : round(at * rate) + 40] = 0.9
    return waveform_sound(wave, rate)


def heard(path):
    """When it is loudest and how long it is, in seconds of the file's own clock."""
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48000)
        frames = list(container.decode(audio=0))
        parts = [part.to_ndarray()[0] for frame in [*frames, None] for part in resampler.resample(frame)]
    samples = np.concatenate(parts)
    return frames[0].time + np.abs(samples).argmax() / 48000, frames[0].time + len(samples) / 48000


# Pictures


@pytest.mark.parametrize(("known", "pixel_format"), WRITABLE, ids=label)
def test_frames_come_back_in_number_rate_pixel_format_tags_and_likeness(known, pixel_format, tmp_path):
    frames = photo()
    path = write(tmp_path / f"a{known.suffix}", frames, format=known, pixel_format=pixel_format, crf=10)
    clip = read_video(path)
    assert (clip.num_frames, clip.frame_rate) == (6, RATE)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == pixel_format
        rgb = context.format.is_rgb
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 0 if rgb else 1)
        assert context.color_range == (2 if rgb else 1)
    error = ((clip.frames.float() / 255 - frames) ** 2).mean()
    assert -10 * torch.log10(error) > 33


@pytest.mark.parametrize("known", FORMATS.values(), ids=label)
@pytest.mark.parametrize("rate", [8, 29.97, Fraction(24000, 1001)])
def test_any_frame_rate_is_kept(known, rate, tmp_path):
    path = write(tmp_path / f"a{known.suffix}", photo(9, 64, 64), format=known, frame_rate=rate)
    clip = read_video(path)
    assert clip.num_frames == 9
    assert float(clip.frame_rate) == pytest.approx(float(rate), rel=1e-4)


@pytest.mark.parametrize("pixel_format", ["bgr0", "gbrp10le", "gbrp16le"])
def test_ffv1_keeps_every_bit(pixel_format, tmp_path):
    bits = {"bgr0": 8, "gbrp10le": 10, "gbrp16le": 16}[pixel_format]
    levels = np.random.default_rng(0).integers(0, 2**bits, (3, 32, 48, 3))
    frames = torch.from_numpy(levels) / (2**bits - 1)
    path = write(tmp_path / "a.mkv", frames, format=MKV_FFV1, pixel_format=pixel_format)
    with av.open(str(path)) as container:
        decoded = [f.to_ndarray(format="rgb24") if bits == 8 else f.to_ndarray() for f in container.decode(video=0)]
    assert np.array_equal(np.stack(decoded), levels)


@pytest.mark.parametrize(
    ("known", "pixel_format"), [(MP4_H264, "yuv420p10le"), (MOV_PRORES, "auto"), (MKV_FFV1, "gbrp10le")], ids=label
)
def test_a_gradient_in_ten_bits_has_more_than_256_levels(known, pixel_format, tmp_path):
    ramp = torch.linspace(0, 1, 1024).view(1, 1, 1024, 1).expand(1, 16, 1024, 3)
    path = write(tmp_path / f"a{known.suffix}", ramp, format=known, pixel_format=pixel_format, crf=0)
    planes, bits = stored_planes(path)
    assert bits == 10
    assert len(np.unique(planes[0])) > 600


@pytest.mark.parametrize(("pixel_format", "bits"), [("yuv444p10le", 10), ("yuv444p", 8), ("yuv420p10le", 10)])
def test_stored_values_are_those_of_bt709_to_the_nearest_level(pixel_format, bits):
    colours = np.random.default_rng(1).random((64, 3))
    if bits == 8:
        colours = np.rint(colours * 255) / 255
    flat = torch.from_numpy(colours).view(1, 64, 1, 3).expand(4, 64, 2, 3).reshape(4, 128, 3)
    frame = to_video_frame(flat, pixel_format)
    luma = np.frombuffer(frame.planes[0], np.uint8 if bits == 8 else np.uint16).reshape(4, -1)[0, :128:2]
    exact = (16 + 219 * (colours @ [0.2126, 0.7152, 0.0722])) * 2 ** (bits - 8)  # ITU-R BT.709-6, 3.2 and 3.4
    assert np.abs(luma - exact).max() <= 0.5 + 1e-3


def test_a_colour_sample_lies_on_the_left_pixel_of_its_pair():
    # A step of colour between columns 7 and 8 at the same luma: the sample on column 8 sees 7, 8 and 9 as 1 : 2 : 1.
    left, right = torch.tensor([0.5, 0.4, 0.5]), torch.tensor([0.5, 0.4, 0.9])
    picture = torch.stack([left] * 8 + [right] * 8).expand(4, 16, 3)
    whole, half = to_video_frame(picture, "yuv444p10le"), to_video_frame(picture, "yuv420p10le")
    blue = np.frombuffer(whole.planes[1], np.uint16).reshape(4, -1)[0, :16].astype(float)
    sampled = np.frombuffer(half.planes[1], np.uint16).reshape(2, -1)[0, :8]
    padded = np.concatenate([blue[:1], blue])
    expected = (padded[0:16:2] + 2 * padded[1:17:2] + padded[2:18:2]) / 4
    assert np.abs(sampled - expected).max() <= 1


def test_odd_sizes_are_refused_only_where_colour_has_fewer_samples(tmp_path):
    frames = photo(2, 63, 65)
    for pixel_format, message in (("yuv420p", "width 65 .* 2x2 pixels"), ("yuv422p10le", "width 65 .* 2x1 pixels")):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "a.mkv", frames, format=MKV_FFV1, pixel_format=pixel_format)
    assert read_video(write(tmp_path / "a.mkv", frames, format=MKV_FFV1)).frames.shape == (2, 63, 65, 3)
    path = write(tmp_path / "a.mp4", frames, pixel_format="yuv444p")
    assert read_video(path).frames.shape == (2, 63, 65, 3)
    path = write(tmp_path / "b.mkv", photo(2, 63, 64), format=MKV_FFV1, pixel_format="yuv422p10le")
    assert read_video(path).frames.shape == (2, 63, 64, 3)


@pytest.mark.parametrize(("known", "pixel_format"), NOT_BUILT_IN, ids=label)
def test_what_this_ffmpeg_was_built_without_is_named_with_what_to_take(known, pixel_format, tmp_path):
    with pytest.raises(MissingEncoderError, match=f"built without {pixel_format}; it has .* take the format webm"):
        VideoWriter(tmp_path / f"a{known.suffix}", width=64, height=64, format=known, pixel_format=pixel_format)


def test_unknown_names_are_refused_with_those_that_exist(tmp_path):
    with pytest.raises(ValueError, match=r"no format 'avi'; allowed: mp4 \(h264\), webm"):
        find_format("avi")
    with pytest.raises(ValueError, match="no pix_fmt 'rgb24'; allowed: auto, yuv422p10le"):
        VideoWriter(tmp_path / "a.mov", width=64, height=64, format=MOV_PRORES, pixel_format="rgb24")
    with pytest.raises(ValueError, match=r"must end in \.mov"):
        VideoWriter(tmp_path / "a.mp4", width=64, height=64, format=MOV_PRORES)


def test_metadata_is_stored_within_the_part_of_a_webm_that_the_frontend_reads(tmp_path):
    text = '{"nodes": "' + "x" * 300_000 + '"}'
    path = write(tmp_path / "a.webm", torch.rand(30, 64, 64, 3), format=WEBM_VP9, crf=0, metadata={"workflow": text})
    assert text.encode() in path.read_bytes()[: 2 * 1024 * 1024]


# Sound


@pytest.mark.parametrize("known", FORMATS.values(), ids=label)
@pytest.mark.parametrize("rate", [44100, 48000, 22050, 11000])
def test_sound_is_in_step_and_as_long_as_the_video(known, rate, tmp_path):
    path = write(tmp_path / f"a{known.suffix}", photo(36, 64, 64), format=known, sound=click(0.75, 5, rate))
    loudest, length = heard(path)
    assert loudest == pytest.approx(0.75, abs=0.01)
    assert length == pytest.approx(1.5, abs=1 / RATE)


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_that_is_too_short_is_followed_by_silence(channels, tmp_path):
    path = write(tmp_path / "a.mp4", photo(36, 64, 64), sound=click(0.2, 0.3, channels=channels))
    assert heard(path) == (pytest.approx(0.2, abs=0.01), pytest.approx(1.5, abs=1 / RATE))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].channels == channels


@pytest.mark.parametrize(("start", "expected"), [(0.5, 0.25), (-0.4, 1.15)])
def test_the_video_begins_where_it_is_asked_to_in_the_sound(start, expected, tmp_path):
    sound = click(0.75, 5).starting_at(start)
    assert heard(write(tmp_path / "a.mp4", photo(36, 64, 64), sound=sound))[0] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("known", [MP4_H264, WEBM_VP9, MKV_FFV1], ids=label)
def test_the_sound_of_a_file_comes_through_in_step_again_and_again(known, tmp_path):
    path = write(tmp_path / f"a{known.suffix}", photo(36, 64, 64), format=known, sound=click(0.75, 1.5))
    for number in range(3):
        path = write(tmp_path / f"{number}{known.suffix}", photo(36, 64, 64), format=known, sound=file_sound(path))
    assert heard(path)[0] == pytest.approx(0.75, abs=0.01)
    assert file_sound(BytesIO(path.read_bytes())).sample_rate in (44100, 48000)


def test_sound_and_pictures_alternate_in_the_file(tmp_path):
    path = write(tmp_path / "a.mp4", photo(72, 64, 64), sound=click(1, 3))
    with av.open(str(path)) as container:
        kinds = [(packet.pos, packet.stream.type) for packet in container.demux() if packet.size]
    order = [kind for _, kind in sorted(kinds)]
    changes = sum(before != after for before, after in pairwise(order))
    assert changes > 4


def test_a_file_without_sound_has_none_and_wrong_waveforms_are_refused(tmp_path):
    assert file_sound(write(tmp_path / "a.mp4", photo(2, 64, 64))) is None
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        file_sound(tmp_path / "gone.mp4")
    (tmp_path / "words.mp4").write_text("no sound")
    with pytest.raises(ValueError, match=r"words\.mp4 cannot be read"):
        file_sound(tmp_path / "words.mp4")
    with pytest.raises(ValueError, match=r"shape \(0, 100\); expected"):
        waveform_sound(torch.zeros(0, 100), 44100)
    with pytest.raises(ValueError, match="sample_rate is 0"):
        waveform_sound(torch.zeros(1, 100), 0)


def test_frames_too_narrow_for_an_encoder_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="at least 64 pixels in width, and these have 48"):
        VideoWriter(tmp_path / "a.mp4", width=48, height=32, format=MP4_HEVC)
    assert not list(tmp_path.iterdir())
