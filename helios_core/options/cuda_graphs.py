"""CUDA graphs: a forward is recorded once and replayed, so that the host launches one graph, not thousands of kernels.

A graph reads and writes where it did when it was recorded. So latents, timestep, memory tokens and the prompt's keys
and values have buffers that stay, and what changes is copied into them: latents and timestep in each step, the memory
once a chunk, a prompt when another takes its place. Nothing is recorded again until the size changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from ..model.attention import AttentionFunction
from ..model.transformer import HeliosTransformer, MemoryTokens, PromptContext
from ..sampling.hooks import Hooks
from ..sampling.settings import SamplingSettings

Run = Callable[[], torch.Tensor]
# capture(run, device) -> replay, which does again what `run` did and gives the tensor that `run` gave, filled anew.
Capture = Callable[[Run, torch.device], Run]
# replay(latents, timestep) -> velocity
Replay = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

NUM_PROMPTS = 2  # with their own buffers and graphs: the prompt and, with guidance, the negative one


def check_cuda_graphs(device: torch.device | str, settings: SamplingSettings) -> None:
    """Raise ValueError, before anything heavy, when graphs cannot serve a run. `step_cache` goes well with them: it
    only decides whether a forward is replayed."""
    if torch.device(device).type != "cuda":
        raise ValueError(f"CUDA graphs need a CUDA device, and the run is on {str(device)!r}; leave them out here")
    if settings.history_reuse != "off":
        raise ValueError(
            f"CUDA graphs replay the same forward in every step; with history_reuse {settings.history_reuse!r} the "
            "first one differs from those after it. Use one of the two"
        )


@contextmanager
def graphed(hooks: Hooks, load_model: Callable[[], HeliosTransformer]) -> Iterator[Hooks]:
    """`hooks` with the model's forwards, as graphs, in place of the model; they are let go at the end."""
    forward = GraphedForward(load_model, attention=hooks.attention)
    try:
        yield replace(hooks, forward=forward)
    finally:
        forward.release()


class CudaCapture:
    """Records on a CUDA device. What it records shares one pool of memory, so only one replay may be at work at a time,
    and what it gave must be copied before the next one."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run, device: torch.device) -> Run:
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                # Kernels are loaded, chosen and compiled, and tables made, by a first run: none of it can be recorded.
                run()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may use the device meanwhile, to decode.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                output = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay


@dataclass(eq=False)
class _Slot:
    """Buffers of one prompt, `prompt` being the one whose keys and values are in them now, and the graphs, for each
    shape of the latents, that read them."""

    prompt: weakref.ref[PromptContext]
    buffers: PromptContext
    graphs: dict[torch.Size, Replay] = field(default_factory=dict)


class GraphedForward:
    """Serves as `Hooks.forward` for the model that `load_model()` gives, always the same one, whose weights stay where
    they are. It holds a graph for each stage and prompt: three, or six with guidance.

    `new_capture()` gives what records, with memory of its own. Gives the bits that the model itself would.
    """

    def __init__(
        self,
        load_model: Callable[[], HeliosTransformer],
        *,
        attention: AttentionFunction = F.scaled_dot_product_attention,
        new_capture: Callable[[], Capture] = CudaCapture,
    ) -> None:
        self._load_model, self._attention, self._new_capture = load_model, attention, new_capture
        self.release()

    def release(self) -> None:
        """Let go of all graphs and buffers. They are made again when a forward is asked for."""
        self._slots: list[_Slot] = []  # the one used last comes last
        self._memory: MemoryTokens | None = None
        self._memory_source: weakref.ref[MemoryTokens] | None = None
        self._capture: Capture | None = None

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: PromptContext, memory: MemoryTokens
    ) -> torch.Tensor:
        """Velocity (B, C, T, h, w), as `HeliosTransformer.forward`."""
        if memory.history is not None:
            raise ValueError("CUDA graphs cannot serve a run with history_reuse; set it to 'off'")
        self._take_memory(memory)
        slot = self._take_prompt(prompt)
        if latents.shape not in slot.graphs:
            slot.graphs[latents.shape] = self._record(latents, timestep, slot.buffers)
        return slot.graphs[latents.shape](latents, timestep)

    def _take_memory(self, memory: MemoryTokens) -> None:
        held = self._memory
        if held is None or held.positions != memory.positions or held.tokens.shape != memory.tokens.shape:
            self.release()
            self._capture = self._new_capture()
            self._memory = replace(memory, tokens=memory.tokens.clone(), rotary_tables={})
        elif self._memory_source is None or self._memory_source() is not memory:
            held.tokens.copy_(memory.tokens)
        self._memory_source = weakref.ref(memory)

    def _take_prompt(self, prompt: PromptContext) -> _Slot:
        """The slot with this prompt in its buffers; if there is none, one whose prompt is gone, a new one, or the one
        that was not used for the longest time."""
        slots = self._slots
        slot = next((slot for slot in slots if slot.prompt() is prompt), None)
        if slot is None:
            slot = next((slot for slot in slots if slot.prompt() is None), None)
            if slot is None and len(slots) == NUM_PROMPTS:
                slot = slots[0]
            if slot is not None and slot.buffers.tokens.shape != prompt.tokens.shape:
                slots.remove(slot)
                slot = None
            slot = self._fill(slot, prompt)
        self._slots = [*(other for other in slots if other is not slot), slot]
        return slot

    def _fill(self, slot: _Slot | None, prompt: PromptContext) -> _Slot:
        """Put a prompt into the slot's buffers, or into a new slot."""
        blocks = self._load_model().blocks
        key_values = {index: block.attn2.key_value(prompt.tokens) for index, block in enumerate(blocks)}
        if slot is None:
            return _Slot(weakref.ref(prompt), PromptContext(prompt.tokens.clone(), key_values))
        for index, pair in key_values.items():
            for buffer, made in zip(slot.buffers.key_values[index], pair, strict=True):
                buffer.copy_(made)
        slot.buffers.tokens.copy_(prompt.tokens)
        slot.prompt = weakref.ref(prompt)
        return slot

    def _record(self, latents: torch.Tensor, timestep: torch.Tensor, prompt: PromptContext) -> Replay:
        model, memory, attention = self._load_model(), self._memory, self._attention
        assert self._capture is not None, "the memory comes first, and with it what records"
        # The model would round the latents, fp32 at a stage's start, to its own dtype as well.
        inputs = latents.to(model.dtype, copy=True), timestep.clone()
        replay = self._capture(lambda: model(*inputs, prompt, memory, attention=attention), latents.device)

        def forward(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            for buffer, given in zip(inputs, (latents, timestep), strict=True):
                buffer.copy_(given)
            return replay().clone()

        return forward
