"""A film made of pieces: what is in it, what is made again and what is not, and what kills it."""

import errno
import os
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from helios_core.cli import main
from helios_core.finish.film import Finisher
from helios_core.finish.pieces import PieceFolder, remove_old_pieces
from helios_core.finish.source import file_source, frames_source
from helios_core.media.formats import FORMATS, MKV_FFV1, MOV_PRORES, eight_bits
from helios_core.media.reader import read_video, video_facts
from helios_core.media.writer import VideoWriter
from helios_core.run.run_folder import RunFolder, list_runs, remove_run
from tests import finishing
from tests.finishing import PIECE, RATE, Doubling, Mixing, clip, finish, recipe, source

NUM_MOMENTS = 10


def label(known):
    return known.name


def pieces_in(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "pieces").iterdir()}


def decoded_sound(path):
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=44100)
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate([part.to_ndarray() for part in parts + resampler.resample(None)], axis=1)


# What is in it


def test_a_lossless_film_has_every_frame_of_the_steps_in_a_row(tmp_path):
    frames = clip(10)
    made = finish(
        frames_source(frames, RATE), recipe(format=MKV_FFV1, grain=0.0), tmp_path / "run", tmp_path / "out.mkv"
    )
    smooth = torch.stack([(frames[k // 2] + frames[(k + 1) // 2]) / 2 for k in range(19)])
    expected = eight_bits(smooth.repeat_interleave(2, 1).repeat_interleave(2, 2))
    written = read_video(made.path)
    assert (written.frame_rate, made.num_frames, len(written.frames)) == (48, 20, 20)
    assert torch.equal(written.frames[:19], expected)
    assert torch.equal(written.frames[19], expected[18])


@pytest.mark.parametrize("known", FORMATS.values(), ids=label)
def test_in_every_format_frames_come_at_an_even_pace_with_sound_to_the_end(known, tmp_path):
    made = finish(source(11), recipe(format=known), tmp_path / "run", tmp_path / f"out{known.suffix}")
    facts = video_facts(made.path)
    assert (facts.frame_rate, facts.constant) == (48, True)
    with av.open(str(made.path)) as container:
        stream = container.streams.video[0]
        times = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
    np.testing.assert_allclose(times, np.arange(22) / 48, atol=6e-4)
    samples = decoded_sound(made.path)
    assert samples.shape[1] / 44100 == pytest.approx(11 / RATE, abs=0.03)


@pytest.mark.parametrize("known", FORMATS.values(), ids=label)
def test_a_joined_film_has_the_frames_of_its_pieces(known, tmp_path):
    made = finish(source(), recipe(format=known), tmp_path / "run", tmp_path / f"out{known.suffix}")
    parts = [read_video(path).frames for path in sorted((tmp_path / "run" / "pieces").iterdir())]
    assert torch.equal(read_video(made.path).frames, torch.cat(parts))


@pytest.mark.parametrize("known", FORMATS.values(), ids=label)
def test_equal_videos_give_equal_bytes(known, tmp_path):
    films = [
        finish(source(), recipe(format=known), tmp_path / name, tmp_path / f"{name}{known.suffix}") for name in "ab"
    ]
    assert films[0].path.read_bytes() == films[1].path.read_bytes()


def test_sound_stays_in_step_when_frames_are_added(tmp_path):
    given = source(48)
    made = finish(given, recipe(format=MOV_PRORES, width=16), tmp_path / "run", tmp_path / "out.mov")
    expected = np.concatenate(list(given.sound.open()), axis=1)
    written = decoded_sound(made.path)
    np.testing.assert_allclose(written, expected[:, : written.shape[1]], atol=1e-4)
    assert written.shape == expected.shape


def test_odd_television_rates_are_kept(tmp_path):
    given = frames_source(clip(9), Fraction(24000, 1001))
    made = finish(given, recipe(), tmp_path / "run", tmp_path / "out.mp4")
    assert video_facts(made.path).frame_rate == Fraction(48000, 1001)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({}, (64, 48)),
        ({"upscaler": None}, (32, 24)),
        ({"upscaler": None, "scale": 1.6}, (52, 38)),
        ({"width": 80}, (80, 60)),
        ({"height": 100}, (134, 100)),
        ({"width": 50, "height": 60}, (50, 60)),
    ],
)
def test_sizes_follow_the_shape_of_the_picture_and_are_even(values, size, tmp_path):
    made = finish(source(), recipe(**values), tmp_path / "run", tmp_path / "out.mp4")
    assert (made.width, made.height) == size
    assert read_video(made.path).frames.shape[1:3] == (size[1], size[0])


# What is made again


def test_the_same_film_again_makes_nothing(tmp_path):
    first = finish(source(), recipe(), tmp_path / "run", tmp_path / "a.mp4")
    before = pieces_in(tmp_path / "run")
    again = finish(source(), recipe(), tmp_path / "run", tmp_path / "b.mp4")
    assert (first.num_made, again.num_made) == (20, 0)
    assert pieces_in(tmp_path / "run") == before
    assert first.path.read_bytes() == again.path.read_bytes()


def test_a_longer_version_makes_only_what_is_new_and_gives_the_bytes_of_a_fresh_run(tmp_path):
    finish(source(2 * PIECE), recipe(), tmp_path / "run", tmp_path / "short.mp4")
    before = pieces_in(tmp_path / "run")
    longer = finish(source(4 * PIECE), recipe(), tmp_path / "run", tmp_path / "long.mp4")
    fresh = finish(source(4 * PIECE), recipe(), tmp_path / "fresh", tmp_path / "fresh.mp4")
    assert before.items() <= pieces_in(tmp_path / "run").items()
    # The last frame was held once in the short version; now something lies between it and the next.
    assert longer.num_made == 2 * (2 * PIECE) + 1
    assert longer.path.read_bytes() == fresh.path.read_bytes()


@pytest.mark.parametrize(
    "values",
    [
        {"crf": 20}, {"sharpness": 0.5}, {"grain": 0.02}, {"grain_seed": 1}, {"width": 40}, {"factor": 3},
        {"cut_threshold": 0.2}, {"upscaler": None}, {"fit": "pad"}, {"pixel_format": "yuv444p"},
        {"frame_rate": 30, "factor": 1},
    ],
    ids=str,
)  # fmt: skip
def test_every_setting_makes_pieces_of_its_own(values, tmp_path):
    given = source(PIECE)
    names = []
    for wanted in (recipe(), recipe(**values)):
        finisher = Finisher(given, wanted)
        names.append({piece.name for piece in finisher.plan()})
    assert not names[0] & names[1]


def test_a_changed_frame_is_made_again_with_what_depends_on_it(tmp_path):
    finish(source(4 * PIECE), recipe(), tmp_path / "run", tmp_path / "a.mp4")
    frames = clip(4 * PIECE)
    frames[2 * PIECE - 1] = 0.5  # the last of the second piece
    made = finish(frames_source(frames, RATE), recipe(), tmp_path / "run", tmp_path / "b.mp4")
    assert made.num_made == 2 * (2 * PIECE)


def test_a_damaged_piece_is_made_again(tmp_path):
    first = finish(source(), recipe(), tmp_path / "run", tmp_path / "a.mp4")
    piece = sorted((tmp_path / "run" / "pieces").iterdir())[1]
    content = bytearray(piece.read_bytes())
    content[len(content) // 2] ^= 1
    piece.write_bytes(content)
    again = finish(source(), recipe(), tmp_path / "run", tmp_path / "b.mp4")
    assert again.num_made == 2 * PIECE
    assert first.path.read_bytes() == again.path.read_bytes()


# What ends it


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The bytes of a film that nothing disturbed, and how many disk calls it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert finishing.in_child(finishing.finish_and_die, folder / "run", folder / "out.mp4", -1) == 0
    return (folder / "out.mp4").read_bytes(), int((folder / "calls").read_text())


@pytest.mark.skipif(os.name != "posix", reason="kills processes by POSIX signals")
@pytest.mark.parametrize("moment", range(NUM_MOMENTS))
def test_killed_anywhere_it_ends_in_the_same_bytes_and_makes_no_finished_piece_again(moment, unbroken, tmp_path):
    content, num_calls = unbroken
    call = (2 * moment + 1) * num_calls // (2 * NUM_MOMENTS)
    assert finishing.in_child(finishing.finish_and_die, tmp_path / "run", tmp_path / "out.mp4", call) == -9
    folder = RunFolder(tmp_path / "run")
    noted = {record["name"] for record in folder.journal() if record["record"] == "piece"}
    before = {name: time for name, time in pieces_in(tmp_path / "run").items() if name in noted} if noted else {}
    finish(source(), recipe(), tmp_path / "run", tmp_path / "out.mp4")
    assert before.items() <= pieces_in(tmp_path / "run").items()
    assert (tmp_path / "out.mp4").read_bytes() == content
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name and path.parent.name == "pieces"]


def test_what_cancels_keeps_the_finished_pieces(tmp_path):
    class Cancelled(Exception):
        pass

    def cancel(done, total):
        if done == 2 * PIECE + 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        finish(source(), recipe(), tmp_path / "run", tmp_path / "out.mp4", progress=cancel)
    assert not (tmp_path / "out.mp4").exists()
    assert len(pieces_in(tmp_path / "run")) == 1
    assert finish(source(), recipe(), tmp_path / "run", tmp_path / "out.mp4").num_made == 20 - (2 * PIECE - 1)


def test_a_disk_that_is_too_small_is_refused_with_the_numbers_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    with pytest.raises(OSError, match=r"finishing needs about 0\.0 MB for pieces and .* 0\.0 MB are free") as fault:
        finish(source(), recipe(), tmp_path / "run", tmp_path / "out.mp4")
    assert fault.value.errno == errno.ENOSPC
    assert not pieces_in(tmp_path / "run")


def test_a_disk_that_gets_full_keeps_the_finished_pieces(tmp_path, monkeypatch):
    make = PieceFolder.make

    def full_at_the_second(self, name, write):
        if list(self.path.iterdir()):
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(self, name, write)

    with monkeypatch.context() as patch:
        patch.setattr(PieceFolder, "make", full_at_the_second)
        with pytest.raises(OSError, match="No space left"):
            finish(source(), recipe(), tmp_path / "run", tmp_path / "out.mp4")
    assert len(pieces_in(tmp_path / "run")) == 1
    assert finish(source(), recipe(), tmp_path / "run", tmp_path / "out.mp4").num_made < 20


# Bad input


def test_a_video_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no frames"):
        finish(frames_source(torch.zeros(0, 8, 8, 3), RATE), recipe(), tmp_path / "run", tmp_path / "out.mp4")


def test_transparency_is_left_out_with_a_word(tmp_path):
    said = []
    frames = torch.cat((clip(5), torch.zeros(5, 24, 32, 1)), dim=-1)
    finish(frames_source(frames, RATE), recipe(), tmp_path / "run", tmp_path / "out.mp4", said=said)
    assert "the frames have transparency, which is left out" in said


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused_with_what_to_do(transfer, name, tmp_path):
    with av.open(str(tmp_path / "hdr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p10le"
        stream.codec_context.color_trc = transfer
        frame = av.VideoFrame(32, 32, "yuv420p10le")
        for _ in range(3):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=rf"hdr.mp4 is HDR \({name}\).*Convert it first"):
        file_source(tmp_path / "hdr.mp4")


def test_a_variable_frame_rate_is_evened_out_with_a_word(tmp_path):
    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 240)
        for time in (0, 10, 20, 60, 70, 80, 110, 120):
            frame = av.VideoFrame(32, 32, "yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 240)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    said = []
    given = file_source(tmp_path / "phone.mp4")
    finish(given, recipe(upscaler=None), tmp_path / "run", tmp_path / "out.mp4", said=said)
    assert any("variable frame rate" in sentence for sentence in said)


def test_a_file_that_is_damaged_in_the_middle_is_refused_before_anything_is_made(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", width=64, height=64, crf=30) as writer:
        writer.write(torch.rand(40, 64, 64, 3))
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20000] = bytes(20000)
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged after frame"):
        finish(file_source(tmp_path / "clip.mp4"), recipe(), tmp_path / "run", tmp_path / "out.mp4")
    assert not (tmp_path / "run" / "pieces").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolator": None}, "24 frames per second become 48 only with a model"),
        ({"width": 33, "height": 20}, "width 33 cannot be written"),
        ({"width": -2}, "width is -2; allowed: 0 to 16384"),
        ({"fit": "squeeze"}, "fit is 'squeeze'; allowed: crop, pad, stretch"),
        ({"scale": 2, "height": 20}, "are both set"),
        ({"frame_rate": 50}, "the frame rate is set twice"),
        ({"frame_rate": float("nan"), "factor": 1}, "frame_rate is nan"),
        ({"crf": 99}, "crf 99 is out of range"),
        ({"pixel_format": "rgb8"}, "no pix_fmt 'rgb8'"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Finisher(source(), recipe(**values)).size()


# On disk


def test_runs_lists_and_removes_finished_pieces(tmp_path, capsys):
    finish(source(), recipe(), tmp_path / "film", tmp_path / "a.mp4")
    (run,) = list_runs(tmp_path)
    assert (run.name, run.num_pieces) == ("film", 4)
    assert main(["runs", str(tmp_path)]) == 0
    assert "film: 0 takes, 0 chunks, 4 finished pieces" in capsys.readouterr().out
    remove_run(tmp_path, "film")
    assert not (tmp_path / "film").exists()


def test_old_pieces_are_removed_and_the_latest_film_keeps_its_own(tmp_path):
    finish(source(), recipe(crf=30), tmp_path / "film", tmp_path / "a.mp4")
    old = pieces_in(tmp_path / "film")
    finish(source(), recipe(), tmp_path / "film", tmp_path / "b.mp4")
    assert main(["runs", str(tmp_path), "--remove-old-pieces", "film"]) == 0
    assert len(pieces_in(tmp_path / "film")) == len(old)
    assert not set(pieces_in(tmp_path / "film")) & set(old)
    assert finish(source(), recipe(), tmp_path / "film", tmp_path / "c.mp4").num_made == 0
    with pytest.raises(ValueError, match="no film was finished"):
        remove_old_pieces(RunFolder(tmp_path / "nothing"))


def test_only_the_frames_around_a_pair_are_held(tmp_path):
    """Frames are asked for when they are needed, and let go."""
    alive = [0, 0]

    def frames(first):
        import weakref

        for frame in clip(60)[first:]:
            counted = frame.clone()
            alive[0] += 1
            alive[1] = max(alive)
            weakref.finalize(counted, lambda: alive.__setitem__(0, alive[0] - 1))
            yield counted

    given = frames_source(clip(1), RATE)
    given = type(given)("the video", given.frame_rate, frames, 60)
    finish(given, recipe(interpolator=Mixing(), upscaler=Doubling()), tmp_path / "run", tmp_path / "out.mp4")
    assert alive[1] <= 6
