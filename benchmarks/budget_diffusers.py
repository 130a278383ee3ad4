"""diffusers' pipeline with little memory, in this process; `benchmarks.budgets` runs it.

Prints one line of JSON: seconds per chunk of each run after one that warms up, peak bytes of torch's allocator, and the
error if memory did not suffice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from diffusers import AutoencoderKLWan

from helios_core.model.transformer import HeliosTransformer
from tests import reference

from .cases import GPU_CASES, TINY_CASE, Case
from .contestants import SEED, diffusers_twin, pipeline_arguments
from .stopwatch import synchronise

CONTEXT_GIB = 0.6  # as in comfyui_nodes
OFFLOADS = ("none", "model", "group", "group, tiled VAE")
HOST = torch.device("cpu")


def build(case: Case, device: torch.device, offload: str):
    """The pipeline, its weights random and in host memory where it is offloaded."""
    home = device if offload == "none" else HOST
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    weights = reference.randomise(HeliosTransformer(case.config, dtype=dtype, device=home), seed=0)
    vae = reference.vae() if device.type == "cpu" else AutoencoderKLWan().eval().requires_grad_(False)
    transformer = diffusers_twin(weights, home)
    pipe = reference.pipeline(case.variant, transformer, vae)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload != "none":
        transformer.enable_group_offload(device, HOST, offload_type="leaf_level", use_stream=device.type == "cuda")
    if offload != "model":
        vae.to(device)
    if "tiled" in offload:
        vae.enable_tiling()
    return pipe


def measure(case: Case, device: torch.device, offload: str, num_runs: int) -> list[float]:
    """Seconds per chunk of each run after the first. Raises torch.OutOfMemoryError."""
    pipe = build(case, device, offload)
    dtype = pipe.transformer.dtype
    rows = torch.randn(1, 512, case.config.text_dim, generator=reference.generator(1)).to(device, dtype)
    seconds = []
    for _ in range(1 + num_runs):
        synchronise(device)
        start = time.perf_counter()
        pipe(
            prompt_embeds=rows,
            negative_prompt_embeds=rows,
            generator=torch.Generator(device).manual_seed(SEED),
            output_type="latent",
            **pipeline_arguments(case),
        )
        synchronise(device)
        seconds.append((time.perf_counter() - start) / case.num_chunks)
    return seconds[1:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--gib", type=float, required=True)
    parser.add_argument("--offload", choices=OFFLOADS, default="none")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    device, on_gpu = options.device, options.device.type == "cuda"
    if on_gpu:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (options.gib - CONTEXT_GIB) * 2**30 / total), device)
    seconds, error = [], ""
    try:
        seconds = measure(GPU_CASES[1] if on_gpu else TINY_CASE, device, options.offload, options.runs)
    except torch.OutOfMemoryError as fault:
        error = f"out of memory: {fault}"
    peak = torch.cuda.max_memory_reserved(device) if on_gpu else 0
    print(json.dumps({"seconds": seconds, "peak": peak, "error": error}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
