"""Which variant some weights are, and whether they are sampled as they were trained.

Base, Mid and Distilled have the same tensors, so the weights themselves do not show it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from .settings import VARIANTS, SamplingSettings, model_title, variant_of

logger = logging.getLogger(__name__)

_NAMED = re.compile(rf"(?:^|[^a-z]|helios)({'|'.join(VARIANTS)})(?![a-z])")
_NUM_NAMES = 3  # of a path: file, folder, folder above
_FAR = 3  # times as many, or as few, steps as the variant's


def choose_variant(path: Path, from_files: SamplingSettings | None, chosen: str | None = None) -> SamplingSettings:
    """Settings of the weights at `path`: of the `chosen` variant, else what the files say, else by the name.

    The choice counts, as the user may know better, but a warning is logged when files or name say otherwise, and when
    nothing says the variant, which then is "distilled". Raises ValueError for an unknown `chosen`.
    """
    if chosen is not None and chosen not in VARIANTS:
        raise ValueError(f"variant is {chosen!r}; allowed: {', '.join(map(repr, VARIANTS))}")
    stated = None if from_files is None else variant_of(from_files)
    source = "the files beside it or in it say"
    if stated is None:
        stated, source = _variant_in(path), "its name says"
    if chosen is not None and stated not in (None, chosen):
        logger.warning(
            "%s is taken for Helios %s, as chosen, but %s it is %s. With another variant's schedule the video is noise "
            "or blur",
            path.name, chosen.capitalize(), source, stated.capitalize(),
        )  # fmt: skip
    if chosen is None and stated is None:
        logger.warning("nothing says which Helios variant %s is; it is taken for Distilled. Choose another", path.name)
    name = chosen or stated or "distilled"
    # The files know the exact schedule of their own variant.
    return from_files if from_files is not None and variant_of(from_files) == name else VARIANTS[name]


def sampling_advice(trained: SamplingSettings, used: SamplingSettings) -> list[str]:
    """What to say, in sentences, about settings that are far from those the variant was `trained` for."""
    name = model_title(trained)
    advice = []
    if used.guided and not trained.guided:
        advice.append(
            f"guidance_scale is {used.guidance_scale:g}, but {name} was distilled to do without: it takes twice "
            "the time and gives harsh colours. Use 1"
        )
    if trained.guided and not used.guided:
        advice.append(
            f"guidance_scale is {used.guidance_scale:g}, so the negative prompt has no effect; {name} needs "
            f"guidance (about {trained.guidance_scale:g}) to follow the prompt"
        )
    num_used, num_trained = sum(used.steps), sum(trained.steps)
    if not num_trained / _FAR <= num_used <= num_trained * _FAR:
        advice.append(
            f"steps {list(used.steps)} are {num_used} in all; {name} is made for {list(trained.steps)}. "
            + ("Fewer leave noise" if num_used < num_trained else "More take time and change little")
        )
    return advice


def _variant_in(path: Path) -> str | None:
    """The one variant that the name of the file names, else that of its folder, else of the folder above."""
    for part in reversed(path.parts[-_NUM_NAMES:]):
        named = set(_NAMED.findall(part.lower()))
        if named:
            return named.pop() if len(named) == 1 else None
    return None
