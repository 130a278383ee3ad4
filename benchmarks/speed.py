"""How fast a video is made: ours beside diffusers' pipeline, on the same weights, noise and sizes.

    python -m benchmarks.speed                     on the CPU; about a quarter of an hour on two cores
    python -m benchmarks.speed --device cuda       the 14B model with random weights (needs 80 GB)
    python -m benchmarks.speed --profile           and where our time goes, by kind of work
    python -m benchmarks.speed --write             and put the tables into BENCHMARKS.md

Both run in this process, one after the other, in pairs whose order alternates, so that what else the machine does falls
on both. The ratio is taken in each pair.

- A *chunk* goes from the prompt's rows to latents with its frames decoded; text encoder and mp4 are not in it.
- A *film* goes from the prompt's text to an mp4: text encoder (random weights, of UMT5-XXL's shape on a GPU, tiny on a
  CPU), chunks, VAE, H.264. Loading weights is not in it. The seconds of its parts are those of each side's last film;
  text is encoded once a film, and ours encodes the mp4 beside the sampling of the next chunk.
- Both sides call one text encoder, one VAE (a tiny one on a CPU), one H.264 encoder.
- Peak memory is that of the chunks, in a run of its own: on the CPU the bytes of living tensors besides the weights, on
  a GPU the allocator's peak.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from helios_core.geometry import FRAMES_PER_CHUNK
from tests.live_tensors import LivePeak

from .cases import CPU_CASES, GPU_CASES, TINY_CASE, Case
from .contestants import CONTESTANTS, OURS, THEIRS, Contestant, Parts, watched
from .page import PAGE, command_line, facts, marks, table, write_section
from .profiling import profile_lines


@dataclass
class Result:
    """Of one case, for each contestant: seconds per chunk of every run, and of every film; seconds per chunk of a
    film's parts; peak bytes. `difference` is the largest of the latents, in standard deviations."""

    case: Case
    seconds: dict[str, list[float]]
    films: dict[str, list[float]]
    parts: dict[str, dict[str, float]]
    peak: dict[str, int]
    difference: float

    @property
    def ratios(self) -> list[float]:
        return [theirs / ours for ours, theirs in zip(self.seconds[OURS], self.seconds[THEIRS], strict=True)]


def measure(case: Case, parts: Parts, num_pairs: int, num_films: int) -> Result:
    peak, latents, watches = {}, {}, {}
    for name, contestant in CONTESTANTS.items():  # these runs warm up as well
        peak[name], latents[name] = peak_bytes(contestant, case, parts)
    parts.encode("")
    difference = ((latents[OURS] - latents[THEIRS]).abs().max() / latents[THEIRS].std()).item()

    def make_film(name: str) -> None:
        with watched(case, parts) as watches[name]:
            CONTESTANTS[name].make_film(case, parts)

    films = in_pairs(make_film, case, parts, min(num_films, case.max_pairs))
    split = {
        name: {part: total / case.num_chunks for part, total in watch.seconds().items()}
        for name, watch in watches.items()
    }
    seconds = in_pairs(lambda name: CONTESTANTS[name].chunks(case, parts), case, parts, min(num_pairs, case.max_pairs))
    return Result(case, seconds, films, split, peak, difference)


def in_pairs(run: Callable[[str], object], case: Case, parts: Parts, num_pairs: int) -> dict[str, list[float]]:
    """Seconds per chunk of each run, by contestant. The first of a pair is the second of the next."""
    seconds = {name: [] for name in CONTESTANTS}
    for pair in range(num_pairs):
        for name in list(CONTESTANTS)[:: 1 if pair % 2 else -1]:
            gc.collect()
            parts.synchronise()
            start = time.perf_counter()
            run(name)
            parts.synchronise()
            seconds[name].append((time.perf_counter() - start) / case.num_chunks)
    return seconds


def peak_bytes(contestant: Contestant, case: Case, parts: Parts) -> tuple[int, torch.Tensor]:
    """Besides weights and the prompt's rows; and the latents that were made."""
    gc.collect()
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)
        before = torch.cuda.memory_allocated(parts.device)
        latents = contestant.chunks(case, parts)
        return torch.cuda.max_memory_allocated(parts.device) - before, latents
    with LivePeak(parts.weights()) as live:
        latents = contestant.chunks(case, parts)
    return live.peak, latents


# Reporting it


def speed_table(results: list[Result]) -> list[str]:
    header = ["", "seconds per chunk, median (spread)", "frames per second", "of a film", "peak besides weights"]
    rows = []
    for result in results:
        for name in CONTESTANTS:
            runs, films = result.seconds[name], result.films[name]
            rows.append(
                [
                    f"{result.case.name}, {name}",
                    f"{median(runs):.3g} ({min(runs):.3g} to {max(runs):.3g})",
                    f"{FRAMES_PER_CHUNK / median(runs):.3g}",
                    f"{FRAMES_PER_CHUNK / median(films):.3g}",
                    f"{result.peak[name] / 2**20:.0f} MiB",
                ]
            )
        ratios = result.ratios
        rows.append(
            [
                f"**{OURS} against {THEIRS}**",
                f"**{median(ratios):.2f}x** in {len(ratios)} pairs ({min(ratios):.2f} to {max(ratios):.2f})",
                "",
                f"{median(result.films[THEIRS]) / median(result.films[OURS]):.2f}x",
                f"**{result.peak[OURS] / result.peak[THEIRS]:.2f}x**",
            ]
        )
    return table(header, rows)


def parts_table(results: list[Result]) -> list[str]:
    rows = []
    for result in results:
        for part in sorted({part for split in result.parts.values() for part in split}):
            cells = [f"{result.parts[name].get(part, 0):.3g}" for name in CONTESTANTS]
            rows.append([f"{result.case.name}: {part}", *cells])
    return table(["part of a film, seconds per chunk", *CONTESTANTS], rows)


def lines_of(results: list[Result]) -> list[str]:
    reported = [f"{result.case.name} {result.difference:.0e}" for result in results]
    largest = f"Largest difference of the latents, in standard deviations: {', '.join(reported)}."
    return [*speed_table(results), "", *parts_table(results), "", largest]


def chosen_cases(device: torch.device, only: str, quick: bool) -> list[Case]:
    """Raises ValueError when nothing fits."""
    cases = (TINY_CASE,) if quick else CPU_CASES if device.type == "cpu" else GPU_CASES
    chosen = [case for case in cases if only in case.name]
    if not chosen:
        raise ValueError(f"no case has {only!r} in its name; there are: {'; '.join(case.name for case in cases)}")
    return chosen


def make_parts(case: Case, device: torch.device, *, compiled: bool) -> Parts:
    """The weights, when all that is left of another case's is gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    parts = Parts(case, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    if compiled:
        parts.ours.compile_blocks()
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--films", type=int, help="pairs of whole films (default: 1 on a CPU, 3 on a GPU)")
    parser.add_argument("--only", default="", help="only the cases with this in their name")
    parser.add_argument("--compile", action="store_true", help="our blocks go through torch.compile")
    parser.add_argument("--profile", action="store_true", help="report where our time goes in the first case")
    parser.add_argument("--quick", action="store_true", help="a model so small that only the command is tried")
    parser.add_argument("--write", action="store_true", help="put the tables into BENCHMARKS.md")
    options = parser.parse_args()
    device = options.device
    num_films = options.films or (1 if device.type == "cpu" else 3)
    section = f"speed {device.type}{' compiled' if options.compile else ''}"
    if options.write:
        marks(PAGE, section)
    results, profile = [], []
    for number, case in enumerate(chosen_cases(device, options.only, options.quick)):
        parts = make_parts(case, device, compiled=options.compile)
        results.append(measure(case, parts, options.pairs, num_films))
        print("\n".join(lines_of(results[-1:])), flush=True)
        if options.profile and number == 0:
            profile = profile_lines(case, parts, results[-1].parts[OURS])
            print("\n".join(["", *profile]), flush=True)
        del parts  # two of the 14B model do not fit
    if options.write:
        dtypes = "fp32" if device.type == "cpu" else "bf16, VAE fp32"
        reported = f"`{command_line('speed', sys.argv[1:])}` – {facts(device, dtypes)}."
        lines = [reported, "", *lines_of(results), *(["", *profile] if profile else [])]
        write_section(PAGE, section, "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
