"""Decoding beside the sampling on one GPU: only while ComfyUI has no reason to move any weight."""

import logging
from collections.abc import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch

from ...helios_core.geometry import LATENT_CHANNELS, LATENT_FRAMES_PER_CHUNK, VAE_SPATIAL_STRIDE
from ...helios_core.memory.memory import HeliosMemory
from ...helios_core.vae.side_stream import SideStream
from .model import HeliosModel
from .patcher import is_dynamic

logger = logging.getLogger(__name__)


def overlapped_decode(
    model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE, memory: HeliosMemory, activations: int
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What decodes a chunk on a stream of its own: latents (1, 16, 9, h, w), model space -> frames (33, H, W, 3) in
    [0, 1]. None, with a warning that says why, where the weights of both might not stay where they are.

    `activations` are the bytes that sampling takes beside the weights.
    """
    size = (memory.height // VAE_SPATIAL_STRIDE, memory.width // VAE_SPATIAL_STRIDE)
    shape = (1, LATENT_CHANNELS, LATENT_FRAMES_PER_CHUNK, *size)
    reason = why_not(model, vae, activations + int(vae.memory_used_decode(shape, vae.vae_dtype)))
    if reason:
        logger.warning("overlap_vae has no effect: %s. Each chunk is decoded before the next is sampled", reason)
        return None
    side = SideStream(model.load_device)
    return side.around(lambda latents: decode_loaded(model.model, vae, latents))


def why_not(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE, memory_required: int) -> str:
    """Why the VAE cannot decode beside the sampling, or "". Loads both, with `memory_required` bytes to spare."""
    device = model.load_device
    if is_dynamic(model) or is_dynamic(vae.patcher):
        return (
            "under ComfyUI's dynamic VRAM weights move to the device while they are used (start ComfyUI with "
            "--disable-dynamic-vram to have them stay there)"
        )
    if device.type != "cuda":
        return f"it needs a CUDA device, and the model is on {device}"
    comfy.model_management.load_models_gpu([model, vae.patcher], memory_required=memory_required)
    if not (is_all_loaded(model) and is_all_loaded(vae.patcher)):
        return "model and VAE do not fit on the device together, so that ComfyUI moves weights while they are used"
    free = comfy.model_management.get_free_memory(device)
    if free < memory_required:
        return f"sampling and decoding together need {memory_required / 2**30:.1f} GiB, {free / 2**30:.1f} are free"
    return ""


def is_all_loaded(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether every weight is on the device to compute on."""
    return patcher.loaded_size() > 0 and not patcher.model.model_lowvram


def decode_loaded(helios: HeliosModel, vae: comfy.sd.VAE, latents: torch.Tensor) -> torch.Tensor:
    """What `vae.decode` gives, without a word to ComfyUI's model management, which is for one thread only.

    Raises RuntimeError with what to do when the device has too little memory.
    """
    samples = helios.process_latent_out(latents).to(vae.vae_dtype).to(vae.device)
    try:
        pixels = vae.process_output(vae.first_stage_model.decode(samples).float())
    except comfy.model_management.OOM_EXCEPTION as fault:
        raise RuntimeError(
            "too little memory to decode beside the sampling. Turn overlap_vae off and queue again: the finished "
            "chunks are kept"
        ) from fault
    return pixels.movedim(1, -1)[0]
