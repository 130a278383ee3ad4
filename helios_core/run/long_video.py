"""A long video: chunk after chunk is sampled, put on disk, decoded, encoded, and let go.

    past -> [ sample -> chunk file -> decode -> part -> preview ] for each chunk -> joined file
                main thread             |  background thread

Whatever is finished on disk is taken from there, so making a video, resuming it, changing its prompt from some chunk
on, and rolling the dice again for one chunk are the same act. No more than two chunks are held at a time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..faults import add_note
from ..files import remove_file, remove_unfinished
from ..geometry import FRAMES_PER_CHUNK
from ..media.audio import Sound
from ..media.parts import GrowingVideo, join_parts, write_part
from ..model.transformer import HeliosTransformer
from ..sampling.drift import DriftCheck
from ..sampling.hooks import Hooks
from ..sampling.loop import make_chunks
from ..sampling.noise import stream_state
from ..sampling.plan import Chunk, Past
from .disk import check_disk, estimate_disk_use
from .inputs import inputs_of, why_anew
from .job import ChunkDone, LongVideo
from .keys import chunk_keys, digest_of, part_keys
from .old_keys import adopt_old_names
from .pace import Pace
from .run_folder import RunFolder

logger = logging.getLogger(__name__)


def make_video(
    video: LongVideo,
    folder: RunFolder,
    path: Path,
    *,
    load_model: Callable[[], HeliosTransformer],
    decode: Callable[[torch.Tensor], torch.Tensor],
    on_chunk: Callable[[ChunkDone], None] | None = None,
    hooks: Hooks | None = None,
    decode_in_background: bool = False,
    metadata: Mapping[str, str] | None = None,
    lead_in: Sequence[Path] = (),
    sound: Sound | None = None,
    notice: Callable[[str], None] | None = None,
) -> ChunkDone:
    """Make chunk after chunk, and of all of them the video at `path` (mp4). Returns the last chunk.

    `load_model()` is called before each chunk that must be sampled and gives the model ready to compute (a host may
    have moved it away to decode). `decode` takes latents (1, C, 9, h, w) in model space and gives frames (33, H, W, 3)
    in [0, 1]. Encoding runs beside the sampling of the next chunk, and so does decoding when it is asked for with
    `decode_in_background`: do so when it runs on another device, or there is room for both. `on_chunk` is called for
    each chunk in order, in the caller's own thread, as soon as the chunk is done: while the next one is sampled,
    between two forwards. `lead_in` are parts, encoded alike, to be put before the first chunk (see `write_lead_in`).
    `sound` is stored in the finished file, from its first frame on. `notice` is called before the first chunk, with
    the reason, when chunks are made anew although the folder holds others in their place.

    Whatever stops the run (an exception from `on_chunk` or `hooks.check_cancelled`, a fault, kill -9), finished chunks
    stay, `folder.preview_path` plays, and calling this again with the same video resumes and gives the same file.

    Raises ValueError for a job that cannot work, RunFolderBusyError while another run writes in the folder, OSError
    when the disk is full (before the first chunk, as far as that can be known) or cannot be written.
    """
    video.check()
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"cannot write {path.name}: a long video is an mp4, so the file name must end in .mp4")
    with folder.locked():
        run = _Run(video, folder, load_model, decode, on_chunk, hooks or Hooks())
        adopt_old_names(video, folder, run.first, run.keys, run.part_keys)
        missing = sum(not folder.chunk_path(key).is_file() for key in run.keys)
        check_disk(folder.path, path.parent, estimate_disk_use(video.memory, video.num_chunks, num_missing=missing))
        anew = why_anew(folder, run.inputs, run.keys)
        if anew is not None:
            logger.info("%s: %s", folder.path.name, anew)
            if notice is not None:
                notice(str(anew))
        folder.note("take", keys=run.keys, **run.facts())
        run.make_chunks(decode_in_background, lead_in)
        parts = [folder.part_path(key) for key in run.part_keys]
        remove_unfinished(path.parent, path.stem)
        join_parts([*lead_in, *parts], path, metadata, sound)
        folder.note("finished", last_key=run.keys[-1], path=str(path), time=time.time())
        remove_file(folder.preview_path)
    return run.last_done


class _Run:
    """One call of `make_video`: keys of all chunks, and the latest chunk, which the next one continues from."""

    def __init__(self, video: LongVideo, folder: RunFolder, load_model, decode, on_chunk, hooks: Hooks) -> None:
        self.video, self.folder, self.load_model, self.decode = video, folder, load_model, decode
        self.on_chunk = on_chunk
        self.hooks = replace(hooks, check_cancelled=self._between_forwards)
        self.host_check_cancelled = hooks.check_cancelled
        self.first = Past(video.memory, stream_state(video.noise))
        self.keys, self.seeds = chunk_keys(video, self.first)
        self.part_keys = part_keys(video, self.keys)
        self.inputs = inputs_of(video, self.first)
        self.latest: tuple[int, Chunk] | None = None
        self.sampler: tuple[int, Iterator[Chunk]] | None = None  # the position it makes next
        self.drift_checks: dict[int, DriftCheck | None] = {}
        self.pending: deque[tuple[Future, Callable[[], ChunkDone]]] = deque()
        self.last_done: ChunkDone | None = None

    # What is asked for

    def facts(self) -> dict[str, Any]:
        """For the journal: how this line of video was asked for."""
        video = self.video
        return {
            "time": time.time(),
            "model": {"name": video.model.name, "fingerprint": video.model.fingerprint},
            "inputs": self.inputs,
            "size": [video.memory.width, video.memory.height],
            "first_chunk": video.memory.chunk_index,
            "settings": asdict(video.plan(video.chunks.start).settings),
            "noise": type(video.noise).__name__,
            "seeds": self.seeds,
            "anti_drift": video.anti_drift and asdict(video.anti_drift),
            "notes": dict(video.notes),
        }

    # Making it

    def make_chunks(self, decode_in_background: bool, lead_in: Sequence[Path]) -> None:
        """Make what is missing, and report every chunk."""
        preview = GrowingVideo(self.folder.preview_path)
        for part in lead_in:
            preview.append(part)
        pace = Pace(sum(not self.folder.has_chunk(key) for key in self.keys))
        with ThreadPoolExecutor(1, thread_name_prefix="helios-encode") as background:
            try:
                for position, key in enumerate(self.keys):
                    self._between_forwards()
                    reused = self.folder.has_chunk(key)
                    chunk = None if reused else self._make(position)
                    pace.count(made=not reused)
                    encode = self._encoder(position, chunk, decode_in_background)
                    done = self._event(position, reused, pace)
                    self.pending.append((background.submit(_finish, encode, preview), done))
                    self._report_finished(max_pending=1)
                self._report_finished(max_pending=0)
            except BaseException as stop:
                self._note_failures(stop)
                raise

    def _make(self, position: int) -> Chunk:
        """Sample a chunk and put it on disk."""
        started = time.monotonic()
        chunk = self._sample(position)
        key, seed = self.keys[position], chunk.past.memory.provenance.seed
        self.folder.save_chunk(key, chunk)
        check = chunk.drift_check
        seconds = round(time.monotonic() - started, 3)
        self.folder.note("chunk", key=key, seed=seed, seconds=seconds, time=time.time(), drift=check and asdict(check))
        self.drift_checks[position] = check
        self.latest = (position, chunk)
        return chunk

    def _sample(self, position: int) -> Chunk:
        """The chunk of the loop at this position, with its latents on the CPU."""
        video = self.video
        if self.sampler is None or self.sampler[0] != position:
            past, plans = self._past_of(position), map(video.plan, video.chunks[position:])
            options = {"hooks": self.hooks, "anti_drift": video.anti_drift, "identity": video.model}
            self.sampler = (position, make_chunks(self.load_model, past, plans, **options))
        chunk = next(self.sampler[1])
        self.sampler = (position + 1, self.sampler[1])
        return replace(chunk, latents=chunk.latents.cpu())

    def _past_of(self, position: int) -> Past:
        """What a chunk continues from. Where the chunk before turns out to be damaged, that is made again first."""
        if position == 0:
            return self.first
        if self.latest is not None and self.latest[0] == position - 1:
            return self.latest[1].past
        key = self.keys[position - 1]
        past = (self.folder.load_chunk(key) or self._make(position - 1)).past
        return replace(past, memory=replace(past.memory, identity=digest_of(key)))

    def _encoder(self, position: int, chunk: Chunk | None, decode_in_background: bool) -> Callable[[], Path]:
        """What is left to do for the chunk's part; with decoding done here unless it may be done in background."""
        path = self.folder.part_path(self.part_keys[position])
        if self.folder.has_part(self.part_keys[position]):
            return lambda: path
        if chunk is None:
            chunk = self.folder.load_chunk(self.keys[position]) or self._make(position)

        def decoded() -> torch.Tensor:
            with torch.no_grad():
                return self.decode(chunk.latents)

        frames = None if decode_in_background else decoded()

        def encode() -> Path:
            write_part(path, decoded() if frames is None else frames, self.video.encoding)
            return path

        return encode

    # Reporting it

    def _event(self, position: int, reused: bool, pace: Pace) -> Callable[[], ChunkDone]:
        video = self.video
        num_frames = (position + 1) * FRAMES_PER_CHUNK
        part = self.folder.part_path(self.part_keys[position])
        return lambda: ChunkDone(
            chunk=video.chunks[position],
            num_done=position + 1,
            num_chunks=video.num_chunks,
            key=self.keys[position],
            reused=reused,
            seconds_of_video=float(num_frames / video.encoding.frame_rate),
            frames_per_second=pace.frames_per_second,
            eta_seconds=pace.eta_seconds,
            drift=self.drift_checks.pop(position, None),
            part=part,
            folder=self.folder,
        )

    def _report_finished(self, max_pending: int) -> None:
        """Report what the background has finished, waiting until no more than `max_pending` are left; or raise its
        fault."""
        while self.pending and (len(self.pending) > max_pending or self.pending[0][0].done()):
            future, event = self.pending[0]
            future.result()
            self.pending.popleft()
            self.last_done = event()
            if self.on_chunk is not None:
                self.on_chunk(self.last_done)

    def _between_forwards(self) -> None:
        """The host's wish to stop, and what the background has to report: a fault there ends the sampling too."""
        if self.host_check_cancelled is not None:
            self.host_check_cancelled()
        self._report_finished(max_pending=1)

    def _note_failures(self, stop: BaseException) -> None:
        """Finish what the background has begun. Its own fault is added to what stopped the run."""
        for future, _ in self.pending:
            fault = future.exception()
            if fault is not None and fault is not stop:
                add_note(stop, f"A finished chunk could not be encoded either: {fault}")


def _finish(encode: Callable[[], Path], preview: GrowingVideo) -> None:
    preview.append(encode())
