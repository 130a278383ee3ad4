"""Helios Fast VAE: VAE -> VAE that decodes with the pack's own Wan VAE, in a dtype and a layout, compiled."""

from copy import copy

import comfy.model_patcher
import comfy.sd
import torch
from comfy_api.latest import io

from ..helios_core.vae.wan_vae import DECODER_DTYPES, Decoding, WanVAE
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
                    options=[AUTO, *DECODER_DTYPES],
                    default=AUTO,
                    tooltip="auto: what ComfyUI has chosen, bf16 on most GPUs. fp32 is exact and takes twice the time "
                    "and memory of the other two.",
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
        if dtype not in (AUTO, *DECODER_DTYPES):
            raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join((AUTO, *DECODER_DTYPES))}")
        if dtype == AUTO:
            dtype = next(name for name, own in DECODER_DTYPES.items() if own == vae.vae_dtype)
        return io.NodeOutput(fast_vae(vae, Decoding(dtype, channels_last, compile)))


class FastWanVAE(WanVAE):
    """What ComfyUI calls: several chunks at once go one by one, so that a compiled decoder sees one shape."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(FastWanVAE, self).decode(chunk) for chunk in latents.split(1)])


def fast_vae(vae: comfy.sd.VAE, decoding: Decoding) -> comfy.sd.VAE:
    """A VAE of its own with the weights of `vae`, a Wan 2.1 VAE. Raises ValueError for another one."""
    dtype, place = DECODER_DTYPES[decoding.dtype], vae.patcher.offload_device
    weights = {
        name: weight.detach().to(place, dtype, copy=True) for name, weight in vae.first_stage_model.state_dict().items()
    }
    try:
        with torch.device("meta"):
            model = FastWanVAE(dim=weights["decoder.head.0.gamma"].shape[0], piece=1)
        model.load_state_dict(weights, assign=True)
    except (KeyError, RuntimeError) as fault:
        raise ValueError(
            f"this VAE ({type(vae.first_stage_model).__name__}) is not the Wan 2.1 VAE that Helios Fast VAE can run "
            "(wan_2.1_vae.safetensors). Connect it to the decoding node directly"
        ) from fault
    model.eval().requires_grad_(False).set_decoding(decoding)
    model.made_from = vae_file(vae)
    fast = copy(vae)
    fast.first_stage_model, fast.vae_dtype = model, dtype
    fast.patcher = comfy.model_patcher.ModelPatcher(model, load_device=vae.device, offload_device=place)
    return fast
