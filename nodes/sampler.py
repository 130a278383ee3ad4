"""Helios Chunk Sampler: MODEL, prompt and memory -> chunks of latents and the next memory."""

import weakref

import comfy.model_management
import torch
from comfy_api.latest import io

from ..helios_core.geometry import check_num_chunks
from ..helios_core.sampling.loop import make_chunks
from ..helios_core.sampling.noise import NOISE_SOURCES, noise_source
from ..helios_core.sampling.plan import Past
from ..helios_core.sampling.settings import parse_steps
from ..helios_core.script.plans import ScriptedPlans
from .host.identity import model_identity
from .host.model import helios_model, model_settings
from .host.sampling_run import sampling_run, unfinished_run
from .host.vae import encode_anchors
from .wires import CATEGORY, PROMPT_TYPES, HeliosMemoryType, prompt_embeds, prompt_schedule


class HeliosChunkSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosChunkSampler",
            display_name="Helios Chunk Sampler",
            category=CATEGORY,
            description="Makes chunks of 33 frames that go on from a memory. Chain samplers through the memory to "
            "change the prompt or the seed as the video goes on; the latents hold one chunk per batch element. "
            "A run that was stopped goes on after its finished chunks when it is queued again with nothing changed.",
            inputs=[
                io.Model.Input("model", tooltip="A Helios model."),
                io.MultiType.Input(
                    "positive",
                    types=PROMPT_TYPES,
                    tooltip="What these chunks show: a prompt from the umt5-xxl text encoder, or a Helios Prompt "
                    "Schedule, which counts chunks from the start of the video.",
                ),
                HeliosMemoryType.Input("memory", tooltip="The past: from Helios Context or from another sampler."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise. The noise of a chunk depends on the seed and the chunk's place in the "
                    "video only, so a run split over samplers with one seed equals a run in one piece.",
                ),
                io.Int.Input(
                    "chunks",
                    default=4,
                    min=1,
                    max=10000,
                    tooltip="Number of chunks of 33 frames (1.375 seconds at 24 frames per second).",
                ),
                io.String.Input(
                    "steps",
                    default="",
                    tooltip="Steps in each pyramid stage, e.g. 2,2,2. Empty: the variant's own (Distilled 2,2,2; Mid "
                    "20,20,20; Base 50).",
                ),
                io.Float.Input(
                    "guidance_scale",
                    default=0.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="How strongly the prompt is followed. 0: the variant's own (Base and Mid 5, Distilled 1). "
                    "1 means no guidance, needs no negative prompt and takes half the time.",
                ),
                io.Boolean.Input(
                    "amplify_first_chunk",
                    default=True,
                    tooltip="Distilled only: twice the steps in the first chunk of a video, on which all others build.",
                ),
                io.Combo.Input(
                    "noise",
                    options=list(NOISE_SOURCES),
                    default="seeded",
                    tooltip="seeded: every chunk's noise follows from seed and chunk, for resuming and branching. "
                    "diffusers, authors: one stream of noise in the order of diffusers' pipeline or of the authors' "
                    "own, to compare with them.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="What to stay away from; may be an empty prompt. Needed with guidance.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Wan 2.1 VAE. Needed when the schedule sets anchor pictures only."
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", tooltip="One chunk of 9 latent frames per batch element."),
                HeliosMemoryType.Output("next_memory", display_name="memory", tooltip="The past after these chunks."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, steps: str | None = None) -> bool | str:
        if not steps:  # the variant's own, or from another node and known only when that has run
            return True
        try:
            parse_steps(steps)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        positive,
        memory,
        seed,
        chunks,
        steps,
        guidance_scale,
        amplify_first_chunk,
        noise,
        negative=None,
        vae=None,
    ) -> io.NodeOutput:
        helios = helios_model(model)
        settings = model_settings(model).overridden(steps, guidance_scale, amplify_first_chunk)
        script, device = prompt_schedule(positive), model.load_device
        check_num_chunks(chunks)
        span = range(memory.chunk_index, memory.chunk_index + chunks)
        plans = ScriptedPlans(
            script.to(device),
            settings,
            noise_source(noise, seed, device),
            negative_rows=None if negative is None else prompt_embeds(negative, "negative").to(device),
            anchors=encode_anchors(script, span, vae, memory),
            noise_of=lambda own: noise_source(noise, own, device),
        )
        planned = [plans(chunk) for chunk in span]
        for plan in planned:
            plan.check(memory, helios.diffusion_model.config)

        wires = (positive, negative, memory)
        run = unfinished_run(model, wires, (seed, settings, noise, vae and weakref.ref(vae)))
        # Of other noise sources the next draw depends on all draws before it.
        del run.chunks[chunks - 1 if noise == "seeded" else 0 :]
        past = Past(run.chunks[-1][1] if run.chunks else memory)
        with sampling_run(model, memory, [plan.settings for plan in planned], cls.hidden.unique_id) as sampling:
            for chunk in make_chunks(
                sampling.load,
                past,
                planned[len(run.chunks) :],
                hooks=sampling.hooks,
                identity=model_identity(model),
            ):
                run.chunks.append((chunk.latents.to(comfy.model_management.intermediate_device()), chunk.past.memory))
        helios.unfinished_run = None
        latents = torch.cat([latents for latents, _ in run.chunks])
        return io.NodeOutput({"samples": helios.process_latent_out(latents)}, run.chunks[-1][1])
