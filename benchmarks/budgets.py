"""How fast chunks are made with 6, 12 and 24 GB: ours inside ComfyUI, diffusers' with its own ways of offloading.

    python -m benchmarks.budgets --comfyui ~/ComfyUI --device cuda     14B, random weights, [2,2,2], four chunks
    python -m benchmarks.budgets --comfyui ~/ComfyUI                   tiny models on the CPU: tries the way, no limit

Every row is measured in a process of its own. Ours runs in a real ComfyUI server (see `benchmarks.comfyui`), which
decides what stays on the card, with weights in bf16 and in fp8, and the VAE in the dtype that ComfyUI takes. diffusers'
runs in bf16 with an fp32 VAE: model offload, group offload leaf by leaf on a stream, and the same with a tiled VAE.
Both have the budget less 0.6 GiB for CUDA itself in torch's allocator. A row that does not fit says so. Needs 64 GB of
host memory (group offload pins a second copy) and 44 GB of disk for the weights that our side reads (`--scratch`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from helios_core.geometry import FRAMES_PER_CHUNK

from .budget_diffusers import OFFLOADS
from .page import PAGE, command_line, facts, marks, table, write_section
from .processes import FailedError, answer_of

GPU_BUDGETS, CPU_BUDGETS = (6.0, 12.0, 24.0), (6.0,)
OURS = ("random-bf16", "random-fp8")
THEIRS = {"cuda": OFFLOADS[1:], "cpu": OFFLOADS[:1]}


@dataclass
class Row:
    """Seconds per chunk of each run and peak bytes, or what went wrong."""

    gib: float
    name: str
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    error: str = ""


@dataclass(frozen=True)
class Setup:
    comfyui: Path
    python: str
    device: str
    scratch: Path
    rounds: int


def row_of_ours(setup: Setup, gib: float, graph: str) -> Row:
    arguments = ["--comfyui", str(setup.comfyui), "--device", setup.device, "--models", str(setup.scratch)]
    arguments += ["--graph", graph, "--gib", str(gib), "--rounds", str(setup.rounds), "--json"]
    name = f"ComfyUI-Helios, {graph.removeprefix('random-')} weights"
    try:
        (reported,) = answer_of("benchmarks.comfyui", arguments, python=setup.python)
    except FailedError as fault:
        return Row(gib, name, error=str(fault))
    seconds = [total / reported["chunks"] for total in reported["seconds"]]
    return Row(gib, name, seconds, max(reported["peaks"], default=0), reported["error"])


def row_of_diffusers(setup: Setup, gib: float, offload: str) -> Row:
    arguments = ["--device", setup.device, "--gib", str(gib), "--offload", offload, "--runs", str(setup.rounds)]
    name = f"diffusers, {'no' if offload == 'none' else offload} offload"
    try:
        reported = answer_of("benchmarks.budget_diffusers", arguments)
    except FailedError as fault:
        return Row(gib, name, error=str(fault))
    return Row(gib, name, reported["seconds"], reported["peak"], reported["error"])


def rows_table(rows: list[Row]) -> list[str]:
    header = ["memory", "", "seconds per chunk, median (spread)", "frames per second", "peak of the allocator"]
    return table(header, [[f"{row.gib:g} GB", row.name, *cells(row)] for row in rows])


def cells(row: Row) -> list[str]:
    """The cells of a row after its name."""
    if not row.seconds:
        words = " ".join(row.error.split())
        return ["out of memory" if "out of memory" in words.lower() else f"failed: {words[-200:]}", "", ""]
    middle, first, last = median(row.seconds), min(row.seconds), max(row.seconds)
    peak = f"{row.peak / 2**20:.0f} MiB" if row.peak else "not measured"
    return [f"{middle:.3g} ({first:.3g} to {last:.3g})", f"{FRAMES_PER_CHUNK / middle:.3g}", peak]


def measure(setup: Setup, budgets: tuple[float, ...]) -> list[Row]:
    """A row for each budget and contestant; each is printed when it is there."""
    rows = []
    for gib in budgets:
        jobs = [(row_of_ours, graph) for graph in OURS]
        jobs += [(row_of_diffusers, offload) for offload in THEIRS[setup.device]]
        for job, way in jobs:
            rows.append(job(setup, gib, way))
            print(rows_table(rows)[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--python", default=sys.executable, help="that runs it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--gib", type=float, nargs="+", help="budgets (default: 6 12 24, on a CPU 6)")
    parser.add_argument("--scratch", type=Path, help="folder for the random weights, which are kept there")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    options = parser.parse_args()
    section = f"budgets {options.device}"
    if options.write:
        marks(PAGE, section)
    budgets = tuple(options.gib or (GPU_BUDGETS if options.device == "cuda" else CPU_BUDGETS))
    with tempfile.TemporaryDirectory() as folder:
        scratch = (options.scratch or Path(folder)).expanduser().resolve()
        comfyui = options.comfyui.expanduser().resolve()
        rows = measure(Setup(comfyui, options.python, options.device, scratch, options.rounds), budgets)
    if options.write:
        device = torch.device(options.device)
        said = f"`{command_line('budgets', sys.argv[1:])}` – {facts(device, f'ComfyUI {comfyui.name}')}."
        write_section(PAGE, section, "\n".join([said, "", *rows_table(rows)]))
    return int(any(not row.seconds and "out of memory" not in row.error.lower() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
