"""What is measured: sizes, variants and steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from helios_core.model.config import TransformerConfig
from helios_core.sampling.settings import VARIANTS, SamplingSettings
from tests import reference


@dataclass(frozen=True)
class Case:
    """`num_chunks` chunks of one video. `max_pairs` is for cases that take minutes a chunk."""

    name: str
    config: TransformerConfig
    variant: str
    steps: tuple[int, ...]
    width: int
    height: int
    num_chunks: int = 1
    max_pairs: int = 100

    @property
    def settings(self) -> SamplingSettings:
        return replace(VARIANTS[self.variant], steps=self.steps, amplify_first_chunk=False)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The texts to encode: with guidance also the negative prompt."""
        return (PROMPT, "") if self.settings.guided else (PROMPT,)


PROMPT = "A small red fishing boat rocks in a quiet harbour at dusk. Lanterns along the pier light up one by one."
SMALL = TransformerConfig(num_layers=8, num_attention_heads=12, ffn_dim=4096)
WIDE = TransformerConfig(num_layers=1)

TINY_CASE = Case("tiny", TransformerConfig(**reference.TINY_SHAPE), "distilled", (1, 1, 1), 64, 64)
CPU_CASES = (
    Case("8 layers x 12 heads, 192x320", SMALL, "distilled", (1, 1, 1), 320, 192),
    Case("one block of the 14B model, 192x320", WIDE, "distilled", (1, 1, 1), 320, 192),
)
_PUBLISHED = {"config": TransformerConfig(), "width": 640, "height": 384, "num_chunks": 4}
GPU_CASES = (
    Case("14B [1,1,1]", variant="distilled", steps=(1, 1, 1), **_PUBLISHED),
    Case("14B [2,2,2]", variant="distilled", steps=(2, 2, 2), **_PUBLISHED),
    Case("14B Mid", variant="mid", steps=(20, 20, 20), max_pairs=2, **_PUBLISHED),
    Case("14B Base", variant="base", steps=(50,), max_pairs=2, **_PUBLISHED),
)
