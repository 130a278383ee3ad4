"""A chunk's journey: memory tokens -> stages -> steps -> latents -> next memory.

`sample_chunk` is a pure function of model, prompt, memory, noise and settings. `sample_chunks` chains it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from ..geometry import LATENT_FRAMES_PER_CHUNK, check_size
from ..memory.memory import HeliosMemory
from ..model.attention import AttentionFunction
from ..model.transformer import HeliosTransformer, MemoryTokens, PromptContext
from ..options.step_cache import StepCache
from ..transfer import to_device
from .guidance import guide, is_zero_step
from .noise import NoiseSource
from .pyramid import StageSchedule, renoise, renoise_shape, stage_schedule, start_noise
from .settings import SamplingSettings
from .solvers import SOLVERS, SolverState

# forward(latents, timestep, prompt, memory) -> velocity: what `HeliosTransformer.forward` does.
Forward = Callable[[torch.Tensor, torch.Tensor, PromptContext, MemoryTokens], torch.Tensor]


class NonFiniteError(RuntimeError):
    """The latents hold NaN or infinity. The message names chunk, stage and step, and where to look."""


class OutOfMemoryError(torch.cuda.OutOfMemoryError):
    """The device ran out of memory. The message names chunk and stage, and what to lower."""


@dataclass(frozen=True)
class StepDone:
    """Told to `progress` after each step: `step` of `num_steps` in `stage` of `num_stages`, all counted from 0.

    `denoised` is the current guess of the clean latents (B, C, T, h, w) at the stage's size, model space.
    """

    chunk_index: int
    stage: int
    num_stages: int
    step: int
    num_steps: int
    denoised: torch.Tensor


@dataclass(frozen=True)
class Hooks:
    """What a host hands in: `progress` is called after each step; `check_cancelled` before each forward of the model,
    and raises to stop the run; `attention` is used instead of torch's; `forward`, if there is one, is called in place
    of the model itself (and brings its own attention)."""

    progress: Callable[[StepDone], None] | None = None
    check_cancelled: Callable[[], None] | None = None
    attention: AttentionFunction = F.scaled_dot_product_attention
    forward: Forward | None = None


def count_steps(settings: SamplingSettings, memory: HeliosMemory, num_chunks: int) -> int:
    """Steps of the whole job: `num_chunks` chunks that follow `memory`."""
    first = memory.chunk_index
    return sum(sum(settings.steps_in_chunk(index)) for index in range(first, first + num_chunks))


def check_job(
    model: HeliosTransformer, memory: HeliosMemory, settings: SamplingSettings, num_chunks: int, *, has_negative: bool
) -> None:
    """Raise ValueError, before any heavy work, when the parts of a job do not fit together."""
    check_size(memory.width, memory.height, settings.schedule.num_stages)
    if memory.frames.shape[1] != model.config.in_channels:
        raise ValueError(
            f"the memory has {memory.frames.shape[1]} latent channels and the model takes {model.config.in_channels}: "
            "it was made for another latent format"
        )
    if num_chunks < 1:
        raise ValueError(f"number of chunks is {num_chunks}; at least 1 is needed (a chunk is 33 frames)")
    if settings.guided and not has_negative:
        raise ValueError(
            f"guidance_scale {settings.guidance_scale} needs a negative prompt (it may be empty); "
            "give one, or set guidance_scale to 1"
        )


@torch.no_grad()
def sample_chunks(
    model: HeliosTransformer,
    prompt_embeds: torch.Tensor,
    memory: HeliosMemory,
    num_chunks: int,
    noise: NoiseSource,
    settings: SamplingSettings,
    *,
    negative_prompt_embeds: torch.Tensor | None = None,
    hooks: Hooks | None = None,
    model_name: str = "",
) -> Iterator[tuple[torch.Tensor, HeliosMemory]]:
    """Yield (latents (B, C, 9, h, w), memory) chunk after chunk; the prompt is encoded once.

    `prompt_embeds` (B, L, text_dim) are the text encoder's rows, on the device to compute on; the negative ones are
    needed when `settings.guided`. Latents are fp32 in model space and decode to 33 frames a chunk. `model_name` goes
    into the memory's provenance. Raises ValueError when the arguments do not fit together, NonFiniteError when the
    latents turn into NaN or infinity, and OutOfMemoryError when the device has too little memory.
    """
    check_job(model, memory, settings, num_chunks, has_negative=negative_prompt_embeds is not None)
    prompt = model.encode_prompt(prompt_embeds)
    negative = model.encode_prompt(negative_prompt_embeds) if settings.guided else None
    for _ in range(num_chunks):
        latents, memory = sample_chunk(
            model, prompt, memory, noise, settings, negative=negative, hooks=hooks, model_name=model_name
        )
        yield latents, memory


@torch.no_grad()
def sample_chunk(
    model: HeliosTransformer,
    prompt: PromptContext,
    memory: HeliosMemory,
    noise: NoiseSource,
    settings: SamplingSettings,
    *,
    negative: PromptContext | None = None,
    hooks: Hooks | None = None,
    model_name: str = "",
) -> tuple[torch.Tensor, HeliosMemory]:
    """Denoise the chunk that follows `memory`: latents (B, C, 9, h, w), fp32, model space, and the next memory."""
    hooks = hooks or Hooks()
    device = prompt.tokens.device
    if prompt.tokens.shape[0] != memory.batch_size:
        raise ValueError(
            f"{prompt.tokens.shape[0]} prompts and a memory of {memory.batch_size} videos; the counts must be equal"
        )
    index = memory.chunk_index
    schedule = settings.schedule
    with _out_of_memory_at(f"chunk {index + 1}, before its first stage", memory):
        memory_tokens = model.encode_memory(memory.window(device), reuse_history=settings.history_reuse != "off")
    batch_size, channels, _, height, width = memory.frames.shape
    shape = (batch_size, channels, LATENT_FRAMES_PER_CHUNK, height, width)
    prompts = [prompt, negative] if settings.guided else [prompt]
    x = start_noise(to_device(noise.normal(shape, ("chunk", index)), device), schedule.num_stages)

    for stage, num_steps in enumerate(settings.steps_in_chunk(index)):
        # Counted before upsampling: a stage above the lowest is shifted as for a quarter of its tokens.
        # diffusers and the authors' code do so.
        steps = stage_schedule(schedule, stage, num_steps, _num_noisy_tokens(x, model))
        if stage > 0:
            independent = noise.normal(renoise_shape(x), ("renoise", index, stage))
            x = renoise(x, to_device(independent, device), stage, schedule, model.dtype)
        if settings.history_reuse == "stage":
            memory_tokens.history.clear()
        cache = StepCache(settings.step_cache, num_steps) if settings.step_cache else None
        velocity = partial(_velocity, model, memory_tokens, prompts, settings, hooks, cache, stage)
        report = partial(_report, hooks, index, stage, schedule.num_stages)
        place = f"chunk {index + 1}, stage {stage + 1} of {schedule.num_stages}"
        with _out_of_memory_at(place, memory):
            x, finite = _denoise_stage(x, steps, velocity, settings, report)
        _check_finite(finite, place, prompt, memory)

    latents = x.float()
    return latents, memory.append(latents, model=model_name, seed=noise.seed)


def _denoise_stage(x: torch.Tensor, schedule: StageSchedule, velocity, settings: SamplingSettings, report):
    """Follow the flow of one stage from its first noise level to sigma 0: the sample there, and for each step a
    boolean on the device that tells whether all values were finite after it."""
    solve = SOLVERS[settings.schedule.solver]
    state = SolverState(start=x)
    finite = []
    for step, (timestep, sigma) in enumerate(zip(schedule.timesteps, schedule.sigmas, strict=False)):
        v = velocity(step, x, timestep)
        before = x
        x, state = solve(x, v, schedule, state)
        finite.append(x.isfinite().all())
        report(step, len(schedule.timesteps), before, v, sigma)
    return x, finite


def _check_finite(finite: list[torch.Tensor], place: str, prompt: PromptContext, memory: HeliosMemory) -> None:
    """Raise NonFiniteError, naming the first step that was not finite.

    Called once a stage: to ask the device after each step would make it wait for the host each time.
    """
    verdicts = torch.stack(finite).tolist()
    if all(verdicts):
        return
    if not memory.frames.isfinite().all():
        where = "The memory that the chunk goes on from holds them already: make or load it anew"
    elif not prompt.tokens.isfinite().all():
        where = "The prompt's tokens hold them already: the text encoder's output or the weights are damaged"
    else:
        where = "The usual causes are damaged weights, a LoRA at too high a strength, and fp16 (choose bf16)"
    raise NonFiniteError(
        f"the latents became NaN or infinite in {place}, step {verdicts.index(False) + 1} of {len(verdicts)}. {where}"
    )


@contextmanager
def _out_of_memory_at(place: str, memory: HeliosMemory) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as fault:
        raise OutOfMemoryError(
            f"out of memory in {place}, at {memory.width}x{memory.height}. Lower width and height, keep the weights "
            f"in fewer bits (fp8_e4m3fn), or give the run more of the device's memory. The device said: {fault}"
        ) from fault


def _velocity(model, memory_tokens, prompts, settings, hooks, cache, stage, step, x, timestep) -> torch.Tensor:
    """The velocity that the solver follows: the model's, guided."""
    if is_zero_step(settings, stage, step):
        return torch.zeros_like(x, dtype=model.dtype)
    # Filled in on the device: a copy from the host would make it wait for all that the device has yet to do.
    timesteps = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
    forward = hooks.forward or partial(model, attention=hooks.attention)

    def predict(context: PromptContext) -> torch.Tensor:
        if hooks.check_cancelled is not None:
            hooks.check_cancelled()
        return forward(x, timesteps, context, memory_tokens)

    def predict_all() -> list[torch.Tensor]:
        # Two forwards of one sample each, not one of two: the same numbers, and half the memory.
        return [predict(context) for context in prompts]

    velocities = predict_all() if cache is None else cache.velocities(step, x, predict_all)
    return guide(*velocities, settings) if settings.guided else velocities[0]


def _report(hooks, chunk_index, stage, num_stages, step, num_steps, x, velocity, sigma) -> None:
    if hooks.progress is not None:
        denoised = x - sigma * velocity
        hooks.progress(StepDone(chunk_index, stage, num_stages, step, num_steps, denoised))


def _num_noisy_tokens(x: torch.Tensor, model: HeliosTransformer) -> int:
    patch_t, patch_h, patch_w = model.config.patch_size
    return x.shape[2] * x.shape[3] * x.shape[4] // (patch_t * patch_h * patch_w)
