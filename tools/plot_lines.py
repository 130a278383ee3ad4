"""A plain line plot, for the pictures of the demo's model card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 700, 340, 56
COLOURS = ("#1764ab", "#4fa3d8", "#c0392b", "#e59866")


def plot_lines(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    title: str,
    x_name: str,
    log: bool = False,
    colours: Sequence[str] = COLOURS,
) -> None:
    """Draw curves of points (x, y), as many as `colours` at most, into a PNG; with `log` the y axis is logarithmic and
    y positive."""
    points = [point for curve in curves.values() for point in curve]
    scale = math.log10 if log else float
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low = min(scale(y) for _, y in points) if log else 0.0
    high = max(low + 1e-6, *(scale(y) for _, y in points))
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)

    def place(x: float, height: float) -> tuple[float, float]:
        across = (x - left) / max(right - left, 1e-9)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - (height - low) / (high - low) * (
            HEIGHT - 2 * MARGIN
        )

    for part in range(6):
        height = low + part / 5 * (high - low)
        draw.line([place(left, height), place(right, height)], fill="#ddd")
        draw.text((8, place(left, height)[1] - 6), f"{10**height if log else height:.3g}", fill="#555")
        x = left + part / 5 * (right - left)
        draw.text((place(x, low)[0], HEIGHT - MARGIN + 8), f"{x:.0f}", fill="#555", anchor="ma")
    for number, (name, curve) in enumerate(curves.items()):
        draw.line([place(x, scale(y)) for x, y in curve], fill=colours[number], width=2)
        draw.text((MARGIN + 150 * number, 26), name, fill=colours[number])
    draw.text((MARGIN, 8), title, fill="black")
    draw.text((WIDTH - MARGIN, HEIGHT - 24), x_name, fill="black", anchor="ra")
    picture.save(path)
