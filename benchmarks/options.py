"""What the options that are not exact cost in exactness, and what they bring in time.

    python -m benchmarks.options                       the demo's model, then a small one with random weights
    python -m benchmarks.options --model FOLDER        a published Helios folder
    python -m benchmarks.options --only demo --videos 8

Each option makes the same videos as the exact run, from the same noise. Printed is a table in Markdown: the relative
error of the latents (RMS of the difference over RMS of the exact ones), the PSNR of the decoded frames, how many
forwards a chunk took, and seconds per chunk without decoding: on a CPU of processor time, which other work on the
machine disturbs less. The error of the first chunk is given apart: later chunks build on the error of those before.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from helios_core.cli import DTYPES
from helios_core.demo import DemoModel
from helios_core.geometry import LATENT_FRAMES_PER_CHUNK
from helios_core.model.config import TransformerConfig
from helios_core.model.transformer import HeliosTransformer
from helios_core.options.fp8 import FP8, Fp8Linear, fp8_linear
from helios_core.sampling.conditioning import text_memory
from helios_core.sampling.hooks import Hooks
from helios_core.sampling.noise import SeededNoise
from helios_core.sampling.settings import VARIANTS, SamplingSettings
from helios_core.sources import ModelSource, PublishedModel
from helios_core.vae.codec import Codec
from tests import reference
from tests.chunks import chunks_of

# The published model's heads and proportions, at a size that a CPU can sample.
SMALL = TransformerConfig(num_attention_heads=2, ffn_dim=704, num_layers=4, text_dim=256)


class ScaleOneLinear(Fp8Linear):
    """The numbers of ComfyUI's own fp8 product (weight_dtype fp8_e4m3fn_fast): weight and tokens are clamped to fp8's
    range and have no scale."""

    @staticmethod
    def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        limit = torch.finfo(FP8).max
        return rows.clamp(-limit, limit).to(FP8), torch.ones(len(rows), 1, device=rows.device)


def scale_one_linear(linear: nn.Linear, weight: torch.Tensor) -> ScaleOneLinear:
    return ScaleOneLinear(weight.float())


class Bf16Linear(nn.Module):
    """The product as the published models make it, to compare the others with."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.bfloat16(), self.weight, self.bias.bfloat16()).to(x.dtype)


def bf16_linear(linear: nn.Linear, weight: torch.Tensor) -> Bf16Linear:
    return Bf16Linear(weight)


@dataclass(frozen=True)
class Option:
    """A row of the table: settings that differ from the exact run's, or the layer that takes a Linear's place."""

    name: str
    settings: dict[str, Any]
    make_linear: Callable[[nn.Linear, torch.Tensor], nn.Module] | None = None


EXACT = Option("exact", {})
OPTIONS = (
    Option("`history_reuse` stage", {"history_reuse": "stage"}),
    Option("`history_reuse` chunk", {"history_reuse": "chunk"}),
    Option("`step_cache` 0.02", {"step_cache": 0.02}),
    Option("`step_cache` 0.05", {"step_cache": 0.05}),
    Option("`step_cache` 0.1", {"step_cache": 0.1}),
    Option("bf16 products, to compare with", {}, bf16_linear),
    Option("fp8 products, a scale for each row and token (`--fp8-matmul`)", {}, fp8_linear),
    Option("fp8 products without scales (ComfyUI's `fp8_e4m3fn_fast`)", {}, scale_one_linear),
)


@dataclass(frozen=True)
class Subject:
    """A model to measure on. `load()` gives its transformer anew, in float32 or bf16, without options."""

    name: str
    load: Callable[[], HeliosTransformer]
    codec: Codec
    rows: torch.Tensor
    negative: torch.Tensor
    settings: SamplingSettings
    width: int
    height: int


def subject_of(name: str, source: ModelSource, prompt: str) -> Subject:
    rows, negative = source.encode_prompts([prompt, ""])
    codec, size = source.load_codec(), (source.width, source.height)
    return Subject(name, source.load_transformer, codec, rows, negative, source.settings, *size)


def random_subject(num_steps: int) -> Subject:
    """The small model, sampled as Mid is; its latents are decoded by the demo's VAE."""
    model = reference.randomise(HeliosTransformer(SMALL, dtype=torch.float32), seed=0).requires_grad_(False)
    rows = [torch.randn(1, 64, SMALL.text_dim, generator=reference.generator(seed)) for seed in (1, 2)]
    settings = replace(VARIANTS["mid"], steps=(num_steps,) * 3)
    name = f"random weights, {SMALL.num_layers} layers x {SMALL.num_attention_heads} heads of 128"
    return Subject(name, lambda: deepcopy(model), DemoModel().load_codec(), *rows, settings, 128, 128)


def with_linears(model: HeliosTransformer, make_linear) -> HeliosTransformer:
    """The model with a layer of `make_linear` in the place of each Linear of its blocks."""
    for block in model.blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    own_layer = make_linear(layer, layer.weight)
                    own_layer.bias = layer.bias
                    setattr(parent, name, own_layer)
    return model


@dataclass(frozen=True)
class Made:
    """Videos: latents (videos, C, 9 * num_chunks, h, w) on the CPU; forwards and seconds of a chunk."""

    latents: torch.Tensor
    num_forwards: float
    seconds: float


@dataclass(frozen=True)
class Job:
    """Which videos are made of a subject: as many as there are `seeds`, of `num_chunks` chunks."""

    seeds: range
    num_chunks: int

    def make(self, subject: Subject, model: HeliosTransformer, settings: SamplingSettings) -> Made:
        forwards = []

        def forward(*arguments) -> torch.Tensor:
            forwards.append(1)
            return model(*arguments)

        clock = time.process_time if subject.rows.device.type == "cpu" else time.perf_counter
        start = clock()
        videos = []
        for seed in self.seeds:
            chunks = chunks_of(
                model,
                subject.rows,
                text_memory(width=subject.width, height=subject.height),
                self.num_chunks,
                SeededNoise(seed),
                settings,
                negative=subject.negative if settings.guided else None,
                hooks=Hooks(forward=forward),
            )
            videos.append(torch.cat([chunk.cpu() for chunk, _ in chunks], dim=2))
        total = len(self.seeds) * self.num_chunks
        return Made(torch.cat(videos), len(forwards) / total, (clock() - start) / total)


def measure(subject: Subject, job: Job) -> Iterator[str]:
    """The rows of the table, the exact run's first, as they are made."""
    model = subject.load()
    replace(job, num_chunks=1).make(subject, model, subject.settings)  # what is made once (kernels) is made here

    def frames_of(made: Made) -> torch.Tensor:
        videos = made.latents.to(subject.rows.device).split(1)
        return torch.cat([subject.codec.decode(video).cpu().clamp(-1, 1) for video in videos])

    exact = job.make(subject, model, subject.settings)
    exact_frames = frames_of(exact)
    yield row(subject.name, EXACT.name, "", "", "", exact)
    for option in OPTIONS:
        if option.make_linear is not None:
            model = None  # let go before another one is loaded
            model = with_linears(subject.load(), option.make_linear)
        made = job.make(subject, model, replace(subject.settings, **option.settings))
        first, whole = (
            f"{relative_error(made.latents[:, :, :length], exact.latents[:, :, :length]):.1%}"
            for length in (LATENT_FRAMES_PER_CHUNK, None)
        )
        yield row("", option.name, first, whole, f"{psnr(frames_of(made), exact_frames):.1f} dB", made)


def row(subject: str, option: str, first: str, whole: str, frames: str, made: Made) -> str:
    return f"| {subject} | {option} | {first} | {whole} | {frames} | {made.num_forwards:.1f} | {made.seconds:.3g} |"


def table(subjects: list[Subject], job: Job) -> Iterator[str]:
    yield f"| | option | error, chunk 1 | error, {job.num_chunks} chunks | frames | forwards per chunk | s per chunk |"
    yield "|---|---|---|---|---|---|---|"
    for subject in subjects:
        yield from measure(subject, job)


def relative_error(latents: torch.Tensor, exact: torch.Tensor) -> float:
    return ((latents - exact).square().mean() / exact.square().mean()).sqrt().item()


def psnr(frames: torch.Tensor, exact: torch.Tensor) -> float:
    """In dB, of frames in [-1, 1]; infinite for equal ones."""
    error = (frames - exact).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(4 / error)


def describe(subject: Subject) -> str:
    settings = subject.settings
    return (
        f"{subject.name}: {subject.width}x{subject.height}, steps {list(settings.steps)}, "
        f"guidance {settings.guidance_scale:g}, {settings.schedule.solver}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="published Helios folder (default: the demo and random weights)")
    parser.add_argument("--variant", help="of the model, if its folder does not say")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the published model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=("demo", "random"), help="of the two that need no folder")
    parser.add_argument("--prompt", default="a red circle moving right on a black background")
    parser.add_argument("--steps", type=int, default=10, help="of each stage, with random weights")
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--videos", type=int, default=4, help="with noise of the seeds 0, 1, 2, ...")
    options = parser.parse_args()
    subjects = []
    if options.model is not None:
        noise, dtype = SeededNoise(0), DTYPES[options.dtype]
        source = PublishedModel(options.model, variant=options.variant, dtype=dtype, device=options.device, noise=noise)
        subjects.append(subject_of(source.name, source, options.prompt))
    else:
        if options.only != "random":
            subjects.append(subject_of("demo", DemoModel(), options.prompt))
        if options.only != "demo":
            subjects.append(random_subject(options.steps))
    command = " ".join(["python -m benchmarks.options", *sys.argv[1:]])
    facts = f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"`{command}` – {facts}. {'; '.join(map(describe, subjects))}.", end="\n\n")
    for line in table(subjects, Job(range(options.videos), options.chunks)):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
