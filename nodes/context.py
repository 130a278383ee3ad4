"""Helios Context: how the video begins -> memory."""

import logging
from dataclasses import replace
from functools import partial

from comfy_api.latest import io

from ..helios_core.fingerprint import fingerprint
from ..helios_core.geometry import FRAMES_PER_CHUNK, LATENT_FRAMES_PER_CHUNK, MAX_SIDE, check_size, size_multiple
from ..helios_core.media.reader import HDR_ADVICE, hdr_kind
from ..helios_core.memory.config import MemoryConfig
from ..helios_core.sampling.conditioning import encode_image, encode_video, image_memory, text_memory, video_memory
from ..helios_core.sampling.noise import SeededNoise
from .host.identity import vae_identity
from .host.progress import show_on_node
from .host.vae import check_vae, encode_frames
from .host.video_wire import fit_frames, last_frames, rgb, whole_file
from .host.wire_identity import wire_identity
from .wires import CATEGORY, HeliosMemoryType

logger = logging.getLogger(__name__)

TRAINED_SIZE = (640, 384)
RESIZE_MODES = ["crop", "stretch", "pad"]


class HeliosContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosContext",
            display_name="Helios Context",
            category=CATEGORY,
            description="The memory a video starts from. With nothing connected it is empty (text-to-video); with an "
            "image the video starts at that image; with a video it continues where the video ends.",
            inputs=[
                io.Int.Input(
                    "width",
                    default=640,
                    min=64,
                    max=4096,
                    step=16,  # Base's; the sampler checks the size against its own variant
                    tooltip="Width in pixels, a multiple of 64 (of 16 for Base). Helios was trained at 640x384 only.",
                ),
                io.Int.Input(
                    "height",
                    default=384,
                    min=64,
                    max=4096,
                    step=16,  # Base's; the sampler checks the size against its own variant
                    tooltip="Height in pixels, a multiple of 64 (of 16 for Base). Helios was trained at 640x384 only.",
                ),
                io.Combo.Input(
                    "resize",
                    options=RESIZE_MODES,
                    default="crop",
                    tooltip="How the image or video is brought to the size: crop the longer side, stretch, or pad with "
                    "black.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise mixed into the image's or video's latents.",
                ),
                io.Boolean.Input(
                    "add_noise",
                    default=True,
                    tooltip="Mix a little noise (11 to 14 %) into the image's or video's latents, as Helios was "
                    "trained with. Off: closer to the input, but less natural motion.",
                ),
                io.Boolean.Input(
                    "reanchor",
                    default=False,
                    tooltip="From the third chunk on, anchor on the first frame of the second chunk instead of the "
                    "start.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Wan 2.1 VAE (wan_2.1_vae.safetensors). Needed with an image or a video.",
                ),
                io.Image.Input("image", optional=True, tooltip="Image-to-video: the picture the video starts from."),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="Video-to-video: a clip of at least 33 frames to continue; its last frames count.",
                ),
                io.Float.Input(
                    "video_frame_rate",
                    optional=True,
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.01,
                    tooltip="Take the video's frames at this rate, repeating or leaving out frames. 0: its own frames. "
                    "Helios was trained at 24 per second: a clip of 60 would continue in slow motion.",
                ),
            ],
            outputs=[
                HeliosMemoryType.Output(
                    "memory", display_name="memory", tooltip="What the first chunk knows of the past."
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, width: int | None = None, height: int | None = None) -> bool | str:
        if width is None or height is None:  # one comes from another node; checked in execute
            return True
        try:
            check_any_size(width, height)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        width,
        height,
        resize,
        noise_seed,
        add_noise,
        reanchor,
        vae=None,
        image=None,
        video=None,
        video_frame_rate=0.0,
    ) -> io.NodeOutput:
        check_any_size(width, height)
        if resize not in RESIZE_MODES:
            raise ValueError(f"resize is {resize!r}; allowed: {', '.join(RESIZE_MODES)}")
        words = size_advice(width, height)
        config = MemoryConfig(reanchor_on_second_chunk=reanchor)
        if words:
            show_on_node("\n".join(words))
        if image is None and video is None:
            return io.NodeOutput(text_memory(width=width, height=height, config=config))
        if image is not None and video is not None:
            raise ValueError("image and video are both connected; a video starts from one of them. Disconnect one")
        check_vae(vae, "to encode the image or video")
        image = None if image is None else rgb(image, "image")
        if image is not None and len(image) != 1:
            raise ValueError(
                f"image is a batch of {len(image)} pictures; image-to-video starts from one. Pick one with "
                "ImageFromBatch, or make a video of them with CreateVideo and connect that to video"
            )
        encode = partial(encode_frames, vae, width, height, resize)
        noise = SeededNoise(noise_seed)
        if image is not None:
            # Fitted once, not 33 times as a still video.
            latents = encode_image(fit_frames(image, width, height, resize), encode)
            memory = image_memory(*latents, noise, add_noise=add_noise, config=config)
            source = wire_identity(cls.hidden, "image") or fingerprint(image)
        else:
            reach = -(-config.num_latent_frames // LATENT_FRAMES_PER_CHUNK) * FRAMES_PER_CHUNK
            if (file := whole_file(video)) is not None and (hdr := hdr_kind(file)) is not None:
                words.append(f"The video is {hdr}: {HDR_ADVICE}.")
            first, last = last_frames(video, reach, video_frame_rate, width, height, resize)
            latents = encode_video(last, encode, first_frame=first, config=config)
            if words:
                show_on_node("\n".join(words))
            memory = video_memory(*latents, noise, add_noise=add_noise, config=config)
            source = wire_identity(cls.hidden, "video") or fingerprint(first, last)
        identity = fingerprint(
            {"task": memory.provenance.task, "source": source, "video_frame_rate": video_frame_rate},
            {"vae": vae_identity(vae, wire_identity(cls.hidden, "vae"))},
            {"size": (width, height), "resize": resize, "config": config},
            {"noise": noise_seed if add_noise else None},
        )
        return io.NodeOutput(replace(memory, identity=identity))


def size_advice(width: int, height: int) -> list[str]:
    """What there is to say of a size that some variant can make."""
    advice = []
    if (width, height) != TRAINED_SIZE:
        advice.append(
            f"{width}x{height}: Helios was trained at {TRAINED_SIZE[0]}x{TRAINED_SIZE[1]} only; other sizes work less "
            "well the further they are from it."
        )
    if width % size_multiple(3) or height % size_multiple(3):
        advice.append(f"{width}x{height} is no multiple of {size_multiple(3)}: only the Base variant can make it.")
    for sentence in advice:
        logger.warning(sentence)
    return advice


def check_any_size(width: int, height: int) -> None:
    """Raise ValueError unless some variant can make this size; the nearest sizes it names are for all variants."""
    multiple = size_multiple(1)
    if max(width, height) > MAX_SIDE:
        check_size(width, height, num_stages=1)
    if min(width, height) < multiple or width % multiple or height % multiple:
        check_size(width, height, num_stages=3)
