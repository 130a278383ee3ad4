"""How a long video changes: brightness, colour, sharpness and motion of every chunk, and first against last 15 %.

Video models drift: over many chunks pictures grow darker, more saturated or softer. Comparing the first 15 % of the
frames with the last 15 % is how HeliosBench measures drift.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Name -> what it measures, with its unit. Lightness and colour are CIELAB, in which equal steps look equally large.
MEASURES = {
    "lightness": "mean L* (0 black to 100 white)",
    "contrast": "standard deviation of L*",
    "green_red": "mean a* (negative green, positive red)",
    "blue_yellow": "mean b* (negative blue, positive yellow)",
    "saturation": "mean chroma, the distance from grey",
    "sharpness": "variance of the Laplacian of L*",
    "motion": "mean |change of L*| from the frame before",
}
ENDS = 0.15  # share of the frames at each end that are compared

_TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
_WHITE = (0.95047, 1.0, 1.08883)  # D65


@dataclass(frozen=True)
class DriftMeasured:
    """Means of each measure in MEASURES: of every chunk in order, and of the frames at both ends of the video.

    NaN where there is nothing to measure: motion of a video's only frame.
    """

    num_frames: int
    chunks: tuple[dict[str, float], ...]
    first: dict[str, float]
    last: dict[str, float]

    def drift(self) -> dict[str, float]:
        """Last minus first 15 % of the frames."""
        return {name: self.last[name] - self.first[name] for name in MEASURES}

    def to_json(self) -> str:
        values = {
            "num_frames": self.num_frames,
            "compared_share": ENDS,
            "measures": MEASURES,
            "first": self.first,
            "last": self.last,
            "drift": self.drift(),
            "chunks": self.chunks,
        }
        return json.dumps(_without_nan(values), indent=1)


class DriftMeter:
    """Measures a video given chunk after chunk. Keeps one frame and a few numbers for each, however long the video."""

    def __init__(self) -> None:
        self._previous: torch.Tensor | None = None
        self._chunks: list[torch.Tensor] = []

    def add(self, frames: torch.Tensor) -> None:
        """The next chunk's frames (T, H, W, 3) in [0, 1], of the same size as those before. Raises ValueError."""
        if frames.ndim != 4 or frames.shape[-1] < 3 or not len(frames):
            raise ValueError(f"frames have shape {tuple(frames.shape)}; expected (frames, height, width, 3)")
        rows = []
        for frame in frames:
            lab = to_lab(frame[..., :3].float().cpu())
            if self._previous is not None and self._previous.shape != lab.shape[:2]:
                raise ValueError(
                    f"a frame of {lab.shape[1]}x{lab.shape[0]} follows one of "
                    f"{self._previous.shape[1]}x{self._previous.shape[0]}; all frames must have one size"
                )
            rows.append(_measure(lab, self._previous))
            self._previous = lab[..., 0]
        self._chunks.append(torch.tensor(rows, dtype=torch.float64))

    def result(self) -> DriftMeasured:
        """What was measured so far. Raises ValueError before the first chunk."""
        if not self._chunks:
            raise ValueError("no frames were given; a drift report needs a video")
        frames = torch.cat(self._chunks)
        num_ends = max(1, round(ENDS * len(frames)))
        return DriftMeasured(
            num_frames=len(frames),
            chunks=tuple(_means(chunk) for chunk in self._chunks),
            first=_means(frames[:num_ends]),
            last=_means(frames[-num_ends:]),
        )


def to_lab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB (..., 3) in [0, 1] -> CIELAB (..., 3) under D65: L* 0..100, a* and b* around 0."""
    rgb = rgb.clamp(0, 1)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ torch.tensor(_TO_XYZ, dtype=rgb.dtype).T / torch.tensor(_WHITE, dtype=rgb.dtype)
    root = torch.where(xyz > 0.008856, xyz.clamp_min(1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(-1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-1)


def _measure(lab: torch.Tensor, previous: torch.Tensor | None) -> list[float]:
    """The values of MEASURES, in their order, of a frame (H, W, 3) after one of lightness `previous` (H, W)."""
    lightness, a, b = lab.unbind(-1)
    kernel = torch.tensor([[[[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]]])
    edges = F.conv2d(F.pad(lightness[None, None], (1, 1, 1, 1), mode="replicate"), kernel)
    values = [
        lightness.mean(),
        lightness.std(correction=0),
        a.mean(),
        b.mean(),
        torch.hypot(a, b).mean(),
        edges.var(correction=0),
    ]
    motion = float("nan") if previous is None else (lightness - previous).abs().mean().item()
    return [value.item() for value in values] + [motion]


def _means(rows: torch.Tensor) -> dict[str, float]:
    return dict(zip(MEASURES, rows.nanmean(dim=0).tolist(), strict=True))


def _without_nan(value):
    """JSON has no NaN: null stands for "not measured"."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
