"""What goes into a chunk and what comes out: the past and a plan in, latents and the next past out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..fingerprint import fingerprint
from ..geometry import check_size
from ..memory.memory import HeliosMemory
from ..model.config import TransformerConfig
from .drift import AntiDrift, DriftCheck, DriftState
from .loras import LoraStrength
from .noise import NoiseSource
from .settings import SamplingSettings

# Raised by one whenever the same inputs would give other latents than before: chunks on disk are then made again.
SAMPLER_VERSION = 1


@dataclass(frozen=True)
class ChunkPlan:
    """What one chunk is made from, besides the model and the past.

    `rows` (B, L, text_dim) are the text encoder's, on the device to compute on; `negative_rows` those of the negative
    prompt, needed with guidance. The same tensor in plan after plan is encoded once. `anchor` (B, C, 1, h, w), model
    space, replaces the memory's anchor from this chunk on. An identity is a fingerprint of what rows or anchor were
    made from (texts, files, settings); "" where it is not known. `loras` act beside those that are in the weights.
    """

    rows: torch.Tensor
    settings: SamplingSettings
    noise: NoiseSource
    negative_rows: torch.Tensor | None = None
    anchor: torch.Tensor | None = None
    prompt_identity: str = ""
    negative_identity: str = ""
    anchor_identity: str = ""
    loras: tuple[LoraStrength, ...] = ()

    def anchored(self, memory: HeliosMemory) -> HeliosMemory:
        """The memory that the chunk sees: with the plan's anchor, if it sets one."""
        return memory if self.anchor is None else replace(memory, anchor=self.anchor.to(memory.frames))

    def check(self, memory: HeliosMemory, config: TransformerConfig | None = None, chunk: int | None = None) -> None:
        """Raise ValueError, before any heavy work, when plan and memory do not fit together, or the memory does not
        fit a model of this `config`. `chunk` is named where it could be any of several."""
        check_size(memory.width, memory.height, self.settings.schedule.num_stages)
        if config is not None and memory.frames.shape[1] != config.in_channels:
            raise ValueError(
                f"the memory has {memory.frames.shape[1]} latent channels and the model takes {config.in_channels}: "
                "it was made for another latent format"
            )
        if self.rows.shape[0] != memory.batch_size:
            raise ValueError(
                f"{self.rows.shape[0]} prompts and a memory of {memory.batch_size} videos; the counts must be equal"
            )
        if self.settings.guided and self.negative_rows is None:
            place = "" if chunk is None else f" in chunk {chunk}"
            raise ValueError(
                f"guidance_scale {self.settings.guidance_scale}{place} needs a negative prompt (it may be empty); "
                "give one, or set guidance_scale to 1"
            )


@dataclass(frozen=True)
class Past:
    """All that a chunk continues from: the memory, the drift watch's state, and where an ordered noise stream stands
    (of the source with the seed `stream_seed`, if that is known)."""

    memory: HeliosMemory
    noise_stream: torch.Tensor | None = None
    drift: DriftState | None = None
    stream_seed: int | None = None


@dataclass(frozen=True)
class Chunk:
    """A finished chunk: `latents` (B, C, 9, h, w), fp32, model space, and the past of the chunk after it.

    `drift_check` is there when drift is watched and the chunk was made in this session.
    """

    latents: torch.Tensor
    past: Past
    drift_check: DriftCheck | None = None


class KeyChain:
    """The identities of chunks one after another: a hash chain, in which each stands for its own inputs and, through
    the one before, for all that led to them.

    A chain begins at a memory; one that begins at the memory after some chunk continues the chain that made it, so a
    chunk's identity does not depend on where a run was split. `noise_stream` is where a source that draws in order
    stands at the beginning.
    """

    def __init__(
        self,
        memory: HeliosMemory,
        model_fingerprint: str = "",
        anti_drift: AntiDrift | None = None,
        noise_stream: torch.Tensor | None = None,
    ) -> None:
        self.digest = memory.identity or fingerprint(
            {"frames": memory.frames, "anchor": memory.anchor, "index": memory.chunk_index, "config": memory.config}
        )
        if noise_stream is not None:
            self.digest = fingerprint(self.digest, noise_stream)
        self._about = fingerprint(SAMPLER_VERSION, model_fingerprint, anti_drift)
        self._known: dict[str, tuple[torch.Tensor, str]] = {}

    def append(self, plan: ChunkPlan) -> str:
        """The identity of the chunk that follows."""
        self.digest = fingerprint(self.digest, self._about, self.inputs(plan))
        return self.digest

    def inputs(self, plan: ChunkPlan) -> dict[str, Any]:
        """What a chunk is made from besides model and past: names for people, and values or identities."""
        settings = {each.name: getattr(plan.settings, each.name) for each in fields(plan.settings)}
        negative = plan.negative_rows if plan.settings.guided else None
        return settings | {
            "prompt": plan.prompt_identity or self._content("prompt", plan.rows),
            "negative prompt": negative is not None and (plan.negative_identity or self._content("negative", negative)),
            "anchor picture": plan.anchor is not None
            and (plan.anchor_identity or self._content("anchor", plan.anchor)),
            "noise": type(plan.noise).__name__,
            "seed": plan.noise.seed,
            "LoRAs of the schedule": sorted((lora.identity, lora.strength) for lora in plan.loras),
        }

    def _content(self, name: str, tensor: torch.Tensor | None) -> str | None:
        """Fingerprint of a tensor's values; of one that comes again and again, taken once."""
        if tensor is None:
            return None
        held, known = self._known.get(name, (None, ""))
        if held is not tensor:
            known = fingerprint(tensor)
            self._known[name] = (tensor, known)
        return known
