"""The VAE on a wire: whether it is Wan 2.1's, pictures to latents in model space, and chunks back to frames."""

from collections.abc import Iterator

import comfy.latent_formats
import comfy.utils
import torch

from ...helios_core.fingerprint import fingerprint
from ...helios_core.memory.memory import HeliosMemory
from ...helios_core.sampling.noise import Key
from ...helios_core.script.blending import EncodedSchedule
from .model import check_cancelled
from .video_wire import fit_frames


def check_vae(vae, purpose: str = "to decode the latents") -> None:
    """Raise ValueError unless `vae`, which is there for that purpose, has the latent geometry of the Wan 2.1 VAE."""
    if vae is None:
        raise ValueError(f"no VAE is connected {purpose}: connect Load VAE (VAELoader) with wan_2.1_vae.safetensors")
    if (vae.latent_channels, vae.latent_dim) != (16, 3):
        raise ValueError(
            f"this VAE has {vae.latent_channels} latent channels in {vae.latent_dim} dimensions; Helios needs the "
            "Wan 2.1 VAE (16 channels, 3 dimensions: wan_2.1_vae.safetensors)"
        )


def encode_anchors(script: EncodedSchedule, chunks: range, vae, memory: HeliosMemory) -> dict[int, torch.Tensor]:
    """Latents (1, 16, 1, h, w), model space, of the anchor pictures that a schedule sets in these chunks."""
    pictures = script.anchors_in(chunks)
    if pictures and vae is None:
        raise ValueError("the schedule sets anchor pictures: connect the Wan 2.1 VAE to vae, or remove the anchors")
    if pictures:
        check_vae(vae, "to encode the anchor pictures")
    return {
        chunk: encode_frames(vae, memory.width, memory.height, "crop", picture[None])
        for chunk, picture in pictures.items()
    }


def anchor_identities(script: EncodedSchedule, chunks: range, codec: str, memory: HeliosMemory) -> dict[int, str]:
    """What the latents of `encode_anchors` are made from; `codec` is the identity of the VAE."""
    size = (memory.width, memory.height)
    return {
        chunk: fingerprint("anchor", picture, size, "crop", codec)
        for chunk, picture in script.anchors_in(chunks).items()
    }


def encode_frames(vae, width: int, height: int, resize: str, frames: torch.Tensor, key: Key = ()) -> torch.Tensor:
    """IMAGE (T, H, W, 3 or 4), T = 1 + 4k -> latents (1, 16, 1 + k, height/8, width/8) in model space.

    ComfyUI's VAE gives the mean of the posterior; diffusers' pipelines draw a sample from it, which `key` would name.
    """
    latents = vae.encode(fit_frames(frames[..., :3], width, height, resize))
    return comfy.latent_formats.Wan21().process_in(latents)


def decodes_elsewhere(vae, model) -> bool:
    """Whether the VAE has a device of its own (--cpu-vae, a second GPU), and so can decode beside the sampling.

    On one device ComfyUI may move the model's weights away to make room for the VAE, which it must not in the midst of
    a forward: see `overlap`.
    """
    return vae.device != model.load_device


def decode(helios, vae, latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, 16, 9, h, w) in model space -> frames (33, H, W, 3) in [0, 1]."""
    return vae.decode(helios.process_latent_out(latents))[0]


def decode_chunks(vae, samples: torch.Tensor) -> Iterator[torch.Tensor]:
    """Latents (num_chunks, 16, 9, h, w) in VAE space -> 33 frames (33, H, W, 3) in [0, 1], chunk after chunk."""
    bar = comfy.utils.ProgressBar(len(samples))
    for chunk in samples.split(1):
        check_cancelled()
        yield vae.decode(chunk)[0]
        bar.update(1)
