"""Helios Memory Inspector and Helios Drift Report: look into a memory, and at how a long video changes."""

import json
from collections.abc import Iterator

import comfy.latent_formats
import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..helios_core.geometry import FRAME_RATE, FRAMES_PER_CHUNK
from ..helios_core.memory.memory import HeliosMemory
from ..helios_core.model.config import TransformerConfig
from ..helios_core.report.cost import weight_bytes
from ..helios_core.report.drawings import draw_strips, plot_drift, to_tensor
from ..helios_core.report.measures import DriftMeter
from ..helios_core.report.memory_report import describe_memory, memory_strips
from ..helios_core.sampling.settings import VARIANTS
from .host.model import check_cancelled, helios_model
from .host.vae import check_vae, decode_chunks
from .host.video_wire import frames_in_parts, rgb
from .wires import CATEGORY, HeliosMemoryType, check_chunk_latents


class HeliosMemoryInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosMemoryInspector",
            display_name="Helios Memory Inspector",
            category=CATEGORY,
            description="Shows what a memory holds: anchor, long, mid and short memory as pictures, and the tokens and "
            "bytes that the next chunk will take.",
            inputs=[
                HeliosMemoryType.Input("memory", tooltip="From Helios Context, a sampler, or a loaded memory."),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Wan 2.1 VAE, to show the memory as it looks. Without it: small pictures in rough colours, "
                    "at once.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The Helios model to report tokens and bytes of. Without it: the 14B Distilled in bf16.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture", tooltip="The memory, laid out with its labels."),
                io.String.Output("report", display_name="report", tooltip="The numbers as JSON; sizes in bytes."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, memory: HeliosMemory, vae=None, model=None) -> io.NodeOutput:
        config, settings, dtype, weights = model_facts(model)
        numbers = describe_memory(memory, config, settings, dtype=dtype, weight_bytes=weights)
        to_frames = latent_colours if vae is None else vae_frames(vae)
        strips = memory_strips(memory, config, to_frames)
        title = (
            f"Memory after chunk {memory.chunk_index} ({memory.provenance.task}), {memory.width}x{memory.height}, "
            f"{numbers['memory_tokens']['all']} tokens"
        )
        picture = to_tensor(draw_strips(title, strips, frame_size=(memory.width, memory.height)))
        return io.NodeOutput(picture, json.dumps(numbers, indent=1), ui=ui.PreviewImage(picture, cls=cls))


class HeliosDriftReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosDriftReport",
            display_name="Helios Drift Report",
            category=CATEGORY,
            description="Measures brightness, colour, sharpness and motion of each chunk, and compares the first 15 % "
            "of the video with the last 15 %, as HeliosBench does. Connect one of latents, images and video.",
            inputs=[
                io.Latent.Input(
                    "latents", optional=True, tooltip="Chunks from a Helios sampler; decoded one by one, with the VAE."
                ),
                io.Vae.Input("vae", optional=True, tooltip="Wan 2.1 VAE, to decode the latents."),
                io.Image.Input("images", optional=True, tooltip="Frames of a video."),
                io.Video.Input("video", optional=True, tooltip="A video; its frames are read one after another."),
            ],
            outputs=[
                io.Image.Output("plot", display_name="plot", tooltip="Every measure over the seconds of the video."),
                io.String.Output("report", display_name="report", tooltip="The same as JSON."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latents=None, vae=None, images=None, video=None) -> io.NodeOutput:
        if sum(source is not None for source in (latents, images, video)) != 1:
            raise ValueError("connect one of latents (with the VAE), images and video")
        frame_rate = float(FRAME_RATE)
        if latents is not None:
            check_chunk_latents(latents["samples"])
            check_vae(vae)
            chunks = decode_chunks(vae, latents["samples"])
        elif images is not None:
            chunks = iter(rgb(images, "images").split(FRAMES_PER_CHUNK))
        else:
            frame_rate, chunks = frames_in_parts(video, FRAMES_PER_CHUNK)
        measured = measure(chunks)
        plot = to_tensor(plot_drift(measured, frame_rate=frame_rate))
        return io.NodeOutput(plot, measured.to_json(), ui=ui.PreviewImage(plot, cls=cls))


def measure(chunks: Iterator[torch.Tensor]):
    meter = DriftMeter()
    for chunk in chunks:
        check_cancelled()
        meter.add(chunk)
    return meter.result()


def model_facts(model) -> tuple:
    """(config, settings, dtype it computes in, bytes of its weights) of a MODEL, or of the 14B Distilled in bf16."""
    if model is None:
        config = TransformerConfig()
        return config, VARIANTS["distilled"], torch.bfloat16, weight_bytes(config, torch.bfloat16)
    helios = helios_model(model)
    transformer = helios.diffusion_model
    return transformer.config, helios.settings, transformer.dtype, comfy.model_management.module_size(helios)


def latent_colours(latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, 16, T, h, w), model space -> frames (T, h, w, 3) in [0, 1], as in ComfyUI's previews."""
    latent_format = comfy.latent_formats.Wan21()
    factors = torch.tensor(latent_format.latent_rgb_factors)
    bias = torch.tensor(latent_format.latent_rgb_factors_bias)
    return ((latents[0].float().cpu().movedim(0, -1) @ factors + bias + 1) / 2).clamp(0, 1)


def vae_frames(vae):
    """latents (1, 16, T, h, w), model space -> frames (1 + 4 (T - 1), H, W, 3) in [0, 1]."""
    check_vae(vae)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        check_cancelled()
        return vae.decode(comfy.latent_formats.Wan21().process_out(latents))[0]

    return decode
