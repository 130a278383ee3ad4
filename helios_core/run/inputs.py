"""What the chunks of a take were made from, by names for people. Of two takes it says which input differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..fingerprint import fingerprint
from ..sampling.plan import KeyChain, Past
from .job import LongVideo
from .run_folder import RunFolder, Take

# Name of an input -> [chunk, what it is from that chunk on], for each chunk in which it changes.
Inputs = Mapping[str, Sequence[Sequence[Any]]]
_DIGITS = 12  # of a fingerprint: enough to distinguish two inputs


def inputs_of(video: LongVideo, first: Past) -> Inputs:
    """The inputs of all chunks of a video, JSON-able. `first` is the past of the first one."""
    chain = KeyChain(video.memory, video.model.fingerprint, video.anti_drift, first.noise_stream)
    whole = {
        **{f"model ({part})": identity for part, identity in video.model.parts.items()},
        **({} if video.model.parts else {"model": video.model.fingerprint}),
        "memory": chain.digest,
        "anti_drift": video.anti_drift,
    }
    inputs: dict[str, list[list[Any]]] = {}
    for chunk in video.chunks:
        for name, value in (whole | chain.inputs(video.plan(chunk))).items():
            known = fingerprint(value)[:_DIGITS]
            changes = inputs.setdefault(name, [])
            if not changes or changes[-1][1] != known:
                changes.append([chunk, known])
    return inputs


@dataclass(frozen=True)
class Anew:
    """Why chunks are made although the folder holds other ones in their place: from `chunk` on, counted from the start
    of the video, because of the inputs `names`. None of them: the old ones' inputs were not written down."""

    chunk: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        because = ", ".join(self.names) or "not written down by the version that made them"
        return f"chunks from {self.chunk} on are made anew, because of other inputs than before: {because}"


def why_anew(folder: RunFolder, inputs: Inputs, keys: Sequence[str]) -> Anew | None:
    """Why the first missing chunk of `keys` must be made, when an earlier take has one in its place; else None."""
    missing = [key for key in keys if not folder.chunk_path(key).is_file()]
    if not missing:
        return None
    chunk = _number(missing[0])
    for take in reversed(folder.takes()):
        others = [key for key in take.keys if _number(key) == chunk and key != missing[0]]
        if others and folder.chunk_path(others[0]).is_file():
            return Anew(chunk, _differing(take, inputs, _number(keys[0]), chunk))
    return None


def _differing(take: Take, inputs: Inputs, start: int, chunk: int) -> tuple[str, ...]:
    """Names of the inputs that are not the same in the chunks up to this one."""
    before = take.note.get("inputs")
    if not isinstance(before, Mapping):
        return ()
    first = _number(take.keys[0])
    names = [name for name in {**inputs, **before} if name != "memory" or first == start]
    shared = range(max(first, start), chunk + 1)
    return tuple(
        name
        for name in names
        if any(_at(inputs.get(name, ()), number) != _at(before.get(name, ()), number) for number in shared)
    )


def _at(changes: Sequence[Sequence[Any]], chunk: int) -> Any:
    """What an input is in a chunk."""
    return next((known for since, known in reversed(changes) if since <= chunk), None)


def _number(key: str) -> int:
    return int(key.partition("-")[0])
