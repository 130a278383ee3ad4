"""What a chunk costs as a video grows: memory and time at every chunk, ours and diffusers' beside it.

    python -m benchmarks.growth                    44 chunks, one minute of video; about three minutes of one core
    python -m benchmarks.growth --chunks 20        a quick look
    python -m benchmarks.growth --write            and put the table into BENCHMARKS.md

Both make the same video: same weights (the demo's shape, random), same tiny VAE, same prompt, size and steps, one step
in each of three stages; ours to a run folder and an mp4, diffusers' to a tensor of frames, which is what it gives. Each
runs in a process of its own. Time is the processor's, so that other work on the machine counts little. Reported is the
change from chunk 3, by when all that is made once has been made, to the last: medians of a window of twelve chunks that
starts at chunk 3 and of the last twelve.

Prints a table and fails if our living tensors have grown by more than 2 %, resident memory by more than 5 % (what the
encoder's threads happen to hold makes it jump by as much from chunk to chunk) or time by more than 10 %. With 44 chunks
or more it also writes `growth.json` and `growth.png` to benchmarks/results. Needs Linux, and what the tests need.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from helios_core.demo import DEMO_CONFIG
from helios_core.media.frames import from_pixels
from helios_core.memory.storage import ModelIdentity
from helios_core.model.transformer import HeliosTransformer
from helios_core.run.job import LongVideo
from helios_core.run.long_video import make_video
from helios_core.run.run_folder import RunFolder
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import DiffusersNoise
from helios_core.sampling.plan import ChunkPlan
from helios_core.sampling.settings import SamplingSettings, ScheduleConfig
from tests import reference
from tools.plot_lines import plot_lines

from .diffusers_vae import DiffusersWanCodec
from .page import PAGE, command_line, facts, installed, marks, table, write_section
from .processes import answer_of

WIDTH, HEIGHT = 192, 128
NUM_STAGES = 3
SEED = 11
TOLERANCES = {"resident": 0.05, "tensors": 0.02, "seconds": 0.1}
MINUTE = 44  # chunks
EARLY = 3  # by then every buffer has been made once
WINDOW = 12  # chunks that a median is taken of
RESULTS = Path(__file__).parent / "results"
NAMES = {"ours": "ComfyUI-Helios", "diffusers": "diffusers"}


@dataclass(frozen=True)
class Sample:
    """Taken when a chunk has been denoised: resident memory, bytes of living tensors, and processor seconds since the
    last one."""

    resident: int
    tensors: int
    seconds: float


class Meter:
    """Called after every step; takes a sample at the last step of each chunk."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.steps = 0
        self.mark = time.process_time()

    def step(self) -> None:
        self.steps += 1
        if self.steps % NUM_STAGES:
            return
        seconds = time.process_time() - self.mark
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        self.samples.append(Sample(resident, tensor_bytes(), seconds))
        self.mark = time.process_time()


def tensor_bytes() -> int:
    """Bytes of all storages that a living tensor holds, each counted once."""
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance, which asks lazy modules and proxies questions that import half the world.
        if issubclass(type(thing), torch.Tensor):
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def parts():
    """diffusers' transformer and VAE with random weights, and a prompt's rows."""
    model = reference.transformer(**asdict(DEMO_CONFIG))
    rows = torch.randn(1, 32, DEMO_CONFIG.text_dim, generator=reference.generator(1))
    return model, reference.vae(), rows


def run_ours(num_chunks: int) -> list[Sample]:
    oracle, vae, rows = parts()
    model = HeliosTransformer(DEMO_CONFIG)
    model.load_state_dict(oracle.state_dict())
    codec = DiffusersWanCodec(vae)
    settings = SamplingSettings(
        ScheduleConfig(solver="dmd", time_shift_type="linear"), steps=(1,) * NUM_STAGES, guidance_scale=1.0
    )
    meter = Meter()
    noise = DiffusersNoise(reference.generator(SEED))
    video = LongVideo(
        memory=text_memory(width=WIDTH, height=HEIGHT),
        num_chunks=num_chunks,
        plan=lambda _: ChunkPlan(rows, settings, noise),
        noise=noise,
        model=ModelIdentity("growth", "growth"),
    )
    with tempfile.TemporaryDirectory() as folder:
        make_video(
            video,
            RunFolder(Path(folder) / "run"),
            Path(folder) / "out.mp4",
            load_model=model.eval,
            decode=lambda latents: from_pixels(codec.decode(latents)),
            hooks=Hooks(progress=lambda _: meter.step()),
        )
    return meter.samples


def run_diffusers(num_chunks: int) -> list[Sample]:
    model, vae, rows = parts()
    pipe = reference.pipeline("distilled", model, vae)
    meter = Meter()

    def after_step(*_):
        meter.step()
        return {}

    pipe(
        prompt_embeds=rows,
        negative=rows,
        height=HEIGHT,
        width=WIDTH,
        num_frames=33 * num_chunks,
        pyramid_num_inference_steps_list=[1] * NUM_STAGES,
        is_amplify_first_chunk=False,
        guidance_scale=1.0,
        generator=reference.generator(SEED),
        output_type="pt",
        callback_on_step_end=after_step,
    )
    return meter.samples


def measure(side: str, num_chunks: int) -> list[Sample]:
    """Run one side in a process of its own, so that neither's memory is the other's."""
    reported = answer_of("benchmarks.growth", ["--side", side, "--chunks", str(num_chunks)])
    return [Sample(**sample) for sample in reported]


# Reporting it


def growth(samples: list[Sample]) -> dict[str, float]:
    """How much more the last chunks need than those from chunk 3 on, as a share of the medians."""
    early, late = samples[EARLY - 1 : EARLY - 1 + WINDOW], samples[-WINDOW:]
    return {
        name: median(getattr(sample, name) for sample in late) / median(getattr(sample, name) for sample in early) - 1
        for name in TOLERANCES
    }


def chunk_table(results: dict[str, list[Sample]]) -> list[str]:
    """Some chunks, and the change over all of them."""
    num_chunks = len(results["ours"])
    header = ["", *(f"{NAMES[side]}: {what}" for side in results for what in ("resident", "tensors", "processor"))]
    rows = []
    for chunk in sorted({1, EARLY, 10, 20, 30, num_chunks}):
        if chunk <= num_chunks:
            row = [f"chunk {chunk}"]
            for samples in results.values():
                sample = samples[chunk - 1]
                megabytes = (f"{sample.resident / 1e6:.0f} MB", f"{sample.tensors / 1e6:.1f} MB")
                row += [*megabytes, f"{sample.seconds:.2f} s"]
            rows.append(row)
    change = [f"**{share:+.1%}**" for samples in results.values() for share in growth(samples).values()]
    return table(header, [*rows, [f"**change, chunk {EARLY} to {num_chunks}**", *change]])


def plot(results: dict[str, list[Sample]], path: Path) -> None:
    """Three charts below each other: resident memory, living tensors, seconds, over the chunks."""
    charts = {
        "resident memory, MB": lambda sample: sample.resident / 1e6,
        "living tensors, MB": lambda sample: sample.tensors / 1e6,
        "processor seconds for the chunk": lambda sample: sample.seconds,
    }
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, value) in enumerate(charts.items()):
            file = Path(folder) / f"{number}.png"
            curves = {
                NAMES[side]: [(chunk, value(sample)) for chunk, sample in enumerate(samples, start=1)]
                for side, samples in results.items()
            }
            plot_lines(curves, file, title=title, x_name="chunk", colours=("#1764ab", "#c0392b"))
            pictures.append(Image.open(file).copy())
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width, height * len(pictures)), "white")
    for row, picture in enumerate(pictures):
        sheet.paste(picture, (0, row * height))
    sheet.save(path)


def save(results: dict[str, list[Sample]]) -> None:
    """The numbers and the picture, in benchmarks/results."""
    RESULTS.mkdir(exist_ok=True)
    reported = {side: [asdict(sample) for sample in samples] for side, samples in results.items()}
    where = {"machine": platform.machine(), "size": [WIDTH, HEIGHT], "threads": 1}
    versions = {name: installed(name) for name in ("torch", "diffusers")}
    (RESULTS / "growth.json").write_text(json.dumps({**versions, **where, **reported}) + "\n")
    plot(results, RESULTS / "growth.png")


def too_much(samples: list[Sample]) -> list[str]:
    """What has grown by more than it may, in words."""
    return [
        f"{name} has grown by {share:.1%} from chunk {EARLY} to {len(samples)}; allowed is {TOLERANCES[name]:.0%}"
        for name, share in growth(samples).items()
        if share > TOLERANCES[name]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=MINUTE)
    parser.add_argument("--side", choices=NAMES, help="measure one side only and print it as JSON")
    parser.add_argument("--write", action="store_true", help="put the table into BENCHMARKS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side is not None:
        run = run_ours if options.side == "ours" else run_diffusers
        print(json.dumps([asdict(sample) for sample in run(options.chunks)]))
        return 0
    if options.chunks < EARLY + WINDOW:
        parser.error(f"at least {EARLY + WINDOW} chunks are needed to see growth")

    if options.write:
        marks(PAGE, "growth")
    results = {side: measure(side, options.chunks) for side in NAMES}
    lines = chunk_table(results)
    print("\n".join(lines))
    if options.chunks >= MINUTE:
        save(results)
    if options.write:
        reported = f"`{command_line('growth', sys.argv[1:])}` – {facts(torch.device('cpu'))}."
        write_section(PAGE, "growth", "\n".join([reported, "", *lines]))
    faults = too_much(results["ours"])
    if faults:
        print("\n".join(faults), file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
