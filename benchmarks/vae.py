"""How long the VAE takes to decode a chunk, and what each faster way changes in the frames.

    python -m benchmarks.vae                     on the CPU: the demo's VAE, and the published width in a small picture
    python -m benchmarks.vae --device cuda       the published width with random weights, 640 x 384; overlap on and off
    python -m benchmarks.vae --device cuda --model FOLDER    the same with the published weights
    python -m benchmarks.vae --write             and put the tables into BENCHMARKS.md

All decode the same latents, one after the other, round after round in an order that alternates, so that what else the
machine does falls on all; on the CPU it is processor time that is reported. Half precision is slow there (few CPUs
compute in it), so that it is reported for the demo alone, for its PSNR; and what is compiled is for a GPU. Memory is
what lives besides weights at the peak: on the CPU counted in tensors, on a GPU by the allocator. PSNR is against
diffusers in true float32; random weights make noise, which rounds worse than a picture.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import diffusers
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from helios_core.demo.model import VAE_FILE
from helios_core.geometry import LATENT_CHANNELS, LATENT_FRAMES_PER_CHUNK
from helios_core.vae.codec import WanCodec
from helios_core.vae.side_stream import SideStream
from helios_core.vae.wan_vae import Decoding, WanVAE
from helios_core.vae.wan_vae_file import load_wan_vae, vae_folder
from tests.live_tensors import LivePeak

from .contestants import synchronise
from .diffusers_vae import DiffusersWanCodec
from .options import psnr
from .speed import PAGE, write_section

THEIRS = "diffusers fp32"
WAYS = {
    "ours fp32": Decoding(),
    "fp32, channels last": Decoding(channels_last=True),
    "fp32, compiled": Decoding(compiled=True),
    "fp16": Decoding("fp16"),
    "bf16": Decoding("bf16"),
    "bf16, channels last": Decoding("bf16", channels_last=True),
    "bf16, compiled": Decoding("bf16", compiled=True),
    "bf16, channels last, compiled": Decoding("bf16", channels_last=True, compiled=True),
    "fp16, channels last, compiled": Decoding("fp16", channels_last=True, compiled=True),
}

Decode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """Random latents of a chunk, decoded by `vae` at width x height pixels."""

    name: str
    vae: Callable[[], WanVAE]
    width: int
    height: int
    ways: tuple[str, ...] = (THEIRS, *WAYS)

    def latents(self) -> torch.Tensor:
        shape = (1, LATENT_CHANNELS, LATENT_FRAMES_PER_CHUNK, self.height // 8, self.width // 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@dataclass
class Result:
    """Of one way: milliseconds of every run, peak bytes besides weights (None: cannot be seen), PSNR in dB."""

    milliseconds: list[float]
    peak: int | None
    psnr: float


def random_vae(dim: int) -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(dim)


CPU_CASES = (
    Case("demo", lambda: load_wan_vae(VAE_FILE), 32, 32, (THEIRS, "ours fp32", "fp32, channels last", "fp16", "bf16")),
    Case(
        "published width, random weights",
        lambda: random_vae(96),
        16,
        16,
        (THEIRS, "ours fp32", "fp32, channels last"),
    ),
)
GPU_CASE = Case("published width, random weights", lambda: random_vae(96), 640, 384)


def decoders(case: Case, names: list[str], device: torch.device) -> dict[str, tuple[Decode, list[torch.Tensor]]]:
    """What decodes, and its weights, for each way. Latent frame by latent frame, as published models are decoded."""
    vae = case.vae().requires_grad_(False)
    found: dict[str, tuple[Decode, list[torch.Tensor]]] = {}
    if THEIRS in names:
        with torch.device("meta"):
            twin = AutoencoderKLWan(base_dim=vae.decoder.head[0].gamma.shape[0], z_dim=LATENT_CHANNELS)
        twin.load_state_dict(convert_wan_vae_to_diffusers(dict(vae.state_dict())), assign=True)
        twin = deepcopy(twin).to(device).eval().requires_grad_(False)
        found[THEIRS] = DiffusersWanCodec(twin).decode, list(twin.parameters())
    for name in names:
        if name in WAYS:
            own = deepcopy(vae)
            own.piece = 1
            own.set_decoding(WAYS[name])
            found[name] = WanCodec(own.to(device)).decode, list(own.parameters())
    return found


def measure(case: Case, names: list[str], device: torch.device, rounds: int) -> dict[str, Result]:
    latents = case.latents().to(device)
    exact = true_frames(case, device)
    results = {}
    ways = decoders(case, names, device)
    for name, (decode, weights) in ways.items():
        inside = name in WAYS and WAYS[name].compiled and device.type == "cpu"  # of compiled code no tensors are seen
        frames = decode(latents).clamp(-1, 1).cpu()  # what is compiled or chosen once is so here
        results[name] = Result([], None if inside else peak_bytes(decode, latents, weights), psnr(frames, exact))
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            results[name].milliseconds.append(timed(ways[name][0], latents))
    return results


def true_frames(case: Case, device: torch.device) -> torch.Tensor:
    """Frames by diffusers in float32, on a GPU without its shorter TF32."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        decode, _ = decoders(case, [THEIRS], device)[THEIRS]
        return decode(case.latents().to(device)).clamp(-1, 1).cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def timed(decode: Decode, latents: torch.Tensor) -> float:
    """Milliseconds; of the processor when it computes."""
    clock = time.process_time if latents.device.type == "cpu" else time.perf_counter
    gc.collect()
    synchronise(latents.device)
    start = clock()
    decode(latents)
    synchronise(latents.device)
    return 1000 * (clock() - start)


def peak_bytes(decode: Decode, latents: torch.Tensor, weights: list[torch.Tensor]) -> int:
    gc.collect()
    if latents.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(latents.device)
        before = torch.cuda.memory_allocated(latents.device)
        decode(latents)
        synchronise(latents.device)
        return torch.cuda.max_memory_allocated(latents.device) - before
    with LivePeak([*weights, latents]) as live:
        decode(latents)
    return live.peak


def table(case: Case, results: dict[str, Result]) -> list[str]:
    """Ratios are of diffusers' time to the way's own, in each round."""
    lines = [
        f"| {case.name}, {case.width} x {case.height} | ms per chunk, median (spread) | against {THEIRS} "
        "| peak besides weights | PSNR |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        runs = result.milliseconds
        ratio = median(a / b for a, b in zip(results[THEIRS].milliseconds, runs, strict=True))
        peak = "" if result.peak is None else f"{result.peak / 2**20:.1f} MiB"
        reported = "exact" if math.isinf(result.psnr) else f"{result.psnr:.1f} dB"
        lines.append(
            f"| {name} | {median(runs):.0f} ({min(runs):.0f} to {max(runs):.0f}) | {ratio:.2f}x | {peak} | {reported} |"
        )
    return lines


def overlap_table(case: Case, way: str, device: torch.device, rounds: int) -> list[str]:
    """A decode after matrix products that take about as long, and beside them on a stream of its own."""
    decode, _ = decoders(case, [way], device)[way]
    latents = case.latents()
    matrix = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

    def sample(count: int) -> None:
        for _ in range(count):
            matrix @ matrix

    def decoded(latents: torch.Tensor) -> torch.Tensor:
        return decode(latents)

    decoded(latents), sample(1)
    each = timed(lambda _: sample(20), matrix) / 20
    count = max(1, round(timed(lambda _: decoded(latents), matrix) / each))
    side = SideStream(device).around(decoded)
    side(latents)

    def after(_: torch.Tensor) -> None:
        sample(count)
        decoded(latents).cpu()

    def beside(_: torch.Tensor) -> None:
        sample(count)  # the host continues at once
        side(latents)

    runs = {"after": [], "beside": []}
    for number in range(rounds):
        for name, run in ((("after", after), ("beside", beside)))[:: 1 if number % 2 else -1]:
            runs[name].append(timed(run, matrix))
    lines = [f"| {way}, with matrix products of the same time | ms, median (spread) |", "|---|---|"]
    lines += [
        f"| decoded {name} them | {median(ms):.0f} ({min(ms):.0f} to {max(ms):.0f}) |" for name, ms in runs.items()
    ]
    return lines


def facts(device: torch.device) -> str:
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{date.today()}, {what}{threads}, torch {torch.__version__}, diffusers {diffusers.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--model", type=Path, help="published folder whose VAE is taken (default: see above)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="only the cases with this in their name")
    parser.add_argument("--write", action="store_true", help="put the tables into BENCHMARKS.md")
    options = parser.parse_args()
    cases = CPU_CASES if options.device.type == "cpu" else (GPU_CASE,)
    if options.model is not None:
        folder = vae_folder(options.model)
        cases = (Case(options.model.name, lambda: load_wan_vae(folder), 640, 384),)
    lines = []
    for case in (case for case in cases if (options.only or "") in case.name):
        part = table(case, measure(case, list(case.ways), options.device, options.rounds))
        if options.device.type == "cuda":
            part += ["", *overlap_table(case, "bf16, channels last", options.device, options.rounds)]
        print("\n".join([*part, ""]), flush=True)
        lines += [*part, ""]
    if options.write:
        command = " ".join(["python -m benchmarks.vae", *(a for a in sys.argv[1:] if a != "--write")])
        text = "\n".join([f"`{command}` – {facts(options.device)}.", "", *lines]).rstrip()
        write_section(PAGE, f"vae {options.device.type}", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
