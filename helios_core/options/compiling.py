"""Compiled blocks (`HeliosTransformer.compile_blocks`): which other options they go with."""

from __future__ import annotations

from ..sampling.settings import SamplingSettings


def check_compile(settings: SamplingSettings) -> None:
    """Raise ValueError, before anything heavy, when compiled blocks cannot serve a run.

    With history_reuse a block is called in two ways in each stage, with and without the history's rows. That is more
    than torch compiles of one piece of code (its recompile limit): it would give up without a word, and most blocks
    would run uncompiled.
    """
    if settings.history_reuse != "off":
        raise ValueError(
            f"compile and history_reuse {settings.history_reuse!r} do not go together: the blocks take so many shapes "
            "that torch gives up compiling them. Turn one of the two off"
        )
