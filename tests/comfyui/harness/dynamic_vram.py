"""ComfyUI's dynamic VRAM on a CPU: its own patcher, loading, casts and prefetch over a stand-in for the driver.

The stand-in device is `cpu:0`, as torch tells that from the `cpu` that tensors say they are on. Its memory is a
buffer a layer, which `capacity` limits: a layer beyond it is brought each time it is used.
"""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch

DEVICE = torch.device("cpu", 0)


class Memory:
    """Takes the place of ModelVBAR: each allocation is a buffer, resident from its first fault on, if there is room."""

    capacity = 2**40
    faults: ClassVar[list[tuple]] = []

    def __init__(self, size: int, device: int) -> None:
        self.buffers: list[torch.Tensor] = []
        self.resident: dict[int, int] = {}

    def alloc(self, num_bytes: int) -> tuple:
        self.buffers.append(torch.zeros(num_bytes, dtype=torch.uint8))
        return self, len(self.buffers) - 1, num_bytes

    def fault(self, index: int, size: int) -> bytes | None:
        type(self).faults.append((self, index))
        if index not in self.resident and self.loaded_size() + size > self.capacity:
            return None
        self.resident.setdefault(index, size)
        return b"resident"

    def loaded_size(self) -> int:
        return sum(self.resident.values())

    def free_memory(self, num_bytes: int) -> int:
        freed = self.loaded_size()
        self.resident.clear()
        return freed

    def prioritize(self) -> None:
        pass


class PinnedMemory:
    """Takes the place of HostBuffer. Without a GPU nothing is pinned."""

    size = 0

    def __init__(self, *sizes) -> None:
        pass


@contextlib.contextmanager
def dynamic_vram(capacity: int = 2**40) -> Iterator[type[Memory]]:
    """Within the `with` block models are made for `DEVICE` and are dynamic; of it `capacity` bytes hold weights."""
    import comfy.cli_args
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy.model_prefetch
    import comfy.ops
    import comfy_aimdo.control
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    management = comfy.model_management
    comfy_aimdo.control.init()
    Memory.capacity, Memory.faults = capacity, []
    cast, make_queue = comfy.ops.cast_bias_weight, comfy.model_prefetch.make_prefetch_queue

    def cast_from_device(layer, input=None, dtype=None, device=None, *rest, **options):
        device = input.device if device is None else device
        return cast(layer, input, dtype, DEVICE if hasattr(layer, "_v") else device, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.memory_management, "aimdo_enabled", True)
        patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
        patch.setattr(comfy.cli_args.args, "disable_pinned_memory", True)
        patch.setattr(management, "get_torch_device", lambda: DEVICE)
        patch.setattr(management, "is_device_cpu", lambda device: device is not None and device == torch.device("cpu"))
        patch.setattr(management, "NUM_STREAMS", 1)
        patch.setattr(management, "get_offload_stream", lambda device: None)
        patch.setattr(comfy.ops, "cast_bias_weight", cast_from_device)
        patch.setattr(
            comfy.model_prefetch, "make_prefetch_queue", lambda queue, _, *rest: make_queue(queue, DEVICE, *rest)
        )
        patch.setattr(comfy_aimdo.host_buffer, "HostBuffer", PinnedMemory)
        patch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", Memory)
        patch.setattr(comfy_aimdo.model_vbar, "vbar_fault", lambda place: place[0].fault(*place[1:]))
        patch.setattr(comfy_aimdo.model_vbar, "vbar_unpin", lambda place: None)
        patch.setattr(comfy_aimdo.model_vbar, "vbar_signature_compare", lambda a, b: a is not None and a == b)
        patch.setattr(comfy_aimdo.model_vbar, "vbars_analyze", lambda device=None: 0)
        patch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", lambda place, device: place[0].buffers[place[1]])
        try:
            yield Memory
        finally:
            management.unload_all_models()
