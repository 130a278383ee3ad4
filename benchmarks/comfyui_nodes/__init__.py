"""A custom node pack for benchmarks only, linked into the temporary ComfyUI that they run in.

It brings a prompt without a text encoder, the peak of the GPU's memory at /benchmark/peak, and, with BENCHMARK_GIB set,
a card of that many GiB: ComfyUI takes the rest for occupied (what `--reserve-vram` does), and torch's allocator
refuses more. /benchmark/used says what all of the GPU's programs hold. With BENCHMARK_LAZY set on a CPU, ComfyUI builds
its layers lazily, as it does under dynamic VRAM on a GPU.
"""

import os

import comfy.model_management
import torch
from aiohttp import web
from server import PromptServer

LIMIT, LAZY = "BENCHMARK_GIB", "BENCHMARK_LAZY"
CONTEXT_GIB = 0.6  # what CUDA and its kernels take of a card besides torch's allocator


def limit_memory(gib: float, device: torch.device) -> None:
    """Leave of the card what one of `gib` GiB has."""
    total = torch.cuda.get_device_properties(device).total_memory
    comfy.model_management.EXTRA_RESERVED_VRAM += max(0, total - gib * 2**30)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (gib - CONTEXT_GIB) * 2**30 / total), device)


DEVICE = comfy.model_management.get_torch_device()
if LIMIT in os.environ and DEVICE.type == "cuda":
    limit_memory(float(os.environ[LIMIT]), DEVICE)


if LAZY in os.environ:
    import comfy.memory_management
    import comfy.model_patcher
    import comfy_aimdo.control

    comfy_aimdo.control.init()  # maps weight files; main.py does it where there is a GPU
    comfy.memory_management.aimdo_enabled = True
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic


@PromptServer.instance.routes.get("/benchmark/used")
async def used(request: web.Request) -> web.Response:
    """Bytes of the GPU's memory in use, weights outside torch's allocator among them; null without a GPU."""
    if DEVICE.type != "cuda":
        return web.json_response(None)
    free, total = torch.cuda.mem_get_info(DEVICE)
    return web.json_response(total - free)


@PromptServer.instance.routes.get("/benchmark/peak")
async def peak(request: web.Request) -> web.Response:
    """Bytes that torch's allocator held at most since this was last asked; null without a GPU."""
    if DEVICE.type != "cuda":
        return web.json_response(None)
    peak = torch.cuda.max_memory_reserved(DEVICE)
    torch.cuda.reset_peak_memory_stats(DEVICE)
    return web.json_response(peak)


class BenchmarkPrompt:
    """Random rows, as umt5-xxl gives them."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "make"
    CATEGORY = "benchmarks"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"number": ("INT", {"default": 0})}}

    def make(self, number: int) -> tuple[list]:
        return ([[torch.randn(1, 512, 4096, generator=torch.Generator().manual_seed(number)), {}]],)


NODE_CLASS_MAPPINGS = {"BenchmarkPrompt": BenchmarkPrompt}
