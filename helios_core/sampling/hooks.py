"""What a host hands in to the chunk loop. The loop imports nothing of a host; without hooks it runs the plain model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..model.attention import AttentionFunction
from ..model.transformer import HeliosTransformer, MemoryTokens, PromptContext
from .loras import LoraStrength


@dataclass(frozen=True)
class Step:
    """A place in the video, all counted from 0: `step` of `num_steps` in `stage` of `num_stages` of a chunk."""

    chunk_index: int
    stage: int
    num_stages: int
    step: int
    num_steps: int


@dataclass(frozen=True)
class StepDone(Step):
    """Reported to `progress` after each step. `denoised` is the current guess of the clean latents (B, C, T, h, w), at
    the stage's size, in model space."""

    denoised: torch.Tensor


# forward(latents, timesteps, prompt, memory) -> velocity: what `HeliosTransformer.forward` does.
Forward = Callable[[torch.Tensor, torch.Tensor, PromptContext, MemoryTokens], torch.Tensor]
# predict(latents, timesteps, prompts, memory, step) -> the velocity of each prompt: the forwards of one step. A host
# may spread them over devices.
Predict = Callable[[torch.Tensor, torch.Tensor, Sequence[PromptContext], MemoryTokens, Step], list[torch.Tensor]]


@dataclass(frozen=True)
class Hooks:
    """`progress` is called after each step; `check_cancelled` before each forward of the model, and raises to stop the
    run; `attention` is used instead of torch's.

    `forward` is called in place of the model (and brings its own attention), `predict` in place of all forwards of a
    step. `around_predict` wraps whichever it is, to leave out a part of the work (see `options`). `set_loras` is given
    the strengths of LoRAs over time before each chunk.
    """

    progress: Callable[[StepDone], None] | None = None
    check_cancelled: Callable[[], None] | None = None
    attention: AttentionFunction = F.scaled_dot_product_attention
    forward: Forward | None = None
    predict: Predict | None = None
    around_predict: Callable[[Predict], Predict] | None = None
    set_loras: Callable[[Sequence[LoraStrength]], None] | None = None

    def prediction_of(self, model: HeliosTransformer) -> Predict:
        """What the loop asks for velocities."""
        predict = self.predict or self._one_by_one(model)
        return predict if self.around_predict is None else self.around_predict(predict)

    def _one_by_one(self, model: HeliosTransformer) -> Predict:
        """One forward for each prompt: the numbers of the reference, in half the memory of a batch of both."""

        def predict(latents, timesteps, prompts, memory, step) -> list[torch.Tensor]:
            return [self._forward(model, latents, timesteps, prompt, memory) for prompt in prompts]

        return predict

    def _forward(self, model, latents, timesteps, prompt, memory) -> torch.Tensor:
        if self.check_cancelled is not None:
            self.check_cancelled()
        if self.forward is not None:
            return self.forward(latents, timesteps, prompt, memory)
        return model(latents, timesteps, prompt, memory, attention=self.attention)
