"""Whatever kills a run, making it again ends in the identical file, and no finished chunk is made twice."""

import errno
import os
import shutil
import signal
import subprocess
import time

import pytest

from helios_core.media.reader import read_video
from helios_core.run.disk import estimate_disk_use
from helios_core.run.run_folder import RunFolder, RunFolderBusyError
from helios_core.sampling.hooks import Hooks
from tests import runs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes by POSIX signals")

NUM_MOMENTS = 8
NUM_DISK_MOMENTS = 26


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The finished file of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("unbroken")
    runs.make(runs.video(), folder / "run", folder / "out.mp4")
    return (folder / "out.mp4").read_bytes()


@pytest.fixture(scope="module")
def num_calls(tmp_path_factory):
    """How many calls a whole run takes: {only disk calls?: number}."""
    counted = {}
    for only_disk_calls in (False, True):
        folder = tmp_path_factory.mktemp("counted")
        assert runs.in_child(runs.make_and_die, folder / "run", folder / "out.mp4", -1, only_disk_calls) == 0
        counted[only_disk_calls] = int((folder / "calls").read_text())
    return counted


def finished_chunks(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "chunks").glob("[0-9]*.safetensors")}


def assert_resumes(tmp_path, unbroken):
    """Make the video again in the same folder: same bytes, and what was finished is found, not made."""
    before = finished_chunks(tmp_path / "run")
    done = runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    assert sum(event.reused for event in done) == len(before)
    assert before.items() <= finished_chunks(tmp_path / "run").items()
    assert (tmp_path / "out.mp4").read_bytes() == unbroken
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]


def assert_killed_run_resumes(tmp_path, num_calls, unbroken, share, only_disk_calls):
    moment = int(share * num_calls[only_disk_calls])
    code = runs.in_child(runs.make_and_die, tmp_path / "run", tmp_path / "out.mp4", moment, only_disk_calls)
    # Threads take turns a little differently each time, so the very last moments may come after the end.
    assert code == -signal.SIGKILL or share > 0.95
    assert_resumes(tmp_path, unbroken)


@pytest.mark.parametrize("share", [(i + 0.5) / NUM_MOMENTS for i in range(NUM_MOMENTS)], ids="{:.3f}".format)
def test_a_run_killed_at_any_moment_resumes_to_the_identical_file(tmp_path, num_calls, unbroken, share):
    assert_killed_run_resumes(tmp_path, num_calls, unbroken, share, only_disk_calls=False)


@pytest.mark.parametrize("share", [(i + 0.5) / NUM_DISK_MOMENTS for i in range(NUM_DISK_MOMENTS)], ids="{:.3f}".format)
def test_a_run_killed_while_it_touches_the_disk_resumes_to_the_identical_file(tmp_path, num_calls, unbroken, share):
    assert_killed_run_resumes(tmp_path, num_calls, unbroken, share, only_disk_calls=True)


@pytest.mark.parametrize("byte", [10, 700, 1500, 3000, 20_000, 28_000])
def test_a_run_killed_in_the_middle_of_a_file_resumes_to_the_identical_file(tmp_path, unbroken, byte):
    code = runs.in_child(runs.make_and_die_writing, tmp_path / "run", tmp_path / "out.mp4", byte)
    assert code == -signal.SIGXFSZ
    assert_resumes(tmp_path, unbroken)


def test_a_run_killed_again_and_again_ends_in_the_identical_file(tmp_path, num_calls, unbroken):
    for _ in range(4):
        moment = int(0.4 * num_calls[True])
        runs.in_child(runs.make_and_die, tmp_path / "run", tmp_path / "out.mp4", moment, True)
    assert_resumes(tmp_path, unbroken)


class Stop(Exception):
    """What a host raises to cancel."""


def stop_after(num_forwards):
    left = iter(range(num_forwards))

    def check_cancelled():
        if next(left, None) is None:
            raise Stop

    return Hooks(check_cancelled=check_cancelled)


@pytest.mark.parametrize("num_checks", [0, 1, 3, 4, 5])
def test_a_cancelled_run_leaves_its_finished_chunks_playable_and_resumes(tmp_path, unbroken, num_checks):
    with pytest.raises(Stop):
        runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4", hooks=stop_after(num_checks))
    num_finished = len(finished_chunks(tmp_path / "run"))
    assert num_finished == num_checks // 2  # checked before each chunk and before its one forward
    if num_finished:
        assert read_video(tmp_path / "run" / "preview.mp4").num_frames == 33 * num_finished
    assert not (tmp_path / "out.mp4").exists()
    assert_resumes(tmp_path, unbroken)


def test_a_cut_off_journal_costs_nothing(tmp_path, unbroken):
    with pytest.raises(Stop):
        runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4", hooks=stop_after(4))
    journal = tmp_path / "run" / "journal.jsonl"
    for size in (len(journal.read_bytes()) - 5, 20, 0):
        os.truncate(journal, size)
        assert_resumes(tmp_path, unbroken)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_cut_off_chunk_is_made_again_and_only_that_one(tmp_path, unbroken, chunk):
    runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    paths = sorted((tmp_path / "run" / "chunks").iterdir())
    whole = paths[chunk].read_bytes()
    os.truncate(paths[chunk], len(whole) // 2)
    assert_resumes_without(tmp_path, unbroken, chunk)
    assert paths[chunk].read_bytes() == whole


def assert_resumes_without(tmp_path, unbroken, chunk):
    done = runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    assert [event.chunk for event in done if not event.reused] == [chunk]
    assert (tmp_path / "out.mp4").read_bytes() == unbroken


def test_a_chunk_with_a_flipped_bit_is_made_again_when_it_is_needed(tmp_path, unbroken):
    with pytest.raises(Stop):
        runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4", hooks=stop_after(4))
    path = sorted((tmp_path / "run" / "chunks").iterdir())[-1]
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == unbroken


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:500] + b"?" + content[501:]])
def test_a_damaged_part_is_encoded_again_from_its_latents(tmp_path, unbroken, damage):
    runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    part = sorted((tmp_path / "run" / "segments").iterdir())[1]
    whole = part.read_bytes()
    part.write_bytes(damage(whole))
    assert_resumes(tmp_path, unbroken)
    assert part.read_bytes() == whole


# Full and forbidden disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with too little room for the run, and a function that gives it more."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs the rights to do so")
    try:
        yield place, lambda: subprocess.run(["mount", "-o", "remount,size=10m", str(place)], check=True)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_runs_full_is_an_error_that_loses_nothing(small_disk, unbroken, monkeypatch):
    place, enlarge = small_disk
    monkeypatch.setattr("helios_core.run.disk.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1e9, 0, 1e9))
    with pytest.raises(OSError, match="No space left") as caught:
        runs.make(runs.video(), place / "run", place / "out.mp4")
    assert caught.value.errno == errno.ENOSPC
    assert 0 < len(finished_chunks(place / "run")) < 3
    enlarge()
    assert_resumes(place, unbroken)


@pytest.mark.parametrize("failing_write", [2, 5, 8])
def test_any_write_may_find_the_disk_full(tmp_path, unbroken, monkeypatch, failing_write):
    left = iter(range(failing_write))
    fsync = os.fsync

    def full(descriptor):
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    monkeypatch.undo()
    assert_resumes(tmp_path, unbroken)


def test_a_disk_known_to_be_too_small_is_reported_beforehand_with_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("helios_core.run.disk.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1e9, 1e9, 5e4))
    needed = estimate_disk_use(runs.video().memory, 3)
    with pytest.raises(OSError, match=rf"the video needs about {(needed.run_folder + needed.video) / 1e6:.1f} MB"):
        runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4")
    assert not finished_chunks(tmp_path / "run")


def test_the_estimate_of_disk_use_holds(tmp_path):
    job = runs.video()
    runs.make(job, tmp_path / "run", tmp_path / "out.mp4")
    chunks = sum(path.stat().st_size for path in (tmp_path / "run" / "chunks").iterdir())
    estimate = estimate_disk_use(job.memory, 3)
    assert chunks == pytest.approx(estimate.run_folder - 6 * estimate.video / 3, rel=0.05)


def test_a_folder_that_may_not_be_written_is_refused_and_left_alone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    tmp_path.chmod(0o755)
    folder.chmod(0o555)
    for parent in (tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    assert runs.in_child(runs.make_as_nobody, folder, tmp_path / "out.mp4") == errno.EACCES
    assert not list(folder.iterdir())


# Two at once


def test_a_second_run_in_the_same_folder_is_refused_and_harms_nothing(tmp_path, unbroken):
    refusals = []

    def try_too(_):
        with pytest.raises(RunFolderBusyError, match="another run is writing") as caught:
            runs.make(runs.video(seed=2), tmp_path / "run", tmp_path / "other.mp4")
        refusals.append(caught.value)

    runs.make(runs.video(), tmp_path / "run", tmp_path / "out.mp4", hooks=Hooks(progress=try_too))
    assert len(refusals) == 3
    assert (tmp_path / "out.mp4").read_bytes() == unbroken


def test_the_lock_of_a_killed_process_does_not_stay(tmp_path):
    holder = runs._processes.Process(target=runs.hold_lock, args=(tmp_path / "run", tmp_path / "held"))
    holder.start()
    while not (tmp_path / "held").exists():
        assert holder.is_alive()
        time.sleep(0.01)
    with pytest.raises(RunFolderBusyError), RunFolder(tmp_path / "run").locked():
        pass
    holder.kill()
    holder.join()
    with RunFolder(tmp_path / "run").locked():
        pass
