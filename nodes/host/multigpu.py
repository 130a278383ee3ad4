"""The forwards of a guided step on several devices: what ComfyUI's MultiGPU CFG Split asks for."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import comfy.model_patcher
import torch

from ...helios_core.model.rope import Rotary
from ...helios_core.model.transformer import MemoryTokens, PromptContext
from ...helios_core.sampling.hooks import Forward, Predict, Step

Held = TypeVar("Held")


def copies_of(patcher: comfy.model_patcher.ModelPatcher) -> list[comfy.model_patcher.ModelPatcher]:
    """The model's copies on other devices that MultiGPU CFG Split has made, patched as the model now is."""
    if not hasattr(patcher, "match_multigpu_clones"):
        return []
    patcher.match_multigpu_clones()
    return [copy for copy in patcher.get_additional_models_with_key("multigpu") if copy.is_multigpu_base_clone]


@contextmanager
def split_forwards(forwards: dict[torch.device, Forward], check_cancelled: Callable[[], None]) -> Iterator[Predict]:
    """Within the `with` block, a `Hooks.predict` that spreads the prompts over the devices, each with its own forward.

    The first device is the one that the sample is on; its forwards run in the calling thread, the others in threads of
    ComfyUI's pool.
    """
    import comfy.multigpu  # there is none in older versions

    first, *others = forwards
    pool = comfy.multigpu.MultiGPUThreadPool(others)
    sides = {device: OtherDevice(device, forwards[device]) for device in others}

    def predict(
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompts: Sequence[PromptContext],
        memory: MemoryTokens,
        step: Step,
    ) -> list[torch.Tensor]:
        check_cancelled()
        devices = [list(forwards)[index % len(forwards)] for index in range(len(prompts))]
        inference = torch.is_inference_mode_enabled()  # a thread has its own
        for device, prompt in zip(devices, prompts, strict=True):
            if device != first:
                pool.submit(device, sides[device], latents, timesteps, prompt, memory, inference)
        try:
            own = [
                forwards[first](latents, timesteps, prompt, memory)
                for device, prompt in zip(devices, prompts, strict=True)
                if device == first
            ]
        finally:
            # Also when this thread was stopped: a result that is left would be taken for the next step's.
            answers = [None if device == first else pool.get_result(device) for device in devices]
        for _, fault in filter(None, answers):
            if fault is not None:
                raise fault
        mine = iter(own)
        return [next(mine) if answer is None else answer[0] for answer in answers]

    try:
        yield predict
    finally:
        pool.shutdown()


class OtherDevice:
    """A forward on a device that the sample is not on. Prompts and memory are copied there once."""

    def __init__(self, device: torch.device, forward: Forward) -> None:
        self._device, self._forward = device, forward
        self._held: dict[int, tuple[weakref.ref, Any]] = {}

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt: PromptContext,
        memory: MemoryTokens,
        inference: bool,
    ) -> torch.Tensor:
        """Velocity (B, C, T, h, w) on the device of `latents`."""
        with torch.inference_mode(inference), torch.no_grad():
            velocity = self._forward(
                latents.to(self._device),
                timesteps.to(self._device),
                self._copy(prompt, self._prompt),
                self._copy(memory, self._memory),
            )
            return velocity.to(latents.device)

    def _copy(self, value: Held, make: Callable[[Held], Held]) -> Held:
        self._held = {key: entry for key, entry in self._held.items() if entry[0]() is not None}
        if id(value) not in self._held:
            self._held[id(value)] = (weakref.ref(value), make(value))
        return self._held[id(value)][1]

    def _prompt(self, prompt: PromptContext) -> PromptContext:
        return PromptContext(prompt.tokens.to(self._device))

    def _memory(self, memory: MemoryTokens) -> MemoryTokens:
        return replace(
            memory,
            tokens=memory.tokens.to(self._device),
            rotary=Rotary(*(table.to(self._device) for table in memory.rotary)),
            noisy_frame_indices=memory.noisy_frame_indices.to(self._device),
            rotary_tables={},
            history=None if memory.history is None else {},
        )
