"""Helios Fast VAE: VAE -> VAE that decodes with the pack's own Wan VAE, in a dtype and a memory format, compiled."""

from copy import copy

import comfy.model_patcher
import comfy.sd
import torch
from comfy_api.latest import io

from ..helios_core.dtypes import DTYPES
from ..helios_core.vae.wan_vae import Decoding, WanVAE
from .host.identity import vae_file
from .host.vae import check_vae
from .wires import CATEGORY

AUTO = "auto"


class HeliosFastVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosFastVAE",
            display_name="Helios Fast VAE",
            category=CATEGORY,
            description="A Wan 2.1 VAE that decodes with fewer copies than ComfyUI's own and, if asked to, in another "
            "dtype, with channels last, or compiled. For VAE Decode, Helios Long Video and Helios Video Combine. The "
            "VAE that goes in stays as it is.",
            inputs=[
                io.Vae.Input("vae", tooltip="Wan 2.1 VAE (wan_2.1_vae.safetensors)."),
                io.Combo.Input(
                    "dtype",
                    options=[AUTO, *DTYPES],
                    default=AUTO,
                    tooltip="auto: what ComfyUI has chosen, bf16 on most GPUs. fp32 is exact and takes twice the time "
                    "and GPU memory of the other two.",
                ),
                io.Boolean.Input(
                    "channels_last",
                    default=False,
                    tooltip="Keep the channels of a position side by side in memory, as a GPU's convolutions in bf16 "
                    "and fp16 take them. The frames differ by rounding.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    tooltip="Compile the decoder with torch.compile, twice for each size, in the first chunk. Needs a "
                    "GPU with Triton, or a C++ compiler on a CPU.",
                ),
            ],
            outputs=[io.Vae.Output(display_name="vae", tooltip="The VAE to decode with.")],
        )

    @classmethod
    def execute(cls, vae, dtype, channels_last, compile) -> io.NodeOutput:
        check_vae(vae)
        if dtype not in (AUTO, *DTYPES):
            raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join((AUTO, *DTYPES))}")
        dtype = chosen_dtype(vae) if dtype == AUTO else dtype
        return io.NodeOutput(fast_vae(vae, Decoding(dtype, channels_last, compile)))


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
