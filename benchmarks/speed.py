"""How fast a chunk is made: ours beside diffusers' pipeline, on the same weights, noise and sizes.

    python -m benchmarks.speed                     on the CPU; about ten minutes on two cores
    python -m benchmarks.speed --device cuda       the 14B model with random weights (needs 80 GB)
    python -m benchmarks.speed --write             and put the tables into BENCHMARKS.md

Both run in this process, one after the other, in pairs whose order alternates, so that what else the machine does falls
on both. The ratio is taken in each pair. Peak memory is counted in a run of its own: on the CPU the bytes of living
tensors besides the weights, on a GPU the allocator's peak.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import diffusers
import torch

from helios_core.config import FRAMES_PER_CHUNK, TransformerConfig
from tests.live_tensors import LivePeak

from .contestants import CONTESTANTS, Case, Parts, synchronise, watched

PAGE = Path(__file__).parent.parent / "BENCHMARKS.md"
SMALL = TransformerConfig(num_layers=8, num_attention_heads=12, ffn_dim=4096)
WIDE = TransformerConfig(num_layers=1)
OURS, THEIRS = CONTESTANTS

CPU_CASES = (
    Case("8 layers x 12 heads, 192x320", SMALL, "distilled", (1, 1, 1), 320, 192),
    Case("one block of the 14B model, 192x320", WIDE, "distilled", (1, 1, 1), 320, 192),
)
_PUBLISHED = {"config": TransformerConfig(), "width": 640, "height": 384, "num_chunks": 4}
GPU_CASES = (
    Case("14B [1,1,1]", variant="distilled", steps=(1, 1, 1), **_PUBLISHED),
    Case("14B [2,2,2]", variant="distilled", steps=(2, 2, 2), **_PUBLISHED),
    Case("14B Mid", variant="mid", steps=(20, 20, 20), **_PUBLISHED),
    Case("14B Base", variant="base", steps=(50,), **_PUBLISHED),
)


@dataclass
class Result:
    """Of one case: for each contestant seconds per chunk of every run, seconds of its parts, and peak bytes."""

    case: Case
    seconds: dict[str, list[float]]
    parts: dict[str, dict[str, float]]
    peak: dict[str, int]
    difference: float

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.seconds[OURS], self.seconds[THEIRS], strict=True)]


def measure(case: Case, device: torch.device, num_pairs: int) -> Result:
    parts = Parts(case, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    peak, split, latents = {}, {}, {}
    for name, run in CONTESTANTS.items():
        with watched(case, parts) as watch:
            latents[name] = run(case, parts)
        split[name] = {part: total / case.num_chunks for part, total in sorted(watch.seconds().items())}
        peak[name] = peak_bytes(name, case, parts)
    difference = ((latents[OURS] - latents[THEIRS]).abs().max() / latents[THEIRS].std()).item()
    seconds = {name: [] for name in CONTESTANTS}
    for pair in range(num_pairs):
        for name in list(CONTESTANTS)[:: 1 if pair % 2 else -1]:
            seconds[name].append(timed(name, case, parts))
    return Result(case, seconds, split, peak, difference)


def timed(name: str, case: Case, parts: Parts) -> float:
    """Seconds per chunk."""
    gc.collect()
    synchronise(parts.device)
    start = time.perf_counter()
    CONTESTANTS[name](case, parts)
    synchronise(parts.device)
    return (time.perf_counter() - start) / case.num_chunks


def peak_bytes(name: str, case: Case, parts: Parts) -> int:
    """Besides weights and the prompt's rows."""
    gc.collect()
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)
        before = torch.cuda.memory_allocated(parts.device)
        CONTESTANTS[name](case, parts)
        return torch.cuda.max_memory_allocated(parts.device) - before
    with LivePeak(parts.weights()) as live:
        CONTESTANTS[name](case, parts)
    return live.peak


def table(results: list[Result]) -> list[str]:
    lines = [
        "| | seconds per chunk, median (spread) | frames per second | peak besides weights |",
        "|---|---|---|---|",
    ]
    for result in results:
        for name in CONTESTANTS:
            runs = result.seconds[name]
            lines.append(
                f"| {result.case.name}, {name} | {median(runs):.3g} ({min(runs):.3g} to {max(runs):.3g}) "
                f"| {FRAMES_PER_CHUNK / median(runs):.3g} | {result.peak[name] / 2**20:.0f} MiB |"
            )
        ratios = result.ratios
        lines.append(
            f"| **{OURS} against {THEIRS}** | **{median(ratios):.2f}x** in {len(ratios)} pairs "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | | **{result.peak[OURS] / result.peak[THEIRS]:.2f}x** |"
        )
    return lines


def parts_table(results: list[Result]) -> list[str]:
    lines = ["| part, seconds per chunk | " + " | ".join(CONTESTANTS) + " |", "|---" * (len(CONTESTANTS) + 1) + "|"]
    for result in results:
        names = sorted({part for split in result.parts.values() for part in split})
        for part in names:
            cells = " | ".join(f"{result.parts[name].get(part, 0):.3g}" for name in CONTESTANTS)
            lines.append(f"| {result.case.name}: {part} | {cells} |")
    return lines


def facts(device: torch.device) -> str:
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = f", {torch.get_num_threads()} threads, fp32" if device.type == "cpu" else ", bf16, VAE fp32"
    return f"{date.today()}, {what}{threads}, torch {torch.__version__}, diffusers {diffusers.__version__}"


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of that name."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = page.read_text()
    if start not in old or end not in old:
        raise ValueError(f"{page} has no lines {start!r} and {end!r} to write between")
    head, rest = old.split(start)
    page.write_text(f"{head}{start}\n{text}\n{end}{rest.split(end)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", help="only the cases with this in their name")
    parser.add_argument("--write", action="store_true", help="put the tables into BENCHMARKS.md")
    options = parser.parse_args()
    cases = CPU_CASES if options.device.type == "cpu" else GPU_CASES
    cases = [case for case in cases if (options.only or "") in case.name]
    results = []
    for case in cases:
        results.append(measure(case, options.device, options.pairs))
        print("\n".join([*table(results[-1:]), "", *parts_table(results[-1:])]), flush=True)
        print(f"largest difference of the latents, in standard deviations: {results[-1].difference:.1e}", flush=True)
    if options.write:
        command = " ".join(["python -m benchmarks.speed", *(a for a in sys.argv[1:] if a != "--write")])
        lines = [f"`{command}` – {facts(options.device)}.", "", *table(results), "", *parts_table(results)]
        write_section(PAGE, f"speed {options.device.type}", "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
