"""Sound and pictures as they come from other programs: many channels, damage, HDR, streams read by two, odd sizes."""

from io import BytesIO

import av
import numpy as np
import pytest
import torch

from helios_core.media.audio import Sound, file_sound, waveform_sound
from helios_core.media.formats import MP4_H264, storable_size
from helios_core.media.frames import extend_edges
from helios_core.media.reader import hdr_kind, read_video
from helios_core.media.writer import VideoWriter

RATE = 8000
FRAMES = torch.rand(24, 32, 48, 3, generator=torch.Generator().manual_seed(0))


def tones(num_channels: int) -> torch.Tensor:
    """Two and a bit seconds, another tone in each channel."""
    time = torch.arange(2 * RATE + 345) / RATE
    return torch.stack([0.3 * torch.sin(2 * torch.pi * 100 * (channel + 1) * time) for channel in range(num_channels)])


def write_flac(path, wave: torch.Tensor, layout: str):
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE)
        stream.layout = layout
        stream.format = "s32"
        samples = (wave.T.double() * (2**31 - 1)).round().to(torch.int32).contiguous().numpy().reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s32", layout=layout)
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def samples_of(sound: Sound) -> np.ndarray:
    return np.concatenate(list(sound.open()), axis=1)


@pytest.mark.parametrize(("num_channels", "layout"), [(4, "4.0"), (5, "5.0"), (6, "5.1"), (8, "7.1")])
def test_a_waveform_of_many_channels_is_mixed_as_a_file_of_so_many_is(tmp_path, num_channels, layout):
    wave = tones(num_channels)
    write_flac(tmp_path / "a.flac", wave, layout)
    from_file, from_wave = (samples_of(s) for s in (file_sound(tmp_path / "a.flac"), waveform_sound(wave, RATE)))
    assert from_wave.shape == from_file.shape == (2, wave.shape[1])
    assert np.abs(from_wave - from_file).max() < 1e-4  # 24 bits of flac
    assert np.abs(from_wave).max() > 0.1


@pytest.mark.parametrize("num_channels", [1, 2, 3, 7, 9, 16])
def test_every_number_of_channels_gives_a_film_of_full_length_with_sound(tmp_path, num_channels):
    sound = waveform_sound(tones(num_channels), RATE)
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32, sound=sound) as writer:
        writer.write(FRAMES)
    heard = samples_of(file_sound(tmp_path / "a.mp4"))
    assert abs(heard.shape[1] / file_sound(tmp_path / "a.mp4").sample_rate - 1) < 0.1
    assert np.abs(heard).max() > 0.05


def test_nan_and_infinity_in_a_waveform_are_silence_and_full_scale():
    wave = torch.tensor([[0.5, torch.nan, torch.inf, -torch.inf]])
    assert samples_of(waveform_sound(wave, RATE)).tolist() == [[0.5, 0, 1, -1]]


def test_sound_that_breaks_off_damaged_is_followed_by_silence_with_a_warning(tmp_path, caplog):
    def broken():
        yield np.full((1, RATE // 4), 0.5, np.float32)
        raise ValueError("the sound of a.mp3 is damaged")

    with VideoWriter(tmp_path / "a.mp4", width=48, height=32, sound=Sound(broken, RATE, 1)) as writer:
        writer.write(FRAMES)
    assert read_video(tmp_path / "a.mp4").num_frames == 24
    assert "a.mp3 is damaged; the rest of the video is silent" in caplog.text
    heard = samples_of(file_sound(tmp_path / "a.mp4"))
    assert np.abs(heard[:, heard.shape[1] // 2 :]).max() < 0.02


def test_two_readers_of_one_stream_in_memory_do_not_disturb_each_other(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32, sound=waveform_sound(tones(2), RATE)) as writer:
        writer.write(FRAMES.repeat(4, 1, 1, 1))
    alone = samples_of(file_sound(tmp_path / "a.mp4"))
    stream = BytesIO((tmp_path / "a.mp4").read_bytes())
    sound = file_sound(stream)
    first, second = sound.open(), sound.open()
    parts = [[], []]
    for one, other in zip(first, second, strict=True):
        parts[0].append(one)
        parts[1].append(other)
        assert read_video(stream, last_frames=1).num_frames == 96
    assert all(np.array_equal(np.concatenate(own, axis=1), alone) for own in parts)


@pytest.mark.parametrize(
    ("transfer", "primaries", "kind"),
    [(16, 9, "HDR (PQ)"), (18, 9, "HDR (HLG)"), (1, 9, "wide colour (BT.2020)"), (1, 1, None), (2, 2, None)],
)
def test_hdr_video_is_recognised_and_warned_of(tmp_path, caplog, transfer, primaries, kind):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, primaries
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(48, 32, "yuv420p10le")))
        container.mux(stream.encode(None))
    assert hdr_kind(path) == kind
    read_video(path)
    assert ("without tone mapping" in caplog.text) == (kind is not None)


def test_what_is_no_video_is_no_hdr_video(tmp_path):
    (tmp_path / "a.mp4").write_text("words")
    assert hdr_kind(tmp_path / "a.mp4") is None
    assert hdr_kind(tmp_path / "gone.mp4") is None


@pytest.mark.parametrize(("size", "stored"), [((47, 31), (48, 32)), ((48, 31), (48, 32)), ((48, 32), (48, 32))])
def test_frames_of_odd_size_are_stored_with_their_last_pixels_repeated(tmp_path, size, stored):
    frames = FRAMES[:, : size[1], : size[0]]
    assert storable_size("yuv420p", *size) == stored
    padded = extend_edges(frames, *stored)
    assert torch.equal(padded[:, : size[1], : size[0]], frames)
    assert torch.equal(padded[:, -1], padded[:, size[1] - 1])
    assert torch.equal(padded[:, :, -1], padded[:, :, size[0] - 1])
    with VideoWriter(tmp_path / "a.mp4", width=stored[0], height=stored[1], format=MP4_H264) as writer:
        writer.write(padded)
