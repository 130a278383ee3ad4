"""From a script to the plan of each chunk: prompt, guidance, seed, re-rolls and anchors come together here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from ..sampling.noise import NoiseSource, SeededNoise
from ..sampling.plan import ChunkPlan
from ..sampling.settings import SamplingSettings
from .blending import EncodedSchedule


@dataclass
class ScriptedPlans:
    """Called with a chunk's number, counted from the start of the video, gives its plan.

    `noise` is the video's own source; `noise_of(seed)` that of a segment with a seed of its own, asked once for each
    segment. `rerolls`: chunk -> seed of its seeded noise, before all else. `anchors`: chunk -> latents (1, C, 1, h, w),
    model space, of the pictures in `script.anchors_in` the chunks to be made.
    """

    script: EncodedSchedule
    settings: SamplingSettings
    noise: NoiseSource
    negative_rows: torch.Tensor | None = None
    negative_identity: str = ""
    anchors: Mapping[int, torch.Tensor] = field(default_factory=dict)
    anchor_identities: Mapping[int, str] = field(default_factory=dict)
    rerolls: Mapping[int, int] = field(default_factory=dict)
    noise_of: Callable[[int], NoiseSource] = SeededNoise
    _sources: dict[int, NoiseSource] = field(default_factory=dict, repr=False)

    def __call__(self, chunk: int) -> ChunkPlan:
        """Raises ValueError for an anchor whose latents are not given."""
        if chunk not in self.anchors and self.script.anchors_in(range(chunk, chunk + 1)):
            raise ValueError(f"the schedule sets an anchor at chunk {chunk} whose latents are not given")
        settings = self.script.settings_for(chunk, self.settings)
        return ChunkPlan(
            rows=self.script.rows_for(chunk),
            settings=settings,
            noise=self._noise_for(chunk),
            negative_rows=self.negative_rows,
            anchor=self.anchors.get(chunk),
            prompt_identity=self.script.identity_for(chunk),
            negative_identity=self.negative_identity,
            anchor_identity=self.anchor_identities.get(chunk, ""),
            loras=self.script.loras_for(chunk),
        )

    def _noise_for(self, chunk: int) -> NoiseSource:
        if chunk in self.rerolls:
            return SeededNoise(self.rerolls[chunk])
        seed = self.script.seed_for(chunk)
        if seed is None:
            return self.noise
        segment = self.script.schedule.index_at(chunk)
        if segment not in self._sources:
            self._sources[segment] = self.noise_of(seed)
        return self._sources[segment]
