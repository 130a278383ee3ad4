"""The demo model as a `ModelSource`: trained weights of 2 million parameters, which lie beside this file."""

from __future__ import annotations

from pathlib import Path

import torch

from ..checkpoint.checkpoint import open_checkpoint
from ..checkpoint.loading import load_transformer
from ..fingerprint import file_fingerprint, fingerprint
from ..model.config import TransformerConfig
from ..model.transformer import HeliosTransformer
from ..options.fp8 import check_fp8_products, fp8_linear
from ..sampling.settings import SamplingSettings, ScheduleConfig
from ..vae.codec import Codec, WanCodec
from ..vae.wan_vae import Decoding
from .words import hashed_words
from .world import SIZE

TRANSFORMER_FILE = Path(__file__).with_name("transformer.safetensors")
VAE_FILE = Path(__file__).with_name("vae.safetensors")

# The shape that `tools/train_demo.py` trains. At 64x64 a third pyramid stage would have a single token a frame.
DEMO_CONFIG = TransformerConfig(
    num_attention_heads=4,
    attention_head_dim=32,
    text_dim=64,
    freq_dim=64,
    ffn_dim=512,
    num_layers=6,
    rope_dim=(12, 10, 10),
    rope_theta=100.0,
)
DEMO_SETTINGS = SamplingSettings(ScheduleConfig.with_stages(2, solver="euler"), steps=(8, 8), guidance_scale=1.25)
NUM_WORDS = 12  # rows of a prompt; the longest of the toy world has nine words


def encode_prompt(prompt: str) -> torch.Tensor:
    """Rows (1, 12, 64) of a prompt. The order of its words does not matter to the model."""
    return hashed_words(prompt, DEMO_CONFIG.text_dim, NUM_WORDS)


class DemoModel:
    """A `ModelSource` that needs no download. Prompts outside of its toy world give nothing sensible.

    With `fp8_matmul` the blocks' linear layers multiply in fp8. Raises ValueError when the CPU's torch cannot.
    """

    name = "demo"
    device = "cpu"
    width = height = SIZE
    settings = DEMO_SETTINGS

    def __init__(self, *, fp8_matmul: bool = False) -> None:
        self.fp8_matmul = fp8_matmul
        if fp8_matmul:
            check_fp8_products(self.device, DEMO_CONFIG)

    @property
    def fingerprint(self) -> str:
        weights = file_fingerprint(TRANSFORMER_FILE)
        return fingerprint(weights, "fp8 products") if self.fp8_matmul else weights

    @property
    def text_fingerprint(self) -> str:
        return fingerprint("hashed words", DEMO_CONFIG.text_dim, NUM_WORDS)

    @property
    def codec_fingerprint(self) -> str:
        return file_fingerprint(VAE_FILE)

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        return [encode_prompt(prompt) for prompt in prompts]

    def load_codec(self, decoding: Decoding | None = None) -> Codec:
        codec = WanCodec.from_file(VAE_FILE)
        codec.vae.set_decoding(decoding or Decoding())
        return codec

    def load_transformer(self) -> HeliosTransformer:
        make_linear = fp8_linear if self.fp8_matmul else None
        return load_transformer(open_checkpoint(TRANSFORMER_FILE), dtype=torch.float32, make_linear=make_linear)
