"""Joining parts: no frame lost, doubled or changed, always the same bytes; and a preview that plays meanwhile."""

import errno
import io
import json
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from helios_core.media.parts import Encoding, GrowingVideo, is_whole, join_parts, write_part
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter

RATES = (24, 24000 / 1001, 29.97, 30, 12.5)


def clip(num_frames, start=0):
    """Frames (T, 32, 48, 3) that slowly brighten, a little textured."""
    texture = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    return texture + torch.linspace(0.1, 0.8, 99)[start : start + num_frames].view(-1, 1, 1, 1)


def write_all(folder, encoding, lengths=(33, 33, 33)):
    paths, start = [], 0
    for number, length in enumerate(lengths):
        paths.append(folder / f"{number}.mp4")
        write_part(paths[-1], clip(length, start), encoding)
        start += length
    return paths


def packets_and_times(path):
    """Coded bytes of all packets in order, and the exact times (s) at which the frames are shown."""
    with av.open(str(path)) as file:
        packets = [bytes(packet) for packet in file.demux(video=0) if packet.size]
    with av.open(str(path)) as file:
        return packets, [frame.pts * frame.time_base for frame in file.decode(video=0)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("lengths", [(33, 33, 33), (33, 1, 12)])
def test_joined_parts_show_every_frame_once_at_its_time(tmp_path, rate, lengths):
    encoding = Encoding(rate)
    parts = write_all(tmp_path, encoding, lengths)
    join_parts(parts, tmp_path / "out.mp4")
    packets, times = packets_and_times(tmp_path / "out.mp4")
    assert packets == [packet for part in parts for packet in packets_and_times(part)[0]]
    assert times == [number / encoding.frame_rate for number in range(sum(lengths))]
    assert read_video(tmp_path / "out.mp4").frame_rate == encoding.frame_rate


@pytest.mark.parametrize("rate", RATES)
def test_the_preview_shows_every_frame_once_at_an_even_pace(tmp_path, rate):
    encoding = Encoding(rate)
    parts = write_all(tmp_path, encoding)
    growing = GrowingVideo(tmp_path / "preview.mp4")
    expected = []
    for number, part in enumerate(parts, start=1):
        growing.append(part)
        packets, times = packets_and_times(tmp_path / "preview.mp4")
        expected += packets_and_times(part)[0]
        assert packets == expected
        assert {b - a for a, b in pairwise(times)} == {1 / encoding.frame_rate}
        assert len(times) == 33 * number


def test_a_torn_preview_plays_up_to_the_tear(tmp_path):
    growing = GrowingVideo(tmp_path / "preview.mp4")
    for part in write_all(tmp_path, Encoding()):
        growing.append(part)
    growing.path.write_bytes(growing.path.read_bytes()[:-40])
    shown = 0
    with av.open(str(growing.path)) as file, pytest.raises(av.error.InvalidDataError):  # noqa: PT012
        for _ in file.decode(video=0):
            shown += 1
    assert shown >= 66


def test_a_failed_append_leaves_the_preview_as_it_was(tmp_path, monkeypatch):
    parts = write_all(tmp_path, Encoding())
    growing = GrowingVideo(tmp_path / "preview.mp4")
    growing.append(parts[0])
    before = growing.path.read_bytes()

    class FullDisk(io.FileIO):
        def write(self, content):
            super().write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path, mode):
        return FullDisk(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(OSError, match="No space left"):
            growing.append(parts[1])
    assert growing.path.read_bytes() == before
    growing.append(parts[1])
    assert read_video(growing.path).num_frames == 66


def test_the_cost_of_the_preview_does_not_grow_with_its_length(tmp_path):
    part = write_all(tmp_path, Encoding(), (33,))[0]
    growing = GrowingVideo(tmp_path / "preview.mp4")
    sizes = [0]
    for _ in range(6):
        growing.append(part)
        sizes.append(growing.path.stat().st_size)
    assert len({after - before for before, after in pairwise(sizes[1:])}) == 1


def test_a_part_depends_on_its_frames_alone(tmp_path):
    """Not even on what was encoded and decoded in between, as it does with x264 left to itself."""
    write_part(tmp_path / "a.mp4", clip(33), Encoding())
    for _ in range(6):
        write_part(tmp_path / "other.mp4", clip(33, 40), Encoding())
        read_video(tmp_path / "other.mp4")
        write_part(tmp_path / "b.mp4", clip(33), Encoding())
        assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_joining_gives_the_same_bytes_and_keeps_the_metadata(tmp_path):
    parts = write_all(tmp_path, Encoding())
    workflow = json.dumps({"text": "déjà vu " * 1000})
    for name in ("a", "b"):
        join_parts(parts, tmp_path / f"{name}.mp4", {"workflow": workflow, "prompt": "{}"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as file:
        assert file.metadata["workflow"] == workflow
        assert "creation_time" not in file.metadata
        context = file.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace, context.color_range) == (1, 1, 1, 1)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_no_part_brings_a_jump_of_colour(tmp_path):
    """A flat grey that stays the same over three parts: measured at both joins."""
    grey = torch.full((33, 32, 48, 3), 0.5)
    paths = []
    for number in range(3):
        paths.append(tmp_path / f"{number}.mp4")
        write_part(paths[-1], grey, Encoding())
    join_parts(paths, tmp_path / "out.mp4")
    frames = read_video(tmp_path / "out.mp4").frames.float()
    assert np.ptp(frames.mean((1, 2, 3)).numpy()) == 0
    assert (frames - 127.5).abs().max() <= 1.5


def test_the_join_is_as_good_as_encoding_in_one_piece(tmp_path):
    """PSNR against the frames themselves; a join must not cost more than half a decibel at the cut."""
    parts = write_all(tmp_path, Encoding())
    join_parts(parts, tmp_path / "joined.mp4")
    with VideoWriter(tmp_path / "one.mp4", width=48, height=32) as writer:
        writer.write(clip(99))

    def psnr(path, frames):
        error = read_video(path).frames[frames].float() / 255 - clip(99)[frames].clamp(0, 1)
        return -10 * error.square().mean().log10()

    cut = slice(31, 35)
    assert psnr(tmp_path / "joined.mp4", cut) > psnr(tmp_path / "one.mp4", cut) - 0.5


def flipped(content, place):
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_any_damage_to_a_part_is_noticed(tmp_path):
    path = write_all(tmp_path, Encoding(), (33,))[0]
    content = path.read_bytes()
    assert is_whole(path)
    for damaged in (b"", content[:10], content[:-1], flipped(content, 300), content + b"\0"):
        path.write_bytes(damaged)
        assert not is_whole(path)
    path.unlink()
    assert not is_whole(path)


def test_parts_of_different_sizes_are_not_joined(tmp_path):
    write_part(tmp_path / "a.mp4", torch.rand(3, 32, 48, 3), Encoding())
    write_part(tmp_path / "b.mp4", torch.rand(3, 64, 64, 3), Encoding())
    with pytest.raises(ValueError, match=r"b.mp4 was encoded with other settings than a.mp4"):
        join_parts([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(ValueError, match="no parts to join"):
        join_parts([], tmp_path / "out.mp4")


def test_encodings_that_give_other_bytes_have_other_fingerprints():
    encodings = [Encoding(), Encoding(25), Encoding(crf=20)]
    assert len({encoding.fingerprint for encoding in encodings}) == 3
    assert Encoding(24.0).fingerprint == Encoding(Fraction(24)).fingerprint
    with pytest.raises(ValueError, match="frame_rate 0"):
        Encoding(0)
