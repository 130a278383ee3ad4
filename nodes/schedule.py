"""Helios Prompt Schedule and Helios Schedule Add: prompts over time -> schedule."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..helios_core.checkpoint.lora_file import read_lora
from ..helios_core.fingerprint import file_fingerprint, fingerprint
from ..helios_core.geometry import FRAME_RATE
from ..helios_core.media.frames import read_image
from ..helios_core.script.blending import EncodedSchedule
from ..helios_core.script.schedule import (
    BLEND_SHAPES,
    DEFAULT_BLEND,
    MAX_BLEND,
    MAX_CHUNK,
    MAX_GUIDANCE_SCALE,
    MAX_LORA_STRENGTH,
    MAX_SEED,
    PromptSchedule,
    Segment,
)
from ..helios_core.script.schedule_text import parse_schedule
from .host.folders import input_file
from .host.wire_identity import wire_identity
from .wires import CATEGORY, HeliosScheduleType, prompt_embeds

logger = logging.getLogger(__name__)

EXAMPLE = "0s: a fox in the snow\n5s blend 3: the fox looks up at the sky\n10s blend 4: it starts to snow\nend 15s\n"
NO_SEED = -1
NO_LORA = "none"


class HeliosPromptSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosPromptSchedule",
            display_name="Helios Prompt Schedule",
            category=CATEGORY,
            description="Prompts over time. Write one segment a line (0s: a fox / 5s blend 2: it looks up), or drag "
            "blocks on the timeline: both show the same text. Connect the schedule where a prompt goes: to positive of "
            "a Helios sampler.",
            inputs=[
                io.Clip.Input("clip", tooltip="The umt5-xxl text encoder (CLIPLoader, type wan)."),
                io.String.Input(
                    "text",
                    default=EXAMPLE,
                    multiline=True,
                    tooltip="One segment a line: when it starts (5s, or chunk 4), options, a colon, the prompt. "
                    "Options: blend N (chunks), linear, spherical or step, seed N, guidance X, anchor picture.png, "
                    "lora name.safetensors strength (from models/loras). "
                    "Lines that begin with a space continue the prompt, lines that begin with # are comments, and "
                    "end 20s as the last line says where the video ends. JSON is taken too.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=float(FRAME_RATE),
                    min=1.0,
                    max=120.0,
                    step=0.01,
                    tooltip="Frames per second, to turn seconds into chunks of 33 frames. A start is moved to the "
                    "nearest chunk.",
                ),
                io.Int.Input(
                    "blend",
                    default=DEFAULT_BLEND,
                    min=0,
                    max=MAX_BLEND,
                    tooltip="Chunks that a change of prompt takes where the text does not say. The first of them still "
                    "has the old prompt, the last the new one; 3 is what the authors use, 0 changes at once.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(BLEND_SHAPES),
                    default="linear",
                    tooltip="How prompts blend where the text does not say. linear: weighted mean of the embeddings; "
                    "spherical: turn from one to the other, which keeps their length; step: change at once.",
                ),
                io.String.Input(
                    "file",
                    default="",
                    tooltip="Name of a text or JSON file in ComfyUI's input folder, read in place of the text. Empty: "
                    "the text above.",
                ),
            ],
            outputs=[
                HeliosScheduleType.Output(
                    "schedule", display_name="schedule", tooltip="For positive of a Helios sampler."
                ),
                io.Int.Output(
                    "chunks",
                    display_name="chunks",
                    tooltip="Length of the video in chunks: up to the end that the text names, or 4 chunks of the last "
                    "prompt. For chunks of a Helios sampler.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, text=None, frame_rate=None, blend=None, shape=None, file=None) -> bool | str:
        if None in (text, frame_rate, blend, shape, file):  # one comes from another node; checked in execute
            return True
        try:
            schedule = read_schedule(text, frame_rate, blend, shape, file)
            for segment in schedule.segments:
                if segment.anchor is not None:
                    input_file(segment.anchor, "the anchor picture")
            for name in schedule.lora_names:
                lora_path(name)
        except (ValueError, OSError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, clip=None, text=None, frame_rate=None, blend=None, shape=None, file=None) -> str:
        """Changes with the content of the files that the schedule names."""
        digest = hashlib.sha256()
        try:
            if file:
                digest.update(input_file(file, "the schedule").read_bytes())
            schedule = read_schedule(text, frame_rate, blend, shape, file)
            for name in anchor_names(schedule):
                digest.update(input_file(name, "the anchor picture").read_bytes())
            for name in schedule.lora_names:
                digest.update(file_fingerprint(lora_path(name)).encode())
        except (ValueError, OSError, TypeError) as error:
            # A value that only another node knows, or a fault that execute will report.
            return f"unknown: {error}"
        return digest.hexdigest()

    @classmethod
    def execute(cls, clip, text, frame_rate, blend, shape, file) -> io.NodeOutput:
        schedule = read_schedule(text, frame_rate, blend, shape, file)
        log_cut_blends(schedule)
        pictures = {
            name: read_image(input_file(name, "the anchor picture")).float() / 255 for name in anchor_names(schedule)
        }

        def encode(prompts: list[str]) -> list[torch.Tensor]:
            return [
                prompt_embeds(clip.encode_from_tokens_scheduled(clip.tokenize(prompt)), f'prompt "{prompt[:40]}"')
                for prompt in prompts
            ]

        loras = {name: read_lora(lora_path(name), name) for name in schedule.lora_names}
        encoded = EncodedSchedule.encode(schedule, encode, pictures, loras)
        clip_identity = wire_identity(cls.hidden, "clip")
        if clip_identity:
            prompts = (fingerprint(clip_identity, segment.prompt) for segment in schedule.segments)
            encoded = replace(encoded, identities=tuple(prompts))
        return io.NodeOutput(encoded, schedule.length)


class HeliosScheduleAdd(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HeliosScheduleAdd",
            display_name="Helios Schedule Add",
            category=CATEGORY,
            description="Adds one prompt to a schedule, or starts one. For prompts that come from other nodes "
            "(Conditioning Average, Conditioning Concat): chain one of these for each.",
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, from the umt5-xxl text encoder."),
                io.Int.Input(
                    "start",
                    default=0,
                    min=0,
                    max=MAX_CHUNK,
                    tooltip="Chunk of 33 frames (1.375 s at 24 frames per second) that the prompt starts at, counted "
                    "from 0. The first prompt of a schedule starts at 0.",
                ),
                io.Int.Input(
                    "blend",
                    default=DEFAULT_BLEND,
                    min=0,
                    max=MAX_BLEND,
                    tooltip="Chunks that the change from the prompt before takes; 0 changes at once.",
                ),
                io.Combo.Input(
                    "shape",
                    options=list(BLEND_SHAPES),
                    default="linear",
                    tooltip="How the two prompts blend: linear, spherical, or step (at once).",
                ),
                io.Int.Input(
                    "segment_seed",
                    default=NO_SEED,
                    min=NO_SEED,
                    max=MAX_SEED,
                    tooltip="Seed of this prompt's chunks. -1: the sampler's.",
                ),
                io.Float.Input(
                    "guidance_scale",
                    default=0.0,
                    min=0.0,
                    max=MAX_GUIDANCE_SCALE,
                    step=0.1,
                    tooltip="Guidance of this prompt's chunks. 0: the sampler's.",
                ),
                HeliosScheduleType.Input(
                    "schedule", optional=True, tooltip="The schedule to add to. Nothing: start a new one."
                ),
                io.Combo.Input(
                    "lora",
                    options=[NO_LORA, *folder_paths.get_filename_list("loras")],
                    default=NO_LORA,
                    optional=True,
                    tooltip="A LoRA that acts while this prompt does; its strength follows the blend.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-MAX_LORA_STRENGTH,
                    max=MAX_LORA_STRENGTH,
                    step=0.05,
                    optional=True,
                    tooltip="How strongly the LoRA acts; 0 is not at all.",
                ),
            ],
            outputs=[
                HeliosScheduleType.Output(
                    "schedule_out", display_name="schedule", tooltip="For positive of a Helios sampler."
                ),
                io.Int.Output(
                    "chunks",
                    display_name="chunks",
                    tooltip="Length of the video in chunks, with 4 chunks of the last prompt.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.dynprompt, io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        conditioning,
        start,
        blend,
        shape,
        segment_seed,
        guidance_scale,
        schedule=None,
        lora=NO_LORA,
        lora_strength=1.0,
    ) -> io.NodeOutput:
        loras = {} if lora in (None, NO_LORA) else {lora: read_lora(lora_path(lora), lora)}
        segment = Segment(
            start,
            "",
            blend=blend,
            shape=shape,
            seed=None if segment_seed == NO_SEED else segment_seed,
            guidance_scale=guidance_scale or None,
            loras=dict.fromkeys(loras, lora_strength) or None,
        )
        rows = prompt_embeds(conditioning, "conditioning")
        identity = wire_identity(cls.hidden, "conditioning")
        if schedule:
            added = schedule.add(segment, rows, identity, loras)
        else:
            added = EncodedSchedule(PromptSchedule((segment,)), (rows,), identities=(identity,), loras=loras)
        log_cut_blends(added.schedule)
        return io.NodeOutput(added, added.schedule.length)


def read_schedule(text: str, frame_rate: float, blend: int, shape: str, file: str) -> PromptSchedule:
    """The schedule of the node's widgets. Raises ValueError, or OSError for a file that cannot be read."""
    if file:
        try:
            text = input_file(file, "the schedule").read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as fault:
            raise ValueError(f"the schedule {file!r} is not UTF-8 text ({fault}); save it as UTF-8") from fault
    return parse_schedule(text, frame_rate=frame_rate, blend=blend, shape=shape)


def lora_path(name: str) -> Path:
    """A LoRA in ComfyUI's folders. Raises ValueError for a name that is not listed there."""
    path = folder_paths.get_full_path("loras", name) if name in folder_paths.get_filename_list("loras") else None
    if path is None:
        raise ValueError(f"there is no LoRA {name!r} in models/loras. Put it there and press R to refresh")
    return Path(path)


def anchor_names(schedule: PromptSchedule) -> list[str]:
    return sorted({segment.anchor for segment in schedule.segments if segment.anchor is not None})


def log_cut_blends(schedule: PromptSchedule) -> None:
    """Warn of segments that are too short for their blend."""
    for index in schedule.cut_blends():
        segment = schedule.segments[index]
        logger.warning(
            "segment %d of the schedule (chunk %d) ends before its blend of %d chunks does: the next prompt starts "
            "with a jump. Make the segment longer or its blend shorter",
            index + 1, segment.start, schedule.blend_of(index)[0],
        )  # fmt: skip
