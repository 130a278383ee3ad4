"""One video made twice from the same weights, seed and inputs: by diffusers' pipeline and by our sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from helios_core.memory.config import MemoryConfig
from helios_core.memory.memory import HeliosMemory
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.sampling.conditioning import encode_image, encode_video, image_memory, text_memory, video_memory
from helios_core.sampling.noise import AuthorsNoise, DiffusersNoise, NoiseSource
from helios_core.sampling.settings import SamplingSettings, ScheduleConfig
from tests import reference
from tests.chunks import chunks_of

SEED = 2024


@dataclass(frozen=True)
class Case:
    """A video to make. The sizes are the smallest that exercise the variant; diffusers' CFG-Zero* cannot take a
    single token a frame (its `.view` needs contiguous velocities), hence the wider default."""

    variant: str = "mid"
    task: str = "t2v"
    steps: tuple[int, ...] = (3, 2, 2)
    num_chunks: int = 3
    height: int = 64
    width: int = 128
    guidance_scale: float = 5.0
    batch_size: int = 1
    zero_init: bool = True
    zero_steps: int = 1
    amplify_first_chunk: bool = False
    add_noise: bool = True
    image_sigma_range: tuple[float, float] = (0.111, 0.135)
    video_sigma_range: tuple[float, float] = (0.111, 0.135)
    num_video_frames: int = 70
    history_sizes: tuple[int, int, int] = (16, 2, 1)
    reanchor: bool = False
    authors_noise: bool = False
    scheduler: dict[str, Any] = field(default_factory=dict, hash=False)


BASE = Case(variant="base", steps=(4,), height=32, width=48)
MID = Case(variant="mid")
DISTILLED = Case(
    variant="distilled", steps=(2, 2, 2), height=64, width=64, guidance_scale=1.0, amplify_first_chunk=True
)


@lru_cache
def weights(dtype: torch.dtype):
    """The oracle's transformer in `dtype`."""
    exact = reference.transformer()
    return exact if dtype == torch.float32 else reference.in_bfloat16(exact)


@lru_cache
def autoencoder():
    return reference.vae()


def our_model(oracle) -> HeliosTransformer:
    model = HeliosTransformer(TransformerConfig.from_diffusers(oracle.config), dtype=oracle.dtype)
    model.load_state_dict(oracle.state_dict())
    return model.eval()


def prompts(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt and negative prompt embeddings, each (B, 12, 16)."""
    source = reference.generator(1)
    shape = (case.batch_size, 12, reference.TINY_SHAPE["text_dim"])
    return torch.randn(shape, generator=source), torch.randn(shape, generator=source)


def image_of(case: Case) -> torch.Tensor:
    return reference.clip(1, case.height, case.width)


def video_of(case: Case) -> torch.Tensor:
    return reference.clip(case.num_video_frames, case.height, case.width)


def oracle_latents(case: Case, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Latents (B, 16, 9 * num_chunks, h, w) of diffusers' pipeline, without those of the given image or video."""
    pipe = reference.pipeline(
        case.variant, weights(dtype), autoencoder(), authors_noise=case.authors_noise, **case.scheduler
    )
    prompt_embeds, negative_prompt_embeds = prompts(case)
    arguments = {"num_inference_steps": case.steps[0]}
    if case.variant != "base":
        arguments = {
            "pyramid_num_inference_steps_list": list(case.steps),
            "use_zero_init": case.zero_init,
            "zero_steps": case.zero_steps,
            "is_amplify_first_chunk": case.amplify_first_chunk,
        }
    if case.task == "i2v":
        arguments["image"] = image_of(case)
    if case.task == "v2v":
        arguments["video"] = video_of(case)[None]
    frames = pipe(
        prompt_embeds=prompt_embeds,
        negative_prompt_embeds=negative_prompt_embeds,
        height=case.height,
        width=case.width,
        num_frames=33 * case.num_chunks,
        guidance_scale=case.guidance_scale,
        generator=reference.generator(SEED),
        output_type="latent",
        add_noise_to_image_latents=case.add_noise,
        add_noise_to_video_latents=case.add_noise,
        image_noise_sigma_min=case.image_sigma_range[0],
        image_noise_sigma_max=case.image_sigma_range[1],
        video_noise_sigma_min=case.video_sigma_range[0],
        video_noise_sigma_max=case.video_sigma_range[1],
        history_sizes=list(case.history_sizes),
        is_skip_first_chunk=case.reanchor,
        **arguments,
    ).frames
    return frames[:, :, -reference.CHUNK * case.num_chunks :].float()


def our_settings(case: Case) -> SamplingSettings:
    """Read from the scheduler's config, as from a model folder."""
    scheduler = reference.scheduler(case.variant, **case.scheduler)
    schedule = ScheduleConfig.from_diffusers(dict(scheduler.config) | {"_class_name": type(scheduler).__name__})
    return SamplingSettings(
        schedule,
        steps=case.steps,
        guidance_scale=case.guidance_scale,
        cfg_zero_star=case.variant == "mid",
        zero_init=case.zero_init,
        zero_steps=case.zero_steps,
        amplify_first_chunk=case.amplify_first_chunk,
    )


def our_memory(case: Case, source: torch.Generator, noise: NoiseSource) -> HeliosMemory:
    """The first memory. Posterior samples come from the same generator, in the pipeline's order."""
    config = MemoryConfig(history_sizes=case.history_sizes, reanchor_on_second_chunk=case.reanchor)
    options = {
        "add_noise": case.add_noise,
        "image_sigma_range": case.image_sigma_range,
        "video_sigma_range": case.video_sigma_range,
        "config": config,
    }
    if case.task == "t2v":
        return text_memory(width=case.width, height=case.height, batch_size=case.batch_size, config=config)

    def encode(frames: torch.Tensor, key) -> torch.Tensor:
        return reference.encode(autoencoder(), frames.movedim(-1, 1), source)

    if case.task == "i2v":
        return image_memory(*encode_image(image_of(case).movedim(1, -1), encode), noise, **options)
    return video_memory(*encode_video(video_of(case).movedim(1, -1), encode, config=config), noise, **options)


def our_latents(case: Case, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Latents (B, 16, 9 * num_chunks, h, w) of our sampler."""
    source = reference.generator(SEED)
    noise = (AuthorsNoise if case.authors_noise else DiffusersNoise)(source)
    memory = our_memory(case, source, noise)
    prompt_embeds, negative_prompt_embeds = prompts(case)
    chunks = chunks_of(
        our_model(weights(dtype)),
        prompt_embeds,
        memory,
        case.num_chunks,
        noise,
        our_settings(case),
        negative=negative_prompt_embeds,
    )
    return torch.cat([latents for latents, _ in chunks], dim=2)
