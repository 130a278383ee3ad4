"""Run folders of version 0.1.0: its chunks had other keys. They are found, and get the keys of today beside their own.

Those keys held the values of the text encoder's rows and of the first memory, where today's hold their identities.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from ..fingerprint import fingerprint
from ..sampling.plan import Past
from .job import LongVideo
from .keys import part_keys
from .run_folder import RunFolder, make_key

logger = logging.getLogger(__name__)

_SAMPLER_VERSION = 1


def adopt_old_names(
    video: LongVideo, folder: RunFolder, first: Past, keys: list[str], names_of_parts: list[str]
) -> None:
    """Give what the folder holds under the old keys of these chunks and parts their names of today, too."""
    if not folder.journal() or all(folder.chunk_path(key).is_file() for key in keys):
        return
    old = old_chunk_keys(video, first)
    old_parts = part_keys(video, old)
    pairs = [
        *zip(map(folder.chunk_path, old), map(folder.chunk_path, keys), strict=True),
        *zip(map(folder.part_path, old_parts), map(folder.part_path, names_of_parts), strict=True),
    ]
    found = [(before, now) for before, now in pairs if before.is_file() and not now.is_file()]
    for before, now in found:
        _link(before, now)
    if found:
        logger.info("%s was made by version 0.1.0; its chunks are reused", folder.path)


def old_chunk_keys(video: LongVideo, first: Past) -> list[str]:
    """The keys that version 0.1.0 gave to the chunks."""
    memory = video.memory
    digest = fingerprint(
        _SAMPLER_VERSION,
        {"frames": memory.frames, "anchor": memory.anchor, "index": memory.chunk_index, "config": memory.config},
        {"model": video.model.fingerprint, "anti_drift": video.anti_drift, "stream": first.noise_stream},
    )
    keys = []
    rows, prompt, negative = None, "", None
    for chunk in video.chunks:
        plan = video.plan(chunk)
        if plan.rows is not rows:
            rows, prompt = plan.rows, fingerprint(plan.rows)
        if plan.settings.guided:
            negative = negative or fingerprint(plan.negative_rows)
        digest = fingerprint(
            digest,
            {"prompt": prompt, "negative": negative if plan.settings.guided else None},
            {"settings": plan.settings, "anchor": plan.anchor},
            {"noise": type(plan.noise).__name__, "seed": plan.noise.seed},
        )
        keys.append(make_key(chunk, digest))
    return keys


def _link(before: Path, now: Path) -> None:
    try:
        os.link(before, now)
    except OSError:  # a file system without hard links
        shutil.copyfile(before, now)
