"""A prompt schedule with its prompts encoded: text rows, seed, guidance and anchor picture of each chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from ..fingerprint import fingerprint
from ..sampling.loras import Lora, LoraStrength
from ..sampling.settings import SamplingSettings
from ..transfer import to_device, to_float64
from .schedule import PromptSchedule, Segment


def blend_rows(old: torch.Tensor, new: torch.Tensor, weight: float, shape: str = "linear") -> torch.Tensor:
    """Mix two prompts' rows (1, L, text_dim) of the text encoder; `weight` in [0, 1] is the share of `new`.

    "linear" mixes the values. "spherical" turns each row's direction along the shortest arc and mixes its length;
    a row that is zero in one prompt (padding), or opposite in both, has no such arc and is mixed linearly. "step" is
    `new` at any weight. The ends give back `old` and `new` bit for bit. Raises ValueError for rows of two shapes.
    """
    if old.shape != new.shape:
        raise ValueError(
            f"two prompts of shapes {tuple(old.shape)} and {tuple(new.shape)} cannot be blended; encode both with the "
            "same text encoder, or set the blend to 0"
        )
    if weight >= 1.0 or shape == "step":
        return new
    if weight <= 0.0:
        return old
    linear = torch.lerp(old.float(), new.float(), weight)
    if shape == "linear":
        return linear.to(new.dtype)
    # float64: the sine of the angle between two rows that are nearly the same is otherwise mostly rounding.
    a, b = to_float64(old), to_float64(new)
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    a, b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    angle = (a * b).sum(-1, keepdim=True).clamp(-1.0, 1.0).arccos()
    sine = angle.sin()
    direction = (((1.0 - weight) * angle).sin() * a + (weight * angle).sin() * b) / sine.clamp_min(1e-12)
    spherical = direction * torch.lerp(length_a, length_b, weight)
    has_arc = (length_a > 1e-12) & (length_b > 1e-12) & (sine > 1e-6)
    return to_device(torch.where(has_arc, spherical, to_float64(linear)).to(new.dtype), new.device)


@dataclass(frozen=True)
class EncodedSchedule:
    """A schedule with its prompts encoded: `rows[i]` (1, L, text_dim) of segment i, and the pictures it names.

    `pictures`: name -> (H, W, 3), as the host encodes pictures, for every `anchor` in the schedule. `identities`, where
    they are known, are fingerprints of what each rows were made from. `loras`: name -> LoRA, for every one that the
    schedule names. Raises ValueError when a picture or LoRA is missing.
    """

    schedule: PromptSchedule
    rows: tuple[torch.Tensor, ...]
    pictures: Mapping[str, torch.Tensor] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
    loras: Mapping[str, Lora] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.schedule.segments):
            raise ValueError(f"{len(self.schedule.segments)} segments and rows of {len(self.rows)} prompts")
        if self.identities and len(self.identities) != len(self.rows):
            raise ValueError(f"rows of {len(self.rows)} prompts and {len(self.identities)} identities")
        for segment in self.schedule.segments:
            if segment.anchor is not None and segment.anchor not in self.pictures:
                raise ValueError(f"the schedule names the anchor picture {segment.anchor!r}, which is not given")
        for name in self.schedule.lora_names:
            if name not in self.loras:
                raise ValueError(f"the schedule names the LoRA {name!r}, which is not given")

    @classmethod
    def of_one_prompt(cls, rows: torch.Tensor, identity: str = "") -> EncodedSchedule:
        """The whole video from one prompt's rows (1, L, text_dim)."""
        return cls(PromptSchedule((Segment(0, ""),)), (rows,), identities=(identity,))

    @classmethod
    def encode(
        cls,
        schedule: PromptSchedule,
        encode_prompts: Callable[[list[str]], list[torch.Tensor]],
        pictures: Mapping[str, torch.Tensor] | None = None,
        loras: Mapping[str, Lora] | None = None,
    ) -> EncodedSchedule:
        """Encode each distinct prompt of a schedule once."""
        prompts = list(dict.fromkeys(segment.prompt for segment in schedule.segments))
        rows = dict(zip(prompts, encode_prompts(prompts), strict=True))
        in_order = tuple(rows[segment.prompt] for segment in schedule.segments)
        return cls(schedule, in_order, pictures or {}, loras=loras or {})

    def add(
        self, segment: Segment, rows: torch.Tensor, identity: str = "", loras: Mapping[str, Lora] | None = None
    ) -> EncodedSchedule:
        """With another segment after the last; an end that lies before it is dropped. Raises ValueError when it does
        not start later than the last."""
        end = self.schedule.num_chunks
        schedule = replace(
            self.schedule,
            segments=(*self.schedule.segments, segment),
            num_chunks=end if end is not None and end > segment.start else None,
        )
        before = self.identities or ("",) * len(self.rows)
        known = {**self.loras, **(loras or {})}
        return replace(
            self, schedule=schedule, rows=(*self.rows, rows), identities=(*before, identity), loras=known
        )

    def to(self, device: torch.device | str) -> EncodedSchedule:
        """With the rows on `device`."""
        return replace(self, rows=tuple(rows.to(device) for rows in self.rows))

    def rows_for(self, chunk: int) -> torch.Tensor:
        """Text rows (1, L, text_dim) that a chunk is sampled with."""
        parts = self.schedule.mix(chunk)
        if len(parts) == 1:
            return self.rows[parts[0][0]]
        (old, _), (new, weight) = parts
        return blend_rows(self.rows[old], self.rows[new], weight, self.schedule.blend_of(new)[1])

    def identity_for(self, chunk: int) -> str:
        """Fingerprint of what the rows of a chunk were made from; "" where that is not known."""
        parts = self.schedule.mix(chunk)
        names = [self.identities[segment] if self.identities else "" for segment, _ in parts]
        if len(parts) == 1 or not all(names):
            return names[0] if len(parts) == 1 else ""
        _, weight = parts[1]
        return fingerprint(names, weight, self.schedule.blend_of(parts[1][0])[1])

    def settings_for(self, chunk: int, settings: SamplingSettings) -> SamplingSettings:
        """`settings` with the guidance of the chunk's segment, if it has its own."""
        scale = self.schedule.segment_at(chunk).guidance_scale
        return settings if scale is None else replace(settings, guidance_scale=scale)

    def loras_for(self, chunk: int) -> tuple[LoraStrength, ...]:
        """The LoRAs that act in a chunk."""
        strengths = self.schedule.loras_at(chunk)
        return tuple(LoraStrength(name, self.loras[name].identity, strengths[name]) for name in sorted(strengths))

    def seed_for(self, chunk: int) -> int | None:
        """The seed of the chunk's segment, if it has its own."""
        return self.schedule.segment_at(chunk).seed

    def anchors_in(self, chunks: range) -> dict[int, torch.Tensor]:
        """Chunk -> picture (H, W, 3) that becomes the anchor before that chunk is made."""
        starts = {segment.start: segment.anchor for segment in self.schedule.segments if segment.anchor is not None}
        return {chunk: self.pictures[starts[chunk]] for chunk in chunks if chunk in starts}

    def is_guided(self, chunks: range, settings: SamplingSettings) -> bool:
        """Whether one of these chunks needs a negative prompt."""
        return any(self.settings_for(chunk, settings).guided for chunk in chunks)
