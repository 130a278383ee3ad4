"""Files on systems that are not kind: other programs hold them, disks refuse to flush, names that cannot be."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helios_core import faults, files
from helios_core.files import check_file_name, check_new_file, remove_unfinished, written_atomically
from helios_core.media.parts import Encoding, GrowingVideo, write_part
from helios_core.media.reader import read_video
from helios_core.media.writer import VideoWriter
from tests import runs

WRITE_AND_DIE = """
import os, sys, torch
from pathlib import Path
from helios_core.media.writer import VideoWriter
writer = VideoWriter(Path(sys.argv[1]), width=48, height=32)
writer.__enter__().write(torch.rand(9, 32, 48, 3))
os._exit(9)
"""


def noise_frames(num_frames: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(num_frames, height, width, 3, generator=torch.Generator().manual_seed(0))


class Held:
    """Windows, as far as it matters: whoever has one of these files open keeps others from moving or removing it."""

    def __init__(self, monkeypatch, name: str, times: float):
        self.name, self.times, self.refused = name, times, 0
        monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
        for owner, act in ((os, "replace"), (Path, "unlink"), (Path, "open")):
            monkeypatch.setattr(owner, act, self.watch(getattr(owner, act)))

    def watch(self, act):
        def watched(*values, **options):
            writes = act.__name__ != "open" or "a" in (values[1:] or ("r",))[0]
            paths = [Path(value) for value in values if isinstance(value, str | Path)]
            if writes and any(path.name == self.name and path.exists() for path in paths) and self.refused < self.times:
                self.refused += 1
                raise PermissionError(errno.EACCES, "The process cannot access the file", self.name)
            return act(*values, **options)

        return watched


def put(path: Path, content: bytes) -> None:
    with written_atomically(path) as unfinished:
        unfinished.write_bytes(content)


def test_a_file_that_a_scanner_holds_for_a_moment_is_replaced_after_it(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    put(path, b"before")
    held = Held(monkeypatch, "a.json", times=3)
    put(path, b"after")
    assert held.refused == 3
    assert path.read_bytes() == b"after"


def test_a_film_whose_place_stays_taken_is_kept_beside_it_under_a_name_that_is_reported(tmp_path, monkeypatch):
    frames = noise_frames(5, 32, 48)
    path = tmp_path / "film.mp4"
    path.write_bytes(b"the one before, open in a player")
    Held(monkeypatch, "film.mp4", times=float("inf"))
    with (
        pytest.raises(OSError, match=r"kept beside it as film\.\w+\.mp4") as told,
        VideoWriter(path, width=48, height=32) as writer,
    ):
        writer.write(frames)
    (kept,) = [file for file in tmp_path.iterdir() if file != path]
    assert kept.name in str(told.value)
    assert read_video(kept).num_frames == 5


def test_a_preview_that_is_open_in_a_player_is_left_and_the_run_is_finished(tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "preview.mp4").write_bytes(b"an older one, still playing")
    Held(monkeypatch, "preview.mp4", times=float("inf"))
    runs.make(runs.video(num_chunks=2), run, tmp_path / "out.mp4")
    assert read_video(tmp_path / "out.mp4").num_frames == 2 * 33
    assert "preview.mp4" in caplog.text
    assert (run / "preview.mp4").read_bytes() == b"an older one, still playing"


def test_a_preview_that_a_player_opens_in_mid_run_stops_growing_with_a_warning(tmp_path, monkeypatch, caplog):
    part = tmp_path / "part.mp4"
    write_part(part, noise_frames(33, 32, 48), Encoding())
    growing = GrowingVideo(tmp_path / "preview.mp4")
    growing.append(part)
    before = (tmp_path / "preview.mp4").read_bytes()
    held = Held(monkeypatch, "preview.mp4", times=float("inf"))
    growing.append(part)
    asked = held.refused
    growing.append(part)
    assert held.refused == asked, "it is tried once, not for every chunk"
    assert "grows no further" in caplog.text
    assert (tmp_path / "preview.mp4").read_bytes() == before


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_refuses_to_flush_takes_files_all_the_same(tmp_path, monkeypatch, code):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    runs.make(runs.video(num_chunks=1), tmp_path / "run", tmp_path / "out.mp4")
    assert read_video(tmp_path / "out.mp4").num_frames == 33


def test_a_disk_that_fails_to_flush_is_reported(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        put(tmp_path / "a", b"")


def test_what_a_killed_writer_left_is_removed_by_the_next_and_what_another_is_writing_is_not(tmp_path):
    path = tmp_path / "a.mp4"

    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", WRITE_AND_DIE, path], cwd=root, check=False).returncode == 9
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".a.")
    with VideoWriter(path, width=48, height=32) as writer:
        assert not leftover.exists()
        remove_unfinished(tmp_path)
        writer.write(noise_frames(2, 32, 48))
    assert read_video(path).num_frames == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_finished_video_is_flushed_to_the_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    with VideoWriter(tmp_path / "a.mp4", width=48, height=32) as writer:
        writer.write(noise_frames(2, 32, 48))
    assert [Path(name).suffix for name in flushed] == [".mp4", ""]


BAD_NAMES = ["12:30.mp4", "a?.mp4", "CON", "con.mp4", "lpt1.txt", "film.", "film ", "..", "a\x00b", "a\tb", "风" * 100]
GOOD_NAMES = ["film.mp4", "风" * 60, "console.mp4", "COM10", "a b-c_d.e", ".hidden", "100%", "ä" * 127]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_some_system_cannot_take_are_refused_in_one_sentence(name):
    with pytest.raises(ValueError, match=r"^the name") as told:
        check_file_name(name)
    assert len(str(told.value)) < 250


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_every_system_takes_are_taken(name, tmp_path):
    check_file_name(name)
    (tmp_path / name).touch()


def test_a_name_with_room_to_grow_can_be_written_in_full(tmp_path):
    longest = "a" * (255 - files.UNFINISHED_BYTES - len(".mp4"))
    check_new_file(tmp_path / f"{longest}.mp4")
    put(tmp_path / f"{longest}.mp4", b"")
    with pytest.raises(ValueError, match="bytes"):
        check_new_file(tmp_path / f"{longest}a.mp4")


def test_a_colon_in_a_path_is_part_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("12:30").mkdir()
    for path in (Path("12:30/a.mp4"), Path("1:2.mp4")):
        with VideoWriter(path, width=48, height=32) as writer:
            writer.write(noise_frames(2, 32, 48))
        assert read_video(path).num_frames == 2


def test_notes_are_kept_on_a_python_without_add_note():
    class Old(Exception):
        @property
        def add_note(self):
            raise AttributeError("add_note")

    fault = Old("first")
    faults.add_note(fault, "second")
    faults.add_note(fault, "third")
    assert faults.in_words(fault) == "first\nsecond\nthird"
