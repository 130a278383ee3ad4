"""The window into the past: how many latent frames each memory holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryConfig:
    """The window into the past: how many latent frames the long, mid and short memory hold.

    With `keep_first_frame` the short memory is the anchor (first frame of the video) and the last frame;
    without, the short memory takes one more of the latest frames in the anchor's place.
    `reanchor_on_second_chunk` replaces the anchor by the first latent frame of chunk 1, for chunks 2 and on
    (diffusers calls this `is_skip_first_chunk`, though no chunk is skipped). Raises ValueError for an empty part.
    """

    history_sizes: tuple[int, int, int] = (16, 2, 1)
    keep_first_frame: bool = True
    reanchor_on_second_chunk: bool = False

    def __post_init__(self) -> None:
        sizes = tuple(sorted(self.history_sizes, reverse=True))
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(
                f"history_sizes {self.history_sizes} must be three numbers of at least 1 (long, mid, short memory)"
            )
        object.__setattr__(self, "history_sizes", sizes)

    @property
    def window_sizes(self) -> tuple[int, int, int]:
        """Latent frames of the past that (long, mid, short) memory take, the anchor not counted."""
        long, mid, short = self.history_sizes
        return long, mid, short if self.keep_first_frame else short + 1

    @property
    def num_latent_frames(self) -> int:
        """Latent frames of the past that a chunk can see, the anchor not counted: 19 in the published model."""
        return sum(self.window_sizes)
