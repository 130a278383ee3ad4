"""The ceiling without the model: a long video at 640x384 whose transformer and VAE cost nothing.

    python -m benchmarks.ceiling                                         in a script
    COMFYUI_PATH=~/ComfyUI ~/ComfyUI/.venv/bin/python -m benchmarks.ceiling          and inside ComfyUI
    ... --profile                                                        where the main thread is, and where it waits
    ... --write                                                          and put the table into BENCHMARKS.md

All else is real: noise, memory, journal, safetensors, flushing to disk, thumbnails, previews of the latents, h264,
events and progress. The frames are of a panned picture with as much fine detail as a photograph. Seconds are of the
clock on the wall and of the processor, all threads of the process together: a busy machine lengthens the first, and
with two cores the second divided by two is a bound for it.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from helios_core.geometry import FRAMES_PER_CHUNK
from helios_core.memory.storage import ModelIdentity
from helios_core.run.job import LongVideo
from helios_core.run.long_video import make_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.plan import ChunkPlan
from helios_core.sampling.settings import VARIANTS

from .free_models import TINY, FreeTransformer, free, moving_picture
from .page import PAGE, command_line, facts, marks, table, write_section

WIDTH, HEIGHT = 640, 384
SETTINGS = replace(VARIANTS["distilled"], steps=(1, 1, 1), amplify_first_chunk=False)
CORES = 2
Run = Callable[[str], None]  # a name of its own


def in_a_script(scratch: Path, num_chunks: int) -> Run:
    """`make_video`, as the command line calls it."""
    model, pictures = FreeTransformer(), moving_picture(WIDTH, HEIGHT)
    rows, noise = torch.zeros(1, 8, TINY.text_dim), SeededNoise(0)
    video = LongVideo(
        memory=text_memory(width=WIDTH, height=HEIGHT),
        num_chunks=num_chunks,
        plan=lambda chunk: ChunkPlan(rows, SETTINGS, noise),
        noise=noise,
        model=ModelIdentity("free", "free"),
    )

    def run(name: str) -> None:
        make_video(
            video,
            RunFolder(scratch / name),
            scratch / f"{name}.mp4",
            load_model=lambda: model,
            decode=lambda latents: pictures,
        )

    return run


def in_comfyui(scratch: Path, num_chunks: int) -> tuple[str, Run] | None:
    """Helios Long Video in the ComfyUI that COMFYUI_PATH names, if it names one; and its name."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "comfyui"))  # for `harness`
    from harness.checkout import find_checkout
    from harness.home import make_home
    from harness.inprocess import ComfyUI
    from harness.samples import small_graph, the_node

    checkout, _ = find_checkout()
    if checkout is None:
        return None
    comfyui = ComfyUI(make_home(scratch / "home", checkout))
    from comfy.cli_args import LatentPreviewMethod, args

    import nodes

    args.preview_method = LatentPreviewMethod.Auto
    demo = nodes.NODE_CLASS_MAPPINGS["HeliosDemoModels"]
    pixels = moving_picture(WIDTH, HEIGHT).movedim(-1, 0)[None] * 2 - 1

    parts = demo.execute()  # once, as weights stay loaded from run to run
    model, _, vae = parts.args
    free(model.model.diffusion_model)
    model.model.settings = SETTINGS
    vae.first_stage_model.decode = lambda latents, **options: pixels.clone()  # ComfyUI writes over what it gets

    class FreeModels(demo):
        """The demo's models, with nothing inside."""

        @classmethod
        def execute(cls):
            return parts

    nodes.NODE_CLASS_MAPPINGS["HeliosDemoModels"] = FreeModels
    graph = small_graph("long_t2v", comfyui.object_info(), width=WIDTH, height=HEIGHT)
    node, inputs = the_node(graph, "HeliosLongVideo")
    context, _ = the_node(graph, "HeliosContext")
    graph["demo"] = {"class_type": "HeliosDemoModels", "inputs": {}}
    for side in ("positive", "negative"):
        graph[side] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": side}}
    inputs.update(
        model=["demo", 0], vae=["demo", 2], positive=["positive", 0], negative=["negative", 0], seconds=0.0,
        chunks=num_chunks, steps="", guidance_scale=1.0, amplify_first_chunk=False,
    )  # fmt: skip
    graph = {name: graph[name] for name in (node, context, "demo", "positive", "negative")}

    def run(name: str) -> None:
        inputs["run_name"] = name
        done = comfyui.run_graph(graph)
        if not done.success:
            raise RuntimeError(done.error)

    return f"ComfyUI {checkout.name}", run


def timed(run: Run, name: str) -> tuple[float, float]:
    """Seconds on the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    run(name)
    return time.perf_counter() - wall, time.process_time() - processor


def rows_of(times: dict[str, list[tuple[float, float]]], num_chunks: int) -> list[list[str]]:
    frames = num_chunks * FRAMES_PER_CHUNK
    rows = []
    for name, runs in times.items():
        wall, processor = (median(run[kind] for run in runs) for kind in (0, 1))
        rows.append([
            name,
            f"{frames / wall:.0f}",
            f"{1000 * processor / frames:.1f}",
            f"{CORES * frames / processor:.0f}",
        ])  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=("script", "comfyui"))
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    options = parser.parse_args()
    if options.write:
        marks(PAGE, "ceiling")
    with tempfile.TemporaryDirectory() as scratch:
        ways: dict[str, Run] = {}
        inside = None if options.only == "script" else in_comfyui(Path(scratch), options.chunks)
        if options.only != "comfyui":
            ways["script"] = in_a_script(Path(scratch), options.chunks)
        if inside is not None:
            ways[inside[0]] = inside[1]
        for name, run in ways.items():
            run("warm up")
            if options.profile:
                profile = cProfile.Profile()
                profile.runcall(run, "profiled")
                print(name)
                pstats.Stats(profile).sort_stats("tottime").print_stats(25)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for number in range(options.rounds):
            for name in list(ways)[:: 1 if number % 2 else -1]:
                times[name].append(timed(ways[name], f"round {number}"))
    header = [
        "640x384, model and VAE free",
        "frames per second",
        "ms of processor per frame",
        f"bound on {CORES} cores",
    ]
    lines = table(header, rows_of(times, options.chunks))
    print("\n".join(lines))
    if options.write:
        about = f"`{command_line('ceiling', sys.argv[1:])}` – {facts(torch.device('cpu'))}."
        write_section(PAGE, "ceiling", "\n".join([about, "", *lines]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
