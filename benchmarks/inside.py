"""What ComfyUI adds: the demo's long video by its executor and, in the same process, as the command line makes it.

    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python -m benchmarks.inside            two threads, four chunks
    ... python -m benchmarks.inside --write                              and put the table into BENCHMARKS.md

Runs alternate, each in a run folder of its own. Loading the demo's weights is in both. ComfyUI is loaded in this
process, with previews of the latents on, and what it would send to a browser is kept. Seconds are of the clock on the
wall and of the processor, all threads together; ratios are of each pair of runs.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "comfyui"))  # for `harness`

from harness.checkout import find_checkout
from harness.home import make_home
from harness.inprocess import ComfyUI
from harness.samples import small_graph, the_node

from helios_core.demo import DemoModel
from helios_core.generate import Job, generate
from helios_core.geometry import FRAMES_PER_CHUNK
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.noise import SeededNoise

from .page import PAGE, command_line, facts, marks, table, write_section

PROMPT = "a red circle moving right on a black background"
SIZE, SEED = 64, 5
Run = Callable[[str], Path]  # a name of its own -> the run folder


def outside(scratch: Path, num_chunks: int) -> Run:
    """As `python -m helios_core generate --model demo` does."""

    def run(name: str) -> Path:
        source, noise = DemoModel(), SeededNoise(SEED)
        job = Job(prompt=PROMPT, num_chunks=num_chunks, width=SIZE, height=SIZE)
        folder = RunFolder(scratch / name)
        generate(source, job, source.settings, noise, folder=folder, path=scratch / f"{name}.mp4")
        return folder.path

    return run


def inside(comfyui: ComfyUI, num_chunks: int) -> Run:
    """Helios Long Video with Helios Demo Models."""
    graph = small_graph("long_t2v", comfyui.object_info(), width=SIZE, height=SIZE)
    node, inputs = the_node(graph, "HeliosLongVideo")
    context, _ = the_node(graph, "HeliosContext")
    graph["demo"] = {"class_type": "HeliosDemoModels", "inputs": {}}
    for side, text in (("positive", PROMPT), ("negative", "")):
        graph[side] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": text}}
    settings = DemoModel.settings
    inputs.update(
        model=["demo", 0], vae=["demo", 2], positive=["positive", 0], negative=["negative", 0], seconds=0.0,
        chunks=num_chunks, seed=SEED, steps="", guidance_scale=settings.guidance_scale,
        amplify_first_chunk=settings.amplify_first_chunk,
    )  # fmt: skip
    graph = {name: graph[name] for name in (node, context, "demo", "positive", "negative")}

    def run(name: str) -> Path:
        inputs["run_name"] = name
        done = comfyui.run_graph(graph)
        if not done.success:
            raise RuntimeError(done.error)
        return comfyui.home.output / "helios_runs" / name

    return run


def timed(run: Run, name: str) -> tuple[float, float]:
    """Seconds on the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    run(name)
    return time.perf_counter() - wall, time.process_time() - processor


def latents_differ(ours: Path, theirs: Path) -> float:
    """The largest difference of any latent of two run folders."""
    folders = [RunFolder(path) for path in (ours, theirs)]
    chunks = [
        [folder.load_chunk(path.stem).latents for path in sorted((folder.path / "chunks").glob("*.safetensors"))]
        for folder in folders
    ]
    return max((a - b).abs().max().item() for a, b in zip(*chunks, strict=True))


def report(times: dict[str, list[tuple[float, float]]], num_chunks: int) -> list[str]:
    frames = num_chunks * FRAMES_PER_CHUNK
    rows = []
    for name, runs in times.items():
        pairs = list(zip(times["command line"], runs, strict=True))
        rows.append([
            name,
            *(f"{frames / median(run[kind] for run in runs):.1f}" for kind in (0, 1)),
            *(f"{median(one[kind] / run[kind] for one, run in pairs):.2f}" for kind in (0, 1)),
        ])  # fmt: skip
    header = ["demo, 64x64", "frames per second", "per second of processor", "against the command line", "by processor"]
    return table(header, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preview", default="auto", choices=("none", "auto", "latent2rgb"))
    parser.add_argument("--profile", action="store_true", help="print where a run inside ComfyUI spends its time")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    options = parser.parse_args()
    if options.write:
        marks(PAGE, "inside")
    checkout, why_not = find_checkout()
    if checkout is None:
        raise SystemExit(why_not)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        comfyui = ComfyUI(make_home(Path(scratch) / "home", checkout))
        from comfy.cli_args import LatentPreviewMethod, args

        args.preview_method = LatentPreviewMethod.from_string(options.preview)
        ways = {"command line": outside(Path(scratch), options.chunks), "ComfyUI": inside(comfyui, options.chunks)}
        first = {name: run("warm up") for name, run in ways.items()}
        print(f"latents differ by {latents_differ(*first.values()):.1e}", flush=True)
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(ways["ComfyUI"], "profiled")
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                times[name].append(timed(ways[name], f"round {number}"))
        lines = report(times, options.chunks)
        print("\n".join(lines))
        if options.write:
            about = (
                f"`{command_line('inside', sys.argv[1:])}` – {facts(torch.device('cpu'), f'ComfyUI {checkout.name}')}."
            )
            write_section(PAGE, "inside", "\n".join([about, "", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
