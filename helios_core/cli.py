"""Command line of `python -m helios_core`: `demo` shows the embedded model, `generate` makes a video, `info` reports
what a run will cost, `convert` turns weights of any layout into one file.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .checkpoint.checkpoint import open_checkpoint
from .checkpoint.describing import describe_file
from .checkpoint.lora_file import read_lora
from .checkpoint.writing import CONVERT_DTYPES, KEPT_BLOCKS, QUANTISED_DTYPES, convert_checkpoint
from .demo import DemoModel
from .demo.show import make_show
from .dtypes import DTYPES
from .faults import in_words
from .files import check_file_name, check_new_file
from .finish.pieces import remove_old_pieces
from .generate import CLIP_FRAMES, Job, generate
from .geometry import FRAME_RATE, FRAMES_PER_CHUNK, check_size
from .media.formats import MP4_H264, MissingEncoderError
from .media.frames import contact_sheet, read_image
from .media.parts import Encoding
from .media.reader import read_video
from .memory.memory import HeliosMemory
from .memory.storage import load_memory, save_memory
from .model.config import TransformerConfig
from .options.compiling import check_compile
from .report.cost import chunk_forwards, estimate_memory, num_parameters, stage_costs, weight_bytes
from .run.job import ChunkDone
from .run.run_folder import RunFolder, RunFolderBusyError, list_runs, remove_run
from .sampling.drift import AntiDrift
from .sampling.hooks import Hooks, StepDone
from .sampling.loop import NonFiniteError
from .sampling.loras import Lora
from .sampling.noise import NOISE_SOURCES, NoiseSource, noise_source
from .sampling.settings import HISTORY_REUSE, VARIANTS, SamplingSettings, parse_steps
from .sampling.variant import sampling_advice
from .script.schedule import PromptSchedule
from .script.schedule_text import parse_schedule
from .sources import ModelSource, PublishedModel
from .typed import plain_head
from .vae.wan_vae import Decoding

logger = logging.getLogger("helios")

INFO_DTYPES = {**DTYPES, "fp8": torch.float8_e4m3fn}

# Of the user's input, the machine or the weights: their messages say what to do, and a traceback would hide it.
EXPECTED_FAULTS = (
    ValueError,
    OSError,
    ImportError,
    RunFolderBusyError,
    MissingEncoderError,
    NonFiniteError,
    torch.cuda.OutOfMemoryError,
)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status. What can be expected to fail is reported without a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except EXPECTED_FAULTS as fault:
        logger.error("error: %s", in_words(fault))
        return 2
    except KeyboardInterrupt:
        logger.error("stopped; the same command resumes, and preview.mp4 in the run folder plays what there is")
        return 130
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m helios_core", description="Long video with Helios.")
    commands = parser.add_subparsers(required=True, metavar="command")
    add_demo(commands.add_parser)
    add_generate(commands.add_parser)
    add_runs(commands.add_parser)
    add_info(commands.add_parser)
    add_convert(commands.add_parser)
    return parser


def add_demo(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    demo = add_parser(
        "demo",
        help="see the embedded model at work",
        description="Text-, image- and video-to-video in the toy world of the embedded model: a video demo.mp4 and a "
        "contact sheet demo.png.",
    )
    demo.set_defaults(run=run_demo)
    demo.add_argument("--out", type=Path, default=Path("output"), help="folder to write to (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0)


def add_generate(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    make = add_parser("generate", help="make a video", description="Make a video, chunk by chunk.")
    make.set_defaults(run=run_generate)
    what = make.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="what the video shows")
    what.add_argument(
        "--schedule",
        type=Path,
        metavar="FILE",
        help="prompts over time: a text file with lines such as '5s blend 2: it looks up' (see the help of the node "
        "Helios Prompt Schedule), or JSON; anchor pictures are looked for beside it",
    )
    make.add_argument("--negative-prompt", default="", help="what to stay away from (with guidance)")
    start = make.add_mutually_exclusive_group()
    start.add_argument("--image", type=Path, help="image-to-video: the picture to start from")
    start.add_argument("--video", type=Path, help="video-to-video: the clip to continue, at least 33 frames")
    make.add_argument("--keep-video", action="store_true", help="put the whole clip of --video before the new chunks")
    start.add_argument("--memory", type=Path, help="continue, exactly, from a memory saved with --save-memory")
    make.add_argument("--save-memory", type=Path, help="also save the memory after the last chunk")
    make.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="CHUNK:PROMPT",
        help="another prompt from this chunk on, e.g. '3:a storm'; may be repeated",
    )
    make.add_argument(
        "--reroll",
        action="append",
        default=[],
        metavar="CHUNK:SEED",
        help="another seed for this one chunk (the chunks after it follow it); may be repeated",
    )
    make.add_argument(
        "--run-folder",
        type=Path,
        help="where every finished chunk is kept, so that the same command resumes (default: beside --out, .run)",
    )
    make.add_argument(
        "--anti-drift", action="store_true", help="add noise to the model's view of the past when the picture drifts"
    )
    make.add_argument("--chunks", type=int, help="chunks of 33 frames (default: 4, or up to the schedule's end)")
    make.add_argument("--seed", type=int, default=0)
    add_output_options(make)
    add_model_options(make)


def add_output_options(make: argparse.ArgumentParser) -> None:
    make.add_argument("--out", type=Path, required=True, help="the mp4 to write")
    make.add_argument("--sheet", type=Path, help="also write a contact sheet (png) of the video")
    make.add_argument("--width", type=int, help="pixels; a multiple of 64 (16 for Base)")
    make.add_argument("--height", type=int, help="pixels; a multiple of 64 (16 for Base)")
    make.add_argument(
        "--resize", choices=("crop", "stretch", "pad"), default="crop", help="how image or clip are fitted"
    )
    make.add_argument("--frame-rate", type=float, default=FRAME_RATE, help="frames per second (default %(default)s)")


def add_model_options(make: argparse.ArgumentParser) -> None:
    make.add_argument("--model", type=Path, help="published Helios folder; without it a tiny demo model is used")
    make.add_argument("--dtype", choices=DTYPES, default="bf16", help="of the published model (default %(default)s)")
    make.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    make.add_argument(
        "--noise",
        choices=NOISE_SOURCES,
        default="seeded",
        help="seeded: by seed and chunk; the others draw in the order of a reference, to compare with it",
    )
    make.add_argument(
        "--compile",
        action="store_true",
        help="compile the transformer's blocks with torch.compile: a slow start, then faster steps on a GPU",
    )
    make.add_argument(
        "--fp8-matmul",
        action="store_true",
        help="faster, not exact: keep the blocks' weights in fp8 and multiply in fp8, with a scale for each row and "
        "token; needs a GPU of compute capability 8.9 or more (RTX 40 series, H100), and half the memory",
    )
    make.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="record the model's forwards as CUDA graphs in the first chunk and replay them: less work for the host, "
        "the same numbers; needs a CUDA device",
    )
    make.add_argument(
        "--vae-dtype", choices=DTYPES, default="fp32", help="decode in this type (default: fp32, exact)"
    )
    make.add_argument(
        "--vae-channels-last", action="store_true", help="decode with the channels side by side in memory"
    )
    make.add_argument("--vae-compile", action="store_true", help="compile the VAE's decoder: slow in the first chunk")
    make.add_argument(
        "--overlap-vae",
        action="store_true",
        help="decode a chunk while the next one is sampled, on the same GPU: exact, takes the memory of both there",
    )
    add_sampling_options(make)


def add_runs(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    runs = add_parser("runs", help="list run folders, or remove one", description="Runs and what they hold.")
    runs.set_defaults(run=run_runs)
    runs.add_argument("root", type=Path, nargs="?", default=Path(), help="folder of run folders (default: this one)")
    runs.add_argument("--remove", metavar="NAME", help="delete this run with all its chunks and finished pieces")
    runs.add_argument(
        "--remove-old-pieces", metavar="NAME", help="delete finished pieces that this run's latest film does not have"
    )


def add_info(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    info = add_parser(
        "info",
        help="report what a run costs, or what a file is",
        description="Tokens, TFLOP and memory of a run; with FILE what that file is: a Helios transformer (layout, "
        "variant, how each kind of layer is stored), a LoRA (how much of it fits), or something else.",
    )
    info.set_defaults(run=run_info)
    info.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a weight file or folder to describe")
    info.add_argument("--model", type=Path, help="take the sizes from this checkpoint instead of the 14B model")
    info.add_argument("--width", type=int, default=640)
    info.add_argument("--height", type=int, default=384)
    info.add_argument("--dtype", choices=INFO_DTYPES, default="bf16", help="of the weights (default %(default)s)")
    add_sampling_options(info)


def add_convert(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    convert = add_parser(
        "convert",
        help="turn weights into one safetensors file",
        description="Read Helios weights of any layout (a release folder, shards, one file, scaled fp8, GGUF) and "
        "write them as one safetensors file with config and variant inside. One tensor is in RAM at a time.",
    )
    convert.set_defaults(run=run_convert)
    convert.add_argument("source", type=Path, help="file or folder")
    convert.add_argument("target", type=Path, help="the .safetensors file to write; it is there whole or not at all")
    convert.add_argument(
        "--dtype",
        choices=[*CONVERT_DTYPES, *QUANTISED_DTYPES],
        default="bf16",
        help="(default %(default)s); fp8_scaled, int8 and int8_rows (one scale for each row) are quantised as ComfyUI "
        "does and keep its markers",
    )
    convert.add_argument(
        "--keep-blocks",
        type=int,
        default=KEPT_BLOCKS,
        metavar="N",
        help="when quantising, the first and last N blocks stay bf16 (default %(default)s)",
    )
    convert.add_argument("--variant", choices=VARIANTS, help="what the file says of itself (default: as the source)")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", choices=VARIANTS, help="default: read from the model; info: distilled")
    parser.add_argument("--steps", help="steps of each stage, e.g. 2,2,2 (default: the variant's own)")
    parser.add_argument("--guidance-scale", type=float, help="1 means no guidance (default: the variant's own)")
    parser.add_argument(
        "--history-reuse",
        choices=HISTORY_REUSE,
        default="off",
        help="faster, not exact: compute the history's tokens once in each stage, or in each chunk (default: off)",
    )
    parser.add_argument(
        "--step-cache",
        type=float,
        default=0.0,
        metavar="THRESHOLD",
        help="faster, not exact: leave out forwards that would change the model's output by less than this part of it, "
        "as EasyCache does; try 0.02 to 0.1. The first two steps and the last of a stage are always made (default: 0, "
        "off)",
    )


def apply_sampling_options(settings: SamplingSettings, options: argparse.Namespace) -> SamplingSettings:
    """The variant's settings with the options that were given. Raises ValueError when they do not fit."""
    trained = settings
    if options.steps is not None:
        settings = replace(settings, steps=parse_steps(options.steps))
    if options.guidance_scale is not None:
        settings = replace(settings, guidance_scale=options.guidance_scale)
    settings = replace(settings, history_reuse=options.history_reuse, step_cache=options.step_cache)
    for sentence in sampling_advice(trained, settings):
        logger.warning(sentence)
    return settings


def run_demo(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    video, sheet = make_show(options.out, seed=options.seed)
    logger.info("wrote %s and %s", video, sheet)


def run_generate(options: argparse.Namespace) -> None:
    if options.keep_video and options.video is None:
        raise ValueError("--keep-video keeps the clip that --video names; give --video too")
    check_outputs(options)
    MP4_H264.choose_pixel_format("auto", 2, 2)  # without an encoder nothing is worth beginning
    noise = noise_source(options.noise, options.seed, options.device)
    source = open_source(options, noise)
    settings = apply_sampling_options(source.settings, options)
    if options.compile:
        check_compile(settings)
    memory = load_memory(options.memory) if options.memory else None
    schedule = read_schedule(options.schedule, options.frame_rate) if options.schedule else None
    job = Job(
        prompt=options.prompt or "",
        negative_prompt=options.negative_prompt,
        later_prompts=numbered(options.then, str),
        rerolls=numbered(options.reroll, int),
        schedule=schedule,
        pictures=read_anchors(schedule, options.schedule.parent) if schedule else {},
        loras=read_loras(schedule, options.schedule.parent) if schedule else {},
        num_chunks=choose_length(options.chunks, schedule, memory),
        width=options.width or (memory or source).width,
        height=options.height or (memory or source).height,
        image=read_image(options.image) if options.image else None,
        # At the new video's rate, so that things keep moving as fast as they did.
        video=read_video(options.video, last_frames=CLIP_FRAMES, frame_rate=options.frame_rate)
        if options.video
        else None,
        lead_in=options.video if options.keep_video else None,
        memory=memory,
        resize=options.resize,
        anti_drift=AntiDrift() if options.anti_drift else None,
        encoding=Encoding(options.frame_rate),
    )
    job.check(settings)
    folder = RunFolder(options.run_folder or options.out.with_suffix(".run"))
    logger.info(
        "%s: %d chunks of %d frames at %dx%d, steps %s; finished chunks are kept in %s",
        source.name, job.num_chunks, FRAMES_PER_CHUNK, job.width, job.height, list(settings.steps), folder.path,
    )  # fmt: skip
    shown = []

    def report(done: ChunkDone) -> None:
        logger.info("%s", describe_chunk(done))
        if options.sheet:
            shown.append(done.frames()[::8])

    last = generate(
        source,
        job,
        settings,
        noise,
        folder=folder,
        path=options.out,
        on_chunk=report,
        hooks=Hooks(progress=log_step),
        compile_blocks=options.compile,
        decoding=Decoding(options.vae_dtype, options.vae_channels_last, options.vae_compile),
        overlap_vae=options.overlap_vae,
        cuda_graphs=options.cuda_graphs,
    )
    if options.save_memory:
        save_memory(last.memory(), options.save_memory)
        logger.info("saved the memory after chunk %d to %s", last.chunk, options.save_memory)
    logger.info("wrote %s (%d frames)", options.out, job.num_chunks * FRAMES_PER_CHUNK)
    if options.sheet:
        contact_sheet(torch.cat(shown), columns=5, rows=len(shown)).save(options.sheet)
        logger.info("wrote %s", options.sheet)


def check_outputs(options: argparse.Namespace) -> None:
    """Raise, before anything is read or made, for what could not be written in the end."""
    if options.out.suffix.lower() != ".mp4":
        raise ValueError(f"--out {options.out.name!r}: a long video is an mp4, so the file name must end in .mp4")
    for path in filter(None, (options.out, options.save_memory, options.sheet)):
        check_new_file(path)
    check_file_name((options.run_folder or options.out.with_suffix(".run")).resolve().name)
    if options.sheet is not None and options.sheet.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--sheet {options.sheet.name!r} must end as a picture does, for example in .png")


def read_schedule(path: Path, frame_rate: float) -> PromptSchedule:
    """The schedule in a text or JSON file. Raises ValueError with the file's name, line and column."""
    try:
        return parse_schedule(path.read_text(encoding="utf-8-sig"), frame_rate=frame_rate)
    except ValueError as fault:  # a file that is not UTF-8 among them
        raise ValueError(f"{path}: {fault}") from fault


def read_anchors(schedule: PromptSchedule, folder: Path) -> dict[str, torch.Tensor]:
    """The pictures that a schedule names, from `folder`."""
    names = {segment.anchor for segment in schedule.segments if segment.anchor is not None}
    return {name: read_image(folder / name) for name in sorted(names)}


def read_loras(schedule: PromptSchedule, folder: Path) -> dict[str, Lora]:
    """The LoRAs that a schedule names, from the folder it lies in."""
    return {name: read_lora(folder / name, name) for name in schedule.lora_names}


def choose_length(chunks: int | None, schedule: PromptSchedule | None, memory: HeliosMemory | None) -> int:
    """Number of chunks to make: as asked for, else up to the end of the schedule, else 4."""
    if chunks is not None or schedule is None:
        return 4 if chunks is None else chunks
    first = 0 if memory is None else memory.chunk_index
    if schedule.length <= first:
        raise ValueError(
            f"the schedule ends at chunk {schedule.length} and the memory is already at {first}; write a later end "
            "into the schedule, or give --chunks"
        )
    return schedule.length - first


def numbered(values: list[str], convert: Callable[[str], Any]) -> dict[int, Any]:
    """["3:a storm"] -> {3: "a storm"}. Raises ValueError for anything else."""
    parsed = {}
    for text in values:
        chunk, _, value = plain_head(text).partition(":")
        try:
            parsed[int(chunk)] = convert(value)
        except ValueError:
            raise ValueError(f"{text!r} is not a chunk number, a colon and a value, such as 3:7") from None
    return parsed


def describe_chunk(done: ChunkDone) -> str:
    """What is reported of a finished chunk."""
    what = f"chunk {done.num_done} of {done.num_chunks}: {done.seconds_of_video:.1f} s of video"
    if done.reused:
        return f"{what}, found finished"
    return f"{what}, {done.frames_per_second:.2f} frames per second, {done.eta_seconds:.0f} s to go"


def run_runs(options: argparse.Namespace) -> None:
    if options.remove is not None:
        removed = remove_run(options.root, options.remove)
        logger.info("removed %s: %d chunks, %.1f MB", removed.name, removed.num_chunks, removed.num_bytes / 1e6)
        return
    if options.remove_old_pieces is not None:
        name = options.remove_old_pieces
        if name not in {run.name for run in list_runs(options.root)}:
            raise ValueError(f"there is no run {name!r} in {options.root}")
        num_pieces, num_bytes = remove_old_pieces(RunFolder(options.root / name))
        logger.info("removed %d old pieces of %s, %.1f MB", num_pieces, name, num_bytes / 1e6)
        return
    runs = list_runs(options.root)
    lines = [
        f"{run.name}: {run.num_takes} takes, {run.num_chunks} chunks, "
        f"{f'{run.num_pieces} finished pieces, ' if run.num_pieces else ''}{run.num_bytes / 1e6:.1f} MB, "
        f"last used {datetime.fromtimestamp(run.last_used):%Y-%m-%d %H:%M}"
        for run in runs
    ]
    sys.stdout.write("".join(f"{line}\n" for line in lines or [f"no runs in {options.root.resolve()}"]))


def log_step(step: StepDone) -> None:
    logger.debug(
        "chunk %d, stage %d of %d, step %d of %d",
        step.chunk_index, step.stage + 1, step.num_stages, step.step + 1, step.num_steps,
    )  # fmt: skip


def open_source(options: argparse.Namespace, noise: NoiseSource) -> ModelSource:
    if options.model is None:
        return DemoModel(fp8_matmul=options.fp8_matmul)
    return PublishedModel(
        options.model,
        variant=options.variant,
        dtype=DTYPES[options.dtype],
        device=options.device,
        noise=noise,
        fp8_matmul=options.fp8_matmul,
    )


def run_info(options: argparse.Namespace) -> None:
    if options.file is not None:
        sys.stdout.write("\n".join(describe_file(options.file)) + "\n")
        return
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


def run_convert(options: argparse.Namespace) -> None:
    if options.target.suffix != ".safetensors":
        raise ValueError(f"the target {options.target} must end with .safetensors, the format that is written")
    variant = convert_checkpoint(
        open_checkpoint(options.source),
        options.target,
        options.dtype,
        options.variant,
        kept_blocks=options.keep_blocks,
    )
    if variant is None:
        logger.warning(
            "%s does not say which variant it is, so neither does %s. Give --variant to have it written",
            options.source, options.target,
        )  # fmt: skip


def describe(config: TransformerConfig, settings: SamplingSettings, width: int, height: int, dtype: str) -> list[str]:
    """The lines that `info` prints."""
    memory = estimate_memory(
        config,
        settings,
        width,
        height,
        dtype=DTYPES.get(dtype, torch.bfloat16),
        weight_bytes=weight_bytes(config, INFO_DTYPES[dtype]),
    )
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
        f"memory, the same for every chunk ({dtype} weights): {memory}",
    ]
    return lines
