"""The chunk loop: past -> memory tokens -> start noise -> stages -> steps -> latents -> next past.

A chunk is a pure function of the model, its plan and the past. Every way to make a video (nodes, command line, tests,
benchmarks) is this loop with plans of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..geometry import LATENT_FRAMES_PER_CHUNK
from ..memory.memory import HeliosMemory
from ..memory.storage import ModelIdentity
from ..model.patchify import num_tokens
from ..model.transformer import HeliosTransformer, MemoryTokens, PromptContext
from ..transfer import to_device
from .drift import AntiDrift, DriftCheck, DriftState
from .guidance import guide, is_zero_step
from .hooks import Hooks, Predict, Step, StepDone
from .loras import LoraStrength
from .noise import NoiseSource, restore_stream, stream_state
from .plan import Chunk, ChunkPlan, KeyChain, Past
from .pyramid import StageSchedule, renoise, renoise_shape, stage_schedule, start_noise
from .settings import SamplingSettings
from .solvers import SOLVERS, SolverState

logger = logging.getLogger(__name__)

UNKNOWN_MODEL = ModelIdentity("", "")


class NonFiniteError(RuntimeError):
    """The latents hold NaN or infinity. The message names chunk, stage and step, and where to look."""


class OutOfMemoryError(torch.cuda.OutOfMemoryError):
    """The device ran out of memory. The message names chunk and stage, and what to lower."""


def make_chunks(
    load_model: Callable[[], HeliosTransformer],
    past: Past,
    plans: Iterable[ChunkPlan],
    *,
    hooks: Hooks | None = None,
    anti_drift: AntiDrift | None = None,
    identity: ModelIdentity = UNKNOWN_MODEL,
) -> Iterator[Chunk]:
    """Make a chunk from each plan, the first one following `past`. A plan is asked for when its turn has come.

    `load_model()` is called before each chunk and gives the model ready to compute (a host may have moved it away to
    decode); always the same one, which `identity` names in the memories. Raises ValueError when a plan does not fit,
    NonFiniteError when the latents turn into NaN or infinity, OutOfMemoryError when the device has too little memory.
    """
    hooks = hooks or Hooks()
    prompts = EncodedPrompts()
    keys = KeyChain(past.memory, identity.fingerprint, anti_drift)
    for plan in plans:
        model = load_model()
        plan.check(past.memory, model.config)
        set_loras(plan, hooks)
        take_up_stream(plan.noise, past)
        memory = plan.anchored(past.memory)
        latents = sample_chunk(model, memory, plan, prompts.of(plan, model), hooks)
        remembered, drift, check = watch_drift(latents, past, plan.noise, anti_drift)
        memory = memory.append(
            remembered,
            model=identity.name,
            seed=plan.noise.seed,
            model_fingerprint=identity.fingerprint,
            identity=keys.append(plan) if stream_state(plan.noise) is None else "",
        )
        past = replace(leave_stream(plan.noise, past), memory=memory, drift=drift)
        yield Chunk(latents, past, check)


@torch.no_grad()
def sample_chunk(
    model: HeliosTransformer, memory: HeliosMemory, plan: ChunkPlan, prompts: Sequence[PromptContext], hooks: Hooks
) -> torch.Tensor:
    """Denoise the chunk that follows `memory`: latents (B, C, 9, h, w), fp32, model space. `prompts` are the prompt
    and, with guidance, the negative one."""
    settings, schedule, noise = plan.settings, plan.settings.schedule, plan.noise
    index, device = memory.chunk_index, prompts[0].tokens.device
    with out_of_memory_at(f"chunk {index + 1}, before its first stage", memory):
        memory_tokens = model.encode_memory(memory.window(device))
    velocity = GuidedVelocity(hooks.prediction_of(model), prompts, memory_tokens, settings, model.dtype)
    x = start_noise(to_device(noise.normal(chunk_shape(memory), ("chunk", index)), device), schedule.num_stages)

    for stage, num_steps in enumerate(settings.steps_in_chunk(index)):
        # Counted before upsampling: a stage above the lowest is shifted as for a quarter of its tokens.
        # diffusers and the authors' code do so.
        steps = stage_schedule(schedule, stage, num_steps, num_noisy_tokens(x, model))
        if stage > 0:
            independent = noise.normal(renoise_shape(x), ("renoise", index, stage))
            x = renoise(x, to_device(independent, device), stage, schedule, model.dtype)
        place = f"chunk {index + 1}, stage {stage + 1} of {schedule.num_stages}"
        with out_of_memory_at(place, memory):
            first_step = Step(index, stage, schedule.num_stages, 0, num_steps)
            x, finite = denoise_stage(x, steps, velocity, first_step, hooks)
        check_finite(finite, place, prompts[0], memory)
    return x.float()


def denoise_stage(
    x: torch.Tensor, schedule: StageSchedule, velocity: GuidedVelocity, at: Step, hooks: Hooks
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Follow the flow of one stage from its first noise level to sigma 0: the sample there, and for each step a
    boolean on the device that says whether all values were finite after it."""
    solve = SOLVERS[velocity.settings.schedule.solver]
    state = SolverState(start=x)
    finite = []
    for number in range(len(schedule.timesteps)):
        step = replace(at, step=number)
        x, denoised, state = solve(x, partial(velocity, step), schedule, state)
        finite.append(x.isfinite().all())
        if hooks.progress is not None:
            hooks.progress(StepDone(**vars(step), denoised=denoised))
    return x, finite


@dataclass(frozen=True)
class GuidedVelocity:
    """The velocity that a solver follows: the model's, guided. A solver may ask more than once in a step."""

    predict: Predict
    prompts: Sequence[PromptContext]
    memory: MemoryTokens
    settings: SamplingSettings
    dtype: torch.dtype

    def __call__(self, step: Step, x: torch.Tensor, timestep: float) -> torch.Tensor:
        """Velocity (B, C, T, h, w) of the sample x at `timestep` on the scale 0..1000."""
        if is_zero_step(self.settings, step.stage, step.step):
            return torch.zeros_like(x, dtype=self.dtype)
        # Filled in on the device: a copy from the host would make it wait for all that the device has yet to do.
        timesteps = torch.full((x.shape[0],), timestep, dtype=torch.float32, device=x.device)
        velocities = self.predict(x, timesteps, self.prompts, self.memory, step)
        return guide(*velocities, self.settings) if self.settings.guided else velocities[0]


class EncodedPrompts:
    """The latest prompt and negative prompt as the blocks use them: what does not change from plan to plan stays. LoRAs
    act on them, too."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[torch.Tensor, PromptContext]] = {}
        self._loras: tuple[LoraStrength, ...] = ()

    @torch.no_grad()
    def of(self, plan: ChunkPlan, model: HeliosTransformer) -> list[PromptContext]:
        """The plan's prompt and, with guidance, its negative prompt."""
        if plan.loras != self._loras:
            self._held.clear()
            self._loras = plan.loras
        wanted = {"prompt": plan.rows}
        if plan.settings.guided:
            wanted["negative"] = plan.negative_rows
        for name, rows in wanted.items():
            if name not in self._held or self._held[name][0] is not rows:
                self._held.pop(name, None)  # it is large and is let go before the next one is made
                self._held[name] = (rows, model.encode_prompt(rows))
        return [self._held[name][1] for name in wanted]


def set_loras(plan: ChunkPlan, hooks: Hooks) -> None:
    """Have the LoRAs of the plan act. Raises ValueError when it has some and nobody puts them on the model."""
    if hooks.set_loras is not None:
        hooks.set_loras(plan.loras)
    elif plan.loras:
        raise ValueError(f"the plan names the LoRA {plan.loras[0].name!r}, and this run has none (see Hooks.set_loras)")


def watch_drift(
    latents: torch.Tensor, past: Past, noise: NoiseSource, anti_drift: AntiDrift | None
) -> tuple[torch.Tensor, DriftState | None, DriftCheck | None]:
    """What the next chunks remember of this one: noisier than it was when it has drifted (see `drift`)."""
    if anti_drift is None:
        return latents, None, None
    check, state = anti_drift.watch(latents, past.drift)
    if not check.has_drifted:
        return latents, state, check
    index = past.memory.chunk_index
    logger.info("chunk %d has drifted; noise is added to what the next chunks remember of it", index)
    grain = noise.normal(tuple(latents.shape), ("drift", index))
    return latents + anti_drift.strength * grain.to(latents), state, check


def take_up_stream(noise: NoiseSource, past: Past) -> None:
    """Put a source that draws in order to where the past left it."""
    if past.noise_stream is not None and past.stream_seed in (None, noise.seed):
        restore_stream(noise, past.noise_stream)


def leave_stream(noise: NoiseSource, past: Past) -> Past:
    """The past with the state of a source that draws in order; other sources leave it as it was."""
    state = stream_state(noise)
    return past if state is None else replace(past, noise_stream=state, stream_seed=noise.seed)


def chunk_shape(memory: HeliosMemory) -> tuple[int, ...]:
    """Shape (B, C, 9, h, w) of the chunk after `memory`."""
    batch_size, channels, _, height, width = memory.frames.shape
    return batch_size, channels, LATENT_FRAMES_PER_CHUNK, height, width


def num_noisy_tokens(x: torch.Tensor, model: HeliosTransformer) -> int:
    """Tokens of a sample x (B, C, T, h, w)."""
    return num_tokens(x.shape[2:], model.config.patch_size)


def check_finite(finite: list[torch.Tensor], place: str, prompt: PromptContext, memory: HeliosMemory) -> None:
    """Raise NonFiniteError, naming the first step that was not finite.

    Called once a stage: to ask the device after each step would make it wait for the host each time.
    """
    verdicts = torch.stack(finite).tolist()
    if all(verdicts):
        return
    if not memory.frames.isfinite().all():
        where = "The memory that the chunk continues from holds them already: make or load it anew"
    elif not prompt.tokens.isfinite().all():
        where = "The prompt's tokens hold them already: the text encoder's output or the weights are damaged"
    else:
        where = "The usual causes are damaged weights, a LoRA at too high a strength, and fp16 (choose bf16)"
    raise NonFiniteError(
        f"the latents became NaN or infinite in {place}, step {verdicts.index(False) + 1} of {len(verdicts)}. {where}"
    )


@contextmanager
def out_of_memory_at(place: str, memory: HeliosMemory) -> Iterator[None]:
    """Turn the device's error into one that names the place and what to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as fault:
        raise OutOfMemoryError(
            f"out of memory in {place}, at {memory.width}x{memory.height}. Lower width and height, keep the weights "
            f"in fewer bits (fp8_e4m3fn), or give the run more of the device's memory. The device said: {fault}"
        ) from fault
