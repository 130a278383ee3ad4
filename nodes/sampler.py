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
from .host.identity import model_identity, vae_identity
from .host.model import helios_model, model_settings
from .host.sampling_run import sampling_run, unfinished_run
from .host.vae import anchor_identities, encode_anchors
from .host.wire_identity import wire_identity
from .sampling_inputs import (
    amplify_first_chunk_input,
    guidance_scale_input,
    model_input,
    negative_input,
    seed_input,
    steps_input,
)
from .wires import CATEGORY, PROMPT_TYPES, HeliosMemoryType, prompt_embeds, prompt_schedule


class HeliosChunkSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosChunkSampler",
            display_name="Helios Chunk Sampler",
            category=CATEGORY,
            description="Makes chunks of 33 frames that continue from a memory. Chain samplers through the memory to "
            "change the prompt or the seed along the video; the latents hold one chunk per batch element. "
            "A run that was stopped resumes after its finished chunks when it is queued again with nothing changed.",
            inputs=[
                model_input(),
                io.MultiType.Input(
                    "positive",
                    types=PROMPT_TYPES,
                    tooltip="What these chunks show: a prompt from the umt5-xxl text encoder, or a Helios Prompt "
                    "Schedule, which counts chunks from the start of the video.",
                ),
                HeliosMemoryType.Input("memory", tooltip="The past: from Helios Context or from another sampler."),
                seed_input(
                    "Seed of the noise. The noise of a chunk depends on the seed and the chunk's place in the "
                    "video only, so a run split over samplers with one seed equals a run in one piece."
                ),
                io.Int.Input(
                    "chunks",
                    default=4,
                    min=1,
                    max=10000,
                    tooltip="Number of chunks of 33 frames (1.375 seconds at 24 frames per second).",
                ),
                steps_input(),
                guidance_scale_input(),
                amplify_first_chunk_input(),
                io.Combo.Input(
                    "noise",
                    options=list(NOISE_SOURCES),
                    default="seeded",
                    tooltip="seeded: every chunk's noise follows from seed and chunk, for resuming and branching. "
                    "diffusers, authors: one stream of noise in the order of diffusers' pipeline or of the authors' "
                    "own, to compare with them.",
                ),
                negative_input(),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Wan 2.1 VAE. Needed when the schedule sets anchor pictures only."
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", tooltip="One chunk of 9 latent frames per batch element."),
                HeliosMemoryType.Output("next_memory", display_name="memory", tooltip="The past after these chunks."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.unique_id],
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
        codec = "" if vae is None else vae_identity(vae, wire_identity(cls.hidden, "vae"))
        script, device = prompt_schedule(positive, cls.hidden), model.load_device
        check_num_chunks(chunks)
        span = range(memory.chunk_index, memory.chunk_index + chunks)
        plans = ScriptedPlans(
            script.to(device),
            settings,
            noise_source(noise, seed, device),
            negative_rows=None if negative is None else prompt_embeds(negative, "negative").to(device),
            negative_identity=wire_identity(cls.hidden, "negative"),
            anchors=encode_anchors(script, span, vae, memory),
            anchor_identities=anchor_identities(script, span, codec, memory),
            noise_of=lambda own: noise_source(noise, own, device),
        )
        for chunk in span:
            plans(chunk).check(memory, helios.diffusion_model.config, chunk)

        wires = (positive, negative, memory)
        run = unfinished_run(model, wires, (seed, settings, noise, vae and weakref.ref(vae)))
        # Of other noise sources the next draw depends on all draws before it.
        del run.chunks[chunks - 1 if noise == "seeded" else 0 :]
        identity = model_identity(model)  # before anything is loaded
        past = Past(run.chunks[-1][1] if run.chunks else memory)
        planned = [script.settings_for(chunk, settings) for chunk in span]
        with sampling_run(model, memory, planned, cls.hidden.unique_id, script.loras.values()) as sampling:
            for made in make_chunks(
                sampling.load,
                past,
                map(plans, span[len(run.chunks) :]),
                hooks=sampling.hooks,
                identity=identity,
            ):
                run.chunks.append((made.latents.to(comfy.model_management.intermediate_device()), made.past.memory))
        helios.unfinished_run = None
        latents = torch.cat([latents for latents, _ in run.chunks])
        return io.NodeOutput({"samples": helios.process_latent_out(latents)}, run.chunks[-1][1])
