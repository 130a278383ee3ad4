"""Pieces cut from a video, and the whole that they make again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_core.finish.cutting import Joining, cut_video, piece_frames, piece_sound
from helios_core.finish.pieces import PieceFolder
from helios_core.finish.source import file_source, frames_source
from helios_core.media.formats import MKV_FFV1, eight_bits
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter
from helios_core.run.run_folder import RunFolder
from tests.finishing import RATE, clip, source


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 5), st.integers(0, 10))
def test_own_frames_of_all_pieces_are_the_video_and_the_overlap_is_the_neighbours(num_frames, length, overlap, start):
    frames = torch.arange(num_frames).reshape(-1, 1, 1, 1).expand(-1, 1, 1, 3) / 100
    given_video = frames_source(frames, RATE)
    if start >= num_frames:
        with pytest.raises(ValueError, match="nothing is left from frame"):
            cut_video(given_video, "id", 0, length, overlap, start)
        return
    own, number = [], 0
    while True:
        cut = cut_video(given_video, "id", number, length, overlap, start)
        piece = piece_frames(given_video, cut)
        begin = max(0, start + number * length - overlap)
        assert torch.equal(piece, frames[begin : min(num_frames, start + (number + 1) * length + overlap)])
        own.append(piece[cut.before : len(piece) - cut.after])
        number += 1
        if number == cut.num_pieces:
            break
    assert torch.equal(torch.cat(own), frames[start:])
    with pytest.raises(ValueError, match=f"there is no piece {number}: .* are pieces 0 to {number - 1}"):
        cut_video(given_video, "id", number, length, overlap, start)


def test_pieces_of_a_file_are_its_frames(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", width=32, height=24) as writer:
        writer.write(clip(20))
    whole = read_video(tmp_path / "clip.mp4").frames
    given_video = file_source(tmp_path / "clip.mp4")
    for number in range(3):
        cut = cut_video(given_video, "id", number, 8, 2)
        assert torch.equal(eight_bits(piece_frames(given_video, cut)), whole[max(0, 8 * number - 2) : 8 * number + 10])


def test_the_sound_of_pieces_in_a_row_is_the_sound(tmp_path):
    given_video = source(20)
    whole = np.concatenate(list(given_video.sound.open()), axis=1)
    parts = [piece_sound(given_video.sound, cut_video(given_video, "id", number, 6, 0)) for number in range(4)]
    joined = torch.cat(parts, dim=1).numpy()
    np.testing.assert_array_equal(joined[:, : whole.shape[1]], whole[:, : joined.shape[1]])


def test_pieces_may_come_back_in_any_order_and_twice(tmp_path):
    frames = clip(20)
    given_video, folder = frames_source(frames, RATE), PieceFolder(RunFolder(tmp_path / "run"))
    for number, missing in ((2, [0, 1]), (0, [1]), (2, [1]), (1, [])):
        cut = cut_video(given_video, "id", number, 8, 3)
        joining = Joining(cut, 32, 24, MKV_FFV1, "auto", 0)
        with folder.locked():
            joining.save(piece_frames(given_video, cut), folder)
            assert joining.missing(folder) == missing
    parts = [read_video(folder.path / joining.name(number)).frames for number in range(3)]
    assert torch.equal(torch.cat(parts), eight_bits(frames))


def test_a_piece_with_another_number_of_images_is_refused(tmp_path):
    given_video, folder = source(20), PieceFolder(RunFolder(tmp_path / "run"))
    cut = cut_video(given_video, "id", 1, 8, 3)
    with folder.locked(), pytest.raises(ValueError, match="27 images came back for piece 1, which had 14"):
        Joining(cut, 32, 24, MKV_FFV1, "auto", 0).save(torch.rand(27, 24, 32, 3), folder)


def test_pieces_of_another_plan_are_not_mixed_in(tmp_path):
    given_video = source(20)
    cuts = [
        cut_video(given_video, "one", 0, 8, 0),
        cut_video(given_video, "other", 0, 8, 0),
        cut_video(given_video, "one", 0, 8, 1),
        cut_video(given_video, "one", 0, 7, 0),
    ]
    names = {Joining(cut, 32, 24, MKV_FFV1, "auto", 0).name(1) for cut in cuts}
    assert len(names) == len(cuts)
