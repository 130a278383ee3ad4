"""The pack's own Wan VAE as ComfyUI's VAE object, with the weights of one that ComfyUI has loaded."""

from copy import copy

import comfy.model_patcher
import comfy.sd
import torch

from ...helios_core.dtypes import DTYPES
from ...helios_core.vae.wan_vae import Decoding, WanVAE
from .identity import vae_file


def chosen_dtype(vae: comfy.sd.VAE) -> str:
    """The name of the dtype that ComfyUI has chosen for a VAE."""
    return next(name for name, own in DTYPES.items() if own == vae.vae_dtype)


class FastWanVAE(WanVAE):
    """What ComfyUI calls: several chunks at once go one by one, so that a compiled decoder sees one shape."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(FastWanVAE, self).decode(chunk) for chunk in latents.split(1)])


def fast_vae(vae: comfy.sd.VAE, decoding: Decoding, *, piece: int | None = 1) -> comfy.sd.VAE:
    """A VAE of its own with the weights of `vae`, a Wan 2.1 VAE. `piece`: see `WanVAE`. Raises ValueError for another
    VAE."""
    patcher = _patcher(vae.first_stage_model, decoding, vae.device, vae.patcher.offload_device, piece)
    patcher.model.made_from = vae_file(vae)
    fast = copy(vae)
    fast.first_stage_model, fast.vae_dtype, fast.patcher = patcher.model, DTYPES[decoding.dtype], patcher
    return fast


def _patcher(
    source: torch.nn.Module,
    decoding: Decoding,
    load_device: torch.device,
    offload_device: torch.device,
    piece: int | None,
    *,
    disable_dynamic: bool = False,  # it never is: our layers are not ComfyUI's
) -> comfy.model_patcher.ModelPatcher:
    """A patcher with a copy of the weights of `source`."""
    model = _fast_model(source, decoding, offload_device, piece)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=load_device, offload_device=offload_device)
    # What ComfyUI calls for one on another device.
    patcher.cached_patcher_init = (_patcher, (model, decoding, load_device, offload_device, piece))
    return patcher


def _fast_model(
    source: torch.nn.Module, decoding: Decoding, place: torch.device, piece: int | None
) -> FastWanVAE:
    dtype = DTYPES[decoding.dtype]
    weights = {name: weight.detach().to(place, dtype, copy=True) for name, weight in source.state_dict().items()}
    try:
        with torch.device("meta"):
            model = FastWanVAE(dim=weights["decoder.head.0.gamma"].shape[0], piece=piece)
        model.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError) as fault:
        raise ValueError(
            f"this VAE ({type(source).__name__}) is not the Wan 2.1 VAE that Helios Fast VAE can run "
            "(wan_2.1_vae.safetensors). Connect it to the decoding node directly"
        ) from fault
    model.eval().requires_grad_(False).set_decoding(decoding)
    model.made_from = getattr(source, "made_from", "")
    return model
