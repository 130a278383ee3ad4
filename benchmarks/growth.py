"""What a chunk costs as a video grows: memory and time at every chunk, ours and diffusers' beside it.

    python -m benchmarks.growth                    100 chunks; about five minutes on two CPU cores
    python -m benchmarks.growth --chunks 20        a quick look

Both make the same video: same weights (the demo's shape, random), same tiny VAE, same prompt, size and steps, one step
in each of three stages; ours to a run folder and an mp4, diffusers' to a tensor of frames, which is what it gives. Each
runs in a process of its own. Time is the processor's, so that other work on the machine does not count. Writes
`growth.json` and `growth.png` to benchmarks/results, prints a table, and fails if our memory has grown by more than
2 % from chunk 5 to the last (medians of ten chunks: what the encoder happens to hold comes and goes). Needs Linux, and
what the tests need.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from PIL import Image, ImageDraw

from helios_core.codec import DiffusersWanCodec
from helios_core.conditioning import text_memory
from helios_core.config import SamplingSettings, ScheduleConfig
from helios_core.demo import DEMO_CONFIG
from helios_core.long_video import ChunkPlan, LongVideo, make_video
from helios_core.noise import DiffusersNoise
from helios_core.run_folder import RunFolder
from helios_core.sampler import Hooks
from helios_core.storage import ModelIdentity
from helios_core.transformer import HeliosTransformer
from helios_core.video import from_pixels
from tests import reference

WIDTH, HEIGHT = 192, 128
NUM_STAGES = 3
SEED = 11
TOLERANCE = 0.02
EARLY = 5  # by then every buffer has been made once
RESULTS = Path(__file__).parent / "results"
NAMES = {"ours": "ComfyUI-Helios", "diffusers": "diffusers 0.42.1"}
COLOURS = {"ours": (0, 110, 200), "diffusers": (200, 80, 0)}


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
    shape = asdict(DEMO_CONFIG)
    names = [*reference.TINY_SHAPE]
    model = reference.transformer(**{name: shape[name] for name in names})
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
    video = LongVideo(
        memory=text_memory(width=WIDTH, height=HEIGHT),
        num_chunks=num_chunks,
        plan=lambda _: ChunkPlan(rows, settings),
        noise=DiffusersNoise(reference.generator(SEED)),
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
        negative_prompt_embeds=rows,
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
    command = [sys.executable, "-m", "benchmarks.growth", "--side", side, "--chunks", str(num_chunks)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [Sample(**sample) for sample in json.loads(told.splitlines()[-1])]


# Telling of it


def table(results: dict[str, list[Sample]]) -> list[str]:
    num_chunks = len(results["ours"])
    lines = ["chunk   " + "   ".join(f"{NAMES[side]:>16}: RSS, tensors (MB), s" for side in results)]
    for chunk in sorted({1, EARLY, 10, 20, 40, 60, 80, num_chunks}):
        if chunk <= num_chunks:
            cells = [
                f"{s.resident / 1e6:>22.0f} {s.tensors / 1e6:>12.1f} {s.seconds:>6.2f}"
                for s in (samples[chunk - 1] for samples in results.values())
            ]
            lines.append(f"{chunk:>5}   " + "   ".join(cells))
    return lines


def growth(samples: list[Sample]) -> dict[str, float]:
    """How much more the last ten chunks need than the ten from chunk 5 on, as a share of the medians."""
    early, late = samples[EARLY - 1 : EARLY + 9], samples[-10:]
    return {
        name: median(getattr(sample, name) for sample in late) / median(getattr(sample, name) for sample in early) - 1
        for name in ("resident", "tensors", "seconds")
    }


def plot(results: dict[str, list[Sample]], path: Path) -> None:
    """Three charts beside each other: resident memory, living tensors, seconds, over the chunks."""
    size, gap = (380, 260), 50
    picture = Image.new("RGB", (3 * (size[0] + gap) + gap, size[1] + 2 * gap), "white")
    draw = ImageDraw.Draw(picture)
    charts = {
        "resident memory, MB": lambda sample: sample.resident / 1e6,
        "living tensors, MB": lambda sample: sample.tensors / 1e6,
        "processor seconds for the chunk": lambda sample: sample.seconds,
    }
    for column, (title, value) in enumerate(charts.items()):
        left, top = gap + column * (size[0] + gap), gap
        # A first chunk that warms things up must not flatten all others.
        highest = max(value(sample) for samples in results.values() for sample in samples[1:]) * 1.05
        draw.text((left, top - 30), title, fill="black")
        draw.rectangle((left, top, left + size[0], top + size[1]), outline="black")
        for share in (0, 0.5, 1):
            y = top + size[1] * (1 - share)
            draw.line((left, y, left + size[0], y), fill=(220, 220, 220))
            draw.text((left - 40, y - 6), f"{highest * share:.3g}", fill="black")
        for number, (side, samples) in enumerate(results.items()):
            points = [
                (
                    left + size[0] * chunk / max(1, len(samples) - 1),
                    top + size[1] * (1 - min(1, value(sample) / highest)),
                )
                for chunk, sample in enumerate(samples)
            ]
            draw.line(points, fill=COLOURS[side], width=2)
            draw.text((left + 8, top + 6 + 14 * number), NAMES[side], fill=COLOURS[side])
        draw.text((left, top + size[1] + 6), f"chunk 1 to {len(results['ours'])}", fill="black")
    picture.save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--side", choices=("ours", "diffusers"), help="measure one side only and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.side is not None:
        run = run_ours if options.side == "ours" else run_diffusers
        print(json.dumps([asdict(sample) for sample in run(options.chunks)]))
        return 0
    if options.chunks < EARLY + 10:
        parser.error(f"at least {EARLY + 10} chunks are needed to see growth")

    results = {side: measure(side, options.chunks) for side in ("ours", "diffusers")}
    RESULTS.mkdir(exist_ok=True)
    facts = {"torch": torch.__version__, "machine": platform.machine(), "size": [WIDTH, HEIGHT], "threads": 1}
    told = {side: [asdict(sample) for sample in samples] for side, samples in results.items()}
    (RESULTS / "growth.json").write_text(json.dumps({**facts, **told}))
    plot(results, RESULTS / "growth.png")
    print("\n".join(table(results)))
    for side, samples in results.items():
        shares = ", ".join(f"{name} {share:+.1%}" for name, share in growth(samples).items())
        print(f"{NAMES[side]}, from chunk {EARLY} to {len(samples)}: {shares}")
    ours = growth(results["ours"])
    return int(max(ours["resident"], ours["tensors"]) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
