"""Helios Long Video: the whole journey from a memory to a file, chunk by chunk on disk, resumable."""

import math
from functools import partial

from comfy_api.latest import InputImpl, io, ui

from ..helios_core.geometry import FRAME_RATE, FRAMES_PER_CHUNK, check_num_chunks
from ..helios_core.media.parts import Encoding
from ..helios_core.run.job import LongVideo
from ..helios_core.run.long_video import make_video
from ..helios_core.run.run_folder import RunFolder
from ..helios_core.sampling.drift import AntiDrift
from ..helios_core.sampling.noise import SeededNoise
from ..helios_core.script.plans import ScriptedPlans
from ..helios_core.typed import plain
from .host.chunk_strip import ChunkStrip
from .host.folders import check_prefix, next_path, run_path
from .host.graph_metadata import graph_metadata
from .host.identity import model_identity, vae_identity
from .host.model import helios_model, model_settings
from .host.overlap import overlapped_decode
from .host.sampling_run import sampling_run
from .host.vae import anchor_identities, check_vae, decode, decodes_elsewhere, encode_anchors
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


class HeliosLongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosLongVideo",
            display_name="Helios Long Video",
            category=CATEGORY,
            description="Makes a video of any length in constant RAM. Every finished chunk goes to disk at once: a "
            "run that was cancelled or crashed resumes where it stopped when the graph is queued again, and a changed "
            "prompt, seed or re-roll makes again only what comes after it.",
            inputs=[
                model_input(),
                io.MultiType.Input(
                    "positive",
                    types=PROMPT_TYPES,
                    tooltip="What the video shows: a prompt from the umt5-xxl text encoder, or a Helios Prompt "
                    "Schedule.",
                ),
                HeliosMemoryType.Input(
                    "memory", tooltip="Where it starts: from Helios Context, a sampler, or a loaded or rewound memory."
                ),
                io.Vae.Input("vae", tooltip="Wan 2.1 VAE (wan_2.1_vae.safetensors)."),
                io.String.Input(
                    "run_name",
                    default="my_video",
                    tooltip="Folder below output/helios_runs that keeps the finished chunks. Queue again with the same "
                    "name to resume; several versions of a video share their common chunks.",
                ),
                seed_input("Seed of the noise. Keep it fixed to resume or to change only a part."),
                io.Int.Input(
                    "chunks",
                    default=8,
                    min=1,
                    max=100000,
                    tooltip="Length in chunks of 33 frames (1.375 seconds at 24 frames per second).",
                ),
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=100000.0,
                    step=0.1,
                    tooltip="Length in seconds, rounded up to whole chunks. 0: as many chunks as set above.",
                ),
                steps_input(),
                guidance_scale_input(),
                amplify_first_chunk_input(),
                io.String.Input(
                    "reroll",
                    default="",
                    tooltip="Give single chunks another seed: 3:77, 5:12 makes chunks 3 and 5 (counted from 0) with "
                    "the seeds 77 and 12, and all after them anew. What was made before stays on disk.",
                ),
                io.Boolean.Input(
                    "anti_drift",
                    default=False,
                    tooltip="Watch the latents, and when a chunk leaves their usual range let the next ones trust the "
                    "past less. An option of the authors' research code; changes the video when it acts.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=float(FRAME_RATE),
                    min=1.0,
                    max=120.0,
                    step=0.01,
                    tooltip="Frames per second of the file. Helios was trained at 24.",
                ),
                io.Int.Input(
                    "crf",
                    default=18,
                    min=0,
                    max=51,
                    tooltip="Quality of the h264 encoding: lower is better and larger; 18 is visually lossless.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="Helios/long",
                    tooltip="Where the finished file goes below the output folder, and how its name begins.",
                ),
                negative_input(),
                io.Boolean.Input(
                    "overlap_vae",
                    optional=True,
                    default=False,
                    tooltip="Decode a chunk while the next one is sampled, on the same GPU. The video is the same. "
                    "Takes the GPU memory of both at once, and acts only where model and VAE fit on the GPU together.",
                ),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The finished file, read when needed."),
                HeliosMemoryType.Output("next_memory", display_name="memory", tooltip="The past after the last chunk."),
                io.Image.Output("last_frame", display_name="last_frame", tooltip="The last frame of the video."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, run_name: str | None = None, reroll: str | None = None, filename_prefix: str | None = None
    ) -> bool | str:
        try:
            if filename_prefix is not None:
                check_prefix(filename_prefix)
            if run_name is not None:  # None: comes from another node; checked in execute
                run_path(run_name)
            if reroll is not None:
                parse_rerolls(reroll)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        positive,
        memory,
        vae,
        run_name,
        seed,
        chunks,
        seconds,
        steps,
        guidance_scale,
        amplify_first_chunk,
        reroll,
        anti_drift,
        frame_rate,
        crf,
        filename_prefix,
        negative=None,
        overlap_vae=False,
    ) -> io.NodeOutput:
        helios = helios_model(model)
        check_vae(vae)
        settings = model_settings(model).overridden(steps, guidance_scale, amplify_first_chunk)
        memory = memory.to("cpu")
        if seconds:
            check_num_chunks(seconds * frame_rate / FRAMES_PER_CHUNK)  # a link may bring any number
            chunks = math.ceil(seconds * frame_rate / FRAMES_PER_CHUNK)
        check_num_chunks(chunks)
        span = range(memory.chunk_index, memory.chunk_index + chunks)
        codec = vae_identity(vae, wire_identity(cls.hidden, "vae"))
        script, device, noise = prompt_schedule(positive, cls.hidden), model.load_device, SeededNoise(seed)
        plans = ScriptedPlans(
            script.to(device),
            settings,
            noise,
            negative_rows=None if negative is None else prompt_embeds(negative, "negative").to(device),
            negative_identity=wire_identity(cls.hidden, "negative"),
            anchors=encode_anchors(script, span, vae, memory),
            anchor_identities=anchor_identities(script, span, codec, memory),
            rerolls=parse_rerolls(reroll, span),
        )
        video = LongVideo(
            memory=memory,
            num_chunks=chunks,
            plan=plans,
            noise=noise,
            model=model_identity(model),
            codec=codec,
            anti_drift=AntiDrift() if anti_drift else None,
            encoding=Encoding(frame_rate=frame_rate, crf=crf),
        )
        video.check()
        path, subfolder = next_path(filename_prefix, ".mp4", memory.width, memory.height, cls.hidden)
        elsewhere = decodes_elsewhere(vae, model)
        folder, node_id = RunFolder(run_path(run_name, cls.hidden)), cls.hidden.unique_id
        planned = [script.settings_for(chunk, settings) for chunk in span]
        with (
            sampling_run(model, memory, planned, node_id, script.loras.values()) as sampling,
            ChunkStrip(node_id, video, folder, cls.hidden.prompt) as strip,
        ):
            overlapped = None
            if overlap_vae and not elsewhere:
                overlapped = overlapped_decode(model, vae, memory, sampling.activations)
            beside = elsewhere or overlapped is not None
            last = make_video(
                video,
                folder,
                path,
                # With the VAE beside it the weights stay where they are; and ComfyUI loads models in one thread only.
                load_model=(lambda: helios.diffusion_model) if beside else sampling.load,
                decode=overlapped or partial(decode, helios, vae),
                decode_in_background=beside,
                on_chunk=strip.done,
                hooks=strip.watch(sampling.hooks),
                metadata=graph_metadata(cls.hidden),
                notice=sampling.notice,
            )
        last_frame = last.frames()[-1:].float() / 255
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        shown = {**ui.PreviewVideo([saved]).as_dict(), "helios_run": [strip.run()]}
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), last.memory(), last_frame, ui=shown)


def parse_rerolls(text: str, chunks: range | None = None) -> dict[int, int]:
    """ "3:77, 5:12" -> {3: 77, 5: 12}: chunk -> seed. Raises ValueError, also for a chunk that is not in `chunks`."""
    rerolls = {}
    for part in filter(None, (part.strip() for part in plain(text).split(","))):
        chunk, _, seed = (piece.strip() for piece in part.partition(":"))
        if not (chunk.isdecimal() and seed.isdecimal()):
            raise ValueError(
                f"reroll {part[:80]!r} must be chunk:seed, two whole numbers, as in 3:77; several with commas"
            )
        rerolls[int(chunk)] = int(seed)
    outside = [chunk for chunk in rerolls if chunks is not None and chunk not in chunks]
    if outside:
        raise ValueError(
            f"reroll names chunk {outside[0]}; this run makes chunks {chunks.start} to {chunks.stop - 1}, "
            "counted from the start of the video"
        )
    return rerolls
