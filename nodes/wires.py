"""The pack's own wire types, and how ComfyUI's wires carry Helios values."""

import torch
from comfy_api.latest import io

from ..helios_core.geometry import LATENT_FRAMES_PER_CHUNK
from ..helios_core.model.config import MAX_PROMPT_TOKENS
from ..helios_core.script.blending import EncodedSchedule
from .host.wire_identity import wire_identity

CATEGORY = "Helios"

HeliosMemoryType = io.Custom("HELIOS_MEMORY")
HeliosScheduleType = io.Custom("HELIOS_SCHEDULE")
# What `positive` of a sampler takes.
PROMPT_TYPES = [io.Conditioning, HeliosScheduleType]


def prompt_schedule(positive: list | EncodedSchedule, hidden) -> EncodedSchedule:
    """What `positive` of a sampler holds, as a schedule: a CONDITIONING is one prompt for the whole video. `hidden` are
    the node's hidden inputs, see `wire_identity`."""
    if isinstance(positive, EncodedSchedule):
        return positive
    return EncodedSchedule.of_one_prompt(prompt_embeds(positive, "positive"), wire_identity(hidden, "positive"))


def prompt_embeds(conditioning: list, name: str) -> torch.Tensor:
    """The text encoder's rows (1, L, text_dim) of a CONDITIONING.

    Raises ValueError when it holds several conditions, or more rows than Helios' 512.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"{name} holds {len(conditioning)} conditions; Helios takes one. Mix prompts with ConditioningAverage, or "
            "write them as one text, instead of ConditioningCombine"
        )
    rows = conditioning[0][0]
    if rows.ndim != 3 or rows.shape[0] != 1:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; expected (1, tokens, channels) from one prompt")
    if rows.shape[1] > MAX_PROMPT_TOKENS:
        raise ValueError(
            f"{name} has {rows.shape[1]} tokens; Helios was trained with {MAX_PROMPT_TOKENS}. Shorten the prompt; two "
            "prompts that ConditioningConcat has joined are too long, so write them as one text"
        )
    return rows


def check_chunk_latents(samples: torch.Tensor) -> None:
    """Raise ValueError unless `samples` is a batch of chunks (num_chunks, 16, 9, h, w)."""
    if samples.ndim != 5 or samples.shape[2] != LATENT_FRAMES_PER_CHUNK:
        raise ValueError(
            f"latents have shape {tuple(samples.shape)}; expected (chunks, 16, {LATENT_FRAMES_PER_CHUNK}, "
            "height/8, width/8) from a Helios Chunk Sampler"
        )


def said_by(check, value) -> bool | str:
    """For `validate_inputs`: True, or what `check(value)` says against the value; None comes from another node and is
    known only when that has run."""
    if value is not None:
        try:
            check(value)
        except ValueError as error:
            return str(error)
    return True
