"""Helios Video Combine: latents or frames -> a video file."""

import json
from collections.abc import Iterator
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy.cli_args import args
from comfy_api.latest import InputImpl, io, ui

from ..helios_core.config import FRAME_RATE, FRAMES_PER_CHUNK
from ..helios_core.video import VideoWriter
from .context import check_vae
from .model import check_cancelled
from .wires import CATEGORY, check_chunk_latents


class HeliosVideoCombine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosVideoCombine",
            display_name="Helios Video Combine",
            category=CATEGORY,
            description="Decodes latents chunk by chunk straight into an mp4 in the output folder, so that memory does "
            "not grow with the video; or writes frames that are already decoded. The workflow is saved in the file.",
            inputs=[
                io.Float.Input(
                    "frame_rate",
                    default=float(FRAME_RATE),
                    min=1.0,
                    max=120.0,
                    step=0.01,
                    tooltip="Frames per second. Helios was trained at 24.",
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
                    default="Helios/video",
                    tooltip="Where the file goes below the output folder, and how its name begins.",
                ),
                io.Latent.Input("latents", optional=True, tooltip="Chunks from a Helios Chunk Sampler; needs the VAE."),
                io.Vae.Input("vae", optional=True, tooltip="Wan 2.1 VAE, to decode the latents."),
                io.Image.Input("images", optional=True, tooltip="Frames, in place of latents."),
            ],
            outputs=[io.Video.Output(tooltip="The written file.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frame_rate, crf, filename_prefix, latents=None, vae=None, images=None) -> io.NodeOutput:
        if (latents is None) == (images is None):
            raise ValueError("connect either latents (with a VAE) or images, not both and not neither")
        if latents is None:
            height, width = images.shape[1:3]
            frames = iter(images.split(FRAMES_PER_CHUNK))
        else:
            samples = latents["samples"]
            check_chunk_latents(samples)
            check_vae(vae)
            height, width = (8 * size for size in samples.shape[-2:])
            frames = decode_chunks(vae, samples)

        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory(), width, height
        )
        path = Path(folder) / f"{name}_{counter:05}_.mp4"
        with VideoWriter(
            path, width=width, height=height, frame_rate=frame_rate, crf=crf, metadata=cls.metadata()
        ) as writer:
            for chunk in frames:
                writer.write(chunk)
        saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)), ui=ui.PreviewVideo([saved]))

    @classmethod
    def metadata(cls) -> dict[str, str]:
        """The graph, under the names ComfyUI itself uses, so that the file dropped on ComfyUI opens it."""
        if args.disable_metadata:
            return {}
        values = dict(cls.hidden.extra_pnginfo or {})
        if cls.hidden.prompt is not None:
            values["prompt"] = cls.hidden.prompt
        return {key: json.dumps(value) for key, value in values.items()}


def decode_chunks(vae, samples: torch.Tensor) -> Iterator[torch.Tensor]:
    """Latents (num_chunks, 16, 9, h, w) in VAE space -> 33 frames (33, H, W, 3) in [0, 1], chunk after chunk."""
    bar = comfy.utils.ProgressBar(len(samples))
    for chunk in samples.split(1):
        check_cancelled()
        yield vae.decode(chunk)[0]
        bar.update(1)
