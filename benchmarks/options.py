"""What the options that are not exact cost in exactness, and what they bring in time.

    python -m benchmarks.options                       the demo's model
    python -m benchmarks.options --model FOLDER        a published Helios folder

Each option makes the same video as the exact run, from the same noise. Told are the relative error of the latents (RMS
of the difference over RMS of the exact ones), the PSNR of the decoded frames, and seconds per chunk.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from helios_core.cli import DTYPES
from helios_core.conditioning import text_memory
from helios_core.config import HISTORY_REUSE, SamplingSettings
from helios_core.demo import DemoModel
from helios_core.generate import ModelSource, PublishedModel
from helios_core.noise import SeededNoise
from helios_core.sampler import sample_chunks

PROMPT = "a lantern sways over a quiet harbour"


def measure(source: ModelSource, num_chunks: int, seed: int) -> list[str]:
    """A line for each option, the exact run first."""
    rows, negative = source.encode_prompts([PROMPT, ""])
    model, codec = source.load_transformer(), source.load_codec()

    def make(settings: SamplingSettings) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        memory = text_memory(width=source.width, height=source.height)
        guidance = negative if settings.guided else None
        chunks = sample_chunks(
            model, rows, memory, num_chunks, SeededNoise(seed), settings, negative_prompt_embeds=guidance
        )
        latents = torch.cat([chunk.cpu() for chunk, _ in chunks], dim=2)
        return latents, (time.perf_counter() - start) / num_chunks

    lines = []
    make(source.settings)  # what is made once (kernels, caches) is made here
    for mode in HISTORY_REUSE:
        latents, seconds = make(replace(source.settings, history_reuse=mode))
        frames = codec.decode(latents.to(rows.device)).cpu().clamp(-1, 1)
        if mode == "off":
            exact, exact_frames = latents, frames
        error = ((latents - exact).square().mean() / exact.square().mean()).sqrt().item()
        told = f"latents {error:.2%}, frames {psnr(frames, exact_frames):.1f} dB"
        lines.append(f"history_reuse {mode}: {told}, {seconds:.3g} s per chunk")
    return lines


def psnr(frames: torch.Tensor, exact: torch.Tensor) -> float:
    """In dB, of frames in [-1, 1]; infinite for equal ones."""
    error = (frames - exact).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="published Helios folder (default: the demo)")
    parser.add_argument("--variant", help="of the model, if its folder does not tell")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = DemoModel()
    if options.model is not None:
        noise = SeededNoise(options.seed)
        dtype = DTYPES[options.dtype]
        source = PublishedModel(options.model, variant=options.variant, dtype=dtype, device=options.device, noise=noise)
    print("\n".join(measure(source, options.chunks, options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
