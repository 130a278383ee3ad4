"""A long video: chunk after chunk is sampled, put on disk, decoded, encoded, and let go.

    memory -> [ sample -> chunk file -> decode -> segment -> preview ] for each chunk -> joined file
                 main thread             |  background thread

Whatever is finished on disk is taken from there, so making a video, resuming it, changing its prompt from some chunk
on, and rolling the dice again for one chunk are the same act. No more than two chunks are held at a time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..faults import add_note
from ..files import remove_file, remove_unfinished
from ..fingerprint import fingerprint
from ..geometry import FRAMES_PER_CHUNK, check_size
from ..media.reader import read_video
from ..media.segments import Encoding, GrowingVideo, join_segments, write_segment
from ..memory.memory import HeliosMemory
from ..memory.storage import ModelIdentity, check_memory
from ..model.transformer import HeliosTransformer, PromptContext
from ..sampling.drift import AntiDrift, DriftReport, DriftState
from ..sampling.loop import Hooks, check_job, sample_chunk
from ..sampling.noise import NoiseSource, restore_stream, stream_state
from ..sampling.settings import SamplingSettings
from .disk import check_disk, estimate_disk_use
from .pace import Pace
from .run_folder import Past, RunFolder, StoredChunk, make_key

logger = logging.getLogger(__name__)

# Raised by one whenever the same inputs would give other latents than before: chunks on disk are then made again.
SAMPLER_VERSION = 1


@dataclass(frozen=True)
class ChunkPlan:
    """What one chunk is made from, besides the past.

    `rows` (1, L, text_dim) are the text encoder's, on the device to compute on; the same tensor for several chunks is
    encoded once. `noise` is this chunk's own source (re-roll) in place of the video's; it must be one whose draws
    have no order (`SeededNoise`). `anchor` (1, C, 1, h, w), model space, replaces the memory's anchor from here on.
    """

    rows: torch.Tensor
    settings: SamplingSettings
    noise: NoiseSource | None = None
    anchor: torch.Tensor | None = None


@dataclass(frozen=True)
class LongVideo:
    """What to make: `num_chunks` chunks of 33 frames that go on from `memory` (of one video, on the CPU).

    Chunks are counted from the start of the video, so the first one here is `memory.chunk_index`, and `plan(chunk)`
    is asked for each, maybe more than once. `negative` rows are needed with guidance. `codec` names the VAE that
    decodes; another name makes other segments from the same latents. `notes`, JSON-able, go into the journal.
    """

    memory: HeliosMemory
    num_chunks: int
    plan: Callable[[int], ChunkPlan]
    noise: NoiseSource
    model: ModelIdentity
    codec: str = ""
    negative: torch.Tensor | None = None
    anti_drift: AntiDrift | None = None
    encoding: Encoding = field(default_factory=Encoding)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def chunks(self) -> range:
        """The chunks to make."""
        first = self.memory.chunk_index
        return range(first, first + self.num_chunks)

    def check(self) -> None:
        """Raise ValueError, before any heavy work, for what cannot work."""
        memory = self.memory
        check_memory(memory, model=self.model)
        if memory.batch_size != 1:
            raise ValueError(f"the memory is of {memory.batch_size} videos; a long video is made one at a time")
        if self.num_chunks < 1:
            raise ValueError(f"number of chunks is {self.num_chunks}; at least 1 is needed (a chunk is 33 frames)")
        for chunk in self.chunks:
            plan = self.plan(chunk)
            check_size(memory.width, memory.height, plan.settings.schedule.num_stages)
            if plan.settings.guided and self.negative is None:
                raise ValueError(
                    f"guidance_scale {plan.settings.guidance_scale} in chunk {chunk} needs a negative prompt "
                    "(it may be empty); give one, or set guidance_scale to 1"
                )
            if plan.noise is not None and stream_state(plan.noise) is not None:
                raise ValueError(
                    f"chunk {chunk} has noise of its own that is drawn in order ({type(plan.noise).__name__}); noise "
                    "of single chunks must be seeded"
                )


@dataclass(frozen=True)
class ChunkDone:
    """Told of each chunk as soon as it can be seen in the preview. `chunk` is counted from the start of the video, and
    `num_done` of `num_chunks` from the start of this job.

    `reused`: it was found on disk. `frames_per_second` and `eta_seconds` are of this session, None before a chunk was
    made in it. `drift` tells of a chunk made with anti-drifting on. `frames()`, `memory()` and `latents()` read from
    disk, so an event that is kept holds nothing big.
    """

    chunk: int
    num_done: int
    num_chunks: int
    key: str
    reused: bool
    seconds_of_video: float
    frames_per_second: float | None
    eta_seconds: float | None
    drift: DriftReport | None
    segment: Path
    folder: RunFolder

    def frames(self) -> torch.Tensor:
        """The chunk's frames (33, H, W, 3) uint8, as they are in the video file."""
        return read_video(self.segment).frames

    def latents(self) -> torch.Tensor:
        """The chunk's latents (1, C, 9, h, w), fp32, model space."""
        return self._load().latents

    def memory(self) -> HeliosMemory:
        """The memory after this chunk."""
        return self._load().past.memory

    def _load(self) -> StoredChunk:
        chunk = self.folder.load_chunk(self.key)
        if chunk is None:
            raise FileNotFoundError(f"chunk {self.chunk} is no longer in {self.folder.path}; make the video again")
        return chunk


def make_video(
    video: LongVideo,
    folder: RunFolder,
    path: Path,
    *,
    load_model: Callable[[], HeliosTransformer],
    decode: Callable[[torch.Tensor], torch.Tensor],
    tell: Callable[[ChunkDone], None] | None = None,
    hooks: Hooks | None = None,
    decode_in_background: bool = False,
    metadata: Mapping[str, str] | None = None,
    lead_in: Sequence[Path] = (),
) -> ChunkDone:
    """Make chunk after chunk, and of all of them the video at `path` (mp4). Returns the last chunk.

    `load_model()` is called before each chunk that must be sampled and gives the model ready to compute (a host may
    have moved it away to decode). `decode` takes latents (1, C, 9, h, w) in model space and gives frames (33, H, W, 3)
    in [0, 1]. Encoding runs beside the sampling of the next chunk, and so does decoding when it is asked for with
    `decode_in_background`: do so when it runs on another device, or there is room for both. `tell` is called for each
    chunk in order, in the caller's own thread, as soon as the chunk is done: while the next one is sampled, between two
    forwards. `lead_in` are segments, encoded alike, to be put before the first chunk (see `write_lead_in`).

    Whatever stops the run (an exception from `tell` or `hooks.check_cancelled`, a fault, kill -9), finished chunks
    stay, `folder.preview_path` plays, and calling this again with the same video goes on to the same file.

    Raises ValueError for a job that cannot work, RunFolderBusyError while another run writes in the folder, OSError
    when the disk is full (told beforehand as far as it can be) or cannot be written.
    """
    video.check()
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"cannot write {path.name}: a long video is an mp4, so the file name must end in .mp4")
    with folder.locked():
        run = _Run(video, folder, load_model, decode, tell, hooks or Hooks())
        missing = sum(not folder.chunk_path(key).is_file() for key in run.keys)
        check_disk(folder.path, path.parent, estimate_disk_use(video.memory, video.num_chunks, num_missing=missing))
        folder.note("take", keys=run.keys, **run.facts())
        run.make_chunks(decode_in_background, lead_in)
        segments = [folder.segment_path(key) for key in run.segment_keys]
        remove_unfinished(path.parent, path.stem)
        join_segments([*lead_in, *segments], path, metadata)
        folder.note("finished", last_key=run.keys[-1], path=str(path), time=time.time())
        remove_file(folder.preview_path)
    return run.last_done


class _Run:
    """One call of `make_video`: keys of all chunks, and the latest chunk, which the next one goes on from."""

    def __init__(self, video: LongVideo, folder: RunFolder, load_model, decode, tell, hooks: Hooks) -> None:
        self.video, self.folder, self.load_model, self.decode, self.tell = video, folder, load_model, decode, tell
        self.hooks = replace(hooks, check_cancelled=self._between_forwards)
        self.host_check_cancelled = hooks.check_cancelled
        self.first = Past(video.memory, stream_state(video.noise))
        self.keys = self._chunk_keys()
        self.segment_keys = [
            make_key(chunk, fingerprint(key, video.codec, video.encoding.fingerprint))
            for chunk, key in zip(video.chunks, self.keys, strict=True)
        ]
        self.latest: tuple[int, StoredChunk] | None = None
        self.drift_reports: dict[int, DriftReport] = {}
        self.prompt: tuple[torch.Tensor, PromptContext] | None = None
        self.negative: PromptContext | None = None
        self.pending: deque[tuple[Future, Callable[[], ChunkDone]]] = deque()
        self.last_done: ChunkDone | None = None

    # What is asked for

    def _chunk_keys(self) -> list[str]:
        """A hash chain: each key stands for its own inputs and, through the key before, for all that led to them."""
        video = self.video
        memory = video.memory
        digest = fingerprint(
            SAMPLER_VERSION,
            {"frames": memory.frames, "anchor": memory.anchor, "index": memory.chunk_index, "config": memory.config},
            {"model": video.model.fingerprint, "anti_drift": video.anti_drift, "stream": self.first.noise_stream},
        )
        negative = fingerprint(video.negative)
        keys, self.seeds = [], []
        rows, prompt = None, ""
        for chunk in video.chunks:
            plan = video.plan(chunk)
            if plan.rows is not rows:
                rows, prompt = plan.rows, fingerprint(plan.rows)
            noise = plan.noise or video.noise
            digest = fingerprint(
                digest,
                {"prompt": prompt, "negative": negative if plan.settings.guided else None},
                {"settings": plan.settings, "anchor": plan.anchor},
                {"noise": type(noise).__name__, "seed": noise.seed},
            )
            keys.append(make_key(chunk, digest))
            self.seeds.append(noise.seed)
        return keys

    def facts(self) -> dict[str, Any]:
        """For the journal: how this line of video was asked for."""
        video = self.video
        return {
            "time": time.time(),
            "model": asdict(video.model),
            "size": [video.memory.width, video.memory.height],
            "first_chunk": video.memory.chunk_index,
            "settings": asdict(video.plan(video.memory.chunk_index).settings),
            "noise": type(video.noise).__name__,
            "seeds": self.seeds,
            "anti_drift": video.anti_drift and asdict(video.anti_drift),
            "notes": dict(video.notes),
        }

    # Making it

    def make_chunks(self, decode_in_background: bool, lead_in: Sequence[Path]) -> None:
        """Make what is missing, and tell of every chunk."""
        preview = GrowingVideo(self.folder.preview_path)
        for segment in lead_in:
            preview.append(segment)
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
                    self._tell_finished(max_pending=1)
                self._tell_finished(max_pending=0)
            except BaseException as stop:
                self._note_failures(stop)
                raise

    def _make(self, position: int) -> StoredChunk:
        """Sample a chunk and put it on disk."""
        started = time.monotonic()
        video, past = self.video, self._past_of(position)
        index, memory = past.memory.chunk_index, past.memory
        plan = video.plan(index)
        if plan.anchor is not None:
            memory = replace(memory, anchor=plan.anchor.to(memory.frames))
        noise = plan.noise or video.noise
        restore_stream(video.noise, past.noise_stream)
        latents = self._sample(memory, plan, noise)
        remembered, drift, report = self._watch(latents, past, noise)
        memory = memory.append(
            remembered, model=video.model.name, seed=noise.seed, model_fingerprint=video.model.fingerprint
        )
        chunk = StoredChunk(latents, Past(memory, stream_state(video.noise), drift))
        self.folder.save_chunk(self.keys[position], chunk)
        self.folder.note(
            "chunk",
            key=self.keys[position],
            seed=noise.seed,
            seconds=round(time.monotonic() - started, 3),
            time=time.time(),
            drift=report and asdict(report),
        )
        self.drift_reports[position] = report
        self.latest = (position, chunk)
        return chunk

    def _past_of(self, position: int) -> Past:
        """What a chunk goes on from. Where the chunk before turns out to be damaged, that is made again first."""
        if position == 0:
            return self.first
        if self.latest is not None and self.latest[0] == position - 1:
            return self.latest[1].past
        return (self.folder.load_chunk(self.keys[position - 1]) or self._make(position - 1)).past

    def _sample(self, memory: HeliosMemory, plan: ChunkPlan, noise: NoiseSource) -> torch.Tensor:
        """Latents (1, C, 9, h, w) on the CPU of the chunk after `memory`."""
        video = self.video
        model = self.load_model()
        check_job(model, memory, plan.settings, video.num_chunks, has_negative=video.negative is not None)
        with torch.no_grad():
            if self.prompt is None or self.prompt[0] is not plan.rows:
                self.prompt = None  # the old one is large and is let go before the new one is made
                self.prompt = (plan.rows, model.encode_prompt(plan.rows))
            if self.negative is None and plan.settings.guided:
                self.negative = model.encode_prompt(video.negative)
        latents, _ = sample_chunk(
            model, self.prompt[1], memory, noise, plan.settings, negative=self.negative, hooks=self.hooks
        )
        return latents.cpu()

    def _watch(
        self, latents: torch.Tensor, past: Past, noise: NoiseSource
    ) -> tuple[torch.Tensor, DriftState | None, DriftReport | None]:
        """What the next chunks remember of this one, and what the drift watch says when it is on."""
        anti_drift = self.video.anti_drift
        if anti_drift is None:
            return latents, None, None
        report, state = anti_drift.watch(latents, past.drift)
        if not report.has_drifted:
            return latents, state, report
        chunk = past.memory.chunk_index
        logger.info("chunk %d has drifted; noise is added to what the next chunks remember of it", chunk)
        grain = noise.normal(tuple(latents.shape), ("drift", chunk))
        return latents + anti_drift.strength * grain.to(latents), state, report

    def _encoder(self, position: int, chunk: StoredChunk | None, decode_in_background: bool) -> Callable[[], Path]:
        """What is left to do for the chunk's segment; with decoding done here unless it may be done in background."""
        path = self.folder.segment_path(self.segment_keys[position])
        if self.folder.has_segment(self.segment_keys[position]):
            return lambda: path
        if chunk is None:
            chunk = self.folder.load_chunk(self.keys[position]) or self._make(position)

        def decoded() -> torch.Tensor:
            with torch.no_grad():
                return self.decode(chunk.latents)

        frames = None if decode_in_background else decoded()

        def encode() -> Path:
            write_segment(path, decoded() if frames is None else frames, self.video.encoding)
            return path

        return encode

    # Telling of it

    def _event(self, position: int, reused: bool, pace: Pace) -> Callable[[], ChunkDone]:
        video = self.video
        num_frames = (position + 1) * FRAMES_PER_CHUNK
        segment = self.folder.segment_path(self.segment_keys[position])
        return lambda: ChunkDone(
            chunk=video.chunks[position],
            num_done=position + 1,
            num_chunks=video.num_chunks,
            key=self.keys[position],
            reused=reused,
            seconds_of_video=float(num_frames / video.encoding.frame_rate),
            frames_per_second=pace.frames_per_second,
            eta_seconds=pace.eta_seconds,
            drift=self.drift_reports.pop(position, None),
            segment=segment,
            folder=self.folder,
        )

    def _tell_finished(self, max_pending: int) -> None:
        """Tell of what the background has finished, waiting until no more than `max_pending` are left; or raise its
        fault."""
        while self.pending and (len(self.pending) > max_pending or self.pending[0][0].done()):
            future, event = self.pending[0]
            future.result()
            self.pending.popleft()
            self.last_done = event()
            if self.tell is not None:
                self.tell(self.last_done)

    def _between_forwards(self) -> None:
        """The host's wish to stop, and what the background has to tell: a fault there ends the sampling too."""
        if self.host_check_cancelled is not None:
            self.host_check_cancelled()
        self._tell_finished(max_pending=1)

    def _note_failures(self, stop: BaseException) -> None:
        """Finish what the background has begun. Its own fault is told with, not instead of, what stopped the run."""
        for future, _ in self.pending:
            fault = future.exception()
            if fault is not None and fault is not stop:
                add_note(stop, f"A finished chunk could not be encoded either: {fault}")


def _finish(encode: Callable[[], Path], preview: GrowingVideo) -> None:
    preview.append(encode())
