"""The two that are compared: our sampler and diffusers' pipeline, with the same weights, inputs and noise."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from diffusers import AutoencoderKLWan, HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosRotaryPosEmbed

from helios_core.codec import DiffusersWanCodec
from helios_core.conditioning import text_memory
from helios_core.config import LATENT_FRAMES_PER_CHUNK, VARIANTS, SamplingSettings, TransformerConfig
from helios_core.noise import DiffusersNoise
from helios_core.sampler import sample_chunks
from helios_core.transformer import HeliosTransformer
from tests import reference

SEED = 11


@dataclass(frozen=True)
class Case:
    """What both make: `num_chunks` chunks of one video."""

    name: str
    config: TransformerConfig
    variant: str
    steps: tuple[int, ...]
    width: int
    height: int
    num_chunks: int = 1

    @property
    def settings(self) -> SamplingSettings:
        return replace(VARIANTS[self.variant], steps=self.steps, amplify_first_chunk=False)


@dataclass
class Stopwatch:
    """Seconds of each part of a run. On a GPU they are taken between events, so that the host never waits."""

    device: torch.device
    marks: list[tuple[str, object, object]] = field(default_factory=list)

    def now(self) -> object:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wrap(self, part: str | Callable[..., str], function: Callable) -> Callable:
        """`function`, timed as `part`, which may depend on its arguments."""

        def timed(*args, **kwargs):
            start = self.now()
            result = function(*args, **kwargs)
            self.marks.append((part if isinstance(part, str) else part(*args, **kwargs), start, self.now()))
            return result

        return timed

    def seconds(self) -> dict[str, float]:
        synchronise(self.device)
        total = defaultdict(float)
        for part, start, end in self.marks:
            total[part] += start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
        return dict(total)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Parts:
    """Weights, shared by both sides, and a prompt's rows. Nothing is downloaded: the weights are random."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.ours = reference.randomise(HeliosTransformer(case.config, dtype=dtype, device=device), seed=0)
        self.ours.requires_grad_(False)
        self.theirs = diffusers_twin(self.ours, device)
        source = reference.generator(1)
        rows = [torch.randn(1, 512, case.config.text_dim, generator=source) for _ in range(2)]
        self.prompt, self.negative = (row.to(device, dtype) for row in rows)
        with device:
            # Both sides decode with the same module; on a CPU the full one would be all that is measured.
            self.vae = reference.vae() if device.type == "cpu" else AutoencoderKLWan()
        self.vae.eval().requires_grad_(False)

    def weights(self) -> list[torch.Tensor]:
        return [*self.ours.parameters(), *self.vae.parameters(), *self.vae.buffers(), self.prompt, self.negative]


def diffusers_twin(model: HeliosTransformer, device: torch.device) -> HeliosTransformer3DModel:
    """diffusers' transformer over the very tensors of ours."""
    config = asdict(model.config)
    with torch.device("meta"):
        twin = HeliosTransformer3DModel(**config)
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.rope = HeliosRotaryPosEmbed(model.config.rope_dim, model.config.rope_theta).to(device)
    return twin.eval().requires_grad_(False)


def run_ours(case: Case, parts: Parts) -> torch.Tensor:
    """Latents (1, 16, 9 * num_chunks, h, w); frames are decoded and let go, as by a streaming writer."""
    codec = DiffusersWanCodec(parts.vae)
    made = []
    for latents, _ in sample_chunks(
        parts.ours,
        parts.prompt,
        text_memory(width=case.width, height=case.height).to(parts.device),
        case.num_chunks,
        DiffusersNoise(torch.Generator(parts.device).manual_seed(SEED)),
        case.settings,
        negative_prompt_embeds=parts.negative if case.settings.guided else None,
    ):
        codec.decode(latents).cpu()
        made.append(latents)
    return torch.cat(made, dim=2)


def run_diffusers(case: Case, parts: Parts) -> torch.Tensor:
    """Latents as above. The pipeline decodes every chunk also when it gives latents."""
    pipe = reference.pipeline(case.variant, parts.theirs, parts.vae)
    steps = {"num_inference_steps": case.steps[0]}
    if case.variant != "base":
        steps = {"pyramid_num_inference_steps_list": list(case.steps), "is_amplify_first_chunk": False}
    frames = pipe(
        prompt_embeds=parts.prompt,
        negative_prompt_embeds=parts.negative,
        height=case.height,
        width=case.width,
        num_frames=33 * case.num_chunks,
        guidance_scale=case.settings.guidance_scale,
        generator=torch.Generator(parts.device).manual_seed(SEED),
        output_type="latent",
        **steps,
    ).frames
    return frames[:, :, -LATENT_FRAMES_PER_CHUNK * case.num_chunks :].float()


@contextmanager
def watched(case: Case, parts: Parts) -> Iterator[Stopwatch]:
    """Time the transformer, stage by stage, and the VAE inside the block, on both sides."""
    watch = Stopwatch(parts.device)

    def stage(latents: torch.Tensor | None = None, *_, hidden_states: torch.Tensor | None = None, **__) -> str:
        width = (hidden_states if latents is None else latents).shape[-1] * 8
        shrink = case.width // width
        return f"DiT, stage {len(case.steps) - shrink.bit_length() + 1} of {len(case.steps)}"

    touched = [(parts.ours, "forward", stage), (parts.theirs, "forward", stage), (parts.vae, "decode", "VAE decode")]
    for module, name, part in touched:
        setattr(module, name, watch.wrap(part, getattr(module, name)))
    try:
        yield watch
    finally:
        for module, name, _ in touched:
            delattr(module, name)


CONTESTANTS: dict[str, Callable[[Case, Parts], torch.Tensor]] = {
    "ComfyUI-Helios": run_ours,
    "diffusers": run_diffusers,
}
