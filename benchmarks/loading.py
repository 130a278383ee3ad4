"""How long loading takes, against reading the file with `cat`, and how much RAM it takes beside the file's own pages.

    python -m benchmarks.loading                    a synthetic file of 4 GB, read into a model by scripts' loader
    python -m benchmarks.loading --gib 1            a smaller one
    python -m benchmarks.loading --comfyui PATH     by Helios Loader in that ComfyUI checkout, run with its Python
    python -m benchmarks.loading --comfyui PATH --dynamic    the same with ComfyUI's dynamic VRAM, on a CPU over the
                                                    tests' stand-in for its driver: weights stay in their file
    python -m benchmarks.loading --write            and put the table into BENCHMARKS.md

Each load is a process of its own; its time counts from an imported torch to a model whose weights can be used, its RAM
is what the process has grown by at its peak, divided into pages of its own and pages of files (/proc/self/smaps). In
rounds, `cat FILE > /dev/null` and the load take turns. Cold: the file's pages are taken out of the page cache first
(posix_fadvise; what is dirty is written out before). The weights are zeros in layout and size of the published model,
with fewer blocks; zeros are bytes like any others here, as the file is written in full.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from helios_core.checkpoint.config import make_metadata
from helios_core.checkpoint.writing import Planned, write_safetensors
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer

from .page import PAGE, command_line, facts, marks, table, write_section

PACK = Path(__file__).resolve().parents[1]
BLOCK_GIB, OTHER_GIB = 0.654, 0.53  # of the published model in bf16: a block, and all that is in none

_LOAD = """
import json, re, sys, time
from pathlib import Path

def rss():
    sums = {"Anonymous": 0, "Rss": 0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name = line.split(":")[0]
        if name in sums:
            sums[name] += 1024 * int(line.split()[1])
    return sums["Anonymous"], sums["Rss"] - sums["Anonymous"]

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

file, comfyui, dynamic = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "dynamic"
sys.argv = sys.argv[:1]
import torch
if comfyui:
    sys.path[:0] = [comfyui]
    import importlib
    import comfy.cli_args
    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    pack = Path.cwd()
    sys.path.insert(1, str(pack.parent))
    load_model = importlib.import_module(f"{pack.name}.nodes.host.loading").load_model
    if dynamic:
        sys.path.insert(1, str(pack / "tests" / "comfyui"))
        from harness.dynamic_vram import dynamic_vram
        scope = dynamic_vram()
        scope.__enter__()
    patcher = []
    load = lambda: patcher.append(load_model(file, "distilled", "bf16")) or patcher[0].model.diffusion_model
else:
    from helios_core.checkpoint.checkpoint import open_checkpoint
    from helios_core.checkpoint.loading import load_transformer
    load = lambda: load_transformer(open_checkpoint(file), dtype=torch.bfloat16)
own, mapped = rss()
top = peak()
begin = time.perf_counter()
model = load()
seconds = time.perf_counter() - begin
own_after, mapped_after = rss()
weights = sum(p.nbytes for p in model.parameters())
print(json.dumps([seconds, own_after - own, mapped_after - mapped, peak() - top, weights]))
"""


@dataclass(frozen=True)
class Load:
    """One load: seconds, and growth of the process in bytes: its own pages, files' pages, both at the peak."""

    seconds: float
    own: int
    mapped: int
    peak: int
    weights: int


def write_file(path: Path, gib: float) -> int:
    """A bf16 file of about that size; returns the number of its blocks."""
    num_layers = max(1, round((gib - OTHER_GIB) / BLOCK_GIB))
    config = TransformerConfig(num_layers=num_layers)
    model = HeliosTransformer(config, dtype=torch.bfloat16, device="meta")
    plan = {name: Planned(p.dtype, tuple(p.shape)) for name, p in model.named_parameters()}
    write_safetensors(
        path, plan, lambda name: torch.zeros(plan[name].shape, dtype=plan[name].dtype), make_metadata(config, None)
    )
    return num_layers


def take_out_of_cache(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cat(file: Path) -> float:
    begin = time.perf_counter()
    subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def load(file: Path, comfyui: Path | None, dynamic: bool) -> Load:
    command = [sys.executable, "-c", _LOAD, str(file), str(comfyui or ""), "dynamic" if dynamic else "static"]
    run = subprocess.run(command, cwd=PACK, check=True, capture_output=True, text=True)
    return Load(*json.loads(run.stdout.splitlines()[-1]))


def measure(file: Path, rounds: int, comfyui: Path | None, dynamic: bool) -> dict[str, tuple[list[float], list[Load]]]:
    """Cold and warm: seconds of `cat` and loads, in turns."""
    results: dict[str, tuple[list[float], list[Load]]] = {"cold": ([], []), "warm": ([], [])}
    for number in range(rounds):
        for state, (reads, loads) in results.items():
            for what in ("cat", "load") if number % 2 == 0 else ("load", "cat"):
                if state == "cold":
                    take_out_of_cache(file)
                if what == "cat":
                    reads.append(cat(file))
                else:
                    loads.append(load(file, comfyui, dynamic))
    return results


def rows(results: dict[str, tuple[list[float], list[Load]]]) -> list[list[str]]:
    lines = []
    for state, (reads, loads) in results.items():
        seconds = [one.seconds for one in loads]
        sizes = [median(getattr(one, name) for one in loads) / 2**20 for name in ("own", "mapped", "peak")]
        ratio = f"{median(seconds) / median(reads):.2f}x"
        lines.append([state, _spread(reads), _spread(seconds), ratio, *(f"{size:.0f} MiB" for size in sizes)])
    return lines


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0, help="size of the file (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, help="where the file is written (default: the system's temporary folder)"
    )
    parser.add_argument("--comfyui", type=Path, help="load by Helios Loader in this ComfyUI checkout")
    parser.add_argument("--dynamic", action="store_true", help="with --comfyui: with dynamic VRAM")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    options = parser.parse_args()
    section = "loading" if options.comfyui is None else f"loading comfyui{' dynamic' if options.dynamic else ''}"
    if options.write:
        marks(PAGE, section)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "synthetic_distilled.safetensors"
        num_layers = write_file(file, options.gib)
        results = measure(file, options.rounds, options.comfyui, options.dynamic)
        size = file.stat().st_size
    arguments = ["PATH" if options.comfyui and a == str(options.comfyui) else a for a in sys.argv[1:]]
    by = "scripts' loader" if options.comfyui is None else f"Helios Loader in ComfyUI {options.comfyui.name}"
    what = f"{size / 2**30:.2f} GiB in bf16, {num_layers} blocks of the published width"
    header = ["page cache", "`cat`, s", "load, s", "load / `cat`", "own pages", "files' pages", "growth of the peak"]
    lines = [
        f"`{command_line('loading', arguments)}` – {facts(torch.device('cpu'), by, what)}.",
        "",
        *table(header, rows(results)),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if options.write:
        write_section(PAGE, section, "\n".join(lines))


if __name__ == "__main__":
    main()
