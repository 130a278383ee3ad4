"""Command line: `python -m helios_core generate` makes a video, `info` tells what a run will cost."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from .checkpoint import open_checkpoint
from .config import (
    FRAME_RATE,
    FRAMES_PER_CHUNK,
    VARIANTS,
    SamplingSettings,
    TransformerConfig,
    check_size,
    parse_steps,
)
from .cost import activation_bytes, chunk_forwards, num_parameters, stage_costs, weight_bytes
from .demo import DemoModel
from .generate import CLIP_FRAMES, Job, ModelSource, PublishedModel, generate
from .noise import NOISE_SOURCES, NoiseSource, noise_source
from .sampler import Hooks, StepDone
from .video import VideoWriter, contact_sheet, read_image, read_video

logger = logging.getLogger("helios")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INFO_DTYPES = {**DTYPES, "fp8": torch.float8_e4m3fn}
GIB = 2**30


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status. A fault of the user's input is told in one line, without a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as fault:
        logger.error("error: %s", fault)
        return 2
    except KeyboardInterrupt:
        logger.error("stopped; the chunks finished so far are in the file")
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helios_core", description="Long video with Helios.")
    commands = parser.add_subparsers(required=True, metavar="command")

    make = commands.add_parser("generate", help="make a video", description="Make a video, chunk by chunk.")
    make.set_defaults(run=run_generate)
    make.add_argument("--prompt", required=True, help="what the video shows")
    make.add_argument("--negative-prompt", default="", help="what to stay away from (with guidance)")
    start = make.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, help="image-to-video: the picture to start from")
    start.add_argument("--video", type=Path, help="video-to-video: the clip to go on from, at least 33 frames")
    make.add_argument("--chunks", type=int, default=4, help="chunks of 33 frames (default %(default)s)")
    make.add_argument("--seed", type=int, default=0)
    make.add_argument("--out", type=Path, required=True, help="the mp4 to write")
    make.add_argument("--sheet", type=Path, help="also write a contact sheet (png) of the video")
    make.add_argument("--width", type=int, help="pixels; a multiple of 64 (16 for Base)")
    make.add_argument("--height", type=int, help="pixels; a multiple of 64 (16 for Base)")
    make.add_argument(
        "--resize", choices=("crop", "stretch", "pad"), default="crop", help="how image or clip are fitted"
    )
    make.add_argument("--frame-rate", type=float, default=FRAME_RATE, help="frames per second (default %(default)s)")
    make.add_argument("--model", type=Path, help="published Helios folder; without it a tiny demo model is used")
    make.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the published model (default %(default)s)")
    make.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    make.add_argument(
        "--noise",
        choices=NOISE_SOURCES,
        default="seeded",
        help="seeded: by seed and chunk; the others draw in the order of a reference, to compare with it",
    )
    add_sampling_options(make)

    info = commands.add_parser("info", help="tell what a run costs", description="Tokens, TFLOP and memory of a run.")
    info.set_defaults(run=run_info)
    info.add_argument("--model", type=Path, help="take the sizes from this checkpoint instead of the 14B model")
    info.add_argument("--width", type=int, default=640)
    info.add_argument("--height", type=int, default=384)
    info.add_argument("--dtype", choices=INFO_DTYPES, default="bf16", help="of the weights (default %(default)s)")
    add_sampling_options(info)
    return parser


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", choices=VARIANTS, help="default: read from the model; info: distilled")
    parser.add_argument("--steps", help="steps of each stage, e.g. 2,2,2 (default: the variant's own)")
    parser.add_argument("--guidance-scale", type=float, help="1 means no guidance (default: the variant's own)")


def apply_sampling_options(settings: SamplingSettings, options: argparse.Namespace) -> SamplingSettings:
    """The variant's settings with the options that were given. Raises ValueError when they do not fit."""
    if options.steps is not None:
        settings = replace(settings, steps=parse_steps(options.steps))
    if options.guidance_scale is not None:
        settings = replace(settings, guidance_scale=options.guidance_scale)
    return settings


def run_generate(options: argparse.Namespace) -> None:
    noise = noise_source(options.noise, options.seed, options.device)
    source = open_source(options, noise)
    settings = apply_sampling_options(source.settings, options)
    job = Job(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        num_chunks=options.chunks,
        width=options.width or source.width,
        height=options.height or source.height,
        image=read_image(options.image) if options.image else None,
        video=read_video(options.video, last_frames=CLIP_FRAMES) if options.video else None,
        resize=options.resize,
    )
    job.check(settings)
    logger.info(
        "%s: %d chunks of %d frames at %dx%d, steps %s",
        source.name, job.num_chunks, FRAMES_PER_CHUNK, job.width, job.height, list(settings.steps),
    )  # fmt: skip
    started = time.monotonic()
    shown = []
    with VideoWriter(options.out, width=job.width, height=job.height, frame_rate=options.frame_rate) as writer:
        for done, frames in enumerate(generate(source, job, settings, noise, Hooks(progress=log_step)), start=1):
            writer.write(frames)
            if options.sheet:
                shown.append(frames[::8])
            seconds = time.monotonic() - started
            logger.info(
                "chunk %d of %d: %.1f s of video after %.1f s, %.2f frames per second",
                done, job.num_chunks, done * FRAMES_PER_CHUNK / options.frame_rate, seconds,
                done * FRAMES_PER_CHUNK / seconds,
            )  # fmt: skip
    logger.info("wrote %s (%d frames)", options.out, job.num_chunks * FRAMES_PER_CHUNK)
    if options.sheet:
        sheet = (torch.cat(shown) * 255).round().byte()
        contact_sheet(sheet, columns=5, rows=len(shown)).save(options.sheet)
        logger.info("wrote %s", options.sheet)


def log_step(step: StepDone) -> None:
    logger.debug(
        "chunk %d, stage %d of %d, step %d of %d",
        step.chunk_index, step.stage + 1, step.num_stages, step.step + 1, step.num_steps,
    )  # fmt: skip


def open_source(options: argparse.Namespace, noise: NoiseSource) -> ModelSource:
    if options.model is None:
        return DemoModel()
    return PublishedModel(
        options.model, variant=options.variant, dtype=DTYPES[options.dtype], device=options.device, noise=noise
    )


def run_info(options: argparse.Namespace) -> None:
    settings = VARIANTS[options.variant or "distilled"]
    config = TransformerConfig()
    if options.model is not None:
        checkpoint = open_checkpoint(options.model)
        config = checkpoint.config
        if checkpoint.settings is not None and options.variant is None:
            settings = checkpoint.settings
    settings = apply_sampling_options(settings, options)
    check_size(options.width, options.height, settings.schedule.num_stages)
    sys.stdout.write("\n".join(describe(config, settings, options.width, options.height, options.dtype)) + "\n")


def describe(config: TransformerConfig, settings: SamplingSettings, width: int, height: int, dtype: str) -> list[str]:
    """The lines that `info` prints."""
    weights = weight_bytes(config, INFO_DTYPES[dtype])
    compute_dtype = DTYPES.get(dtype, torch.bfloat16)
    activations = activation_bytes(config, width, height, compute_dtype, num_prompts=2 if settings.guided else 1)
    costs = stage_costs(config, width, height, settings.schedule.num_stages)
    forwards = chunk_forwards(settings)
    total = sum(count * cost.flops for count, cost in zip(forwards, costs, strict=True))
    lines = [
        f"{num_parameters(config) / 1e9:.2f} B parameters, {width}x{height}, steps {list(settings.steps)}, "
        f"guidance {settings.guidance_scale:g}",
        "stage   noisy tokens   memory tokens   TFLOP per forward   forwards per chunk",
    ]
    for stage, (cost, count) in enumerate(zip(costs, forwards, strict=True)):
        lines.append(f"{stage:>5}{cost.noisy_tokens:>15}{cost.memory_tokens:>16}{cost.flops / 1e12:>20.2f}{count:>21}")
    lines += [
        f"a chunk ({FRAMES_PER_CHUNK} frames, {FRAMES_PER_CHUNK / FRAME_RATE:.3f} s): {total / 1e12:.1f} TFLOP "
        "without text encoder and VAE",
        f"memory: weights {weights / GIB:.2f} GiB in {dtype}, activations {activations / GIB:.2f} GiB (estimated), "
        f"together {(weights + activations) / GIB:.2f} GiB, the same for every chunk",
    ]
    return lines
