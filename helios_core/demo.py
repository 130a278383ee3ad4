"""The embedded demo: a tiny Helios that needs no download.

There is no trained demo checkpoint yet: its weights are random, drawn from a fixed seed, so **its picture is noise**.
Everything else is real: the transformer, the memory, the pyramid and the video file.
"""

from __future__ import annotations

import torch

from .codec import Codec, DctCodec
from .config import SamplingSettings, ScheduleConfig, TransformerConfig
from .fingerprint import fingerprint
from .text import hashed_words
from .transformer import HeliosTransformer

DEMO_CONFIG = TransformerConfig(
    num_attention_heads=4,
    attention_head_dim=24,
    text_dim=32,
    freq_dim=64,
    ffn_dim=256,
    num_layers=4,
    rope_dim=(8, 8, 8),
)
_WEIGHT_SEED = 2603


class DemoModel:
    """A `ModelSource` with random weights, hashed words for text and a cosine transform for pixels."""

    name = "demo (random weights: the picture is noise)"
    width, height = 192, 128
    settings = SamplingSettings(
        ScheduleConfig(solver="dmd", time_shift_type="linear"),
        steps=(2, 2, 2),
        guidance_scale=1.0,
        amplify_first_chunk=True,
    )

    @property
    def fingerprint(self) -> str:
        return fingerprint(DEMO_CONFIG, _WEIGHT_SEED)

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        return [hashed_words(prompt, DEMO_CONFIG.text_dim) for prompt in prompts]

    def load_codec(self) -> Codec:
        return DctCodec()

    def load_transformer(self) -> HeliosTransformer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_WEIGHT_SEED)
            return HeliosTransformer(DEMO_CONFIG).eval().requires_grad_(False)
