"""Helios Fast VAE: VAE -> VAE that decodes with the pack's own Wan VAE, in a dtype and a memory format, compiled."""

from comfy_api.latest import io

from ..helios_core.dtypes import DTYPES
from ..helios_core.vae.wan_vae import Decoding
from .host.fast_vae import chosen_dtype, fast_vae
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
