"""Chunks from the loop in the form that tests look at: latents and the memory after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat

import torch

from helios_core.memory.memory import HeliosMemory
from helios_core.memory.storage import ModelIdentity
from helios_core.model.transformer import HeliosTransformer
from helios_core.options.approximations import with_approximations
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.loop import make_chunks
from helios_core.sampling.noise import NoiseSource
from helios_core.sampling.plan import ChunkPlan, Past
from helios_core.sampling.settings import SamplingSettings
from helios_core.script.blending import EncodedSchedule
from helios_core.script.plans import ScriptedPlans

Made = Iterator[tuple[torch.Tensor, HeliosMemory]]


def chunks_of(
    model: HeliosTransformer,
    rows: torch.Tensor,
    memory: HeliosMemory,
    num_chunks: int,
    noise: NoiseSource,
    settings: SamplingSettings,
    *,
    negative: torch.Tensor | None = None,
    hooks: Hooks | None = None,
    model_name: str = "",
) -> Made:
    """(latents, memory) of chunks that all have the same plan."""
    plan = ChunkPlan(rows, settings, noise, negative_rows=negative)
    hooks = with_approximations(hooks or Hooks(), settings)
    identity = ModelIdentity(model_name, "")
    for chunk in make_chunks(lambda: model, Past(memory), repeat(plan, num_chunks), hooks=hooks, identity=identity):
        yield chunk.latents, chunk.past.memory


def chunks_of_script(
    model: HeliosTransformer,
    script: EncodedSchedule,
    memory: HeliosMemory,
    num_chunks: int,
    noise: NoiseSource,
    noise_of: Callable[[int], NoiseSource],
    settings: SamplingSettings,
    *,
    negative: torch.Tensor | None = None,
    anchors: Mapping[int, torch.Tensor] | None = None,
    hooks: Hooks | None = None,
) -> Made:
    """(latents, memory) of the chunks after `memory` as a script plans them."""
    plans = ScriptedPlans(script, settings, noise, negative, anchors=anchors or {}, noise_of=noise_of)
    span = range(memory.chunk_index, memory.chunk_index + num_chunks)
    for chunk in make_chunks(lambda: model, Past(memory), map(plans, span), hooks=hooks):
        yield chunk.latents, chunk.past.memory
