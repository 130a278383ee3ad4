"""History reuse: keys and values of the history rows are computed once a stage, or once a chunk, and not in each step.

An approximation: the history rows see the noisy ones, which change from step to step.
"""

from __future__ import annotations

from dataclasses import replace

from ..model.transformer import MemoryTokens
from ..sampling.hooks import Predict


def reusing_history(predict: Predict, every: str) -> Predict:
    """`predict` whose forwards share the history rows of a "stage" or of a "chunk"."""
    held: list[tuple[MemoryTokens, int, MemoryTokens]] = []  # the chunk's memory, the stage, and what stands for it

    def sharing(latents, timesteps, prompts, memory, step):
        stage = step.stage if every == "stage" else 0
        if not held or held[0][0] is not memory or held[0][1] != stage:
            held[:] = [(memory, stage, replace(memory, history={}))]
        return predict(latents, timesteps, prompts, held[0][2], step)

    return sharing
