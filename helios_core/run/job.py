"""What a long video is made from, and what is reported of each chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..geometry import check_num_chunks
from ..media.parts import Encoding
from ..media.reader import read_video
from ..memory.memory import HeliosMemory
from ..memory.storage import ModelIdentity, check_memory
from ..sampling.drift import AntiDrift, DriftCheck
from ..sampling.noise import NoiseSource, stream_state
from ..sampling.plan import Chunk, ChunkPlan
from .run_folder import RunFolder


@dataclass(frozen=True)
class LongVideo:
    """What to make: `num_chunks` chunks of 33 frames that continue from `memory` (of one video, on the CPU).

    Chunks are counted from the start of the video, so the first one here is `memory.chunk_index`, and `plan(chunk)`
    is asked for each, maybe more than once. `noise` is the video's own source; a plan with another one (a re-roll)
    must have one whose draws have no order. `codec` names the VAE that decodes; another name makes other parts from
    the same latents. `notes`, JSON-able, go into the journal.
    """

    memory: HeliosMemory
    num_chunks: int
    plan: Callable[[int], ChunkPlan]
    noise: NoiseSource
    model: ModelIdentity
    codec: str = ""
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
        check_num_chunks(self.num_chunks)
        for chunk in self.chunks:
            plan = self.plan(chunk)
            plan.check(memory, chunk=chunk)
            if plan.noise is not self.noise and stream_state(plan.noise) is not None:
                raise ValueError(
                    f"chunk {chunk} has noise of its own that is drawn in order ({type(plan.noise).__name__}); noise "
                    "of single chunks must be seeded"
                )


@dataclass(frozen=True)
class ChunkDone:
    """A finished chunk, reported as soon as the preview shows it. `chunk` is counted from the start of the video,
    `num_done` of `num_chunks` from the start of this job.

    `reused`: it was found on disk. `frames_per_second` and `eta_seconds` are of this session, None before a chunk was
    made in it. `drift` is the check of a chunk made with anti-drifting on. `frames()`, `memory()` and `latents()` read
    from disk, so an event that is kept holds nothing big.
    """

    chunk: int
    num_done: int
    num_chunks: int
    key: str
    reused: bool
    seconds_of_video: float
    frames_per_second: float | None
    eta_seconds: float | None
    drift: DriftCheck | None
    part: Path
    folder: RunFolder

    def frames(self) -> torch.Tensor:
        """The chunk's frames (33, H, W, 3) uint8, as they are in the video file."""
        return read_video(self.part).frames

    def latents(self) -> torch.Tensor:
        """The chunk's latents (1, C, 9, h, w), fp32, model space."""
        return self._load().latents

    def memory(self) -> HeliosMemory:
        """The memory after this chunk."""
        return self._load().past.memory

    def _load(self) -> Chunk:
        chunk = self.folder.load_chunk(self.key)
        if chunk is None:
            raise FileNotFoundError(f"chunk {self.chunk} is no longer in {self.folder.path}; make the video again")
        return chunk
