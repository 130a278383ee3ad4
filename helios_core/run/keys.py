"""Names of chunks and parts in a run folder: each is found again by what it was made from."""

from __future__ import annotations

from ..fingerprint import fingerprint
from ..sampling.plan import KeyChain, Past
from .job import LongVideo
from .run_folder import make_key


def chunk_keys(video: LongVideo, first: Past) -> tuple[list[str], list[int | None]]:
    """Keys of all chunks, and the seeds of their noise. `first` is the past of the first one."""
    chain = KeyChain(video.memory, video.model.fingerprint, video.anti_drift, first.noise_stream)
    keys, seeds = [], []
    for chunk in video.chunks:
        plan = video.plan(chunk)
        keys.append(make_key(chunk, chain.append(plan)))
        seeds.append(plan.noise.seed)
    return keys, seeds


def part_keys(video: LongVideo, keys: list[str]) -> list[str]:
    """Keys of the chunks' video files, which depend on the VAE and the encoding as well."""
    return [
        make_key(chunk, fingerprint(key, video.codec, video.encoding.fingerprint))
        for chunk, key in zip(video.chunks, keys, strict=True)
    ]


def digest_of(key: str) -> str:
    """The chunk's identity in its key."""
    return key.partition("-")[2]
