"""Helios Video Combine: latents or frames, and sound -> a video file."""

import logging
from contextlib import ExitStack

import psutil
import torch
from comfy_api.latest import InputImpl, io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..helios_core.geometry import FRAME_RATE, FRAMES_PER_CHUNK
from ..helios_core.media.audio import Sound
from ..helios_core.media.formats import (
    FORMATS,
    MP4_H264,
    PIXEL_FORMATS,
    find_format,
    storable_size,
)
from ..helios_core.media.frames import extend_edges
from ..helios_core.media.writer import VideoWriter
from .host.browser_copy import BrowserCopy
from .host.folders import next_path
from .host.graph_metadata import graph_metadata
from .host.progress import show_on_node
from .host.vae import check_vae, decode_chunks
from .host.video_wire import rgb, sound_of_audio, sound_of_video
from .video_inputs import check_video_inputs
from .wires import CATEGORY, check_chunk_latents

logger = logging.getLogger(__name__)


class HeliosVideoCombine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosVideoCombine",
            display_name="Helios Video Combine",
            category=CATEGORY,
            description="Decodes latents chunk by chunk straight into a video file in the output folder, so that "
            "RAM use does not grow with the video; or writes frames that are already decoded. The workflow is saved in "
            "the file.",
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
                    max=63,
                    tooltip="Quality: lower is better and larger; 18 is visually lossless. Up to 51 for h264, 63 for "
                    "vp9 and av1; without meaning for ProRes and ffv1.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="Helios/video",
                    tooltip="Where the file goes below the output folder, and how its name begins.",
                ),
                io.Latent.Input("latents", optional=True, tooltip="Chunks from a Helios Chunk Sampler; needs the VAE."),
                io.Vae.Input("vae", optional=True, tooltip="Wan 2.1 VAE, to decode the latents."),
                io.Image.Input("images", optional=True, tooltip="Frames, in place of latents."),
                io.Combo.Input(
                    "format",
                    optional=True,
                    options=list(FORMATS),
                    default=MP4_H264.name,
                    tooltip="h264, vp9 and av1 play in browsers. ProRes and ffv1 are masters for editing: large, and "
                    "shown here by a small copy; ffv1 is lossless.",
                ),
                io.Combo.Input(
                    "pix_fmt",
                    optional=True,
                    options=["auto", *PIXEL_FORMATS],
                    default="auto",
                    tooltip="How pixels are stored; auto is each format's most usual. 10le is 10 bits, taken from the "
                    "decoded floats. Browsers play yuv420p.",
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="Sound; cut or followed by silence so that it is as long as the video.",
                ),
                io.Video.Input(
                    "source_video", optional=True, tooltip="Takes the sound of this video, if it has any, like audio."
                ),
                io.Boolean.Input(
                    "return_images",
                    optional=True,
                    default=False,
                    tooltip="Also give the decoded frames as images. They all have to fit in RAM: frames x height x "
                    "width x 12 bytes, 2.9 MB a frame at 640x384. The log says how much before it begins.",
                ),
                io.Float.Input(
                    "audio_start",
                    optional=True,
                    default=0.0,
                    min=-3600.0,
                    max=36000.0,
                    step=0.01,
                    tooltip="The second of the sound at which the video begins; below 0: so much silence first.",
                ),
            ],
            outputs=[
                io.Video.Output(tooltip="The written file."),
                io.Image.Output(tooltip="The frames, if return_images is on."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, crf: int = 0, format: str = MP4_H264.name, pix_fmt: str = "auto", filename_prefix: str | None = None
    ) -> bool | str:
        """Refuse before the sampling what the encoder would refuse after it. The size is looked at when it is known."""
        return check_video_inputs(crf, format, pix_fmt, filename_prefix)

    @classmethod
    def execute(
        cls,
        frame_rate,
        crf,
        filename_prefix,
        latents=None,
        vae=None,
        images=None,
        format=MP4_H264.name,
        pix_fmt="auto",
        audio=None,
        source_video=None,
        return_images=False,
        audio_start=0.0,
    ) -> io.NodeOutput:
        if (latents is None) == (images is None):
            raise ValueError("connect either latents (with a VAE) or images, not both and not neither")
        if latents is None:
            images = rgb(images, "images")
            num_frames, height, width = images.shape[:3]
            frames = iter(images.split(FRAMES_PER_CHUNK))
        else:
            samples = latents["samples"]
            check_chunk_latents(samples)
            check_vae(vae)
            height, width = (8 * size for size in samples.shape[-2:])
            num_frames = FRAMES_PER_CHUNK * len(samples)
            frames = decode_chunks(vae, samples)
        chosen = find_format(format)
        sound = choose_sound(audio, source_video, audio_start)
        kept = allocate_images(num_frames, height, width) if return_images and images is None else None

        pix_fmt = pix_fmt or "auto"
        stored = chosen.pixel_formats[0] if pix_fmt == "auto" else pix_fmt
        size, (width, height) = (width, height), storable_size(stored, width, height)
        if size != (width, height):
            words = (
                f"frames of {size[0]}x{size[1]} are stored as {width}x{height}, their last pixels repeated: {stored} "
                "takes even sizes only"
            )
            logger.warning(words)
            show_on_node(words)
        path, subfolder = next_path(filename_prefix, chosen.suffix, width, height, cls.hidden)
        with ExitStack() as stack:
            writer = stack.enter_context(
                VideoWriter(
                    path,
                    width=width,
                    height=height,
                    frame_rate=frame_rate,
                    crf=crf,
                    metadata=graph_metadata(cls.hidden),
                    format=chosen,
                    pixel_format=pix_fmt,
                    sound=sound,
                )
            )
            shown = ui.SavedResult(path.name, subfolder, io.FolderType.output)
            preview = None
            if writer.pixel_format not in chosen.browser_pixel_formats:
                preview = BrowserCopy(path.stem, width, height, frame_rate, sound)
                stack.enter_context(preview.writer)
                shown = preview.result
            for decoded in frames:
                if kept is not None:
                    kept[writer.num_frames : writer.num_frames + len(decoded)] = decoded
                chunk = extend_edges(decoded, width, height)
                if preview is not None:
                    preview.write(chunk)
                writer.write(chunk)
        return io.NodeOutput(
            InputImpl.VideoFromFile(str(path)),
            image_output(images if return_images and images is not None else kept),
            ui=ui.PreviewVideo([shown]),
        )


def choose_sound(audio: dict | None, source_video, start: float) -> Sound | None:
    """The sound that is connected, of which the video begins at `start` seconds. Raises ValueError for two."""
    if audio is not None and source_video is not None:
        raise ValueError("audio and source_video are both connected; a video has one sound. Disconnect one")
    if audio is not None:
        return sound_of_audio(audio).starting_at(start)
    sound = source_video and sound_of_video(source_video)
    if source_video is not None and sound is None:
        logger.warning("source_video has no sound, and so the video gets none")
    return sound and sound.starting_at(start)


def allocate_images(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Room for IMAGE (num_frames, height, width, 3). Raises ValueError when it does not fit into free RAM."""
    needed, free = num_frames * height * width * 3 * 4, psutil.virtual_memory().available
    size = f"{num_frames} frames of {width}x{height} as images take {needed / 1e9:.2f} GB of RAM"
    if needed > free:
        raise ValueError(
            f"{size} and {free / 1e9:.2f} GB are free. Turn return_images off and use the written file, or make "
            "fewer chunks"
        )
    logger.info("%s; %.2f GB are free", size, free / 1e9)
    return torch.empty(num_frames, height, width, 3)


def image_output(images: torch.Tensor | None) -> torch.Tensor | ExecutionBlocker:
    """What the IMAGE output carries: without images an error at whoever asks for them."""
    if images is None:
        return ExecutionBlocker("turn on return_images in Helios Video Combine to use its image output")
    return images
