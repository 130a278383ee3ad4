"""A run folder: every finished chunk of one or more lines of video, found again by what it was made from.

    chunks/00003-5e1f....safetensors    latents of chunk 3, and all that the next chunk needs to know
    segments/00003-77ab....mp4          the same chunk as video
    journal.jsonl                       what was made when, from which seed and prompt; one JSON object a line
    preview.mp4                         the line in the making, playable at any moment
    lock                                held while somebody writes here

A chunk's name, its key, is a fingerprint of everything its latents depend on: model, prompt, seed, settings, and the
key of the chunk before. So whoever asks for the same chunk again finds it (resume), asking for other ones from chunk k
on leaves everything in place and adds to it (re-roll, branch), and no table can be out of step with the files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..files import (
    StorageError,
    check_tensors,
    flush,
    load_tensors,
    patiently,
    remove_file,
    remove_unfinished,
    save_tensors,
)
from ..media.parts import is_whole
from ..memory.memory import HeliosMemory
from ..memory.storage import pack_memory, unpack_memory
from ..sampling.drift import DriftState
from ..sampling.plan import Chunk, Past

try:
    import fcntl
except ImportError:  # Windows
    import msvcrt

    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
_KEY = re.compile(r"\d{5,}-[0-9a-f]{32}")


class RunFolderBusyError(RuntimeError):
    """Somebody else is writing in the run folder."""


def make_key(chunk: int, digest: str) -> str:
    """The name of a chunk, counted from 0 at the start of the video, with the `fingerprint` of what made it."""
    return f"{chunk:05}-{digest}"


@dataclass(frozen=True)
class Take:
    """A line of video: the keys of its chunks in order, and the journal's note on how it was asked for."""

    keys: tuple[str, ...]
    note: Mapping[str, Any]


class RunFolder:
    """The folder at `path`; reading needs nothing more, writing happens inside `with folder.locked():`.

    Raises NotADirectoryError when there is a file at `path`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file; a run folder is a folder of its own")

    @property
    def preview_path(self) -> Path:
        return self.path / "preview.mp4"

    def chunk_path(self, key: str) -> Path:
        return self.path / "chunks" / f"{key}.safetensors"

    def part_path(self, key: str) -> Path:
        return self.path / "segments" / f"{key}.mp4"

    # Writing alone

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if it is missing, and keep others from writing in it until the block ends.

        The system gives the lock back when its holder dies, however it dies. Raises RunFolderBusyError when somebody
        else holds it, OSError when the folder cannot be written.
        """
        for folder in (self.path, self.path / "chunks", self.path / "segments"):
            folder.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a+") as lock:
            self._take(lock)
            for folder in (self.path, self.path / "chunks", self.path / "segments"):
                remove_unfinished(folder)
            self._end_torn_line()
            yield

    def _take(self, lock: TextIO) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                lock.seek(0)
                msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as fault:
            if fault.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                logger.warning("%s cannot be locked (%s); start no second run there", self.path, fault)
                return
            raise RunFolderBusyError(
                f"another run is writing in {self.path}; wait for it to finish, or give this run a folder of its own"
            ) from fault

    # Chunks

    def has_chunk(self, key: str) -> bool:
        """Whether the chunk is there. One that is cut off is set aside, and counts as missing."""
        return self._usable(self.chunk_path(key), lambda path: check_tensors(path, "chunk"))

    def load_chunk(self, key: str) -> Chunk | None:
        """The chunk, bit for bit as it was saved, or None when it is missing. A damaged one is set aside first."""
        path = self.chunk_path(key)
        loaded = []
        usable = self._usable(path, lambda path: loaded.append(_load_chunk(path)))
        return loaded[0] if usable else None

    def save_chunk(self, key: str, chunk: Chunk) -> None:
        """Write the chunk, whole or not at all. Raises OSError when it cannot be written."""
        tensors, facts = pack_memory(chunk.past.memory)
        tensors["latents"] = chunk.latents
        if chunk.past.noise_stream is not None:
            tensors["noise_stream"] = chunk.past.noise_stream
        if chunk.past.drift is not None:
            tensors["drift_mean"], tensors["drift_variance"] = chunk.past.drift.mean, chunk.past.drift.variance
        save_tensors(self.chunk_path(key), "chunk", tensors, facts)

    def has_part(self, key: str) -> bool:
        """Whether that part of video is there with every byte. A damaged one is removed: it is soon made again."""
        path = self.part_path(key)
        if path.is_file() and not is_whole(path):
            logger.warning("%s is damaged and will be encoded again", path)
            remove_file(path)  # or it is written over
            return False
        return path.is_file()

    def _usable(self, path: Path, read) -> bool:
        try:
            read(path)
        except FileNotFoundError:
            return False
        except StorageError as fault:
            logger.warning("%s; it is set aside and the chunk made again", fault)
            patiently(os.replace, path, path.with_suffix(".damaged"))
            return False
        return True

    # Journal

    def note(self, record: str, **facts: Any) -> None:
        """Append one record to the journal, flushed to the disk. Only inside `locked`."""
        line = json.dumps({"record": record, **facts}, sort_keys=True) + "\n"
        with (self.path / JOURNAL).open("ab") as stream:
            stream.write(line.encode())
            stream.flush()
            flush(stream.fileno())

    def _end_torn_line(self) -> None:
        """Keep the next record off the line that a killed run left unfinished."""
        with (self.path / JOURNAL).open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read() != b"\n":
                    stream.write(b"\n")

    def journal(self) -> list[dict[str, Any]]:
        """The records in order. Lines that were torn by a crash are left out: the files say what is finished."""
        path = self.path / JOURNAL
        if not path.is_file():
            return []
        records = []
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                logger.warning("%s: line %d is torn and left out", path, number)
                continue
            if isinstance(record, dict) and "record" in record:
                records.append(record)
        return records

    # Lines of video

    def takes(self) -> list[Take]:
        """Every line of video that was asked for here, oldest first; the last one is the latest."""
        takes = []
        for record in self.journal():
            if record["record"] == "take" and all(_KEY.fullmatch(str(key)) for key in record.get("keys", ())):
                takes.append(Take(tuple(record["keys"]), record))
        return takes

    def memory_after(self, num_chunks: int, take: int = -1) -> HeliosMemory:
        """Rewind: the memory after the first `num_chunks` (at least 1) chunks of a take, as it was when they were made.

        Raises ValueError when there is no such take or it is not as long, StorageError when the chunk is not finished.
        """
        takes = self.takes()
        if not -len(takes) <= take < len(takes):
            raise ValueError(f"{self.path} has {len(takes)} takes; there is no number {take}")
        keys = takes[take].keys
        if not 1 <= num_chunks <= len(keys):
            raise ValueError(f"cannot rewind to after chunk {num_chunks}; this take has chunks 1 to {len(keys)}")
        chunk = self.load_chunk(keys[num_chunks - 1])
        if chunk is None:
            raise StorageError(
                f"chunk {num_chunks} of this take is not in {self.path}; run the video to there, then rewind"
            )
        return chunk.past.memory


def _load_chunk(path: Path) -> Chunk:
    tensors, facts = load_tensors(path, "chunk")
    memory = unpack_memory(path, tensors, facts)
    drift = DriftState(tensors["drift_mean"], tensors["drift_variance"]) if "drift_mean" in tensors else None
    return Chunk(tensors["latents"], Past(memory, tensors.get("noise_stream"), drift))


# All runs


@dataclass(frozen=True)
class RunSummary:
    """One run in a folder of runs. `num_pieces` are those of finished films; `num_bytes` is what removing it frees."""

    name: str
    num_takes: int
    num_chunks: int
    num_pieces: int
    num_bytes: int
    last_used: float  # seconds since 1970


def list_runs(root: str | os.PathLike[str]) -> list[RunSummary]:
    """The runs directly in `root`, latest first. Other folders are left out."""
    root = Path(root)
    runs = [_summary(path) for path in root.iterdir() if _is_run(path)] if root.is_dir() else []
    return sorted(runs, key=lambda run: run.last_used, reverse=True)


def remove_run(root: str | os.PathLike[str], name: str) -> RunSummary:
    """Delete the run of that name in `root`, with all its chunks; returns what it was.

    Raises ValueError when there is no such run, RunFolderBusyError while somebody writes in it.
    """
    known = {run.name: run for run in list_runs(root)}
    if name not in known:
        raise ValueError(f"there is no run {name!r} in {root}; there are: {', '.join(known) or 'none'}")
    folder = RunFolder(Path(root) / name)
    with folder.locked():
        # The journal makes a folder a run, so it goes last: a removal that is broken off can be repeated.
        for part in ("chunks", "segments", "pieces"):
            if (folder.path / part).is_dir():
                shutil.rmtree(folder.path / part)
    shutil.rmtree(folder.path)
    return known[name]


def _is_run(path: Path) -> bool:
    return not path.is_symlink() and (path / JOURNAL).is_file() and (path / "chunks").is_dir()


def _summary(path: Path) -> RunSummary:
    files = [file.stat() for file in path.rglob("*") if file.is_file()]
    folder = RunFolder(path)
    return RunSummary(
        name=path.name,
        num_takes=len(folder.takes()),
        num_chunks=len(list((path / "chunks").glob("[0-9]*.safetensors"))),
        num_pieces=len(list((path / "pieces").glob("[0-9]*"))),
        num_bytes=sum(file.st_size for file in files),
        last_used=max(file.st_mtime for file in files),
    )
