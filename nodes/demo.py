"""Helios Demo Models: the embedded demo as MODEL, CLIP and VAE, for ComfyUI's own nodes as well as ours."""

from contextlib import contextmanager
from types import SimpleNamespace

import comfy.ldm.wan.vae
import comfy.sd
import comfy.utils
import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy_api.latest import io

from ..helios_core.checkpoint.checkpoint import open_checkpoint
from ..helios_core.demo import DEMO_CONFIG, DEMO_SETTINGS
from ..helios_core.demo.model import NUM_WORDS, TRANSFORMER_FILE, VAE_FILE
from ..helios_core.demo.words import split_words, word_vector
from .host.file_content import files_content
from .host.loading import make_patcher
from .wires import CATEGORY


class DemoTokenizer:
    """A prompt as [(word, weight), ...] under one key, as ComfyUI's text encoders take it; "(word:1.2)" weighs."""

    def __init__(self, embedding_directory=None, tokenizer_data=None) -> None:
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options) -> dict:
        pairs = [
            (word, weight)
            for part, weight in token_weights(escape_important(text), 1.0)
            for word in split_words(unescape_important(part))
        ][:NUM_WORDS]
        if return_word_ids:
            pairs = [(word, weight, number) for number, (word, weight) in enumerate(pairs, start=1)]
        return {"helios_demo": [pairs]}

    def untokenize(self, pairs: list) -> list:
        return [(pair, pair[0]) for pair in pairs]

    def state_dict(self) -> dict:
        return {}


class DemoTextEncoder(torch.nn.Module):
    """The demo's hashed words behind the interface of ComfyUI's text encoders. It has no weights."""

    def __init__(self, dtype=None, device=None, model_options=None) -> None:
        super().__init__()
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: dict) -> None:
        pass  # it has no layers to choose from

    def reset_clip_options(self) -> None:
        pass

    def encode_token_weights(self, tokens: dict) -> tuple[torch.Tensor, None]:
        rows = torch.zeros(1, NUM_WORDS, DEMO_CONFIG.text_dim)
        for index, (word, weight, *_) in enumerate(tokens["helios_demo"][0]):
            rows[0, index] = weight * word_vector(word, DEMO_CONFIG.text_dim)
        return rows, None

    def load_sd(self, state_dict: dict) -> tuple[list, list]:
        return [], list(state_dict)


def load_vae() -> comfy.sd.VAE:
    """The demo's VAE as ComfyUI's own Wan VAE."""
    weights = comfy.utils.load_torch_file(str(VAE_FILE), safe_load=True)
    with _as_wide_as(weights):
        return comfy.sd.VAE(sd=weights)


@contextmanager
def _as_wide_as(weights: dict):
    """Have ComfyUI build its Wan VAE as wide as the weights: 0.3.64 knows only the published width."""
    published = comfy.ldm.wan.vae.WanVAE
    width = weights["decoder.head.0.gamma"].shape[0]

    def of_that_width(**config):
        return published(**{**config, "dim": width})

    comfy.ldm.wan.vae.WanVAE = of_that_width
    try:
        yield
    finally:
        comfy.ldm.wan.vae.WanVAE = published


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
        model = make_patcher(open_checkpoint(TRANSFORMER_FILE), DEMO_SETTINGS, "Helios demo", "default")
        encoder = SimpleNamespace(params={}, clip=DemoTextEncoder, tokenizer=DemoTokenizer)
        return io.NodeOutput(model, comfy.sd.CLIP(encoder), load_vae())
