"""Prompts over time: which prompt a chunk follows, and how one prompt turns into the next.

A schedule is plain data: segments, each with the chunk it starts at and a prompt. Chunks are counted from the start
of the video, whichever sampler makes them. `schedule_text` reads and writes the form that people type, `blending`
turns a schedule into rows for the transformer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..geometry import FRAMES_PER_CHUNK
from ..typed import visible

BLEND_SHAPES = ("linear", "spherical", "step")
DEFAULT_BLEND = 3  # chunks, the authors' interpolation_steps
MAX_CHUNK = 100_000  # 38 hours at 24 frames per second
MAX_BLEND = 1000
MAX_SEED = 2**64 - 1
MAX_GUIDANCE_SCALE = 30.0
MAX_LORA_STRENGTH = 100.0
# A schedule that does not say where it ends gives its last prompt as many chunks as this.
OPEN_END_CHUNKS = 4


@dataclass(frozen=True)
class Segment:
    """A prompt from chunk `start` on, until the next segment.

    `blend` is the number of chunks that the change from the prompt before takes, the first of them still the old
    prompt and the last the new one; 0 or 1 changes at once. `shape` is one of BLEND_SHAPES. `seed` and
    `guidance_scale` (1..30) hold for this segment's chunks only. `anchor` names a picture that becomes the memory's
    anchor when the segment starts. `loras` are (name, strength), or a mapping, of LoRAs that act in this segment; their
    strengths follow the blend. None: what the schedule, or the sampler, says. Raises ValueError for a value that
    is not allowed.
    """

    start: int
    prompt: str
    blend: int | None = None
    shape: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    anchor: str | None = None
    loras: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self) -> None:
        check_start(self.start)
        for name, value in (("blend", self.blend), ("shape", self.shape), ("seed", self.seed)):
            if value is not None:
                CHECKS[name](value)
        if self.guidance_scale is not None:
            CHECKS["guidance"](self.guidance_scale)
            object.__setattr__(self, "guidance_scale", float(self.guidance_scale))
        if self.anchor is not None:
            CHECKS["anchor"](self.anchor)
            object.__setattr__(self, "anchor", visible(self.anchor))
        if self.loras is not None:
            CHECKS["loras"](self.loras)
            pairs = self.loras.items() if isinstance(self.loras, Mapping) else self.loras
            object.__setattr__(self, "loras", tuple((visible(name), float(value)) for name, value in pairs) or None)
        object.__setattr__(self, "prompt", clean_lines(self.prompt))


@dataclass(frozen=True)
class PromptSchedule:
    """Segments in order of time, the first at chunk 0.

    `num_chunks`: length of the video that the schedule describes, None when it leaves that open; the last prompt
    holds beyond it. `blend` and `shape` are those of segments that have none. Raises ValueError when the segments
    are not in order, start twice at one chunk, or leave the start of the video without a prompt.
    """

    segments: tuple[Segment, ...]
    num_chunks: int | None = None
    blend: int = DEFAULT_BLEND
    shape: str = "linear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        CHECKS["blend"](self.blend)
        CHECKS["shape"](self.shape)
        if not self.segments:
            raise ValueError('the schedule has no segment; it needs at least one, such as "0s: a fox in the snow"')
        previous: int | None = None
        for number, segment in enumerate(self.segments, start=1):
            try:
                check_order(previous, segment.start)
            except ValueError as fault:
                raise ValueError(f"segment {number}: {fault}") from fault
            previous = segment.start
        if self.num_chunks is not None:
            check_end(self.segments[-1].start, self.num_chunks)

    @property
    def length(self) -> int:
        """Number of chunks that the schedule describes."""
        return self.num_chunks or self.segments[-1].start + OPEN_END_CHUNKS

    def index_at(self, chunk: int) -> int:
        """Index of the segment that a chunk (from 0) lies in; chunks past the end lie in the last."""
        if chunk < 0:
            raise ValueError(f"chunk is {chunk}; chunks are counted from 0")
        return max(index for index, segment in enumerate(self.segments) if segment.start <= chunk)

    def segment_at(self, chunk: int) -> Segment:
        """The segment that a chunk (from 0) lies in."""
        return self.segments[self.index_at(chunk)]

    def blend_of(self, index: int) -> tuple[int, str]:
        """(number of chunks, shape) of the blend into segment `index`. The first has nothing to blend from."""
        segment = self.segments[index]
        shape = segment.shape or self.shape
        blend = self.blend if segment.blend is None else segment.blend
        return (0, "step") if index == 0 or shape == "step" else (blend, shape)

    def mix(self, chunk: int) -> list[tuple[int, float]]:
        """What a chunk shows: (segment index, weight), one or two of them, in order of time; weights add up to 1."""
        index = self.index_at(chunk)
        blend, _ = self.blend_of(index)
        weight = blend_weight(chunk - self.segments[index].start, blend)
        parts = [(index - 1, 1.0 - weight), (index, weight)]
        return [(part, share) for part, share in parts if share > 0.0]

    def loras_at(self, chunk: int) -> dict[str, float]:
        """Name -> strength of the LoRAs that act in a chunk; in a blend each moves from one strength to the other."""
        parts = self.mix(chunk)
        shares = [(dict(self.segments[index].loras or ()), weight) for index, weight in parts]
        names = dict.fromkeys(name for loras, _ in shares for name in loras)
        strengths = {name: sum(weight * loras.get(name, 0.0) for loras, weight in shares) for name in names}
        return {name: strength for name, strength in strengths.items() if strength}

    @property
    def lora_names(self) -> list[str]:
        """All LoRAs that the schedule names, in order."""
        return list(dict.fromkeys(name for segment in self.segments for name, _ in segment.loras or ()))

    def cut_blends(self) -> list[int]:
        """Indices of segments that end before their blend does, so that the next one starts with a jump."""
        starts = [segment.start for segment in self.segments[1:]]
        ends = [*starts, self.num_chunks or math.inf]
        return [
            index
            for index, (segment, end) in enumerate(zip(self.segments, ends, strict=True))
            if self.blend_of(index)[0] > end - segment.start
        ]

    def to_json(self) -> str:
        """The schedule as JSON text; `from_json` gives back an equal schedule."""
        segments = [
            {field.name: value for field in fields(Segment) if (value := getattr(segment, field.name)) is not None}
            | ({} if segment.loras is None else {"loras": dict(segment.loras)})
            for segment in self.segments
        ]
        values: dict[str, Any] = {"segments": segments, "blend": self.blend, "shape": self.shape}
        if self.num_chunks is not None:
            values["num_chunks"] = self.num_chunks
        return json.dumps(values, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, **defaults: Any) -> PromptSchedule:
        """Read what `to_json` writes; keys other than "segments", "start" and "prompt" may be left out.

        `defaults` are `blend` and `shape` of a file that names none. Raises ValueError, naming segment and key.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as fault:
            raise ValueError(f"line {fault.lineno}, column {fault.colno}: not valid JSON: {fault.msg}") from fault
        except RecursionError as fault:
            raise ValueError("the JSON is nested too deeply to be a schedule") from fault
        _check_keys("the schedule", values, cls, required=("segments",))
        if not isinstance(values["segments"], list):
            raise ValueError(f"segments is {_excerpt(values['segments'])}; it must be a list")
        segments = []
        for number, entry in enumerate(values["segments"], start=1):
            _check_keys(f"segment {number}", entry, Segment, required=("start", "prompt"))
            try:
                segments.append(Segment(**entry))
            except ValueError as fault:
                raise ValueError(f"segment {number}: {fault}") from fault
        return cls(**{**defaults, **values, "segments": tuple(segments)})


def blend_weight(position: int, blend: int) -> float:
    """Share of the new prompt in chunk `position` (from 0) of a segment whose blend takes `blend` chunks.

    position / (blend - 1), at most 1: 0, 0.5, 1 for 3 chunks, as in the authors' interactive inference.
    """
    return 1.0 if blend <= 1 else min(1.0, position / (blend - 1))


def nearest_chunk(seconds: float, frame_rate: float) -> int:
    """The chunk whose start is nearest to a time in seconds."""
    return math.floor(seconds * frame_rate / FRAMES_PER_CHUNK + 0.5)


def clean_lines(prompt: str) -> str:
    """A prompt with spaces and tabs stripped from its lines, without empty lines at its ends and without characters
    that show nothing.

    Raises ValueError for control characters other than tab and line ends.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {_excerpt(prompt)}; it must be text")
    lines = visible(prompt).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for line in lines:
        position = find_control_character(line)
        if position is not None:
            raise ValueError(control_character_message(line[position]))
    return "\n".join(line.strip(" \t") for line in lines).strip("\n")


def find_control_character(line: str) -> int | None:
    """Index of the first character of a line that no prompt may hold: control characters and lone surrogates."""
    for position, character in enumerate(line):
        code = ord(character)
        if (code < 0x20 and character != "\t") or code == 0x7F or 0xD800 <= code <= 0xDFFF:
            return position
    return None


def control_character_message(character: str) -> str:
    return f"the character U+{ord(character):04X} is not allowed in a schedule; remove it"


def check_start(chunk: int) -> None:
    if not _is_whole(chunk, 0, MAX_CHUNK):
        raise ValueError(f"start is {_excerpt(chunk)}; it must be a chunk from 0 to {MAX_CHUNK}")


def check_order(previous: int | None, start: int) -> None:
    """Raise ValueError unless a segment may start at `start` after one that starts at `previous` (None: the first)."""
    if previous is None and start != 0:
        raise ValueError(f"the first segment starts at chunk {start}; it must start at 0")
    if previous is not None and start == previous:
        raise ValueError(f"two segments start at chunk {start}; move one of them by a chunk or more")
    if previous is not None and start < previous:
        raise ValueError(f"starts at chunk {start}, before the segment above (chunk {previous}); put them in order")


def check_end(last_start: int, num_chunks: int) -> None:
    if not _is_whole(num_chunks, last_start + 1, MAX_CHUNK):
        raise ValueError(
            f"the end is at chunk {_excerpt(num_chunks)}; it must lie from {last_start + 1} (one chunk after the last "
            f"start) to {MAX_CHUNK}"
        )


def _check_blend(value: int) -> None:
    if not _is_whole(value, 0, MAX_BLEND):
        raise ValueError(f"blend is {_excerpt(value)}; it must be a whole number of chunks from 0 to {MAX_BLEND}")


def _check_shape(value: str) -> None:
    if value not in BLEND_SHAPES:
        raise ValueError(f"shape is {_excerpt(value)}; allowed: {', '.join(BLEND_SHAPES)}")


def _check_seed(value: int) -> None:
    if not _is_whole(value, 0, MAX_SEED):
        raise ValueError(f"seed is {_excerpt(value)}; it must be a whole number from 0 to {MAX_SEED}")


def _check_guidance(value: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1 <= value <= MAX_GUIDANCE_SCALE:
        raise ValueError(f"guidance is {_excerpt(value)}; it must be a number from 1 (none) to {MAX_GUIDANCE_SCALE:g}")


def _check_anchor(value: str) -> None:
    if not isinstance(value, str) or not value or '"' in value or "\n" in value or "\r" in value:
        raise ValueError(f"anchor is {_excerpt(value)}; it must be the name of a picture, without quotes in it")
    position = find_control_character(value)
    if position is not None:
        raise ValueError(control_character_message(value[position]))


def _check_lora(name: str) -> None:
    if not isinstance(name, str) or not name or '"' in name or "\n" in name or "\r" in name:
        raise ValueError(f"lora is {_excerpt(name)}; it must be the name of a file, without quotes in it")
    position = find_control_character(name)
    if position is not None:
        raise ValueError(control_character_message(name[position]))


def _check_strength(value: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -MAX_LORA_STRENGTH <= value <= MAX_LORA_STRENGTH:
        raise ValueError(
            f"the LoRA's strength is {_excerpt(value)}; it must be a number from {-MAX_LORA_STRENGTH:g} to "
            f"{MAX_LORA_STRENGTH:g}"
        )


def _check_loras(value: Any) -> None:
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    is_list = isinstance(pairs, list | tuple)
    if not is_list or any(not isinstance(pair, list | tuple) or len(pair) != 2 for pair in pairs):
        raise ValueError(f"loras is {_excerpt(value)}; it must be an object of names and strengths")
    for name, strength in pairs:
        _check_lora(name)
        _check_strength(strength)
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"the LoRA {_excerpt(twice)} is given twice")


CHECKS: Mapping[str, Callable[[Any], None]] = {
    "lora": _check_lora,
    "strength": _check_strength,
    "loras": _check_loras,
    "blend": _check_blend,
    "shape": _check_shape,
    "seed": _check_seed,
    "guidance": _check_guidance,
    "anchor": _check_anchor,
}


def _is_whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _excerpt(value: Any) -> str:
    """A value as it is quoted in an error: never more than a line of it."""
    text = (
        f"{value:.12g}"
        if isinstance(value, float)
        else str(value)
        if isinstance(value, int)
        else json.dumps(value, ensure_ascii=False, default=repr)
    )
    return text if len(text) <= 40 else text[:40] + "..."


def _check_keys(what: str, values: Any, kind: type, required: tuple[str, ...]) -> None:
    known = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is {_excerpt(values)}; it must be an object with {', '.join(required)}")
    for key in required:
        if key not in values:
            raise ValueError(f"{what} lacks {key!r}")
    for key in values:
        if key not in known:
            raise ValueError(f"{what} has the key {_excerpt(key)}; allowed: {', '.join(known)}")
