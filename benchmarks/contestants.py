"""The two that are compared: our sampler and diffusers' pipeline, with the same weights, inputs and noise.

Each makes the chunks alone (from the prompt's rows to latents, with the frames decoded) and a whole film (from the
prompt's text to an mp4).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from diffusers import AutoencoderKLWan, HeliosTransformer3DModel
from diffusers.models.transformers.transformer_helios import HeliosRotaryPosEmbed

from helios_core.geometry import LATENT_FRAMES_PER_CHUNK
from helios_core.media.frames import from_pixels
from helios_core.media.writer import VideoWriter
from helios_core.memory.storage import ModelIdentity
from helios_core.model.transformer import HeliosTransformer
from helios_core.run import long_video
from helios_core.run.job import LongVideo
from helios_core.run.long_video import make_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.noise import DiffusersNoise
from helios_core.sampling.plan import ChunkPlan
from tests import reference
from tests.chunks import chunks_of

from .cases import PROMPT, Case
from .diffusers_vae import DiffusersWanCodec
from .prompts import WordTokenizer, encode, text_encoder
from .stopwatch import Stopwatch, synchronise

SEED = 11


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

    @cached_property
    def text_encoder(self):
        """Made when a film is: it takes 11 GB at its real size."""
        return text_encoder(self.ours.config.text_dim, self.device, self.ours.dtype)

    @property
    def tokenizer(self) -> WordTokenizer:
        return WordTokenizer(self.text_encoder.config.vocab_size)

    def encode(self, prompt: str) -> torch.Tensor:
        """The text encoder's rows (1, 512, text_dim)."""
        return encode(self.text_encoder, self.tokenizer, prompt)

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        synchronise(self.device)

    def noise(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(SEED)


def diffusers_twin(model: HeliosTransformer, device: torch.device) -> HeliosTransformer3DModel:
    """diffusers' transformer over the very tensors of ours."""
    config = asdict(model.config)
    with torch.device("meta"):
        twin = HeliosTransformer3DModel(**config)
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.rope = HeliosRotaryPosEmbed(model.config.rope_dim, model.config.rope_theta).to(device)
    return twin.eval().requires_grad_(False)


def pipeline_arguments(case: Case) -> dict:
    """What diffusers' pipeline is to make, without prompt and noise."""
    steps = {"num_inference_steps": case.steps[0]}
    if case.variant != "base":
        steps = {"pyramid_num_inference_steps_list": list(case.steps), "is_amplify_first_chunk": False}
    return {
        "height": case.height,
        "width": case.width,
        "num_frames": 33 * case.num_chunks,
        "guidance_scale": case.settings.guidance_scale,
        **steps,
    }


# From the prompt's rows to latents


def chunks_of_ours(case: Case, parts: Parts) -> torch.Tensor:
    """Latents (1, 16, 9 * num_chunks, h, w); frames are decoded and let go, as by a streaming writer."""
    codec = DiffusersWanCodec(parts.vae)
    made = []
    for latents, _ in chunks_of(
        parts.ours,
        parts.prompt,
        text_memory(width=case.width, height=case.height).to(parts.device),
        case.num_chunks,
        DiffusersNoise(parts.noise()),
        case.settings,
        negative=parts.negative if case.settings.guided else None,
    ):
        codec.decode(latents).cpu()
        made.append(latents)
    return torch.cat(made, dim=2)


def chunks_of_diffusers(case: Case, parts: Parts) -> torch.Tensor:
    """Latents as above. The pipeline decodes every chunk also when it gives latents."""
    pipe = reference.pipeline(case.variant, parts.theirs, parts.vae)
    frames = pipe(
        prompt_embeds=parts.prompt,
        negative_prompt_embeds=parts.negative,
        generator=parts.noise(),
        output_type="latent",
        **pipeline_arguments(case),
    ).frames
    return frames[:, :, -LATENT_FRAMES_PER_CHUNK * case.num_chunks :].float()


# From the prompt's text to a file


def film_of_ours(case: Case, parts: Parts, path: Path) -> None:
    """As Helios Long Video makes it: chunk by chunk to a run folder, encoding beside the next chunk's sampling."""
    rows = [parts.encode(prompt) for prompt in case.prompts]
    codec = DiffusersWanCodec(parts.vae)
    plan = ChunkPlan(
        rows[0],
        case.settings,
        DiffusersNoise(parts.noise()),
        negative_rows=rows[1] if case.settings.guided else None,
    )
    video = LongVideo(
        memory=text_memory(width=case.width, height=case.height),
        num_chunks=case.num_chunks,
        plan=lambda _: plan,
        noise=plan.noise,
        model=ModelIdentity("benchmark", "benchmark"),
    )
    make_video(
        video,
        RunFolder(path.with_suffix("")),
        path,
        load_model=lambda: parts.ours,
        decode=lambda latents: from_pixels(codec.decode(latents)).cpu(),
    )


def film_of_diffusers(case: Case, parts: Parts, path: Path) -> None:
    """The pipeline gives all frames at its end. They go through our writer, so that both sides' encoders are equal."""
    pipe = reference.pipeline(case.variant, parts.theirs, parts.vae)
    pipe.register_modules(tokenizer=parts.tokenizer, text_encoder=parts.text_encoder)
    frames = pipe(
        prompt=PROMPT,
        negative_prompt="",
        generator=parts.noise(),
        output_type="np",
        **pipeline_arguments(case),
    ).frames[0]
    write_film(path, torch.from_numpy(frames))


def write_film(path: Path, frames: torch.Tensor) -> None:
    """Encode frames (T, H, W, 3) in [0, 1]."""
    with VideoWriter(path, width=frames.shape[2], height=frames.shape[1]) as writer:
        writer.write(frames)


@dataclass(frozen=True)
class Contestant:
    """`chunks(case, parts)` gives latents, `film(case, parts, path)` writes an mp4."""

    chunks: Callable[[Case, Parts], torch.Tensor]
    film: Callable[[Case, Parts, Path], None]

    def make_film(self, case: Case, parts: Parts) -> None:
        """A film that nobody keeps."""
        with TemporaryDirectory() as folder:
            self.film(case, parts, Path(folder) / "film.mp4")


CONTESTANTS = {
    "ComfyUI-Helios": Contestant(chunks_of_ours, film_of_ours),
    "diffusers": Contestant(chunks_of_diffusers, film_of_diffusers),
}
OURS, THEIRS = CONTESTANTS


@contextmanager
def watched(case: Case, parts: Parts) -> Iterator[Stopwatch]:
    """Time text encoder, transformer (stage by stage), VAE and video encoder inside the block, on both sides."""
    watch = Stopwatch(parts.device)
    num_stages = len(case.steps)

    def stage(latents: torch.Tensor | None = None, *_, hidden_states: torch.Tensor | None = None, **__) -> str:
        width = (hidden_states if latents is None else latents).shape[-1] * 8
        return stage_name(num_stages - (case.width // width).bit_length(), num_stages)

    modules = [
        (parts.text_encoder, "forward", "text"),
        (parts.ours, "forward", stage),
        (parts.theirs, "forward", stage),
        (parts.vae, "decode", "VAE decode"),
    ]
    with ExitStack() as stack:
        for module, name, part in modules:
            setattr(module, name, watch.wrap(part, getattr(module, name)))
            stack.callback(delattr, module, name)
        here = sys.modules[__name__]
        for module, name in ((long_video, "write_part"), (long_video, "join_parts"), (here, "write_film")):
            timed = watch.wrap("encode", getattr(module, name), on_host=True)
            stack.enter_context(mock.patch.object(module, name, timed))
        yield watch


def stage_name(stage: int, num_stages: int) -> str:
    """`stage` is counted from 0."""
    return f"DiT, stage {stage + 1} of {num_stages}"
