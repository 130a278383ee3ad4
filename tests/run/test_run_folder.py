"""Run folders: chunks found by what they are made of, a journal that survives, lines of video, housekeeping."""

import logging

import pytest
import torch

from helios_core.files import StorageError
from helios_core.run.run_folder import Chunk, Past, RunFolder, RunFolderBusyError, list_runs, make_key, remove_run
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.drift import DriftState
from tests import runs

KEY = make_key(3, "0" * 32)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        yield folder


def a_chunk(**past):
    memory = text_memory(width=32, height=32).append(torch.randn(1, 16, 9, 4, 4), seed=5)
    return Chunk(torch.randn(1, 16, 9, 4, 4), Past(memory, **past))


@pytest.mark.parametrize(
    "past",
    [
        {},
        {"noise_stream": torch.Generator().get_state()},
        {"drift": DriftState(torch.randn(1, 16), torch.rand(1, 16))},
    ],
)
def test_a_chunk_comes_back_bit_for_bit(folder, past):
    chunk = a_chunk(**past)
    folder.save_chunk(KEY, chunk)
    loaded = folder.load_chunk(KEY)
    assert torch.equal(loaded.latents, chunk.latents)
    assert torch.equal(loaded.past.memory.frames, chunk.past.memory.frames)
    assert torch.equal(loaded.past.memory.anchor, chunk.past.memory.anchor)
    assert loaded.past.memory.provenance == chunk.past.memory.provenance
    assert (loaded.past.noise_stream is None) == ("noise_stream" not in past)
    assert loaded.past.noise_stream is None or torch.equal(loaded.past.noise_stream, past["noise_stream"])
    assert loaded.past.drift is None or torch.equal(loaded.past.drift.variance, past["drift"].variance)


def test_a_missing_chunk_is_no_chunk(folder):
    assert not folder.has_chunk(KEY)
    assert folder.load_chunk(KEY) is None


def test_a_damaged_chunk_is_set_aside_and_reported(folder, caplog):
    folder.save_chunk(KEY, a_chunk())
    path = folder.chunk_path(KEY)
    path.write_bytes(path.read_bytes()[:-50])
    with caplog.at_level(logging.WARNING):
        assert not folder.has_chunk(KEY)
    assert "set aside" in caplog.text
    assert not path.exists()
    assert path.with_suffix(".damaged").exists()


def test_the_journal_leaves_out_what_a_crash_tore_and_continues(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.note("take", keys=[])
        folder.note("chunk", key=KEY)
    journal = folder.path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    with folder.locked():
        folder.note("finished")
    assert [record["record"] for record in folder.journal()] == ["take", "finished"]


def test_a_journal_full_of_rubbish_is_no_error(folder):
    (folder.path / "journal.jsonl").write_bytes(b'\xff\xfe\n[1]\n{"record": "take", "keys": ["../../etc"]}\n{}\n\n')
    assert folder.takes() == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        RunFolder(tmp_path / "run")


# Rewind


def test_rewind_takes_a_memory_back_to_any_chunk_of_any_take(tmp_path):
    first = runs.make(runs.video(3), tmp_path / "run", tmp_path / "a.mp4")
    runs.make(runs.video(3, seeds={1: 9}), tmp_path / "run", tmp_path / "b.mp4")
    folder = RunFolder(tmp_path / "run")
    assert len(folder.takes()) == 2
    for num_chunks in (1, 2, 3):
        memory = folder.memory_after(num_chunks, take=0)
        assert memory.chunk_index == num_chunks
        assert torch.equal(memory.frames, first[num_chunks - 1].memory().frames)
    assert torch.equal(folder.memory_after(1).frames, folder.memory_after(1, take=0).frames)
    assert not torch.equal(folder.memory_after(2).frames, folder.memory_after(2, take=0).frames)
    assert folder.memory_after(2).provenance.seed == 9


def test_rewinding_to_where_there_is_nothing_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(ValueError, match="has 0 takes; there is no number -1"):
        folder.memory_after(1)
    runs.make(runs.video(1), folder.path, tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="cannot rewind to after chunk 2; this take has chunks 1 to 1"):
        folder.memory_after(2)
    folder.chunk_path(folder.takes()[0].keys[0]).unlink()
    with pytest.raises(StorageError, match="run the video to there"):
        folder.memory_after(1)


# Housekeeping


def test_runs_are_listed_with_what_they_hold_and_removed_by_name(tmp_path):
    for name in ("one", "two"):
        runs.make(runs.video(2), tmp_path / name, tmp_path / f"{name}.mp4")
    (tmp_path / "holiday").mkdir()
    listed = {run.name: run for run in list_runs(tmp_path)}
    assert listed.keys() == {"one", "two"}
    assert (listed["one"].num_takes, listed["one"].num_chunks) == (1, 2)
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert listed["one"].num_bytes == sum(path.stat().st_size for path in files)
    assert remove_run(tmp_path, "one").name == "one"
    assert [run.name for run in list_runs(tmp_path)] == ["two"]
    assert (tmp_path / "one.mp4").exists()


@pytest.mark.parametrize("name", ["holiday", "nothing", "..", ".", "", "../other/run"])
def test_only_a_run_of_this_folder_can_be_removed(tmp_path, name):
    runs.make(runs.video(1), tmp_path / "other" / "run", tmp_path / "a.mp4")
    (tmp_path / "here" / "holiday").mkdir(parents=True)
    with pytest.raises(ValueError, match="there is no run"):
        remove_run(tmp_path / "here", name)
    assert (tmp_path / "other" / "run").is_dir()
    assert (tmp_path / "here" / "holiday").is_dir()


def test_a_run_at_work_is_not_removed(tmp_path):
    runs.make(runs.video(1), tmp_path / "run", tmp_path / "a.mp4")
    with RunFolder(tmp_path / "run").locked(), pytest.raises(RunFolderBusyError):
        remove_run(tmp_path, "run")
    assert list_runs(tmp_path)
