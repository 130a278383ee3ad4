"""Helios Demo Models: the embedded demo as MODEL, CLIP and VAE, for ComfyUI's own nodes as well as ours."""

from comfy_api.latest import io

from ..helios_core.demo.model import TRANSFORMER_FILE, VAE_FILE
from .host.demo_models import load_fast_vae, load_text_encoder, load_transformer
from .host.file_content import files_content
from .wires import CATEGORY


class HeliosDemoModels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosDemoModels",
            display_name="Helios Demo Models",
            category=CATEGORY,
            description="A tiny Helios that comes with this pack, for trying graphs without a download and without a "
            "GPU. It knows one toy world at 64x64: 'a red circle moving right on a black background'. Colours: red, "
            "green, blue, yellow, purple. Shapes: circle, square, triangle. Directions: right, left, up, down. "
            "Backgrounds: black, grey, white.",
            inputs=[],
            outputs=[
                io.Model.Output(
                    tooltip="The demo's transformer, for the Helios samplers. Width and height must be 64."
                ),
                io.Clip.Output(tooltip="The demo's text encoder, for CLIP Text Encode."),
                io.Vae.Output(tooltip="The demo's VAE: the Wan architecture, very small."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls) -> str:
        """Changes with the demo's weights, which a newer version of the pack may bring."""
        return files_content([TRANSFORMER_FILE, VAE_FILE])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(load_transformer(), load_text_encoder(), load_fast_vae())
